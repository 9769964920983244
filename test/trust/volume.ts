/**
 * What a user can have in their own directory, in any number, and how another user is served beside it.
 *
 * volume-run.ts measures the service by powers of ten; volume.test.ts counts what a collection does at a
 * small number.
 */
import { linkSync, mkdirSync, rmSync, symlinkSync, truncateSync, utimesSync, writeFileSync } from 'node:fs';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createLockName, directoryName, entryName, stepEventsName } from '../../lib/core/layout.ts';
import type { TestNode } from '../helpers/node.ts';
import { alice, command } from '../helpers/private-machine.ts';

export const hashOf = (number: number): string => number.toString(16).padStart(16, '0');

/** Of one inode on ext4. */
const mostLinksOfFile = 60_000;
const longAgo = new Date(1000);

/** Runs for each number, in the user's directory. */
function times(count: number, make: (number: number) => void): void {
  for (let number = 1; number <= count; number++) make(number);
}

/** Links cost their owner neither inodes nor quota. */
function linkTimes(directory: string, count: number, nameOf: (number: number) => string): void {
  times(count, (number) => {
    const source = join(directory, `source${Math.floor(number / mostLinksOfFile)}`);
    if (number === 1 || number % mostLinksOfFile === 0) {
      // Another trick may have put a FIFO there, and opening it would wait for ever.
      rmSync(source, { recursive: true, force: true });
      writeFileSync(source, '');
    }
    linkSync(source, join(directory, nameOf(number)));
  });
}

function makeFifos(directory: string, names: readonly string[]): void {
  for (let from = 0; from < names.length; from += 1000)
    command('mkfifo', ...names.slice(from, from + 1000).map((name) => join(directory, name)));
}

function makeOldDirectories(directory: string, count: number, nameOf: (number: number) => string): void {
  times(count, (number) => {
    mkdirSync(join(directory, nameOf(number)));
  });
}

/** The same time for all, after they have got their owner. */
function makeOld(directory: string, count: number, nameOf: (number: number) => string): void {
  times(count, (number) => {
    utimesSync(join(directory, nameOf(number)), longAgo, longAgo);
  });
}

const entryDirectory = (number: number): string => directoryName(entryName(alice.uid, hashOf(number)));
const stubDirectory = (number: number): string => `.pyxis_77.${number}`;

interface Volume {
  readonly make: (directory: string, count: number) => void;
  /** After all got their owner. */
  readonly finish?: (directory: string, count: number) => void;
}

/** By what there is much of. */
export const volumes: Readonly<Record<string, Volume>> = {
  names: {
    make: (directory, count) => {
      linkTimes(directory, count, (number) => `name${number}`);
    },
  },
  'names of ours': {
    make: (directory, count) => {
      linkTimes(directory, count, (number) =>
        number % 2 === 0 ? stepEventsName(number) : createLockName(entryName(alice.uid, hashOf(number))),
      );
    },
  },
  'empty entries': {
    make: (directory, count) => {
      makeOldDirectories(directory, count, entryDirectory);
    },
    finish: (directory, count) => {
      makeOld(directory, count, entryDirectory);
    },
  },
  'old stubs, a log line each': {
    make: (directory, count) => {
      makeOldDirectories(directory, count, stubDirectory);
    },
    finish: (directory, count) => {
      makeOld(directory, count, stubDirectory);
    },
  },
  'stubs that lead to a directory of links': {
    make: (directory, count) => {
      mkdirSync(join(directory, 'large'));
      linkTimes(join(directory, 'large'), count, (number) => `link${number}`);
      times(Math.min(count, 10_000), (number) => {
        mkdirSync(join(directory, stubDirectory(number)));
        symlinkSync('../large', join(directory, stubDirectory(number), '.container-cache'));
      });
    },
  },
  FIFOs: {
    make: (directory, count) => {
      makeFifos(
        directory,
        Array.from({ length: count }, (_, index) => createLockName(entryName(alice.uid, hashOf(index)))),
      );
    },
  },
};

/** Gives alice one of the volumes. @returns what takes it away */
export function makeVolume(node: TestNode, volume: Volume, count: number): void {
  const directory = node.makeUserDirectory(alice);
  volume.make(directory, count);
  command('chown', '--recursive', '--no-dereference', `${alice.uid}:${alice.gid}`, directory);
  volume.finish?.(directory, count);
}

export function removeVolume(node: TestNode): void {
  command('rm', '--recursive', '--force', node.userPath(alice));
  command('rm', '--recursive', '--force', join(node.basePath, '.trash'));
}

/** As many processes of alice as it takes to tell all that is read of her. */
const processesWithMounts = 30;

/** Processes of alice, in a namespace with that many mounts of her own. */
export async function startWithMounts(node: TestNode, count: number): Promise<Disposable> {
  const fstab = join(node.root, 'fstab');
  const points = join(node.root, 'points');
  mkdirSync(points, { recursive: true });
  let text = '';
  times(count, (number) => {
    text += `tmpfs ${points} tmpfs size=4k,mode=755,nr_inodes=${number + 10} 0 0\n`;
  });
  writeFileSync(fstab, text);
  const script =
    `while read -r _ point _; do mount -n -t tmpfs -o size=4k tmpfs "$point"; done <"$1"; echo ready; ` +
    `i=0; while [ $i -lt ${processesWithMounts} ]; do setpriv --reuid=${alice.uid} --regid=${alice.gid} --clear-groups ` +
    '--pdeathsig=KILL sleep infinity & i=$((i + 1)); done; wait';
  const child = spawn('unshare', ['--mount', '--propagation', 'private', 'sh', '-c', script, 'sh', fstab], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' },
  });
  await once(child.stdout, 'data');
  return {
    [Symbol.dispose]: () => {
      child.kill('SIGKILL');
    },
  };
}

/** A file that takes what is free but for some bytes. */
export function fillBut(node: TestNode, freeBytes: number, available: () => number): void {
  const path = join(node.basePath, 'ballast');
  rmSync(path, { force: true });
  const bytes = available() - freeBytes;
  writeFileSync(path, '');
  if (bytes <= 0) return;
  truncateSync(path, 0);
  command('fallocate', '--length', String(bytes), path);
}
