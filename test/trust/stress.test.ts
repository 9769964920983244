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

test('jobs, kills and a collector that never has enough break no invariant', async () => {
  const { violations } = await runStress({ ...size, seed: 1, jobs: 10, disk: 'starving' });
  assert.equal(violations, []);
});

test('nor do they on a disk that is too small, with another schedule at each run', async () => {
  const seed = Number(process.env[seedVariable] ?? Date.now() % 2 ** 32);
  process.stdout.write(`${seedVariable}=${seed}\n`);
  const { violations } = await runStress({ ...size, seed, jobs: 10, disk: 'small' });
  assert.equal(violations, [], `${seedVariable}=${seed}`);
});

test.run();
