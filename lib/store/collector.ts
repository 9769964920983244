/**
 * The collector: makes room by deleting the entries that were not used for the longest time.
 *
 *   1. flock the collector's lock: one collector at a time on a base.
 *   2. Sweep: trash, partial directories of dead creators, their lock files, records of dead leases.
 *   3. Look at all entries of all users, plan (lib/core/gc-plan.ts), and evict one after the other until the goal is
 *      reached, by the filesystem's own numbers: what entries claim about their size decides nothing.
 *   4. For the cache's own limit (`container_cache_max_size`), then for what is to be written and still does not fit: the same.
 *
 * Each of these measures entries first, in the order of their last use, until what they take would be enough, and evicts those. If
 * all that may go is not enough it evicts none: entries that other files leave no room for would be deleted and unpacked again by
 * each job. (For the watermark, those that nobody used for a day go all the same.)
 *
 * To evict: flock the entry exclusively, without waiting (refused: a job holds it); look that no process has it mounted
 * and that nobody used it since the plan; rename it into the trash; delete it there.
 *
 * What lies in a user directory is the user's. It is opened with the user's ids, and only names of ours are looked at.
 */
import { closeSync, constants, fchmodSync, lstatSync, rmSync } from 'node:fs';
import { longestEntryMetadataBytes, parseEntryMetadata, type EntryMetadata } from '../core/entry-metadata.ts';
import { describeError } from '../core/faults.ts';
import {
  countUntil,
  fits,
  isCollectionDue,
  isGoalReached,
  isStale,
  keepReason,
  maxCacheBytes,
  planCollection,
  wantsEmptyCache,
  type CollectionPlan,
  type CollectionPolicy,
  type EntryFacts,
  type Usage,
} from '../core/gc-plan.ts';
import type { CacheEvent, EvictionReason } from '../core/events.ts';
import type { SpaceNeed } from '../core/image.ts';
import {
  collectorLockName,
  createLockName,
  digestsName,
  imagesName,
  isImageIndexName,
  directoryName,
  entryPath,
  isEntryNameOf,
  isStepEventsName,
  leasesPath,
  lockPath,
  missedGoalPath,
  parseCreateLockName,
  parseEntryDirectoryName,
  parsePartialName,
  parseStubDirectoryName,
  parseUnsharedName,
} from '../core/layout.ts';
import type { LogLevel } from '../core/settings.ts';
import { withUserIds, type UserIds } from '../system/as-user.ts';
import { abandonedAsides, sweepAsides, writeFileAtomically } from '../system/aside.ts';
import {
  leadsToBeneath,
  namesBeneath,
  openFileBeneath,
  openOrCreateFileBeneath,
  removeFileBeneath,
  statBeneath,
  withDirectoryBeneath,
} from '../system/beneath.ts';
import { inDirectory, type Directory } from '../system/directory.ts';
import { readUsage } from '../system/disk-usage.ts';
import { isGone, unlessErrno } from '../system/errno.ts';
import { openRegularFile, readStart } from '../system/files.ts';
import { flockWithin, tryFlock } from '../system/flock.ts';
import { MountScan, readMounts } from '../system/mounts.ts';
import type { LogFields } from '../system/syslog.ts';
import { sweepLeases } from './lease.ts';
import { findStub } from './stub.ts';
import { deleteTrashed, listTrash, moveToTrash } from './trash.ts';
import { EntrySizes } from './entry-sizes.ts';
import { measureShare, Reclaim } from './reclaim.ts';
import { openTrash } from './user-directory.ts';
import { forEachUser, mostVainEvictions, userBudget, type UserTurn } from './users.ts';

interface ForecastRequest {
  readonly base: Directory;
  readonly policy: CollectionPolicy;
  /** Names of entries that stay, however old (pins.ts). */
  readonly pinned: ReadonlySet<string>;
  /** Gets a line for each user who cannot be looked at, or not wholly. */
  readonly log: (level: LogLevel, word: string, fields: LogFields) => void;
  /** Collect even below the high watermark, down to the low one. */
  readonly force?: boolean;
}

