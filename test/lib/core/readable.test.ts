import {
  formatAgo,
  formatBar,
  formatBytes,
  formatCount,
  formatDuration,
  printable,
  renderTable,
} from '../../../lib/core/readable.ts';
import { assert, suite } from '../../helpers/suite.ts';

const test = suite('readable');

test('bytes have a unit of which there are few', () => {
  const cases: readonly (readonly [number, string])[] = [
    [0, '0 B'],
    [1023, '1023 B'],
    [1024, '1.0 KiB'],
    [10 * 1024 - 1, '10 KiB'],
    [1536, '1.5 KiB'],
    [1024 ** 2 - 1, '1.0 MiB'],
    [551 * 1024 ** 2, '551 MiB'],
    [1.84 * 1024 ** 4, '1.8 TiB'],
    [5000 * 1024 ** 5, '5000 PiB'],
  ];
  for (const [bytes, text] of cases) assert.is(formatBytes(bytes), text);
});

test('counts have commas', () => {
  assert.equal([0, 999, 1000, 1_234_567].map(formatCount), ['0', '999', '1,000', '1,234,567']);
});

test('durations have one unit, or two where the second says much', () => {
  const s = 1000;
  const cases: readonly (readonly [number, string])[] = [
    [-5, '0 ms'],
    [95.4, '95 ms'],
    [4234, '4.2 s'],
    [59.4 * s, '59 s'],
    [59.6 * s, '1 min'],
    [90 * s, '1 min'],
    [3600 * s, '1 h'],
    [(3 * 3600 + 20 * 60) * s, '3 h 20 min'],
    [(11 * 3600 + 20 * 60) * s, '11 h'],
    [(5 * 86_400 + 2 * 3600) * s, '5 d 2 h'],
    [40 * 86_400 * s, '40 d'],
  ];
  for (const [ms, text] of cases) assert.is(formatDuration(ms), text);
});

test('a time is told from now; clocks may differ a little', () => {
  const now = 1_700_000_000_000;
  assert.is(formatAgo(now - 5000, now), '5.0 s ago');
  assert.is(formatAgo(now + 30_000, now), 'now');
  assert.is(formatAgo(now + 7_200_000, now), 'in 2 h');
});

test('a bar is as full as the percent says, and shows the marks', () => {
  assert.is(formatBar(0, [], 10), '[..........]');
  assert.is(formatBar(55, [80, 100], 10), '[######..||]');
  assert.is(formatBar(130, [], 10), '[##########]');
});

test('columns are aligned, numbers at their end', () => {
  const rows = [
    ['NAME', 'SIZE'],
    ['a', '1'],
    ['longer', '1234'],
  ];
  assert.equal(renderTable(rows, [1]), ['NAME    SIZE', 'a          1', 'longer  1234']);
  assert.equal(renderTable([['a', '']]), ['a']);
  assert.equal(renderTable([]), []);
});

test('what would move the cursor is shown as question marks', () => {
  assert.is(printable('a\u001b[2Jb\nc\u202ed'), 'a?[2Jb c?d');
});

test.run();
