/**
 * Filling a new entry: import what comes from a registry, see that it fits, unpack it.
 *
 * Only a job whose image is not on the node comes here, so this module is loaded only then.
 */
import { basename, dirname } from 'node:path';
import { elapsedMs } from '../system/clock.ts';
import { describeError, faultCode, JobFault, NodeFault } from '../core/faults.ts';
import { fits, isCollectionDue, maxCacheBytes, type CollectionPolicy, type Usage } from '../core/gc-plan.ts';
import { entryName } from '../core/layout.ts';
import { estimateSpace, ownInodes, type SpaceNeed, type Superblock } from '../core/image.ts';
import { asUser, type UserIds } from '../system/as-user.ts';
import {
  inDirectoryOf,
  makeDirectoryBeneath,
  moveBeneath,
  removeFileBeneath,
  statBeneath,
  withDirectoryBeneath,
} from '../system/beneath.ts';
import type { Directory } from '../system/directory.ts';
import { splitLines } from '../system/lines.ts';
import { CommandFailed, run } from '../system/run-command.ts';
import { findCommandForUsers } from '../system/self.ts';
import type { Log } from '../system/syslog.ts';
import { isNotExecuted } from '../system/tool.ts';
import { hashFile, rememberContent, type FileContent } from './content.ts';
import { discardLayers, layerFunctions, mergeLayers } from './enroot-layers.ts';
import type { Enroot } from './enroot-program.ts';
import { hashContent } from './image-hash.ts';
import { probeSquashfs, type ImageSource, type RegistrySource, type SquashfsSource } from './image-source.ts';
import { measureShare } from '../system/tree-size.ts';
import { isUnsquashfsMissing, settlePermissions, unpackSquashfs } from './unpack.ts';

/** What was unpacked. */
export interface Filled {
  readonly space: SpaceNeed;
  /** Of the entry: what only the whole image tells. */
  readonly name: string;
}

export interface CreateContext {
  readonly user: UserIds;
  readonly source: ImageSource;
  readonly userPath: string;
  readonly processors: number;
  readonly policy: CollectionPolicy;
  readonly enroot: Enroot | undefined;
  readonly readUsage: () => Usage;
  /** Starts a collector and lets it run. */
  readonly startCollector: () => void;
  /**
   * Runs a collector to its end, to make room, and to keep the cache within `container_cache_max_size`.
   *
   * @param imagePath undefined: what needs room is on the disk already
   */
  readonly makeRoom: (need: SpaceNeed, imagePath: string | undefined, limitMs: number) => Promise<RoomResult>;
  /**
   * Whether images of registries may be made of their layers: only who can call makeRoom() for what is on the
   * disk.
   */
  readonly keepsLayers: boolean;
  /** The same for the import of a registry's image, as far as can be known what that takes. */
  readonly makeImportRoom: (uri: string, limitMs: number) => Promise<void>;
  /** What all entries take; asked for only where there is a `container_cache_max_size`. */
  readonly measureCache: () => Promise<number>;
  readonly onProgress: (progress: CreateProgress) => void;
  readonly log: Log['write'];
  /** What is known of a failure for want of room: what the image needs, and what had been written of it. */
  readonly onShortage: (shortage: KnownShortage) => void;
}

export interface KnownShortage {
  /** Undefined: not known before the image is here. */
  readonly need: SpaceNeed | undefined;
  readonly written: SpaceNeed | undefined;
  /** A collection has been tried for it. */
  readonly isHopeless: boolean;
}

/**
 * `over-limit`: the cache would take more than `container_cache_max_size`. Whether there is room now, the
 * disk tells.
 */
export type RoomResult = 'done' | 'over-limit';

export interface CreateProgress {
  readonly phase: 'import' | 'unpack';
  /** Of the unpack. */
  readonly percent: number | undefined;
}

