/**
 * Holding an entry: a shared flock on its lock file.
 *
 *   1. Open the lock file (beneath.ts).
 *   2. flock it shared, without waiting.
 *   3. Look whether the path still leads to the file that is locked.
 *   4. Unless its mode says that it is settled (entry.ts), look whether it was made since the boot.
 *   5. Look whether names are missing in the directories that are watched (watched-directories.ts).
 *
 * The collector flocks exclusively before it renames an entry away, so after step 3 it either refuses (we
 * were first) or the path leads nowhere (it was). All of it with the user's ids: what a user puts in the way
 * is the user's own.
 */
import { closeSync, constants, fchmodSync, fstatSync, ftruncateSync, futimesSync, writeSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import {
  damagedBootId,
  formatEntryMetadata,
  isSettled,
  longestEntryMetadataBytes,
  newLockMode,
  parseEntryMetadata,
  type EntryMetadata,
} from '../core/entry-metadata.ts';
import { JobFault } from '../core/faults.ts';
import { lockPath } from '../core/layout.ts';
import { hasMounts, type Mount } from '../core/mountinfo.ts';
import type { UserIds } from '../system/as-user.ts';
import {
  inDirectoryOf,
  leadsToBeneath,
  openFileBeneath,
  statBeneath,
  touchDirectoryBeneath,
  withDirectoryBeneath,
} from '../system/beneath.ts';
import { bootId } from '../system/boot.ts';
import { elapsedMs } from '../system/clock.ts';
import type { Directory } from '../system/directory.ts';
import { errnoOf, isGone, unlessErrno } from '../system/errno.ts';
import { readStart } from '../system/files.ts';
import { tryFlock } from '../system/flock.ts';
import { findHole } from './watched-directories.ts';

export interface HeldEntry {
  readonly name: string;
  readonly path: string;
  /** The open lock file; the flock ends when the last copy of it is closed. */
  readonly fd: number;
}

/** How long the collector may be between its lock and its rename before we take it for something else. */
const evictionLimitMs = 2000;
const evictionPollMs = 20;

/** Is told what is missing. @returns true to hold the entry all the same, to look at it */
export type OnDamage = (what: string) => boolean;

type Attempt = { readonly fd: number } | 'missing' | 'refused';

/**
 * Holds a published entry.
 *
 * @returns undefined if there is none, or none that can be trusted
 * @throws JobFault LOCK_TIMEOUT if somebody keeps an exclusive flock; ENTRY_DAMAGED for what cannot be an
 *   entry
 */
export async function holdEntry(
  user: UserIds,
  path: string,
  name: string,
  mounts: readonly Mount[],
  onDamage?: OnDamage,
): Promise<HeldEntry | undefined> {
  if (hasMounts(path, mounts)) {
    throw new JobFault('ENTRY_DAMAGED', `Cannot use entry "${path}": something is mounted on it`);
  }
  const deadlineMs = elapsedMs() + evictionLimitMs;
  for (let attempts = 1; ; attempts++) {
    const attempt = inDirectoryOf<Attempt>(user, dirname(path), (userDirectory) =>
      tryHold(user, userDirectory, basename(path), onDamage),
    );
    if (attempt === 'missing') return undefined;
    if (attempt !== 'refused') return { name, path, fd: attempt.fd };
    // Who was stopped meanwhile looks once more.
    if (elapsedMs() > deadlineMs && attempts > 1) {
      throw new JobFault(
        'LOCK_TIMEOUT',
        `Cannot hold entry "${path}": its lock file has been locked exclusively for ${evictionLimitMs} ms`,
      );
    }
    await delay(evictionPollMs);
  }
}

function tryHold(user: UserIds, userDirectory: Directory, name: string, onDamage?: OnDamage): Attempt {
  const path = `${userDirectory.path}/${name}`;
  const entry = unlessErrno(isGone, () => statBeneath(userDirectory, name));
  if (entry === undefined) return 'missing';
  if (!entry.isDirectory() || entry.uid !== user.uid) {
    throw new JobFault('ENTRY_DAMAGED', `Cannot use entry "${path}": want a directory of uid ${user.uid}`);
  }
  const fd = unlessErrno(isGone, () => openFileBeneath(userDirectory, lockPath(name)));
  if (fd === undefined) return 'missing';
  let isHeld = false;
  try {
    const locked = fstatSync(fd);
    if (locked.uid !== user.uid || locked.dev !== entry.dev) {
      throw new JobFault(
        'ENTRY_DAMAGED',
        `Cannot use entry "${path}": its lock file is not uid ${user.uid}'s own`,
      );
    }
    const metadata = parseEntryMetadata(readStart(fd, longestEntryMetadataBytes).toString('utf8'));
    // After a power loss any file of it may be empty, this one too.
    if (!isSettled(locked.mode) && !isOfThisBoot(metadata)) {
      const isDamaged = metadata?.bootId === damagedBootId;
      if (!isDamaged || onDamage?.('files of it are missing') !== true) return 'missing';
    }
    const { watched } = metadata ?? {};
    // The collector may just have renamed the entry: what is locked below then says so.
    const hole =
      watched &&
      unlessErrno(isGone, () =>
        withDirectoryBeneath(userDirectory, name, (directory) => findHole(directory, watched)),
      );
    if (hole !== undefined && onDamage?.(hole) !== true) return 'missing';
    if (!tryFlock(fd, 'shared')) return 'refused';
    // The collector may have renamed the entry between our open and our flock: then the path leads elsewhere
    // or nowhere.
    isHeld = leadsToBeneath(userDirectory, lockPath(name), fd);
    return isHeld ? { fd } : 'refused';
  } finally {
    if (!isHeld) closeSync(fd);
  }
}

function isOfThisBoot(metadata: EntryMetadata | undefined): boolean {
  const boot = bootId();
  return boot === undefined || metadata?.bootId === boot;
}

const verificationIntervalMs = 24 * 3600 * 1000;

/**
 * Whether it is time to count the files of an entry; the caller then does. The time of the last count is the
 * lock file's own.
 */
export function claimVerification(user: UserIds, path: string): boolean {
  try {
    return withLockFile(user, path, (fd) => {
      const now = new Date();
      if (Math.abs(now.getTime() - fstatSync(fd).mtimeMs) < verificationIntervalMs) return false;
      futimesSync(fd, now, now);
      return true;
    });
  } catch {
    // Whatever its user made of it: they count themselves, or nobody does.
    return false;
  }
}

/** Has an entry that others may hold be made anew by the next job: it is not settled, and of no boot. */
export function markDamaged(user: UserIds, path: string): void {
  withLockFile(user, path, (reading, userDirectory) => {
    const metadata = parseEntryMetadata(readStart(reading, longestEntryMetadataBytes).toString('utf8'));
    fchmodSync(reading, newLockMode);
    if (metadata === undefined) return;
    const name = lockPath(basename(path));
    const writing = openFileBeneath(userDirectory, name, constants.O_RDWR);
    try {
      if (!leadsToBeneath(userDirectory, name, reading)) return;
      const text = formatEntryMetadata({ ...metadata, bootId: damagedBootId });
      ftruncateSync(writing, 0);
      writeSync(writing, text, 0);
    } finally {
      closeSync(writing);
    }
  });
}

function withLockFile<T>(
  user: UserIds,
  path: string,
  action: (fd: number, userDirectory: Directory) => T extends Promise<unknown> ? never : T,
): T {
  return inDirectoryOf<T>(user, dirname(path), (userDirectory) => {
    const fd = openFileBeneath(userDirectory, lockPath(basename(path)));
    try {
      return action(fd, userDirectory);
    } finally {
      closeSync(fd);
    }
  });
}

/**
 * Sets the entry's modification time, the clock of the LRU. An entry that is gone, or closed by its user,
 * needs none.
 *
 * @returns whether nothing else hindered it: without it the entry only looks older than it is
 */
export function touchEntry(user: UserIds, path: string): boolean {
  try {
    inDirectoryOf(user, dirname(path), (userDirectory) => {
      touchDirectoryBeneath(userDirectory, basename(path), new Date());
    });
    return true;
  } catch (error) {
    return [...isGone, 'EACCES', 'EPERM'].some((number) => number === errnoOf(error));
  }
}
