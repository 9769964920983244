/**
 * Making an entry as root for a user: asking a registry, unpacking, making room.
 *
 * A module of its own so that a Prolog whose entry is there does not load it.
 */
import { fits, type CollectionPolicy, type Usage } from '../core/gc-plan.ts';
import type { SpaceNeed } from '../core/image.ts';
import { quotaNeed } from '../core/quota-need.ts';
import type { Settings } from '../core/settings.ts';
import { measureCacheBytes } from './cache-size.ts';
import { guessNeeds, makeRoomForImport } from './container-room.ts';
import { collect, evictForQuota, type CollectRequest } from './collector.ts';
import { fillRootfs, type CreateContext, type KnownShortage } from '../image/create.ts';
import { openEnroot } from '../image/enroot-program.ts';
import type { EntryCreator } from './entry.ts';
import { recordEvents } from './event-files.ts';
import type { ImageSource } from '../image/image-source.ts';
import { pinnedNames } from './pins.ts';
import { moveNamesToTrash } from './trash.ts';
import { startBackgroundCollector } from '../system/background.ts';
import type { UserIds } from '../system/as-user.ts';
import type { Directory } from '../system/directory.ts';
import { readUsage } from '../system/disk-usage.ts';
import { findMountedEntries } from '../system/mounts.ts';
import type { Log } from '../system/syslog.ts';

export interface Provision {
  readonly user: UserIds;
  readonly settings: Settings;
  readonly base: Directory;
  readonly userDirectory: Directory;
  readonly source: ImageSource;
  readonly log: Log;
  readonly configPath: string | undefined;
  readonly onProgress: CreateContext['onProgress'];
}

/** What acquireEntry needs to make an entry as root for a user. */
export async function openCreator(provision: Provision): Promise<EntryCreator> {
  const { user, settings, base, userDirectory, source, configPath } = provision;
  const enroot =
    source.kind === 'registry' ? await openEnroot(settings.enrootPath, user, userDirectory.path) : undefined;
  let known: KnownShortage | undefined;
  const collectRequest = (limitMs: number): CollectRequest => collectingWithin(provision, limitMs);
  const context: CreateContext = {
    user,
    source,
    userPath: userDirectory.path,
    processors: settings.createProcessors,
    policy: settings,
    enroot,
    readUsage: () => readUsage(base.path),
    startCollector: () => {
      startBackgroundCollector(settings.runtimePath, configPath);
    },
    keepsLayers: true,
    makeRoom: async (need, imagePath, limitMs) => {
      const isWritten = imagePath === undefined;
      const { isWithinLimit } = await collect({ ...collectRequest(limitMs), need, isWritten });
      return isWithinLimit ? 'done' : 'over-limit';
    },
    makeImportRoom: async (image, limitMs) => {
      await makeRoomForImport({ user, image, settings, base, collecting: collectRequest(limitMs) });
    },
    measureCache: () =>
      measureCacheBytes({
        base,
        runtimePath: settings.runtimePath,
        pinned: new Set(),
        log: provision.log.write,
      }),
    onProgress: provision.onProgress,
    log: provision.log.write,
    onShortage: (shortage) => {
      known = shortage;
    },
  };
  return {
    fill: async (...parameters) => {
      known = undefined;
      const filled = await fillRootfs(context, ...parameters);
      // Of several unpacks at once each saw the cache without the others.
      if (settings.maxSize !== undefined) startBackgroundCollector(settings.runtimePath, configPath);
      return filled;
    },
    recover: (code, attempt, limitMs) =>
      code === 'NO_SPACE'
        ? makeRoomAgain(collectRequest(limitMs), known, attempt)
        : makeQuota(collectRequest(limitMs), user, known, attempt),
    isMounted: (name) => findMountedEntries(base.path)(user.uid, name),
    discard: (name) => {
      moveNamesToTrash(base, userDirectory, [name]);
      startBackgroundCollector(settings.runtimePath, configPath);
    },
  };
}

/**
 * After the disk was full in the middle of an unpack, which others that write make possible, or an image that
 * needs more than it looks. Of an image that was not here yet nobody knows what it needs.
 */
export async function makeRoomAgain(
  request: CollectRequest,
  known: KnownShortage | undefined,
  attempt: number,
): Promise<boolean> {
  if (attempt > 1 || known?.isHopeless === true) return false;
  const usage = readUsage(request.base.path);
  const needs = known?.need === undefined ? moreThan(usage, request.policy) : [known.need];
  for (const need of needs.filter(({ bytes }) => bytes <= usage.totalBytes)) {
    await collect({ ...request, need });
    if (fits(readUsage(request.base.path), need)) return true;
  }
  return false;
}

/**
 * What was free was not enough, of bytes or inodes: of the scarcer as much more as can be had without
 * evicting anything in vain.
 */
function moreThan(usage: Usage, policy: CollectionPolicy): SpaceNeed[] {
  const { availableBytes, totalBytes, freeInodes, totalInodes } = usage;
  const isOfInodes = freeInodes * totalBytes < availableBytes * totalInodes;
  return guessNeeds(usage, policy).map(({ bytes, inodes }) =>
    isOfInodes ? { bytes: 0, inodes: freeInodes + inodes } : { bytes: availableBytes + bytes, inodes: 0 },
  );
}

export async function makeQuota(
  request: CollectRequest,
  user: UserIds,
  known: KnownShortage | undefined,
  attempt: number,
): Promise<boolean> {
  const { need, written } = known ?? {};
  const evicted = await evictForQuota(
    request,
    user,
    need === undefined ? { count: 2 ** (attempt - 1) } : { need: quotaNeed(need, written, attempt) },
  );
  return evicted > 0;
}

/** A collection that has so much time, for the lock and for all. */
export function collectingWithin(
  { settings, base, log }: Pick<Provision, 'settings' | 'base' | 'log'>,
  limitMs: number,
): CollectRequest {
  return {
    base,
    runtimePath: settings.runtimePath,
    policy: settings,
    pinned: pinnedNames(settings.statePath, log.write),
    lockTimeoutMs: limitMs,
    deadlineMs: Date.now() + limitMs,
    log: log.write,
    record: (event) => {
      recordEvents(settings.statePath, [event]);
    },
  };
}
