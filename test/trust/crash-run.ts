/**
 * Kills at every point of the scenarios of crash-bench.ts, or every N-th, or one, and prints what does not
 * hold afterwards.
 *
 *   build/run exec test/trust/crash-run.ts [--program SCENARIO]… [--every N]
 *     [--kill LABEL:NUMBER --mode MODE]
 */
import process from 'node:process';
import { parseArgs } from 'node:util';
import { build } from '../../build/build.ts';
import { enterPrivateMachine, unlessPrivateMachine } from '../helpers/private-machine.ts';
import { unlessCrashTracer, type KillMode } from '../helpers/crash-tracer.ts';

enterPrivateMachine();
const reason = unlessPrivateMachine ?? unlessCrashTracer();
if (reason !== undefined) throw new Error(`Cannot kill programs here: ${reason}`);
const { CrashBench, describeShot, planShots, scenarios, tryShot } = await import('./crash-bench.ts');

const { values } = parseArgs({
  options: {
    program: { type: 'string', multiple: true },
    every: { type: 'string', default: '1' },
    kill: { type: 'string' },
    mode: { type: 'string' },
    list: { type: 'boolean', default: false },
  },
});
await build();
const sums = { points: 0, kills: 0, missed: 0, violations: 0 };
for (const name of values.program ?? Object.keys(scenarios)) {
  const startedAtMs = performance.now();
  await using bench = await CrashBench.start(name);
  const points = await bench.record();
  if (values.list) for (const { label, number, call } of points) console.log(`  ${label}:${number} ${call}`);
  const shots = planShots(name, points).filter(
    ({ point, mode }, index) =>
      index % Number(values.every) === 0 &&
      (values.kill === undefined || values.kill === `${point.label}:${point.number}`) &&
      (values.mode === undefined || values.mode === (mode satisfies KillMode)),
  );
  let [missed, violations] = [0, 0];
  for (const shot of values.list ? [] : shots) {
    const outcome = await tryShot(bench, shot);
    if (outcome === 'missed') {
      missed++;
      console.log(`  not met: ${describeShot(shot)}`);
    } else if (outcome instanceof Error) {
      violations++;
      console.log(
        `  VIOLATED: ${outcome.stack ?? ''}\n${String((outcome.cause as { details?: string }).details)}`,
      );
    }
  }
  sums.points += points.length;
  sums.kills += shots.length;
  sums.missed += missed;
  sums.violations += violations;
  const seconds = Math.round((performance.now() - startedAtMs) / 1000);
  console.log(
    `${name}: ${points.length} points, ${shots.length} kills, ${missed} not met, ${violations} violations (${seconds} s)`,
  );
}
console.log(
  `all: ${sums.points} points, ${sums.kills} kills, ${sums.missed} not met, ${sums.violations} violations`,
);
process.exitCode = sums.violations + sums.missed > 0 ? 1 : 0;
