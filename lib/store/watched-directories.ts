/**
 * Seeing that something was deleted from an entry, at the price of a few stat(2). All of it with the user's
 * ids, and by the door beneath the entry (lib/system/beneath.ts): what a user puts in the place of a
 * directory leads nowhere.
 */
import { closeSync } from 'node:fs';
import { longestWatchedPath, mostWatched, type WatchedDirectory } from '../core/entry-metadata.ts';
import { BeneathError } from '../core/faults.ts';
import { lockFileName } from '../core/layout.ts';
import { itemsBeneath, openDirectoryBeneath, statBeneath } from '../system/beneath.ts';
import type { Directory } from '../system/directory.ts';

/** Where a container without them cannot even start; the rest is taken from the top down. */
const important = [
  ...['bin', 'sbin', 'lib', 'lib64', 'etc', 'usr', 'usr/bin', 'usr/sbin', 'usr/lib', 'usr/lib64'],
  ...['usr/local', 'usr/local/bin', 'usr/local/lib', 'opt'],
];

/** Counting more names would take its time; such a directory is not watched. */
const mostNames = 20_000;
/** Names that may turn out to be no directory that can be watched. */
const mostLooks = 200;

/** Picks the directories of a complete rootfs to watch. */
export function pickWatched(rootfs: Directory): WatchedDirectory[] {
  const picked = new Map<string, WatchedDirectory>();
  const waiting: string[] = [];
  const pick = (path: string): void => {
    if (picked.has(path) || path.length > longestWatchedPath || !isPlain(path) || !isReached(path, picked))
      return;
    const found = look(rootfs, path);
    if (found === undefined) return;
    picked.set(path, { path, mtimeMs: found.mtimeMs, names: found.names });
    waiting.push(...found.directories.map((name) => (path === '' ? name : `${path}/${name}`)));
  };
  for (const path of ['', ...important]) pick(path);
  for (const path of firstOf(waiting, mostLooks)) {
    if (picked.size >= mostWatched) break;
    pick(path);
  }
  return [...picked.values()];
}

/** A list that may grow meanwhile. */
function* firstOf(list: readonly string[], count: number): Generator<string> {
  for (let index = 0; index < count; index++) {
    const one = list[index];
    if (one === undefined) return;
    yield one;
  }
}

/** @returns what is missing, as a sentence; undefined: nothing that would have been seen */
export function findHole(rootfs: Directory, watched: readonly WatchedDirectory[]): string | undefined {
  const gone: string[] = [];
  for (const { path, mtimeMs, names } of watched) {
    const mtimeNow = path === '' ? undefined : mtimeOf(rootfs, path);
    if (path !== '' && mtimeNow === undefined) {
      gone.push(path);
      break;
    }
    // The clock of the LRU is the rootfs' own time. Where names were added, there may be as many as before.
    if (mtimeNow === mtimeMs) continue;
    const now = look(rootfs, path)?.names;
    if (now !== undefined && now < names) return `its directory /${path} has ${now} names of ${names}`;
  }
  return gone[0] === undefined ? undefined : `its directory /${gone[0]} is gone`;
}

/** Each component a name that JSON and a log line can hold. */
const isPlain = (path: string): boolean => /^[\x20-\x7e]*$/.test(path);

const parentOf = (path: string): string => path.slice(0, Math.max(0, path.lastIndexOf('/')));

const isReached = (path: string, reached: ReadonlyMap<string, unknown>): boolean =>
  path === '' || reached.has(parentOf(path));

function mtimeOf(rootfs: Directory, path: string): number | undefined {
  try {
    const stats = statBeneath(rootfs, path);
    return stats.isDirectory() ? stats.mtimeMs : undefined;
  } catch (error) {
    if (error instanceof BeneathError) return undefined;
    throw error;
  }
}

interface Look {
  readonly mtimeMs: number;
  readonly names: number;
  /** Some of the directories in it. */
  readonly directories: readonly string[];
}

/** @returns undefined: no directory, closed to its user, or too large */
function look(rootfs: Directory, path: string): Look | undefined {
  let directory: Directory;
  try {
    directory = path === '' ? rootfs : openDirectoryBeneath(rootfs, path);
  } catch (error) {
    if (error instanceof BeneathError) return undefined;
    throw error;
  }
  try {
    const directories: string[] = [];
    let names = 0;
    for (const item of itemsBeneath(directory)) {
      if (path === '' && item.name === lockFileName) continue;
      if (++names > mostNames) return undefined;
      if (item.isDirectory && directories.length < mostWatched) directories.push(item.name);
    }
    return { mtimeMs: directory.stats.mtimeMs, names, directories: directories.sort() };
  } finally {
    if (directory !== rootfs) closeSync(directory.fd);
  }
}
