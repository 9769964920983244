/**
 * A program for executable.test.ts, built as container-cache is: takes the exclusive lock on the file
 * named by its first parameter, and prints what came of it and by which way.
 */
import { openSync } from 'node:fs';
import { tryFlock } from '../../lib/system/flock.ts';
import { loadBeneath, loadFsExt } from '../../lib/system/native-addon.ts';

const [, , lockPath = ''] = process.argv;
let way = 'addon';
try {
  // Both, in this order: neither may be taken for the other.
  if (loadBeneath().openPath(0, '..', 0) >= 0) throw new Error('It leads out of a directory');
  loadFsExt();
} catch {
  way = 'command';
}
const isLocked = tryFlock(openSync(lockPath, 'r'), 'exclusive');
process.stdout.write(`${isLocked ? 'locked' : 'refused'} by ${way}\n`);
