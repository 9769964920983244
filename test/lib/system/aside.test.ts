/** aside.ts: a file is replaced as a whole, whatever is in its place, and whatever the disk says. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { withUserIds } from '../../../lib/system/as-user.ts';
import { writeFileAtomically } from '../../../lib/system/aside.ts';
import { errnoOf } from '../../../lib/system/errno.ts';
import { readSmallFile } from '../../../lib/system/files.ts';
import {
  alice,
  command,
  enterPrivateMachine,
  machineRoot,
  mount,
  umount,
  unlessPrivateMachine,
} from '../../helpers/private-machine.ts';
import { assert, suite } from '../../helpers/suite.ts';

enterPrivateMachine();

let root: string;
const at = (name: string): string => join(root, name);
const openDescriptors = (): number => readdirSync('/proc/self/fd').length;

const write = suite('writeFileAtomically()');

write.before.each(() => {
  root = mkdtempSync(join(tmpdir(), 'aside-test-'));
});
write.after.each(() => {
  rmSync(root, { recursive: true });
});

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
  const module = join(import.meta.dirname, '../../../lib/system/aside.ts');
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
