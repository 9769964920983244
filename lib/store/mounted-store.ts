/**
 * The mounted entries of a node: what is known of each image, and its copy if there is one, in
 * `<base>/.mounted/<entry>/`. All of it is root's, and nobody else can enter.
 *
 *   .pyxis_cache_lock   its flock: whoever uses the entry holds it shared, as with every entry (lease.ts)
 *   facts               lib/core/mounted-facts.ts
 *   image.squashfs      a file that shares the image's blocks, or a copy; not there if the image itself is
 *                       mounted
 *
 * Beside them `.users/<uid>/<entry>`, an empty file: that user has used the entry, when its time says.
 *
 * The directory's time is the entry's last use. It is made aside and comes by a rename, under the entry's
 * create lock, and leaves by a rename into the trash, under an exclusive flock.
 */
import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  futimesSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  rmdirSync,
  rmSync,
  utimesSync,
  type Stats,
} from 'node:fs';
import { isSettled } from '../core/entry-metadata.ts';
import {
  copyName,
  createLockName,
  factsName,
  isMountedEntryName,
  lockPath,
  mountedEntryPath,
  mountedStorePath,
  mountedUsersPath,
  parseIdName,
  usedMountedPath,
} from '../core/layout.ts';
import {
  isRefused,
  longestMountedFactsBytes,
  parseMountedFacts,
  type MountedFacts,
} from '../core/mounted-facts.ts';
import { bootId } from '../system/boot.ts';
import { openDirectory, type Directory } from '../system/directory.ts';
import { isGone, unlessErrno } from '../system/errno.ts';
import { leadsTo, openRegularFile, readSmallFile } from '../system/files.ts';
import { flockWithin, tryFlock } from '../system/flock.ts';

const storeMode = 0o700;

/** Opens the store, and makes it if it is not there. */
export function openMountedStore(basePath: string): Directory {
  const path = mountedStorePath(basePath);
  unlessErrno(['EEXIST'], () => mkdirSync(path, storeMode));
  return openDirectory(path);
}

export interface HeldMounted {
  /** The open lock file, flocked shared. */
  readonly fd: number;
  readonly facts: MountedFacts;
  /** Whether all of its copy is on the disk, or was written since the boot. */
  readonly isWhole: boolean;
}

/** How long the collector may look whether somebody holds it, or may take to rename it away. */
const holdLimitMs = 2000;

/** @returns undefined if there is no such entry, or it is being evicted */
export async function holdMounted(basePath: string, name: string): Promise<HeldMounted | undefined> {
  const path = mountedEntryPath(basePath, name);
  const fd = unlessErrno(isGone, () => openRegularFile(lockPath(path)));
  if (fd === undefined) return undefined;
  let isHeld = false;
  try {
    // Who evicts it holds it exclusively, until the path leads nowhere.
    if (!(await flockWithin(fd, 'shared', holdLimitMs)) || !leadsTo(lockPath(path), fd)) return undefined;
    const facts = readMountedFacts(path);
    if (facts === undefined) return undefined;
    isHeld = true;
    const isOfThisBoot = facts.bootId === bootId();
    return {
      fd,
      facts,
      isWhole: facts.source === 'in-place' || isOfThisBoot || isSettled(fstatSync(fd).mode),
    };
  } finally {
    if (!isHeld) closeSync(fd);
  }
}

/** @returns the real path of the image; undefined: there is no such entry, or its image is not mounted */
export function imageOfMounted(basePath: string, name: string): string | undefined {
  const facts = readMountedFacts(mountedEntryPath(basePath, name));
  return facts?.refusal === undefined ? facts?.image : undefined;
}

function readMountedFacts(path: string): MountedFacts | undefined {
  const text = readSmallFile(`${path}/${factsName}`, longestMountedFactsBytes);
  return text === undefined ? undefined : parseMountedFacts(text);
}

/** Sets the time of the last use. */
export function touchMounted(basePath: string, name: string): void {
  const now = new Date();
  unlessErrno(isGone, () => {
    utimesSync(mountedEntryPath(basePath, name), now, now);
  });
}

/**
 * Notes that a user has used an entry. Never fails: on a full disk the entry is as good as before, and is not
 * prepared for the next job.
 */
export function noteMountedUse(basePath: string, uid: number, name: string): void {
  const directory = usedMountedPath(basePath, uid);
  try {
    for (const path of [mountedUsersPath(basePath), directory])
      unlessErrno(['EEXIST'], () => mkdirSync(path, storeMode));
    const now = new Date();
    const fd = openRegularFile(`${directory}/${name}`, constants.O_CREAT);
    try {
      futimesSync(fd, now, now);
    } finally {
      closeSync(fd);
    }
  } catch {
    // See above.
  }
}

export function forgetMountedUse(basePath: string, uid: number, name: string): void {
  rmSync(`${usedMountedPath(basePath, uid)}/${name}`, { force: true });
}

