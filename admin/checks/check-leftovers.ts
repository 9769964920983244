/** Is the clock right, and is anything left of jobs that are over? */
import { closeSync, lstatSync, readdirSync, statSync } from 'node:fs';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { NodeFault } from '../../lib/core/faults.ts';
import {
  createLockName,
  holderVariable,
  parsePartialName,
  parseStubDirectoryName,
  trashName,
} from '../../lib/core/layout.ts';
import { openBase } from '../../lib/store/base-directory.ts';
import { listJobFiles } from '../../lib/store/job-files.ts';
import { isHolderAlive, listLeases } from '../../lib/store/lease.ts';
import type { FoundEntry } from '../../lib/store/listed-entries.ts';
import { findStub } from '../../lib/store/stub.ts';
import { forEachUser, type UserTurn } from '../../lib/store/users.ts';
import { withUserIds, type UserIds } from '../../lib/system/as-user.ts';
import { openFileBeneath } from '../../lib/system/beneath.ts';
import type { Directory } from '../../lib/system/directory.ts';
import { isGone, unlessErrno } from '../../lib/system/errno.ts';
import { tryFlock } from '../../lib/system/flock.ts';
import { findMountedEntries, readMounts } from '../../lib/system/mounts.ts';
import { processUid } from '../../lib/system/processes.ts';
import type { FoundVariable } from '../../lib/system/user-processes.ts';
import { forecastCollection } from '../forecast.ts';
import { tellTrouble } from '../inventory.ts';
import { askActiveJobs, findJobVariables, jobsWithProcesses } from '../slurm-jobs.ts';
import { answers, type Check, type CheckContext } from './context.ts';
import { reporter, type Finding } from './findings.ts';

const reportClock = reporter('clock');
const report = reporter('leftovers');

const collect = 'container-cache gc deletes it; if it comes back, read the log lines of Prolog and Epilog';

export const checkClock: Check = ({ executable }) => {
  const now = new Date();
  const built = statSync(executable ?? process.execPath).mtime;
  if (now >= built) return Promise.resolve([reportClock.ok(`the clock says ${now.toISOString()}`)]);
  return Promise.resolve([
    reportClock.bad(
      `the clock says ${now.toISOString()}, but this command was installed at ${built.toISOString()}`,
      'set the clock: timedatectl set-ntp true',
    ),
  ]);
};

export const checkLeftovers: Check = async (context) => {
  if (!context.isRoot)
    return [
      report.skip('only root can look for leftovers in the directories of users', 'run this command as root'),
    ];
  const base = await openExistingBase(context);
  if (base === undefined)
    return [report.skip('leftovers were not looked for: the base cannot be used', 'see the line of base')];
  try {
    let findings = await look(context, base);
    if (findings.length > 0) {
      // A job that ends just now takes its things away one after the other: what is left is still there a
      // moment later.
      await sleep(secondLookMs);
      const again = new Set((await look(context, base)).map(({ text }) => text));
      findings = findings.filter(({ text }) => again.has(text));
    }
    return findings.length > 0 ? findings : [report.ok('no leftovers')];
  } finally {
    closeSync(base.fd);
  }
};

const secondLookMs = 1000;

async function look(context: CheckContext, base: Directory): Promise<Finding[]> {
  const jobs = await lookAtJobs(context);
  return [
    ...futureFindings(context, base),
    ...partialFindings(base),
    ...stubFindings(base, jobs),
    ...jobFindings(jobs),
    ...holderFindings(jobs),
    ...trashFindings(base),
    ...unknownFindings(jobs),
  ];
}

function unknownFindings({ active }: Jobs): Finding[] {
  if (active !== undefined) return [];
  return [
    report.skip(
      'slurmctld does not answer squeue: it is not known which jobs have ended, and no lease is released',
      'run squeue --jobs=1 as root; slurmd names slurm.conf by its option -f or by SLURM_CONF',
    ),
  ];
}

async function openExistingBase({ settings }: CheckContext): Promise<Directory | undefined> {
  const { basePath } = settings;
  if (!(await answers(basePath)) || unlessErrno(isGone, () => lstatSync(basePath)) === undefined)
    return undefined;
  try {
    return openBase(settings);
  } catch (error) {
    if (error instanceof NodeFault) return undefined;
    throw error;
  }
}

/** Clocks of a cluster may differ by that much. */
const clockSkewMs = 60_000;

function futureFindings({ settings }: CheckContext, base: Directory): Finding[] {
  const { plan } = forecastCollection({ base, policy: settings, pinned: new Set(), log: tellTrouble });
  const entries: FoundEntry[] = [...plan.evict, ...plan.reserve, ...plan.kept.map(({ entry }) => entry)];
  const future = entries.filter(({ usedAtMs }) => usedAtMs > Date.now() + clockSkewMs);
  const [first] = future;
  if (first === undefined) return [];
  const used = new Date(first.usedAtMs).toISOString();
  return [
    reportClock.warn(
      `entries whose last use is in the future: ${future.length}, such as ${first.name} at ${used}; they are evicted last`,
      'check the clock; if a user set that time, touch the directory',
    ),
  ];
}

/** Gives each user a turn with the names that are wanted. */
function forEachName(
  base: Directory,
  isWanted: (name: string) => boolean,
  action: (turn: UserTurn, name: string) => void,
): void {
  forEachUser(base, readMounts(), tellTrouble, (turn) => {
    turn.each(turn.names(isWanted), (name) => {
      action(turn, name);
    });
  });
}

