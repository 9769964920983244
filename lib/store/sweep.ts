/**
 * What crashes left behind: partial directories of dead creators and their lock files, stubs without a job,
 * names that were being written, and records of dead leases.
 */
import { closeSync, fchmodSync } from 'node:fs';
import {
  createLockName,
  digestsName,
  directoryName,
  imagesName,
  isEntryNameOf,
  isImageIndexName,
  isStepEventsName,
  leasesPath,
  mountedStorePath,
  parseCreateLockName,
  parsePartialName,
  parseStubDirectoryName,
  parseUnsharedName,
} from '../core/layout.ts';
import { withUserIds, type UserIds } from '../system/as-user.ts';
import { abandonedAsides, sweepAsides } from '../system/aside.ts';
import {
  leadsToBeneath,
  namesBeneath,
  removeFileBeneath,
  statBeneath,
  withDirectoryBeneath,
} from '../system/beneath.ts';
import type { Directory } from '../system/directory.ts';
import { isGone, unlessErrno } from '../system/errno.ts';
import { tryFlock } from '../system/flock.ts';
import { readMounts, type MountScan } from '../system/mounts.ts';
import { openCreateLock } from './entry.ts';
import { sweepLeases } from './lease.ts';
import { openEntryLock, type ListRequest } from './listed-entries.ts';
import {
  ifCreateLockIsFree,
  isForgettable,
  listMounted,
  openMountedStore,
  sweepMountedUses,
} from './mounted-store.ts';
import { findStub } from './stub.ts';
import { moveToTrash, type TrashContext } from './trash.ts';
import { forEachUser, userBudget, type UserTurn } from './users.ts';
import { sweepViews } from './views.ts';

interface SweepRequest extends Pick<ListRequest, 'base' | 'log'> {
  readonly runtimePath: string;
}

export function sweep({ base, runtimePath, log }: SweepRequest, trash: Directory, mounted: MountScan): void {
  forEachUser(base, readMounts(), log, (turn) => {
    sweepUser(turn, trash, mounted);
  });
  for (const path of [base.path, runtimePath, leasesPath(runtimePath)]) sweepAsides(path);
  for (const jobId of sweepLeases(runtimePath)) {
    log('warning', 'gc-lease', {
      job: jobId,
      reason: 'its holder is gone: the lease protected nothing any more',
    });
  }
}

/** Of mounted entries: what nobody uses is unmounted, what need not be known any more is forgotten. */
export function sweepMounted(
  { base, runtimePath, policy }: SweepRequest & { readonly policy: { readonly gcMinAgeSeconds: number } },
  trash: Directory,
): void {
  // Of a collector that was started before anything was mounted: it may not unmount, and the Epilog does.
  unlessErrno(['EPERM'], () => {
    sweepViews({ basePath: base.path, runtimePath, gcMinAgeSeconds: policy.gcMinAgeSeconds });
  });
  sweepMountedUses(base.path);
  const known = listMounted(base.path).filter((found) => isForgettable(found, Date.now()));
  sweepAsides(mountedStorePath(base.path));
  if (known.length === 0) return;
  const store = openMountedStore(base.path);
  try {
    for (const { name } of known)
      ifCreateLockIsFree(base.path, name, () => {
        unlessErrno(isGone, () => moveToTrash({ userDirectory: store, trash }, name));
      });
  } finally {
    closeSync(store.fd);
  }
}

function sweepUser(turn: UserTurn, trash: Directory, mounted: MountScan): void {
  const { user, directory } = turn;
  const directories = { userDirectory: directory, trash };
  // As the Prolog does: who closes their own directory does not keep entries by it.
  if ((directory.stats.mode & 0o700) !== 0o700) fchmodSync(directory.fd, 0o700);
  const asOwner = (action: (userDirectory: Directory, name: string) => void) => (name: string) => {
    withUserIds(user, () => {
      action(directory, name);
    });
  };
  const sweeperOf = (name: string): ((name: string) => void) | undefined => {
    if (name === digestsName) return asOwner(sweepDigests);
    if (name === imagesName) return asOwner(sweepImageIndex);
    if (isStepEventsName(name)) return asOwner(sweepStepEvents);
    if (parseUnsharedName(name) !== undefined) return asOwner(sweepUnshared);
    if (parseStubDirectoryName(name) !== undefined)
      return sweepStub.bind(undefined, turn, directories, mounted);
    return isEntryNameOf(user.uid, name)
      ? sweepFormerEntry.bind(undefined, turn, directories, mounted)
      : undefined;
  };
  const names = turn.names((name) => sweeperOf(name) !== undefined || creatorOf(name) !== undefined);
  const partialsOf = new Map<string, string[]>();
  for (const name of names) {
    const entry = creatorOf(name);
    if (entry === undefined) continue;
    const partials = partialsOf.get(entry) ?? [];
    if (parsePartialName(name) !== undefined) partials.push(name);
    partialsOf.set(entry, partials);
  }
  turn.each(names, (name) => sweeperOf(name)?.(name));
  turn.each([...partialsOf.keys()], (entry) => {
    sweepCreator(directories, user, entry, partialsOf.get(entry) ?? []);
  });
}