/** @param name of the entry; undefined: it is found out by reading the image @throws JobFault, NodeFault */
export async function fillRootfs(
  context: CreateContext,
  partialPath: string,
  rootfsPath: string,
  limitMs: number,
  name: string | undefined,
): Promise<Filled> {
  const startedAtMs = elapsedMs();
  const remainingMs = (): number => Math.max(1, limitMs - (elapsedMs() - startedAtMs));
  const { user, source } = context;
  if (isCollectionDue(context.readUsage(), context.policy)) context.startCollector();

  let reading: Promise<FileContent> | undefined;
  let squashfs: SquashfsSource | undefined;
  try {
    if (source.kind === 'registry') {
      const imported = await importImage(context, source, rootfsPath, remainingMs);
      if (imported.kind === 'tree') return { space: imported.space, name: entryName(user.uid, source.hash) };
      squashfs = imported;
    } else squashfs = source;
    await ensureRoom(context, squashfs, remainingMs());
    context.onProgress({ phase: 'unpack', percent: 0 });
    reading = name === undefined ? hashFile(user, squashfs.path, remainingMs()) : undefined;
    // Where the unpack fails, nobody asks for it.
    reading?.catch(() => undefined);
    await unpackSquashfs({
      user,
      imagePath: squashfs.path,
      destination: rootfsPath,
      processors: context.processors,
      timeoutMs: remainingMs(),
      onPercent: (percent) => {
        context.onProgress({ phase: 'unpack', percent });
      },
    });
  } catch (error) {
    const code = faultCode(error);
    if (code === 'NO_SPACE' || code === 'QUOTA_EXCEEDED')
      context.onShortage({
        need: squashfs && (await measureImageIfPossible(user, squashfs, remainingMs())),
        written: await measureShare(user, partialPath),
        isHopeless: error instanceof RoomFault,
      });
    throw error;
  }
  const space = await settlePermissions(user, rootfsPath, remainingMs());
  // Somebody may have replaced the file while it was read: what was unpacked must be what the entry's name
  // says.
  const content = await reading;
  // By the time of the inode's last change, too, which nobody can set back.
  const now = await probeSquashfs(user, { kind: 'path', path: squashfs.path });
  if (now.identity !== squashfs.identity) {
    throw new JobFault('IMAGE_CHANGED', `Cannot use "${squashfs.path}": it changed while it was unpacked`);
  }
  if (source.kind === 'registry')
    inPartial(context, partialPath, (partial) => {
      removeFileBeneath(partial, basename(squashfs.path));
    });
  return { space, name: name ?? nameOf(context, squashfs, content) };
}

/** Runs `action` with the user's ids and with the partial directory open. */
function inPartial<T>(
  { user, userPath }: CreateContext,
  partialPath: string,
  action: (partial: Directory) => T extends Promise<unknown> ? never : T,
): T {
  return inDirectoryOf(user, userPath, (userDirectory) =>
    withDirectoryBeneath(userDirectory, basename(partialPath), action),
  );
}

function nameOf(
  { user, userPath }: CreateContext,
  squashfs: SquashfsSource,
  content: FileContent | undefined,
): string {
  if (content === undefined) throw new Error('the image was not read');
  rememberContent(user, userPath, squashfs, content);
  return entryName(user.uid, hashContent(content.content));
}

/**
 * In the partial directory: what enroot makes, the tree of its layers, and the file that it makes if that
 * tree cannot be.
 */
const importedName = 'imported';
const treeName = 'merged';
const squashfsName = 'image.squashfs';

/** The rootfs is there. */
interface Tree {
  readonly kind: 'tree';
  readonly space: SpaceNeed;
}

