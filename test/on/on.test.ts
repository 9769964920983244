/** on.sh, as far as it goes without a mirror: what it refuses, and that it makes nothing then. */
import { spawnSync } from 'node:child_process';
import { chmodSync, copyFileSync, existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { projectRoot } from '../../build/source-files.ts';
import { assert, suite, unlessRoot } from '../helpers/suite.ts';

const script = join(projectRoot, 'test/on/on.sh');
const test = suite('npm run test:on');

let directory: string;
test.before.each(() => {
  directory = mkdtempSync(join(tmpdir(), 'test-on-'));
  chmodSync(directory, 0o777);
});
test.after.each(() => {
  rmSync(directory, { recursive: true });
});

function refusal(command: readonly string[]): { status: number | null; stderr: string } {
  const roots = join(directory, 'roots');
  const [file = '', ...parameters] = command;
  const { status, stderr } = spawnSync(file, parameters, {
    encoding: 'utf8',
    env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', CONTAINER_CACHE_TEST_ROOTS: roots },
  });
  assert.not(existsSync(roots), 'it made the directory of roots');
  return { status, stderr };
}

test('without a release, or with a path for one, it says how it is used', () => {
  for (const parameters of [[], ['--keep'], ['../x']]) {
    const { status, stderr } = refusal(['bash', script, ...parameters]);
    assert.is(status, 2);
    assert.match(stderr, /^Usage: npm run test:on -- SUITE /);
  }
});

test.unless(unlessRoot, 'who is not root is told so', () => {
  // The checkout may be in root's home.
  const copy = join(directory, 'on.sh');
  copyFileSync(script, copy);
  const nobody = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups'];
  const { status, stderr } = refusal([...nobody, 'bash', copy, 'trixie']);
  assert.is(status, 1);
  assert.match(stderr, /^test:on: needs root/);
});

test.unless(unlessRoot, 'an option that it does not have is named', () => {
  const { status, stderr } = refusal(['bash', script, 'trixie', '--kepe']);
  assert.is(status, 1);
  assert.match(stderr, /^test:on: unknown option --kepe\n/);
});

test.run();
