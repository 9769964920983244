/**
 * Whether the files that say how pyxis is set up are the ones that were read. Every Prolog asks, so it is
 * some stat(2) and no more.
 */
import { statSync } from 'node:fs';
import { unlessErrno } from '../system/errno.ts';

const separator = '\t';

export const joinPaths = (paths: readonly string[]): string => paths.join(separator);

/** @param files from joinPaths() */
export function stampOf(files: string): string {
  return files.split(separator).map(stampOfFile).join(':');
}

/**
 * By the time of the last change of the inode, which nobody can set: a file may be replaced with its old
 * times.
 */
function stampOfFile(path: string): string {
  const stats = unlessErrno(['ENOENT', 'ENOTDIR', 'EACCES', 'ELOOP'], () => statSync(path));
  return stats === undefined ? 'none' : `${stats.ino}-${stats.size}-${stats.mtimeMs}-${stats.ctimeMs}`;
}
