/**
 * `npm test [-- WORD…]`: runs the test files, each in a process of its own, three at a time: they wait a good
 * deal.
 *
 * uvu runs the tests of a file and this counts over the files; it trusts a file only so far. A file has
 * failed that exits non-zero, prints no summary or more than one, runs no test, or runs fewer than it has
 * (uvu 0.5.6 ends green when a `before` hook throws); that takes longer than its limit; or that leaves
 * processes behind.
 *
 * A test file can say two things in a comment at its head:
 *
 *   // test: serial               it runs while no other does
 *   // test: timeout 900 s        in place of TIMEOUT_DEFAULT_S
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { SKIP_MARK } from '../test/helpers/skip-mark.ts';
import { build, BUILT_VARIABLE } from './build.ts';
import { printCounts, type Counts } from './counts.ts';
import { digestOfFiles, projectRoot, sourceFiles } from './source-files.ts';

const TIMEOUT_DEFAULT_S = 120;
const FILES_AT_ONCE = 3;
/** How long a process that was told to end may take before it counts as left behind. */
const LEFTOVER_GRACE_MS = 2_000;
const LEFTOVER_POLL_MS = 50;
/** In the environment of all that a test file starts: so it is found again, whatever its parent or group. */
const RUN_VARIABLE = 'CONTAINER_CACHE_TEST_RUN';
const COMPILE_CACHE = join(projectRoot, 'node_modules/.cache/container-cache/compiled');
/** A full run's result, for `npm run ok` in the same CI run. */
const RESULT_FILE = join(projectRoot, 'node_modules/.cache/container-cache/test-result.json');

interface TestFile {
  path: string;
  serial: boolean;
  timeoutMs: number;
}

interface FileResult extends Counts {
  /** Why the file has failed, besides its failed tests. */
  faults: string[];
  skips: string[];
  output: string;
  durationMs: number;
  /** Of the processor, by the file and those of its children that it waited for. */
  usedMs: number;
}

function testFiles(words: readonly string[] = []): string[] {
  return sourceFiles()
    .filter((file) => file.endsWith('.test.ts'))
    .filter((file) => words.length === 0 || words.some((word) => file.includes(word)))
    .map((file) => join(projectRoot, file));
}

/**
 * Runs the files (absolute paths), prints one line for each and the output of those that failed, and returns
 * the sums.
 */
export async function runTestFiles(
  paths: readonly string[],
  print: (line: string) => void = console.log,
): Promise<Counts> {
  const files = paths.map(readDirectives);
  await buildOnce();
  usedBeforeMs = processorMsOfChildren();
  // Those that may take longest first, so that the last one does not run alone.
  const together = files.filter((file) => !file.serial).sort((a, b) => b.timeoutMs - a.timeoutMs);
  const alone = files.filter((file) => file.serial);
  const sums: Counts = { passed: 0, failed: 0, skipped: 0 };
  const failed: string[] = [];

  async function runNext(queue: TestFile[]): Promise<void> {
    for (let file = queue.shift(); file !== undefined; file = queue.shift()) {
      const result = await runTestFile(file);
      sums.passed += result.passed;
      sums.failed += result.failed;
      sums.skipped += result.skipped;
      if (result.failed > 0) failed.push(relative(projectRoot, file.path));
      printResult(file, result, print);
    }
  }
  await Promise.all(Array.from({ length: FILES_AT_ONCE }, () => runNext(together)));
  await runNext(alone);

  if (failed.length > 0) print(`\nFailed: ${failed.sort().join(', ')}`);
  return sums;
}

/** What cannot be built is said by the tests that need it. */
async function buildOnce(): Promise<void> {
  const isBuilt = await build().then(
    () => true,
    () => false,
  );
  if (isBuilt) process.env[BUILT_VARIABLE] = '1';
}

