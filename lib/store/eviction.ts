/**
 * Evicting one entry: flock it exclusively, without waiting (refused: a job holds it); look that no process
 * has it mounted and that nobody used it since the plan; rename it into the trash; delete it there.
 *
 * A mounted one: mounted-eviction.ts.
 */
import { closeSync } from 'node:fs';
import type { CacheEvent, EvictionReason } from '../core/events.ts';
import { describeError } from '../core/faults.ts';
import { keepReason, type CollectionPolicy } from '../core/gc-plan.ts';
import type { SpaceNeed } from '../core/image.ts';
import { createLockName, directoryName, lockPath } from '../core/layout.ts';
import { withUserIds, type UserIds } from '../system/as-user.ts';
import { leadsToBeneath, statBeneath, withDirectoryBeneath } from '../system/beneath.ts';
import type { Directory } from '../system/directory.ts';
import { readUsage } from '../system/disk-usage.ts';
import { isGone, unlessErrno } from '../system/errno.ts';
import { tryFlock } from '../system/flock.ts';
import type { MountScan } from '../system/mounts.ts';
import type { LogFields } from '../system/syslog.ts';
import { openCreateLock } from './entry.ts';
import { openEntryLock, type FoundEntry, type ListRequest } from './listed-entries.ts';
import { moveMountedAway, type Moved } from './mounted-eviction.ts';
import { deleteTrashed, listTrash, moveToTrash, type TrashContext } from './trash.ts';
import { mostVainEvictions, userBudget } from './users.ts';

export interface EvictionRequest extends Pick<ListRequest, 'base' | 'log'> {
  readonly runtimePath: string;
  readonly policy: CollectionPolicy;
  readonly deadlineMs?: number;
  /** Nobody waits for it: trees are deleted at low priority. */
  readonly inBackground?: boolean;
  /** Gets what is to be counted. */
  readonly record: (event: CacheEvent) => void;
}

/** An eviction that frees less is in vain. */
const leastGain: SpaceNeed = { bytes: 1024 * 1024, inodes: 100 };

/**
 * What the evictions of a collection have freed, by user: so many in vain, and so many lines, are enough for
 * one.
 */
export class Gains {
  readonly #log: EvictionRequest['log'];
  readonly #of = new Map<number, { vain: number; lines: number }>();
  readonly #liars = new Set<number>();
  #expected: SpaceNeed | undefined;

  constructor(log: EvictionRequest['log']) {
    this.#log = log;
  }

  isVain(uid: number): boolean {
    return (this.#of.get(uid)?.vain ?? 0) >= mostVainEvictions;
  }

  isLiar(uid: number): boolean {
    return this.#liars.has(uid);
  }

  get liars(): number {
    return this.#liars.size;
  }

  /** What the next eviction is to free. */
  expect(size: SpaceNeed | undefined): void {
    this.#expected = size;
  }

  add(entry: FoundEntry, freed: SpaceNeed, fields: LogFields): void {
    const sums = this.#of.get(entry.uid) ?? { vain: 0, lines: 0 };
    this.#of.set(entry.uid, sums);
    if (freed.bytes < leastGain.bytes && freed.inodes < leastGain.inodes) sums.vain++;
    // Others write meanwhile: half of it is no lie.
    const { bytes = 0, inodes = 0 } = this.#expected ?? {};
    if (2 * freed.bytes + leastGain.bytes < bytes || 2 * freed.inodes + leastGain.inodes < inodes)
      this.#liars.add(entry.uid);
    this.#expected = undefined;
    if (sums.vain <= userBudget.lines) this.#log('info', 'gc-evicted', fields);
    else sums.lines++;
  }

  end(): void {
    for (const [uid, { vain, lines }] of this.#of) {
      if (lines > 0)
        this.#log('info', 'gc-evicted', { uid, entries: lines, reason: 'they freed next to nothing' });
      if (vain >= mostVainEvictions)
        this.#log('warning', 'user-budget', {
          uid,
          exceeded: `vain_evictions>=${mostVainEvictions}`,
          reason:
            'so many entries of this user freed next to nothing: the others are left to the next collector',
        });
    }
  }
}

