/** The test runner notices every way in which a test file can fail, and those in which uvu stays green. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { runTestFiles } from '../../build/test.ts';
import { assert, suite } from '../helpers/suite.ts';

const uvuPath = join(import.meta.dirname, '../../node_modules/uvu/dist/index.mjs');
const suitePath = join(import.meta.dirname, '../helpers/suite.ts');
const IMPORT_UVU = `import { suite } from ${JSON.stringify(uvuPath)};\nconst test = suite('s');\n`;
const IMPORT_SUITE = `import { assert, suite } from ${JSON.stringify(suitePath)};\nconst test = suite('s');\n`;

let directory: string;

/** Runs test files with these texts and returns the sums and what was printed. */
async function runTexts(...texts: string[]): Promise<{ counts: [number, number, number]; printed: string }> {
  const paths = texts.map((text, index) => {
    const path = join(directory, `${index}.test.ts`);
    writeFileSync(path, text);
    return path;
  });
  const lines: string[] = [];
  const { passed, failed, skipped } = await runTestFiles(paths, (line) => lines.push(line));
  return { counts: [passed, failed, skipped], printed: lines.join('\n') };
}

const test = suite('the test runner');

test.before.each(() => {
  directory = mkdtempSync(join(tmpdir(), 'runner-test-'));
});

test.after.each(() => {
  rmSync(directory, { recursive: true });
});

test('adds up the files and shows nothing of those that pass', async () => {
  const passing = `${IMPORT_SUITE} test('a', () => { console.log('chatter'); }); test('b', async () => {}); test.run();`;
  const { counts, printed } = await runTexts(passing, passing);
  assert.equal(counts, [4, 0, 0]);
  assert.not.match(printed, /chatter|FAIL/);
});

test('shows all that a failed file printed', async () => {
  const { counts, printed } = await runTexts(
    `${IMPORT_SUITE} test('a', () => { console.error('clue'); assert.is(1, 2); }); test('b', () => {}); test.run();`,
  );
  assert.equal(counts, [1, 1, 0]);
  assert.match(printed, /clue/);
  assert.match(printed, /Expected values to be strictly equal/);
});

test('fails an async test that rejects', async () => {
  const { counts } = await runTexts(
    `${IMPORT_SUITE} test('a', async () => { throw new Error('late'); }); test.run();`,
  );
  assert.equal(counts, [0, 1, 0]);
});

test('prints why a test is skipped', async () => {
  const { counts, printed } = await runTexts(
    `${IMPORT_SUITE} test('a', () => {}); test.unless('needs a moon', 'b', () => {}); test.run();`,
  );
  assert.equal(counts, [1, 0, 1]);
  assert.match(printed, /skipped: s b: needs a moon/);
});

test('accepts a file that skips all of its tests, hooks included', async () => {
  const { counts, printed } = await runTexts(
    `import { suite } from ${JSON.stringify(suitePath)};
     const test = suite('s', { skip: 'needs root' });
     test.before(() => { throw new Error('set up nevertheless'); });
     test('a', () => {}); test.run();`,
  );
  assert.equal(counts, [0, 0, 1]);
  assert.match(printed, /needs root/);
});