/** @throws JobFault, NodeFault, RegistryFault */
async function importImage(
  context: CreateContext,
  { image, importUri }: RegistrySource,
  rootfsPath: string,
  remainingMs: () => number,
): Promise<Tree | SquashfsSource> {
  const { enroot, user } = context;
  if (enroot === undefined) throw new NodeFault('TOOL_MISSING', `Cannot import "${importUri}": no enroot`);
  const partialPath = dirname(rootfsPath);
  const temporaryPath = `${partialPath}/tmp`;
  context.onProgress({ phase: 'import', percent: undefined });
  await context.makeImportRoom(importUri, remainingMs());
  inPartial(context, partialPath, (partial) => {
    makeDirectoryBeneath(partial, basename(temporaryPath), 0o700);
  });
  const importTo = async (name: string, functions: readonly string[]): Promise<SquashfsSource | 'layers'> => {
    const path = `${partialPath}/${name}`;
    await enroot.importImage(image, importUri, path, temporaryPath, remainingMs(), functions);
    const areLayers = inPartial(context, partialPath, (partial) => statBeneath(partial, name).isDirectory());
    return areLayers ? 'layers' : probeSquashfs(user, { kind: 'path', path });
  };
  const command = context.keepsLayers ? findCommandForUsers() : undefined;
  if (command !== undefined) {
    try {
      const imported = await importTo(importedName, layerFunctions);
      return imported === 'layers'
        ? await mergeImage(context, command, importUri, rootfsPath, remainingMs)
        : imported;
    } catch (error) {
      // Perhaps nobody can merge them: then enroot's own words say why.
      if (faultCode(error) !== 'UNPACK_FAILED') throw error;
      context.log('info', 'layers', {
        uid: user.uid,
        image: importUri,
        result: 'not-merged',
        reason: `${describeError(error)}; enroot imports the image once more, as one file`,
      });
      // The file needs their room. Where they stay, its own failure tells of it.
      const left = [`${partialPath}/${importedName}`, `${partialPath}/${treeName}`] as const;
      await discardLayers(user, command, left, remainingMs()).catch(() => undefined);
    }
  }
  return importTo(squashfsName, []) as Promise<SquashfsSource>;
}

async function mergeImage(
  context: CreateContext,
  command: string,
  uri: string,
  rootfsPath: string,
  remainingMs: () => number,
): Promise<Tree> {
  const { user } = context;
  const partialPath = dirname(rootfsPath);
  const treePath = `${partialPath}/${treeName}`;
  context.onProgress({ phase: 'unpack', percent: 0 });
  await mergeLayers(user, command, `${partialPath}/${importedName}`, treePath, remainingMs());
  const space = await settlePermissions(user, treePath, remainingMs());
  await stayWithinLimit(context, uri, space, remainingMs());
  // A collector counts what has this name.
  inPartial(context, partialPath, (partial) => {
    moveBeneath(partial, treeName, partial, basename(rootfsPath));
  });
  return { kind: 'tree', space };
}

/** Found out before anything was written, after whatever a collection could do. */
class RoomFault extends JobFault {}

/**
 * Compares what the image needs with what is free, and has the collector make room if it must.
 *
 * The estimate is quick and high; only where it says no are the files of the image really added up.
 *
 * @throws JobFault NO_SPACE, TOO_LARGE, UNPACK_FAILED
 */
async function ensureRoom(context: CreateContext, squashfs: SquashfsSource, limitMs: number): Promise<void> {
  const estimate = estimateSpace(squashfs.superblock);
  const cacheLimit = maxCacheBytes(context.readUsage(), context.policy);
  const isWithinLimit = async (need: SpaceNeed): Promise<boolean> =>
    cacheLimit === undefined || (await context.measureCache()) + need.bytes <= cacheLimit;
  if (fits(context.readUsage(), estimate) && (await isWithinLimit(estimate))) return;
  const need = await measureImage(context.user, squashfs.path, squashfs.superblock, limitMs);
  if (cacheLimit !== undefined && need.bytes > cacheLimit) throw tooLarge(squashfs.path, need, cacheLimit);
  const before = context.readUsage();
  const { totalBytes, totalInodes } = before;
  if (need.bytes > totalBytes || (totalInodes > 0 && need.inodes > totalInodes)) {
    // Not even on an empty disk. What fits there, but not beside what has to stay, is the collector's to find
    // out.
    throw new JobFault(
      'UNPACK_FAILED',
      `Cannot unpack "${squashfs.path}": ${need.bytes} bytes and ${need.inodes} inodes needed, the whole filesystem has ` +
        `${totalBytes} bytes and ${totalInodes} inodes`,
    );
  }
  const isLimitReached = !(await isWithinLimit(need));
  if (
    (isLimitReached || !fits(before, need)) &&
    (await context.makeRoom(need, squashfs.path, limitMs)) === 'over-limit'
  )
    throw overLimit(squashfs.path, need);
  const usage = context.readUsage();
  if (fits(usage, need)) return;
  throw new RoomFault(
    'NO_SPACE',
    `Cannot unpack "${squashfs.path}": ${usage.availableBytes} bytes and ${usage.freeInodes} inodes free, ` +
      `${need.bytes} bytes and ${need.inodes} inodes needed`,
  );
}

