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
import {
  closeSync,
  constants,
  fchmodSync,
  lstatSync,
  readdirSync,
  rmSync,
  unlinkSync,
  type Stats,
} from 'node:fs';
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
  parseIdName,
  parsePartialName,
  parseStubDirectoryName,
  parseUnsharedName,
} from '../core/layout.ts';
import { mountPointsBelow, type Mount } from '../core/mountinfo.ts';
import type { LogLevel } from '../core/settings.ts';
import { withUserIds, type UserIds } from '../system/as-user.ts';
import { abandonedAsides, sweepAsides } from '../system/aside.ts';
import { inDirectory, openDirectory, readNames, withDirectory, type Directory } from '../system/directory.ts';
import { readUsage } from '../system/disk-usage.ts';
import { isGone, unlessErrno, userMadeErrnos } from '../system/errno.ts';
import { leadsTo, openRegularFile, readStart, writeFileAtomically } from '../system/files.ts';
import { flockWithin, tryFlock } from '../system/flock.ts';
import { findMountedEntries, readMounts } from '../system/mounts.ts';
import type { LogFields } from '../system/syslog.ts';
import { sweepLeases } from './lease.ts';
import { findStub } from './stub.ts';
import { deleteTrashed, listTrash, moveToTrash } from './trash.ts';
import { EntrySizes } from './entry-sizes.ts';
import { measureShare, Reclaim } from './reclaim.ts';
import { openTrash } from './user-directory.ts';

