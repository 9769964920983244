/**
 * Stubs: the small directories that the enroot wrapper puts in the place of a container (enroot/enroot).
 * enroot removes them like any container; here is what is left to root, when a step did not come to that.
 */
import { closeSync, type Stats } from 'node:fs';
import { basename, dirname } from 'node:path';
import { BeneathError } from '../core/faults.ts';
import { stubMarkPath } from '../core/layout.ts';
import { namesBeneath, openDirectoryBeneath, statBeneath } from '../system/beneath.ts';
import type { Directory } from '../system/directory.ts';
import { isGone, unlessErrno } from '../system/errno.ts';

/**
 * Looks whether a name of a user directory is a stub, and not a container that enroot unpacked. To be asked
 * with the user's ids: a user may mark anything of their own as a stub, and nothing else. However that is
 * made, a look costs a few system calls.
 *
 * The wrapper makes the directory, one in it, and then the mark. Killed in between it leaves an empty
 * directory, or one in which there is only an empty one of ours: nothing else tells these from a container,
 * and nothing else would sweep them.
 *
 * @returns what lstat(2) tells of the mark, or of what there is of an unfinished stub; undefined: it is no
 *   stub
 */
export function findStub(userDirectory: Directory, name: string): Stats | undefined {
  try {
    const mark = unlessErrno(isGone, () => statBeneath(userDirectory, stubMarkPath(name)));
    if (mark !== undefined) return mark.isFile() ? mark : undefined;
    const [first, ...more] = firstNames(userDirectory, name);
    const ours = dirname(stubMarkPath(name));
    const isUnfinished =
      first === undefined ||
      (more.length === 0 && first === basename(ours) && firstNames(userDirectory, ours).length === 0);
    return isUnfinished ? statBeneath(userDirectory, name) : undefined;
  } catch (error) {
    // Whatever the user made of it, it is no stub of ours.
    if (error instanceof BeneathError) return undefined;
    throw error;
  }
}

/** The first two names of a directory at most: more would only say that it is none of ours. */
function firstNames(userDirectory: Directory, path: string): string[] {
  const directory = openDirectoryBeneath(userDirectory, path);
  try {
    const names: string[] = [];
    for (const name of namesBeneath(directory)) {
      names.push(name);
      if (names.length === 2) break;
    }
    return names;
  } finally {
    closeSync(directory.fd);
  }
}
