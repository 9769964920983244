/**
 * Whatever error number a system call below a user's directory fails with, it costs that user their cache for
 * that job, and nobody else anything: the exit code is the same, another user's entry is collected and shown.
 *
 * strace(1) makes one call fail, in a run of its own for each number and each call that Prolog, Epilog,
 * collector or an admin's command makes below alice's directory. CI tries a few; errnos-run.ts all of them,
 * by other means.
 */
// test: timeout 900 s
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { errnoNames } from '../../lib/core/errno-names.ts';
import { nameOf, type ProgramResult } from '../helpers/node.ts';
import { alice, enterPrivateMachine, unlessPrivateMachine } from '../helpers/private-machine.ts';
import { assert, suite, unlessStrace } from '../helpers/suite.ts';
import { setScene, type Scene } from './errno-scene.ts';
import { injecting, isInjectedBelow, pointsBelow, straceOf, type Point } from './error-points.ts';

enterPrivateMachine();

type Program = (scene: Scene, wrapper: readonly string[]) => Promise<ProgramResult>;

const programs: Readonly<
  Record<string, { readonly run: Program; readonly check: (scene: Scene, result: ProgramResult) => void }>
> = {
  'a Prolog': {
    run: ({ node, image }, wrapper) => node.prolog({ id: 2, user: alice, image, wrapper }),
    check: (_, { line }) => {
      assert.ok(line['result']);
      assert.is.not(line['code'], 'BUG');
    },
  },
  'an Epilog': {
    run: ({ node }, wrapper) => node.epilog({ id: 2, user: alice, wrapper }),
    check: (_, { line }) => {
      assert.ok(line['result']);
      assert.is.not(line['code'], 'BUG');
    },
  },
  'a collector': {
    run: ({ node }, wrapper) => node.adminBy(wrapper, 'gc', '--force').result,
    check: ({ ofBob }) => {
      assert.not(existsSync(ofBob));
    },
  },
  status: {
    run: ({ node }, wrapper) => node.adminBy(wrapper, 'status').result,
    check: ({ ofBob }, { stdout }) => {
      assert.match(stdout, nameOf(ofBob));
    },
  },
};

const test = suite('an error number', { skip: unlessPrivateMachine ?? unlessStrace });

for (const [what, { run, check }] of Object.entries(programs)) {
  test(`at each call of ${what} below a user's directory: others are served, and its exit code is the same`, async () => {
    let points: Point[];
    let expected: number | null;
    {
      const scene = await setScene();
      await using node = scene.node;
      const trace = join(node.root, 'trace');
      const result = await run(scene, straceOf(trace));
      expected = result.exitCode;
      check(scene, result);
      points = pointsBelow(node.userPath(alice), readFileSync(trace, 'utf8')).map((point) => ({
        ...point,
        text: point.text.replaceAll(node.root, ''),
      }));
      for (const id of [1, 2]) await node.epilog({ id, user: alice });
      await node.settle();
    }
    assert.ok(points.length > 5, `${points.length} calls`);
    const all = points.flatMap((point) => errnoNames.map((error) => ({ ...point, error })));
    // Another call, and another number, each time.
    const sampled = [all[5]!, all.at(-2)!];
    let missed = 0;
    for (const { call, ordinal, error, text } of sampled) {
      const scene = await setScene();
      await using node = scene.node;
      const trace = join(node.root, 'trace');
      const result = await run(scene, straceOf(trace, ...injecting({ call, ordinal }, error)));
      const told = `${error} at ${text}: ${result.stderr}`;
      // Waiting for a child reads a clock or /proc: how often is the machine's doing, so that another call
      // may have been met.
      if (!isInjectedBelow(node.userPath(alice), readFileSync(trace, 'utf8'))) missed++;
      else {
        assert.is(result.exitCode, expected, told);
        try {
          check(scene, result);
        } catch (cause) {
          throw new Error(told, { cause });
        }
      }
      for (const id of [1, 2]) await node.epilog({ id, user: alice });
      await node.settle();
    }
    assert.ok(missed < sampled.length, `${missed} were not met`);
  });
}

test('what an Epilog takes while the collector looks at it is no trouble, and told of nobody', async () => {
  const collectBy = async (options: readonly string[]): Promise<ProgramResult> => {
    const { node } = await setScene();
    await using _ = node;
    const trace = join(node.root, 'trace');
    const result = await node.adminBy(straceOf(trace, ...options), 'gc', '--force').result;
    calls = pointsBelow(node.userPath(alice), readFileSync(trace, 'utf8'));
    return result;
  };
  let calls: readonly Point[] = [];
  await collectBy([]);
  const look = calls.find(({ call, text }) => call === 'openat2' && text.includes('.steps-2.events'));
  assert.ok(look);
  const { lines } = await collectBy(injecting(look, 'ENOENT'));
  assert.ok(calls.some(({ text }) => text.includes('.steps-2.events') && text.includes('(INJECTED)')));
  assert.equal(
    lines.filter(({ word }) => word === 'gc-kept'),
    [],
  );
});

test.run();
