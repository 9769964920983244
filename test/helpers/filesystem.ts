/**
 * Real filesystems for tests: small ones to be filled (ext4 in a file, limited in blocks and inodes), and
 * such as a user may mount on their own directory (FUSE, with a server that never answers).
 */
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { readUsage } from '../../lib/system/disk-usage.ts';
import { stopProcess, until } from './node.ts';
import {
  command,
  machineRoot,
  mount,
  umount,
  unlessPrivateMachine,
  type TestUser,
} from './private-machine.ts';

export interface FilesystemSize {
  readonly mebibytes: number;
  /** ext4 rounds up; what it made is in readUsage(). */
  readonly inodes: number;
}

interface SmallFilesystem extends Disposable {
  /** Its mount point: root's, mode 0755. */
  readonly path: string;
}

/** Makes and mounts an ext4 of that size; five percent of its blocks are reserved, as by default. */
export function makeExt4({ mebibytes, inodes }: FilesystemSize): SmallFilesystem {
  const directory = mkdtempSync(join(machineRoot, 'ext4-'));
  // The base of a node may be nowhere that others can rename.
  command('chmod', '0755', directory);
  const image = join(directory, 'image');
  const path = join(directory, 'mounted');
  writeFileSync(image, '');
  truncateSync(image, mebibytes * 1024 * 1024);
  mkdirSync(path);
  command('mkfs.ext4', '-q', '-N', String(inodes), '-E', 'lazy_itable_init=0', image);
  mount('--options', 'loop', image, path);
  return {
    path,
    [Symbol.dispose]: () => {
      umount(path);
      rmSync(directory, { recursive: true });
    },
  };
}

/**
 * For SuiteOptions.skip: why no such filesystem can be mounted here. To be called inside a private machine.
 */
export function unlessExt4(): string | undefined {
  if (unlessPrivateMachine !== undefined) return unlessPrivateMachine;
  try {
    using filesystem = makeExt4({ mebibytes: 4, inodes: 64 });
    return readUsage(filesystem.path).totalInodes > 0 ? undefined : 'ext4 does not count its inodes';
  } catch (error) {
    return `needs a loop-mounted ext4: ${(error as Error).message.trim()}`;
  }
}

interface FuseOptions {
  /** `allow_other`: else the kernel refuses everybody but the user, root too. */
  readonly forOthers: boolean;
}

/**
 * Mounts a FUSE filesystem of a user whose server lives and never answers: whoever is let in waits for ever.
 */
export async function mountSilentFuse(
  path: string,
  user: TestUser,
  { forOthers }: FuseOptions,
): Promise<AsyncDisposable> {
  const ids = `user_id=${user.uid},group_id=${user.gid}${forOthers ? ',allow_other' : ''}`;
  // By mount(2) alone: with the newer calls, the mount(8) of util-linux 2.41 touches what it has mounted,
  // which refuses root.
  const script = `exec 3<>/dev/fuse; LIBMOUNT_FORCE_MOUNT2=always mount -i -t fuse -o "fd=3,rootmode=40000,${ids}" fuse "$1"; exec sleep infinity`;
  const server = spawn('sh', ['-euc', script, 'sh', path], { stdio: ['ignore', 'inherit', 'inherit'] });
  await until(`a FUSE is mounted on ${path}`, () => {
    if (server.exitCode !== null) throw new Error(`Cannot mount a FUSE on ${path}`);
    return command('cat', '/proc/self/mountinfo').includes(` ${path} `);
  });
  return {
    [Symbol.asyncDispose]: async () => {
      // The server first: umount(8), too, would wait for its answer.
      server.kill('SIGKILL');
      await until('the FUSE server has ended', () => server.exitCode !== null || server.signalCode !== null);
      umount(path);
    },
  };
}

export const unlessFuse = unlessPrivateMachine ?? (existsSync('/dev/fuse') ? undefined : 'needs /dev/fuse');

interface Squashfuse extends AsyncDisposable {
  /** Its mount point, for everybody. */
  readonly path: string;
  /** From then on its server does not answer. */
  readonly stop: () => Promise<void>;
  readonly go: () => void;
}

/** Mounts an image by squashfuse, whose server can be stopped. */
export async function mountSquashfuse(image: string): Promise<Squashfuse> {
  const path = mkdtempSync(join(machineRoot, 'squashfuse-'));
  command('chmod', '0755', path);
  const server = spawn('squashfuse', ['-f', '-o', 'allow_other', image, path], { stdio: 'inherit' });
  await until(`squashfuse serves ${path}`, () => {
    if (server.exitCode !== null) throw new Error(`squashfuse ended with exit code ${server.exitCode}`);
    return command('cat', '/proc/self/mountinfo').includes(` ${path} `);
  });
  return {
    path,
    stop: () => stopProcess(server.pid!),
    go: () => server.kill('SIGCONT'),
    [Symbol.asyncDispose]: async () => {
      server.kill('SIGKILL');
      await until('squashfuse has ended', () => server.exitCode !== null || server.signalCode !== null);
      command('umount', '--lazy', path);
    },
  };
}

/** For SuiteOptions.skip: why there can be none. */
export const unlessSquashfuse = (): string | undefined =>
  unlessFuse ?? (existsSync('/usr/bin/squashfuse') ? undefined : 'needs squashfuse');
