/** Making entries ahead of time: what a Prolog does for a job, without one. */
import { closeSync } from 'node:fs';
import process from 'node:process';
import { JobFault } from '../lib/core/faults.ts';
import { parseImage } from '../lib/core/image.ts';
import { noImporter } from '../lib/core/node-facts.ts';
import { createLimitMs } from '../lib/core/settings.ts';
import { entryKey } from '../lib/store/content.ts';
import { findRegistrySource } from '../lib/store/digests.ts';
import { acquireEntry, type Acquired } from '../lib/store/entry.ts';
import { recordEvents, startEvent } from '../lib/store/event-files.ts';
import { touchEntry } from '../lib/store/held-entry.ts';
import { probeSquashfs } from '../lib/store/image-source.ts';
import { recallNodeFacts } from '../lib/store/node-facts-file.ts';
import { openCreator, type Provision } from '../lib/store/provision.ts';
import { openUserDirectory } from '../lib/store/user-directory.ts';
import type { UserIds } from '../lib/system/as-user.ts';
import type { Directory } from '../lib/system/directory.ts';

interface WarmRequest extends Pick<Provision, 'settings' | 'base' | 'log' | 'configPath' | 'onProgress'> {
  readonly user: UserIds;
  readonly image: string;
  /** How large the image file is, as soon as it is known. */
  readonly onSize?: (bytes: number) => void;
}

export interface Warmed {
  readonly entry: string;
  readonly result: Acquired['result'];
  readonly unpackMs: number | undefined;
  /** Of a registry that did not answer. */
  readonly warning: string | undefined;
}

/** No job's: the next collector finds what is left of it. */
const noJobId = 0;

/** @throws JobFault, NodeFault, as a Prolog meets them */
export async function warmEntry(request: WarmRequest): Promise<Warmed> {
  const { statePath } = request.settings;
  try {
    const { acquired, warning } = await acquire(request);
    closeSync(acquired.entry.fd);
    const { result, unpackMs } = acquired;
    // One that was there already is no start of a container.
    if (result === 'created') recordEvents(statePath, [startEvent('warm', acquired, undefined)]);
    return { entry: acquired.entry.name, result, unpackMs, warning };
  } catch (error) {
    recordEvents(statePath, [startEvent('warm', undefined, error)]);
    throw error;
  }
}

async function acquire(
  request: WarmRequest,
): Promise<{ readonly acquired: Acquired; readonly warning: string | undefined }> {
  const { user, settings, base, image } = request;
  const userDirectory: Directory = openUserDirectory(base, user);
  try {
    const wanted = parseImage(image, process.cwd());
    const importer = wanted.kind === 'registry' ? recallNodeFacts(settings.runtimePath)?.importer : undefined;
    if (importer !== undefined && importer !== noImporter)
      throw new JobFault(
        'UNSUPPORTED_OPTION',
        `pyxis gets images of registries from "${importer}": warm the file that it keeps`,
      );
    const source =
      wanted.kind === 'path'
        ? await probeSquashfs(user, wanted)
        : await findRegistrySource(user, wanted, settings, { kind: 'user' });
    const sizes = source.kind === 'path' ? source.sizes : undefined;
    if (sizes !== undefined) request.onSize?.(sizes.claimedBytes);
    const acquired = await acquireEntry({
      user,
      jobId: noJobId,
      userPath: userDirectory.path,
      image,
      key: entryKey(user, userDirectory.path, source),
      limitMs: createLimitMs(settings, sizes),
      creator: () => openCreator({ ...request, userDirectory, source }),
    });
    touchEntry(user, acquired.entry.path);
    return { acquired, warning: source.kind === 'registry' ? source.warning : undefined };
  } finally {
    closeSync(userDirectory.fd);
  }
}
