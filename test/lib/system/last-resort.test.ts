/** last-resort.ts: no end of a Prolog or Epilog that nobody planned may drain the node. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { projectRoot } from '../../../build/source-files.ts';
import { assert, suite } from '../../helpers/suite.ts';

const test = suite('last resort');
let directory: string;

test.before(() => {
  directory = mkdtempSync(join(tmpdir(), 'last-resort-test-'));
});
test.after(() => {
  rmSync(directory, { recursive: true });
});

/** Runs a script under the name of one of our programs, with its own module first. */
function run(program: string, script: string, options: readonly string[] = []): number | null {
  const path = join(directory, program);
  const module = join(projectRoot, 'lib/system/last-resort.ts');
  writeFileSync(`${path}.mts`, `import { guardAgainstCrash } from '${module}';\n${script}`);
  const { status } = spawnSync(process.execPath, [...options, `${path}.mts`], {
    env: { PATH: '/nonexistent' },
    stdio: 'ignore',
  });
  return status;
}

const ends: Readonly<Record<string, string>> = {
  'an exception': `throw new Error('x');`,
  'an exception later': `setTimeout(() => { throw new Error('x'); }, 1);`,
  'what is thrown without being an error': `throw null;`,
  'a rejection': `void Promise.reject(new Error('x'));`,
  'a stack overflow': `const f = () => f() + 1; f();`,
  'an event of an error that nobody hears': `process.stderr.emit('error', new Error('EPIPE'));`,
};

for (const [name, script] of Object.entries(ends))
  test(`${name} ends Prolog and Epilog with 0, and other programs with an error`, () => {
    assert.is(run('prolog', script), 0);
    assert.is(run('50-epilog', script), 0);
    assert.is.not(run('container-cache', script), 0);
  });

const crashes: Readonly<Record<string, string>> = {
  'an abort': 'process.abort();',
  'a heap that is full': 'const all = []; for (;;) all.push(new Array(1e5).fill(all.length));',
  'a segmentation fault': `process.kill(process.pid, 'SIGSEGV'); setTimeout(() => {}, 60_000);`,
};

for (const [name, script] of Object.entries(crashes))
  test(`${name} ends Prolog and Epilog with 0, and other programs by its signal`, () => {
    const guarded = `guardAgainstCrash();\n${script}`;
    const options = ['--max-old-space-size=30', '--max-semi-space-size=1'];
    assert.is(run('prolog', guarded, options), 0);
    assert.is.not(run('container-cache', guarded, options), 0);
  });

test.run();
