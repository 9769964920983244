/**
 * The steps after a job, as root on its node:
 *
 *   mark its entries used → release the lease → unmount idle views → sweep the job's leftovers
 *   → perhaps start the collector → one log line
 *
 * Each step runs even if another fails. A second run, or one for a job that never had a Prolog, finds nothing
 * to do.
 */
import { closeSync, existsSync, unlinkSync } from 'node:fs';
import process from 'node:process';
import type { StartEvent } from '../lib/core/events.ts';
import {
  describeError,
  faultCode,
  isFaultOfNode,
  isUsedUp,
  JobFault,
  NodeFault,
} from '../lib/core/faults.ts';
import { usedPercent } from '../lib/core/gc-plan.ts';
import { readJob, type Environment, type Job } from '../lib/core/job.ts';
import {
  entryPath,
  imageMountsPath,
  isMountedEntryName,
  parsePartialName,
  parseStubDirectoryName,
  userPath,
} from '../lib/core/layout.ts';
import type { LeaseRecord } from '../lib/core/lease-record.ts';
import { isBelowTrusted } from '../lib/core/mounted-facts.ts';
import { hasMounts } from '../lib/core/mountinfo.ts';
import {
  defaultRuntimePath,
  exitCodeOf,
  logSettingsOf,
  requireSettings,
  type ParsedSettings,
  type Settings,
} from '../lib/core/settings.ts';
import { openBase } from '../lib/store/base-directory.ts';
import { findBaseFault } from '../lib/store/base-fault.ts';
import { recordEvents, takeStepNotes } from '../lib/store/event-files.ts';
import { claimVerification, touchEntry } from '../lib/store/held-entry.ts';
import { heldFileOf, readJobImages, removeJobFiles } from '../lib/store/job-files.ts';
import { readLease, releaseLease, releaseSteps } from '../lib/store/lease.ts';
import { findStub } from '../lib/store/stub.ts';
import { moveNamesToTrash } from '../lib/store/trash.ts';
import { findUserDirectory } from '../lib/store/user-directory.ts';
import { UserTurn } from '../lib/store/users.ts';
import type * as ViewsModule from '../lib/store/views.ts';
import { withUserIds } from '../lib/system/as-user.ts';
import { startBackgroundCollector, startInBackground } from '../lib/system/background.ts';
import { elapsedMs } from '../lib/system/clock.ts';
import type { Directory } from '../lib/system/directory.ts';
import { readUsage } from '../lib/system/disk-usage.ts';
import { unlessErrno, userMadeErrnos } from '../lib/system/errno.ts';
import { guardAgainstCrash } from '../lib/system/last-resort.ts';
import { readMounts } from '../lib/system/mounts.ts';
import { checkRuntimeDirectory, startCountedWarming } from '../lib/system/runtime-directory.ts';
import { readSettings } from '../lib/system/settings-file.ts';
import { openLog, type Log } from '../lib/system/syslog.ts';

/** What the steps found and did. */
interface Report {
  entries: readonly string[];
  /** Held in case a step wanted them. */
  prepared: readonly string[];
  holdersStopped: number;
  stepsStopped: number;
  stubsRemoved: number;
  partialsRemoved: number;
  usedPercent: number | undefined;
  collectorStarted: boolean;
  stepStarts: readonly StartEvent[];
  mountable: readonly string[];
  imagesStarted: number;
  readonly errors: unknown[];
}

