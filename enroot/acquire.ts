/**
 * `container-cache acquire [--existing] IMAGE`: the enroot wrapper asks, as the job's user, for an image that
 * the job's Prolog did not see: that of an srun inside a batch script or an salloc.
 *
 *   read the job → entry: reuse it, or unpack → hold it for the step → one log line, one line for the wrapper
 *
 * The same protocol as the Prolog's, by a process without rights: it evicts nothing itself, but asks the
 * node's room agent to (lib/store/room-agent.ts).
 */
import { closeSync, statSync } from 'node:fs';
import process from 'node:process';
import { describeError, faultCode, JobFault, NodeFault } from '../lib/core/faults.ts';
import { isCollectionDue, isGoalReached } from '../lib/core/gc-plan.ts';
import { parseImage, type SpaceNeed } from '../lib/core/image.ts';
import { readJobId, type Environment } from '../lib/core/job.ts';
import { isMountedEntryName, mountedEntryName, userPath, viewPath } from '../lib/core/layout.ts';
import { isBelowTrusted } from '../lib/core/mounted-facts.ts';
import { quotaNeed } from '../lib/core/quota-need.ts';
import { logSettingsOf, requireSettings, type Settings } from '../lib/core/settings.ts';
import { fillRootfs, type KnownShortage, type RoomResult } from '../lib/image/create.ts';
import { openEnroot } from '../lib/image/enroot-program.ts';
import type { ImageSource, SquashfsSource } from '../lib/image/image-source.ts';
import { openBase } from '../lib/store/base-directory.ts';
import type { Acquired, EntryCreator } from '../lib/store/entry.ts';
import { noteMountable, noteStepStart, startEvent } from '../lib/store/event-files.ts';
import { readJobImages, type JobImage } from '../lib/store/job-files.ts';
import { holdForStep } from '../lib/store/lease.ts';
import { recallNodeFacts } from '../lib/store/node-facts-file.ts';
import { findSource, obtainEntry } from '../lib/store/obtain-entry.ts';
import { discardOwn, evictOwnEntries } from '../lib/store/own-entries.ts';
import { askForRoom } from '../lib/store/room-ask.ts';
import { findUserDirectory } from '../lib/store/user-directory.ts';
import type { UserIds } from '../lib/system/as-user.ts';
import { elapsedMs } from '../lib/system/clock.ts';
import type { Directory } from '../lib/system/directory.ts';
import { readUsage } from '../lib/system/disk-usage.ts';
import { unlessErrno, userMadeErrnos } from '../lib/system/errno.ts';
import { findMountedEntries } from '../lib/system/mounts.ts';
import { processParent, processStartedMs } from '../lib/system/processes.ts';
import { readSettings } from '../lib/system/settings-file.ts';
import { openLog, type Log } from '../lib/system/syslog.ts';

const usage = 'Usage: container-cache acquire [--existing] IMAGE\n';

interface Request {
  readonly jobId: number;
  readonly user: UserIds;
  readonly image: string;
  /** Unpack nothing: take what is there. */
  readonly existingOnly: boolean;
  readonly settings: Settings;
  readonly environment: Environment;
  readonly log: Log['write'];
}

/** @returns the exit code: 0, 1 if the entry cannot be had, 2 for wrong usage */
export async function runAcquire(parameters: readonly string[], environment: Environment): Promise<number> {
  const existingOnly = parameters[0] === '--existing';
  const [image, ...rest] = existingOnly ? parameters.slice(1) : parameters;
  if (image === undefined || image.startsWith('-') || rest.length > 0) {
    process.stderr.write(usage);
    return 2;
  }
  const parsed = readSettings(environment);
  const log = openLog(logSettingsOf(parsed));
  const user = { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 };
  let jobId: number | undefined;
  let acquired: Acquired | undefined;
  let warning: string | undefined;
  let error: unknown;
  try {
    jobId = readJobId(environment);
    const settings = requireSettings(parsed);
    const held = await acquire({ jobId, user, image, existingOnly, settings, environment, log: log.write });
    ({ acquired, warning } = held);
    process.stdout.write(`${acquired.entry.name} ${held.holderPid ?? '-'} ${acquired.result}\n`);
  } catch (cause) {
    error = cause;
  }
  const code = error === undefined ? undefined : faultCode(error);
  const isFine = (error === undefined && warning === undefined) || code === 'UNPACKING';
  const level = code === 'NOT_CACHED' ? 'debug' : isFine ? 'info' : 'warning';
  log.write(level, 'acquire', {
    job: jobId,
    uid: user.uid,
    image,
    result: acquired?.result ?? 'failed',
    entry: acquired?.entry.name,
    code,
    reason: error === undefined ? warning : `${describeError(error)}; enroot unpacks for itself`,
    unpack_ms: acquired?.unpackMs,
    total_ms: Math.round(elapsedMs()),
  });
  // Of an entry that was there, the wrapper notes each container that starts from it.
  if (jobId !== undefined && parsed.settings !== undefined && acquired?.result !== 'reused')
    noteStepStart(user, userPath(parsed.settings.basePath, user.uid), jobId, {
      ...startEvent('step', acquired, error),
      image: code === 'UNPACKING' ? wholeName(image) : undefined,
    });
  if (acquired !== undefined && !isMountedEntryName(acquired.entry.name))
    noteIfMountable(wholeName(image), user, jobId, parsed.settings);
  await log.flush();
  return error === undefined ? 0 : 1;
}

