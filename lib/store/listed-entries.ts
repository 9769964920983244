/**
 * The entries of all users of a base, as they are: when each was used last, whether a job holds it or a
 * process has it mounted, and what it says of itself, which decides nothing (I14).
 *
 * What lies in a user directory is the user's. It is opened with the user's ids, and only names of ours are
 * looked at. Mounted entries are root's (mounted-store.ts).
 */
import { closeSync } from 'node:fs';
import { longestEntryMetadataBytes, parseEntryMetadata, type EntryMetadata } from '../core/entry-metadata.ts';
import type { EntryFacts } from '../core/gc-plan.ts';
import { directoryName, lockPath, parseEntryDirectoryName } from '../core/layout.ts';
import type { LogLevel } from '../core/settings.ts';
import { withUserIds, type UserIds } from '../system/as-user.ts';
import { openFileBeneath, statBeneath } from '../system/beneath.ts';
import type { Directory } from '../system/directory.ts';
import { isGone, unlessErrno } from '../system/errno.ts';
import { readStart } from '../system/files.ts';
import { tryFlock } from '../system/flock.ts';
import { readMounts, type MountScan } from '../system/mounts.ts';
import type { LogFields } from '../system/syslog.ts';
import { isServed, listMounted, mountedInodes } from './mounted-store.ts';
import { forEachUser } from './users.ts';

export interface ListRequest {
  readonly base: Directory;
  /** Names of entries that stay, however old (pins.ts). */
  readonly pinned: ReadonlySet<string>;
  /** Gets a line for each user who cannot be looked at, or not wholly. */
  readonly log: (level: LogLevel, word: string, fields: LogFields) => void;
}

export interface FoundEntry extends EntryFacts {
  /** A mounted one is root's, and all users' who may read its image. */
  readonly kind: 'private' | 'mounted';
  /** What a mounted one would take for each of its users if it were unpacked, bytes. */
  readonly unpackedBytes?: number | undefined;
  readonly gid: number;
  /** Of its directory. */
  readonly inode: number;
  /** As the job named it; like the next two only claimed, by a file that is the user's. */
  readonly image: string | undefined;
  readonly createdAtMs: number | undefined;
  readonly unpackMs: number | undefined;
}

export function listEntries({ base, pinned, log }: ListRequest, mounted: MountScan): FoundEntry[] {
  const entries: FoundEntry[] = [];
  forEachUser(base, readMounts(), log, (turn) => {
    const { user, directory } = turn;
    turn.each(
      turn.names((found) => parseEntryDirectoryName(user.uid, found) !== undefined),
      (found) => {
        const name = parseEntryDirectoryName(user.uid, found);
        const facts = name && withUserIds(user, () => lookAtEntry(user, directory, name));
        if (facts === undefined || facts === '') return;
        const isPinned = pinned.has(facts.name);
        const { leased, usedAtMs } = facts;
        entries.push({
          ...facts,
          mounted: mounted.mayBeMounted(user.uid, found, leased, usedAtMs),
          pinned: isPinned,
        });
      },
    );
  });
  return [...entries, ...listMountedEntries(base, pinned)];
}

/** Those of images that are mounted in place take nothing. */
function listMountedEntries(base: Directory, pinned: ReadonlySet<string>): FoundEntry[] {
  return listMounted(base.path)
    .filter(isServed)
    .map(({ name, facts, inode, usedAtMs, leased, bytes }) => ({
      ...({ kind: 'mounted', uid: 0, gid: 0, mounted: false } as const),
      ...{ name, inode, usedAtMs, leased, bytes },
      pinned: pinned.has(name),
      takesRoom: facts.source !== 'in-place',
      inodes: facts.source === 'in-place' ? 0 : mountedInodes,
      image: facts.image,
      unpackedBytes: facts.unpackedBytes,
      createdAtMs: facts.createdAtMs,
      unpackMs: facts.readyMs,
    }));
}

function lookAtEntry(
  user: UserIds,
  directory: Directory,
  name: string,
): Omit<FoundEntry, 'mounted' | 'pinned'> | undefined {
  const stats = unlessErrno(isGone, () => statBeneath(directory, directoryName(name)));
  // A directory of another owner was put there by somebody else, and a symlink or a file is no rootfs.
  if (stats?.isDirectory() !== true || stats.uid !== user.uid) return undefined;
  const lock = openEntryLock(directory, directoryName(name));
  let metadata: EntryMetadata | undefined;
  let leased = false;
  if (lock !== undefined) {
    try {
      metadata = parseEntryMetadata(readStart(lock, longestEntryMetadataBytes).toString('utf8'));
      // The lock is given back at once; a Prolog that meets it asks again for longer than this takes.
      leased = !tryFlock(lock, 'exclusive');
    } finally {
      closeSync(lock);
    }
  }
  return {
    kind: 'private',
    takesRoom: true,
    uid: user.uid,
    gid: user.gid,
    name,
    inode: stats.ino,
    usedAtMs: stats.mtimeMs,
    leased,
    bytes: metadata?.bytes ?? 0,
    inodes: metadata?.inodes ?? 0,
    image: metadata?.image,
    createdAtMs: metadata?.createdAtMs,
    unpackMs: metadata?.unpackMs,
  };
}

/** @returns undefined if the entry has no lock file that is a regular file */
export function openEntryLock(userDirectory: Directory, name: string): number | undefined {
  try {
    return openFileBeneath(userDirectory, lockPath(name));
  } catch {
    return undefined;
  }
}
