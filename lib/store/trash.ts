/**
 * The way out: what is no longer wanted is renamed into `<base>/.trash`, which only root can enter, and deleted there.
 *
 * The rename takes a tree away at once and whole, however long the deletion takes or whoever kills it; what is left in
 * the trash is deleted by the next collector.
 */
import { closeSync, readdirSync, renameSync } from 'node:fs';
import { confinedTo } from '../system/as-user.ts';
import { lowPriority } from '../system/background.ts';
import { inDirectory, type Directory } from '../system/directory.ts';
import { isGone, unlessErrno } from '../system/errno.ts';
import { run } from '../system/run.ts';
import { uniqueHex } from '../system/unique.ts';
import { openTrash } from './user-directory.ts';

/** Root's view of a user directory and of the trash, both held by descriptors. */
export interface TrashContext {
  readonly userDirectory: Directory;
  readonly trash: Directory;
}

const longestKeptName = 100;

/**
 * Moves one name of a user directory into the trash; a symlink moves itself, not what it points to.
 *
 * @returns the name in the trash
 * @throws ENOENT if it is gone, EBUSY if something is mounted on it
 */
export function moveToTrash({ userDirectory, trash }: TrashContext, name: string): string {
  // A user's partial directory may have a name as long as names can be.
  const trashed = `${name.replace(/^\.+/, '').slice(0, longestKeptName)}.${uniqueHex()}`;
  renameSync(inDirectory(userDirectory, name), inDirectory(trash, trashed));
  return trashed;
}

/** Moves names of a user directory into the trash of the base; those that are gone, or just were mounted on, stay. */
export function moveNamesToTrash(base: Directory, userDirectory: Directory, names: readonly string[]): void {
  const trash = openTrash(base);
  try {
    for (const name of names)
      unlessErrno([...isGone, 'EBUSY'], () => moveToTrash({ userDirectory, trash }, name));
  } finally {
    closeSync(trash.fd);
  }
}

export const listTrash = (trash: Directory): string[] => readdirSync(`/proc/self/fd/${trash.fd}`);

/**
 * The next collector goes on where this one stopped, be it for millions of files on a slow disk or for a process of the user that
 * still is in the tree and makes new files in it: that must not keep a collector from the entries of others.
 */
const deleteTimeoutMs = 10 * 60_000;

/**
 * Deletes trees of the trash. rm(1) works through descriptors, so a process that still has a directory of the tree
 * open cannot lead it elsewhere, and it does not enter what is mounted inside.
 *
 * @param inBackground nobody waits: at low priority
 */
export async function deleteTrashed(
  trash: Directory,
  names: readonly string[],
  inBackground = false,
): Promise<void> {
  // Descriptor 3 of the child is the trash: the path is resolved from there, whatever the base's path is now.
  await run({
    file: 'setpriv',
    args: [
      // Enough for any mode and any owner in the tree.
      ...confinedTo(['dac_override', 'fowner']),
      '--pdeathsig=KILL',
      '--',
      ...(inBackground ? lowPriority : []),
      ...['rm', '--recursive', '--force', '--one-file-system', '--'],
      ...names.map((name) => `/proc/self/fd/3/${name}`),
    ],
    timeoutMs: deleteTimeoutMs,
    descriptors: [trash.fd],
  });
}
