/**
 * `container-cache ready-image ENTRY PATH`: root mounts an image file for the first time. A Prolog starts it,
 * as a child that can be given up where a filesystem hangs.
 *
 *   create lock → open the file, which nobody else may have written (trusted-file.ts) → mount it, and a view
 *   of it → look whether `enroot create` would have changed anything → copy it, and mount the copy → publish
 *
 * What is checked, mounted and copied is one open file. Why an image is not mounted is published as well, so
 * that not every job tries again. Prints progress, `{"percent": 12}`, and what became of it, a line of JSON
 * each.
 */
import {
  closeSync,
  constants,
  copyFileSync,
  fstatSync,
  mkdirSync,
  openSync,
  readSync,
  renameSync,
  rmdirSync,
  rmSync,
  writeFileSync,
  writeSync,
  type BigIntStats,
} from 'node:fs';
import process from 'node:process';
import { newLockMode, settledLockMode } from '../core/entry-metadata.ts';
import { describeError } from '../core/faults.ts';
import { fits, maxCacheBytes } from '../core/gc-plan.ts';
import { parseSuperblock, superblockBytes, type SquashfsFacts } from '../core/image.ts';
import type { Environment } from '../core/job.ts';
import {
  copyName,
  factsName,
  imageMountPath,
  imageMountsPath,
  lockFileName,
  mountedEntryName,
  mountedEntryPath,
} from '../core/layout.ts';
import {
  changedByStock,
  formatMountedFacts,
  isRefused,
  refusalFor,
  whyChangedByStock,
  type MountedFacts,
} from '../core/mounted-facts.ts';
import { createLimitMs, requireSettings, type Settings } from '../core/settings.ts';
import { hashIdentity } from '../image/image-hash.ts';
import { nobody } from '../system/as-user.ts';
import { asidePath } from '../system/aside.ts';
import { startSettling } from '../system/background.ts';
import { bootId } from '../system/boot.ts';
import { elapsedMs } from '../system/clock.ts';
import type { Directory } from '../system/directory.ts';
import { readUsage } from '../system/disk-usage.ts';
import { unlessErrno } from '../system/errno.ts';
import { readStart } from '../system/files.ts';
import { splitLines } from '../system/lines.ts';
import { hasWriter, unmountAtOnce } from '../system/mounting.ts';
import { endingWithUs, run } from '../system/run-command.ts';
import { readSettings } from '../system/settings-file.ts';
import { openLog, type Log } from '../system/syslog.ts';
import { openTrustedFile } from '../system/trusted-file.ts';
import { openBase } from './base-directory.ts';
import { measureCacheBytes } from './cache-size.ts';
import { collect } from './collector.ts';
import { holdMounted, mountedInodes, openMountedStore, underCreateLock } from './mounted-store.ts';
import { collectingWithin } from './provision.ts';
import { moveNamesToTrash } from './trash.ts';
import { mountForAll, showImage, unmountEntry } from './views.ts';

/** Of whoever is asked before: the same image is being made ready by another. */
type Outcome = 'made' | 'there';

/** @returns the exit code: 0, whatever became of the image; 2 for wrong usage */
export async function runReadyImage(
  parameters: readonly string[],
  environment: Environment,
): Promise<number> {
  const [name, path, ...rest] = parameters;
  if (name === undefined || path === undefined || rest.length > 0) return 2;
  const say = (words: Readonly<Record<string, unknown>>): void => {
    process.stdout.write(`${JSON.stringify(words)}\n`);
  };
  try {
    const settings = requireSettings(readSettings(environment));
    const base = openBase(settings);
    const log = openLog(settings);
    const store = openMountedStore(base.path);
    try {
      say({ outcome: await makeReady({ settings, base, store, log, name, path, say }) });
    } finally {
      closeSync(store.fd);
      closeSync(base.fd);
      await log.flush();
    }
  } catch (error) {
    say({ reason: describeError(error) });
  }
  return 0;
}

interface Request {
  readonly settings: Settings;
  readonly base: Directory;
  readonly store: Directory;
  readonly log: Log;
  /** Of the entry. */
  readonly name: string;
  /** The real path of the image. */
  readonly path: string;
  readonly say: (words: Readonly<Record<string, unknown>>) => void;
}

/** An image that is not mounted, for a reason that the file itself has: it holds for all time. */
class Refused extends Error {
  override readonly name = 'Refused';
}

async function makeReady(request: Request): Promise<Outcome> {
  const { settings, base, name } = request;
  // For the wait; the work itself has the limit of its image.
  const limitMs = createLimitMs(settings, undefined);
  const done = await underCreateLock(base.path, name, limitMs, async (): Promise<Outcome> => {
    const held = await holdMounted(base.path, name);
    if (held !== undefined) {
      closeSync(held.fd);
      const isRefusal = held.facts.refusal !== undefined;
      // Another made it, or found out that it cannot be, while we waited. An image that is mounted in place
      // may have to be mounted again.
      if (
        isRefusal
          ? isRefused(held.facts.refusal, Date.now())
          : held.isWhole && held.facts.source !== 'in-place'
      )
        return 'there';
    }
    await makeLocked(request, held?.facts);
    return 'made';
  });
  if (done === undefined) throw new Error('another process has been making it ready for too long');
  return done.result;
}