export interface ForecastRequest {
  readonly base: Directory;
  readonly policy: CollectionPolicy;
  /** Names of entries that stay, however old (pins.ts). */
  readonly pinned: ReadonlySet<string>;
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
  readonly log: (level: LogLevel, word: string, fields: LogFields) => void;
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

export interface CollectResult {
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
  const entries = listEntries(request);
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
    const entries = listEntries(request);
    const found = new Map<string, string | undefined>();
    for (const name of names) {
      const entry = entries.find((one) => one.name === name);
      found.set(name, entry === undefined ? 'unknown' : await evict(anyAge, trash, entry, 'rm'));
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
    const entries = listEntries(request).filter(({ uid }) => uid === user.uid);
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
      if ((await evict(anyAge, trash, entry, 'quota')) !== undefined) continue;
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
  sweep(request, trash);
  await emptyTrash(request, trash);

  const evicted: FoundEntry[] = [];
  let kept: Record<string, number> = {};
  const isFull = force === true || isCollectionDue(before, policy);
  const sizes = new EntrySizes(request.runtimePath);
  const limit = await measureLimit(request, sizes);
  const due = isFull || limit.isExceeded() || isCollectionDue(before, policy, need);
  const isLowEnough = (usage = readUsage(base.path)): boolean => !isFull || isGoalReached(usage, policy);
  const hasRoom = (usage = readUsage(base.path)): boolean => need === undefined || fits(usage, need);
  const isLate = (): boolean => Date.now() > (request.deadlineMs ?? Infinity);
  const findCandidates = (): FoundEntry[] => {
    const entries = listEntries(request);
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
      const keptBecause = await evict(request, trash, entry, reason);
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
    const measure = (entry: FoundEntry): Promise<SpaceNeed> =>
      reclaim.measure(entry, entryPath(base.path, entry.uid, entry.name));
    const chosen = await choose(request, findCandidates(), measure, hasRoom, isLate);
    await evictUntil('room', hasRoom, chosen ?? []);
  }
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
  for (const entry of listEntries(request)) {
    const { bytes } = await sizes.measure(entry, entryPath(base.path, entry.uid, entry.name));
    bytesOf.set(entry.name, bytes);
  }
  const mounts = readMounts();
  const partials: { user: UserIds; path: string }[] = [];
  for (const { user, directory } of userDirectories(base, mounts))
    for (const name of namesIn(user, directory, mounts))
      if (parsePartialName(name) !== undefined)
        partials.push({ user, path: `${directory.path}/${name}/rootfs` });
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

/** What somebody may mount on their user directory may refuse us. */
const unreadable = ['EACCES', 'ENOTCONN', 'EIO'] as const;

/** The user directories of a base: names that are a uid, directories, owned by that uid, with nothing mounted on them. */
function* userDirectories(
  base: Directory,
  mounts: readonly Mount[],
): Generator<{ user: UserIds; directory: Directory }> {
  for (const name of readdirSync(`/proc/self/fd/${base.fd}`)) {
    const uid = parseIdName(name);
    if (uid === undefined || mounts.some((mount) => mount.mountPoint === `${base.path}/${name}`)) continue;
    const directory = unlessErrno([...isGone, ...unreadable, 'ELOOP'], () =>
      openDirectory(inDirectory(base, name), `${base.path}/${name}`),
    );
    if (directory === undefined) continue;
    try {
      if (directory.stats.uid === uid && directory.stats.dev === base.stats.dev) {
        yield { user: { uid, gid: directory.stats.gid }, directory };
      }
    } finally {
      closeSync(directory.fd);
    }
  }
}

/** Names in a user directory, those with something mounted on or below them left out: their server may never answer. */
function namesIn(user: UserIds, directory: Directory, mounts: readonly Mount[]): string[] {
  const covered = new Set(
    mountPointsBelow(directory.path, mounts).map(
      (point) => point.slice(directory.path.length + 1).split('/', 1)[0],
    ),
  );
  const names = withUserIds(user, () => unlessErrno(unreadable, () => readNames(directory)));
  return (names ?? []).filter((name) => !covered.has(name));
}

function listEntries({ base, pinned }: ForecastRequest): FoundEntry[] {
  const isMounted = findMountedEntries(base.path);
  const mounts = readMounts();
  const entries: FoundEntry[] = [];
  for (const { user, directory } of userDirectories(base, mounts)) {
    for (const found of namesIn(user, directory, mounts)) {
      const name = parseEntryDirectoryName(user.uid, found);
      if (name === undefined) continue;
      const facts = withUserIds(user, () => lookAtEntry(user, directory, name));
      if (facts !== undefined)
        entries.push({ ...facts, mounted: isMounted(user.uid, found), pinned: pinned.has(name) });
    }
  }
  return entries;
}

function lookAtEntry(
  user: UserIds,
  directory: Directory,
  name: string,
): Omit<FoundEntry, 'mounted' | 'pinned'> | undefined {
  const path = inDirectory(directory, directoryName(name));
  const stats = unlessErrno(isGone, () => lstatSync(path));
  // A directory of another owner was put there by somebody else, and a symlink or a file is no rootfs.
  if (stats?.isDirectory() !== true || stats.uid !== user.uid) return undefined;
  const lock = openEntryLock(path);
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
function openEntryLock(path: string): number | undefined {
  try {
    return openRegularFile(lockPath(path));
  } catch {
    return undefined;
  }
}

/** @returns why the entry was kept, or undefined: it is gone */
async function evict(
  request: CollectRequest,
  trash: Directory,
  entry: FoundEntry,
  why: EvictionReason,
): Promise<string | undefined> {
  const { base, log, policy } = request;
  const user = { uid: entry.uid, gid: entry.gid };
  let trashed: string;
  try {
    const userDirectory = openDirectory(inDirectory(base, String(entry.uid)), `${base.path}/${entry.uid}`);
    try {
      const moved = moveEntryAway({ userDirectory, trash }, user, entry, base.path, policy);
      if ('kept' in moved) return moved.kept;
      trashed = moved.trashed;
    } finally {
      closeSync(userDirectory.fd);
    }
  } catch (error) {
    log('warning', 'gc-kept', { uid: entry.uid, entry: entry.name, reason: describeError(error) });
    return 'failed';
  }
  const before = readUsage(base.path);
  await deleteAndLog(request, trash, [trashed]);
  const after = readUsage(base.path);
  log('info', 'gc-evicted', {
    uid: entry.uid,
    entry: entry.name,
    image: entry.image,
    unused_seconds: Math.round((Date.now() - entry.usedAtMs) / 1000),
    freed_bytes: after.freeBytes - before.freeBytes,
    freed_inodes: after.freeInodes - before.freeInodes,
  });
  request.record({ kind: 'eviction', atMs: Date.now(), reason: why, entry: entry.name });
  return undefined;
}

type Moved = { readonly trashed: string } | { readonly kept: string };

function moveEntryAway(
  directories: { userDirectory: Directory; trash: Directory },
  user: UserIds,
  entry: FoundEntry,
  basePath: string,
  policy: CollectionPolicy,
): Moved {
  const { userDirectory } = directories;
  const { name } = entry;
  const path = inDirectory(userDirectory, directoryName(name));
  // An entry without a lock file can be no job's; the create lock keeps a Prolog from putting it aside at the same time.
  const lock = withUserIds(
    user,
    () =>
      openEntryLock(path) ??
      openRegularFile(inDirectory(userDirectory, createLockName(name)), constants.O_CREAT),
  );
  try {
    if (!tryFlock(lock, 'exclusive')) return { kept: 'leased' };
    // From here on nobody can hold the entry; but somebody may have held and released it since the plan.
    const now: Stats | undefined = withUserIds(user, () => unlessErrno(isGone, () => lstatSync(path)));
    if (now === undefined) return { kept: 'gone' };
    const lockPaths = [lockPath(path), inDirectory(userDirectory, createLockName(name))];
    // EACCES: a closed entry, whose lock file nobody can reach.
    if (!withUserIds(user, () => lockPaths.some((one) => leadsTo(one, lock, ['EACCES']))))
      return { kept: 'replaced' };
    const mounted = findMountedEntries(basePath)(user.uid, directoryName(name));
    const reason = keepReason(
      { ...entry, leased: false, mounted, usedAtMs: now.mtimeMs },
      policy,
      Date.now(),
    );
    if (reason !== undefined) return { kept: reason };
    if (now.mtimeMs !== entry.usedAtMs) return { kept: 'used' };
    return { trashed: moveToTrash(directories, directoryName(name)) };
  } finally {
    closeSync(lock);
  }
}

/** What crashes left behind. */
function sweep(request: CollectRequest, trash: Directory): void {
  const { base, log } = request;
  const mounts = readMounts();
  for (const { user, directory } of userDirectories(base, mounts)) {
    // As the Prolog does: who closes their own directory does not keep entries by it.
    if ((directory.stats.mode & 0o700) !== 0o700) fchmodSync(directory.fd, 0o700);
    const names = namesIn(user, directory, mounts);
    const present = new Set(names);
    const partialsOf = new Map<string, string[]>();
    for (const name of names) {
      const partial = parsePartialName(name);
      const entry = partial?.entry ?? parseCreateLockName(name)?.entry;
      if (entry === undefined) continue;
      const partials = partialsOf.get(entry) ?? [];
      if (partial !== undefined) partials.push(name);
      partialsOf.set(entry, partials);
    }
    sweepStubs(request, { userDirectory: directory, trash }, user, names);
    for (const name of names.filter((one) => isEntryNameOf(user.uid, one)))
      sweepFormerEntry(request, { userDirectory: directory, trash }, user, name);
    if (names.includes(digestsName))
      withUserIds(user, () => {
        sweepDigests(directory);
      });
    if (names.includes(imagesName))
      withUserIds(user, () => {
        sweepImageIndex(directory);
      });
    withUserIds(user, () => {
      sweepStepEvents(directory, names);
      sweepUnshared(directory, names);
    });
    for (const [entry, partials] of partialsOf) {
      try {
        sweepCreator(
          { userDirectory: directory, trash },
          user,
          entry,
          partials,
          present.has(directoryName(entry)),
        );
      } catch (error) {
        log('warning', 'gc-kept', { uid: user.uid, entry, reason: describeError(error) });
      }
    }
  }
  for (const path of [base.path, request.runtimePath, leasesPath(request.runtimePath)]) sweepAsides(path);
  for (const jobId of sweepLeases(request.runtimePath)) {
    log('warning', 'gc-lease', {
      job: jobId,
      reason: 'its holder is gone: the lease protected nothing any more',
    });
  }
}

/** Digests that were being written in a crash. The directory is the user's, who may have put anything there. */
function sweepDigests(userDirectory: Directory): void {
  const refusals = [...isGone, ...unreadable, 'ELOOP', 'EPERM', 'EISDIR', 'EBUSY', 'EROFS'];
  unlessErrno(refusals, () => {
    withDirectory(inDirectory(userDirectory, digestsName), (digests) => {
      if (digests.stats.dev !== userDirectory.stats.dev) return;
      for (const name of abandonedAsides(readNames(digests)))
        unlessErrno(refusals, () => {
          unlinkSync(inDirectory(digests, name));
        });
    });
  });
}

/** What is asked for again after that is read again, once. */
const oldestIndexMs = 30 * 86_400_000;
const mostIndexFiles = 1000;

/** What was read of images (content.ts): a file for each that a job staged for itself. */
function sweepImageIndex(userDirectory: Directory): void {
  const refusals = [...isGone, ...unreadable, 'ELOOP', 'EPERM', 'EISDIR', 'EBUSY', 'EROFS'];
  unlessErrno(refusals, () => {
    withDirectory(inDirectory(userDirectory, imagesName), (index) => {
      if (index.stats.dev !== userDirectory.stats.dev) return;
      const names = readNames(index);
      const remove = (name: string): void => {
        unlessErrno(refusals, () => {
          unlinkSync(inDirectory(index, name));
        });
      };
      abandonedAsides(names).forEach(remove);
      const files = names
        .filter(isImageIndexName)
        .map((name) => ({
          name,
          writtenMs: unlessErrno(refusals, () => lstatSync(inDirectory(index, name)))?.mtimeMs ?? 0,
        }))
        .sort((one, other) => other.writtenMs - one.writtenMs);
      files
        .filter(({ writtenMs }, rank) => rank >= mostIndexFiles || Date.now() - writtenMs > oldestIndexMs)
        .forEach(({ name }) => {
          remove(name);
        });
    });
  });
}

/** Of jobs without an Epilog. A job that goes on gets a new file, and what was in this one is not counted. */
const oldestStepEventsMs = 31 * 86_400_000;

function sweepStepEvents(userDirectory: Directory, names: readonly string[]): void {
  for (const name of names.filter(isStepEventsName))
    unlessErrno(userMadeErrnos, () => {
      const path = inDirectory(userDirectory, name);
      if (Date.now() - lstatSync(path).mtimeMs > oldestStepEventsMs) unlinkSync(path);
    });
}

/** What the wrapper notes of an entry goes with the entry. */
function sweepUnshared(userDirectory: Directory, names: readonly string[]): void {
  for (const name of names) {
    const entry = parseUnsharedName(name)?.entry;
    if (entry === undefined || names.includes(directoryName(entry))) continue;
    unlessErrno(userMadeErrnos, () => {
      unlinkSync(inDirectory(userDirectory, name));
    });
  }
}

/** Between its creation and its start a stub is not mounted; this is longer than enroot and pyxis ever take. */
const youngestStubMs = 60 * 60_000;

/** Stubs that no Epilog came to sweep: of a node that crashed, or of a job whose Epilog failed. */
function sweepStubs(
  { base, log }: CollectRequest,
  directories: { userDirectory: Directory; trash: Directory },
  user: UserIds,
  names: readonly string[],
): void {
  const { userDirectory } = directories;
  const stubs = withUserIds(user, () => names.filter((name) => isOldStub(userDirectory, name)));
  if (stubs.length === 0) return;
  const isMounted = findMountedEntries(base.path);
  for (const name of stubs) {
    if (isMounted(user.uid, name)) continue;
    unlessErrno([...isGone, 'EBUSY'], () => moveToTrash(directories, name));
    log('info', 'gc-stub', { uid: user.uid, stub: name, reason: 'its job is over' });
  }
}

function isOldStub(userDirectory: Directory, name: string): boolean {
  if (parseStubDirectoryName(name) === undefined) return false;
  const stats = findStub(userDirectory, name);
  return stats !== undefined && Date.now() - stats.mtimeMs > youngestStubMs;
}

/** An entry that version 0.1 made, whose directory has no dot: no job can find it any more. What is still in use stays. */
function sweepFormerEntry(
  { base, log }: CollectRequest,
  directories: { userDirectory: Directory; trash: Directory },
  user: UserIds,
  name: string,
): void {
  const path = inDirectory(directories.userDirectory, name);
  const stats = withUserIds(user, () => unlessErrno(isGone, () => lstatSync(path)));
  if (stats?.isDirectory() !== true || stats.uid !== user.uid) return;
  const lock = withUserIds(user, () => openEntryLock(path));
  try {
    if (lock !== undefined && !tryFlock(lock, 'exclusive')) return;
    if (findMountedEntries(base.path)(user.uid, name)) return;
    unlessErrno([...isGone, 'EBUSY'], () => moveToTrash(directories, name));
    log('info', 'gc-former', { uid: user.uid, entry: name, reason: 'an earlier version made it' });
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
  isPublished: boolean,
): void {
  const { userDirectory } = directories;
  const lockName = createLockName(entry);
  const lockFile = inDirectory(userDirectory, lockName);
  const lock = withUserIds(user, () => openRegularFile(lockFile, constants.O_CREAT));
  try {
    if (!tryFlock(lock, 'exclusive')) return;
    if (!withUserIds(user, () => leadsTo(lockFile, lock))) return;
    for (const name of partials) unlessErrno([...isGone, 'EBUSY'], () => moveToTrash(directories, name));
    // Removed under its own lock: who waits for it sees that the path leads elsewhere, and opens it anew.
    if (!isPublished)
      withUserIds(user, () => {
        rmSync(lockFile, { force: true });
      });
  } finally {
    closeSync(lock);
  }
}

async function emptyTrash(request: CollectRequest, trash: Directory): Promise<void> {
  const names = listTrash(trash);
  while (names.length > 0) await deleteAndLog(request, trash, names.splice(0, deletedAtOnce));
}

/** A process for each of the thousands of names that a user can have brought into the trash would take hours. */
const deletedAtOnce = 100;

async function deleteAndLog(
  request: CollectRequest,
  trash: Directory,
  names: readonly string[],
): Promise<void> {
  try {
    await deleteTrashed(trash, names, request.inBackground);
  } catch (error) {
    const left = listTrash(trash);
    for (const name of names.filter((one) => left.includes(one)))
      request.log('warning', 'gc-trash', {
        entry: name,
        reason: `Cannot delete all of it, the next collector tries again: ${describeError(error)}`,
      });
  }
}
