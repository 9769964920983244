/**
 * The part of the benchmark that runs inside the private node: `measure.ts PLAN`, a plan (workbench.ts) as
 * JSON. Prints what it measured (report.ts) as JSON on standard output, and what it is doing on standard
 * error.
 */
import process from 'node:process';
import { describeError } from '../lib/core/faults.ts';
import { measurements } from './measurements.ts';
import type { Finding, Measured } from './report.ts';
import { waitForCollectors, Workbench, type Plan } from './workbench.ts';

const plan = JSON.parse(process.argv[2] ?? '') as Plan;
const bench = new Workbench(plan);
const findings: Finding[] = [];
const failures: { id: string; reason: string }[] = [];
for (const { id, title, measure } of measurements) {
  if (!plan.ids.includes(id)) continue;
  process.stderr.write(`bench: (${id}) ${title}\n`);
  try {
    const found = await measure(bench);
    await bench.proveResults();
    findings.push(...found);
  } catch (error) {
    failures.push({ id, reason: describeError(error) });
    await waitForCollectors();
  }
}
const measured: Measured = { findings, failures };
process.stdout.write(`${JSON.stringify(measured)}\n`);
