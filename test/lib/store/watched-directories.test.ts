/** watched-directories.ts: what a program that deletes old files leaves behind is seen. */
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { mostWatched, parseWatched, type WatchedDirectory } from '../../../lib/core/entry-metadata.ts';
import * as watching from '../../../lib/store/watched-directories.ts';
import { withDirectory } from '../../../lib/system/directory.ts';
import { command } from '../../helpers/private-machine.ts';
import { forAll } from '../../helpers/property.ts';
import { assert, suite } from '../../helpers/suite.ts';

const test = suite('watched directories');

const pickWatched = (path: string): WatchedDirectory[] => withDirectory(path, watching.pickWatched);
const findHole = (path: string, watched: readonly WatchedDirectory[]): string | undefined =>
  withDirectory(path, (directory) => watching.findHole(directory, watched));

let root: string;
test.before.each(() => {
  root = mkdtempSync(join(tmpdir(), 'watched-'));
});
test.after.each(() => {
  rmSync(root, { recursive: true });
});

/** Lays out files, with times long ago, as unsquashfs does. */
function lay(files: readonly string[]): WatchedDirectory[] {
  for (const file of files) {
    mkdirSync(dirname(join(root, file)), { recursive: true });
    writeFileSync(join(root, file), '');
  }
  for (const name of readdirSync(root, { recursive: true, encoding: 'utf8' }).reverse())
    utimesSync(join(root, name), 1000, 1000);
  // As it is read back from the lock file.
  const watched = parseWatched(JSON.parse(JSON.stringify(pickWatched(root))) as unknown);
  assert.ok(watched !== undefined && watched.length > 0);
  return watched;
}

const image = [
  'bin/sh',
  'etc/passwd',
  'etc/fstab',
  'usr/bin/env',
  'usr/lib/python3/site/x.py',
  'opt/app/run',
  'README',
];

test('whatever name goes from a watched directory is missed', () => {
  for (const file of [...image, 'usr', 'usr/lib/python3', 'etc']) {
    const watched = lay(image);
    assert.is(findHole(root, watched), undefined);
    rmSync(join(root, file), { recursive: true });
    assert.match(
      findHole(root, watched) ?? '',
      /^its directory \/\S* (?:is gone|has \d+ names of \d+)$/,
      file,
    );
  }
});

test('each way of deleting by age leaves what is seen', () => {
  for (const how of [
    ['-mtime', '+30', '-delete'],
    ['-type', 'f', '-mtime', '+30', '-delete'],
    ['-mindepth', '1', '-mtime', '+7', '-exec', 'rm', '--recursive', '--force', '{}', '+'],
    ['-name', 'sh', '-delete'],
  ]) {
    const watched = lay(image);
    command('find', root, ...how);
    mkdirSync(root, { recursive: true });
    assert.ok(findHole(root, watched) !== undefined, how.join(' '));
  }
});

test('that it was used, or that something was added, is no hole', () => {
  const watched = lay(image);
  utimesSync(root, new Date(), new Date());
  for (const added of ['etc/resolv.conf', 'etc/mtab', 'dev', '.lock', 'usr/bin/new'])
    writeFileSync(join(root, added), '');
  assert.is(findHole(root, watched), undefined);
});

test('a directory in whose place something else is, is gone, and a symlink is not followed', () => {
  const watched = lay(image);
  const elsewhere = mkdtempSync(join(tmpdir(), 'elsewhere-'));
  renameSync(join(root, 'usr'), join(elsewhere, 'usr'));
  symlinkSync(join(elsewhere, 'usr'), join(root, 'usr'));
  assert.is(findHole(root, watched), 'its directory /usr is gone');
  rmSync(elsewhere, { recursive: true });
});

test('what is important is watched first, and not more than can be afforded', () => {
  const many = Array.from({ length: 200 }, (_, index) => `a${index}/f`);
  const watched = lay([...many, 'usr/bin/env', 'usr/local/bin/x', 'lib/x']);
  const paths = watched.map(({ path }) => path);
  for (const path of ['', 'usr', 'usr/bin', 'usr/local/bin', 'lib']) assert.ok(paths.includes(path), path);
  assert.ok(paths.length <= mostWatched);
  assert.ok(JSON.stringify(watched).length < 8 * 1024);
});

test('anything that is no such list is none', () => {
  const good = { path: 'usr/bin', mtimeMs: 1.5, names: 3 };
  assert.equal(parseWatched([good]), [good]);
  for (const path of ['/etc', '..', 'usr/../..', 'usr//bin', '.', 'a/', 'x'.repeat(121), 7])
    assert.is(parseWatched([{ ...good, path }]), undefined, String(path));
  for (const value of [
    undefined,
    null,
    'x',
    {},
    [null],
    [{}],
    Array.from({ length: mostWatched + 1 }, () => good),
  ])
    assert.is(parseWatched(value), undefined);
  forAll(200, (random) => {
    const text = random.mutation(JSON.stringify([good, good]));
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch {
      return;
    }
    // Whatever it says, looking is harmless.
    const watched = parseWatched(value);
    if (watched !== undefined) findHole(root, watched);
  });
});

test.run();