/** Of `container_cache_max_size`, for what is on the disk already. @throws JobFault NO_SPACE, TOO_LARGE */
async function stayWithinLimit(
  context: CreateContext,
  image: string,
  need: SpaceNeed,
  limitMs: number,
): Promise<void> {
  const cacheLimit = maxCacheBytes(context.readUsage(), context.policy);
  if (cacheLimit === undefined) return;
  if (need.bytes > cacheLimit) throw tooLarge(image, need, cacheLimit);
  if ((await context.measureCache()) + need.bytes <= cacheLimit) return;
  if ((await context.makeRoom(need, undefined, limitMs)) === 'over-limit') throw overLimit(image, need);
}

const tooLarge = (image: string, { bytes }: SpaceNeed, cacheLimit: number): JobFault =>
  new JobFault(
    'TOO_LARGE',
    `Cannot unpack "${image}": it takes ${bytes} bytes, and container_cache_max_size is ${cacheLimit}`,
  );

const overLimit = (image: string, { bytes }: SpaceNeed): JobFault =>
  new RoomFault(
    'NO_SPACE',
    `Cannot unpack "${image}": with its ${bytes} bytes the cache would take more than container_cache_max_size, and ` +
      'what it has is in use or young',
  );

const blockBytes = 4096;

/**
 * Adds up the sizes in the image's listing, each rounded up to a block, and counts its names: no fewer than
 * its inodes, while the superblock may claim any number.
 *
 * @throws JobFault UNPACK_FAILED, CREATE_TIMEOUT; NodeFault TOOL_MISSING
 */
export async function measureImage(
  user: UserIds,
  path: string,
  superblock: Superblock,
  limitMs: number,
): Promise<SpaceNeed> {
  let bytes = 0;
  let names = 0;
  const command = asUser(user, {
    file: 'unsquashfs',
    args: ['-lln', path],
    timeoutMs: limitMs,
    onStdout: splitLines((line) => {
      names++;
      bytes += listedBytes(line);
    }, 'latin1').add,
  });
  try {
    await run(command);
  } catch (cause) {
    if (!(cause instanceof CommandFailed)) throw cause;
    const message = `Cannot list "${path}"`;
    if (isNotExecuted(cause) && (await isUnsquashfsMissing()))
      throw new NodeFault('TOOL_MISSING', message, { cause });
    throw new JobFault(cause.timedOut ? 'CREATE_TIMEOUT' : 'UNPACK_FAILED', message, { cause });
  }
  const claimed = estimateSpace(superblock).inodes;
  return { bytes, inodes: Math.min(claimed, names + ownInodes) };
}

async function measureImageIfPossible(
  user: UserIds,
  { path, superblock }: SquashfsSource,
  limitMs: number,
): Promise<SpaceNeed | undefined> {
  try {
    return await measureImage(user, path, superblock, limitMs);
  } catch {
    // What failed first is what matters.
    return undefined;
  }
}

/** A line like `-rw-r--r-- 0/0   1234 2026-01-02 03:04 squashfs-root/etc/fstab`. */
function listedBytes(line: string): number {
  const size = /^[-dl]\S{9} \d+\/\d+ +(\d+) /.exec(line)?.[1];
  return size === undefined ? 0 : Math.ceil(Number(size) / blockBytes) * blockBytes;
}
