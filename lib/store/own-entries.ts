/**
 * A step makes room in its user's quota by itself, where no room agent does (room-agent.ts): as the user,
 * with entries of this user alone, by the same protocol as the collector's.
 */
import { closeSync, lstatSync, renameSync } from 'node:fs';
import { parseImage, type PathImage, type SpaceNeed } from '../core/image.ts';
import { lockPath, parseEntryDirectoryName, partialName } from '../core/layout.ts';
import { measureImage } from '../image/create.ts';
import { probeSquashfs } from '../image/image-source.ts';
import type { UserIds } from '../system/as-user.ts';
import { namesBeneath } from '../system/beneath.ts';
import { inDirectory, type Directory } from '../system/directory.ts';
import { isGone, unlessErrno } from '../system/errno.ts';
import { leadsTo, openRegularFile } from '../system/files.ts';
import { tryFlock } from '../system/flock.ts';
import { findMountedEntries } from '../system/mounts.ts';
import { runSync } from '../system/run-command.ts';
import { Reclaim } from '../system/tree-size.ts';
import { uniqueHex } from '../system/unique.ts';

/** Longer than a step waits for a listing of its image. */
const lookLimitMs = 60_000;
const discardLimitMs = 60_000;

/** @returns what an image file takes when it is unpacked; undefined for any other image */
export async function measureOwn(user: UserIds, image: string): Promise<SpaceNeed | undefined> {
  const parsed = /^(?:dockerd|podman):/.test(image) ? undefined : parseImage(image, undefined);
  return parsed?.kind === 'path' ? measureFile(user, parsed) : undefined;
}

/** @returns what an image file takes when it is unpacked, by its listing if that is there in time */
export async function measureFile(user: UserIds, image: PathImage): Promise<SpaceNeed> {
  const { path, superblock } = await probeSquashfs(user, image);
  return measureImage(user, path, superblock, lookLimitMs);
}

/**
 * Deletes entries that nobody uses, first those that were not used for the longest time, until they took what
 * is needed; without a need one of them.
 *
 * @returns how many
 */
export async function evictOwnEntries(
  basePath: string,
  userDirectory: Directory,
  user: UserIds,
  jobId: number,
  need: SpaceNeed | undefined,
): Promise<number> {
  const entries = [...namesBeneath(userDirectory)]
    .flatMap((name) => {
      if (parseEntryDirectoryName(user.uid, name) === undefined) return [];
      const stats = unlessErrno(isGone, () => lstatSync(inDirectory(userDirectory, name)));
      return stats?.isDirectory() === true ? { name, usedAtMs: stats.mtimeMs } : [];
    })
    .sort((one, other) => one.usedAtMs - other.usedAtMs);
  const reclaim = new Reclaim();
  let [count, bytes, inodes] = [0, 0, 0];
  for (const { name } of entries) {
    if (need === undefined ? count > 0 : bytes >= need.bytes && inodes >= need.inodes) break;
    const lock = takeUnused(basePath, userDirectory, user, name);
    if (lock === undefined) continue;
    try {
      const size = await reclaim.measure(user, `${userDirectory.path}/${name}`);
      discardOwn(userDirectory.path, name, jobId, user.uid);
      count++;
      bytes += size.bytes;
      inodes += size.inodes;
    } finally {
      closeSync(lock);
    }
  }
  return count;
}

/**
 * @returns the lock of an entry that nobody can hold from here on; undefined if somebody uses it, or it is
 *   gone
 */
function takeUnused(
  basePath: string,
  userDirectory: Directory,
  { uid }: UserIds,
  name: string,
): number | undefined {
  const path = lockPath(inDirectory(userDirectory, name));
  let lock: number | undefined;
  let isOurs = false;
  try {
    lock = openRegularFile(path);
    isOurs = tryFlock(lock, 'exclusive') && leadsTo(path, lock) && !findMountedEntries(basePath)(uid, name);
    return isOurs ? lock : undefined;
  } catch {
    // Not one of ours, or going.
    return undefined;
  } finally {
    if (lock !== undefined && !isOurs) closeSync(lock);
  }
}

/** Deleted at once, since enroot needs the room; what cannot be deleted has a name that the Epilog sweeps. */
export function discardOwn(userDirectoryPath: string, name: string, jobId: number, uid: number): void {
  let path = `${userDirectoryPath}/${name}`;
  const entry = parseEntryDirectoryName(uid, name);
  if (entry !== undefined) {
    const aside = `${userDirectoryPath}/${partialName(entry, jobId, uniqueHex())}`;
    unlessErrno(isGone, () => {
      renameSync(path, aside);
    });
    path = aside;
  }
  const args = ['--recursive', '--force', '--one-file-system', '--', path];
  runSync({ file: 'rm', args, timeoutMs: discardLimitMs });
}
