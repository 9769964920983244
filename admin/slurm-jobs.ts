/** Which jobs are on this node, by its processes and by slurmctld. */
import { holderVariable, parseIdName } from '../lib/core/layout.ts';
import { listProcesses, processUid, processVariable } from '../lib/system/processes.ts';
import { CommandFailed, run } from '../lib/system/run-command.ts';
import { findSlurmProgram, slurmConfOf, type Slurmd } from '../lib/system/slurmd.ts';
import { findVariables, listProcessOwners, type FoundVariable } from '../lib/system/user-processes.ts';

const jobVariable = 'SLURM_JOB_ID';

const queueLimitMs = 15_000;

/** What the processes of this node say of the jobs they are for: SLURM_JOB_ID, and what holders have. */
export function findJobVariables(): FoundVariable[] {
  const names = [jobVariable, holderVariable];
  const ofRoot = listProcesses()
    .filter((pid) => processUid(pid) === 0)
    .flatMap((pid) =>
      names.flatMap((name) => {
        const value = parseIdName(processVariable(pid, name) ?? '');
        return value === undefined ? [] : [{ pid, uid: 0, name, value }];
      }),
    );
  return [...ofRoot, ...listProcessOwners().flatMap((user) => findVariables(user, names))];
}

/**
 * Whether a job of a user has a process here, the holder of a lease apart. What others say of it counts for
 * nothing.
 */
export const hasProcess = (
  variables: readonly FoundVariable[],
  job: { readonly jobId: number; readonly uid: number },
): boolean =>
  variables.some(
    ({ name, value, uid }) => name === jobVariable && value === job.jobId && (uid === 0 || uid === job.uid),
  );

/** Jobs that have a process here, the holder of a lease apart. */
export const jobsWithProcesses = (variables: readonly FoundVariable[]): ReadonlySet<number> =>
  new Set(variables.filter(({ name }) => name === jobVariable).map(({ value }) => value));

/**
 * Asks slurmctld: a job without a process may be one of salloc, in which nothing runs yet.
 *
 * @param slurmd the node's
 * @param slurmConf if it is known where it is; else where slurmd has it
 * @returns those of the jobs that it still knows as active; undefined: it did not say
 */
export async function askActiveJobs(
  jobIds: ReadonlySet<number>,
  slurmd: Slurmd | undefined,
  slurmConf = slurmConfOf(slurmd),
): Promise<ReadonlySet<number> | undefined> {
  if (jobIds.size === 0) return new Set();
  const squeue = findSlurmProgram('squeue', slurmd);
  if (squeue === undefined) return undefined;
  try {
    const { stdout } = await run({
      file: squeue,
      args: ['--noheader', '--format=%A', `--jobs=${[...jobIds].join(',')}`],
      environment: slurmConf === undefined ? {} : { SLURM_CONF: slurmConf },
      timeoutMs: queueLimitMs,
    });
    return new Set(stdout.toString('latin1').split('\n').map(Number));
  } catch (error) {
    if (!(error instanceof CommandFailed)) throw error;
    // What it says to a single job that is over for long.
    return error.stderrTail.includes('Invalid job id') ? new Set() : undefined;
  }
}