/** @param known of the same file */
async function makeLocked(request: Request, known: MountedFacts | undefined): Promise<void> {
  const { settings, path, name } = request;
  const startedAtMs = elapsedMs();
  const facts: MountedFacts = {
    image: path,
    createdAtMs: Date.now(),
    readyMs: 0,
    bytes: 0,
    inodes: 0,
    unpackedBytes: 0,
    source: 'in-place',
    bootId: bootId(),
  };
  try {
    const { fd, stats } = openTrustedFile(path, settings.trustedOwners);
    try {
      const seen = readSquashfsFacts(fd, stats, path);
      if (mountedEntryName(hashIdentity(seen)) !== name) throw new Error(`"${path}" changed meanwhile`);
      const { inodes } = parseSuperblock(seen);
      const limitMs = createLimitMs(settings, {
        claimedBytes: Number(stats.size),
        writtenBytes: Number(stats.blocks) * 512,
      });
      const remainingMs = (): number => Math.max(1, limitMs - (elapsedMs() - startedAtMs));
      unmountEntry(settings.runtimePath, name);
      const unpackedBytes = await mountAndJudge(request, fd, known, remainingMs);
      const measured = { ...facts, bytes: Number(stats.size), inodes, unpackedBytes };
      if (settings.imageCopying === 'never') {
        // Who holds it goes on to hold it.
        if (known === undefined || known.refusal !== undefined || known.source !== 'in-place')
          publish(request, { ...measured, readyMs: Math.round(elapsedMs() - startedAtMs) });
      } else await copyAndPublish(request, { fd, stats }, measured, startedAtMs, remainingMs);
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    // Nothing of it may stay mounted: whoever finds the mount takes it for a good one.
    unmountEntry(settings.runtimePath, name);
    // A file that is another by now has another name.
    const reason = describeError(error);
    const refusal = error instanceof Refused ? { reason } : refusalFor(reason, Date.now());
    publish(request, { ...facts, refusal });
  }
}

/** As find(1) prints times, with ten digits behind the point. */
const timeOf = (ns: bigint): string =>
  `${ns / 1_000_000_000n}.${String(ns % 1_000_000_000n).padStart(9, '0')}0`;

function readSquashfsFacts(fd: number, stats: BigIntStats, realPath: string): SquashfsFacts {
  return {
    realPath,
    sizeBytes: Number(stats.size),
    modifiedAt: timeOf(stats.mtimeNs),
    changedAt: timeOf(stats.ctimeNs),
    superblock: readStart(fd, superblockBytes),
  };
}

const blockBytes = 512;

/**
 * Mounts the image, where it stays if it is not copied; tries a view of it; and compares it with what enroot
 * would make of it.
 *
 * @returns what it would take unpacked, bytes
 * @throws Refused; what the kernel refuses
 */
async function mountAndJudge(
  { settings: { runtimePath }, name }: Request,
  fd: number,
  known: MountedFacts | undefined,
  remainingMs: () => number,
): Promise<number> {
  mountForAll(runtimePath, name, fd);
  // Who makes it holds the create lock of this entry, and nobody has a view of it.
  const trial = asidePath(`${imageMountsPath(runtimePath)}/${name}`);
  try {
    showImage(runtimePath, name, trial, nobody);
    unmountAtOnce(trial);
  } finally {
    rmdirSync(trial);
  }
  if (known !== undefined && known.refusal === undefined) return known.unpackedBytes;
  let changed = '';
  let blocks = 0;
  const lines = splitLines((line) => {
    // Behind the first file that is changed there is nothing but the rest of its name.
    const [, count, links] = changed === '' ? (/^(\d+) (\d+)$/.exec(line) ?? []) : [];
    if (links === undefined) changed += `${line}\n`;
    else blocks += Number(count) / Number(links);
  }, 'utf8');
  const args = ['-P', `${imageMountPath(runtimePath, name)}/.`, '-xdev', ...changedByStock];
  await run(endingWithUs({ file: 'find', args, timeoutMs: remainingMs(), onStdout: lines.add }));
  lines.end();
  const reason = whyChangedByStock(changed);
  if (reason !== undefined) throw new Refused(reason);
  return Math.round(blocks) * blockBytes;
}

async function copyAndPublish(
  request: Request,
  { fd, stats }: { readonly fd: number; readonly stats: BigIntStats },
  facts: MountedFacts,
  startedAtMs: number,
  remainingMs: () => number,
): Promise<void> {
  const { settings, store, name } = request;
  const { runtimePath } = settings;
  unmountEntry(runtimePath, name);
  const aside = asidePath(`${store.path}/${name}`);
  mkdirSync(aside, { mode: 0o700 });
  try {
    const copy = `${aside}/${copyName}`;
    const source = await copyImage(request, fd, copy, remainingMs);
    const now = fstatSync(fd, { bigint: true });
    const isSame = now.size === stats.size && now.mtimeNs === stats.mtimeNs && now.ctimeNs === stats.ctimeNs;
    if (!isSame || hasWriter(fd)) throw new Error(`"${facts.image}" changed while it was copied`);
    const file = openSync(copy, constants.O_RDONLY);
    try {
      mountForAll(runtimePath, name, file);
    } finally {
      closeSync(file);
    }
    publish(request, { ...facts, source, readyMs: Math.round(elapsedMs() - startedAtMs) }, aside);
  } finally {
    rmSync(aside, { recursive: true, force: true });
  }
}

/** What a filesystem that shares no blocks says, or another filesystem. */
const cannotShare = ['EXDEV', 'ENOTSUP', 'EOPNOTSUPP', 'EINVAL', 'ENOTTY', 'ENOSYS'];

async function copyImage(
  request: Request,
  fd: number,
  copy: string,
  remainingMs: () => number,
): Promise<'reflink' | 'copy'> {
  const { imageCopying, basePath } = request.settings;
  if (imageCopying !== 'copy') {
    const isShared = unlessErrno(cannotShare, () => {
      copyFileSync(`/proc/self/fd/${fd}`, copy, constants.COPYFILE_FICLONE_FORCE);
      return true;
    });
    if (isShared === true) return 'reflink';
    if (imageCopying === 'reflink')
      throw new Error(`"${basePath}" cannot share the image's blocks (trusted_images_copy=reflink)`);
  }
  await makeRoom(request, fstatSync(fd).size, remainingMs());
  copyBytes(request, fd, copy, remainingMs);
  return 'copy';
}

async function makeRoom({ settings, base, log }: Request, bytes: number, limitMs: number): Promise<void> {
  const need = { bytes, inodes: mountedInodes };
  const { runtimePath } = settings;
  const limit = maxCacheBytes(readUsage(base.path), settings);
  const isWithin = async (): Promise<boolean> =>
    limit === undefined ||
    (await measureCacheBytes({ base, runtimePath, pinned: new Set(), log: log.write })) + bytes <= limit;
  if (fits(readUsage(base.path), need) && (await isWithin())) return;
  const { isWithinLimit } = await collect({ ...collectingWithin({ settings, base, log }, limitMs), need });
  const usage = readUsage(base.path);
  if (!isWithinLimit)
    throw new Error(`a copy of ${bytes} bytes is more than container_cache_max_size leaves`);
  if (!fits(usage, need))
    throw new Error(`no room for a copy: ${bytes} bytes needed, ${usage.availableBytes} free`);
}

const chunkBytes = 4 * 1024 * 1024;

function copyBytes(request: Request, fd: number, copy: string, remainingMs: () => number): void {
  const { size } = fstatSync(fd);
  const to = openSync(copy, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o600);
  try {
    const buffer = Buffer.allocUnsafe(chunkBytes);
    let copied = 0;
    let percent = -1;
    for (;;) {
      const count = readSync(fd, buffer, 0, chunkBytes, copied);
      if (count === 0) return;
      for (let written = 0; written < count;) written += writeSync(to, buffer, written, count - written);
      copied += count;
      if (remainingMs() <= 1) throw new Error('the copy took too long');
      const now = Math.floor((100 * copied) / Math.max(size, 1));
      if (now > percent) request.say({ percent: now });
      percent = now;
    }
  } finally {
    closeSync(to);
  }
}

/**
 * Puts facts and lock file beside the copy, and the directory in its place.
 *
 * @param made where the copy is; undefined: there is none
 */
function publish({ base, store, name }: Request, facts: MountedFacts, made?: string): void {
  const aside = made ?? asidePath(`${store.path}/${name}`);
  if (made === undefined) mkdirSync(aside, { mode: 0o700 });
  try {
    writeFileSync(`${aside}/${factsName}`, formatMountedFacts(facts), { flag: 'wx', mode: 0o600 });
    const lock = openSync(
      `${aside}/${lockFileName}`,
      constants.O_RDWR | constants.O_CREAT | constants.O_EXCL,
      newLockMode,
    );
    try {
      // What is there holds another answer, or half a copy: under the create lock nobody else replaces it,
      // and who holds it keeps it by its descriptors.
      moveNamesToTrash(base, store, [name]);
      renameSync(aside, mountedEntryPath(base.path, name));
      if (made !== undefined) settle(base, lock);
    } finally {
      closeSync(lock);
    }
  } finally {
    rmSync(aside, { recursive: true, force: true });
  }
}

/** Without an end of it the copy is made once more after the next boot. */
function settle(base: Directory, lock: number): void {
  try {
    startSettling({ uid: 0, gid: 0 }, base.path, lock, settledLockMode);
  } catch {
    // See above.
  }
}
