/**
 * Leases that no Epilog has released: it was killed, or slurmd never ran it. Until somebody does, no
 * collector may have their entries.
 */
import type { LeaseRecord } from '../lib/core/lease-record.ts';
import { removeJobFiles } from '../lib/store/job-files.ts';
import { listHeldLeases, readLease, releaseLease } from '../lib/store/lease.ts';
import { findSlurmd } from '../lib/system/slurmd.ts';
import type { Log } from '../lib/system/syslog.ts';
import { askActiveJobs, findJobVariables, hasProcess } from './slurm-jobs.ts';

/** Whoever is younger may be a job that slurmctld has not told of yet, or one whose Epilog is at work. */
const overdueAfterMs = 10 * 60_000;

/**
 * The leases of jobs that have no process here and that slurmctld no longer knows as active. If it does not
 * say, none.
 */
export async function findOverdueLeases(runtimePath: string): Promise<LeaseRecord[]> {
  const old = listHeldLeases(runtimePath).filter(({ sinceMs }) => Date.now() - sinceMs > overdueAfterMs);
  if (old.length === 0) return [];
  const variables = findJobVariables();
  const quiet = old.filter((lease) => !hasProcess(variables, lease));
  const active = await askActiveJobs(new Set(quiet.map(({ jobId }) => jobId)), findSlurmd());
  return active === undefined ? [] : quiet.filter((lease) => !active.has(lease.jobId));
}

/** Releases them, as the Epilog would have. */
export async function releaseOverdueLeases(runtimePath: string, log: Log['write']): Promise<void> {
  for (const { jobId, uid, entries, sinceMs } of await findOverdueLeases(runtimePath)) {
    // A job that was over may have been requeued meanwhile, and its Prolog have taken another lease.
    if (readLease(runtimePath, jobId)?.sinceMs !== sinceMs) continue;
    releaseLease(runtimePath, jobId);
    removeJobFiles(runtimePath, jobId);
    log('warning', 'lease-overdue', {
      job: jobId,
      uid,
      entries: entries.join(','),
      held_seconds: Math.round((Date.now() - sinceMs) / 1000),
      reason: 'the job has ended, but no Epilog released its lease: find out why (was the node drained?)',
    });
  }
}
