/**
 * `npm run ok [-- CHECK…]`: every check that the tree must pass, or the named ones.
 *
 * All checks run, whatever the earlier ones find; each ends in one line, with its output where it
 * failed. The closing line counts the tests, and each other check as one.
 */
import { spawn } from 'node:child_process';
import { accessSync, constants } from 'node:fs';
import { delimiter, dirname, join } from 'node:path';
import { printCounts, type Counts } from './counts.ts';
import { cSources, projectRoot, shellScripts } from './source-files.ts';
import { earlierResult, runAllTests, runTestFiles } from './test.ts';

/**
 * Set by .ci/run, which has just run the tests: then their result is taken if no source has changed since.
 */
const REUSE_TESTS_VARIABLE = 'CONTAINER_CACHE_REUSE_TESTS';

interface Command {
  file: string;
  parameters: string[];
}

interface Outcome extends Counts {
  /** What there is to say besides the verdict. */
  notes: string[];
  /** The check has failed, but in a run that has counted its failures already. */
  countedEarlier?: boolean;
}

function tool(path: string, ...parameters: string[]): Command {
  return { file: process.execPath, parameters: [join(projectRoot, 'node_modules', path), ...parameters] };
}

export function formatCommands(mode: 'check' | 'write'): Command[] {
  return [
    tool('prettier/bin/prettier.cjs', '--log-level', 'warn', `--${mode}`, '.'),
    { file: 'shfmt', parameters: [mode === 'check' ? '--diff' : '--write', ...shellScripts()] },
  ];
}

const nodeHeaders = join(dirname(process.execPath), '../include/node');

function lintCommands(): Command[] {
  return [
    tool('eslint/bin/eslint.js', '--max-warnings', '0', '.'),
    { file: 'shellcheck', parameters: ['--external-sources', ...shellScripts()] },
    {
      file: 'cc',
      parameters: ['@build/c-flags', '-fsyntax-only', `-I${nodeHeaders}`, ...cSources()],
    },
  ];
}

/** What it found out is kept for the next run, which then looks at what has changed since. */
function typesCommand(): Command {
  const kept = join(projectRoot, 'node_modules/.cache/container-cache/types.tsbuildinfo');
  return tool(
    'typescript/bin/tsc',
    '--project',
    '.',
    '--pretty',
    'false',
    '--incremental',
    '--tsBuildInfoFile',
    kept,
  );
}

/** By name, in the order of their lines. */
const CHECKS: Readonly<Record<string, () => Promise<Outcome>>> = {
  format: () => runCommands(formatCommands('check')),
  lint: () => runCommands(lintCommands()),
  types: () => runCommands([typesCommand()]),
  layers: () => runOneTestFile('test/layers.test.ts'),
  tests: runOrReuseTests,
  bundle: () => runCommands([{ file: process.execPath, parameters: ['build/build.ts'] }]),
};

/** A check that is more than its tools: counted as one, like those that run a tool. */
async function runOneTestFile(path: string): Promise<Outcome> {
  const lines: string[] = [];
  const { failed } = await runTestFiles([join(projectRoot, path)], (line) => lines.push(line));
  return failed === 0
    ? { passed: 1, failed: 0, skipped: 0, notes: [] }
    : { passed: 0, failed: 1, skipped: 0, notes: lines };
}

async function runOrReuseTests(): Promise<Outcome> {
  const earlier = process.env[REUSE_TESTS_VARIABLE] === undefined ? undefined : earlierResult();
  if (earlier) {
    // Counted already, by the run they come from.
    const verdict = `as just run: ${earlier.passed} passed, ${earlier.failed} failed, ${earlier.skipped} skipped`;
    return { passed: 0, failed: 0, skipped: 0, notes: [verdict], countedEarlier: earlier.failed > 0 };
  }
  return { ...(await runAllTests()), notes: [] };
}

async function runCommands(commands: readonly Command[]): Promise<Outcome> {
  const notes: string[] = [];
  let failed = false;
  for (const { file, parameters } of commands) {
    if (!isInstalled(file)) {
      notes.push(`${file} is not installed: its part is skipped`);
      continue;
    }
    const { exitCode, output } = await run(file, parameters);
    if (exitCode !== 0) {
      failed = true;
      notes.push(output.trimEnd() || `${file} ended with ${String(exitCode)}`);
    }
  }
  return { passed: failed ? 0 : 1, failed: failed ? 1 : 0, skipped: 0, notes };
}

export function isInstalled(file: string): boolean {
  const directories = file.startsWith('/') ? [''] : (process.env['PATH'] ?? '').split(delimiter);
  return directories.some((directory) => {
    try {
      accessSync(join(directory, file), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

function run(
  file: string,
  parameters: readonly string[],
): Promise<{ exitCode: number | null; output: string }> {
  const { promise, resolve, reject } = Promise.withResolvers<{ exitCode: number | null; output: string }>();
  const child = spawn(file, parameters, {
    cwd: projectRoot,
    stdio: ['ignore', 'pipe', 'pipe'],
    // shfmt takes any FORCE_COLOR for a yes.
    env: { ...process.env, NO_COLOR: '1', FORCE_COLOR: undefined },
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (chunk: string) => (output += chunk));
  }
  child.on('error', reject);
  child.on('close', (exitCode) => {
    resolve({ exitCode, output });
  });
  return promise;
}

/** Those that only read, and start nothing of ours: they run at once. */
const SIDE_BY_SIDE: readonly string[] = ['format', 'lint', 'types'];

async function runCheck(name: string): Promise<{ outcome: Outcome; seconds: string }> {
  const check = CHECKS[name];
  if (!check) throw new Error(`There is no check "${name}", only ${Object.keys(CHECKS).join(', ')}`);
  const startedMs = performance.now();
  const outcome = await check();
  return { outcome, seconds: ((performance.now() - startedMs) / 1000).toFixed(1) };
}

async function runChecks(names: readonly string[]): Promise<Counts> {
  const sums: Counts = { passed: 0, failed: 0, skipped: 0 };
  const verdicts: string[] = [];
  const started = SIDE_BY_SIDE.filter((name) => names.includes(name));
  const atOnce = await Promise.all(started.map(async (name) => [name, await runCheck(name)] as const));
  const results = new Map(atOnce);
  for (const name of names) {
    const { outcome, seconds } = results.get(name) ?? (await runCheck(name));
    const hasFailed = outcome.failed > 0 || outcome.countedEarlier === true;
    const verdict = `${hasFailed ? 'FAIL' : 'ok  '} ${name} (${seconds} s)`;
    console.log([verdict, ...outcome.notes.map((note) => note.replaceAll(/^/gm, '     | '))].join('\n'));
    verdicts.push(verdict);
    sums.passed += outcome.passed;
    sums.failed += outcome.failed;
    sums.skipped += outcome.skipped;
  }
  if (names.length > 1) console.log(`\n${verdicts.join('\n')}`);
  return sums;
}

if (import.meta.main) {
  const names = process.argv.slice(2);
  const counts = await runChecks(names.length > 0 ? names : Object.keys(CHECKS));
  printCounts(counts);
  process.exitCode = counts.failed === 0 ? 0 : 1;
}