function readDirectives(path: string): TestFile {
  const text = readFileSync(path, 'utf8');
  const [head = ''] = text.split(/^import /m, 1);
  const directives = [...head.matchAll(/^\/\/ test: (.+)$/gm)].flatMap(([, list = '']) => list.split(/,\s*/));
  const file: TestFile = { path, serial: false, timeoutMs: TIMEOUT_DEFAULT_S * 1000 };
  for (const directive of directives) {
    const timeout = /^timeout (\d+) s$/.exec(directive);
    if (directive === 'serial') file.serial = true;
    else if (timeout) file.timeoutMs = Number(timeout[1]) * 1000;
    else throw new Error(`Cannot run ${path}: "// test: ${directive}" is neither "serial" nor "timeout N s"`);
  }
  return file;
}

/** Of the children that have ended until now, and of theirs. */
let usedBeforeMs = 0;

function processorMsOfChildren(): number {
  const stat = readProc(process.pid, 'stat');
  // The second field is the name in parentheses and may hold blanks itself; cutime and cstime, in 1/100 s.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return 10 * (Number(fields[13]) + Number(fields[14]));
}

/** What must not outlive this process. */
const runningGroups = new Set<number>();

async function runTestFile(file: TestFile): Promise<FileResult> {
  const directory = mkdtempSync(join(tmpdir(), 'container-cache-test-'));
  const outputPath = join(directory, 'output');
  // A file takes both streams in their order, and does not keep us waiting for a daemon that holds a pipe.
  const output = openSync(outputPath, 'a');
  const run = randomUUID();
  const startedMs = performance.now();
  try {
    const child = spawn(process.execPath, [file.path], {
      cwd: projectRoot,
      // A group of its own, so that one signal reaches whatever it started.
      detached: true,
      stdio: ['ignore', output, output],
      env: {
        ...process.env,
        // Types are stripped from a file but once.
        NODE_COMPILE_CACHE: COMPILE_CACHE,
        [RUN_VARIABLE]: run,
        NO_COLOR: '1',
        FORCE_COLOR: '0',
      },
    });
    const end = await waitForExit(child, file.timeoutMs);
    const leftovers = await endLeftovers(run, end.timedOut ? 0 : LEFTOVER_GRACE_MS);
    const faults: string[] = [];
    if (end.timedOut) faults.push(`not done after ${file.timeoutMs / 1000} s`);
    else if (end.exitCode !== 0)
      faults.push(`ended with ${end.signal ?? `exit code ${String(end.exitCode)}`}`);
    if (leftovers.length > 0 && !end.timedOut) faults.push(`left processes behind: ${leftovers.join('; ')}`);
    const text = readFileSync(outputPath, 'utf8');
    const durationMs = performance.now() - startedMs;
    return { ...judge(text, faults), output: text, durationMs, usedMs: end.usedMs };
  } finally {
    closeSync(output);
    rmSync(directory, { recursive: true, force: true });
  }
}

interface End {
  exitCode: number | null;
  signal: NodeJS.Signals | null;
  timedOut: boolean;
  usedMs: number;
}

/** Resolves when the process has ended; its group is killed at the time-out, and in any case afterwards. */
function waitForExit(child: ChildProcess, timeoutMs: number): Promise<End> {
  const { promise, resolve, reject } = Promise.withResolvers<End>();
  const group = child.pid;
  if (group !== undefined) runningGroups.add(group);
  let timedOut = false;
  const timer = setTimeout(() => {
    timedOut = true;
    if (group !== undefined) killGroup(group);
  }, timeoutMs);
  child.on('error', reject);
  child.on('exit', (exitCode, signal) => {
    clearTimeout(timer);
    if (group !== undefined) {
      killGroup(group);
      runningGroups.delete(group);
    }
    const usedMs = processorMsOfChildren() - usedBeforeMs;
    usedBeforeMs += usedMs;
    resolve({ exitCode, signal, timedOut, usedMs });
  });
  return promise;
}

const SUMMARY = /^ {2}Total: +(\d+)\n {2}Passed: +(\d+)\n {2}Skipped: +(\d+)\n {2}Duration: /gm;

