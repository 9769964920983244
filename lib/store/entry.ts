/**
 * Getting a job its entry: the one that is there, or a new one.
 *
 *   1. Hold the entry (held-entry.ts). There: done. Of an image file it is the content that names it
 *      (content.ts).
 *   2. Take the create lock of all images that might be the same, waiting with a limit; look again: another
 *      job may have made it while we waited.
 *   3. See that the image fits, unpack it into a hidden `.partial` directory.
 *   4. Write the lock file into it, flock it shared, and only then rename it into place.
 *   5. Have the disk take it in the background, which nobody waits for, and mark it settled: its lock file
 *      loses the owner's right to write. An entry that is not, of a boot that is over, is made anew.
 *
 * So a published entry is complete and has a holder from its first moment. The create lock is held until the
 * rename: a partial directory whose create lock is free has no living creator, and the collector may have it.
 */
import { closeSync, constants, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import {
  formatEntryMetadata,
  newLockMode,
  settledLockMode,
  type WatchedDirectory,
} from '../core/entry-metadata.ts';
import { faultCode, JobFault } from '../core/faults.ts';
import { createLockName, directoryName, lockFileName, lockPath, partialName } from '../core/layout.ts';
import type { EntryKey } from '../image/content.ts';
import type { Filled } from '../image/create.ts';
import type { UserIds } from '../system/as-user.ts';
import { startSettling } from '../system/background.ts';
import {
  createFileBeneath,
  inDirectoryOf,
  leadsToBeneath,
  makeDirectoryBeneath,
  moveBeneath,
  openFileBeneath,
  openOrCreateFileBeneath,
  removeDirectoryBeneath,
  removeFileBeneath,
  statBeneath,
  withDirectoryBeneath,
} from '../system/beneath.ts';
import { bootId } from '../system/boot.ts';
import { elapsedMs } from '../system/clock.ts';
import type { Directory } from '../system/directory.ts';
import { errnoOf, isGone, unlessErrno } from '../system/errno.ts';
import { flockWithin, tryFlock } from '../system/flock.ts';
import { readMounts } from '../system/mounts.ts';
import { uniqueHex } from '../system/unique.ts';
import { holdEntry, type HeldEntry, type OnDamage } from './held-entry.ts';
import { pickWatched } from './watched-directories.ts';

interface AcquireRequest {
  readonly user: UserIds;
  readonly jobId: number;
  /** The user directory, absolute. */
  readonly userPath: string;
  /** What the job called the image. */
  readonly image: string;
  readonly key: EntryKey;
  /** For waiting and unpacking together. */
  readonly limitMs: number;
  /** Loads what only a missing entry needs. */
  readonly creator: () => Promise<EntryCreator>;
}

/** How an entry is made; differs by who runs us. */
export interface EntryCreator {
  /**
   * Fills `rootfsPath`, which it must make, and may use the rest of `partialPath`.
   *
   * @param name of the entry, as far as it is known
   */
  readonly fill: (
    partialPath: string,
    rootfsPath: string,
    limitMs: number,
    name: string | undefined,
  ) => Promise<Filled>;
  /** Gets rid of a name in the user directory, at once; may leave the deletion to others. */
  readonly discard: (name: string) => void;
  /** Whether some process has a directory of the user directory mounted. */
  readonly isMounted: (name: string) => boolean;
  /**
   * Makes room after something could not be written: of the disk, or of the user's quota.
   *
   * @param attempt that failed, from 1
   * @returns whether another one is worth it
   */
  readonly recover: (
    code: 'NO_SPACE' | 'QUOTA_EXCEEDED',
    attempt: number,
    limitMs: number,
  ) => Promise<boolean>;
}

/** A quota may need several: nobody tells how much of it is left. */
const mostAttempts = 4;

export type AcquireResult = 'reused' | 'waited' | 'created';

export interface Acquired {
  readonly entry: HeldEntry;
  readonly result: AcquireResult;
  readonly unpackMs: number | undefined;
  /** Why an entry that was there could not be used and was made anew. */
  readonly damage?: string | undefined;
}

/**
 * @throws JobFault, NodeFault; then nothing of the attempt is left but, after a crash, a partial directory
 */
export async function acquireEntry(request: AcquireRequest): Promise<Acquired> {
  const startedAtMs = elapsedMs();
  const remainingMs = (): number => Math.max(0, request.limitMs - (elapsedMs() - startedAtMs));
  let opening: Promise<EntryCreator> | undefined;
  const creator = (): Promise<EntryCreator> => (opening ??= request.creator());
  for (let attempt = 1; ; attempt++) {
    try {
      return await findOrCreate({ ...request, creator, limitMs: remainingMs() });
    } catch (cause) {
      const fault = faultOf(request, cause);
      const code = faultCode(fault);
      const isShortage = code === 'NO_SPACE' || code === 'QUOTA_EXCEEDED';
      if (!isShortage || attempt === mostAttempts) throw fault;
      if (!(await recover(creator, code, attempt, remainingMs()))) throw fault;
    }
  }
}

/** What fails here is not what failed first, and that is what matters. */
async function recover(
  creator: () => Promise<EntryCreator>,
  ...[code, attempt, limitMs]: Parameters<EntryCreator['recover']>
): Promise<boolean> {
  try {
    return limitMs > 0 && (await (await creator()).recover(code, attempt, limitMs));
  } catch {
    return false;
  }
}

/**
 * The entry if it is there now.
 *
 * @returns undefined if it is not; `creating`: somebody is making it
 * @throws JobFault, NodeFault
 */
export async function findEntry(
  request: Pick<AcquireRequest, 'user' | 'userPath' | 'key'>,
): Promise<Acquired | 'creating' | undefined> {
  const { key } = request;
  try {
    const entry = key.name === undefined ? undefined : await hold(request, key.name);
    if (entry !== undefined) return { entry, result: 'reused', unpackMs: undefined };
    const fd = inUserDirectory(request, (userDirectory) =>
      openCreateLock(userDirectory, createLockName(key.lockName)),
    );
    try {
      return tryFlock(fd, 'exclusive') ? undefined : 'creating';
    } finally {
      closeSync(fd);
    }
  } catch (cause) {
    throw faultOf(request, cause);
  }
}

/** Whose directory. */
type Place = Pick<AcquireRequest, 'user' | 'userPath'>;

/** Runs `action` with the user's ids and directory. Its path is root's alone to change. */
function inUserDirectory<T>(
  { user, userPath }: Place,
  action: (userDirectory: Directory) => T extends Promise<unknown> ? never : T,
): T {
  return inDirectoryOf<T>(user, userPath, action);
}

/**
 * A failed system call below the user directory is no bug of ours, but the user's doing, whatever its number.
 */
function faultOf({ userPath, key }: Pick<AcquireRequest, 'userPath' | 'key'>, cause: unknown): unknown {
  const path = `${userPath}/${directoryName(key.name ?? key.lockName)}`;
  const code = faultCode(cause);
  if (cause instanceof JobFault) return cause;
  if (code === 'NO_SPACE') return new JobFault(code, `Cannot create entry "${path}": no space`, { cause });
  if (code === 'QUOTA_EXCEEDED')
    return new JobFault(code, `Cannot create entry "${path}": quota used up`, { cause });
  if (code !== 'NO_RESOURCES' && errnoOf(cause) !== undefined)
    return new JobFault('ENTRY_DAMAGED', `Cannot get entry "${path}": the user directory changed meanwhile`, {
      cause,
    });
  return cause;
}

/** Two are enough for all but a user who makes and removes what we look for. */
const mostRounds = 5;

/** An entry that is there and can be trusted. */
function hold({ user, userPath }: Place, name: string, onDamage?: OnDamage): Promise<HeldEntry | undefined> {
  return holdEntry(user, `${userPath}/${directoryName(name)}`, name, readMounts(), onDamage);
}

async function findOrCreate(request: AcquireRequest): Promise<Acquired> {
  const { key, limitMs } = request;
  const startedAtMs = elapsedMs();
  const remainingMs = (): number => Math.max(1, limitMs - (elapsedMs() - startedAtMs));
  let hasWaited = false;
  let damage: string | undefined;
  const onDamage = (what: string): boolean => {
    damage = what;
    return false;
  };
  let { name } = key;
  for (let round = 1; ; round++) {
    // Without a lock: of many that have the same image each under another path, none waits until another has
    // read its own.
    name ??= await key.identify(remainingMs());
    const found = name === undefined ? undefined : await hold(request, name, onDamage);
    if (found !== undefined)
      return { entry: found, result: hasWaited ? 'waited' : 'reused', unpackMs: undefined };

    const { fd, waited } = await takeCreateLock(request, createLockName(key.lockName), remainingMs);
    try {
      hasWaited ||= waited;
      // Somebody may have made it meanwhile.
      if (name === undefined && round < mostRounds && key.isKnown()) continue;
      const made = name === undefined ? undefined : await hold(request, name);
      if (made !== undefined)
        return { entry: made, result: waited ? 'waited' : 'reused', unpackMs: undefined };
      const creator = await request.creator();
      // Before the unpack: one that is in use cannot be replaced.
      if (name !== undefined && damage !== undefined) {
        const damaged = name;
        await underOwnLock(request, damaged, remainingMs, () => {
          setDamagedAside(creator, request, damaged, damage);
        });
      }
      const unpackStartMs = elapsedMs();
      const { entry, isNew } = await createEntry(creator, request, name, remainingMs);
      return isNew
        ? { entry, result: 'created', unpackMs: Math.round(elapsedMs() - unpackStartMs), damage }
        : { entry, result: 'reused', unpackMs: undefined };
    } finally {
      closeSync(fd);
    }
  }
}

/**
 * How often somebody may remove the lock file just before we flock it; the collector does, a user can for
 * ever.
 */
const createLockAttempts = 20;

async function takeCreateLock(
  place: Place,
  name: string,
  remainingMs: () => number,
): Promise<{ fd: number; waited: boolean }> {
  const path = `${place.userPath}/${name}`;
  let waited = false;
  for (let attempt = 0; attempt < createLockAttempts; attempt++) {
    const fd = inUserDirectory(place, (userDirectory) => openCreateLock(userDirectory, name));
    let isOurs = false;
    try {
      if (!tryFlock(fd, 'exclusive')) {
        waited = true;
        if (!(await flockWithin(fd, 'exclusive', remainingMs()))) {
          throw new JobFault(
            'LOCK_TIMEOUT',
            `Cannot create the entry: another process has held "${path}" until our time was up`,
          );
        }
      }
      // The collector removes the lock files of entries that are gone: one that was removed locks nothing.
      isOurs = inUserDirectory(place, (userDirectory) => leadsToBeneath(userDirectory, name, fd));
      if (isOurs) return { fd, waited };
    } finally {
      if (!isOurs) closeSync(fd);
    }
  }
  throw new JobFault(
    'LOCK_TIMEOUT',
    `Cannot create the entry: "${path}" was removed ${createLockAttempts} times while we locked it`,
  );
}

export const openCreateLock = (userDirectory: Directory, name: string): number =>
  openOrCreateFileBeneath(userDirectory, name, 0o600, constants.O_RDONLY);

/**
 * Something has the entry's name but no lock file, so it was not published by us, or was damaged since; or it
 * is of a boot that is over. Under the create lock nobody else deals with it.
 */
function setDamagedAside(
  creator: EntryCreator,
  request: AcquireRequest,
  name: string,
  damage?: string,
): void {
  const path = `${request.userPath}/${directoryName(name)}`;
  const directory = directoryName(name);
  const exists = inUserDirectory(request, (userDirectory) =>
    unlessErrno(isGone, () => statBeneath(userDirectory, directory)),
  );
  if (exists === undefined) return;
  if (creator.isMounted(directory)) {
    throw new JobFault(
      'ENTRY_DAMAGED',
      `Cannot use entry "${path}": ${damage ?? 'it has no lock file'}, and a process has it mounted`,
    );
  }
  const lock = inUserDirectory(request, (userDirectory) =>
    unlessErrno(isGone, () => openFileBeneath(userDirectory, lockPath(directory))),
  );
  try {
    if (lock !== undefined && !tryFlock(lock, 'exclusive'))
      throw new JobFault(
        'ENTRY_DAMAGED',
        `Cannot use entry "${path}": ${damage ?? 'its lock file was changed'}, and it is in use`,
      );
    creator.discard(directory);
  } finally {
    if (lock !== undefined) closeSync(lock);
  }
}

/** @returns `isNew` false: what was unpacked turned out to be what is there */
async function createEntry(
  creator: EntryCreator,
  request: AcquireRequest,
  known: string | undefined,
  remainingMs: () => number,
): Promise<{ entry: HeldEntry; isNew: boolean }> {
  const { userPath, key, jobId } = request;
  const partial = partialName(key.lockName, jobId, uniqueHex());
  const partialPath = `${userPath}/${partial}`;
  const rootfsPath = `${partialPath}/rootfs`;
  if (known !== undefined)
    await underOwnLock(request, known, remainingMs, () => setDamagedAside(creator, request, known));
  inUserDirectory(request, (userDirectory) => {
    makeDirectoryBeneath(userDirectory, partial, 0o700);
  });
  try {
    const startedAtMs = elapsedMs();
    const { space, name } = await creator.fill(partialPath, rootfsPath, remainingMs(), known);
    const metadata = formatEntryMetadata({
      image: request.image,
      createdAtMs: Date.now(),
      unpackMs: Math.round(elapsedMs() - startedAtMs),
      bootId: bootId(),
      watched: watchQuietly(request, partial),
      ...space,
    });
    return await underOwnLock(request, name, remainingMs, async () => {
      const found = await hold(request, name);
      if (found !== undefined) {
        discardQuietly(creator, partial);
        return { entry: found, isNew: false };
      }
      setDamagedAside(creator, request, name);
      const entry = inUserDirectory(request, (userDirectory) =>
        publish(userDirectory, name, partial, metadata),
      );
      settle(request, entry);
      if (!inUserDirectory(request, (userDirectory) => removeEmptyPartial(userDirectory, partial)))
        discardQuietly(creator, partial);
      return { entry, isNew: true };
    });
  } catch (error) {
    discardQuietly(creator, partial);
    throw error;
  }
}

/** An entry that nobody watches is an entry all the same. */
function watchQuietly(place: Place, partial: string): WatchedDirectory[] | undefined {
  try {
    return inUserDirectory(place, (userDirectory) =>
      withDirectoryBeneath(userDirectory, `${partial}/rootfs`, pickWatched),
    );
  } catch {
    return undefined;
  }
}

/**
 * The collector knows an entry without a lock file of its own by the create lock of its name (eviction.ts).
 */
async function underOwnLock<T>(
  request: AcquireRequest,
  name: string,
  remainingMs: () => number,
  action: () => T | Promise<T>,
): Promise<T> {
  if (name === request.key.lockName) return action();
  const lockName = createLockName(name);
  const { fd } = await takeCreateLock(request, lockName, remainingMs);
  try {
    return await action();
  } finally {
    // Under the lock, as the collector does: who waits for it sees that the path leads elsewhere.
    try {
      inUserDirectory(request, (userDirectory) => {
        removeFileBeneath(userDirectory, lockName);
      });
    } catch {
      // The user has put something in its place; the collector looks at it.
    }
    closeSync(fd);
  }
}

/** Without an end of it the entry is made once more after the next boot: no reason to fail a job. */
function settle(request: Place, entry: HeldEntry): void {
  try {
    // A descriptor of its own: that of the lease would hold the entry as long as the disk takes.
    const fd = inUserDirectory(request, (userDirectory) =>
      openFileBeneath(userDirectory, lockPath(directoryName(entry.name))),
    );
    try {
      startSettling(request.user, dirname(entry.path), fd, settledLockMode);
    } finally {
      closeSync(fd);
    }
  } catch {
    // See above.
  }
}

/**
 * On a disk that fails, this fails too, and what failed first is what matters. The Epilog or the next
 * collector finds the tree.
 */
function discardQuietly(creator: EntryCreator, name: string): void {
  try {
    creator.discard(name);
  } catch {
    // See above.
  }
}

/** After the rename the partial directory is empty, but for the empty one that an import worked in. */
function removeEmptyPartial(userDirectory: Directory, partial: string): boolean {
  try {
    withDirectoryBeneath(userDirectory, partial, (inside) => {
      unlessErrno(isGone, () => {
        removeDirectoryBeneath(inside, 'tmp');
      });
    });
    removeDirectoryBeneath(userDirectory, partial);
    return true;
  } catch {
    // The user put something into it, or the disk fails. The entry is there all the same.
    return false;
  }
}

function publish(userDirectory: Directory, name: string, partial: string, metadata: string): HeldEntry {
  const path = `${userDirectory.path}/${directoryName(name)}`;
  return withDirectoryBeneath(userDirectory, partial, (inside) => {
    const fd = withDirectoryBeneath(inside, 'rootfs', (rootfs) => {
      putImagesLockAside(rootfs, inside);
      return createFileBeneath(rootfs, lockFileName, newLockMode);
    });
    try {
      writeFileSync(fd, metadata);
      if (!tryFlock(fd, 'shared'))
        throw new JobFault('IMAGE_CHANGED', `Cannot publish "${path}": its new lock file is locked`);
      moveBeneath(inside, 'rootfs', userDirectory, directoryName(name));
      return { name, path, fd };
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  });
}

/**
 * The image may have something of the lock file's name. A directory is not deleted here but left in the
 * partial one, which goes into the trash: it may be deeper and larger than a process should walk that is
 * still root.
 */
function putImagesLockAside(rootfs: Directory, partial: Directory): void {
  const found = unlessErrno(isGone, () => statBeneath(rootfs, lockFileName));
  if (found?.isDirectory() === true) moveBeneath(rootfs, lockFileName, partial, 'image-lock');
  else if (found !== undefined) removeFileBeneath(rootfs, lockFileName);
}
