/**
 * Stubs: the small directories that the enroot wrapper puts in the place of a container (enroot/enroot). enroot removes them like
 * any container; here is what is left to root, when a step did not come to that.
 */
import { lstatSync } from 'node:fs';
import { stubMarkPath } from '../core/layout.ts';
import { inDirectory, type Directory } from '../system/directory.ts';
import { isGone, unlessErrno } from '../system/errno.ts';

/**
 * Whether a name of a user directory is a stub, and not a container that enroot unpacked. To be asked with the user's ids: a user
 * may mark anything of their own as a stub, and nothing else.
 */
export function isStub(userDirectory: Directory, name: string): boolean {
  const path = inDirectory(userDirectory, name);
  const mark = unlessErrno([...isGone, 'EACCES', 'ELOOP'], () => {
    return lstatSync(path).isDirectory() && lstatSync(stubMarkPath(path)).isFile();
  });
  return mark === true;
}
