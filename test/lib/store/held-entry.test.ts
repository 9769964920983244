/** Holding an entry while somebody else moves it: who holds, holds what the path leads to (I4). */
import {
  closeSync,
  fstatSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { settledLockMode } from '../../../lib/core/entry-metadata.ts';
import { JobFault } from '../../../lib/core/faults.ts';
import { entryName, lockPath } from '../../../lib/core/layout.ts';
import { holdEntry, touchEntry } from '../../../lib/store/held-entry.ts';
import { tryFlock } from '../../../lib/system/flock.ts';
import { assert, suite } from '../../helpers/suite.ts';

const user = { uid: process.getuid!(), gid: process.getgid!() };
const name = entryName(user.uid, '00deadbeef001122');

const test = suite('holdEntry()');

let directory: string;
let path: string;
const opened: number[] = [];

/** Publishes an entry at the path. */
function publish(): void {
  const aside = mkdtempSync(join(directory, '.aside-'));
  writeFileSync(lockPath(aside), '', { mode: settledLockMode });
  renameSync(aside, path);
}

/** Locks the published entry as the collector does. */
function lockLikeCollector(): number {
  const fd = openSync(lockPath(path), 'r');
  assert.ok(tryFlock(fd, 'exclusive'));
  opened.push(fd);
  return fd;
}

function release(fd: number): void {
  opened.splice(opened.indexOf(fd), 1);
  closeSync(fd);
}

test.before.each(() => {
  directory = mkdtempSync(join(tmpdir(), 'held-entry-'));
  path = join(directory, name);
});

test.after.each(() => {
  for (const fd of opened.splice(0)) closeSync(fd);
  rmSync(directory, { recursive: true });
});

/** Holds the entry, and gives the inode that is held; undefined: there is none to hold. */
async function hold(): Promise<number | undefined> {
  const held = await holdEntry(user, path, name, []);
  if (held === undefined) return undefined;
  opened.push(held.fd);
  return fstatSync(held.fd).ino;
}

test('holds what the path leads to, together with others', async () => {
  publish();
  const inode = lstatSync(lockPath(path)).ino;
  assert.equal([await hold(), await hold()], [inode, inode]);
  const collector = openSync(lockPath(path), 'r');
  opened.push(collector);
  assert.not(tryFlock(collector, 'exclusive'));
});

test('there is none without the entry, or without its lock file', async () => {
  assert.is(await hold(), undefined);
  mkdirSync(path);
  assert.is(await hold(), undefined);
});

test('one that the collector has locked, and then takes away, is gone', async () => {
  publish();
  const collector = lockLikeCollector();
  const holding = hold();
  // It has been refused: nothing of it runs before we give way.
  renameSync(path, `${path}.trashed`);
  release(collector);
  assert.is(await holding, undefined);
});

test('one that the collector has locked, and then spares, is held', async () => {
  publish();
  const collector = lockLikeCollector();
  const holding = hold();
  await sleep(0);
  release(collector);
  assert.is(await holding, lstatSync(lockPath(path)).ino);
});

test('one that was taken away and made anew is held in its new form, not in its old one', async () => {
  publish();
  const former = lstatSync(lockPath(path)).ino;
  const collector = lockLikeCollector();
  const holding = hold();
  renameSync(path, `${path}.trashed`);
  publish();
  release(collector);
  const inode = await holding;
  assert.is(inode, lstatSync(lockPath(path)).ino);
  assert.is.not(inode, former);
});

test('one whose lock file was replaced under the same entry is held by the new one', async () => {
  publish();
  const collector = lockLikeCollector();
  const holding = hold();
  rmSync(lockPath(path));
  writeFileSync(lockPath(path), '', { mode: settledLockMode });
  assert.is(await holding, lstatSync(lockPath(path)).ino);
  release(collector);
});

test('one that stays locked is given up', async () => {
  publish();
  lockLikeCollector();
  const fault = await assert.rejects(hold, JobFault, /has been locked exclusively for/);
  assert.is(fault.code, 'LOCK_TIMEOUT');
});

test('one with something mounted on it or in it is not touched', async () => {
  publish();
  const mount = { device: '0:99', root: '/', filesystem: 'fuse', superOptions: '' };
  for (const mountPoint of [path, `${path}/etc`, lockPath(path)]) {
    const holding = (): Promise<unknown> => holdEntry(user, path, name, [{ ...mount, mountPoint }]);
    const fault = await assert.rejects(holding, JobFault, /something is mounted on it/);
    assert.is(fault.code, 'ENTRY_DAMAGED');
  }
});

test('touchEntry() sets the time of an entry, and minds none that is gone or another thing', () => {
  publish();
  const before = Date.now();
  touchEntry(user, path);
  assert.ok(lstatSync(path).mtimeMs >= before - 1);
  touchEntry(user, `${path}-none`);
  writeFileSync(`${path}-file`, '');
  touchEntry(user, `${path}-file`);
});

test.run();
