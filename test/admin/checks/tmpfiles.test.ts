/** tmpfiles.ts: what systemd-tmpfiles deletes by age; where it is installed, it is asked. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { agingLine, parseTmpfiles, removingLine } from '../../../admin/checks/tmpfiles.ts';
import { assert, suite } from '../../helpers/suite.ts';

const test = suite('tmpfiles.d');

/** Of each: a file below `/R`, and whether the lines delete it. */
const cases: readonly (readonly [string, boolean])[] = [
  ['d /R - - - 1s', true],
  ['d /R - - - -', false],
  ['d /R', false],
  ['d /R/base - - - 1s', true],
  ['e /R/*/1000 - - - 1s', true],
  ['d /R - - - 1s\nx /R/base', false],
  ['d /R - - - 1s\nx /R/b*', false],
  ['d /R - - - 1s\nx /R/base/1000', false],
  ['d /R - - - 1s\nX /R/base', false],
  ['d /R - - - -\nX /R/base - - - 1s', true],
  ['d /R - - - 1s\nd /R/base - - - -', false],
  ['d /R - - - 1s\nx /R/bas', true],
  ['d /R - - - 1s\nx /R/base/*', false],
  ['d /R/bas - - - 1s', false],
  ['q /R 0755 root root 1s', true],
  ['z /R 0755 root root 1s', false],
];

test('a line of its own, or an exclusion, on the way to a file keeps what is above from it', () => {
  for (const [text, isDeleted] of cases)
    assert.is(
      agingLine(parseTmpfiles(text, 'f'), '/R/base/1000/.entry/bin/sh') !== undefined,
      isDeleted,
      text,
    );
});

test('systemd-tmpfiles does just that', () => {
  if (spawnSync('systemd-tmpfiles', ['--version']).status !== 0 || process.getuid?.() !== 0) return;
  for (const [text, isDeleted] of cases) {
    const root = mkdtempSync(join(tmpdir(), 'tmpfiles-'));
    try {
      const file = join(root, 'base/1000/.entry/bin/sh');
      mkdirSync(dirname(file), { recursive: true });
      writeFileSync(file, '');
      utimesSync(file, 1000, 1000);
      const conf = join(root, 'x.conf');
      // By the modification time alone: the change time cannot be set back.
      writeFileSync(conf, text.replaceAll('/R', root).replace('1s', 'm:1s'));
      const { status, stderr } = spawnSync('systemd-tmpfiles', ['--clean', conf], { encoding: 'utf8' });
      assert.is(status, 0, stderr);
      assert.is(existsSync(file), !isDeleted, `${text}: ${stderr}`);
    } finally {
      rmSync(root, { recursive: true });
    }
  }
});

test('an item tells its file, line and age; comments and lines of something else are none', () => {
  const [item, ...others] = parseTmpfiles(
    '# d /x - - - 1d\n\nd! "/raid/data/" 0755 root root 10d -\nbroken\n',
    'a.conf',
  );
  assert.equal(item, { file: 'a.conf', line: 3, type: 'd!', path: '/raid/data', age: '10d' });
  assert.equal(others, []);
});

test('what is removed at boot is told', () => {
  const at = (text: string): string | undefined => removingLine(parseTmpfiles(text, 'f'), '/R/base/x')?.type;
  assert.is(at('R! /R/*'), 'R!');
  assert.is(at('D /R - - - -'), 'D');
  assert.is(at('D /R/other - - - -\nr /R/base'), undefined);
});

test.run();
