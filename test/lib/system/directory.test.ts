/** directory.ts: what was opened stays what it is, whatever somebody does to its path. */
import {
  closeSync,
  fstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { inDirectory, openDirectory, withDirectory } from '../../../lib/system/directory.ts';
import { errnoOf, unlessErrno } from '../../../lib/system/errno.ts';
import { assert, suite } from '../../helpers/suite.ts';

const test = suite('directory');
let root: string;

test.before.each(() => {
  root = mkdtempSync(join(tmpdir(), 'directory-test-'));
});
test.after.each(() => {
  rmSync(root, { recursive: true });
});

const errnoOfOpening = (path: string): string | undefined =>
  errnoOf(assert.throws(() => closeSync(openDirectory(path).fd), Error));

test('is opened with what fstat tells of it', () => {
  const directory = openDirectory(root);
  assert.is(directory.path, root);
  assert.is(directory.stats.ino, fstatSync(directory.fd).ino);
  assert.ok(directory.stats.isDirectory());
  closeSync(directory.fd);
});

test('a symlink is refused, to whatever it leads', () => {
  mkdirSync(join(root, 'real'));
  symlinkSync('real', join(root, 'link'));
  symlinkSync('nowhere', join(root, 'dangling'));
  symlinkSync('loop', join(root, 'loop'));
  for (const name of ['link', 'dangling', 'loop']) {
    assert.ok(['ENOTDIR', 'ELOOP'].includes(errnoOfOpening(join(root, name)) ?? ''), name);
  }
});

test('a file is refused, and what is not there', () => {
  writeFileSync(join(root, 'file'), '');
  assert.is(errnoOfOpening(join(root, 'file')), 'ENOTDIR');
  assert.is(errnoOfOpening(join(root, 'nothing')), 'ENOENT');
});

test('stays the same directory when it is renamed and another takes its name', () => {
  const path = join(root, 'a');
  mkdirSync(path);
  writeFileSync(join(path, 'name'), 'the first');
  const directory = openDirectory(path);
  renameSync(path, join(root, 'b'));
  mkdirSync(path);
  writeFileSync(join(path, 'name'), 'the second');
  assert.is(readFileSync(inDirectory(directory, 'name'), 'utf8'), 'the first');
  writeFileSync(inDirectory(directory, 'made'), '');
  assert.equal(readdirSync(path), ['name']);
  assert.equal(readdirSync(join(root, 'b')).sort(), ['made', 'name']);
  closeSync(directory.fd);
});

test('stays the same directory when a symlink takes its name', () => {
  const path = join(root, 'a');
  mkdirSync(path);
  const directory = openDirectory(path);
  renameSync(path, join(root, 'b'));
  mkdirSync(join(root, 'elsewhere'));
  symlinkSync('elsewhere', path);
  mkdirSync(inDirectory(directory, 'made'));
  assert.equal(readdirSync(join(root, 'elsewhere')), []);
  assert.equal(readdirSync(join(root, 'b')), ['made']);
  closeSync(directory.fd);
});

test('opens a directory in an open directory, and shows the path it is known by', () => {
  const path = join(root, 'a');
  mkdirSync(path);
  withDirectory(root, (outer) => {
    const inner = openDirectory(inDirectory(outer, 'a'), path);
    assert.is(inner.path, path);
    assert.is.not(inner.stats.ino, outer.stats.ino);
    closeSync(inner.fd);
  });
});

test('withDirectory() hands on the result and closes, also after a throw', () => {
  let fd = -1;
  const isOpen = (): boolean => unlessErrno(['EBADF'], () => fstatSync(fd)) !== undefined;
  const result = withDirectory(root, (directory) => {
    ({ fd } = directory);
    assert.ok(isOpen());
    return 7;
  });
  assert.is(result, 7);
  assert.not.ok(isOpen());
  assert.throws(
    () =>
      withDirectory(root, (directory) => {
        ({ fd } = directory);
        throw new RangeError('x');
      }),
    RangeError,
  );
  assert.not.ok(isOpen());
});

test.run();
