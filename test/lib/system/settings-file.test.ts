/** settings-file.ts: whatever is in the file's place, a Prolog goes on with problems to tell. */
import {
  chmodSync,
  chownSync,
  existsSync,
  lchownSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { defaultConfigPath } from '../../../lib/core/settings.ts';
import { withUserIds } from '../../../lib/system/as-user.ts';
import { readSettings } from '../../../lib/system/settings-file.ts';
import { command } from '../../helpers/private-machine.ts';
import { assert, suite, unlessRoot } from '../../helpers/suite.ts';

const nobody = { uid: 65_534, gid: 65_534 };

const test = suite('readSettings()');
let root: string;
let path: string;

test.before.each(() => {
  root = mkdtempSync(join(tmpdir(), 'settings-test-'));
  path = join(root, 'x.conf');
});
test.after.each(() => {
  rmSync(root, { recursive: true });
});

/** Why the file could not be read; then the failure policy and the log target are the defaults. */
function unreadable(): string {
  const { settings, problems, onFailure, logTarget } = readSettings({ CONTAINER_CACHE_CONF: path });
  assert.is(settings, undefined);
  assert.equal([onFailure, logTarget], ['continue', 'syslog']);
  assert.is(problems.length, 1);
  const tail = '; want a file with at least container_cache_data_path=…';
  assert.ok(problems[0]?.startsWith(`Cannot read ${path}: `));
  assert.ok(problems[0]!.endsWith(tail), problems[0]);
  return problems[0]!.slice(`Cannot read ${path}: `.length, -tail.length);
}

test('reads the file that CONTAINER_CACHE_CONF names', () => {
  writeFileSync(path, 'container_cache_data_path=/raid/data\ngc_min_age=7\n');
  const { settings, problems } = readSettings({ CONTAINER_CACHE_CONF: path });
  assert.equal(problems, []);
  assert.is(settings?.basePath, '/raid/data');
  assert.is(settings!.gcMinAgeSeconds, 7);
});

test('a problem in the file is told with its path and line', () => {
  writeFileSync(path, '\non_failure=fail\nx=1\n');
  const { problems, onFailure } = readSettings({ CONTAINER_CACHE_CONF: path });
  assert.is(problems.length, 2);
  assert.ok(problems[0]?.startsWith(`${path}:3: unknown key "x"`));
  assert.is(onFailure, 'fail');
});

test('a file that is not there is a problem', () => {
  assert.is(unreadable(), 'no such file');
  path = join(root, 'none/x.conf');
  assert.is(unreadable(), 'no such file');
});

test('a directory, a FIFO and a device are problems, and none is waited for', () => {
  mkdirSync(path);
  assert.match(unreadable(), /not a regular file/);
  path = join(root, 'fifo');
  command('mkfifo', path);
  assert.match(unreadable(), /not a regular file/);
  path = '/dev/zero';
  assert.match(unreadable(), /not a regular file/);
});

test.unless(
  unlessRoot,
  'a symlink in place of the file is followed if nobody but root can change where it leads',
  () => {
    mkdirSync(join(root, 'a/b'), { recursive: true });
    writeFileSync(join(root, 'a/real'), 'container_cache_data_path=/raid/data\n', { mode: 0o644 });
    symlinkSync(join(root, 'a/b/next'), path);
    symlinkSync('../real', join(root, 'a/b/next'));
    const { settings, problems } = readSettings({ CONTAINER_CACHE_CONF: path });
    assert.equal([settings?.basePath, problems], ['/raid/data', []]);
  },
);

const spoilings: readonly [string, RegExp, (root: string) => void][] = [
  ["a user's symlink", /next is owned by uid 65534/, (at) => lchownSync(join(at, 'a/b/next'), 65_534, 0)],
  ["a user's file", /real is owned by uid 65534/, (at) => chownSync(join(at, 'a/real'), 65_534, 0)],
  ['a file that others can write', /real is .* mode 0666/, (at) => chmodSync(join(at, 'a/real'), 0o666)],
  ['a directory that others can write', /a\/b is .* mode 0777/, (at) => chmodSync(join(at, 'a/b'), 0o777)],
  ["a user's directory", /a is owned by uid 65534/, (at) => chownSync(join(at, 'a'), 65_534, 0)],
  ['nothing', /ENOENT/, (at) => rmSync(join(at, 'a/real'))],
  [
    'a directory',
    /not a regular file/,
    (at) => {
      rmSync(join(at, 'a/real'));
      mkdirSync(join(at, 'a/real'));
    },
  ],
  [
    'itself',
    /more than 40 symlinks/,
    (at) => {
      rmSync(join(at, 'a/b/next'));
      symlinkSync('next', join(at, 'a/b/next'));
    },
  ],
];

for (const [what, reason, spoil] of spoilings) {
  test.unless(unlessRoot, `a symlink that leads to ${what}, somewhere on its way, is a problem`, () => {
    mkdirSync(join(root, 'a/b'), { recursive: true });
    writeFileSync(join(root, 'a/real'), 'container_cache_data_path=/raid/data\n', { mode: 0o644 });
    symlinkSync(join(root, 'a/b/next'), path);
    symlinkSync('../real', join(root, 'a/b/next'));
    spoil(root);
    assert.match(unreadable(), reason);
  });
}

test('a file beyond all reason is a problem', () => {
  writeFileSync(path, `container_cache_data_path=/raid/data\n${'#'.repeat(256 * 1024)}`);
  assert.match(unreadable(), /longer than 262144 bytes/);
});

test.unless(unlessRoot, 'a file that may not be read is a problem', () => {
  writeFileSync(path, 'container_cache_data_path=/raid/data\n', { mode: 0o600 });
  command('chmod', '0755', root);
  withUserIds(nobody, () => {
    assert.match(unreadable(), /EACCES/);
  });
});

test.unless(
  existsSync(defaultConfigPath) ? `this machine has a ${defaultConfigPath}` : undefined,
  'without CONTAINER_CACHE_CONF the file is that of /etc/slurm',
  () => {
    path = '/etc/slurm/container-cache.conf';
    const { problems } = readSettings({});
    assert.ok(problems[0]?.startsWith(`Cannot read ${path}: no such file; `));
  },
);

test.run();
