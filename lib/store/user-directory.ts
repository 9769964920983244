/**
 * The user directories of the base, made and checked through descriptors. Each belongs to its user; nothing
 * below it is trusted.
 *
 * Another user's directory, a symlink and a mount are refused and named. Mode and group are repaired, because
 * the user may change them at any time. So is the owner of an empty directory of root: a Prolog that was
 * killed between mkdir(2) and chown(2) left it.
 */
import { closeSync, fchmodSync, fchownSync, fstatSync, mkdirSync } from 'node:fs';
import { JobFault, NodeFault } from '../core/faults.ts';
import { hasMounts } from '../core/mountinfo.ts';
import { formatMode } from '../core/path-cure.ts';
import type { UserIds } from '../system/as-user.ts';
import { namesBeneath } from '../system/beneath.ts';
import { inDirectory, openDirectory, type Directory } from '../system/directory.ts';
import { errnoOf, isGone, unlessErrno } from '../system/errno.ts';
import { readMounts } from '../system/mounts.ts';

const privateMode = 0o700;

/**
 * Opens `<base>/<uid>`, mode 0700, made for the user if it is not there.
 *
 * @throws NodeFault USER_DIRECTORY for a symlink, another's directory, or what cannot be made; JobFault
 *   ENTRY_DAMAGED for what a user can bring about: a mount in it, a mode that does not stay
 */
export function openUserDirectory(base: Directory, user: UserIds): Directory {
  const name = String(user.uid);
  if (hasMounts(`${base.path}/${name}`, readMounts())) {
    throw new JobFault(
      'ENTRY_DAMAGED',
      `Cannot use user directory "${base.path}/${name}": something is mounted on it or in it`,
    );
  }
  try {
    unlessErrno(['EEXIST'], () => mkdirSync(inDirectory(base, name), privateMode));
    const directory = openDirectory(inDirectory(base, name), `${base.path}/${name}`);
    try {
      return own(directory, user);
    } catch (error) {
      closeSync(directory.fd);
      throw error;
    }
  } catch (cause) {
    if (cause instanceof JobFault) throw cause;
    const wanted = errnoOf(cause) === 'ENOTDIR' ? ': it is a symlink or no directory, want a directory' : '';
    throw new NodeFault('USER_DIRECTORY', `Cannot use user directory "${base.path}/${name}"${wanted}`, {
      cause,
    });
  }
}

/** The same, but only if it is there, the user's, and without mounts: nothing is made or changed. */
export function findUserDirectory(base: Directory, uid: number): Directory | undefined {
  if (hasMounts(`${base.path}/${uid}`, readMounts())) return undefined;
  const directory = unlessErrno(isGone, () =>
    openDirectory(inDirectory(base, String(uid)), `${base.path}/${uid}`),
  );
  if (directory === undefined || directory.stats.uid === uid) return directory;
  closeSync(directory.fd);
  return undefined;
}

/** @returns the directory as it is then */
function own(directory: Directory, user: UserIds): Directory {
  const { fd, stats } = directory;
  if (stats.uid !== user.uid) {
    // Only root can have made it: we, killed between mkdir and chown, or an admin, whose files stay the
    // admin's.
    if (stats.uid !== 0 || namesBeneath(directory).next().done !== true) {
      throw new Error(`owned by uid ${stats.uid}, want ${user.uid}`);
    }
    fchownSync(fd, user.uid, user.gid);
  } else if (stats.gid !== user.gid) {
    fchownSync(fd, -1, user.gid);
  }
  if ((stats.mode & 0o7777) !== privateMode) fchmodSync(fd, privateMode);
  const now = fstatSync(fd);
  if (now.uid !== user.uid) throw new Error(`still uid ${now.uid}, want ${user.uid}`);
  // A process of its owner may close it again and again.
  if ((now.mode & 0o7777) !== privateMode)
    throw new JobFault(
      'ENTRY_DAMAGED',
      `Cannot use user directory "${directory.path}": still mode ${formatMode(now.mode)}, want 0700`,
    );
  return { ...directory, stats: now };
}
