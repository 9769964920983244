/**
 * What a job finds in `<runtime>/jobs/<jobid>`: its task environment and which image is which entry.
 *
 * Root writes them and only the job's group can read them: owned by the user they could be filled until the
 * tmpfs is full.
 */
import { chownSync, chmodSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { jobEnvName, jobImagesName, jobPath, jobsPath, parseIdName } from '../core/layout.ts';
import { writeFileAtomically } from '../system/aside.ts';
import { isGone, unlessErrno } from '../system/errno.ts';
import { readSmallFile } from '../system/files.ts';
import { prepareRuntimeDirectory } from '../system/runtime-directory.ts';
import type { AcquireResult } from './entry.ts';

interface JobFiles {
  readonly environment: string;
  readonly images: readonly JobImage[];
}

/** An image of the job and its entry, a line of `images`: the four with tabs between. */
export interface JobImage {
  /** As pyxis hands it to enroot: the path that was given, or the URI with its `docker://`. */
  readonly image: string;
  readonly entry: string;
  /**
   * By which the enroot wrapper sees whether the answer holds for a step. Of a file: what the Prolog saw of
   * it (image-source.ts). Of a tag: the home directory with whose credentials the Prolog asked, `-` if nobody
   * was asked, or `ask`. Without an entry (`-`): `later` if it may be there by the time of a step, or a file
   * of one use that the Prolog has fetched for it.
   */
  readonly stamp: string;
  /** How the Prolog came by the entry, for the wrapper to note with each start; else it tells nothing. */
  readonly result?: AcquireResult | undefined;
}

const heldFileMark = '=';
export const heldFileStamp = (path: string): string => `${heldFileMark}${path}`;
/** @returns the path; undefined: the stamp says something else */
export const heldFileOf = ({ entry, stamp }: JobImage): string | undefined =>
  entry === '-' && stamp.startsWith(`${heldFileMark}/`) ? stamp.slice(heldFileMark.length) : undefined;
/** The registry did not tell the Prolog: the entry is only kept for the steps, each of which asks. */
export const askStamp = 'ask';

/** Everybody may pass, so that the job's group reaches its files; nobody may look around. */
const passableMode = 0o711;
const groupDirectoryMode = 0o750;
const groupFileMode = 0o640;

export function writeJobFiles(
  runtimePath: string,
  job: { jobId: number; gid: number },
  files: JobFiles,
): void {
  prepareRuntimeDirectory(runtimePath, jobsPath(runtimePath), passableMode);
  const path = jobPath(runtimePath, job.jobId);
  unlessErrno(['EEXIST'], () => mkdirSync(path, { mode: 0o700 }));
  const owner = { mode: groupFileMode, gid: job.gid };
  // A tab or a newline in a name would make a line of its own; such an image is simply not listed.
  const lines = files.images
    .filter(({ image }) => !/[\t\n]/.test(image))
    .map(({ image, entry, stamp, result = '-' }) => `${image}\t${entry}\t${stamp}\t${result}\n`);
  writeFileAtomically(`${path}/${jobImagesName}`, lines.join(''), owner);
  writeFileAtomically(`${path}/${jobEnvName}`, files.environment, owner);
  chownSync(path, 0, job.gid);
  chmodSync(path, groupDirectoryMode);
}

export function removeJobFiles(runtimePath: string, jobId: number): void {
  rmSync(jobPath(runtimePath, jobId), { recursive: true, force: true });
}

/** Undoes writeJobFiles for one of its files. @returns undefined if the job has no files */
export function readJobImages(runtimePath: string, jobId: number): JobImage[] | undefined {
  const text = readSmallFile(`${jobPath(runtimePath, jobId)}/${jobImagesName}`, longestImagesBytes);
  return text?.split('\n').flatMap((line) => {
    const [image, entry, stamp] = line.split('\t');
    return image === undefined || entry === undefined || stamp === undefined ? [] : [{ image, entry, stamp }];
  });
}

/** A path may have 4,096 bytes, and there may be one for the job and 64 for its steps (`prepare_images`). */
const longestImagesBytes = 512 * 1024;

/** The job IDs that have files. */
export function listJobFiles(runtimePath: string): number[] {
  const names = unlessErrno(isGone, () => readdirSync(jobsPath(runtimePath))) ?? [];
  return names.flatMap((name) => parseIdName(name) ?? []);
}
