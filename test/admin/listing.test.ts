/** What makes a tree differ from its image, and what does not. */
import { ListingComparison } from '../../admin/listing.ts';
import { assert, suite } from '../helpers/suite.ts';

const test = suite('listings');

function compare(
  image: readonly string[],
  tree: readonly string[],
): ReturnType<ListingComparison['difference']> {
  const comparison = new ListingComparison();
  for (const line of image) comparison.addOfImage(line);
  for (const line of tree) comparison.addOfTree(line);
  return comparison.difference();
}

const image = [
  'drwxr-xr-x 0/0                      69 2026-11-24 18:06 squashfs-root',
  '-rwsr-xr-x 0/0                       3 2026-11-24 18:06 squashfs-root/a b',
  'lrwxrwxrwx 0/0                       1 2026-11-24 18:06 squashfs-root/l -> a',
  'crw-r--r-- 0/0                    1, 3 2026-11-24 18:06 squashfs-root/null',
  '-rw-r--r-- 0/0                       1 2026-11-24 18:06 squashfs-root/new',
  'line',
  'd---r-xr-x 0/0                       3 2026-11-24 18:06 squashfs-root/sub',
  '-rw------- 0/0                       9 2026-11-24 18:06 squashfs-root/.pyxis_cache_lock',
];
const tree = [
  'lrwxrwxrwx 1 2026-11-24 18:06 /l -> a',
  'drwxr-xr-x 4096 2026-11-25 10:00 /sub',
  '-rw-r--r-- 1 2026-11-24 18:06 /new',
  'line',
  '-rwxr-xr-x 3 2026-11-24 18:06 /a b',
  '-rw------- 170 2026-11-25 10:00 /.pyxis_cache_lock',
];

test('what unpacking as a user changes is no difference', () => {
  assert.equal(compare(image, tree), { missing: [], extra: [] });
});

test('a file that is gone, new, of another size, time or permission, and another target are differences', () => {
  for (const [from, to] of [
    ['/a b', '/a c'],
    ['xr-x 3 2026', 'xr-x 4 2026'],
    ['3 2026-11-24', '3 2026-11-23'],
    ['-rwxr-xr-x 3', '-rwxr-xrwx 3'],
    ['l -> a', 'l -> /etc/shadow'],
    ['drwxr-xr-x 4096', '-rwxr-xr-x 4096'],
  ] as const) {
    const changed = tree.map((line) => line.replace(from, to));
    assert.not.equal(changed, tree);
    const { missing, extra } = compare(image, changed);
    assert.equal([missing.length, extra.length], [1, 1], `${from} → ${to}`);
  }
  assert.is(compare(image, tree.slice(1)).missing.length, 1);
  assert.is(compare(image, [...tree, '-rw-r--r-- 0 2026-11-24 18:06 /x']).extra.length, 1);
});

test.run();
