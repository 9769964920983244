/** path-cure.ts: the least that helps, and that leaves others their work. */
import { execFileSync } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { cureOf, cureOfBase } from '../../../lib/core/path-cure.ts';
import { assert, suite } from '../../helpers/suite.ts';

const test = suite('cureOf()');

test('a directory above that others may write gets the sticky bit, and stays writable', () => {
  for (const mode of [0o777, 0o775, 0o770, 0o2775])
    assert.is(
      cureOf({ path: '/scratch', uid: 0, mode, isDirectory: true, isEnd: false }),
      'chmod +t /scratch',
    );
  const owned = cureOf({ path: '/home/a', uid: 1000, mode: 0o755, isDirectory: true, isEnd: false });
  assert.match(owned, /^chown root \/home\/a \(uid 1000 can then no longer .*elsewhere$/);
  assert.match(
    cureOf({ path: '/s', uid: 7, mode: 0o1777, isDirectory: true, isEnd: false }),
    /^chown root \/s \(/,
  );
});

test('what a path leads to is closed to others', () => {
  assert.is(
    cureOf({ path: '/x/conf', uid: 0, mode: 0o666, isDirectory: false, isEnd: true }),
    'chmod go-w /x/conf',
  );
  assert.is(
    cureOf({ path: '/x/conf', uid: 5, mode: 0o644, isDirectory: false, isEnd: true }),
    'chown root /x/conf',
  );
  assert.is(
    cureOf({ path: '/x/conf', uid: 5, mode: 0o664, isDirectory: false, isEnd: true }),
    'chown root /x/conf && chmod go-w /x/conf',
  );
});

test("a base that is everybody's scratch is left to them", () => {
  for (const mode of [0o1777, 0o777]) {
    const cure = cureOfBase('/scratch', 0, mode);
    assert.match(
      cure,
      /install -d -m 0755 \/scratch\/container-cache, container_cache_data_path=\/scratch\/container-cache/,
    );
    assert.not.match(cure, /go-w/);
    assert.is(/chmod \+t/.test(cure), mode === 0o777);
  }
  assert.is(cureOfBase('/raid/cache', 0, 0o775), 'chmod go-w /raid/cache');
  assert.is(cureOfBase('/raid/cache', 1000, 0o755), 'chown root /raid/cache');
});

test('the commands do what they say', () => {
  if (process.getuid?.() !== 0) return;
  const root = mkdtempSync('/root/path-cure-');
  try {
    for (const mode of [0o777, 0o775, 0o772]) {
      const path = join(root, mode.toString(8));
      mkdirSync(path);
      chmodSync(path, mode);
      execFileSync('sh', ['-c', cureOf({ path, uid: 0, mode, isDirectory: true, isEnd: false })]);
      assert.is(statSync(path).mode & 0o7777, mode | 0o1000);
    }
  } finally {
    rmSync(root, { recursive: true });
  }
});

test.run();