/** The Epilog has it mounted for the next time (lib/store/mounted-entry.ts). */
function noteIfMountable(
  image: string,
  user: UserIds,
  jobId: number | undefined,
  settings: Settings | undefined,
): void {
  if (jobId === undefined || settings === undefined || !isBelowTrusted(image, settings.trustedImages)) return;
  noteMountable(user, userPath(settings.basePath, user.uid), jobId, image);
}

/** As it can be found from anywhere. */
function wholeName(image: string): string {
  const wanted = parseImage(image, process.cwd());
  return wanted.kind === 'path' ? wanted.path : wanted.uri;
}

interface Held {
  readonly acquired: Acquired;
  readonly holderPid: number | undefined;
  readonly warning: string | undefined;
}

async function acquire(request: Request): Promise<Held> {
  const { jobId, user, settings } = request;
  const base = openBase(settings);
  const userDirectory = findUserDirectory(base, user.uid);
  if (userDirectory === undefined) {
    throw new NodeFault(
      'USER_DIRECTORY',
      `Cannot use user directory "${userPath(base.path, user.uid)}": the Prolog has not made it, or something is mounted in it`,
    );
  }
  const wanted = parseImage(request.image, process.cwd());
  const source = await findSource(user, wanted, settings, { kind: 'user', environment: request.environment });
  const view = source.kind === 'path' ? openPreparedView(request, source) : undefined;
  if (view !== undefined) return view;
  const isTemporary = source.kind === 'path' && (await isOneTimeFile(request, userDirectory.path, source));
  const acquired = await obtainEntry(
    { user, jobId, image: request.image, source, userPath: userDirectory.path, settings },
    request.existingOnly || isTemporary || settings.createMode === 'background'
      ? {
          kind: 'find',
          // Where an image is started as it is, nobody waits for it to be read.
          readsImage: !request.existingOnly,
          refuse: () => Promise.reject(whyMissing(request, isTemporary)),
        }
      : { kind: 'unpack', openCreator: () => openCreator(request, base, userDirectory, source) },
  );
  try {
    const isLeased = isLeasedByProlog(settings.runtimePath, jobId, acquired.entry.name);
    return {
      acquired,
      holderPid: isLeased ? undefined : holdForStep(jobId, user.uid, acquired.entry),
      warning: (source.kind === 'registry' ? source.warning : undefined) ?? whyNoView(request),
    };
  } finally {
    closeSync(acquired.entry.fd);
  }
}

function whyMissing({ image, existingOnly }: Request, isTemporary: boolean): JobFault {
  if (isTemporary) return new JobFault('NOT_CACHED', `"${image}" is a temporary file of another program`);
  return existingOnly
    ? new JobFault('NOT_CACHED', `There is no entry of "${image}"`)
    : new JobFault('UNPACKING', `"${image}" is unpacked when the job is over (create_mode=background)`);
}

/** Of what is gone when the step is over no entry is made, but one that is there may be used. */
async function isOneTimeFile(
  { user, settings, environment }: Request,
  userDirectoryPath: string,
  source: SquashfsSource,
): Promise<boolean> {
  const { importerOf, isOfOneUse, isTemporary } = await import('../lib/image/importer.ts');
  const facts = recallNodeFacts(settings.runtimePath);
  if (isTemporary(source.realPath, [facts?.pyxisRuntimePath, environment['PYXIS_RUNTIME_PATH']])) return true;
  const importer = importerOf(facts);
  return importer !== undefined && isOfOneUse(user, userDirectoryPath, importer, source, stepStartedMs());
}

/** pyxis' process in the step, the parent of the wrapper that started us. */
function stepStartedMs(): number | undefined {
  const pyxis = processParent(process.ppid);
  return pyxis === undefined ? undefined : processStartedMs(pyxis);
}

