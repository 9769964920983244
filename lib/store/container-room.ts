/**
 * Room for what enroot writes by itself: the cache gives way as if it were not there. Who is served is the
 * job, so entries go however young they are, but none that is in use; and none if all of them would not be
 * enough.
 */
import { fits, type Usage } from '../core/gc-plan.ts';
import { estimateSpace, parseImage, type SpaceNeed } from '../core/image.ts';
import { userPath } from '../core/layout.ts';
import type { Settings } from '../core/settings.ts';
import { measureImage } from '../image/create.ts';
import { findEnroot } from '../image/enroot-program.ts';
import { askEnrootPaths, askLayerBytes, findDevices, importNeed } from '../image/enroot-room.ts';
import { probeSquashfs } from '../image/image-source.ts';
import type { UserIds } from '../system/as-user.ts';
import type { Directory } from '../system/directory.ts';
import { readUsage } from '../system/disk-usage.ts';
import { collect, type CollectRequest } from './collector.ts';

export interface RoomFor {
  readonly user: UserIds;
  /** An absolute path or a URI. */
  readonly image: string;
  readonly settings: Settings;
  readonly base: Directory;
  readonly collecting: CollectRequest;
}

/** A disk with so much free has room for any image that people use. */
const plentyBytes = 500 * 2 ** 30;
const lookLimitMs = 60_000;

/** For a container that enroot makes. */
export async function makeRoomForContainer(request: RoomFor): Promise<'room' | 'no-room'> {
  const need = await findContainerNeed(request);
  return need === 'none' ? 'room' : makeRoom(request, need);
}

/**
 * For the import of an image from a registry in a partial directory, whose layers become the entry
 * (enroot-layers.ts).
 */
export async function makeRoomForImport(request: RoomFor): Promise<'room' | 'no-room'> {
  const { user, image, settings, base } = request;
  if (readUsage(base.path).availableBytes > plentyBytes) return 'room';
  const enrootPath = findEnroot(settings.enrootPath);
  const asked = { user, userPath: userPath(base.path, user.uid) };
  const layerBytes = await askLayerBytes(enrootPath, asked, image);
  if (layerBytes === undefined) return makeRoom(request, undefined);
  const paths = await askEnrootPaths(enrootPath, asked);
  const { cache } = paths === undefined ? {} : await findDevices(user, paths);
  const device = base.stats.dev;
  return makeRoom(request, importNeed(layerBytes, { data: undefined, temporary: device, cache }, device));
}

async function makeRoom(
  { base, settings, collecting }: RoomFor,
  need: SpaceNeed | undefined,
): Promise<'room' | 'no-room'> {
  const policy = { ...settings, gcMinAgeSeconds: 0, maxSize: undefined };
  const needs = need === undefined ? guessNeeds(readUsage(base.path), settings) : [need];
  for (const one of needs) {
    if (!fits(readUsage(base.path), one)) await collect({ ...collecting, policy, need: one });
    if (fits(readUsage(base.path), one)) return 'room';
  }
  return 'no-room';
}

const mostGuessedBytes = 32 * 2 ** 30;
const guessShares = [1, 1 / 4, 1 / 16] as const;

/**
 * Nobody knows what it needs: then what the collector leaves free for the next job, if that can be had, else
 * a part of it. An entry that is in use elsewhere, or a disk that others fill, must not cost the cache what
 * does not help.
 */
export function guessNeeds(
  { totalBytes, totalInodes }: Usage,
  { gcLowPercent }: Pick<Settings, 'gcLowPercent'>,
): SpaceNeed[] {
  const left = (100 - gcLowPercent) / 100;
  const bytes = Math.min(totalBytes * left, mostGuessedBytes);
  const inodes = totalInodes * Math.min(left, totalBytes === 0 ? 0 : bytes / totalBytes);
  return guessShares.map((share) => ({
    bytes: Math.floor(bytes * share),
    inodes: Math.floor(inodes * share),
  }));
}

/** @returns undefined if it cannot be known; `none`: it is not on this disk, or has room */
async function findContainerNeed({
  user,
  image: imageName,
  settings,
  base,
}: RoomFor): Promise<SpaceNeed | 'none' | undefined> {
  const usage = readUsage(base.path);
  if (usage.availableBytes > plentyBytes) return 'none';
  const isOfDaemon = /^(?:dockerd|podman):/.test(imageName);
  const image = isOfDaemon ? undefined : parseImage(imageName, undefined);
  const source = image?.kind === 'path' ? await probeSquashfs(user, image) : undefined;
  if (source !== undefined && fits(usage, estimateSpace(source.superblock))) return 'none';
  const enrootPath = findEnroot(settings.enrootPath);
  const asked = { user, userPath: userPath(base.path, user.uid) };
  const paths = await askEnrootPaths(enrootPath, asked);
  const device = base.stats.dev;
  const devices = paths && (await findDevices(user, paths));
  if (devices !== undefined) {
    const used = source === undefined ? [devices.data, devices.cache, devices.temporary] : [devices.data];
    if (!used.includes(device)) return 'none';
  }
  if (source !== undefined) return measureImage(user, source.path, source.superblock, lookLimitMs);
  if (image?.kind !== 'registry' || devices === undefined) return undefined;
  const layerBytes = await askLayerBytes(enrootPath, asked, image.uri);
  return layerBytes === undefined ? undefined : importNeed(layerBytes, devices, device);
}
