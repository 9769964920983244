/**
 * The collector: makes room by deleting the entries that were not used for the longest time.
 *
 *   1. flock the collector's lock: one collector at a time on a base.
 *   2. Sweep what crashes left (sweep.ts), unmount what nobody uses (views.ts), and empty the trash.
 *   3. List all entries of all users (listed-entries.ts), plan (lib/core/gc-plan.ts), and evict one after the
 *      other (eviction.ts) until the goal is reached, by the filesystem's own numbers: what entries claim
 *      about their size decides nothing.
 *   4. For the cache's own limit (cache-size.ts), then for what is to be written and still does not fit: the
 *      same.
 *
 * Each of these measures entries first, in the order of their last use, until what they take would be enough,
 * and evicts those. If all that may go is not enough it evicts none: entries that other files leave no room
 * for would be deleted and unpacked again by each job. (For the watermark, those that nobody used for a day
 * go all the same.)
 */
import { closeSync, constants, lstatSync, rmSync } from 'node:fs';
import type { EvictionReason } from '../core/events.ts';
import {
  countUntil,
  fits,
  isCollectionDue,
  isGoalReached,
  isStale,
  planCollection,
  wantsEmptyCache,
  type Usage,
} from '../core/gc-plan.ts';
import type { SpaceNeed } from '../core/image.ts';
import { collectorLockName, missedGoalPath } from '../core/layout.ts';
import type { UserIds } from '../system/as-user.ts';
import { writeFileAtomically } from '../system/aside.ts';
import { inDirectory, type Directory } from '../system/directory.ts';
import { readUsage } from '../system/disk-usage.ts';
import { isGone, unlessErrno } from '../system/errno.ts';
import { openRegularFile } from '../system/files.ts';
import { flockWithin, tryFlock } from '../system/flock.ts';
import { MountScan } from '../system/mounts.ts';
import { Reclaim } from '../system/tree-size.ts';
import { openTrash } from './base-directory.ts';
import { measureLimit, type LimitRequest } from './cache-size.ts';
import { EntrySizes, measureEntry } from './entry-sizes.ts';
import { emptyTrash, evict, Gains, type EvictionRequest } from './eviction.ts';
import { listEntries, type FoundEntry } from './listed-entries.ts';
import { sweep, sweepMounted } from './sweep.ts';

export interface CollectRequest extends LimitRequest, EvictionRequest {
  /** Collect even below the high watermark, down to the low one. */
  readonly force?: boolean;
  /** What is needed is on the disk already, and counts for the cache's own limit alone. */
  readonly isWritten?: boolean;
  /** How long to wait for another collector. 0: leave the work to it. */
  readonly lockTimeoutMs: number;
}

interface CollectResult {
  readonly result: 'not-due' | 'collected' | 'goal-missed' | 'locked';
  readonly evicted: readonly FoundEntry[];
  readonly freedBytes: number;
  readonly freedInodes: number;
  readonly kept: Readonly<Record<string, number>>;
  /** Whether the cache, with what is to be written, is within `container_cache_max_size`. */
  readonly isWithinLimit: boolean;
}

/**
 * @throws NodeFault, or a failed system call on the base itself; trouble with one entry is logged and passed
 *   over
 */
export async function collect(request: CollectRequest): Promise<CollectResult> {
  const result = await withCollectorLock(request, (trash) => collectLocked(request, trash));
  if (result !== undefined) return result;
  request.log('debug', 'gc', { result: 'locked', reason: 'another collector is at work' });
  return { result: 'locked', evicted: [], freedBytes: 0, freedInodes: 0, kept: {}, isWithinLimit: false };
}

/**
 * Deletes entries by their names, however young; what is in use stays.
 *
 * @returns for each name why it stayed, `unknown` if there is no such entry, `locked` if another collector
 *   was at work for too long; undefined: it is gone
 */
export async function evictEntries(
  request: CollectRequest,
  names: readonly string[],
): Promise<ReadonlyMap<string, string | undefined>> {
  const anyAge = { ...request, policy: { ...request.policy, gcMinAgeSeconds: 0 } };
  const outcomes = await withCollectorLock(request, async (trash) => {
    const mounted = new MountScan(request.base.path);
    const entries = listEntries(request, mounted);
    const found = new Map<string, string | undefined>();
    for (const name of names) {
      const entry = entries.find((one) => one.name === name);
      found.set(name, entry === undefined ? 'unknown' : await evict(anyAge, trash, mounted, entry, 'rm'));
    }
    return found;
  });
  return outcomes ?? new Map(names.map((name) => [name, 'locked']));
}

/**
 * Deletes entries of one user, however young, the least recently used first, until they took as much as is
 * needed; without a need the given number of them.
 *
 * @returns how many
 */