/** The names of the mounted entries that a user has used, the last one first; some may be gone. */
export function listMountedUses(basePath: string, uid: number): string[] {
  const directory = usedMountedPath(basePath, uid);
  return (unlessErrno(isGone, () => readdirSync(directory)) ?? [])
    .filter(isMountedEntryName)
    .map((name) => ({
      name,
      usedAtMs: unlessErrno(isGone, () => lstatSync(`${directory}/${name}`).mtimeMs) ?? 0,
    }))
    .toSorted((a, b) => b.usedAtMs - a.usedAtMs)
    .map(({ name }) => name);
}

/** Forgets who used what is no more. */
export function sweepMountedUses(basePath: string): void {
  const users = unlessErrno(isGone, () => readdirSync(mountedUsersPath(basePath))) ?? [];
  for (const uid of users.flatMap((user) => parseIdName(user) ?? [])) {
    for (const name of listMountedUses(basePath, uid))
      if (!existsSync(mountedEntryPath(basePath, name))) forgetMountedUse(basePath, uid, name);
    unlessErrno([...isGone, 'ENOTEMPTY'], () => {
      rmdirSync(usedMountedPath(basePath, uid));
    });
  }
}

interface FoundMounted {
  readonly name: string;
  readonly facts: MountedFacts;
  readonly inode: number;
  readonly usedAtMs: number;
  /** A job holds it. */
  readonly leased: boolean;
  /** Of its copy, on the disk. */
  readonly bytes: number;
}

/** All images that the node knows, also those that it does not mount. */
export function listMounted(basePath: string): FoundMounted[] {
  const names = unlessErrno(isGone, () => readdirSync(mountedStorePath(basePath))) ?? [];
  return names.filter(isMountedEntryName).flatMap((name) => lookAtMounted(basePath, name) ?? []);
}

const blockBytes = 512;
/** Of one that has a copy: the copy, the directory, the facts, the lock file. */
export const mountedInodes = 4;

function lookAtMounted(basePath: string, name: string): FoundMounted | undefined {
  const path = mountedEntryPath(basePath, name);
  const stats = unlessErrno(isGone, () => lstatSync(path));
  const facts = stats && readMountedFacts(path);
  const lock = facts && unlessErrno(isGone, () => openRegularFile(lockPath(path)));
  if (stats === undefined || facts === undefined || lock === undefined) return undefined;
  let leased: boolean;
  try {
    leased = !tryFlock(lock, 'exclusive');
  } finally {
    closeSync(lock);
  }
  const copy = unlessErrno(isGone, (): Stats => lstatSync(`${path}/${copyName}`));
  const bytes = (copy?.blocks ?? 0) * blockBytes;
  return { name, facts, inode: stats.ino, usedAtMs: stats.mtimeMs, leased, bytes };
}

/** Whether the node mounts it: it may only be known that it does not. */
export const isServed = ({ facts }: FoundMounted): boolean => facts.refusal === undefined;

/** What is known of an image that is not mounted is forgotten after that. */
const oldestRefusalMs = 30 * 86_400_000;

export function isForgettable({ facts, usedAtMs }: FoundMounted, nowMs: number): boolean {
  if (facts.refusal === undefined) return false;
  return !isRefused(facts.refusal, nowMs) || nowMs - usedAtMs > oldestRefusalMs;
}

/** Runs `action` under the create lock of an entry, unless somebody else has it. */
export function ifCreateLockIsFree(basePath: string, name: string, action: () => void): void {
  const path = createLockPath(basePath, name);
  const fd = openRegularFile(path, constants.O_CREAT);
  try {
    if (!tryFlock(fd, 'exclusive') || !leadsTo(path, fd)) return;
    action();
    rmSync(path, { force: true });
  } finally {
    closeSync(fd);
  }
}

const createLockPath = (basePath: string, name: string): string =>
  `${mountedStorePath(basePath)}/${createLockName(name)}`;

const lockAttempts = 20;

/**
 * Runs `action` under the create lock of an entry.
 *
 * @param limitMs for the wait
 * @returns undefined if somebody else had it for so long
 */
export async function underCreateLock<T>(
  basePath: string,
  name: string,
  limitMs: number,
  action: () => T | Promise<T>,
): Promise<{ readonly result: T } | undefined> {
  const path = createLockPath(basePath, name);
  for (let attempt = 1; attempt <= lockAttempts; attempt++) {
    const fd = openRegularFile(path, constants.O_CREAT);
    try {
      if (!tryFlock(fd, 'exclusive') && !(await flockWithin(fd, 'exclusive', limitMs))) return undefined;
      // Somebody may have removed it while we waited.
      if (!leadsTo(path, fd)) continue;
      const result = await action();
      // Who waits for it sees that the path leads elsewhere.
      rmSync(path, { force: true });
      return { result };
    } finally {
      closeSync(fd);
    }
  }
  return undefined;
}
