/** Making entries ahead of time: what a Prolog does for a job, without one. */
import { closeSync } from 'node:fs';
import process from 'node:process';
import { JobFault } from '../lib/core/faults.ts';
import { parseImage } from '../lib/core/image.ts';
import { noImporter } from '../lib/core/node-facts.ts';
import type { ImageSource } from '../lib/image/image-source.ts';
import type { Acquired } from '../lib/store/entry.ts';
import { recordEvents, startEvent } from '../lib/store/event-files.ts';
import { obtainMounted, readyForAll } from '../lib/store/mounted-entry.ts';
import { recallNodeFacts } from '../lib/store/node-facts-file.ts';
import { findSource, obtainEntry } from '../lib/store/obtain-entry.ts';
import { openCreator, type Provision } from '../lib/store/provision.ts';
import { openUserDirectory } from '../lib/store/user-directory.ts';
import type { UserIds } from '../lib/system/as-user.ts';
import type { Directory } from '../lib/system/directory.ts';
import { UsageError } from './usage-error.ts';

interface WarmRequest extends Pick<Provision, 'settings' | 'base' | 'log' | 'configPath' | 'onProgress'> {
  /** undefined: all who may read it */
  readonly user: UserIds | undefined;
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

/** @throws JobFault, NodeFault, as a Prolog meets them; for everyone, NotMounted or UsageError */
export async function warmEntry({ user, ...request }: WarmRequest): Promise<Warmed> {
  if (user === undefined) return warmForAll(request);
  const { statePath } = request.settings;
  try {
    const { acquired, warning } = await acquire({ ...request, user });
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

const root: UserIds = { uid: 0, gid: 0 };

async function warmForAll(request: Omit<WarmRequest, 'user'>): Promise<Warmed> {
  const { settings, base, configPath } = request;
  const wanted = parseImage(request.image, process.cwd());
  if (wanted.kind !== 'path' || settings.trustedImages.length === 0)
    throw new UsageError(
      'for everyone there are only image files below a directory of trusted_images; name a user with --user',
    );
  const source = await findSource(root, wanted, settings, { kind: 'user' });
  if (source.kind !== 'path') throw new UsageError(`${request.image} is no file`);
  request.onSize?.(source.sizes.claimedBytes);
  const { name, result, unpackMs } = await readyForAll({
    ...{ settings, base, source, configPath },
    ...onNode(request),
  });
  if (result === 'created')
    recordEvents(settings.statePath, [
      { kind: 'start', atMs: Date.now(), source: 'warm', result, entry: name, unpackMs },
    ]);
  return { entry: name, result, unpackMs, warning: undefined };
}

/** What a Prolog asks its node, and tells its log. */
function onNode({
  settings,
  onProgress,
}: Pick<WarmRequest, 'settings' | 'onProgress'>): Pick<
  Parameters<typeof obtainMounted>[0],
  'findIsolation' | 'onPercent'
> {
  return {
    findIsolation: () => Promise.resolve(recallNodeFacts(settings.runtimePath)?.isolation ?? 'overlay'),
    onPercent: (percent) => {
      onProgress({ phase: 'unpack', percent });
    },
  };
}

/**
 * An image that root trusts is mounted for all users. @returns undefined if it is not, for whatever reason
 */
async function mount(request: UserRequest, source: ImageSource): Promise<Acquired | undefined> {
  const { settings, base, user, configPath } = request;
  if (source.kind !== 'path' || settings.trustedImages.length === 0) return undefined;
  const mounted = await obtainMounted({
    ...{ base, user, source, configPath },
    // We are what runs in the background.
    settings: { ...settings, createMode: 'wait' },
    ...onNode(request),
  });
  return mounted !== 'making' && 'acquired' in mounted ? mounted.acquired : undefined;
}

type UserRequest = WarmRequest & { readonly user: UserIds };

async function acquire(
  request: UserRequest,
): Promise<{ readonly acquired: Acquired; readonly warning: string | undefined }> {
  const { user, settings, base, image } = request;
  const userDirectory: Directory = openUserDirectory(base, user);
  try {
    const wanted = parseImage(image, process.cwd());
    const importer = wanted.kind === 'registry' ? recallNodeFacts(settings.runtimePath)?.importer : undefined;
    if (importer !== undefined && importer !== noImporter)
      throw new JobFault(
        'UNSUPPORTED_OPTION',
        `pyxis fetches registry images with "${importer}": warm the file that this program keeps`,
      );
    const source = await findSource(user, wanted, settings, { kind: 'user' });
    if (source.kind === 'path') request.onSize?.(source.sizes.claimedBytes);
    const mounted = await mount(request, source);
    if (mounted !== undefined) return { acquired: mounted, warning: undefined };
    const acquired = await obtainEntry(
      { user, jobId: noJobId, image, source, userPath: userDirectory.path, settings },
      { kind: 'unpack', openCreator: () => openCreator({ ...request, userDirectory, source }) },
    );
    return { acquired, warning: source.kind === 'registry' ? source.warning : undefined };
  } finally {
    closeSync(userDirectory.fd);
  }
}
