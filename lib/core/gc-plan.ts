/**
 * What the collector may evict, decided without a disk or a clock.
 */
import type { SpaceNeed } from './image.ts';
import type { SizeLimit } from './settings.ts';

/** A filesystem's numbers, as statfs(2) gives them. */
export interface Usage {
  readonly totalBytes: number;
  /** Free for root; the rest is in use. */
  readonly freeBytes: number;
  /** Free for users: less than freeBytes where blocks are reserved. */
  readonly availableBytes: number;
  /** 0 where the filesystem makes inodes as it needs them (btrfs). */
  readonly totalInodes: number;
  readonly freeInodes: number;
}

export interface EntryFacts {
  readonly uid: number;
  readonly name: string;
  /** The entry's modification time: our acquire and release set it. */
  readonly usedAtMs: number;
  /** A shared flock is held on its lock file. */
  readonly leased: boolean;
  /** Some process has it mounted. */
  readonly mounted: boolean;
  /** An admin said that it stays. */
  readonly pinned: boolean;
  /** False: an image that is mounted in place. Its end frees nothing. */
  readonly takesRoom: boolean;
  /** What its metadata claims, for forecasts only; 0 if it claims nothing. */
  readonly bytes: number;
  readonly inodes: number;
}

export interface CollectionPolicy {
  readonly gcHighPercent: number;
  readonly gcLowPercent: number;
  readonly gcMinAgeSeconds: number;
  /** What all entries together may take. */
  readonly maxSize?: SizeLimit | undefined;
}

export type KeepReason = 'leased' | 'mounted' | 'pinned' | 'young' | 'in-place';

export interface CollectionPlan<T extends EntryFacts = EntryFacts> {
  /** What must be freed to reach the goal. */
  readonly room: SpaceNeed;
  /** What should go, first the least recently used: enough, by what the entries claim, to reach the goal. */
  readonly evict: readonly T[];
  /** What may go after that, if the claims were too small. */
  readonly reserve: readonly T[];
  readonly kept: readonly { readonly entry: T; readonly reason: KeepReason }[];
}

/** Percent in use as df(1) counts: of what users can have, not of the disk. */
export function blocksUsedPercent(usage: Usage): number {
  const used = usage.totalBytes - usage.freeBytes;
  const all = used + usage.availableBytes;
  return all > 0 ? (100 * used) / all : 100;
}

export function inodesUsedPercent(usage: Usage): number {
  return usage.totalInodes > 0 ? (100 * (usage.totalInodes - usage.freeInodes)) / usage.totalInodes : 0;
}

export function usedPercent(usage: Usage): number {
  return Math.max(blocksUsedPercent(usage), inodesUsedPercent(usage));
}

/** Whether something of that size can be written now. */
export function fits(usage: Usage, need: SpaceNeed): boolean {
  return need.bytes <= usage.availableBytes && (usage.totalInodes === 0 || need.inodes <= usage.freeInodes);
}

/**
 * A collection starts at or above the high watermark, or when something that is to be written does not fit.
 */
export function isCollectionDue(usage: Usage, policy: CollectionPolicy, need?: SpaceNeed): boolean {
  return usedPercent(usage) >= policy.gcHighPercent || (need !== undefined && !fits(usage, need));
}

/** It ends below the low watermark. */
export function isGoalReached(usage: Usage, policy: CollectionPolicy): boolean {
  return usedPercent(usage) < policy.gcLowPercent;
}

/** What all entries together may take on this filesystem, bytes; undefined: no such limit. */
export function maxCacheBytes({ totalBytes }: Usage, { maxSize }: CollectionPolicy): number | undefined {
  if (maxSize === undefined) return undefined;
  return 'bytes' in maxSize ? maxSize.bytes : Math.floor((totalBytes * maxSize.percent) / 100);
}

/**
 * How many of the candidates must go, in their order, until `isEnough`.
 *
 * @param sizes what each would free, measured; those that were not measured count as nothing
 * @returns undefined if all of them are not enough: then none should go
 */
export function countUntil(
  usage: Usage,
  sizes: readonly SpaceNeed[],
  isEnough: (forecast: Usage) => boolean,
): number | undefined {
  let forecast = usage;
  for (let count = 0; ; count++) {
    if (isEnough(forecast)) return count;
    const size = sizes[count];
    if (size === undefined) return undefined;
    forecast = without(forecast, size);
  }
}

