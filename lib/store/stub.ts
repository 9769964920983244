/**
 * Stubs: the small directories that the enroot wrapper puts in the place of a container (enroot/enroot). enroot removes them like
 * any container; here is what is left to root, when a step did not come to that.
 */
import { lstatSync, readdirSync, type Stats } from 'node:fs';
import { basename, dirname } from 'node:path';
import { stubMarkPath } from '../core/layout.ts';
import { inDirectory, type Directory } from '../system/directory.ts';
import { isGone, unlessErrno } from '../system/errno.ts';

/**
 * Looks whether a name of a user directory is a stub, and not a container that enroot unpacked. To be asked with the user's ids: a
 * user may mark anything of their own as a stub, and nothing else.
 *
 * The wrapper makes the directory, one in it, and then the mark. Killed in between it leaves an empty directory, or one in which there
 * is only an empty one of ours: nothing else tells these from a container, and nothing else would sweep them.
 *
 * @returns what lstat(2) tells of the mark, or of what there is of an unfinished stub; undefined: it is no stub
 */
export function findStub(userDirectory: Directory, name: string): Stats | undefined {
  const path = inDirectory(userDirectory, name);
  const mark = stubMarkPath(path);
  return unlessErrno([...isGone, 'EACCES', 'ELOOP', 'ENOTDIR'], () => {
    const stub = lstatSync(path);
    if (!stub.isDirectory()) return undefined;
    const stats = unlessErrno(isGone, () => lstatSync(mark));
    if (stats !== undefined) return stats.isFile() ? stats : undefined;
    const [first, ...more] = readdirSync(path);
    const isUnfinished =
      first === undefined ||
      (more.length === 0 && first === basename(dirname(mark)) && readdirSync(dirname(mark)).length === 0);
    return isUnfinished ? stub : undefined;
  });
}
