/**
 * Whether the base itself is at fault, when something in a user directory failed: there the cause may be the
 * user's own, who can mount a filesystem that says anything. So root tries it in the base, where no user is
 * in the way.
 */
import { closeSync, writeSync } from 'node:fs';
import { isUsedUp, NodeFault } from '../core/faults.ts';
import { diskRemedy } from '../core/filesystem-kinds.ts';
import { openDirectory, type Directory } from '../system/directory.ts';
import { errnoOf } from '../system/errno.ts';
import { tryFlock } from '../system/flock.ts';
import { openUnnamedFile } from '../system/unnamed-file.ts';

/** @returns DISK_FAILED, BASE_UNFIT, or undefined: nothing is wrong with it but that it may be full */
export function findBaseFault(base: Directory): NodeFault | undefined {
  const here = `/proc/self/fd/${base.fd}`;
  try {
    writeSomething(here);
  } catch (cause) {
    if (!isUsedUp(cause) && !cannotTell.includes(errnoOf(cause) ?? ''))
      return new NodeFault('DISK_FAILED', `Cannot write to "${base.path}"`, { cause });
  }
  try {
    flockSomething(`${here}/.`);
  } catch (cause) {
    if (!isUsedUp(cause))
      return new NodeFault('BASE_UNFIT', `flock does not work on "${base.path}"; ${diskRemedy}`, { cause });
  }
  return undefined;
}

/** Of a filesystem that knows no files without a name (open(2), O_TMPFILE). */
const cannotTell = ['ENOTSUP', 'EISDIR'];

function writeSomething(directory: string): void {
  const fd = openUnnamedFile(directory, 0o600);
  try {
    writeSync(fd, 'x');
  } finally {
    closeSync(fd);
  }
}

function flockSomething(directory: string): void {
  const { fd } = openDirectory(directory);
  try {
    tryFlock(fd, 'shared');
  } finally {
    closeSync(fd);
  }
}
