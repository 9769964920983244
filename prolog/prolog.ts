/**
 * The steps before a job, as root on its node:
 *
 *   read the job → look at the image, meanwhile open the user directory
 *   → entry: reuse it, or make room and unpack → lease → job files → one log line
 *
 * Whatever goes wrong, the job runs as it would have without us, and the line says why.
 */
import { closeSync } from 'node:fs';
import process from 'node:process';
import {
  describeError,
  faultCode,
  isBypassCode,
  isFaultOfNode,
  JobFault,
  NodeFault,
} from '../lib/core/faults.ts';
import { imageOfPyxis, parseImage } from '../lib/core/image.ts';
import { readJob, type ContainerOptions, type Environment, type Job } from '../lib/core/job.ts';
import { unsharedName } from '../lib/core/layout.ts';
import { hasImporter, type NodeFacts } from '../lib/core/node-facts.ts';
import {
  exitCodeOf,
  logSettingsOf,
  requireSettings,
  type LogLevel,
  type Settings,
} from '../lib/core/settings.ts';
import { taskEnvironment } from '../lib/core/task-env.ts';
import type { ImageSource } from '../lib/image/image-source.ts';
import { openBase } from '../lib/store/base-directory.ts';
import { findBaseFault } from '../lib/store/base-fault.ts';
import type { Acquired } from '../lib/store/entry.ts';
import { recordEvents, startEvent } from '../lib/store/event-files.ts';
import type { HeldEntry } from '../lib/store/held-entry.ts';
import { writeJobFiles, type JobImage } from '../lib/store/job-files.ts';
import { releaseLease, takeLease } from '../lib/store/lease.ts';
import { ensureNodeFacts, recallNodeFacts } from '../lib/store/node-facts-file.ts';
import { findSource, obtainEntry, type EntryMaker } from '../lib/store/obtain-entry.ts';
import type { PreparedImage } from '../lib/store/prepared-images.ts';
import type { Provision } from '../lib/store/provision.ts';
import { hasRoomAgent } from '../lib/store/room-presence.ts';
import { openUserDirectory } from '../lib/store/user-directory.ts';
import { withUserIds } from '../lib/system/as-user.ts';
import { readSmallFileBeneath } from '../lib/system/beneath.ts';
import { elapsedMs } from '../lib/system/clock.ts';
import type { Directory } from '../lib/system/directory.ts';
import { prepareFlock } from '../lib/system/flock.ts';
import { guardAgainstCrash } from '../lib/system/last-resort.ts';
import { startCountedWarming } from '../lib/system/runtime-directory.ts';
import { readSettings } from '../lib/system/settings-file.ts';
import { openLog, type Log } from '../lib/system/syslog.ts';
import type { ImporterImage } from './imported.ts';

/** What the log line tells. */
interface Outcome {
  readonly job: Job | undefined;
  readonly acquired: Acquired | undefined;
  readonly warning: string | undefined;
  readonly error: unknown;
  /** With an error: an entry that a step may come to use. */
  readonly keptEntry?: string | undefined;
  /** Why an image below `trusted_images` is not mounted. */
  readonly notMounted?: string | undefined;
}

/** @returns the exit code: 0, or 1 for a fault of the node with on_failure=fail */
export async function runProlog(environment: Environment = process.env): Promise<number> {
  const parsed = readSettings(environment);
  const log = openLog(logSettingsOf(parsed));
  let job: Job | undefined;
  let outcome: Outcome;
  try {
    job = readJob(environment);
    const preparing = prepareJob(job, requireSettings(parsed), environment, log);
    const prepared = await unlessOver(job.jobId, environment, preparing);
    outcome = { job, error: undefined, ...prepared };
  } catch (error) {
    outcome = { job, acquired: undefined, warning: undefined, error };
  }
  logOutcome(log, outcome);
  if (job !== undefined && outcome.error !== undefined && isFaultOfNode(outcome.error))
    await warnOfDataPath(log, job, parsed.enrootSysconfPath, outcome.error);
  const logged = log.flush();
  // Of an entry that was there, the wrapper notes each container that starts from it.
  if (job?.container !== undefined && parsed.settings !== undefined && outcome.acquired?.result !== 'reused')
    recordEvents(parsed.settings.statePath, [startEvent('job', outcome.acquired, outcome.error)]);
  await logged;
  return exitCodeOf(outcome.error === undefined ? [] : [outcome.error], parsed.onFailure);
}

/** A Prolog that takes less leaves slurmctld alone. */
const watchAfterMs = 2000;
/** Thousands of nodes may start one job: they do not all ask at once. */
const watchJitterMs = 500;