const creatorOf = (name: string): string | undefined =>
  parsePartialName(name)?.entry ?? parseCreateLockName(name)?.entry;

/**
 * Removes what was being written in a crash. The directory is the user's, who may have put anything there.
 *
 * @returns its names; beyond the budget their user keeps them
 */
function sweepAsidesBeneath(directory: Directory): string[] {
  const names: string[] = [];
  for (const name of namesBeneath(directory)) {
    if (names.length === userBudget.names_of_ours) break;
    names.push(name);
  }
  for (const abandoned of abandonedAsides(names)) removeFileBeneath(directory, abandoned);
  return names;
}

function sweepDigests(userDirectory: Directory): void {
  withDirectoryBeneath(userDirectory, digestsName, sweepAsidesBeneath);
}

/** What is asked for again after that is read again, once. */
const oldestIndexMs = 30 * 86_400_000;
const mostIndexFiles = 400;

/** What was read of images (content.ts): a file for each that a job staged for itself. */
function sweepImageIndex(userDirectory: Directory): void {
  withDirectoryBeneath(userDirectory, imagesName, (index) => {
    const files = sweepAsidesBeneath(index)
      .filter(isImageIndexName)
      .map((name) => ({ name, writtenMs: statBeneath(index, name).mtimeMs }));
    files.sort((one, other) => other.writtenMs - one.writtenMs);
    for (const [rank, { name, writtenMs }] of files.entries())
      if (rank >= mostIndexFiles || Date.now() - writtenMs > oldestIndexMs) removeFileBeneath(index, name);
  });
}

/** Of jobs without an Epilog. A job that goes on gets a new file, and what was in this one is not counted. */
const oldestStepEventsMs = 31 * 86_400_000;

function sweepStepEvents(userDirectory: Directory, name: string): void {
  // An Epilog may just have taken it.
  const stats = unlessErrno(isGone, () => statBeneath(userDirectory, name));
  if (stats !== undefined && Date.now() - stats.mtimeMs > oldestStepEventsMs)
    removeFileBeneath(userDirectory, name);
}

/** What the wrapper notes of an entry goes with the entry. */
function sweepUnshared(userDirectory: Directory, name: string): void {
  const { entry } = parseUnsharedName(name) ?? {};
  if (entry === undefined) return;
  const found = unlessErrno(isGone, () => statBeneath(userDirectory, directoryName(entry)));
  if (found === undefined) removeFileBeneath(userDirectory, name);
}

/**
 * Between its creation and its start a stub is not mounted; this is longer than enroot and pyxis ever take.
 */
const youngestStubMs = 60 * 60_000;

/** A stub that no Epilog came to sweep: of a node that crashed, or of a job whose Epilog failed. */
function sweepStub(turn: UserTurn, directories: TrashContext, mounted: MountScan, name: string): void {
  const { user, directory } = turn;
  const stats = withUserIds(user, () => findStub(directory, name));
  if (stats === undefined || Date.now() - stats.mtimeMs <= youngestStubMs) return;
  if (mounted.isMounted(user.uid, name)) return;
  unlessErrno([...isGone, 'EBUSY'], () => moveToTrash(directories, name));
  turn.log('info', 'gc-stub', { stub: name, reason: 'its job is over' });
}

/**
 * An entry that version 0.1 made, whose directory has no dot: no job can find it any more. What is still in
 * use stays.
 */
function sweepFormerEntry(turn: UserTurn, directories: TrashContext, mounted: MountScan, name: string): void {
  const { user, directory } = turn;
  const stats = withUserIds(user, () => unlessErrno(isGone, () => statBeneath(directory, name)));
  if (stats?.isDirectory() !== true || stats.uid !== user.uid) return;
  const lock = withUserIds(user, () => openEntryLock(directory, name));
  try {
    if (lock !== undefined && !tryFlock(lock, 'exclusive')) return;
    if (mounted.isMounted(user.uid, name)) return;
    unlessErrno([...isGone, 'EBUSY'], () => moveToTrash(directories, name));
    turn.log('info', 'gc-former', { entry: name, reason: 'an earlier version made it' });
  } finally {
    if (lock !== undefined) closeSync(lock);
  }
}

/**
 * Whoever creates an entry holds its create lock; while we hold it there is no creator, and what is partial
 * is dead.
 */
function sweepCreator(
  directories: TrashContext,
  user: UserIds,
  entry: string,
  partials: readonly string[],
): void {
  const { userDirectory } = directories;
  const lockName = createLockName(entry);
  const lock = withUserIds(user, () => openCreateLock(userDirectory, lockName));
  try {
    if (!tryFlock(lock, 'exclusive')) return;
    if (!withUserIds(user, () => leadsToBeneath(userDirectory, lockName, lock))) return;
    for (const name of partials) unlessErrno([...isGone, 'EBUSY'], () => moveToTrash(directories, name));
    // Removed under its own lock: who waits for it sees that the path leads elsewhere, and opens it anew.
    withUserIds(user, () => {
      const isPublished = unlessErrno(isGone, () => statBeneath(userDirectory, directoryName(entry)));
      if (isPublished === undefined) removeFileBeneath(userDirectory, lockName);
    });
  } finally {
    closeSync(lock);
  }
}
