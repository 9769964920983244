/**
 * Notices that a job is over while its Prolog is still at work: cancelled, timed out, requeued. Until the
 * Prolog ends, the node is kept; and slurmd tells it nothing.
 *
 * Only slurmctld knows, and a question costs it an RPC. But slurmd writes a file at the moment when slurmctld
 * has it end a job, its `cred_state`. So:
 *
 *   - a Prolog asks once, when it has been at work for some seconds: a warm one is done by then
 *   - then it looks at that file, twice a second, and asks when it was written
 *   - it asks now and then all the same; every few seconds where there is no such file
 *
 * No answer, or none in time: the job goes on, and the question is put again.
 */
import { statSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { findOverState, jobStateFormat } from '../core/job-state.ts';
import type { Environment } from '../core/job.ts';
import { readSlurmConf } from '../core/slurm-conf.ts';
import { elapsedMs } from './clock.ts';
import { unlessErrno } from './errno.ts';
import { splitLines } from './lines.ts';
import { CommandFailed, endingWithUs, run } from './run-command.ts';
import { findSlurmd, findSlurmProgram } from './slurmd.ts';

/** How often slurmd's file is looked at. */
const lookIntervalMs = 500;
/** How often slurmctld is asked: where slurmd's file tells when, and where not. */
const askIntervalMs = { withFile: 60_000, without: 3000 } as const;
/** An answer takes 20 ms on a cluster that is well. */
const askLimitMs = 3000;
/** How long to wait before the next question after one without an answer, doubled each time. */
const firstRetryMs = 3000;
const longestRetryMs = 60_000;
const readLimitMs = 3000;

interface WatchedJob {
  readonly jobId: number;
  /** As slurmd gave it to the Prolog. */
  readonly environment: Environment;
}

/** @returns the state, when the job is over; never, if nothing can tell */
export async function waitForEnd(job: WatchedJob): Promise<string> {
  const squeue = findSlurmProgram('squeue', findSlurmd());
  if (squeue === undefined) return new Promise(() => undefined);
  const file = await findCredentialFile(job.environment);
  let retryMs = firstRetryMs;
  for (;;) {
    // Before the question: what is written after it is news.
    const seen = stampOf(file);
    const answer = await ask(squeue, job);
    const state = findOverState(answer ?? '', job.jobId);
    if (state !== undefined) return state;
    if (answer === undefined) {
      await pause(retryMs);
      retryMs = Math.min(2 * retryMs, longestRetryMs);
    } else {
      retryMs = firstRetryMs;
      await untilWritten(file, seen);
    }
  }
}

/** Nothing that only waits for a job's end keeps a Prolog from ending. */
const pause = (ms: number): Promise<void> => sleep(ms, undefined, { ref: false });

/** Returns when slurmd's file was written, or when it is time to ask without that. */
async function untilWritten(file: string | undefined, seen: string | undefined): Promise<void> {
  const intervalMs = seen === undefined ? askIntervalMs.without : askIntervalMs.withFile;
  const deadlineMs = elapsedMs() + intervalMs;
  while (elapsedMs() < deadlineMs) {
    await pause(lookIntervalMs);
    if (stampOf(file) !== seen) return;
  }
}

/** slurmd replaces the file: another inode, or the same with other times. */
function stampOf(file: string | undefined): string | undefined {
  if (file === undefined) return undefined;
  const stats = unlessErrno(['ENOENT', 'ENOTDIR', 'EACCES', 'ELOOP', 'EIO'], () =>
    statSync(file, { bigint: true }),
  );
  return stats === undefined ? undefined : `${stats.ino} ${stats.mtimeNs} ${stats.size}`;
}

async function ask(squeue: string, { jobId, environment }: WatchedJob): Promise<string | undefined> {
  const slurmConf = environment['SLURM_CONF'];
  let answer = '';
  const lines = splitLines((line) => {
    // Of an array all tasks may be told.
    if (line.trimStart().startsWith(`${jobId} `)) answer = line;
  }, 'latin1');
  try {
    await run(
      endingWithUs({
        file: squeue,
        args: ['--noheader', `--format=${jobStateFormat}`, `--jobs=${jobId}`],
        environment: slurmConf === undefined ? {} : { SLURM_CONF: slurmConf },
        timeoutMs: askLimitMs,
        onStdout: lines.add,
      }),
    );
    lines.end();
    return answer;
  } catch (error) {
    if (error instanceof CommandFailed) return undefined;
    throw error;
  }
}

const defaultSpoolPath = '/var/spool/slurmd';

/** @returns where slurmd's `cred_state` would be, by slurm.conf */
async function findCredentialFile(environment: Environment): Promise<string | undefined> {
  const path = environment['SLURM_CONF'] ?? '/etc/slurm/slurm.conf';
  const conf = await readSlurmConf(path, async (file) => {
    // In a child: it may lie on a file server.
    try {
      const { stdout } = await run(endingWithUs({ file: 'cat', args: ['--', file], timeoutMs: readLimitMs }));
      return stdout.toString('utf8');
    } catch (error) {
      if (error instanceof CommandFailed) return undefined;
      throw error;
    }
  });
  const nodeName = environment['SLURMD_NODENAME'] ?? '';
  const spool = conf.last('SlurmdSpoolDir') ?? defaultSpoolPath;
  // %h is the host's name, for which most clusters name their nodes.
  const directory = spool.replaceAll(/%[hn]/g, nodeName);
  return directory.startsWith('/') ? `${directory}/cred_state` : undefined;
}
