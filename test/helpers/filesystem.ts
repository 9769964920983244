/** Small real filesystems for tests that fill them: ext4 in a file, limited in blocks and inodes. */
import { mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { readUsage } from '../../lib/system/disk-usage.ts';
import { command, machineRoot, mount, umount, unlessPrivateMachine } from './private-machine.ts';

export interface FilesystemSize {
  readonly mebibytes: number;
  /** ext4 rounds up; what it made is in readUsage(). */
  readonly inodes: number;
}

export interface SmallFilesystem extends Disposable {
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

/** For SuiteOptions.skip: why no such filesystem can be mounted here. To be called inside a private machine. */
export function unlessExt4(): string | undefined {
  if (unlessPrivateMachine !== undefined) return unlessPrivateMachine;
  try {
    using filesystem = makeExt4({ mebibytes: 4, inodes: 64 });
    return readUsage(filesystem.path).totalInodes > 0 ? undefined : 'ext4 does not count its inodes';
  } catch (error) {
    return `needs a loop-mounted ext4: ${(error as Error).message.trim()}`;
  }
}