export interface CollectRequest extends ForecastRequest {
  readonly runtimePath: string;
  /** Room to be made beside the watermarks. */
  readonly need?: SpaceNeed;
  /** What is to be written is no entry: it does not count for `container_cache_max_size`. */
  readonly isForOthers?: boolean;
  /** How long to wait for another collector. 0: leave the work to it. */
  readonly lockTimeoutMs: number;
  readonly deadlineMs?: number;
  /** Nobody waits for it: trees are deleted at low priority. */
  readonly inBackground?: boolean;
  /** Gets what is to be counted. */
  readonly record: (event: CacheEvent) => void;
}

export interface FoundEntry extends EntryFacts {
  readonly gid: number;
  /** Of its directory. */
  readonly inode: number;
  /** As the job named it; like the next two only claimed, by a file that is the user's. */
  readonly image: string | undefined;
  readonly createdAtMs: number | undefined;
  readonly unpackMs: number | undefined;
}

export interface Forecast {
  readonly usage: Usage;
  readonly due: boolean;
  /** Other files fill the disk: by what entries claim, the goal cannot be reached, and so nothing goes. */
  readonly isInVain: boolean;
  readonly plan: CollectionPlan<FoundEntry>;
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

/** What a collection would do now; changes nothing. */
export function forecastCollection(request: ForecastRequest): Forecast {
  const { base, policy, force } = request;
  const usage = readUsage(base.path);
  const entries = listEntries(request, new MountScan(base.path));
  const due = force === true ? !isGoalReached(usage, policy) : isCollectionDue(usage, policy);
  const plan = planCollection(entries, usage, policy, Date.now());
  const isInVain =
    force !== true &&
    !wantsEmptyCache(policy) &&
    countUntil(usage, plan.evict, (forecast) => isGoalReached(forecast, policy)) === undefined;
  if (!due || !isInVain) return { usage, due, isInVain: false, plan };
  const stale = plan.evict.filter((entry) => isStale(entry, Date.now()));
  const reserve = plan.evict.filter((entry) => !stale.includes(entry));
  return { usage, due, isInVain, plan: { ...plan, evict: stale, reserve: [...reserve, ...plan.reserve] } };
}

/** @throws NodeFault, or a failed system call on the base itself; trouble with one entry is logged and passed over */
export async function collect(request: CollectRequest): Promise<CollectResult> {
  const result = await withCollectorLock(request, (trash) => collectLocked(request, trash));
  if (result !== undefined) return result;
  request.log('debug', 'gc', { result: 'locked', reason: 'another collector is at work' });
  return { result: 'locked', evicted: [], freedBytes: 0, freedInodes: 0, kept: {}, isWithinLimit: false };
}

/**
 * Deletes entries by their names, however young; what is in use stays.
 *
 * @returns for each name why it stayed, `unknown` if there is no such entry, `locked` if another collector was at work for too
 *   long; undefined: it is gone
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
 * Deletes entries of one user, however young, the least recently used first, until they took as much as is needed; without a need the
 * given number of them.
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
    const entries = listEntries(request, mounted).filter(({ uid }) => uid === user.uid);
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
      const size = await reclaim.measure(entry, entryPath(request.base.path, entry.uid, entry.name));
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
  const { base, policy, need, force } = request;
  const before = readUsage(base.path);
  const mounted = new MountScan(base.path);
  sweep(request, trash, mounted);
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
    const plan = planCollection(entries, readUsage(base.path), policy, Date.now());
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
    const measure = (entry: FoundEntry): Promise<SpaceNeed> =>
      sizes.measure(entry, entryPath(base.path, entry.uid, entry.name));
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
    // What a user's child has counted is believed until it turns out to be less: then all of that user's entries count as nothing.
    const measure = async (entry: FoundEntry): Promise<SpaceNeed> => {
      if (gains.isLiar(entry.uid)) return { bytes: 0, inodes: 0 };
      const known = counted.get(entry.name);
      const size = known ?? (await reclaim.measure(entry, entryPath(base.path, entry.uid, entry.name)));
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
 * Whose image needs more than could be freed gets nothing evicted: else one that claims the right size, of a few bytes, would empty
 * the node's cache in vain.
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

/** Where the cache stands with its own limit, what is to be written included. */
interface LimitState {
  readonly isExceeded: () => boolean;
  /** Which of the candidates must go. If all of them are not enough for what is to be written: none. */
  readonly choose: (candidates: readonly FoundEntry[]) => readonly FoundEntry[];
  readonly forget: (entry: FoundEntry) => void;
}

async function measureLimit(request: CollectRequest, sizes: EntrySizes): Promise<LimitState> {
  const { base, policy, need, isForOthers } = request;
  const limit = maxCacheBytes(readUsage(base.path), policy);
  if (limit === undefined) return { isExceeded: () => false, choose: () => [], forget: () => undefined };
  const { bytesOf, partialBytes } = await measureCache(request, sizes);
  const sum = (): number => [...bytesOf.values()].reduce((total, bytes) => total + bytes, partialBytes);
  const wanted = isForOthers === true ? 0 : (need?.bytes ?? 0);
  return {
    isExceeded: () => sum() + wanted > limit,
    forget: ({ name }) => {
      bytesOf.delete(name);
    },
    choose: (candidates) => {
      let rest = sum() + wanted;
      let count = 0;
      for (const { name } of candidates) {
        if (rest <= limit) break;
        rest -= bytesOf.get(name) ?? 0;
        count++;
      }
      return rest > limit && wanted > 0 ? [] : candidates.slice(0, count);
    },
  };
}

interface CacheSize {
  readonly bytesOf: Map<string, number>;
  /** Of trees that are being unpacked. */
  readonly partialBytes: number;
}

async function measureCache(request: ForecastRequest, sizes: EntrySizes): Promise<CacheSize> {
  const { base } = request;
  const bytesOf = new Map<string, number>();
  for (const entry of listEntries(request, new MountScan(request.base.path))) {
    const { bytes } = await sizes.measure(entry, entryPath(base.path, entry.uid, entry.name));
    bytesOf.set(entry.name, bytes);
  }
  const partials: { user: UserIds; path: string }[] = [];
  forEachUser(base, readMounts(), request.log, (turn) => {
    const { user, directory } = turn;
    for (const name of turn.names((one) => parsePartialName(one) !== undefined))
      partials.push({ user, path: `${directory.path}/${name}/rootfs` });
  });
  let partialBytes = 0;
  for (const { user, path } of partials) partialBytes += (await measureShare(user, path)).bytes;
  return { bytesOf, partialBytes };
}

/** What all entries take, trees that are being unpacked included; for whoever is about to add one. */
export async function measureCacheBytes(
  request: ForecastRequest & { readonly runtimePath: string },
): Promise<number> {
  const sizes = new EntrySizes(request.runtimePath);
  const { bytesOf, partialBytes } = await measureCache(request, sizes);
  sizes.save();
  return [...bytesOf.values()].reduce((total, bytes) => total + bytes, partialBytes);
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

function listEntries({ base, pinned, log }: ForecastRequest, mounted: MountScan): FoundEntry[] {
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
  return entries;
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
function openEntryLock(userDirectory: Directory, name: string): number | undefined {
  try {
    return openFileBeneath(userDirectory, lockPath(name));
  } catch {
    return undefined;
  }
}

/** An eviction that frees less is in vain. */
const leastGain: SpaceNeed = { bytes: 1024 * 1024, inodes: 100 };

/** What the evictions of a collection have freed, by user: so many in vain, and so many lines, are enough for one. */
class Gains {
  readonly #log: CollectRequest['log'];
  readonly #of = new Map<number, { vain: number; lines: number }>();
  readonly #liars = new Set<number>();
  #expected: SpaceNeed | undefined;

  constructor(log: CollectRequest['log']) {
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
async function evict(
  request: CollectRequest,
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
    const moved = withDirectoryBeneath(base, String(entry.uid), (userDirectory) =>
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

type Moved = { readonly trashed: string } | { readonly kept: string };

function moveEntryAway(
  directories: { userDirectory: Directory; trash: Directory },
  user: UserIds,
  entry: FoundEntry,
  mounts: MountScan,
  policy: CollectionPolicy,
): Moved {
  const { userDirectory } = directories;
  const { name } = entry;
  const directory = directoryName(name);
  // An entry without a lock file can be no job's; the create lock keeps a Prolog from putting it aside at the same time.
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

/** What crashes left behind. */
function sweep(request: CollectRequest, trash: Directory, mounted: MountScan): void {
  const { base, log } = request;
  forEachUser(base, readMounts(), log, (turn) => {
    sweepUser(turn, trash, mounted);
  });
  for (const path of [base.path, request.runtimePath, leasesPath(request.runtimePath)]) sweepAsides(path);
  for (const jobId of sweepLeases(request.runtimePath)) {
    log('warning', 'gc-lease', {
      job: jobId,
      reason: 'its holder is gone: the lease protected nothing any more',
    });
  }
}

function sweepUser(turn: UserTurn, trash: Directory, mounted: MountScan): void {
  const { user, directory } = turn;
  const directories = { userDirectory: directory, trash };
  // As the Prolog does: who closes their own directory does not keep entries by it.
  if ((directory.stats.mode & 0o700) !== 0o700) fchmodSync(directory.fd, 0o700);
  const names = turn.names(
    (name) =>
      name === digestsName ||
      name === imagesName ||
      parseUnsharedName(name) !== undefined ||
      isStepEventsName(name) ||
      creatorOf(name) !== undefined ||
      parseStubDirectoryName(name) !== undefined ||
      isEntryNameOf(user.uid, name),
  );
  const partialsOf = new Map<string, string[]>();
  for (const name of names) {
    const entry = creatorOf(name);
    if (entry === undefined) continue;
    const partials = partialsOf.get(entry) ?? [];
    if (parsePartialName(name) !== undefined) partials.push(name);
    partialsOf.set(entry, partials);
  }
  turn.each(names, (name) => {
    if (name === digestsName) {
      withUserIds(user, () => {
        sweepDigests(directory);
      });
    } else if (name === imagesName) {
      withUserIds(user, () => {
        sweepImageIndex(directory);
      });
    } else if (isStepEventsName(name)) {
      withUserIds(user, () => {
        sweepStepEvents(directory, name);
      });
    } else if (parseUnsharedName(name) !== undefined) {
      withUserIds(user, () => {
        sweepUnshared(directory, name);
      });
    } else if (parseStubDirectoryName(name) !== undefined) sweepStub(turn, directories, mounted, name);
    else if (isEntryNameOf(user.uid, name)) sweepFormerEntry(turn, directories, mounted, name);
  });
  turn.each([...partialsOf.keys()], (entry) => {
    sweepCreator(directories, user, entry, partialsOf.get(entry) ?? []);
  });
}

const creatorOf = (name: string): string | undefined =>
  parsePartialName(name)?.entry ?? parseCreateLockName(name)?.entry;

/** Digests that were being written in a crash. The directory is the user's, who may have put anything there. */
function sweepDigests(userDirectory: Directory): void {
  withDirectoryBeneath(userDirectory, digestsName, (digests) => {
    let read = 0;
    for (const name of namesBeneath(digests)) {
      if (++read > userBudget.names_of_ours) return;
      for (const abandoned of abandonedAsides([name])) removeFileBeneath(digests, abandoned);
    }
  });
}

/** What is asked for again after that is read again, once. */
const oldestIndexMs = 30 * 86_400_000;
const mostIndexFiles = 400;

/** What was read of images (content.ts): a file for each that a job staged for itself. */
function sweepImageIndex(userDirectory: Directory): void {
  withDirectoryBeneath(userDirectory, imagesName, (index) => {
    const files: { readonly name: string; readonly writtenMs: number }[] = [];
    let read = 0;
    for (const name of namesBeneath(index)) {
      // Beyond the budget their user keeps them.
      if (++read > userBudget.names_of_ours) break;
      for (const abandoned of abandonedAsides([name])) removeFileBeneath(index, abandoned);
      if (isImageIndexName(name)) files.push({ name, writtenMs: statBeneath(index, name).mtimeMs });
    }
    files.sort((one, other) => other.writtenMs - one.writtenMs);
    for (const [rank, { name, writtenMs }] of files.entries())
      if (rank >= mostIndexFiles || Date.now() - writtenMs > oldestIndexMs) removeFileBeneath(index, name);
  });
}

/** Of jobs without an Epilog. A job that goes on gets a new file, and what was in this one is not counted. */
const oldestStepEventsMs = 31 * 86_400_000;

function sweepStepEvents(userDirectory: Directory, name: string): void {
  // An Epilog may just have taken it.
  const stats = unlessErrno(isGone, () => statBeneath(userDirectory, name));
  if (stats !== undefined && Date.now() - stats.mtimeMs > oldestStepEventsMs)
    removeFileBeneath(userDirectory, name);
}

/** What the wrapper notes of an entry goes with the entry. */
function sweepUnshared(userDirectory: Directory, name: string): void {
  const { entry } = parseUnsharedName(name) ?? {};
  if (entry === undefined) return;
  const found = unlessErrno(isGone, () => statBeneath(userDirectory, directoryName(entry)));
  if (found === undefined) removeFileBeneath(userDirectory, name);
}

/** Between its creation and its start a stub is not mounted; this is longer than enroot and pyxis ever take. */
const youngestStubMs = 60 * 60_000;

/** A stub that no Epilog came to sweep: of a node that crashed, or of a job whose Epilog failed. */
function sweepStub(
  turn: UserTurn,
  directories: { userDirectory: Directory; trash: Directory },
  mounted: MountScan,
  name: string,
): void {
  const { user, directory } = turn;
  const stats = withUserIds(user, () => findStub(directory, name));
  if (stats === undefined || Date.now() - stats.mtimeMs <= youngestStubMs) return;
  if (mounted.isMounted(user.uid, name)) return;
  unlessErrno([...isGone, 'EBUSY'], () => moveToTrash(directories, name));
  turn.log('info', 'gc-stub', { stub: name, reason: 'its job is over' });
}

/** An entry that version 0.1 made, whose directory has no dot: no job can find it any more. What is still in use stays. */
function sweepFormerEntry(
  turn: UserTurn,
  directories: { userDirectory: Directory; trash: Directory },
  mounted: MountScan,
  name: string,
): void {
  const { user, directory } = turn;
  const stats = withUserIds(user, () => unlessErrno(isGone, () => statBeneath(directory, name)));
  if (stats?.isDirectory() !== true || stats.uid !== user.uid) return;
  const lock = withUserIds(user, () => openEntryLock(directory, name));
  try {
    if (lock !== undefined && !tryFlock(lock, 'exclusive')) return;
    if (mounted.isMounted(user.uid, name)) return;
    unlessErrno([...isGone, 'EBUSY'], () => moveToTrash(directories, name));
    turn.log('info', 'gc-former', { entry: name, reason: 'an earlier version made it' });
  } finally {
    if (lock !== undefined) closeSync(lock);
  }
}

/** Whoever creates an entry holds its create lock; while we hold it there is no creator, and what is partial is dead. */
function sweepCreator(
  directories: { userDirectory: Directory; trash: Directory },
  user: UserIds,
  entry: string,
  partials: readonly string[],
): void {
  const { userDirectory } = directories;
  const lockName = createLockName(entry);
  const lock = withUserIds(user, () => openCreateLock(userDirectory, lockName));
  try {
    if (!tryFlock(lock, 'exclusive')) return;
    if (!withUserIds(user, () => leadsToBeneath(userDirectory, lockName, lock))) return;
    for (const name of partials) unlessErrno([...isGone, 'EBUSY'], () => moveToTrash(directories, name));
    // Removed under its own lock: who waits for it sees that the path leads elsewhere, and opens it anew.
    withUserIds(user, () => {
      const isPublished = unlessErrno(isGone, () => statBeneath(userDirectory, directoryName(entry)));
      if (isPublished === undefined) removeFileBeneath(userDirectory, lockName);
    });
  } finally {
    closeSync(lock);
  }
}

const openCreateLock = (userDirectory: Directory, name: string): number =>
  openOrCreateFileBeneath(userDirectory, name, 0o600, constants.O_RDONLY);

async function emptyTrash(request: CollectRequest, trash: Directory): Promise<void> {
  await deleteAndLog(request, trash, listTrash(trash));
}

async function deleteAndLog(
  { log, inBackground, deadlineMs }: CollectRequest,
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
