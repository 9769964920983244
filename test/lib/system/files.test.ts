/** files.ts against what an adversary puts in a file's place, and against a full disk. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  constants,
  lstatSync,
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
import process from 'node:process';
import { withUserIds } from '../../../lib/system/as-user.ts';
import { errnoOf } from '../../../lib/system/errno.ts';
import {
  openRegularFile,
  readEnd,
  readSmallFile,
  readStart,
  writeFileAtomically,
} from '../../../lib/system/files.ts';
import {
  alice,
  command,
  enterPrivateMachine,
  machineRoot,
  mount,
  umount,
  unlessPrivateMachine,
} from '../../helpers/private-machine.ts';
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

const write = inTemporaryRoot(suite('writeFileAtomically()'));

write('makes a file of that text and mode, whatever the umask', () => {
  const umask = process.umask(0o077);
  try {
    writeFileAtomically(at('file'), 'größe\n', { mode: 0o644 });
  } finally {
    process.umask(umask);
  }
  assert.is(readFileSync(at('file'), 'utf8'), 'größe\n');
  assert.is(statSync(at('file')).mode & 0o7777, 0o644);
  assert.equal(readdirSync(root), ['file']);
});

write('who reads while it is replaced reads the old text to its end', () => {
  writeFileAtomically(at('file'), 'the old text', { mode: 0o600 });
  const fd = openSync(at('file'), 'r');
  writeFileAtomically(at('file'), 'new', { mode: 0o600 });
  assert.is(readFileSync(fd, 'utf8'), 'the old text');
  assert.is(readFileSync(at('file'), 'utf8'), 'new');
  closeSync(fd);
});

write('a symlink in the way is replaced, not followed', () => {
  writeFileSync(at('precious'), 'precious');
  symlinkSync('precious', at('file'));
  writeFileAtomically(at('file'), 'text', { mode: 0o600 });
  assert.ok(lstatSync(at('file')).isFile());
  assert.is(readFileSync(at('precious'), 'utf8'), 'precious');
});

write('where the name is taken by a directory, nothing is left beside it', () => {
  mkdirSync(at('file'));
  const before = openDescriptors();
  const error = assert.throws(() => writeFileAtomically(at('file'), 'text', { mode: 0o600 }), Error);
  assert.is(errnoOf(error), 'EISDIR');
  assert.equal(readdirSync(root), ['file']);
  assert.is(openDescriptors(), before);
});

write('where there is no directory, the error says so', () => {
  const error = assert.throws(() => writeFileAtomically(at('a/b'), 'text', { mode: 0o600 }), Error);
  assert.is(errnoOf(error), 'ENOENT');
});

write.unless(unlessPrivateMachine, 'gives the file to a group, and leaves the owner', () => {
  writeFileAtomically(at('file'), 'text', { mode: 0o640, gid: alice.gid });
  const { uid, gid, mode } = statSync(at('file'));
  assert.equal([uid, gid, mode & 0o7777], [0, alice.gid, 0o640]);
});

write.unless(unlessPrivateMachine, 'on a full disk the old text stays, and nothing is left beside it', () => {
  const full = join(machineRoot, 'full');
  mkdirSync(full);
  mount('--types', 'tmpfs', '--options', 'size=16k', 'tmpfs', full);
  try {
    writeFileAtomically(join(full, 'file'), 'old', { mode: 0o600 });
    const before = openDescriptors();
    const error = assert.throws(
      () => writeFileAtomically(join(full, 'file'), 'x'.repeat(100_000), { mode: 0o600 }),
      Error,
    );
    assert.is(errnoOf(error), 'ENOSPC');
    assert.is(readFileSync(join(full, 'file'), 'utf8'), 'old');
    assert.equal(readdirSync(full), ['file']);
    assert.is(openDescriptors(), before);
  } finally {
    umount(full);
  }
});

write.unless(unlessPrivateMachine, 'as a user it writes where the user may, and only there', () => {
  mkdirSync(join(machineRoot, 'open'));
  command('chown', `${alice.uid}:${alice.gid}`, join(machineRoot, 'open'));
  withUserIds(alice, () => {
    writeFileAtomically(join(machineRoot, 'open/file'), 'text', { mode: 0o600 });
  });
  assert.is(statSync(join(machineRoot, 'open/file')).uid, alice.uid);
  const error = assert.throws(
    () =>
      withUserIds(alice, () => {
        writeFileAtomically(join(machineRoot, 'file'), 'text', { mode: 0o600 });
      }),
    Error,
  );
  assert.is(errnoOf(error), 'EACCES');
});

write('many writers at once leave one whole text and nothing else', async () => {
  const module = join(import.meta.dirname, '../../../lib/system/files.ts');
  const program = at('writer.ts');
  writeFileSync(
    program,
    `import { writeFileAtomically } from ${JSON.stringify(module)};
     const text = process.argv[2].repeat(10_000);
     for (let turn = 0; turn < 200; turn++) writeFileAtomically(${JSON.stringify(at('file'))}, text, { mode: 0o600 });`,
  );
  const writers = ['a', 'b', 'c'].map((letter) =>
    spawn(process.execPath, [program, letter], { stdio: 'inherit' }),
  );
  const ends = writers.map((writer) => once(writer, 'exit'));
  const texts = new Set<string>();
  let running = writers.length;
  for (const end of ends) void end.then(() => running--);
  while (running > 0) {
    const text = readSmallFile(at('file'), 100_000);
    if (text !== undefined) texts.add(text);
    await new Promise((resolve) => {
      setImmediate(resolve);
    });
  }
  assert.equal(
    (await Promise.all(ends)).map(([code]) => code as number),
    [0, 0, 0],
  );
  for (const text of texts) assert.match(text, /^(?:a{10000}|b{10000}|c{10000})$/);
  assert.ok(texts.size > 0);
  assert.equal(readdirSync(root).sort(), ['file', 'writer.ts']);
});

write.run();
