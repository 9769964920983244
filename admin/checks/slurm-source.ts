/**
 * Finds this node's slurm.conf: the file that slurmd was started with, the usual places, else slurmctld's
 * word.
 */
import type { Environment } from '../../lib/core/job.ts';
import { parseScontrolConfig, readSlurmConf } from '../../lib/core/slurm-conf.ts';
import { isRegularFile } from '../../lib/system/programs.ts';
import { CommandFailed, run } from '../../lib/system/run-command.ts';
import { findSlurmProgram, slurmConfOf, slurmPrefix, type Slurmd } from '../../lib/system/slurmd.ts';
import { answers, readText, type SlurmSource } from './context.ts';
import { reporter, type Finding } from './findings.ts';

const report = reporter('slurm');

/** The second is where a slurmd without files of its own ("configless") keeps what slurmctld sent. */
const usualPaths = [
  '/etc/slurm/slurm.conf',
  '/run/slurm/conf/slurm.conf',
  '/etc/slurm-llnl/slurm.conf',
  '/usr/local/etc/slurm.conf',
];
const controllerLimitMs = 15_000;

export async function findSlurmConf(
  environment: Environment,
  slurmd: Slurmd | undefined,
): Promise<{ source: SlurmSource | undefined; findings: Finding[] }> {
  const named = environment['SLURM_CONF'] ?? slurmConfOf(slurmd);
  const paths = named === undefined ? [...ownPaths(slurmd), ...usualPaths] : [named];
  for (const path of paths) {
    if (!(await answers(path)))
      return {
        source: undefined,
        findings: [report.bad(`${path} does not answer`, 'check its file server')],
      };
    if (!isRegularFile(path)) continue;
    const conf = await readSlurmConf(path, readText);
    const findings = conf.problems.map((problem) =>
      report.bad(problem, 'Slurm cannot read it either, and does not start: correct the Include'),
    );
    return { source: { conf, path }, findings: [report.ok(`${path} can be read`), ...findings] };
  }
  return askController(paths.join(', '), slurmd);
}

/** Where a Slurm that was built with a prefix of its own looks. */
function ownPaths(slurmd: Slurmd | undefined): string[] {
  const prefix = slurmd && slurmPrefix(slurmd);
  return prefix === undefined || ['/', '/usr'].includes(prefix) ? [] : [`${prefix}/etc/slurm.conf`];
}

async function askController(
  looked: string,
  slurmd: Slurmd | undefined,
): Promise<{ source: SlurmSource | undefined; findings: Finding[] }> {
  const remedy = 'set SLURM_CONF to your slurm.conf and run this command again';
  try {
    const chunks: Buffer[] = [];
    await run({
      file: findSlurmProgram('scontrol', slurmd) ?? 'scontrol',
      args: ['show', 'config'],
      timeoutMs: controllerLimitMs,
      onStdout: (chunk) => chunks.push(chunk),
    });
    return {
      source: { conf: parseScontrolConfig(Buffer.concat(chunks).toString('utf8')), path: undefined },
      findings: [
        report.warn(
          `none of these files exists: ${looked}; scontrol show config told the configuration, but not that of this node`,
          remedy,
        ),
      ],
    };
  } catch (error) {
    if (!(error instanceof CommandFailed)) throw error;
    // The last line of many, where scontrol gave up.
    const reason = error.stderrTail.split('\n').at(-1) ?? '';
    const text = `no slurm.conf: none of these files exists: ${looked}; scontrol show config failed (${reason || error.message})`;
    return { source: undefined, findings: [report.bad(text, remedy)] };
  }
}
