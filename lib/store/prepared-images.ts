/**
 * Views for the steps of a job. An inner `srun` starts no Prolog, and its process can mount nothing: so the
 * job's Prolog makes the views of the mounted images that the user used last (`prepare_images`), and the job
 * holds them.
 *
 * Each image is looked at as the user, as if the job had named it: a view of one that the user cannot read
 * any more is taken away, and one that was replaced is made ready in the background, for a later job.
 */
import { closeSync } from 'node:fs';
import { faultCode } from '../core/faults.ts';
import { probeSquashfs, type SquashfsSource } from '../image/image-source.ts';
import { elapsedMs } from '../system/clock.ts';
import type { HeldEntry } from './held-entry.ts';
import { obtainMounted } from './mounted-entry.ts';
import { forgetMountedUse, imageOfMounted, listMountedUses, noteMountedUse } from './mounted-store.ts';
import { dropView } from './views.ts';

type Request = Omit<Parameters<typeof obtainMounted>[0], 'source' | 'onPercent'>;

export interface PreparedImage {
  readonly source: SquashfsSource;
  readonly entry: HeldEntry;
}

/** The job waits no longer for what it may not want: a filesystem hangs, or the node is very busy. */
const prepareLimitMs = 1000;

/**
 * @param own the entry of the image that the job itself names: it was looked at
 * @returns the others, held, the one that was used last first
 */
export async function prepareImages(request: Request, own: string | undefined): Promise<PreparedImage[]> {
  const { base, user, settings } = request;
  const startMs = elapsedMs();
  const prepared: PreparedImage[] = [];
  const used = listMountedUses(base.path, user.uid).filter((name) => name !== own);
  for (const name of used.slice(0, settings.prepareImages)) {
    const remainingMs = prepareLimitMs - (elapsedMs() - startMs);
    if (remainingMs <= 0) break;
    const image = await within(remainingMs, prepareImage(request, name));
    if (image === 'late') break;
    if (image === undefined) continue;
    // Two former contents of a file lead to the one of now.
    const isKnown = image.entry.name === own || prepared.some(({ entry }) => entry.name === image.entry.name);
    if (isKnown) closeSync(image.entry.fd);
    else prepared.push(image);
  }
  return prepared;
}

async function within<T>(limitMs: number, work: Promise<T>): Promise<T | 'late'> {
  const { promise: late, resolve } = Promise.withResolvers<'late'>();
  const timer = setTimeout(() => {
    resolve('late');
  }, limitMs);
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}

async function prepareImage(request: Request, name: string): Promise<PreparedImage | undefined> {
  const { base, user, settings } = request;
  const path = imageOfMounted(base.path, name);
  if (path === undefined) return undefined;
  let source: SquashfsSource;
  try {
    source = await probeSquashfs(user, { kind: 'path', path });
  } catch (error) {
    // Of one that does not answer nobody knows.
    if (faultCode(error) !== 'IMAGE_UNREADABLE') return undefined;
    dropView(settings.runtimePath, user.uid, name);
    forgetMountedUse(base.path, user.uid, name);
    return undefined;
  }
  const mounted = await obtainMounted({
    ...{ ...request, source, isPrepared: true },
    // What is not there yet, no job waits for.
    settings: { ...settings, createMode: 'background' },
    onPercent: () => undefined,
  });
  if (typeof mounted === 'string' || !('acquired' in mounted)) return undefined;
  const { entry } = mounted.acquired;
  if (entry.name !== name) {
    noteMountedUse(base.path, user.uid, entry.name);
    forgetMountedUse(base.path, user.uid, name);
  }
  return { source, entry };
}
