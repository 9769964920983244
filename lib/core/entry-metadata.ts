/**
 * What the lock file of an entry says about it. The entry's user owns the file, so whoever reads it takes it
 * as a claim: it may be shown, and never decides what is deleted.
 */

import { isAmount, parseJsonObject } from './json.ts';

export interface EntryMetadata {
  /** The image as the job named it. */
  readonly image: string;
  readonly createdAtMs: number;
  readonly unpackMs: number;
  /** What the unpacked tree takes on disk. */
  readonly bytes: number;
  readonly inodes: number;
  /** The boot in which it was made: until it is settled, it is good for that one only. */
  readonly bootId: string | undefined;
  /** What some directories of it were like when it was published; undefined: nobody looked. */
  readonly watched?: readonly WatchedDirectory[] | undefined;
}

/** The lock file's mode: of a new entry, and of one that is on the disk as a whole. */
export const newLockMode = 0o600;
export const settledLockMode = 0o400;

/** Whether an entry outlives a power loss: what is written stays in memory for half a minute. */
export const isSettled = (lockMode: number): boolean => (lockMode & 0o200) === 0;

/** An image path of PATH_MAX bytes, all of them escaped to six, fits, and the watched directories. */
export const longestEntryMetadataBytes = 40 * 1024;

/** In place of a boot: of no boot ever, so that an entry that is not settled is good for none. */
export const damagedBootId = 'damaged';

export function formatEntryMetadata(metadata: EntryMetadata): string {
  return `${JSON.stringify({ version: 1, ...metadata })}\n`;
}

/** @returns undefined for anything but well-formed metadata of version 1 */
export function parseEntryMetadata(text: string): EntryMetadata | undefined {
  const value = parseJsonObject(text);
  if (value === undefined) return undefined;
  const { version, image, createdAtMs, unpackMs, bytes, inodes, bootId } = value;
  const watched = parseWatched(value['watched']);
  if (version !== 1 || typeof image !== 'string') return undefined;
  if (!isAmount(createdAtMs) || !isAmount(unpackMs) || !isAmount(bytes) || !isAmount(inodes))
    return undefined;
  return {
    image,
    createdAtMs,
    unpackMs,
    bytes,
    inodes,
    bootId: typeof bootId === 'string' ? bootId : undefined,
    ...(watched === undefined ? {} : { watched }),
  };
}

/**
 * One of a few directories of an entry, as it was when the entry was published. A program that deletes old
 * files (find, tmpwatch, systemd-tmpfiles) leaves a directory with another modification time and fewer names,
 * which is cheap to see.
 */
export interface WatchedDirectory {
  /** Below the rootfs, without a slash in front; empty: the rootfs itself. */
  readonly path: string;
  readonly mtimeMs: number;
  /** How many names it had. */
  readonly names: number;
}

/**
 * Each costs a warm Prolog a stat(2) beneath the entry: together 0.2 ms, some ms where the kernel has no
 * openat2(2).
 */
export const mostWatched = 16;
export const longestWatchedPath = 120;

/** @returns undefined for anything but such a list; whoever wrote it, it is bounded */
export function parseWatched(value: unknown): WatchedDirectory[] | undefined {
  if (!Array.isArray(value) || value.length > mostWatched) return undefined;
  const watched: WatchedDirectory[] = [];
  for (const one of value as unknown[]) {
    const { path, mtimeMs, names } = (typeof one === 'object' && one !== null ? one : {}) as Record<
      string,
      unknown
    >;
    const isPath = typeof path === 'string' && path.length <= longestWatchedPath && isBelow(path);
    if (!isPath || typeof mtimeMs !== 'number' || typeof names !== 'number') return undefined;
    watched.push({ path, mtimeMs, names });
  }
  return watched;
}

const isBelow = (path: string): boolean =>
  path === '' ||
  path.split('/').every((name) => name !== '' && name !== '.' && name !== '..' && !name.includes('\0'));
