/**
 * Directories held by a descriptor: what was checked is what is used, whatever happens to the path meanwhile.
 *
 * Node has no openat(2); `/proc/self/fd/N/name` is its equal, as the kernel resolves it from the descriptor.
 */
import { closeSync, constants, fstatSync, openSync, type Stats } from 'node:fs';

export interface Directory {
  readonly path: string;
  readonly fd: number;
  readonly stats: Stats;
}

/**
 * Opens a directory; a symlink in the last component is refused.
 *
 * @throws ENOENT, ENOTDIR (also for a symlink), EACCES, …
 */
export function openDirectory(path: string, shownPath = path): Directory {
  const fd = openSync(path, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
  try {
    return { path: shownPath, fd, stats: fstatSync(fd) };
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

/** The path of what lies in an open directory. */
export const inDirectory = (directory: Directory, name: string): string =>
  `/proc/self/fd/${directory.fd}/${name}`;

/** Runs `action` with the directory open, and closes it. */
export function withDirectory<T>(path: string, action: (directory: Directory) => T): T {
  const directory = openDirectory(path);
  try {
    return action(directory);
  } finally {
    closeSync(directory.fd);
  }
}