/**
 * Waits for the Prolog's work as long as somebody wants it.
 *
 * When the job is over, the Prolog ends at once, as by a crash: its children die with it, its locks are free,
 * and the Epilog, which slurmd starts next, sweeps what it has begun.
 *
 * @throws JobFault CANCELLED
 */
async function unlessOver<T>(jobId: number, environment: Environment, work: Promise<T>): Promise<T> {
  // Nobody hears what comes of it once the job is over.
  work.catch(() => undefined);
  const { promise: over, reject } = Promise.withResolvers<never>();
  const watch = async (): Promise<void> => {
    const { waitForEnd } = await import('../lib/system/job-watch.ts');
    const state = await waitForEnd({ jobId, environment });
    reject(new JobFault('CANCELLED', `slurmctld says that the job is ${state}`));
  };
  const timer = setTimeout(
    () => {
      // Without a watch the job waits for its Prolog, as it would have.
      watch().catch(() => undefined);
    },
    watchAfterMs + Math.random() * watchJitterMs,
  );
  try {
    return await Promise.race([work, over]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Only our Prolog makes a user directory in the base: what else needs it while we do not, should be known.
 */
async function warnOfDataPath(log: Log, job: Job, sysconfPath: string, error: unknown): Promise<void> {
  const { describeDataPathHazard } = await import('../lib/store/data-path.ts');
  const reason = describeDataPathHazard(sysconfPath, job, error);
  if (reason !== undefined) log.write('warning', 'data-path', { job: job.jobId, uid: job.uid, reason });
}

type Prepared = Pick<Outcome, 'acquired' | 'warning'> &
  Partial<Pick<Outcome, 'error' | 'keptEntry' | 'notMounted'>>;

async function prepareJob(
  job: Job,
  settings: Settings,
  environment: Environment,
  log: Log,
): Promise<Prepared> {
  const configPath = environment['CONTAINER_CACHE_CONF'];
  // First of all: it takes a child as long as most of the rest takes us.
  const told = Promise.withResolvers<undefined>();
  const wanted = job.container && startLooking(job, job.container, settings, told.promise);
  guardAgainstCrash();
  const known = recallNodeFacts(settings.runtimePath);
  const base = openBase(settings, known);
  try {
    const userDirectory = openUserDirectory(base, job);
    await ensureRoomAgent(settings, configPath, log);
    const telling = tellNode(settings, base, known, environment['SLURM_CONF'], log);
    void telling.then(() => {
      told.resolve(undefined);
    });
    try {
      const isShared = known?.isolation === 'shared';
      const findIsolation = async (): Promise<NodeFacts['isolation'] | undefined> => {
        if (known !== undefined) return known.isolation;
        await telling;
        return recallNodeFacts(settings.runtimePath)?.isolation;
      };
      const context = {
        ...{ job, settings, base, userDirectory, log, configPath },
        ...{ environment, isShared, findIsolation },
      };
      if (wanted === undefined) {
        leaseForSteps(context, await prepareForSteps(context, undefined));
        return { acquired: undefined, warning: undefined };
      }
      return await prepareContainer(context, wanted);
    } finally {
      await telling;
    }
  } catch (error) {
    throw (isBypass(error) ? undefined : findBaseFault(base)) ?? error;
  }
}

/**
 * Mounted images that a step may want. Never fails: without them a step unpacks for itself.
 *
 * @param own the entry of the image that the job itself names
 */
async function prepareForSteps(
  { job, settings, base, log, configPath, findIsolation }: Context,
  own: string | undefined,
): Promise<readonly PreparedImage[]> {
  if (settings.trustedImages.length === 0 || settings.prepareImages === 0) return [];
  prepareFlock();
  try {
    const { prepareImages } = await import('../lib/store/prepared-images.ts');
    return await prepareImages({ settings, base, user: job, configPath, findIsolation }, own);
  } catch (error) {
    log.write('warning', 'prepare', { job: job.jobId, uid: job.uid, reason: describeError(error) });
    return [];
  }
}

/** The lease of a job that names no image itself. */
function leaseForSteps({ job, settings, log }: Context, prepared: readonly PreparedImage[]): void {
  if (prepared.length === 0) return;
  try {
    leaseAndTell(job, settings, undefined, prepared);
  } catch (error) {
    log.write('warning', 'prepare', { job: job.jobId, uid: job.uid, reason: describeError(error) });
  }
}

/** @throws NodeFault LEASE_FAILED, JobFault NO_RESOURCES; then there is no lease */
function leaseAndTell(
  job: Job,
  settings: Settings,
  own: { readonly entry: HeldEntry; readonly image: JobImage } | undefined,
  prepared: readonly PreparedImage[],
): void {
  takeLease(
    settings.runtimePath,
    job,
    own === undefined ? [] : [own.entry],
    prepared.map(({ entry }) => entry),
  );
  tellJob(job, settings, own !== undefined, [
    ...(own === undefined ? [] : [own.image]),
    ...prepared.map(({ source, entry }) => ({
      ...{ image: source.realPath, entry: entry.name, stamp: source.stamp },
      result: 'reused' as const,
    })),
  ]);
}

/** For the steps, which run as the user. Without it they are as they would be without us. */
async function ensureRoomAgent(settings: Settings, configPath: string | undefined, log: Log): Promise<void> {
  if (settings.isolation === 'off' || hasRoomAgent(settings.runtimePath)) return;
  try {
    const { startRoomAgent } = await import('../lib/store/room-agent.ts');
    startRoomAgent(settings.runtimePath, configPath, settings.trustedImages.length > 0);
  } catch (error) {
    log.write('warning', 'room', { result: 'failed', reason: describeError(error) });
  }
}

const isBypass = (error: unknown): boolean => error !== undefined && isBypassCode(faultCode(error));

const unreachableCommand =
  'users can execute no copy of container-cache: steps are not served; see container-cache check';

/** For the enroot wrapper. Without it containers start as they would without us, and so does this job. */
async function tellNode(
  settings: Settings,
  base: Directory,
  known: NodeFacts | undefined,
  slurmConfPath: string | undefined,
  log: Log,
): Promise<void> {
  try {
    const facts = await ensureNodeFacts(settings, base, known, slurmConfPath);
    if (facts === undefined) return;
    const isIsolated = facts.isolation === 'overlay' || facts.isolation === settings.isolation;
    const isAsWanted = isIsolated && facts.command !== undefined;
    const reasons = [facts.reason, facts.command === undefined ? unreachableCommand : undefined].filter(
      (reason) => reason !== undefined,
    );
    log.write(isAsWanted ? 'info' : 'warning', 'node', {
      isolation: facts.isolation,
      enroot: facts.enrootPath,
      version: facts.enrootVersion,
      reason: reasons.length > 0 ? reasons.join('; ') : undefined,
    });
  } catch (error) {
    log.write('warning', 'node', { result: 'failed', reason: describeError(error) });
  }
}

interface Context extends Omit<Provision, 'user' | 'source' | 'onProgress'> {
  readonly job: Job;
  readonly environment: Environment;
  /** Containers share the entry's files (isolation=shared). */
  readonly isShared: boolean;
  /** What containers get on this node; undefined: nobody could find out. */
  readonly findIsolation: () => Promise<NodeFacts['isolation'] | undefined>;
}

interface Wanted {
  readonly container: ContainerOptions;
  readonly looking: Promise<ImageSource | ImporterImage>;
}

/** @param told when the facts of the node are up to date */
function startLooking(
  job: Job,
  container: ContainerOptions,
  settings: Settings,
  told: Promise<undefined>,
): Wanted {
  const looking = lookFor(job, container, settings, told);
  // Where something else fails first, nobody asks for it.
  looking.catch(() => undefined);
  return { container, looking };
}

async function prepareContainer(context: Context, { container, looking }: Wanted): Promise<Prepared> {
  prepareFlock();
  let source: Awaited<Wanted['looking']>;
  try {
    source = await looking;
  } catch (error) {
    return leaveToStep(context, container, undefined, error);
  }
  if (source.kind !== 'importer') return serve(context, container, source, container.image);
  const { prepareImported } = await import('./imported.ts');
  return prepareImported(context, source, (file) => serve(context, container, file, file.path));
}

/** @param listedAs what pyxis will hand to enroot */
async function serve(
  context: Context,
  container: ContainerOptions,
  source: ImageSource,
  listedAs: string,
): Promise<Prepared> {
  const { job, settings } = context;
  let acquired: Acquired;
  let notMounted: string | undefined;
  try {
    const mounted = await mountIfTrusted(context, source);
    if ('acquired' in mounted) ({ acquired } = mounted);
    else {
      notMounted = mounted.reason;
      acquired = await obtainEntry(
        {
          ...{ user: job, jobId: job.jobId, image: container.image, source, settings },
          userPath: context.userDirectory.path,
        },
        makerFor(context, source),
      );
    }
  } catch (error) {
    if (isLeftToStep(error)) return leaveToStep(context, container, source, error);
    tellBypass(job, listedAs, settings, error);
    throw error;
  }
  try {
    const image = {
      image: imageOfPyxis(listedAs),
      entry: acquired.entry.name,
      stamp: source.kind === 'path' ? source.stamp : (source.askedFrom ?? '-'),
      result: acquired.result,
    };
    const prepared = await prepareForSteps(context, acquired.entry.name);
    leaseAndTell(job, settings, { entry: acquired.entry, image }, prepared);
  } finally {
    // The holder has its own copy; ours must not keep the entry if there is no holder.
    closeSync(acquired.entry.fd);
  }
  const warning = source.kind === 'registry' ? source.warning : undefined;
  const useless = context.isShared ? whyUnshared(context, acquired.entry.name) : undefined;
  const damage =
    acquired.damage === undefined ? undefined : `the entry was damaged and is made anew: ${acquired.damage}`;
  return { acquired, warning: damage ?? warning ?? useless, notMounted };
}

/**
 * The image of a file that root trusts is not unpacked, but mounted once for the node.
 *
 * @throws JobFault UNPACKING
 */
async function mountIfTrusted(
  context: Context,
  source: ImageSource,
): Promise<{ readonly acquired: Acquired } | { readonly reason: string | undefined }> {
  const { job, settings, log } = context;
  if (source.kind !== 'path' || settings.trustedImages.length === 0) return { reason: undefined };
  const { obtainMounted } = await import('../lib/store/mounted-entry.ts');
  const onProgress = progressLogger(job, log);
  const mounted = await obtainMounted({
    ...{ settings, source, base: context.base, user: job, configPath: context.configPath },
    findIsolation: context.findIsolation,
    onPercent: (percent) => {
      onProgress({ phase: 'copy', percent });
    },
  });
  if (mounted !== 'making') return mounted;
  throw new JobFault(
    'UNPACKING',
    `"${source.path}" is being made ready in the background (create_mode=background)`,
  );
}

const longestNoteBytes = 4096;

/** What the enroot wrapper has noted: an entry may be there and of no use. */
function whyUnshared({ job, userDirectory }: Context, entry: string): string | undefined {
  const note = withUserIds(job, () => {
    // Whatever the user has put there instead is no reason for anything.
    try {
      return readSmallFileBeneath(userDirectory, unsharedName(entry), longestNoteBytes);
    } catch {
      return undefined;
    }
  });
  return note === undefined
    ? undefined
    : `the last container could not start on the entry's files (isolation=shared), and enroot unpacked: ${note.trim()}`;
}

/** @throws `error`, if it is none that the step may not meet */
async function leaveToStep(
  context: Context,
  container: ContainerOptions,
  source: ImageSource | undefined,
  error: unknown,
): Promise<Prepared> {
  if (!isLeftToStep(error)) throw error;
  const { keepForStep } = await import('./leave-to-step.ts');
  const keptEntry = await keepForStep(context, imageOfPyxis(container.image), source, error);
  return { acquired: undefined, warning: undefined, error, keptEntry };
}

/**
 * A Prolog has neither the job's credentials nor its proxies: what a registry does not tell it, the step may
 * be told.
 */
function isLeftToStep(error: unknown): boolean {
  const code = faultCode(error);
  return code === 'REGISTRY_REFUSED' || code === 'REGISTRY_SILENT';
}

/** @throws JobFault with a bypass code for what the cache does not serve */
async function lookFor(
  job: Job,
  container: ContainerOptions,
  settings: Settings,
  told: Promise<undefined>,
): Promise<ImageSource | ImporterImage> {
  if (container.hasName)
    throw new JobFault(
      'UNSUPPORTED_OPTION',
      '--container-name makes a container of its own: the job unpacks for itself',
    );
  const image = parseImage(container.image, job.workPath);
  if (image.kind === 'registry') {
    await told;
    const facts = recallNodeFacts(settings.runtimePath);
    if (hasImporter(facts)) {
      const { importerOf } = await import('../lib/image/importer.ts');
      const importer = importerOf(facts);
      if (importer !== undefined) return { kind: 'importer', importer, image };
    }
  }
  return findSource(job, image, settings, { kind: 'prolog' });
}

/** Who waits for an unpack, and what becomes of an image that nobody waits for. */
function makerFor(context: Context, source: ImageSource): EntryMaker {
  const { job, settings, log } = context;
  // On a disk that takes nothing any more, what is there could be read, but no container could be made beside
  // it.
  const findFault = (): Error | undefined => findBaseFault(context.base);
  if (settings.createMode === 'background')
    return {
      kind: 'find',
      readsImage: false,
      refuse: (found) => startWarming(context, source, found),
      findFault,
    };
  return {
    kind: 'unpack',
    openCreator: async () => {
      // Nothing of this is loaded for a job whose entry is there.
      const { openCreator } = await import('../lib/store/provision.ts');
      return openCreator({ ...context, user: job, source, onProgress: progressLogger(job, log) });
    },
    findFault,
  };
}

/** The job does not wait: what is not there is made for the next one. @throws JobFault UNPACKING */
async function startWarming(
  { job, settings, configPath }: Context,
  source: ImageSource,
  found: 'creating' | undefined,
): Promise<never> {
  const image = source.kind === 'path' ? source.path : source.image.uri;
  if (found === undefined && source.kind === 'registry') await source.confirm?.();
  const isUnderWay =
    found === 'creating' || startCountedWarming(settings.runtimePath, job, [image], configPath);
  throw new JobFault(
    'UNPACKING',
    isUnderWay
      ? `"${image}" is being unpacked in the background (create_mode=background)`
      : `"${image}" waits for a later job: as many images as one user may have are being unpacked (create_mode=background)`,
  );
}

const progressIntervalMs = 30_000;

/**
 * A line at the start and one every 30 s, so that an operator sees that a node is at work and how far it is.
 */
function progressLogger(
  job: Job,
  log: Log,
): (progress: {
  readonly phase: 'import' | 'unpack' | 'copy';
  readonly percent: number | undefined;
}) => void {
  let lastMs = -Infinity;
  let lastPhase: string | undefined;
  return ({ phase, percent }) => {
    const nowMs = elapsedMs();
    if (phase === lastPhase && nowMs - lastMs < progressIntervalMs) return;
    lastMs = nowMs;
    lastPhase = phase;
    log.write('info', 'prolog-progress', {
      job: job.jobId,
      uid: job.uid,
      image: job.container?.image,
      phase,
      percent,
    });
    void log.flush();
  };
}

/** A lease without job files would be of no use: it is given back. */
function tellJob(job: Job, settings: Settings, hasEntry: boolean, images: readonly JobImage[]): void {
  try {
    writeJobFiles(settings.runtimePath, job, {
      environment: hasEntry ? taskEnvironment(settings.basePath, job.uid) : '',
      images,
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

/**
 * What failed here would fail once more, and take its time, when the enroot wrapper asks for the same. What
 * is being unpacked can be there `later`.
 */
function tellBypass(job: Job, image: string, settings: Settings, error: unknown): void {
  try {
    writeJobFiles(settings.runtimePath, job, {
      environment: '',
      images: [
        {
          image: imageOfPyxis(image),
          entry: '-',
          stamp: faultCode(error) === 'UNPACKING' ? 'later' : '-',
        },
      ],
    });
  } catch {
    // The wrapper finds out for itself.
  }
}

function logOutcome(log: Log, { job, acquired, warning, error, keptEntry, notMounted }: Outcome): void {
  const hasContainer = job?.container !== undefined;
  const result = error === undefined ? (acquired?.result ?? 'none') : failureResult(error);
  log.write(logLevel(hasContainer, warning, error), 'prolog', {
    job: job?.jobId,
    uid: job?.uid,
    image: job?.container?.image,
    result,
    entry: acquired?.entry.name ?? keptEntry,
    code: error === undefined ? undefined : faultCode(error),
    reason: error === undefined ? warning : describeFailure(error),
    not_mounted: notMounted,
    unpack_ms: acquired?.unpackMs,
    total_ms: Math.round(elapsedMs()),
  });
  if (faultCode(error) === 'BUG' && error instanceof Error)
    log.write('debug', 'prolog', { job: job?.jobId, stack: error.stack });
}

const isCancelled = (error: unknown): boolean => faultCode(error) === 'CANCELLED';

const failureResult = (error: unknown): string =>
  isBypass(error) ? 'bypassed' : isCancelled(error) ? 'cancelled' : 'failed';

function describeFailure(error: unknown): string {
  const consequence = isCancelled(error)
    ? 'nothing more is done for it'
    : isLeftToStep(error)
      ? "a Prolog lacks the job's environment, so the step asks"
      : 'the job runs without the cache';
  return `${describeError(error)}; ${consequence}`;
}

function logLevel(hasContainer: boolean, warning: string | undefined, error: unknown): LogLevel {
  if (error === undefined) return warning !== undefined ? 'warning' : hasContainer ? 'info' : 'debug';
  if (isBypass(error) || isCancelled(error)) return 'info';
  return isFaultOfNode(error) || faultCode(error) === 'BUG' ? 'error' : 'warning';
}