/** @returns why the entry was kept, or undefined: it is gone */
export async function evict(
  request: EvictionRequest,
  trash: Directory,
  mounted: MountScan,
  entry: FoundEntry,
  why: EvictionReason,
  gains?: Gains,
): Promise<string | undefined> {
  const { base, log, policy } = request;
  const user = { uid: entry.uid, gid: entry.gid };
  let trashed: string;
  try {
    const moved =
      entry.kind === 'mounted'
        ? moveMountedAway(request, trash, entry)
        : withDirectoryBeneath(base, String(entry.uid), (userDirectory) =>
            moveEntryAway({ userDirectory, trash }, user, entry, mounted, policy),
          );
    if ('kept' in moved) return moved.kept;
    trashed = moved.trashed;
  } catch (error) {
    log('warning', 'gc-kept', { uid: entry.uid, entry: entry.name, reason: describeError(error) });
    return 'failed';
  }
  const before = readUsage(base.path);
  await deleteAndLog(request, trash, [trashed]);
  const after = readUsage(base.path);
  const freed = {
    bytes: after.freeBytes - before.freeBytes,
    inodes: after.freeInodes - before.freeInodes,
  };
  const fields = {
    uid: entry.uid,
    entry: entry.name,
    image: entry.image,
    unused_seconds: Math.round((Date.now() - entry.usedAtMs) / 1000),
    freed_bytes: freed.bytes,
    freed_inodes: freed.inodes,
  };
  if (gains === undefined) log('info', 'gc-evicted', fields);
  else gains.add(entry, freed, fields);
  request.record({ kind: 'eviction', atMs: Date.now(), reason: why, entry: entry.name });
  return undefined;
}

function moveEntryAway(
  directories: TrashContext,
  user: UserIds,
  entry: FoundEntry,
  mounts: MountScan,
  policy: CollectionPolicy,
): Moved {
  const { userDirectory } = directories;
  const { name } = entry;
  const directory = directoryName(name);
  // An entry without a lock file can be no job's; the create lock keeps a Prolog from putting it aside at the
  // same time.
  const lock = withUserIds(
    user,
    () => openEntryLock(userDirectory, directory) ?? openCreateLock(userDirectory, createLockName(name)),
  );
  try {
    if (!tryFlock(lock, 'exclusive')) return { kept: 'leased' };
    // From here on nobody can hold the entry; but somebody may have held and released it since the plan.
    const now = withUserIds(user, () => unlessErrno(isGone, () => statBeneath(userDirectory, directory)));
    if (now === undefined) return { kept: 'gone' };
    const lockPaths = [lockPath(directory), createLockName(name)];
    // EACCES: a closed entry, whose lock file nobody can reach.
    const isOurs = (one: string): boolean =>
      unlessErrno(['EACCES'], () => leadsToBeneath(userDirectory, one, lock)) ?? false;
    if (!withUserIds(user, () => lockPaths.some(isOurs))) return { kept: 'replaced' };
    const mounted = mounts.isMounted(user.uid, directory);
    const reason = keepReason(
      { ...entry, leased: false, mounted, usedAtMs: now.mtimeMs },
      policy,
      Date.now(),
    );
    if (reason !== undefined) return { kept: reason };
    if (now.mtimeMs !== entry.usedAtMs) return { kept: 'used' };
    return { trashed: moveToTrash(directories, directory) };
  } finally {
    closeSync(lock);
  }
}

export async function emptyTrash(request: EvictionRequest, trash: Directory): Promise<void> {
  await deleteAndLog(request, trash, listTrash(trash));
}

async function deleteAndLog(
  { log, inBackground, deadlineMs }: EvictionRequest,
  trash: Directory,
  names: readonly string[],
): Promise<void> {
  const limits = { inBackground: inBackground === true, deadlineMs: deadlineMs ?? Infinity };
  const told = new Set<number | undefined>();
  for (const { uid, name, reason } of await deleteTrashed(trash, names, limits)) {
    // One line for each user, whatever they have brought there.
    if (told.has(uid)) continue;
    told.add(uid);
    log('warning', 'gc-trash', {
      uid,
      entry: name,
      reason: `Cannot delete all of it, the next collector tries again: ${reason}`,
    });
  }
}