/**
 * Who creates an entry holds its create lock. A creator that meets ours waits for the moment that it takes.
 */
function partialFindings(base: Directory): Finding[] {
  const findings: Finding[] = [];
  const isPartial = (name: string): boolean => parsePartialName(name) !== undefined;
  forEachName(base, isPartial, ({ user, directory }, name) => {
    const entry = parsePartialName(name)?.entry;
    if (entry === undefined || hasCreator(user, directory, entry)) return;
    findings.push(report.warn(`${directory.path}/${name}: an abandoned unpack`, collect));
  });
  return findings;
}

function hasCreator(user: UserIds, directory: Directory, entry: string): boolean {
  const lock = withUserIds(user, () => {
    try {
      return openFileBeneath(directory, createLockName(entry));
    } catch {
      // None, or something that a user put in its place: nobody can be at work under it.
      return undefined;
    }
  });
  if (lock === undefined) return false;
  try {
    return !tryFlock(lock, 'shared');
  } finally {
    closeSync(lock);
  }
}

/** What is known of the jobs of this node. */
interface Jobs {
  /** Jobs that have a process here, the holder of a lease apart. */
  readonly running: ReadonlySet<number>;
  /** Processes that hold an entry for a job: root's for the lease, the user's for a step. */
  readonly holders: readonly FoundVariable[];
  readonly leases: ReturnType<typeof listLeases>;
  readonly files: readonly number[];
  /** Of those without a process: which slurmctld still knows as active; undefined: it did not say. */
  readonly active: ReadonlySet<number> | undefined;
}

async function lookAtJobs({ settings, slurm, slurmd }: CheckContext): Promise<Jobs> {
  const variables = findJobVariables();
  const running = jobsWithProcesses(variables);
  const holders = variables.filter(({ name }) => name === holderVariable);
  const leases = listLeases(settings.runtimePath);
  const files = listJobFiles(settings.runtimePath);
  const quiet = [...leases.map(({ jobId }) => jobId), ...files].filter((jobId) => !running.has(jobId));
  const active = await askActiveJobs(new Set(quiet), slurmd, slurm?.path);
  return { running, holders, leases, files, active };
}

/** slurmctld may be right that a job is active, and not have been asked: then it counts as active. */
const isOver = (jobs: Jobs, jobId: number): boolean =>
  !jobs.running.has(jobId) && jobs.active?.has(jobId) === false;

function stubFindings(base: Directory, jobs: Jobs): Finding[] {
  const known = new Set([...jobs.running, ...jobs.files, ...jobs.leases.map(({ jobId }) => jobId)]);
  const stubs: string[] = [];
  const isMounted = findMountedEntries(base.path);
  const isStub = (name: string): boolean => parseStubDirectoryName(name) !== undefined;
  forEachName(base, isStub, ({ user, directory }, name) => {
    const jobId = parseStubDirectoryName(name)?.jobId;
    if (jobId === undefined || (known.has(jobId) && !isOver(jobs, jobId)) || isMounted(user.uid, name))
      return;
    if (withUserIds(user, () => findStub(directory, name) !== undefined))
      stubs.push(`${directory.path}/${name}`);
  });
  return stubs.map((path) => report.warn(`${path}: the stub of a job that has ended`, collect));
}

function jobFindings(jobs: Jobs): Finding[] {
  const findings: Finding[] = [];
  for (const { jobId, holder } of jobs.leases) {
    if (!isHolderAlive(jobId, holder))
      findings.push(
        report.warn(`the lease of job ${jobId} has lost its holder and protects nothing`, collect),
      );
    else if (isOver(jobs, jobId))
      findings.push(
        report.warn(`the lease of job ${jobId} is still held, but the job has ended`, endRemedy(jobId)),
      );
  }
  for (const jobId of jobs.files)
    if (isOver(jobs, jobId))
      findings.push(
        report.warn(
          `job ${jobId} has ended, but its files are still in the runtime directory`,
          endRemedy(jobId),
        ),
      );
  return findings;
}

/** A holder keeps its entry from being collected, with a record or without. */
function holderFindings({ running, holders, leases, files }: Jobs): Finding[] {
  const known = new Set([...running, ...files, ...leases.map(({ jobId }) => jobId)]);
  return holders.flatMap(({ pid, value: jobId }) => {
    const uid = processUid(pid);
    if (uid === undefined || known.has(jobId)) return [];
    return [
      report.warn(
        `process ${pid} of uid ${uid} holds an entry for job ${jobId}, which has ended`,
        `kill ${pid}`,
      ),
    ];
  });
}

const endRemedy = (jobId: number): string =>
  `its Epilog did not run, or failed: run epilog by hand, with SLURM_JOB_ID=${jobId} and the other variables of the job`;

/** Each collector empties it, and a busy node runs one often. */
const oldTrashMs = 24 * 60 * 60_000;

function trashFindings(base: Directory): Finding[] {
  const trash = `${base.path}/${trashName}`;
  const names = unlessErrno(isGone, () => readdirSync(trash)) ?? [];
  const isOld = (name: string): boolean => {
    const stats = unlessErrno(isGone, () => lstatSync(`${trash}/${name}`));
    return stats !== undefined && Date.now() - stats.ctimeMs > oldTrashMs;
  };
  const old = names.filter(isOld).length;
  return old === 0
    ? []
    : [report.warn(`trees that have been in ${trash} for more than a day: ${old}`, collect)];
}
