/** files.ts against what an adversary puts in a file's place. */
import { once } from 'node:events';
import {
  closeSync,
  constants,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  mkdtempSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { errnoOf } from '../../../lib/system/errno.ts';
import { openRegularFile, readEnd, readSmallFile, readStart } from '../../../lib/system/files.ts';
import { command, enterPrivateMachine } from '../../helpers/private-machine.ts';
import { assert, suite, type Suite } from '../../helpers/suite.ts';

enterPrivateMachine();

let root: string;
const at = (name: string): string => join(root, name);
const openDescriptors = (): number => readdirSync('/proc/self/fd').length;

function inTemporaryRoot<State extends object>(test: Suite<State>): Suite<State> {
  test.before.each(() => {
    root = mkdtempSync(join(tmpdir(), 'files-test-'));
  });
  test.after.each(() => {
    rmSync(root, { recursive: true });
  });
  return test;
}

const open = inTemporaryRoot(suite('openRegularFile()'));

/** Refusing must neither wait nor leave a descriptor open. */
function refused(path: string, extraFlags = 0): Error {
  const before = openDescriptors();
  const error = assert.throws(() => openRegularFile(path, extraFlags), Error);
  assert.is(openDescriptors(), before);
  return error;
}

open('opens a file to read it', () => {
  writeFileSync(at('file'), 'text');
  const fd = openRegularFile(at('file'));
  assert.is(readFileSync(fd, 'utf8'), 'text');
  closeSync(fd);
});

open('makes a file if it is told to, with the permissions it is told', () => {
  closeSync(openRegularFile(at('made'), constants.O_CREAT));
  assert.is(statSync(at('made')).mode & 0o777, 0o600);
  closeSync(openRegularFile(at('other'), constants.O_CREAT, 0o644));
  assert.is(statSync(at('other')).mode & 0o777, 0o644);
  // What is there is taken as it is.
  closeSync(openRegularFile(at('other'), constants.O_CREAT));
  assert.is(statSync(at('other')).mode & 0o777, 0o644);
});

open('a FIFO is refused at once, though nobody writes to it', () => {
  command('mkfifo', at('fifo'));
  assert.match(refused(at('fifo')).message, /fifo: not a regular file$/);
  assert.match(refused(at('fifo'), constants.O_CREAT).message, /not a regular file$/);
});

open('a symlink is refused, to whatever it leads', () => {
  writeFileSync(at('file'), 'text');
  symlinkSync('file', at('link'));
  symlinkSync('nowhere', at('dangling'));
  for (const name of ['link', 'dangling']) {
    assert.is(errnoOf(refused(at(name))), 'ELOOP');
    assert.is(errnoOf(refused(at(name), constants.O_CREAT)), 'ELOOP');
  }
  // A dangling link would else be a way to make a file somewhere else.
  assert.equal(readdirSync(root).sort(), ['dangling', 'file', 'link']);
});

open('a directory, a device and a socket are refused', async () => {
  mkdirSync(at('directory'));
  assert.match(refused(at('directory')).message, /not a regular file$/);
  assert.match(refused('/dev/null').message, /^Cannot use \/dev\/null: not a regular file$/);
  const server = createServer().listen(at('socket'));
  await once(server, 'listening');
  assert.is(errnoOf(refused(at('socket'))), 'ENXIO');
  server.close();
  await once(server, 'close');
});

open.run();

const read = inTemporaryRoot(suite('readStart(), readEnd(), readSmallFile()'));

function withFile<T>(path: string, action: (fd: number) => T): T {
  const fd = openSync(path, 'r');
  try {
    return action(fd);
  } finally {
    closeSync(fd);
  }
}

read('the start and the end of a file have at most the length that was asked for', () => {
  const bytes = Buffer.from(Array.from({ length: 20_000 }, (_, index) => index % 251));
  writeFileSync(at('file'), bytes);
  for (const limit of [0, 1, 4095, 4096, 4097, 8192, 19_999, 20_000, 20_001, 100_000]) {
    withFile(at('file'), (fd) => {
      assert.ok(readStart(fd, limit).equals(bytes.subarray(0, limit)), `start ${limit}`);
      assert.ok(readEnd(fd, limit).equals(bytes.subarray(Math.max(0, bytes.length - limit))), `end ${limit}`);
    });
  }
});

read('an empty file has an empty start and end', () => {
  writeFileSync(at('file'), '');
  withFile(at('file'), (fd) => {
    assert.is(readStart(fd, 10).length, 0);
    assert.is(readEnd(fd, 10).length, 0);
  });
});

read('a small file is read as text, up to the limit and no further', () => {
  writeFileSync(at('file'), 'größe\n');
  assert.is(readSmallFile(at('file'), 8), 'größe\n');
  const error = assert.throws(() => readSmallFile(at('file'), 7), Error);
  assert.is(error.message, `Cannot read ${at('file')}: longer than 7 bytes`);
});

read('a file that has no length beforehand is read to its end', () => {
  const status = readSmallFile('/proc/self/status', 100_000) ?? '';
  assert.match(status, /^Name:\t[\s\S]*\nnonvoluntary_ctxt_switches:\t\d+\n$/);
});

read('a file that grows without end is given up at the limit', () => {
  truncate(at('huge'), 10 ** 12);
  assert.throws(() => readSmallFile(at('huge'), 1000), Error, /longer than 1000 bytes$/);
});

function truncate(path: string, bytes: number): void {
  command('truncate', `--size=${bytes}`, path);
}

read('what is not there is undefined; what may not be read is an error', () => {
  writeFileSync(at('file'), '');
  assert.is(readSmallFile(at('nothing'), 10), undefined);
  assert.is(readSmallFile(at('file/below'), 10), undefined);
  symlinkSync('file', at('link'));
  assert.is(errnoOf(assert.throws(() => readSmallFile(at('link'), 10), Error)), 'ELOOP');
});

read('reading leaves no descriptor open, whatever comes of it', () => {
  writeFileSync(at('file'), 'text');
  const before = openDescriptors();
  readSmallFile(at('file'), 10);
  readSmallFile(at('nothing'), 10);
  assert.throws(() => readSmallFile(at('file'), 1), Error);
  assert.is(openDescriptors(), before);
});

read.run();
