/** Error numbers of failed system calls, as Node reports them. */

import { systemErrorOf } from '../core/faults.ts';

/** @returns "ENOENT" and the like; undefined for what is no failed system call */
export function errnoOf(error: unknown): string | undefined {
  return systemErrorOf(error);
}

/** Runs `action`; a failure with one of these numbers gives undefined. */
export function unlessErrno<T>(numbers: readonly string[], action: () => T): T | undefined {
  try {
    return action();
  } catch (error) {
    if (numbers.includes(errnoOf(error) ?? '')) return undefined;
    throw error;
  }
}

/** What a lookup of something that is not there, or no longer, fails with. */
export const isGone = ['ENOENT', 'ENOTDIR'] as const;

/**
 * What a user can bring about in a directory of their own, at any moment, by taking away, closing, replacing,
 * or mounting there.
 */
export const userMadeErrnos: readonly string[] = [
  ...isGone,
  ...['EACCES', 'EPERM', 'ELOOP', 'EISDIR', 'EEXIST', 'ENOTEMPTY', 'EBUSY', 'EXDEV', 'EMLINK'],
  ...['ENAMETOOLONG', 'ENXIO'],
  // Of a filesystem that the user mounted in the moment after we looked; a base that is at fault itself is
  // found out before.
  ...['EROFS', 'EIO', 'ENOTCONN', 'ENOSYS', 'ENOTSUP', 'ENOLCK'],
];