export async function evictForQuota(
  request: CollectRequest,
  user: UserIds,
  enough: { readonly need: SpaceNeed } | { readonly count: number },
): Promise<number> {
  const anyAge = { ...request, policy: { ...request.policy, gcMinAgeSeconds: 0 } };
  const evicted = await withCollectorLock(request, async (trash) => {
    // What was moved there still counts for the quota of its user.
    await emptyTrash(request, trash);
    const mounted = new MountScan(request.base.path);
    const entries = listEntries(request, mounted).filter(
      ({ uid, kind }) => kind === 'private' && uid === user.uid,
    );
    const { evict: first, reserve } = planCollection(
      entries,
      readUsage(request.base.path),
      anyAge.policy,
      Date.now(),
    );
    const reclaim = new Reclaim();
    let [count, bytes, inodes] = [0, 0, 0];
    for (const entry of [...first, ...reserve]) {
      const isEnough =
        'need' in enough ? bytes >= enough.need.bytes && inodes >= enough.need.inodes : count >= enough.count;
      if (isEnough || Date.now() > (request.deadlineMs ?? Infinity)) break;
      const size = await measureEntry(reclaim, request.base, entry);
      if ((await evict(anyAge, trash, mounted, entry, 'quota')) !== undefined) continue;
      count++;
      bytes += size.bytes;
      inodes += size.inodes;
    }
    return count;
  });
  return evicted ?? 0;
}

/** @returns undefined if another collector was at work for too long */
async function withCollectorLock<T>(
  { base, lockTimeoutMs }: CollectRequest,
  action: (trash: Directory) => Promise<T>,
): Promise<T | undefined> {
  const lock = openRegularFile(inDirectory(base, collectorLockName), constants.O_CREAT);
  try {
    if (!tryFlock(lock, 'exclusive') && !(await flockWithin(lock, 'exclusive', lockTimeoutMs)))
      return undefined;
    const trash = openTrash(base);
    try {
      return await action(trash);
    } finally {
      closeSync(trash.fd);
    }
  } finally {
    closeSync(lock);
  }
}

async function collectLocked(request: CollectRequest, trash: Directory): Promise<CollectResult> {
  const { base, policy, force, isWritten } = request;
  const need = isWritten === true ? undefined : request.need;
  const before = readUsage(base.path);
  const mounted = new MountScan(base.path);
  sweep(request, trash, mounted);
  sweepMounted(request, trash);
  await emptyTrash(request, trash);

  const evicted: FoundEntry[] = [];
  const gains = new Gains(request.log);
  let kept: Record<string, number> = {};
  const isFull = force === true || isCollectionDue(before, policy);
  const sizes = new EntrySizes(request.runtimePath);
  const limit = await measureLimit(request, sizes);
  const due = isFull || limit.isExceeded() || isCollectionDue(before, policy, need);
  const isLowEnough = (usage = readUsage(base.path)): boolean => !isFull || isGoalReached(usage, policy);
  const hasRoom = (usage = readUsage(base.path)): boolean => need === undefined || fits(usage, need);
  const isLate = (): boolean => Date.now() > (request.deadlineMs ?? Infinity);
  const findCandidates = (): FoundEntry[] => {
    const entries = listEntries(request, mounted);
    const plan = planCollection(entries, readUsage(base.path), policy, Date.now(), need);
    kept = {};
    for (const { reason } of plan.kept) kept[reason] = (kept[reason] ?? 0) + 1;
    return [...plan.evict, ...plan.reserve];
  };
  const evictUntil = async (
    reason: EvictionReason,
    isDone: () => boolean,
    candidates: readonly FoundEntry[],
  ): Promise<void> => {
    for (const entry of candidates) {
      if (isDone() || isLate()) break;
      const keptBecause = gains.isVain(entry.uid)
        ? 'vain'
        : await evict(request, trash, mounted, entry, reason, gains);
      if (keptBecause === undefined) {
        evicted.push(entry);
        limit.forget(entry);
      } else kept[keptBecause] = (kept[keptBecause] ?? 0) + 1;
    }
  };
  if (isFull && !isLowEnough()) {
    const candidates = findCandidates();
    const measure = (entry: FoundEntry): Promise<SpaceNeed> => measureEntry(sizes, base, entry);
    const chosen =
      force === true || wantsEmptyCache(policy)
        ? candidates
        : ((await choose(request, candidates, measure, isLowEnough, isLate)) ??
          candidates.filter((entry) => isStale(entry, Date.now())));
    await evictUntil('watermark', isLowEnough, chosen);
  }
  if (limit.isExceeded()) await evictUntil('size', () => !limit.isExceeded(), limit.choose(findCandidates()));
  if (need !== undefined && !hasRoom()) {
    const reclaim = new Reclaim();
    const counted = new Map<string, SpaceNeed>();
    // What a user's child has counted is believed until it turns out to be less: then all of that user's
    // entries count as nothing.
    const measure = async (entry: FoundEntry): Promise<SpaceNeed> => {
      if (gains.isLiar(entry.uid)) return { bytes: 0, inodes: 0 };
      const known = counted.get(entry.name);
      const size = known ?? (await measureEntry(reclaim, base, entry));
      counted.set(entry.name, size);
      return size;
    };
    let liars: number;
    do {
      liars = gains.liars;
      const chosen = (await choose(request, findCandidates(), measure, hasRoom, isLate)) ?? [];
      for (const entry of chosen) {
        if (hasRoom() || gains.liars > liars) break;
        gains.expect(counted.get(entry.name));
        await evictUntil('room', hasRoom, [entry]);
      }
    } while (!hasRoom() && gains.liars > liars && !isLate());
  }
  gains.end();
  logTooManyMounts(request, mounted);
  sizes.save();
  const after = readUsage(base.path);
  const isReached = isLowEnough() && hasRoom() && !limit.isExceeded();
  const result = {
    result: !due ? 'not-due' : isReached ? 'collected' : 'goal-missed',
    evicted,
    freedBytes: after.freeBytes - before.freeBytes,
    freedInodes: after.freeInodes - before.freeInodes,
    kept,
    isWithinLimit: !limit.isExceeded(),
  } as const;
  logSummary(request, result, after, isLowEnough());
  if (result.result !== 'not-due')
    request.record({ kind: 'collection', atMs: Date.now(), result: result.result });
  return result;
}

