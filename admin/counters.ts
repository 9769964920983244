/**
 * Sums of events: what the node's cache did since it was first used, or over a time.
 */
import type {
  CacheEvent,
  CollectionResult,
  EvictionReason,
  StartEvent,
  StartResult,
  StartSource,
} from '../lib/core/events.ts';
import type { FaultCode } from '../lib/core/faults.ts';

/** What starts of one source came to. */
export interface StartCounters {
  readonly results: Partial<Record<StartResult, number>>;
  /** Of `bypassed` and of `failed` starts. */
  readonly codes: Partial<Record<FaultCode, number>>;
  /**
   * Of `created` entries: how many took at most so long as the bucket, or longer than all (one more than
   * unpackBucketsSeconds).
   */
  readonly unpackBuckets: number[];
  unpackMs: number;
  /**
   * What unpacking took when the reused entries were made; of entries whose unpack we did not see nothing is
   * counted.
   */
  savedMs: number;
}

export interface EntryCounters {
  hits: number;
  unpackMs: number | undefined;
  usedAtMs: number;
}

export interface Counters {
  /** When counting began. */
  readonly sinceMs: number;
  readonly starts: Record<StartSource, StartCounters>;
  readonly evictions: Partial<Record<EvictionReason, number>>;
  readonly collections: Partial<Record<CollectionResult, number>>;
  lastCollectionAtMs: number | undefined;
  /** By name, of the entries that are there or were lately. */
  readonly entries: Map<string, EntryCounters>;
}

/** Upper bounds of the histogram, seconds. */
export const unpackBucketsSeconds = [0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640] as const;

/** Users can make up names of entries: those used last are remembered. */
const mostEntries = 10_000;

export function emptyCounters(sinceMs: number): Counters {
  const none = (): StartCounters => ({
    results: {},
    codes: {},
    unpackBuckets: [...unpackBucketsSeconds, Infinity].map(() => 0),
    unpackMs: 0,
    savedMs: 0,
  });
  return {
    sinceMs,
    starts: { job: none(), step: none(), warm: none() },
    evictions: {},
    collections: {},
    lastCollectionAtMs: undefined,
    entries: new Map(),
  };
}

export function addEvent(counters: Counters, event: CacheEvent): void {
  switch (event.kind) {
    case 'start':
      addStart(counters, event);
      break;
    case 'eviction':
      increment(counters.evictions, event.reason);
      // A new entry of the same image has the same name, and its hits begin anew.
      counters.entries.delete(event.entry);
      break;
    case 'collection':
      increment(counters.collections, event.result);
      counters.lastCollectionAtMs = Math.max(counters.lastCollectionAtMs ?? 0, event.atMs);
  }
}

function addStart(counters: Counters, event: StartEvent): void {
  const starts = counters.starts[event.source];
  increment(starts.results, event.result);
  if (event.code !== undefined) increment(starts.codes, event.code);
  if (event.entry === undefined) return;
  const entry = noteEntry(counters, event);
  if (event.result === 'reused') {
    if (entry !== undefined) entry.hits++;
    starts.savedMs += entry?.unpackMs ?? 0;
  }
  if (event.unpackMs === undefined) return;
  const seconds = event.unpackMs / 1000;
  const bucket = unpackBucketsSeconds.findIndex((bound) => seconds <= bound);
  const index = bucket === -1 ? unpackBucketsSeconds.length : bucket;
  starts.unpackBuckets[index] = (starts.unpackBuckets[index] ?? 0) + 1;
  starts.unpackMs += event.unpackMs;
}

function noteEntry(counters: Counters, event: StartEvent): EntryCounters | undefined {
  const { entries } = counters;
  if (event.entry === undefined) return undefined;
  const entry = entries.get(event.entry) ?? { hits: 0, unpackMs: undefined, usedAtMs: 0 };
  entries.set(event.entry, entry);
  entry.usedAtMs = Math.max(entry.usedAtMs, event.atMs);
  // What a step claims of its unpack stands for as long as no Prolog has seen one.
  if (event.unpackMs !== undefined && (event.source !== 'step' || entry.unpackMs === undefined))
    entry.unpackMs = event.unpackMs;
  return entry;
}

/** Forgets the entries used longest ago, if there are too many. */
export function forgetOldEntries({ entries }: Counters): void {
  const surplus = entries.size - mostEntries;
  if (surplus <= 0) return;
  const byAge = [...entries].toSorted(([, a], [, b]) => a.usedAtMs - b.usedAtMs);
  for (const [name] of byAge.slice(0, surplus)) entries.delete(name);
}

function increment<K extends string>(counts: Partial<Record<K, number>>, key: K): void {
  counts[key] = (counts[key] ?? 0) + 1;
}
