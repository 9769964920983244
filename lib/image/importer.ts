/**
 * pyxis' `importer=`: a program of the site that fetches images of registries instead of enroot (pyxis,
 * importers/README.md).
 *
 *   IMPORTER get URI     prints the path of a squashfs file: the image of the entry
 *   IMPORTER release     the file is not needed any more
 *
 *   1. The Prolog runs `get` as the user, before the step does, makes an entry of the file, and runs
 *      `release`.
 *   2. pyxis runs `get` again in each step and hands the same file to `create` or `start`: its content has
 *      the entry.
 *
 * This works only if the file stays. A file that is gone after `release`, or lies in pyxis' `runtime_path`,
 * is of one use: its bytes are others each time (mksquashfs writes its time), so no entry is made of it. The
 * first Prolog of a user may have fetched such a file; the wrapper gives it to the step's importer by a
 * rename (cc_take_held), so nothing is downloaded twice. `.images/importer` notes this for the user and this
 * file of the importer, and later Prologs leave such images to the steps.
 *
 * Where no Prolog saw the image, a step notes of which file it made an entry. If that file is gone at the
 * next look, and the step's own importer had just made it, no further entry is made.
 *
 * A Prolog lacks the job's variables. So a failed `get` is no answer: the step asks, and Prologs of the user
 * do not ask for that image again for ten minutes. Not solved: an importer that deletes files outside of
 * `runtime_path` costs each user of a node one more download, once.
 */
