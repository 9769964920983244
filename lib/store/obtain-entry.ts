/**
 * The one way from an image to its entry, for a Prolog, a step and `warm`:
 *
 *   source (image-source.ts, digests.ts) → entry name (content.ts) → time limit → reuse or unpack (entry.ts)
 *   → note the use
 *
 * What differs by who asks is an EntryMaker.
 */
import { closeSync } from 'node:fs';
import type { ImageRequest } from '../core/image.ts';
import { createLimitMs, type Settings } from '../core/settings.ts';
import { entryKey } from '../image/content.ts';
import type { Asker } from '../image/digests.ts';
import { probeSquashfs, type ImageSource } from '../image/image-source.ts';
import type { UserIds } from '../system/as-user.ts';
import { acquireEntry, findEntry, type Acquired, type EntryCreator } from './entry.ts';
import { touchEntry } from './held-entry.ts';

/**
 * What is behind an image name, looked at as the user.
 *
 * @throws JobFault IMAGE_UNREADABLE, NOT_SQUASHFS, USER_UNKNOWN; RegistryFault; NodeFault TOOL_MISSING
 */
export async function findSource(
  user: UserIds,
  image: ImageRequest,
  settings: Settings,
  asker: Asker,
): Promise<ImageSource> {
  if (image.kind === 'path') return probeSquashfs(user, image);
  // A job with an image file does not load it.
  const { findRegistrySource } = await import('../image/digests.ts');
  return findRegistrySource(user, image, settings, asker);
}

interface EntryRequest {
  readonly user: UserIds;
  /** 0: no job's. */
  readonly jobId: number;
  /** As the job, or the admin, called it. */
  readonly image: string;
  readonly source: ImageSource;
  /** The user directory, absolute. */
  readonly userPath: string;
  readonly settings: Settings;
}

export type EntryMaker = Unpacker | Finder;

/** Waits for an unpack. */
interface Unpacker {
  readonly kind: 'unpack';
  /** Loads what only a missing entry needs: who unpacks it, and who makes room for it. */
  readonly openCreator: () => Promise<EntryCreator>;
  /** Why the use of an entry could not be noted, if that makes it useless. */
  readonly findFault?: () => Error | undefined;
}

/** Takes an entry that is there. */
interface Finder {
  readonly kind: 'find';
  /** Whether an image that nobody has read before is read, to find out its name. */
  readonly readsImage: boolean;
  /** @param found `creating`: somebody else is unpacking the image */
  readonly refuse: (found: 'creating' | undefined) => Promise<never>;
  readonly findFault?: () => Error | undefined;
}

/**
 * @returns the entry, held and used now
 * @throws JobFault, NodeFault, RegistryFault
 */
export async function obtainEntry(request: EntryRequest, maker: EntryMaker): Promise<Acquired> {
  const acquired = maker.kind === 'unpack' ? await acquireFor(request, maker) : await findFor(request, maker);
  const fault = touchEntry(request.user, acquired.entry.path) ? undefined : maker.findFault?.();
  if (fault === undefined) return acquired;
  closeSync(acquired.entry.fd);
  throw fault;
}

function acquireFor(request: EntryRequest, { openCreator }: Unpacker): Promise<Acquired> {
  const { user, jobId, image, source, userPath, settings } = request;
  return acquireEntry({
    ...{ user, userPath, jobId, image },
    key: entryKey(user, userPath, source),
    limitMs: createLimitMs(settings, source.kind === 'path' ? source.sizes : undefined),
    creator: async () => {
      if (source.kind === 'registry') await source.confirm?.();
      return openCreator();
    },
  });
}

async function findFor(request: EntryRequest, { readsImage, refuse }: Finder): Promise<Acquired> {
  const { user, source, userPath, settings } = request;
  const key = entryKey(user, userPath, source);
  // To read an image takes less than to unpack it.
  const name = key.name ?? (readsImage ? await key.identify(createLimitMs(settings, undefined)) : undefined);
  const found = await findEntry({ user, userPath, key: { ...key, name } });
  return found === undefined || found === 'creating' ? refuse(found) : found;
}