/** Name, text, what the runner says of it. Each of them counts as at least one failure. */
const FAULTS: [string, string, RegExp][] = [
  ['is empty', '', /printed no summary/],
  ['has no test', `${IMPORT_UVU} test.run();`, /has no test/],
  ['is no program', 'export const = 1;', /exit code 1/],
  ['throws before its tests', `${IMPORT_SUITE} throw new Error('early');`, /early/],
  [
    "has a throwing before hook of uvu's own",
    `${IMPORT_UVU} test.before(() => { throw new Error(); }); test('a', () => {}); test.run();`,
    /did not run/,
  ],
  [
    'has a throwing before hook',
    `${IMPORT_SUITE} test.before(() => { throw new Error('no set-up'); }); test('a', () => {}); test.run();`,
    /no set-up/,
  ],
  [
    'has a throwing after hook',
    `${IMPORT_SUITE} test.after(() => { throw new Error('no clean-up'); }); test('a', () => {}); test.run();`,
    /no clean-up/,
  ],
  [
    'has a throwing before.each hook',
    `${IMPORT_SUITE} test.before.each(() => { throw new Error('no set-up'); }); test('a', () => {}); test.run();`,
    /no set-up/,
  ],
  [
    'has a throwing after.each hook',
    `${IMPORT_SUITE} test.after.each(() => { throw new Error('no clean-up'); }); test('a', () => {}); test('b', () => {}); test.run();`,
    /no clean-up/,
  ],
  [
    'never runs a suite',
    `${IMPORT_SUITE} test('a', () => {}); test.run(); const other = suite('other'); other('b', () => {});`,
    /"other" was defined with 1 tests and never run/,
  ],
  ['never runs its only suite', `${IMPORT_SUITE} test('a', () => {});`, /never run/],
  [
    'adds a test after the run was asked for',
    `${IMPORT_SUITE} test('a', () => {}); test.run(); test('b', () => {});`,
    /never run/,
  ],
  [
    'exits early with 0',
    `${IMPORT_SUITE} test('a', () => {}); test('b', () => { process.exit(0); }); test.run();`,
    /printed no summary|exit code/,
  ],
  [
    'waits for what never comes',
    `${IMPORT_SUITE} test('a', () => new Promise(() => {})); test.run();`,
    /printed no summary|exit code/,
  ],
  [
    'rejects outside of a test',
    `${IMPORT_SUITE} test('a', () => { void Promise.reject(new Error('stray')); }); test.run();`,
    /stray/,
  ],
  [
    'expects one error and meets another',
    `${IMPORT_SUITE} test('a', () => { assert.throws(() => { throw new Error('x'); }, TypeError); }); test.run();`,
    /Expected a TypeError/,
  ],
  [
    'expects an error and meets none',
    `${IMPORT_SUITE} test('a', async () => { await assert.rejects(async () => {}, TypeError); }); test.run();`,
    /nothing was thrown/,
  ],
  [
    'prints a second summary',
    `${IMPORT_SUITE} test('a', () => { console.log('\\n  Total:     9\\n  Passed:    9\\n  Skipped:   0\\n  Duration:  1ms'); }); test.run();`,
    /more than one summary/,
  ],
];

for (const [fault, text, said] of FAULTS) {
  test(`fails a file that ${fault}`, async () => {
    const { counts, printed } = await runTexts(text);
    assert.ok(counts[1] >= 1, printed);
    assert.match(printed, /^FAIL /);
    assert.match(printed, said);
  });
}

test('ends a file that takes too long, and whatever it started', async () => {
  const childPath = join(directory, 'child');
  const { counts, printed } = await runTexts(
    `// test: timeout 5 s
     ${IMPORT_SUITE}
     import { spawn } from 'node:child_process';
     import { writeFileSync } from 'node:fs';
     test('a', async () => {
       const child = spawn('sleep', ['infinity'], { detached: true, stdio: 'inherit' });
       writeFileSync(${JSON.stringify(childPath)}, String(child.pid));
       await new Promise((resolve) => setTimeout(resolve, 600_000));
     });
     test.run();`,
  );
  assert.equal(counts, [0, 1, 0]);
  assert.match(printed, /not done after 5 s/);
  await untilGone(Number(readFileSync(childPath, 'utf8')));
});

test('fails a file that leaves a process behind, in whatever session, and ends the process', async () => {
  const childPath = join(directory, 'child');
  const { counts, printed } = await runTexts(
    `${IMPORT_SUITE}
     import { spawn } from 'node:child_process';
     import { writeFileSync } from 'node:fs';
     test('a', () => {
       const child = spawn('sleep', ['infinity'], { detached: true, stdio: 'ignore' });
       writeFileSync(${JSON.stringify(childPath)}, String(child.pid));
       child.unref();
     });
     test.run();`,
  );
  assert.equal(counts, [1, 1, 0]);
  assert.match(printed, /left processes behind: \d+ sleep infinity/);
  await untilGone(Number(readFileSync(childPath, 'utf8')));
});

test('runs a serial file while no other runs', async () => {
  const tracePath = join(directory, 'trace');
  const traced = `${IMPORT_SUITE}
    import { appendFileSync } from 'node:fs';
    test('a', async () => {
      appendFileSync(${JSON.stringify(tracePath)}, '(');
      await new Promise((resolve) => setTimeout(resolve, 100));
      appendFileSync(${JSON.stringify(tracePath)}, ')');
    });
    test.run();`;
  const { counts } = await runTexts(
    `// test: serial\n${traced}`,
    `// test: serial, timeout 9 s\n${traced}`,
    traced,
  );
  assert.equal(counts, [3, 0, 0]);
  assert.is(readFileSync(tracePath, 'utf8'), '()()()');
});

test('refuses a directive that it does not know', async () => {
  await assert.rejects(
    runTexts('// test: timeout 9 minutes'),
    Error,
    /"\/\/ test: timeout 9 minutes" is neither/,
  );
});

async function untilGone(pid: number): Promise<void> {
  assert.ok(pid > 1);
  while (isRunning(pid)) await sleep(5);
}

/** A zombie has ended: whether an orphan is reaped is up to the machine's first process. */
function isRunning(pid: number): boolean {
  try {
    return !/^State:\tZ/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

test.run();
