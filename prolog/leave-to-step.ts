/**
 * Where a registry does not answer the Prolog: the step asks, with the job's environment. Until then nothing
 * is known of the image, but the entry of the digest seen last stays on the node.
 */
import { closeSync } from 'node:fs';
import type { Job } from '../lib/core/job.ts';
import { entryName } from '../lib/core/layout.ts';
import { RegistryFault } from '../lib/core/registry-failure.ts';
import type { Settings } from '../lib/core/settings.ts';
import { keyOfName } from '../lib/image/content.ts';
import type { ImageSource } from '../lib/image/image-source.ts';
import { noteRegistryFailure } from '../lib/image/registry-memory.ts';
import { findEntry } from '../lib/store/entry.ts';
import { askStamp, writeJobFiles } from '../lib/store/job-files.ts';
import { releaseLease, takeLease } from '../lib/store/lease.ts';
import type { Directory } from '../lib/system/directory.ts';

interface Context {
  readonly job: Job;
  readonly settings: Settings;
  readonly userDirectory: Directory;
}

/**
 * @param image as pyxis hands it to enroot
 * @param source of an import that failed
 * @returns the entry that is leased for the job's steps
 */
export async function keepForStep(
  context: Context,
  image: string,
  source: ImageSource | undefined,
  error: unknown,
): Promise<string | undefined> {
  if (!(error instanceof RegistryFault)) return undefined;
  const { job, settings } = context;
  if (source?.kind === 'registry' && !error.isRemembered)
    noteRegistryFailure(settings.runtimePath, job.uid, source.image, error.failure);
  if (error.lastHash === undefined) return undefined;
  try {
    return await keepEntry(context, image, entryName(job.uid, error.lastHash));
  } catch {
    // It may be collected before the step wants it; the step says what came of that.
    return undefined;
  }
}

async function keepEntry(
  { job, settings, userDirectory }: Context,
  image: string,
  name: string,
): Promise<string | undefined> {
  const found = await findEntry({ user: job, userPath: userDirectory.path, key: keyOfName(name) });
  if (found === undefined || found === 'creating') return undefined;
  try {
    takeLease(settings.runtimePath, job, [found.entry]);
  } finally {
    closeSync(found.entry.fd);
  }
  try {
    writeJobFiles(settings.runtimePath, job, {
      environment: '',
      images: [{ image, entry: name, stamp: askStamp }],
    });
  } catch (error) {
    releaseLease(settings.runtimePath, job.jobId);
    throw error;
  }
  return name;
}
