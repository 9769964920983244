/**
 * The base and the user directories below it, made and checked through descriptors.
 *
 * The base belongs to root and nobody else can write it, so a name in it can only be what root put there. A user directory
 * belongs to its user; nothing below it is trusted. What is wrong is refused and named, never mended: a repaired
 * permission may hide who changed it.
 */
import { closeSync, fchmodSync, fchownSync, fstatSync, lstatSync, mkdirSync, readFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { JobFault, NodeFault } from '../core/faults.ts';
import { trashName } from '../core/layout.ts';
import { diskRemedy, filesystemHindrance } from '../core/filesystem-kinds.ts';
import { hasMounts, missingMounts, mountOf, type Mount } from '../core/mountinfo.ts';
import type { NodeFacts } from '../core/node-facts.ts';
import { cureOf, cureOfBase } from '../core/path-cure.ts';
import type { Settings } from '../core/settings.ts';
import type { UserIds } from '../system/as-user.ts';
import { namesBeneath } from '../system/beneath.ts';
import { inDirectory, openDirectory, type Directory } from '../system/directory.ts';
import { errnoOf, isGone, unlessErrno } from '../system/errno.ts';
import { readMounts } from '../system/mounts.ts';
import { recallNodeFacts } from './node-facts-file.ts';
import { checkRuntimeDirectory } from './runtime-directory.ts';

const groupOrOtherMayWrite = 0o022;
const sticky = 0o1000;
const baseMode = 0o755;
const privateMode = 0o700;

type BaseSettings = Pick<Settings, 'basePath' | 'runtimePath'>;

/**
 * Opens the base; makes it if only its last component is missing, on a disk of its own.
 *
 * @param known what is known of the node, if the caller has it
 * @throws NodeFault BAD_CONFIG for an unsafe runtime directory; BASE_UNSAFE if anyone but root could change what the path leads to, or its disk is not mounted; BASE_UNFIT if
 *   it is no disk of this node
 */
export function openBase(
  { basePath, runtimePath }: BaseSettings,
  known: NodeFacts | undefined = recallNodeFacts(runtimePath),
): Directory {
  const mounts = readMounts();
  // Before the first look at the path: what is on a dead server would not come back.
  checkFilesystem(basePath, mounts);
  checkMounted(basePath, mounts, known);
  checkAncestors(basePath);
  // After the base: what is wrong with a directory above both is told of the base.
  checkRuntimeDirectory(runtimePath);
  try {
    return openSafeBase(basePath);
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw baseFault(basePath, error);
  }
  try {
    // Where a disk without a line in /etc/fstab is not mounted, this would be the way to fill its mount point.
    if (mountOf(basePath, mounts)?.mountPoint === '/')
      throw new Error(
        'it is not there and would be on the root filesystem: mount its disk; or, if it is to be there, make it: ' +
          `install -d -m 0755 ${basePath}`,
      );
    // Somebody may have made it meanwhile: whatever is there is checked like any other.
    unlessErrno(['EEXIST'], () => mkdirSync(basePath, baseMode));
    return openSafeBase(basePath);
  } catch (error) {
    throw baseFault(basePath, error);
  }
}

function openSafeBase(basePath: string): Directory {
  const base = openDirectory(basePath);
  try {
    const { uid, mode } = base.stats;
    if (uid !== 0 || (mode & groupOrOtherMayWrite) !== 0) {
      const what = uid === 0 ? `mode ${octal(mode)}` : `owned by uid ${uid}, mode ${octal(mode)}`;
      throw new Error(`${what}, want root and 0755; ${cureOfBase(basePath, uid, mode)}`);
    }
    return base;
  } catch (error) {
    closeSync(base.fd);
    throw error;
  }
}

function baseFault(basePath: string, cause: unknown): NodeFault {
  if (cause instanceof NodeFault) return cause;
  const what = errnoOf(cause) === 'ENOTDIR' ? ': it is a symlink or no directory, want a directory' : '';
  return new NodeFault('BASE_UNSAFE', `Cannot use container_cache_data_path "${basePath}"${what}`, { cause });
}

/** Who can rename a directory on the way to the base can put another in its place. */
function checkAncestors(basePath: string): void {
  for (let path = dirname(basePath); ; path = dirname(path)) {
    let stats;
    try {
      stats = lstatSync(path);
    } catch (cause) {
      throw new NodeFault('BASE_UNSAFE', `Cannot use container_cache_data_path "${basePath}"`, { cause });
    }
    const isSafe =
      stats.uid === 0 && ((stats.mode & groupOrOtherMayWrite) === 0 || (stats.mode & sticky) !== 0);
    if (!isSafe || !stats.isDirectory()) {
      const found = stats.isDirectory()
        ? `owned by uid ${stats.uid}, mode ${octal(stats.mode)}`
        : 'no directory';
      const { uid, mode } = stats;
      const cure = stats.isDirectory()
        ? cureOf({ path, uid, mode, isDirectory: true, isEnd: false })
        : 'name the directory that it leads to';
      throw new NodeFault(
        'BASE_UNSAFE',
        `Cannot use container_cache_data_path "${basePath}": "${path}" is ${found}, ` +
          `so that others can put something else in its place; ${cure}`,
      );
    }
    if (path === '/') return;
  }
}

/** On a server, flock may be void and nothing is bounded; on a program of somebody, neither. */
function checkFilesystem(basePath: string, mounts: readonly Mount[]): void {
  const hindrance = filesystemHindrance(mountOf(basePath, mounts)?.filesystem ?? 'unknown');
  if (hindrance === undefined) return;
  throw new NodeFault(
    'BASE_UNFIT',
    `Cannot use container_cache_data_path "${basePath}": it is on ${hindrance}; ${diskRemedy}`,
  );
}

/**
 * An unmounted disk leaves an empty directory on the root filesystem, which a cache would fill. A disk is known by its line in
 * /etc/fstab, or by what the first Prolog since the boot has seen.
 */
function checkMounted(basePath: string, mounts: readonly Mount[], known: NodeFacts | undefined): void {
  const fstab = unlessErrno([...isGone, 'EACCES'], () => readFileSync('/etc/fstab', 'utf8')) ?? '';
  const [missing] = missingMounts(basePath, fstab, mounts);
  if (missing !== undefined) {
    throw new NodeFault(
      'BASE_UNSAFE',
      `Cannot use container_cache_data_path "${basePath}": "${missing}" is in /etc/fstab but not mounted`,
    );
  }
  const former = known?.basePath === basePath ? known.baseMount : undefined;
  if (former !== undefined && mounts.every(({ mountPoint }) => mountPoint !== former)) {
    throw new NodeFault(
      'BASE_UNSAFE',
      `Cannot use container_cache_data_path "${basePath}": "${former}" was mounted for it and is not any more; ` +
        'mount it, or, if it is to be so, remove the file "node" of the runtime directory',
    );
  }
}

/**
 * Opens `<base>/<uid>`, mode 0700, made for the user if it is not there.
 *
 * @throws NodeFault USER_DIRECTORY for a symlink, another's directory, or what cannot be made; JobFault ENTRY_DAMAGED for
 *   what a user can bring about: a mount in it, a mode that does not stay
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
    // Only root can have made it: we, killed between mkdir and chown, or an admin, whose files stay the admin's.
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
      `Cannot use user directory "${directory.path}": still mode ${octal(now.mode)}, want 0700`,
    );
  return { ...directory, stats: now };
}

/** Opens `<base>/.trash`, which only root can enter, on the same filesystem as the entries. */
export function openTrash(base: Directory): Directory {
  unlessErrno(['EEXIST'], () => mkdirSync(inDirectory(base, trashName), privateMode));
  const trash = openDirectory(inDirectory(base, trashName), `${base.path}/${trashName}`);
  if (trash.stats.uid === 0 && trash.stats.dev === base.stats.dev) {
    fchmodSync(trash.fd, privateMode);
    return trash;
  }
  closeSync(trash.fd);
  throw new NodeFault(
    'BASE_UNSAFE',
    `Cannot use "${trash.path}": want a directory of root on the base's filesystem`,
  );
}

const octal = (mode: number): string => (mode & 0o7777).toString(8).padStart(4, '0');
