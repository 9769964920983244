/**
 * The stress test by hand, for as many jobs as one likes: stress-run.ts says what is asserted.
 *
 *   build/run exec test/trust/stress.ts --jobs 10000 --seed 1
 *     [--lanes 4] [--users 6] [--images 8] [--first 1] [--disk NAME]
 *
 * Without --disk, a quarter of the jobs runs on each. Exit code 1 if there was a violation. SIGTERM ends it
 * early, with a report.
 */
import process from 'node:process';
import { parseArgs } from 'node:util';
import { enterPrivateMachine, unlessPrivateMachine } from '../helpers/private-machine.ts';
import { disks, runStress, type StressOptions } from './stress-run.ts';

enterPrivateMachine();
if (unlessPrivateMachine !== undefined) {
  process.stderr.write(`${unlessPrivateMachine}\n`);
  process.exit(2);
}

const { values } = parseArgs({
  options: {
    jobs: { type: 'string', default: '200' },
    seed: { type: 'string', default: String(Date.now() % 2 ** 32) },
    lanes: { type: 'string', default: '4' },
    users: { type: 'string', default: '6' },
    images: { type: 'string', default: '8' },
    first: { type: 'string', default: '1' },
    disk: { type: 'string' },
  },
});
const jobs = Number(values.jobs);
const chosen = disks.filter((disk) => values.disk === undefined || values.disk === disk);
let isOver = false;
process.on('SIGTERM', () => (isOver = true));

let first = Number(values.first);
for (const disk of chosen) {
  const options: StressOptions = {
    seed: Number(values.seed),
    jobs: Math.ceil(jobs / chosen.length),
    firstJob: first,
    lanes: Number(values.lanes),
    users: Number(values.users),
    images: Number(values.images),
    disk,
    tell: (line) => process.stdout.write(`${new Date().toISOString()} ${line}\n`),
    isOver: () => isOver,
  };
  first += options.jobs;
  const report = await runStress(options);
  process.stdout.write(`seed ${options.seed} disk ${disk} ${JSON.stringify(report, undefined, 2)}\n`);
  if (report.violations.length > 0) process.exitCode = 1;
}
