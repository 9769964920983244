/**
 * A few directories of an entry, as they were when it was published. A program that deletes old files (find, tmpwatch,
 * systemd-tmpfiles) leaves a directory with another modification time and fewer names, which is cheap to see.
 */

export interface WatchedDirectory {
  /** Below the rootfs, without a slash in front; empty: the rootfs itself. */
  readonly path: string;
  readonly mtimeMs: number;
  /** How many names it had. */
  readonly names: number;
}

/** Each costs a warm Prolog a stat(2) beneath the entry: together 0.2 ms, some ms where the kernel has no openat2(2). */
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