/** @returns the exit code: 0, or 1 for a fault of the node with on_failure=fail */
export async function runEpilog(environment: Environment = process.env): Promise<number> {
  const parsed = readSettings(environment);
  const log = openLog(logSettingsOf(parsed));
  const report: Report = {
    entries: [],
    prepared: [],
    holdersStopped: 0,
    stepsStopped: 0,
    stubsRemoved: 0,
    partialsRemoved: 0,
    usedPercent: undefined,
    collectorStarted: false,
    stepStarts: [],
    mountable: [],
    imagesStarted: 0,
    errors: [],
  };
  let job: Job | undefined;
  try {
    job = readJob(environment);
    const views = await findViews(parsed);
    finishJob(job, parsed, environment, report, log.write, views);
  } catch (error) {
    report.errors.push(error);
  }

  const { errors } = report;
  const released = [report.holdersStopped, report.stepsStopped, report.stubsRemoved, report.partialsRemoved];
  const didSomething = report.entries.length > 0 || released.some((count) => count > 0);
  const isError = errors.some((error) => isFaultOfNode(error) || faultCode(error) === 'BUG');
  log.write(isError ? 'error' : errors.length > 0 ? 'warning' : didSomething ? 'info' : 'debug', 'epilog', {
    job: job?.jobId,
    uid: job?.uid,
    result: errors.length > 0 ? 'failed' : didSomething ? 'released' : 'none',
    entries: report.entries.length > 0 ? report.entries.join(',') : undefined,
    holders: report.holdersStopped,
    steps: report.stepsStopped > 0 ? report.stepsStopped : undefined,
    stubs: report.stubsRemoved > 0 ? report.stubsRemoved : undefined,
    partials: report.partialsRemoved > 0 ? report.partialsRemoved : undefined,
    used_percent: report.usedPercent === undefined ? undefined : Math.round(report.usedPercent),
    unpacking: report.imagesStarted > 0 ? report.imagesStarted : undefined,
    gc: report.collectorStarted ? 'started' : undefined,
    code: errors.length > 0 ? faultCode(errors[0]) : undefined,
    reason: errors.length > 0 ? describeError(errors[0]) : undefined,
    total_ms: Math.round(elapsedMs()),
  });
  for (const error of errors.slice(1))
    log.write(isFaultOfNode(error) ? 'error' : 'warning', 'epilog', {
      job: job?.jobId,
      uid: job?.uid,
      result: 'failed',
      code: faultCode(error),
      reason: describeError(error),
    });
  const logged = log.flush();
  if (parsed.settings !== undefined)
    recordEvents(
      parsed.settings.statePath,
      report.stepStarts.map((start) => ({ ...start, image: undefined })),
    );
  await logged;
  return exitCodeOf(errors, parsed.onFailure);
}

type Views = typeof ViewsModule;

/** Loaded only where images were mounted since the boot. */
async function findViews({ settings }: ParsedSettings): Promise<Views | undefined> {
  const isUsed = settings !== undefined && existsSync(imageMountsPath(settings.runtimePath));
  return isUsed ? import('../lib/store/views.ts') : undefined;
}

function finishJob(
  job: Job,
  parsed: ParsedSettings,
  environment: Environment,
  report: Report,
  log: Log['write'],
  views: Views | undefined,
): void {
  guardAgainstCrash();
  // Without a configuration there still may be a holder, and its lease where leases are by default.
  const runtimePath = parsed.settings?.runtimePath ?? defaultRuntimePath;
  checkRuntimeDirectory(runtimePath);
  attempt(report, () => {
    markUsed(job, parsed.settings, runtimePath, environment['CONTAINER_CACHE_CONF'], views);
  });
  attempt(report, () => {
    const { record, stopped } = releaseLease(runtimePath, job.jobId);
    report.entries = record === undefined ? [] : usedByJob(record);
    report.prepared = record?.prepared ?? [];
    report.holdersStopped = stopped;
  });
  attempt(report, () => {
    report.stepsStopped = releaseSteps(job.jobId, job);
  });
  attempt(report, () => {
    removeHeldFiles(job, runtimePath);
    removeJobFiles(runtimePath, job.jobId);
  });
  attempt(report, () => {
    if (views !== undefined) views.sweepViews(requireSettings(parsed));
  });
  attempt(report, () => {
    sweepBase(job, requireSettings(parsed), environment, report, log);
  });
  attempt(report, () => {
    // Its steps have told which of them they came to use.
    const used = new Set(report.stepStarts.map(({ entry }) => entry));
    const names = report.prepared.filter((name) => used.has(name));
    if (names.length > 0) views?.markMountedUsed(requireSettings(parsed), job.uid, names);
  });
}

/** What a Prolog fetched for a step that never came, in the directory where pyxis has such files. */
function removeHeldFiles(job: Job, runtimePath: string): void {
  const files = (readJobImages(runtimePath, job.jobId) ?? []).flatMap((image) => heldFileOf(image) ?? []);
  for (const file of files)
    withUserIds(job, () => {
      unlessErrno([...userMadeErrnos, 'ENOENT', 'EPERM', 'EISDIR'], () => {
        unlinkSync(file);
      });
    });
}

function attempt(report: Report, step: () => void): void {
  try {
    step();
  } catch (error) {
    report.errors.push(error);
  }
}

/** Before the release, so that the collector never sees an entry that is neither held nor just used. */
const usedByJob = ({ entries, prepared = [] }: LeaseRecord): string[] =>
  entries.filter((name) => !prepared.includes(name));

