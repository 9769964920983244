/** A sample of what crash-run.ts does in full: programs killed at system calls that change the disk or a lock. */
// test: timeout 900 s
import { enterPrivateMachine, unlessPrivateMachine } from '../helpers/private-machine.ts';
import { unlessCrashTracer } from '../helpers/crash-tracer.ts';
import { assert, suite } from '../helpers/suite.ts';
import { CrashBench, describeShot, planShots, scenarios, tryShot, type Shot } from './crash-bench.ts';

enterPrivateMachine();

const test = suite('Killed at a system call', { skip: unlessPrivateMachine ?? unlessCrashTracer() });

const every = 400;

/** Every so many, and of those at which a name appears or goes more. */
const isChosen = ({ point, mode }: Shot, index: number): boolean =>
  index % every === 0 ||
  (point.label === 'program' && mode === 'group' && point.call.startsWith('rename ') && index % 4 === 0);

async function killed(name: string): Promise<void> {
  await using bench = await CrashBench.start(name);
  const shots = planShots(name, await bench.record()).filter(isChosen);
  assert.ok(shots.length > 0);
  for (const shot of shots) {
    const outcome = await tryShot(bench, shot);
    if (outcome instanceof Error) throw outcome;
    assert.is(outcome, 'killed', describeShot(shot));
  }
}

for (const [name, { what }] of Object.entries(scenarios)) {
  test(`${what}: nothing half is used, nothing in use goes, nothing is left`, () => killed(name));
}

test.run();
