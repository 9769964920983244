/**
 * The way out: what is no longer wanted is renamed into `<base>/.trash`, which only root can enter, and
 * deleted there.
 *
 * The rename takes a tree away at once and whole, however long the deletion takes or whoever kills it; what
 * is left in the trash is deleted by the next collector.
 *
 * A tree is deleted as the user from whose directory it came, and with no other right: what another user has
 * in it stays. Root only removes the empty directory from the trash. Its user can stop or trace the process
 * that deletes: then it is killed at once.
 */
import { closeSync, fchmodSync } from 'node:fs';
import { BeneathError, describeError } from '../core/faults.ts';
import { withUserIds, type UserIds } from '../system/as-user.ts';
import { lowPriority } from '../system/background.ts';
import {
  moveBeneath,
  namesBeneath,
  openDirectoryBeneath,
  removeDirectoryBeneath,
  removeFileBeneath,
  statBeneath,
} from '../system/beneath.ts';
import type { Directory } from '../system/directory.ts';
import { isGone, unlessErrno } from '../system/errno.ts';
import { CommandFailed } from '../system/run-command.ts';
import { uniqueHex } from '../system/unique.ts';
import { runUnlessStopped } from '../system/unless-stopped.ts';
import { openTrash } from './base-directory.ts';

/** Root's view of a user directory and of the trash, both held by descriptors. */
export interface TrashContext {
  readonly userDirectory: Directory;
  readonly trash: Directory;
}

const longestKeptName = 100;

/**
 * Moves one name of a user directory into the trash; a symlink moves itself, not what it points to.
 *
 * @returns the name in the trash: `u1000.<name>.<unique>`
 * @throws BeneathError: ENOENT if it is gone, EBUSY if something is mounted on it
 */
export function moveToTrash({ userDirectory, trash }: TrashContext, name: string): string {
  // A user's partial directory may have a name as long as names can be.
  const kept = name.replace(/^\.+/, '').slice(0, longestKeptName);
  const trashed = `u${userDirectory.stats.uid}.${kept}.${uniqueHex()}`;
  moveBeneath(userDirectory, name, trash, trashed);
  return trashed;
}

const trashedPattern = /^u(\d{1,10})\./;

/**
 * Moves names of a user directory into the trash of the base; those that cannot be moved stay. @returns how
 * many were
 */
export function moveNamesToTrash(
  base: Directory,
  userDirectory: Directory,
  names: readonly string[],
): number {
  const trash = openTrash(base);
  let moved = 0;
  try {
    for (const name of names) {
      try {
        moveToTrash({ userDirectory, trash }, name);
        moved++;
      } catch (error) {
        if (!(error instanceof BeneathError)) throw error;
      }
    }
  } finally {
    closeSync(trash.fd);
  }
  return moved;
}

export const listTrash = (trash: Directory): string[] => [...namesBeneath(trash)];

/** What could not be deleted. */
interface Remainder {
  readonly uid: number | undefined;
  readonly name: string;
  readonly reason: string;
}

interface DeletionLimits {
  /** Nobody waits: at low priority. */
  readonly inBackground: boolean;
  /** For all of the trees of one user; Date.now(). */
  readonly deadlineMs: number;
}

/**
 * For a tree of millions of files on a slow disk, and for a process of the user that still is in the tree and
 * makes new files in it: that must not keep a collector from the entries of others. The next one goes on
 * where this one stopped.
 */
const longestDeletionMs = 2 * 60_000;
/** The descriptors that a process gets. */
const treesAtOnce = 100;

/** @returns what is left */
export async function deleteTrashed(
  trash: Directory,
  names: readonly string[],
  limits: DeletionLimits,
): Promise<Remainder[]> {
  const left: Remainder[] = [];
  const large = new Map<number, Tree[]>();
  for (const name of names) {
    try {
      if (Date.now() > limits.deadlineMs) throw new Error('there was no time for it');
      const tree = deleteIfSmall(trash, name);
      if (tree === undefined) continue;
      const trees = large.get(tree.user.uid) ?? [];
      if (trees.length < treesAtOnce) large.set(tree.user.uid, [...trees, tree]);
      else closeSync(tree.directory.fd);
    } catch (error) {
      left.push({ uid: ownerOf(name), name, reason: describeError(error) });
    }
  }
  try {
    for (const trees of large.values()) left.push(...(await deleteTrees(trash, trees, limits)));
  } finally {
    for (const { directory } of [...large.values()].flat()) closeSync(directory.fd);
  }
  return left;
}

interface Tree {
  readonly name: string;
  readonly user: UserIds;
  readonly directory: Directory;
}

/** Undefined: an earlier version moved it. */
function ownerOf(name: string): number | undefined {
  const uid = trashedPattern.exec(name)?.[1];
  return uid === undefined ? undefined : Number(uid);
}