function logTooManyMounts({ log }: CollectRequest, mounted: MountScan): void {
  for (const uid of mounted.tooManyOf())
    log('warning', 'user-budget', {
      uid,
      exceeded: 'mounts',
      reason: 'processes of this user have more mounts than are read: all entries of this user are kept',
    });
}

/**
 * Whose image needs more than could be freed gets nothing evicted: else one that claims the right size, of a
 * few bytes, would empty the node's cache in vain.
 *
 * @returns the first of the candidates, enough of them; undefined if all of them are not
 */
async function choose(
  { base }: CollectRequest,
  candidates: readonly FoundEntry[],
  measure: (entry: FoundEntry) => Promise<SpaceNeed>,
  isEnough: (forecast: Usage) => boolean,
  isLate: () => boolean,
): Promise<readonly FoundEntry[] | undefined> {
  const usage = readUsage(base.path);
  const sizes: SpaceNeed[] = [];
  for (const entry of candidates) {
    if (isLate() || countUntil(usage, sizes, isEnough) !== undefined) break;
    sizes.push(await measure(entry));
  }
  const count = countUntil(usage, sizes, isEnough);
  return count === undefined ? undefined : candidates.slice(0, count);
}

function logSummary(
  request: CollectRequest,
  result: CollectResult,
  after: Usage,
  isLowEnough: boolean,
): void {
  if (result.result !== 'goal-missed') forgetMissedGoal(request);
  if (result.result === 'not-due') return;
  const isOldNews = result.result === 'goal-missed' && !isLowEnough && noteMissedGoal(request);
  const kept = Object.entries(result.kept).map(([reason, count]) => [`kept_${reason}`, count] as const);
  request.log(result.result === 'collected' ? 'info' : isOldNews ? 'debug' : 'warning', 'gc', {
    result: result.result,
    evicted: result.evicted.length,
    freed_bytes: result.freedBytes,
    freed_inodes: result.freedInodes,
    free_bytes: after.availableBytes,
    free_inodes: after.freeInodes,
    ...Object.fromEntries(kept),
    reason:
      result.result === 'collected'
        ? undefined
        : isLowEnough
          ? 'all that may be evicted would not be enough: the rest is in use or young, or not part of the cache'
          : 'all that may be evicted would not bring the disk below the low watermark, so what was used lately stays: other ' +
            'files fill the disk, or the rest is in use or young',
  });
}

/** For how long a collector in the background does not say once more that it cannot reach its goal. */
const missedGoalMs = 60 * 60_000;

/** @returns whether it was said lately */
function noteMissedGoal({ runtimePath, inBackground }: CollectRequest): boolean {
  const path = missedGoalPath(runtimePath);
  try {
    const ageMs = Date.now() - (unlessErrno(isGone, () => lstatSync(path).mtimeMs) ?? 0);
    const isOldNews = inBackground === true && ageMs >= 0 && ageMs < missedGoalMs;
    if (!isOldNews) writeFileAtomically(path, '', { mode: 0o600 });
    return isOldNews;
  } catch {
    return false;
  }
}

function forgetMissedGoal({ runtimePath }: CollectRequest): void {
  rmSync(missedGoalPath(runtimePath), { force: true });
}