import { existsSync, lstatSync, mkdirSync, chownSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { JobFault } from '../core/faults.ts';
import type { RegistryImage } from '../core/image.ts';
import type { Environment, Job } from '../core/job.ts';
import { imagesName, importerNoteName } from '../core/layout.ts';
import { noImporter, type NodeFacts } from '../core/node-facts.ts';
import { asUser, type UserIds } from '../system/as-user.ts';
import { inDirectoryOf, inIndexOf, readSmallFileBeneath, writeFileBeneath } from '../system/beneath.ts';
import { isGone, unlessErrno } from '../system/errno.ts';
import { CommandFailed, run, runBriefly, systemPath, type Command } from '../system/run-command.ts';
import { lookUpHome } from './enroot-program.ts';
import { probeSquashfs, type SquashfsSource } from './image-source.ts';

/** SLURM_EXTERN_CONT, the step of no program: what an importer names by the step is not that of a step. */
const prologStepId = '4294967292';
const releaseLimitMs = 60_000;
const lookLimitMs = 15_000;
const graceSeconds = 5;
/**
 * A Prolog has not the job's credentials and proxies. Its failure tells little, and is not repeated at once.
 */
const failureHoldsMs = 10 * 60_000;

export interface Importer {
  readonly path: string;
  readonly runtimePath: string;
  readonly version: string | undefined;
  readonly enrootPath: string | undefined;
}

/** @returns undefined: this node's pyxis has none, or nobody can say */
export function importerOf(facts: NodeFacts | undefined): Importer | undefined {
  if (facts?.importer === undefined || facts.importer === noImporter) return undefined;
  const { pyxisRuntimePath, pyxisVersion, enrootPath } = facts;
  return {
    path: facts.importer,
    runtimePath: pyxisRuntimePath ?? '/run/pyxis',
    version: pyxisVersion,
    enrootPath,
  };
}

export interface ImportRequest {
  readonly importer: Importer;
  readonly job: Job;
  readonly environment: Environment;
  readonly userPath: string;
  readonly image: RegistryImage;
  readonly limitMs: number;
}

interface Imported {
  /** Undefined: the file is of one use, which the step has of it; nothing is made of it. */
  readonly source: SquashfsSource | undefined;
  readonly path: string;
  readonly release: () => Promise<void>;
}

/**
 * Gets the image as the job's steps will.
 *
 * @throws JobFault UNSUPPORTED_OPTION if its files are known to be of one use, IMPORT_FAILED if it fails: no
 *   answer, since it lacks the job's environment
 */
export async function getFromImporter(request: ImportRequest): Promise<Imported> {
  const { importer, job, userPath, image } = request;
  const note = readNote(job, userPath, importer);
  if (note?.state === 'one-time')
    throw new JobFault(
      'UNSUPPORTED_OPTION',
      `Files of "${importer.path}" are gone after their use: each step gets its own`,
    );
  if (note?.state === 'failed' && note.about === image.uri && Date.now() - note.sinceMs < failureHoldsMs)
    throw new JobFault('UNSUPPORTED_OPTION', `"${importer.path} get" failed a moment ago; the step tries`);
  makeRuntimeDirectory(importer.runtimePath, job);
  const call = await openCalls(request);
  const release = async (): Promise<void> => {
    await run(call(['release'], releaseLimitMs)).catch((error: unknown) => {
      if (!(error instanceof CommandFailed)) throw error;
    });
  };
  let path: string;
  try {
    const { stdout } = await run(call(['get', image.uri], request.limitMs));
    path = stdout.toString('utf8').split('\n', 1)[0] ?? '';
    if (!path.startsWith('/')) throw new JobFault('IMPORT_FAILED', 'it named no absolute path');
  } catch (cause) {
    if (!(cause instanceof CommandFailed || cause instanceof JobFault)) throw cause;
    await release();
    writeNote(job, userPath, importer, 'failed', image.uri);
    throw new JobFault(
      'IMPORT_FAILED',
      `"${importer.path} get" failed without the job's environment, the step tries again`,
      { cause },
    );
  }
  if (isTemporary(path, [importer.runtimePath])) {
    writeNote(job, userPath, importer, 'one-time', path);
    return { source: undefined, path, release };
  }
  try {
    const source = await probeSquashfs(job, { kind: 'path', path });
    return { source, path, release };
  } catch (error) {
    await release();
    throw error;
  }
}

/** After the release: whether the file stayed. */
export async function noteWhatStayed(
  { importer, job, userPath }: ImportRequest,
  path: string,
): Promise<void> {
  // A child that runs as the user named the path: it may lead anywhere, and never answer.
  const look = asUser(job, { file: 'test', args: ['-e', path], timeoutMs: lookLimitMs });
  try {
    await runBriefly(look);
    writeNote(job, userPath, importer, 'kept', path);
  } catch (error) {
    if (!(error instanceof CommandFailed)) throw error;
    if (error.exitCode === 1) writeNote(job, userPath, importer, 'one-time', path);
  }
}

/** Files that pyxis or enroot make on the way, by where they keep such. */
export function isTemporary(realPath: string, runtimePaths: readonly (string | undefined)[]): boolean {
  return (
    runtimePaths.some((path) => path !== undefined && path !== '' && realPath.startsWith(`${path}/`)) ||
    // mktemp(1)'s, of an import.
    /\/enroot\.[A-Za-z0-9]{10}\//.test(realPath)
  );
}

/**
 * In a step: whether the file that came from the importer will be gone after it. What was made before the
 * step began was not made by the step's importer.
 *
 * @param stepStartedMs undefined: unknown
 */
export function isOfOneUse(
  user: UserIds,
  userPath: string,
  importer: Importer,
  { path, changedAt }: SquashfsSource,
  stepStartedMs: number | undefined,
): boolean {
  if (stepStartedMs !== undefined && Number(changedAt) * 1000 < stepStartedMs) return false;
  const note = readNote(user, userPath, importer);
  if (note?.state === 'one-time') return true;
  if (note?.state === 'made' && !existsSync(note.about)) {
    writeNote(user, userPath, importer, 'one-time', note.about);
    return true;
  }
  if (note?.state !== 'kept') writeNote(user, userPath, importer, 'made', path);
  return false;
}

async function openCalls({
  importer,
  job,
  environment,
}: ImportRequest): Promise<(args: readonly string[], limitMs: number) => Command> {
  const ofSlurm = Object.fromEntries(
    Object.entries(environment).filter(
      (pair): pair is [string, string] => pair[0].startsWith('SLURM_') && pair[1] !== undefined,
    ),
  );
  const enrootDirectory = importer.enrootPath === undefined ? '' : `${dirname(importer.enrootPath)}:`;
  const home = await lookUpHome(job);
  const variables = {
    ...ofSlurm,
    ...(home === undefined ? {} : { HOME: home }),
    PATH: `${enrootDirectory}${systemPath}`,
    USER: job.userName,
    LOGNAME: job.userName,
    SLURM_JOB_ID: String(job.jobId),
    SLURM_JOBID: String(job.jobId),
    SLURM_JOB_UID: String(job.uid),
    SLURM_JOB_GID: String(job.gid),
    SLURM_STEP_ID: prologStepId,
    SLURM_STEPID: prologStepId,
    PYXIS_RUNTIME_PATH: importer.runtimePath,
    ...(importer.version === undefined ? {} : { PYXIS_VERSION: importer.version }),
  };
  // As in enroot-program.ts: timeout(1) ends all that the importer started, when the time is up or when we
  // die.
  return (args, limitMs) =>
    asUser(
      job,
      {
        file: 'timeout',
        args: [`--kill-after=${graceSeconds}s`, `${Math.ceil(limitMs / 1000)}s`, importer.path, ...args],
        environment: variables,
        timeoutMs: limitMs + 2 * graceSeconds * 1000,
      },
      { canGain: true, deathSignal: 'TERM' },
    );
}

const anyoneMayWrite = 0o022;

/** pyxis makes it when the step starts, for the importer as well. */
function makeRuntimeDirectory(runtimePath: string, user: UserIds): void {
  const parent = unlessErrno(isGone, () => lstatSync(runtimePath));
  if (parent?.isDirectory() !== true || parent.uid !== 0 || (parent.mode & anyoneMayWrite) !== 0) return;
  unlessErrno(['EEXIST', 'ENOSPC', 'EROFS'], () => {
    const path = `${runtimePath}/${user.uid}`;
    mkdirSync(path, { mode: 0o700 });
    chownSync(path, user.uid, user.gid);
  });
}

/** `kept`: its files stay. `made`: an entry was made of one, `about`, which has not been seen to go yet. */
type NoteState = 'kept' | 'made' | 'one-time' | 'failed';

interface Note {
  readonly state: NoteState;
  readonly about: string;
  readonly sinceMs: number;
}

const longestNoteBytes = 16 * 1024;

/** Another program at the importer's path is another importer. */
function fingerprintOf({ path }: Importer): string {
  const stats = unlessErrno([...isGone, 'EACCES', 'ELOOP'], () => statSync(path));
  return stats === undefined ? path : `${path} ${stats.ino}-${stats.size}-${stats.mtimeMs}-${stats.ctimeMs}`;
}

function readNote(user: UserIds, userPath: string, importer: Importer): Note | undefined {
  try {
    const text = inDirectoryOf(user, userPath, (userDirectory) =>
      readSmallFileBeneath(userDirectory, `${imagesName}/${importerNoteName}`, longestNoteBytes),
    );
    const [fingerprint, state, sinceMs, about] = text?.trimEnd().split('\t') ?? [];
    if (fingerprint !== fingerprintOf(importer) || about === undefined) return undefined;
    if (state !== 'kept' && state !== 'made' && state !== 'one-time' && state !== 'failed') return undefined;
    return { state, about, sinceMs: Number(sinceMs) };
  } catch {
    return undefined;
  }
}

function writeNote(
  user: UserIds,
  userPath: string,
  importer: Importer,
  state: NoteState,
  about: string,
): void {
  const text = [fingerprintOf(importer), state, Date.now(), about.replaceAll(/[\t\n]/g, ' ')].join('\t');
  inIndexOf(user, userPath, imagesName, (index) => {
    writeFileBeneath(index, importerNoteName, `${text}\n`, 0o600);
  });
}
