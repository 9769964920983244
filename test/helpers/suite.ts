/**
 * uvu with its gaps closed. Every test imports `suite` and `assert` from here, not from uvu.
 *
 * uvu 0.5.6 ends green when a `before` or `after` hook throws, when a suite is never run, and when
 * `assert.throws(fn, SomeClass)` meets another error; and it cannot say why a test is skipped. Here
 * a throwing hook fails the suite by name, a suite that is not run fails the process, `throws` and
 * `rejects` check class and message, and a skip carries its reason, which build/test.ts prints.
 */
import { existsSync } from 'node:fs';
import { suite as uvuSuite, type Callback } from 'uvu';
import { describeError } from './assert.ts';
import { SKIP_MARK } from './skip-mark.ts';

export * as assert from './assert.ts';

export interface Suite<State extends object> {
  /** Registers a test; its name is a fact about what is tested. */
  (name: string, body: Callback<State>): void;
  before: ((hook: Callback<State>) => void) & { each: (hook: Callback<State>) => void };
  after: ((hook: Callback<State>) => void) & { each: (hook: Callback<State>) => void };
  /** Runs only these tests of the suite. For a developer's desk: `npm run ok` refuses it. */
  only: (name: string, body: Callback<State>) => void;
  skip: (name: string, reason: string) => void;
  /** Registers the test, or skips it when `reason` says why it cannot run here. */
  unless: (reason: string | undefined, name: string, body: Callback<State>) => void;
  run: () => void;
}

/** Set to see how long each test takes. */
const timesVariable = 'CONTAINER_CACHE_TEST_TIMES';

const timed =
  <State>(test: string, body: Callback<State>): Callback<State> =>
  async (context) => {
    const startedMs = performance.now();
    await body(context);
    process.stdout.write(`\n${((performance.now() - startedMs) / 1000).toFixed(1)} s  ${test}\n`);
  };

interface SuiteOptions<State extends object> {
  state?: State;
  /** Why no test of this suite can run here, for example "needs root"; undefined: they can. */
  skip?: string | undefined;
}

const notRun = new Map<string, number>();
process.on('exit', () => {
  for (const [name, tests] of notRun) {
    if (tests === 0) continue;
    process.stderr.write(`Suite "${name}" was defined with ${tests} tests and never run: call .run()\n`);
    process.exitCode = 1;
  }
});

/** A uvu suite in which nothing that goes wrong stays green. */
export function suite<State extends object = Record<string, never>>(
  name: string,
  options: SuiteOptions<State> = {},
): Suite<State> {
  const inner = uvuSuite<State>(name, options.state);
  if (notRun.has(name)) throw new Error(`Two suites of one file are named "${name}"`);
  notRun.set(name, 0);

  function count(): void {
    notRun.set(name, (notRun.get(name) ?? 0) + 1);
  }

  function skip(test: string, reason: string): void {
    count();
    process.stdout.write(`${SKIP_MARK}${name} ${test}: ${reason}\n`);
    inner.skip(test);
  }

  function add(test: string, body: Callback<State>): void {
    if (options.skip !== undefined) return skip(test, options.skip);
    count();
    inner(test, process.env[timesVariable] === undefined ? body : timed(test, body));
  }

  // uvu drops what a hook of the whole suite throws; so the hook itself marks the process failed.
  function guarded(kind: string, hook: Callback<State>): Callback<State> {
    return async (context) => {
      try {
        await hook(context);
      } catch (error) {
        process.exitCode = 1;
        process.on('exit', () => {
          process.exitCode = 1;
        });
        process.stdout.write(`\nFAIL  suite "${name}": its ${kind} hook threw\n${describeError(error)}\n`);
        throw error;
      }
    };
  }

  // A suite that is skipped as a whole sets nothing up.
  const none = (): void => undefined;
  const hooks =
    options.skip === undefined
      ? inner
      : { before: Object.assign(none, { each: none }), after: Object.assign(none, { each: none }) };
  return Object.assign(add, {
    before: Object.assign((hook: Callback<State>) => hooks.before(guarded('before', hook)), {
      each: (hook: Callback<State>) => hooks.before.each(hook),
    }),
    after: Object.assign((hook: Callback<State>) => hooks.after(guarded('after', hook)), {
      each: (hook: Callback<State>) => hooks.after.each(guarded('after.each', hook)),
    }),
    only: (test: string, body: Callback<State>) => {
      if (options.skip !== undefined) return skip(test, options.skip);
      count();
      inner.only(test, body);
    },
    skip,
    unless: (reason: string | undefined, test: string, body: Callback<State>) => {
      if (reason === undefined) add(test, body);
      else skip(test, reason);
    },
    run: () => {
      notRun.set(name, 0);
      inner.run();
    },
  });
}

/** For SuiteOptions.skip and Suite.unless. */
export const unlessRoot = process.getuid?.() === 0 ? undefined : 'needs root';
export const unlessStrace = existsSync('/usr/bin/strace') ? undefined : 'needs strace';
