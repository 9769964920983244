/**
 * Leases: how a job keeps its entries from being collected.
 *
 * A flock ends with the last descriptor of its open file, and the Prolog exits before the job starts. So the
 * Prolog hands the descriptors to a holder, a process that only sleeps, and the Epilog stops it:
 *
 *   1. Prolog: flock each lock file shared, note that a holder is being started, start it, write the record,
 *      remove the note.
 *   2. Epilog: stop the holder, remove the record.
 *   3. Collector: an exclusive flock that is refused means: in use.
 *
 * The holder exists before the record: a crash between the two leaves a holder without a record, and the
 * note. Then the Epilog, which otherwise knows whom to stop, looks at every process of root for the job ID in
 * its environment. A record whose holder is gone protects nothing and is swept by the collector.
 *
 * An image that the Prolog did not see, of an srun inside the job, is held by a process of the user for the
 * step (holdForStep): the Epilog ends those as well.
 *
 * The holder is a session of its own with nothing open but /dev/null and the lock files: slurmd reads the
 * Prolog's output until every writer is gone, then kills the Prolog's process group.
 */
import { spawn } from 'node:child_process';
import { existsSync, readdirSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { basename } from 'node:path';
import { JobFault, NodeFault } from '../core/faults.ts';
import {
  holderTitle,
  holderVariable,
  leasePath,
  leasesPath,
  parseIdName,
  startingPath,
} from '../core/layout.ts';
import {
  formatLeaseRecord,
  longestLeaseRecordBytes,
  parseLeaseRecord,
  type LeaseRecord,
} from '../core/lease-record.ts';
import type { UserIds } from '../system/as-user.ts';
import { writeFileAtomically } from '../system/aside.ts';
import { elapsedMs, pauseFor } from '../system/clock.ts';
import { isGone, unlessErrno } from '../system/errno.ts';
import { isExecutable, readSmallFile } from '../system/files.ts';
import { findBeneath } from '../system/native-addon.ts';
import {
  listProcesses,
  processesOwnedBy,
  processStartTicks,
  processUid,
  processVariable,
} from '../system/processes.ts';
import { prepareRuntimeDirectory } from '../system/runtime-directory.ts';
import { findVariables, runAsUser } from '../system/user-processes.ts';
import type { HeldEntry } from './held-entry.ts';

type Holder = LeaseRecord['holder'];

/**
 * Takes the lease of a job on entries it holds. An older lease of the same job ID, of a requeued job's former
 * run, is released after the new one is there.
 *
 * @param entries stay open here: the caller closes them
 * @param prepared further ones, in case a step wants them
 * @throws NodeFault LEASE_FAILED, JobFault NO_RESOURCES; then no holder is left behind
 */
export function takeLease(
  runtimePath: string,
  job: { jobId: number; uid: number },
  entries: readonly HeldEntry[],
  prepared: readonly HeldEntry[] = [],
): LeaseRecord {
  // Only the recorded one: a holder that a crash left without a record is the Epilog's to find, by a look at
  // all processes.
  const older = readLease(runtimePath, job.jobId)?.holder;
  const isNoted = noteStart(runtimePath, job.jobId);
  let record: LeaseRecord;
  try {
    record = startRecorded(runtimePath, job, entries, prepared);
  } finally {
    if (isNoted) rmSync(startingPath(runtimePath, job.jobId), { force: true });
  }
  if (older !== undefined) stopHolder(job.jobId, older);
  return record;
}

function startRecorded(
  runtimePath: string,
  { jobId, uid }: { jobId: number; uid: number },
  entries: readonly HeldEntry[],
  prepared: readonly HeldEntry[],
): LeaseRecord {
  const all = [...entries, ...prepared];
  const descriptors = all.map((entry) => entry.fd);
  const holder = startHolder(jobId, descriptors, rootId);
  const names = all.map((entry) => entry.name);
  const known: LeaseRecord = { jobId, uid, holder, sinceMs: Date.now(), entries: names };
  const record = prepared.length === 0 ? known : { ...known, prepared: prepared.map(({ name }) => name) };
  try {
    writeFileAtomically(leasePath(runtimePath, jobId), formatLeaseRecord(record), { mode: 0o600 });
  } catch (cause) {
    stopHolder(jobId, holder);
    throw cannotWrite(runtimePath, jobId, cause);
  }
  return record;
}

const cannotWrite = (runtimePath: string, jobId: number, cause: unknown): NodeFault =>
  new NodeFault('LEASE_FAILED', `Cannot write the lease of job ${jobId} below "${runtimePath}"`, { cause });

/**
 * @returns false if there is a note of a Prolog that did not come to remove it: its holder may live, and the
 *   note stays for the Epilog
 */
function noteStart(runtimePath: string, jobId: number): boolean {
  const path = startingPath(runtimePath, jobId);
  try {
    prepareRuntimeDirectory(runtimePath, leasesPath(runtimePath), 0o700);
    const isMade = unlessErrno(['EEXIST'], () => {
      writeFileSync(path, '', { flag: 'wx', mode: 0o600 });
      return true;
    });
    return isMade ?? false;
  } catch (cause) {
    throw cannotWrite(runtimePath, jobId, cause);
  }
}

/**
 * Holds an entry for one step of a job, by a process of the job's user: for an image that the job's Prolog
 * did not see. No record is kept; the Epilog finds the process by its environment.
 *
 * @returns its process ID
 * @throws NodeFault LEASE_FAILED, JobFault NO_RESOURCES
 */
export function holdForStep(jobId: number, uid: number, entry: HeldEntry): number {
  return startHolder(jobId, [entry.fd], uid).pid;
}

function startHolder(jobId: number, descriptors: readonly number[], owner: number): Holder {
  const file = '/usr/bin/sleep';
  // Where all coreutils are one program (uutils, busybox) it goes by the name it is called by, and must keep
  // it.
  const isOwnProgram = basename(realpathSync(file)) === 'sleep';
  const title = isOwnProgram ? holderTitle(jobId) : 'sleep';
  const pid = executeHolder(file, title, jobId, descriptors);
  let startTicks: string | undefined;
  let cause: unknown;
  try {
    startTicks = pid === undefined ? undefined : waitForHolder(jobId, pid, owner);
  } catch (error) {
    cause = error;
  }
  if (pid === undefined || startTicks === undefined) {
    // Nobody would know of one that gets going later. Without a pid, the signal would go to our own process
    // group.
    if (pid !== undefined) unlessErrno(['ESRCH'], () => process.kill(pid, 'SIGKILL'));
    const message = `Cannot start the lease holder of job ${jobId}: ${file} does not run`;
    // A program that is there fails for want of processes or memory, or on a node that is too busy: any user
    // can see to that.
    if (isExecutable(file)) throw new JobFault('NO_RESOURCES', message, { cause });
    throw new NodeFault('LEASE_FAILED', message, { cause });
  }
  protectFromOomKiller(pid);
  return { pid, startTicks };
}

/**
 * By our addon, where it can be had: a fraction of what Node's way costs, which first has to be loaded.
 *
 * @returns its process ID; undefined if it could not be started
 */
function executeHolder(
  file: string,
  title: string,
  jobId: number,
  descriptors: readonly number[],
): number | undefined {
  const addon = findBeneath();
  if (addon !== undefined) {
    const pid = addon.startHolder(file, title, `${holderVariable}=${jobId}`, descriptors);
    return pid > 0 ? pid : undefined;
  }
  const child = spawn(file, ['infinity'], {
    argv0: title,
    cwd: '/',
    detached: true,
    env: { [holderVariable]: String(jobId) },
    stdio: ['ignore', 'ignore', 'ignore', ...descriptors],
  });
  // Node reports a failed start later, by this event; here a missing pid tells it at once.
  child.on('error', () => undefined);
  child.unref();
  return child.pid;
}

/**
 * What a start or an end of a process takes at most, on a node on which everything waits for its turn; a
 * millisecond otherwise.
 */
const processChangeLimitMs = 10_000;
const pauseMs = 0.2;

/** Waits without the event loop, for what is about to happen. @returns whether it did */
function waitUntil(happened: () => boolean): boolean {
  const deadlineMs = elapsedMs() + processChangeLimitMs;
  while (!happened()) {
    if (elapsedMs() > deadlineMs) return false;
    pauseFor(pauseMs);
  }
  return true;
}

/**
 * A process that is being executed closes the pipe that spawn waits for a moment before its new environment
 * can be read; in that moment it could not be recognised, and so not be stopped.
 *
 * @returns when it started, or undefined if it does not run
 */
function waitForHolder(jobId: number, pid: number, owner: number): string | undefined {
  const isRunning = waitUntil(() => isHolderOf(jobId, pid, owner) || processStartTicks(pid) === undefined);
  return isRunning ? processStartTicks(pid) : undefined;
}

/**
 * The holder takes 1.5 MiB; killing it would free nothing and expose the job's rootfs. It is a holder without
 * that, too.
 */
function protectFromOomKiller(pid: number): void {
  try {
    writeFileSync(`/proc/${pid}/oom_score_adj`, '-1000');
  } catch {
    // An error here would leave a holder that nobody knows of.
  }
}

/**
 * Releases a job's lease: stops every holder of that job ID, recorded or not, and removes the record.
 *
 * @returns the record, or undefined if there was none that could be read
 */
export function releaseLease(
  runtimePath: string,
  jobId: number,
): { record: LeaseRecord | undefined; stopped: number } {
  const record = readLease(runtimePath, jobId);
  const starting = startingPath(runtimePath, jobId);
  const isOnlyOne = record !== undefined && isHolderAlive(jobId, record.holder) && !existsSync(starting);
  const holders = isOnlyOne ? [record.holder] : findHolders(jobId);
  const stopped = holders.filter((holder) => stopHolder(jobId, holder)).length;
  // Recursively: nothing that lies there may stay in the way of the next job of that ID.
  for (const path of [leasePath(runtimePath, jobId), starting])
    rmSync(path, { recursive: true, force: true });
  return { record, stopped };
}

/**
 * Stops the holders of a job's steps. They are the user's, who decides what runs under these IDs and when it
 * ends: so it is the user who signals them, in a child, and nobody else's process can be hit.
 *
 * @returns how many there were
 */
export function releaseSteps(jobId: number, user: UserIds): number {
  if (user.uid === rootId) return 0;
  const holders = findVariables(user, [holderVariable], jobId, processesOwnedBy(user.uid))
    .slice(0, mostStepHolders)
    .map(({ pid }) => pid);
  if (holders.length === 0) return 0;
  runAsUser(user, 'kill', ['-KILL', ...holders.map(String)]);
  waitUntil(() => !holders.some((pid) => processUid(pid) === user.uid));
  return holders.length;
}

/** Every step has one at most; who forges more keeps their own entries by it, until their processes end. */
const mostStepHolders = 1000;

/** All living holders of a job that are root's, also those that a crash left without a record. */
function findHolders(jobId: number): Holder[] {
  return listProcesses().flatMap((pid) => {
    const startTicks = isHolderOf(jobId, pid, rootId) ? processStartTicks(pid) : undefined;
    return startTicks === undefined ? [] : [{ pid, startTicks }];
  });
}

const rootId = 0;

/**
 * A user can start a process with any environment, but not as root. The owner comes first, see processUid().
 */
function isHolderOf(jobId: number, pid: number, owner: number): boolean {
  return processUid(pid) === owner && processVariable(pid, holderVariable) === String(jobId);
}

/** Whether it still runs: its number may be another process's by now, also a user's. */
export function isHolderAlive(jobId: number, holder: Holder): boolean {
  return isHolderOf(jobId, holder.pid, rootId) && processStartTicks(holder.pid) === holder.startTicks;
}

/**
 * Checked once more right before: the process may have ended and its number may be another's. Waits for its
 * end, so that whoever comes next does not find the entry still held.
 */
function stopHolder(jobId: number, holder: Holder): boolean {
  if (!isHolderAlive(jobId, holder)) return false;
  const isSignalled = unlessErrno(['ESRCH'], () => process.kill(holder.pid, 'SIGKILL')) ?? false;
  waitUntil(() => processUid(holder.pid) !== rootId || processStartTicks(holder.pid) !== holder.startTicks);
  return isSignalled;
}

/**
 * @returns undefined for whatever is no record of that job: it must not keep anybody from stopping the
 *   holders
 */
export function readLease(runtimePath: string, jobId: number): LeaseRecord | undefined {
  try {
    const text = readSmallFile(leasePath(runtimePath, jobId), longestLeaseRecordBytes);
    const record = text === undefined ? undefined : parseLeaseRecord(text);
    return record?.jobId === jobId ? record : undefined;
  } catch {
    // A directory, a symlink, a file that is too long, or one that the disk does not give.
    return undefined;
  }
}

export function listLeases(runtimePath: string): LeaseRecord[] {
  const names = unlessErrno(isGone, () => readdirSync(leasesPath(runtimePath))) ?? [];
  return names
    .map(parseIdName)
    .flatMap((jobId) => (jobId === undefined ? [] : (readLease(runtimePath, jobId) ?? [])));
}

/** Those that hold their entries; a record without its holder protects nothing. */
export function listHeldLeases(runtimePath: string): LeaseRecord[] {
  return listLeases(runtimePath).filter(({ jobId, holder }) => isHolderAlive(jobId, holder));
}

/** Removes the records whose holder is gone. @returns the job IDs */
export function sweepLeases(runtimePath: string): number[] {
  const dead = listLeases(runtimePath).filter((record) => !isHolderAlive(record.jobId, record.holder));
  for (const record of dead) {
    // A Prolog of a requeued job may just have written a new record in its place.
    const now = readLease(runtimePath, record.jobId);
    if (now !== undefined && !isHolderAlive(now.jobId, now.holder))
      rmSync(leasePath(runtimePath, now.jobId), { force: true });
  }
  return dead.map((record) => record.jobId);
}
