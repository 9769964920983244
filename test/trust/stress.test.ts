/**
 * A short run of the stress test (stress-run.ts says what is asserted). By hand, for longer:
 * `build/run exec test/trust/stress.ts --jobs 10000 --seed 1`.
 */
// test: timeout 600 s
import process from 'node:process';
import { enterPrivateMachine, unlessPrivateMachine } from '../helpers/private-machine.ts';
import { assert, suite } from '../helpers/suite.ts';
import { planJob } from './stress-plan.ts';
import { runStress } from './stress-run.ts';

enterPrivateMachine();

/** With this number a failure's schedule comes again. */
const seedVariable = 'CONTAINER_CACHE_TEST_SEED';
const size = { lanes: 3, users: 3, images: 4 };

const test = suite('stress', { skip: unlessPrivateMachine });

test('the seed alone decides what every job does', () => {
  const plans = (seed: number): unknown[] =>
    Array.from({ length: 50 }, (_, id) => planJob(seed, id + 1, size));
  assert.equal(plans(7), plans(7));
  assert.not.equal(plans(7), plans(8));
});

test('jobs, kills, scancel, a hostile user and a collector that never has enough break no invariant', async () => {
  // Among these are a cancelled Prolog, a cancelled step, named containers and a job of the hostile user.
  const { violations } = await runStress({ ...size, seed: 301, jobs: 6, disk: 'starving' });
  assert.equal(violations, []);
});

for (const [what, disk] of [
  ['is too small, with another schedule at each run', 'small'],
  ['has a quota for each user', 'quota'],
  ['others fill', 'shared'],
] as const)
  test(`nor do they on a disk that ${what}`, async () => {
    const seed = Number(process.env[seedVariable] ?? Date.now() % 2 ** 32);
    process.stdout.write(`${seedVariable}=${seed}\n`);
    const { violations } = await runStress({ ...size, seed, jobs: 4, disk });
    assert.equal(violations, [], `${seedVariable}=${seed}`);
  });

test.run();
