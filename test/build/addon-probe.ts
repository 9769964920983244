/**
 * A program for executable.test.ts, built as container-cache is: takes the exclusive lock on the file
 * named by its first parameter, and prints what came of it and by which way.
 */
import { openSync } from 'node:fs';
import { tryFlock } from '../../lib/system/flock.ts';
import { loadFsExt } from '../../lib/system/native-addon.ts';

const [, , lockPath = ''] = process.argv;
let way = 'addon';
try {
  loadFsExt();
} catch {
  way = 'command';
}
const isLocked = tryFlock(openSync(lockPath, 'r'), 'exclusive');
process.stdout.write(`${isLocked ? 'locked' : 'refused'} by ${way}\n`);
