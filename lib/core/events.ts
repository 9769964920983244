/**
 * What is counted: an event is one line of JSON, appended to a file of its day (lib/store/event-files.ts).
 * Counters, hits of an entry and what `container-cache stats` tells are all sums of events.
 */
import { isFaultCode, type FaultCode } from './faults.ts';
import { isAmount, parseJsonObject } from './json.ts';
import { isEntryName } from './layout.ts';

/**
 * Who wanted the entry. `step`: an inner srun, told by the user's own process: a claim, with no other effect
 * than a number. `warm`: an admin, ahead of time.
 */
export const startSources = ['job', 'step', 'warm'] as const;
export type StartSource = (typeof startSources)[number];

const startResults = ['reused', 'waited', 'created', 'bypassed', 'failed'] as const;
export type StartResult = (typeof startResults)[number];

/** A container that was to start from the cache. */
export interface StartEvent {
  readonly kind: 'start';
  readonly atMs: number;
  readonly source: StartSource;
  readonly result: StartResult;
  /** With `bypassed` and `failed`. */
  readonly code?: FaultCode | undefined;
  /** With the others. */
  readonly entry?: string | undefined;
  /** With `created`, milliseconds. */
  readonly unpackMs?: number | undefined;
  /** What a step would have the Epilog unpack; it is not counted. */
  readonly image?: string | undefined;
}

/**
 * A container that starts from an entry: what the enroot wrapper notes, and the Epilog makes `reused` starts
 * of. The first one from an entry that was made or waited for is that `start` itself.
 */
interface ContainerEvent {
  readonly entry: string;
  readonly result: 'reused' | 'waited' | 'created';
}

export function parseContainerEvent(line: string): ContainerEvent | undefined {
  const { kind, entry, result } = parseJsonObject(line) ?? {};
  return kind === 'container' && isEntryName(entry) && isOneOf(['reused', 'waited', 'created'], result)
    ? { entry, result }
    : undefined;
}

/** An image file of `trusted_images` that a step unpacked: the Epilog has it mounted for the next one. */
interface MountEvent {
  readonly kind: 'mount';
  /** An absolute path. */
  readonly image: string;
}

export const formatMountEvent = (image: string): string =>
  `${JSON.stringify({ kind: 'mount', image } satisfies MountEvent)}\n`;

export function parseMountEvent(line: string): MountEvent | undefined {
  const { kind, image } = parseJsonObject(line) ?? {};
  return kind === 'mount' && typeof image === 'string' && image.startsWith('/') ? { kind, image } : undefined;
}

/**
 * Why an entry went: usage reached the high watermark; a new image needed its room; the cache reached its own
 * limit; its user's quota was used up; an admin said so.
 */
export const evictionReasons = ['watermark', 'room', 'size', 'quota', 'rm'] as const;
export type EvictionReason = (typeof evictionReasons)[number];

interface EvictionEvent {
  readonly kind: 'eviction';
  readonly atMs: number;
  readonly reason: EvictionReason;
  readonly entry: string;
}

export const collectionResults = ['collected', 'goal-missed'] as const;
export type CollectionResult = (typeof collectionResults)[number];

/** A collection that was due. */
interface CollectionEvent {
  readonly kind: 'collection';
  readonly atMs: number;
  readonly result: CollectionResult;
}

export type CacheEvent = StartEvent | EvictionEvent | CollectionEvent;

export const formatEvent = (event: CacheEvent): string => `${JSON.stringify(event)}\n`;

/** Longer than any unpack may take, so that a user's claim cannot spoil a sum. */
const longestUnpackMs = 86_400_000;

/**
 * @returns undefined for what is no whole, well-formed event: a line cut by a crash, one of another version,
 *   a forgery
 */
export function parseEvent(line: string): CacheEvent | undefined {
  const value = parseJsonObject(line);
  if (value === undefined) return undefined;
  const { kind, atMs, source, result, code, entry, unpackMs, reason, image } = value;
  if (!isAmount(atMs)) return undefined;
  switch (kind) {
    case 'start': {
      if (!isOneOf(startSources, source) || !isOneOf(startResults, result)) return undefined;
      if (result === 'bypassed' || result === 'failed')
        return isFaultCode(code)
          ? { kind, atMs, source, result, code, ...(typeof image === 'string' ? { image } : {}) }
          : undefined;
      if (!isEntryName(entry)) return undefined;
      if (result !== 'created') return { kind, atMs, source, result, entry };
      return isAmount(unpackMs) && unpackMs <= longestUnpackMs
        ? { kind, atMs, source, result, entry, unpackMs }
        : undefined;
    }
    case 'eviction':
      return isOneOf(evictionReasons, reason) && isEntryName(entry)
        ? { kind, atMs, reason, entry }
        : undefined;
    case 'collection':
      return isOneOf(collectionResults, result) ? { kind, atMs, result } : undefined;
    default:
      return undefined;
  }
}

function isOneOf<const T extends string>(choices: readonly T[], value: unknown): value is T {
  return choices.some((choice) => choice === value);
}
