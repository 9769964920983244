/**
 * The steps before a job, as root on its node:
 *
 *   read the job → user directory → entry: reuse it, or make room and unpack → lease → job files → one log line
 *
 * Whatever goes wrong, the job runs as it would have without us, and the line says why.
 */
import { closeSync } from 'node:fs';
import process from 'node:process';
import { describeError, faultCode, JobFault, NodeFault, type JobFaultCode } from '../lib/core/faults.ts';
import { parseImage } from '../lib/core/image.ts';
import { readJob, type ContainerOptions, type Environment, type Job } from '../lib/core/job.ts';
import { entryName } from '../lib/core/layout.ts';
import {
  createLimitMs,
  exitCodeOf,
  logSettingsOf,
  requireSettings,
  type LogLevel,
  type Settings,
} from '../lib/core/settings.ts';
import { taskEnvironment } from '../lib/core/task-env.ts';
import { acquireEntry, type Acquired } from '../lib/store/entry.ts';
import { touchEntry } from '../lib/store/held-entry.ts';
import { probeSquashfs, type ImageSource } from '../lib/store/image-source.ts';
import { writeJobFiles } from '../lib/store/job-files.ts';
import { releaseLease, takeLease } from '../lib/store/lease.ts';
import { openBase, openUserDirectory } from '../lib/store/user-directory.ts';
import { prepareFlock } from '../lib/system/flock.ts';
import { readSettings } from '../lib/system/settings-file.ts';
import { openLog, type Log } from '../lib/system/syslog.ts';
import type { Provision } from './provision.ts';

/** Faults that mean "not for the cache": the job asked for something we leave to pyxis and enroot. */
const bypassCodes: readonly JobFaultCode[] = [
  'UNSUPPORTED_OPTION',
  'BAD_REFERENCE',
  'IMAGE_UNREADABLE',
  'NOT_SQUASHFS',
];

/** What the log line tells. */
interface Outcome {
  readonly job: Job | undefined;
  readonly acquired: Acquired | undefined;
  readonly warning: string | undefined;
  readonly error: unknown;
}

/** @returns the exit code: 0, or 1 for a fault of the node with on_failure=fail */
export async function runProlog(environment: Environment = process.env): Promise<number> {
  process.umask(0o022);
  const parsed = readSettings(environment);
  const log = openLog(logSettingsOf(parsed));
  let job: Job | undefined;
  let outcome: Outcome;
  try {
    job = readJob(environment);
    const prepared = await prepareJob(job, requireSettings(parsed), environment, log);
    outcome = { job, error: undefined, ...prepared };
  } catch (error) {
    outcome = { job, acquired: undefined, warning: undefined, error };
  }
  logOutcome(log, outcome);
  await log.flush();
  return exitCodeOf(outcome.error === undefined ? [] : [outcome.error], parsed.onFailure);
}

type Prepared = Pick<Outcome, 'acquired' | 'warning'>;

async function prepareJob(
  job: Job,
  settings: Settings,
  environment: Environment,
  log: Log,
): Promise<Prepared> {
  const { container } = job;
  const base = openBase(settings.basePath);
  const userDirectory = openUserDirectory(base, job);
  if (container === undefined) return { acquired: undefined, warning: undefined };

  const looking = findSource(job, container, settings);
  prepareFlock();
  const provision = {
    job,
    settings,
    base,
    userDirectory,
    source: await looking,
    log,
    configPath: environment['CONTAINER_CACHE_CONF'],
  };
  const acquired = await acquire(provision, container);
  try {
    touchEntry(job, acquired.entry.path);
    takeLease(settings.runtimePath, job, [acquired.entry]);
    tellJob(job, container, settings, acquired);
  } finally {
    // The holder has its own copy; ours must not keep the entry if there is no holder.
    closeSync(acquired.entry.fd);
  }
  return { acquired, warning: provision.source.kind === 'registry' ? provision.source.warning : undefined };
}

/** @throws JobFault with a bypass code for what the cache does not serve */
async function findSource(job: Job, container: ContainerOptions, settings: Settings): Promise<ImageSource> {
  if (container.hasSave)
    throw new JobFault(
      'UNSUPPORTED_OPTION',
      '--container-save writes its own image: the job unpacks for itself',
    );
  if (container.hasName)
    throw new JobFault(
      'UNSUPPORTED_OPTION',
      '--container-name makes a container of its own: the job unpacks for itself',
    );
  const image = parseImage(container.image, job.workPath);
  if (image.kind === 'path') return probeSquashfs(job, image);
  const { findRegistrySource } = await import('./provision.ts');
  return findRegistrySource(job, image, settings);
}

async function acquire(provision: Provision, container: ContainerOptions): Promise<Acquired> {
  const { job, settings, userDirectory, source } = provision;
  return acquireEntry({
    user: job,
    jobId: job.jobId,
    userPath: userDirectory.path,
    image: container.image,
    name: entryName(job.uid, source.hash),
    limitMs: createLimitMs(settings, source.kind === 'path' ? source.superblock.usedBytes : undefined),
    // Nothing of this is loaded for a job whose entry is there.
    creator: async () => (await import('./provision.ts')).openCreator(provision),
  });
}

/** A lease without job files would be of no use: it is given back. */
function tellJob(job: Job, container: ContainerOptions, settings: Settings, acquired: Acquired): void {
  try {
    writeJobFiles(settings.runtimePath, job, {
      environment: taskEnvironment(settings.basePath, job.uid),
      images: new Map([[container.image, acquired.entry.name]]),
    });
  } catch (cause) {
    releaseLease(settings.runtimePath, job.jobId);
    throw new NodeFault(
      'LEASE_FAILED',
      `Cannot write the files of job ${job.jobId} below "${settings.runtimePath}"`,
      { cause },
    );
  }
}

function logOutcome(log: Log, { job, acquired, warning, error }: Outcome): void {
  const isBypass = error instanceof JobFault && bypassCodes.includes(error.code);
  const hasContainer = job?.container !== undefined;
  const result = error === undefined ? (acquired?.result ?? 'none') : isBypass ? 'bypassed' : 'failed';
  log.write(logLevel(hasContainer, isBypass, warning, error), 'prolog', {
    job: job?.jobId,
    uid: job?.uid,
    image: job?.container?.image,
    result,
    entry: acquired?.entry.name,
    code: error === undefined ? undefined : faultCode(error),
    reason: error === undefined ? warning : `${describeError(error)}; the job runs without the cache`,
    unpack_ms: acquired?.unpackMs,
    total_ms: Math.round(performance.now()),
  });
  if (faultCode(error) === 'BUG' && error instanceof Error)
    log.write('debug', 'prolog', { job: job?.jobId, stack: error.stack });
}

function logLevel(
  hasContainer: boolean,
  isBypass: boolean,
  warning: string | undefined,
  error: unknown,
): LogLevel {
  if (error === undefined) return warning !== undefined ? 'warning' : hasContainer ? 'info' : 'debug';
  if (isBypass) return 'info';
  return error instanceof JobFault ? 'warning' : 'error';
}