function judge(output: string, faults: string[]): Counts & { faults: string[]; skips: string[] } {
  const summaries = [...output.matchAll(SUMMARY)];
  const [total = 0, passed = 0, skipped = 0] = (summaries[0] ?? []).slice(1).map(Number);
  const skips = output
    .split('\n')
    .filter((line) => line.startsWith(SKIP_MARK))
    .map((line) => line.slice(SKIP_MARK.length));
  if (summaries.length === 0) faults.push('printed no summary: it ended before its tests did');
  if (summaries.length > 1) faults.push('printed more than one summary');
  if (summaries.length === 1 && total + skipped === 0) faults.push('has no test');
  if (skipped > skips.length) skips.push(`${skipped - skips.length} tests, no reason given (.only?)`);
  const failedTests = total - passed;
  if (failedTests > 0) faults.push(`${failedTests} of ${total} tests failed or did not run`);
  const failed = failedTests > 0 ? failedTests : faults.length > 0 ? 1 : 0;
  return { passed, failed, skipped, faults, skips };
}

function printResult(file: TestFile, result: FileResult, print: (line: string) => void): void {
  const name = relative(projectRoot, file.path);
  const [seconds, used] = [result.durationMs, result.usedMs].map((ms) => (ms / 1000).toFixed(1));
  const counts = [`${result.passed} passed`];
  if (result.failed > 0) counts.push(`${result.failed} failed`);
  if (result.skipped > 0) counts.push(`${result.skipped} skipped`);
  print(
    `${result.failed > 0 ? 'FAIL' : 'ok  '} ${name}: ${counts.join(', ')} (${seconds} s, ${used} s of a processor)`,
  );
  for (const skip of result.skips) print(`       skipped: ${skip}`);
  if (result.failed === 0) return;
  for (const fault of result.faults) print(`       ${fault}`);
  print(result.output.replaceAll(/^/gm, '     | '));
}

function killGroup(group: number): void {
  try {
    process.kill(-group, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

/** Ends what a test file started and did not stop, and returns its command lines. */
async function endLeftovers(run: string, graceMs: number): Promise<string[]> {
  const deadlineMs = performance.now() + graceMs;
  let leftovers = processesOfRun(run);
  while (leftovers.length > 0 && performance.now() < deadlineMs) {
    await sleep(LEFTOVER_POLL_MS);
    leftovers = processesOfRun(run);
  }
  const commands = leftovers.map((pid) => `${pid} ${readProc(pid, 'cmdline').replaceAll('\0', ' ').trim()}`);
  for (const pid of leftovers) {
    try {
      process.kill(pid, 'SIGKILL');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
    }
  }
  return commands;
}

function processesOfRun(run: string): number[] {
  const mark = `${RUN_VARIABLE}=${run}`;
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => readProc(pid, 'environ').split('\0').includes(mark));
}

/** Empty for a process that is gone, a zombie, or another's. */
function readProc(pid: number, file: string): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'utf8');
  } catch {
    return '';
  }
}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.once(signal, () => {
    for (const group of runningGroups) killGroup(group);
    process.kill(process.pid, signal);
  });
}

/** The result of a full run of these very sources, if there is one. */
export function earlierResult(): Counts | undefined {
  try {
    const { digest, counts } = JSON.parse(readFileSync(RESULT_FILE, 'utf8')) as {
      digest: string;
      counts: Counts;
    };
    return digest === digestOfFiles(sourceFiles()) ? counts : undefined;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

/** Runs every test file and keeps the result. */
export async function runAllTests(): Promise<Counts> {
  rmSync(RESULT_FILE, { force: true });
  const digest = digestOfFiles(sourceFiles());
  const counts = await runTestFiles(testFiles());
  mkdirSync(dirname(RESULT_FILE), { recursive: true });
  writeFileSync(RESULT_FILE, JSON.stringify({ digest, counts }));
  return counts;
}

if (import.meta.main) {
  const words = process.argv.slice(2);
  const counts = words.length === 0 ? await runAllTests() : await runTestFiles(testFiles(words));
  if (counts.passed + counts.failed + counts.skipped === 0) {
    console.log(
      words.length === 0 ? 'There is no test file' : `No test file's path contains ${words.join(' or ')}`,
    );
    counts.failed = 1;
  }
  printCounts(counts);
  process.exitCode = counts.failed === 0 ? 0 : 1;
}