function markUsed(
  job: Job,
  settings: Settings | undefined,
  runtimePath: string,
  configPath: string | undefined,
  views: Views | undefined,
): void {
  const record = readLease(runtimePath, job.jobId);
  if (record === undefined || settings === undefined) return;
  views?.markMountedUsed(settings, record.uid, usedByJob(record).filter(isMountedEntryName));
  if (hasMounts(userPath(settings.basePath, record.uid), readMounts())) return;
  const user = { uid: record.uid, gid: job.gid };
  const own = record.entries.filter((name) => !isMountedEntryName(name));
  for (const name of own) touchEntry(user, entryPath(settings.basePath, record.uid, name));
  const due = own.filter((name) => claimVerification(user, entryPath(settings.basePath, record.uid, name)));
  // At the lowest priority: it reads the names of all files, once a day.
  if (due.length > 0) startInBackground(['verify', '--background', ...due], configPath, '/');
}

function sweepBase(
  job: Job,
  settings: Settings,
  environment: Environment,
  report: Report,
  log: Log['write'],
): void {
  const base = openBase(settings);
  try {
    attempt(report, () => {
      sweepUserDirectory(job, base, report, log);
    });
    if (settings.createMode === 'background' || settings.trustedImages.length > 0)
      attempt(report, () => {
        report.imagesStarted = startMaking(job, report, environment['CONTAINER_CACHE_CONF'], settings);
      });
    const fault = report.errors.length > 0 ? findBaseFault(base) : undefined;
    if (fault !== undefined) report.errors.unshift(fault);
    report.usedPercent = usedPercent(readUsage(base.path));
    const hasTrash = report.partialsRemoved + report.stubsRemoved > 0;
    if (!hasTrash && report.usedPercent < settings.gcHighPercent) return;
    startBackgroundCollector(settings.runtimePath, environment['CONTAINER_CACHE_CONF']);
    report.collectorStarted = true;
  } finally {
    closeSync(base.fd);
  }
}

/**
 * What this job left: partial directories of a Prolog or an acquire that was killed, and stubs of containers
 * whose step did not come to remove them. Whoever made them ended with the job.
 */
function sweepUserDirectory(job: Job, base: Directory, report: Report, log: Log['write']): void {
  const userDirectory = findUserDirectory(base, job.uid);
  if (userDirectory === undefined) return;
  try {
    const { starts, mountable } = takeStepNotes(userDirectory, job, job.jobId, report.entries);
    report.stepStarts = starts;
    report.mountable = mountable;
    const turn = new UserTurn(job, userDirectory, [], log);
    // Who has closed the directory leaves the rest to the collector.
    const ofJob = (jobOf: typeof parseStubDirectoryName): string[] =>
      unlessErrno(['EACCES'], () => turn.names((name) => jobOf(name)?.jobId === job.jobId)) ?? [];
    const partials = ofJob(parsePartialName);
    const stubs = ofJob(parseStubDirectoryName);
    const isStub = (name: string): boolean =>
      withUserIds(job, () => findStub(userDirectory, name)) !== undefined;
    turn.end();
    report.partialsRemoved = moveNamesToTrash(base, userDirectory, partials);
    report.stubsRemoved = moveNamesToTrash(base, userDirectory, stubs.filter(isStub));
  } catch (cause) {
    if (cause instanceof NodeFault || isUsedUp(cause)) throw cause;
    throw new JobFault('ENTRY_DAMAGED', `Cannot sweep "${userDirectory.path}"`, { cause });
  } finally {
    closeSync(userDirectory.fd);
  }
}

/** A path or a URI, and so no option of a command. */
const wholeNamePattern = /^(?:\/|docker:\/\/)/;

/** More images than a job has that it could not wait for; who names more has them at their next job. */
const mostImages = 8;

/**
 * What steps would not wait for (create_mode=background) is unpacked as the user for the next job, and what
 * they unpacked although it could be mounted is mounted. @returns how many
 */
function startMaking(
  job: Job,
  { stepStarts, mountable }: Report,
  configPath: string | undefined,
  { runtimePath, trustedImages }: Settings,
): number {
  const wanted = stepStarts.flatMap(({ code, image }) =>
    code === 'UNPACKING' && image !== undefined && wholeNamePattern.test(image) ? [image] : [],
  );
  const trusted = mountable.filter((image) => isBelowTrusted(image, trustedImages));
  const images = [...new Set([...wanted, ...trusted])].slice(0, mostImages);
  return images.length > 0 && startCountedWarming(runtimePath, job, images, configPath) ? images.length : 0;
}