/**
 * So many names are deleted without a process: thousands of empty entries of one user must not take others'
 * time.
 */
const mostNamesOfSmall = 64;
const deepestSmall = 8;

/** @returns undefined if it is gone; the open tree if a process must delete it */
function deleteIfSmall(trash: Directory, name: string): Tree | undefined {
  const stats = unlessErrno(isGone, () => statBeneath(trash, name));
  if (stats === undefined) return undefined;
  if (!stats.isDirectory()) {
    removeFileBeneath(trash, name);
    return undefined;
  }
  const directory = openDirectoryBeneath(trash, name);
  let isOpen = true;
  try {
    const uid = ownerOf(name) ?? directory.stats.uid;
    if (directory.stats.uid !== uid)
      throw new Error(
        `it belongs to uid ${directory.stats.uid}, who put it into the directory of uid ${uid}`,
      );
    // Nobody else can reach it here, and its user must be able to empty it.
    fchmodSync(directory.fd, 0o700);
    const user = { uid, gid: directory.stats.gid };
    if (withUserIds(user, () => isEmptied(directory, { uid, names: mostNamesOfSmall }, deepestSmall))) {
      removeDirectoryBeneath(trash, name);
      return undefined;
    }
    isOpen = false;
    return { name, user, directory };
  } finally {
    if (isOpen) closeSync(directory.fd);
  }
}

function isEmptied(directory: Directory, budget: { uid: number; names: number }, depth: number): boolean {
  try {
    for (const name of namesBeneath(directory)) {
      if (--budget.names < 0 || depth === 0) return false;
      if (!statBeneath(directory, name).isDirectory()) {
        removeFileBeneath(directory, name);
        continue;
      }
      const inner = openDirectoryBeneath(directory, name);
      try {
        if (inner.stats.uid !== budget.uid || !isEmptied(inner, budget, depth - 1)) return false;
      } finally {
        closeSync(inner.fd);
      }
      removeDirectoryBeneath(directory, name);
    }
    return true;
  } catch (error) {
    if (error instanceof BeneathError) return false;
    throw error;
  }
}

async function deleteTrees(
  trash: Directory,
  trees: readonly Tree[],
  limits: DeletionLimits,
): Promise<Remainder[]> {
  const [first] = trees;
  if (first === undefined) return [];
  const { user } = first;
  const deadlineMs = Math.min(limits.deadlineMs, Date.now() + longestDeletionMs);
  const empty = ['-mindepth', '1', '-delete'];
  // What the user closed to themselves is opened only where it turns out to be in the way.
  const open = ['-mindepth', '1', '-type', 'd', '-uid', String(user.uid), '!', '-perm', '-u=rwx'];
  let reason = await find(user, trees, empty, limits.inBackground, deadlineMs);
  if (reason !== undefined) {
    await find(
      user,
      trees,
      [...open, '-exec', 'chmod', 'u+rwx', '--', '{}', ';'],
      limits.inBackground,
      deadlineMs,
    );
    reason = await find(user, trees, empty, limits.inBackground, deadlineMs);
  }
  const left: Remainder[] = [];
  for (const { name } of trees) {
    try {
      removeDirectoryBeneath(trash, name);
    } catch (error) {
      left.push({ uid: user.uid, name, reason: reason ?? describeError(error) });
    }
  }
  return left;
}

/** @returns why it did not succeed */
async function find(
  user: UserIds,
  trees: readonly Tree[],
  expression: readonly string[],
  inBackground: boolean,
  deadlineMs: number,
): Promise<string | undefined> {
  const seconds = Math.ceil((deadlineMs - Date.now()) / 1000);
  if (seconds <= 0) return 'there was no time for it';
  try {
    await runUnlessStopped({
      file: 'setpriv',
      args: [
        ...[`--reuid=${user.uid}`, `--regid=${user.gid}`, '--clear-groups'],
        ...['--inh-caps=-all', '--bounding-set=-all', '--no-new-privs', '--pdeathsig=KILL', '--'],
        ...(inBackground ? lowPriority : []),
        // From descriptors: whatever the paths are now. find(1) works by descriptors, too, and does not enter
        // what is mounted inside.
        ...['find', '-P', ...trees.map((_, index) => `/proc/self/fd/${3 + index}/.`), '-xdev', ...expression],
      ],
      timeoutMs: seconds * 1000,
      descriptors: trees.map(({ directory }) => directory.fd),
      // Not by asUser(), which leaves root its capabilities: root's own trees are deleted without any, too.
      isConfined: true,
    });
    return undefined;
  } catch (error) {
    if (error instanceof CommandFailed) return describeError(error);
    throw error;
  }
}