/**
 * Whether a collection for the watermark evicts even if it cannot reach its goal. With
 * `container_cache_gc_low=0` the goal is an empty cache: no disk can be less than 0 percent full, and all
 * that may go should go.
 */
export const wantsEmptyCache = ({ gcLowPercent }: CollectionPolicy): boolean => gcLowPercent === 0;

/**
 * Where other files fill the disk, so that no collection reaches its goal, an entry that is used goes only
 * when its room is needed: it would be unpacked again by the next job. One that nobody used for a day costs
 * nobody more than that one unpack.
 */
const staleAfterMs = 86_400_000;

export const isStale = ({ usedAtMs }: EntryFacts, nowMs: number): boolean => nowMs - usedAtMs > staleAfterMs;

/**
 * Why an entry stays, or undefined. An entry "used" in the future (a clock set back, a forged time) is the
 * most recently used one, but is not young: else it could never go.
 */
export function keepReason(
  entry: EntryFacts,
  policy: CollectionPolicy,
  nowMs: number,
): KeepReason | undefined {
  if (entry.leased) return 'leased';
  if (entry.mounted) return 'mounted';
  if (entry.pinned) return 'pinned';
  const ageMs = nowMs - entry.usedAtMs;
  return ageMs >= 0 && ageMs < policy.gcMinAgeSeconds * 1000 ? 'young' : undefined;
}

/** What must be freed until usage is below the low watermark, and `need` fits. */
function missingRoom(usage: Usage, { gcLowPercent }: CollectionPolicy, need: SpaceNeed): SpaceNeed {
  const { totalBytes, freeBytes, availableBytes, totalInodes, freeInodes } = usage;
  // As blocksUsedPercent() and inodesUsedPercent() count.
  const aboveLow = (used: number, all: number): number => {
    const most = (gcLowPercent * all) / 100;
    return used < most ? 0 : Math.floor(used - most) + 1;
  };
  const usedBytes = totalBytes - freeBytes;
  const bytes = Math.max(aboveLow(usedBytes, usedBytes + availableBytes), need.bytes - availableBytes);
  if (totalInodes === 0) return { bytes, inodes: 0 };
  return {
    bytes,
    inodes: Math.max(aboveLow(totalInodes - freeInodes, totalInodes), need.inodes - freeInodes),
  };
}

/**
 * Plans a collection that is due; whether it is due is isCollectionDue's.
 *
 * @param need what is to be written and must fit
 */
export function planCollection<T extends EntryFacts>(
  entries: readonly T[],
  usage: Usage,
  policy: CollectionPolicy,
  nowMs: number,
  need: SpaceNeed = { bytes: 0, inodes: 0 },
): CollectionPlan<T> {
  const kept: { entry: T; reason: KeepReason }[] = [];
  const candidates: T[] = [];
  for (const entry of entries) {
    const reason = keepReason(entry, policy, nowMs) ?? (entry.takesRoom ? undefined : 'in-place');
    if (reason === undefined) candidates.push(entry);
    else kept.push({ entry, reason });
  }
  candidates.sort((a, b) => a.usedAtMs - b.usedAtMs || a.uid - b.uid || (a.name < b.name ? -1 : 1));
  const isEnough = (forecast: Usage): boolean => isGoalReached(forecast, policy) && fits(forecast, need);
  const count = countUntil(usage, candidates, isEnough) ?? candidates.length;
  const room = missingRoom(usage, policy, need);
  return { room, evict: candidates.slice(0, count), reserve: candidates.slice(count), kept };
}

/** The usage after something is gone, never better than an empty disk. */
function without(usage: Usage, space: SpaceNeed): Usage {
  const bytes = Math.min(space.bytes, usage.totalBytes - usage.freeBytes);
  const inodes = Math.min(space.inodes, usage.totalInodes - usage.freeInodes);
  return {
    ...usage,
    freeBytes: usage.freeBytes + bytes,
    availableBytes: usage.availableBytes + bytes,
    freeInodes: usage.freeInodes + inodes,
  };
}
