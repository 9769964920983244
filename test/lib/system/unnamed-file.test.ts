/** unnamed-file.ts: files that nobody else can find. */
import { spawnSync } from 'node:child_process';
import {
  closeSync,
  constants,
  fstatSync,
  mkdtempSync,
  openSync,
  readSync,
  readdirSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { errnoOf } from '../../../lib/system/errno.ts';
import { openScratchFile, openUnnamedFile } from '../../../lib/system/unnamed-file.ts';
import { assert, suite } from '../../helpers/suite.ts';

const test = suite('unnamed files');
let directory: string;
const opened: number[] = [];

test.before(() => {
  directory = mkdtempSync(join(tmpdir(), 'unnamed-test-'));
});
test.after(() => {
  rmSync(directory, { recursive: true });
});
test.after.each(() => {
  for (const fd of opened.splice(0)) closeSync(fd);
});

function keep(fd: number | undefined): number {
  if (fd === undefined) throw new Error('no file');
  opened.push(fd);
  return fd;
}

function check(fd: number): void {
  writeSync(fd, 'hello', 0);
  const buffer = Buffer.alloc(10);
  assert.is(readSync(fd, buffer, 0, 10, 0), 5);
  assert.is(buffer.toString('latin1', 0, 5), 'hello');
  assert.is(fstatSync(fd).nlink, 0);
}

test('can be written and read, and have no name', () => {
  check(keep(openUnnamedFile(directory, 0o600)));
  assert.equal(readdirSync(directory), []);
});

test('can be given no name later', () => {
  const link = (fd: number, name: string): number | null =>
    spawnSync('ln', ['--logical', `/proc/${process.pid}/fd/${fd}`, join(directory, name)]).status;
  assert.is.not(link(keep(openUnnamedFile(directory, 0o600)), 'name'), 0);
  assert.equal(readdirSync(directory), []);
  // With O_TMPFILE alone (open(2)) it could be.
  const ordinary = keep(openSync(directory, 0o20000000 | constants.O_DIRECTORY | constants.O_RDWR, 0o600));
  assert.is(link(ordinary, 'name'), 0);
  rmSync(join(directory, 'name'));
});

test('have the permissions that were asked for', () => {
  assert.is(fstatSync(keep(openUnnamedFile(directory, 0o700))).mode & 0o777, 0o700);
  assert.is(fstatSync(keep(openScratchFile())).mode & 0o777, 0o600);
});

test('are refused where the filesystem has none', () => {
  const error = assert.throws(() => openUnnamedFile('/proc', 0o600), Error);
  assert.ok(
    ['EOPNOTSUPP', 'ENOTSUP', 'EISDIR', 'ENOENT', 'EACCES'].includes(errnoOf(error) ?? ''),
    String(error),
  );
});

test('a scratch file is to be had, one after the other', () => {
  const [first, second] = [keep(openScratchFile()), keep(openScratchFile())];
  check(first);
  check(second);
  assert.is.not(fstatSync(first).ino, fstatSync(second).ino);
});

test.run();