async function openCreator(
  { jobId, user, image, settings, environment, log }: Request,
  base: Directory,
  userDirectory: Directory,
  source: ImageSource,
): Promise<EntryCreator> {
  const { runtimePath } = settings;
  const wanted = source.kind === 'path' ? source.path : source.importUri;
  if (isCollectionDue(readUsage(base.path), settings)) {
    const answer = await askForRoom(runtimePath, { kind: 'entry', image: wanted });
    if (answer === undefined)
      throw new JobFault(
        'NO_SPACE',
        `Cannot unpack "${image}": "${base.path}" is full up to the high watermark, and nobody makes room (the room agent does not answer)`,
      );
  }
  let known: KnownShortage | undefined;
  const enroot =
    source.kind === 'registry'
      ? await openEnroot(settings.enrootPath, user, userDirectory.path, environment)
      : undefined;
  const context = {
    user,
    source,
    userPath: userDirectory.path,
    processors: settings.createProcessors,
    policy: settings,
    enroot,
    readUsage: () => readUsage(base.path),
    // Root's to do: the next Prolog or Epilog does.
    startCollector: () => undefined,
    // Root measures image files, no trees.
    keepsLayers: settings.maxSize === undefined,
    makeRoom: async (
      _need: SpaceNeed,
      imagePath: string | undefined,
      limitMs: number,
    ): Promise<RoomResult> => {
      const answer = await askForRoom(runtimePath, { kind: 'entry', image: imagePath ?? wanted }, limitMs);
      const isUnknown = answer === undefined && settings.maxSize !== undefined;
      return answer === 'over-limit' || isUnknown ? 'over-limit' : 'done';
    },
    makeImportRoom: async (uri: string, limitMs: number): Promise<void> => {
      if (!isGoalReached(readUsage(base.path), settings))
        await askForRoom(runtimePath, { kind: 'entry', image: uri }, limitMs);
    },
    // Only root sees all entries; it is asked by makeRoom.
    measureCache: () => Promise.resolve(Infinity),
    onProgress: () => undefined,
    log,
    onShortage: (shortage: KnownShortage): void => {
      known = shortage;
    },
  };
  return {
    fill: (...parameters) => fillRootfs(context, ...parameters),
    recover: async (code, attempt, limitMs) => {
      if (code === 'NO_SPACE' && (attempt > 1 || known?.isHopeless === true)) return false;
      const kind = code === 'NO_SPACE' ? 'entry' : 'quota';
      const answer = await askForRoom(runtimePath, { kind, image: wanted }, limitMs);
      if (answer !== undefined || kind === 'entry') return answer === 'room';
      const { need, written } = known ?? {};
      const rest = need && quotaNeed(need, written, attempt);
      return (await evictOwnEntries(base.path, userDirectory, user, jobId, rest)) > 0;
    },
    isMounted: (name) => findMountedEntries(base.path)(user.uid, name),
    discard: (name) => {
      discardOwn(userDirectory.path, name, jobId, user.uid);
    },
  };
}

/** What the Prolog noted; nothing where it cannot be read. */
function readImages(runtimePath: string, jobId: number): readonly JobImage[] {
  try {
    return readJobImages(runtimePath, jobId) ?? [];
  } catch {
    return [];
  }
}

/** What the Prolog has leased stays until the Epilog. */
const isLeasedByProlog = (runtimePath: string, jobId: number, name: string): boolean =>
  readImages(runtimePath, jobId).some(({ entry }) => entry === name);

/** Its mount point is root's: of a view that Slurm hides from this job, only that is here (job_container). */
const isViewOf = ({ uid }: UserIds, path: string): boolean =>
  unlessErrno(userMadeErrnos, () => statSync(path))?.uid === uid;

/** The view of an image that the Prolog made for the steps, whatever path leads to it. The job holds it. */
function openPreparedView(
  { settings: { runtimePath }, jobId, user }: Request,
  source: SquashfsSource,
): Held | undefined {
  const name = mountedEntryName(source.identity);
  if (!isLeasedByProlog(runtimePath, jobId, name)) return undefined;
  const path = viewPath(runtimePath, user.uid, name);
  return isViewOf(user, path)
    ? {
        acquired: { entry: { name, path, fd: -1 }, result: 'reused', unpackMs: undefined },
        holderPid: undefined,
        warning: undefined,
      }
    : undefined;
}

/** Why the image's mounted entry, which the Prolog has made ready for the job, is of no use to this step. */
function whyNoView({ settings: { runtimePath }, jobId, user, image }: Request): string | undefined {
  const entry = readImages(runtimePath, jobId).find((one) => one.image === image)?.entry;
  if (entry === undefined || !isMountedEntryName(entry)) return undefined;
  const path = viewPath(runtimePath, user.uid, entry);
  return isViewOf(user, path)
    ? undefined
    : `this job does not see ${path}, which the Prolog made: Slurm gives it mounts of its own (job_container)`;
}
