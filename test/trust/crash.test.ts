/**
 * A sample of what crash-run.ts does in full: programs killed at system calls that change the disk or a lock.
 */
// test: timeout 900 s
import { enterPrivateMachine, unlessPrivateMachine } from '../helpers/private-machine.ts';
import { unlessCrashTracer } from '../helpers/crash-tracer.ts';
import { assert, suite } from '../helpers/suite.ts';
import { CrashBench, describeShot, planShots, scenarios, tryShot, type Shot } from './crash-bench.ts';

enterPrivateMachine();

const test = suite('Killed at a system call', { skip: unlessPrivateMachine ?? unlessCrashTracer() });

const every = 700;

/** Every so many, and of those at which a name appears or goes more. */
const isChosen = ({ point, mode }: Shot, index: number): boolean =>
  index % every === every - 1 ||
  (point.label === 'program' && mode === 'group' && point.call.startsWith('rename '));

const mostShots = 2;

async function killed(name: string): Promise<void> {
  await using bench = await CrashBench.start(name);
  const planned = planShots(name, await bench.record());
  const chosen = planned.filter(isChosen);
  const shots = chosen.length > 0 ? chosen.slice(0, mostShots) : planned.slice(-1);
  assert.ok(shots.length > 0);
  for (const shot of shots) {
    const outcome = await tryShot(bench, shot);
    if (outcome instanceof Error) throw outcome;
    assert.is(outcome, 'killed', describeShot(shot));
  }
}

/** The others are for crash-run.ts alone: what takes longest is to trace a scenario, not to kill in it. */
const sampled = Object.entries(scenarios).filter((_, index) => index % 4 === 0);

for (const [name, { what }] of sampled) {
  test(`${what}: nothing half is used, nothing in use goes, nothing is left`, () => killed(name));
}

test.run();
