/**
 * Leases that no Epilog has released: it was killed, or slurmd never ran it. Until somebody does, no collector may have their entries.
 *
 * A module of its own so that Prolog and Epilog do not load it.
 */
import type { LogFields } from '../system/syslog.ts';
import type { LogLevel } from '../core/settings.ts';
import { askActiveJobs, findJobVariables, jobVariable } from '../system/slurm-jobs.ts';
import { listHeldLeases, releaseLease } from './lease.ts';

/** Whoever is younger may be a job that slurmctld has not told of yet, or one whose Epilog is at work. */
const overdueAfterMs = 10 * 60_000;

/**
 * Releases the leases of jobs that have no process here and that slurmctld no longer knows as active. If it does not say, none.
 *
 * @returns their job IDs
 */
export async function releaseOverdueLeases(
  runtimePath: string,
  log: (level: LogLevel, word: string, fields: LogFields) => void,
): Promise<number[]> {
  const old = listHeldLeases(runtimePath).filter(({ sinceMs }) => Date.now() - sinceMs > overdueAfterMs);
  if (old.length === 0) return [];
  const here = new Set(
    findJobVariables().flatMap(({ name, value }) => (name === jobVariable ? [value] : [])),
  );
  const quiet = old.filter(({ jobId }) => !here.has(jobId));
  const active = await askActiveJobs(new Set(quiet.map(({ jobId }) => jobId)));
  if (active === undefined) return [];
  const over = quiet.filter(({ jobId }) => !active.has(jobId));
  for (const { jobId, uid, entries, sinceMs } of over) {
    releaseLease(runtimePath, jobId);
    log('warning', 'lease-overdue', {
      job: jobId,
      uid,
      entries: entries.join(','),
      held_seconds: Math.round((Date.now() - sinceMs) / 1000),
      reason: 'the job is over, and no Epilog has released its lease: look why, such as a drained node',
    });
  }
  return over.map(({ jobId }) => jobId);
}
