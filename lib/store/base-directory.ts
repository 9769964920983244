/**
 * The base: a directory of root on a disk of the node, which nobody else can write. So a name in it can only
 * be what root put there.
 *
 * A wrong owner or mode of the base, or of a directory above it, is refused and named, never repaired: a
 * repair may hide who changed it. Only the trash, which root alone can reach, gets its mode back.
 */
import { closeSync, fchmodSync, mkdirSync, readFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { NodeFault } from '../core/faults.ts';
import { diskRemedy, filesystemHindrance } from '../core/filesystem-kinds.ts';
import { trashName } from '../core/layout.ts';
import { missingMounts, mountOf, type Mount } from '../core/mountinfo.ts';
import type { NodeFacts } from '../core/node-facts.ts';
import { cureOfBase, formatMode, formatOwner, isRootsAlone } from '../core/path-cure.ts';
import type { Settings } from '../core/settings.ts';
import { inDirectory, openDirectory, type Directory } from '../system/directory.ts';
import { errnoOf, isGone, unlessErrno } from '../system/errno.ts';
import { readMounts } from '../system/mounts.ts';
import { whoElseCanChange } from '../system/path-safety.ts';
import { checkRuntimeDirectory } from '../system/runtime-directory.ts';
import { recallNodeFacts } from './node-facts-file.ts';

const baseMode = 0o755;
const trashMode = 0o700;

type BaseSettings = Pick<Settings, 'basePath' | 'runtimePath'>;

/**
 * Opens the base; makes it if only its last component is missing, on a disk of its own.
 *
 * @param known what is known of the node, if the caller has it
 * @throws NodeFault BAD_CONFIG for an unsafe runtime directory; BASE_UNSAFE if anyone but root could change
 *   what the path leads to, or its disk is not mounted; BASE_UNFIT if it is no disk of this node
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
    // Where a disk without a line in /etc/fstab is not mounted, this would be the way to fill its mount
    // point.
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
    if (!isRootsAlone({ uid, mode })) {
      const what = uid === 0 ? `mode ${formatMode(mode)}` : formatOwner({ uid, mode });
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
  const cannotUse = `Cannot use container_cache_data_path "${basePath}"`;
  let fault;
  try {
    fault = whoElseCanChange(dirname(basePath), 'only directories');
  } catch (cause) {
    throw new NodeFault('BASE_UNSAFE', cannotUse, { cause });
  }
  if (fault === undefined) return;
  const { path, found, cure } = fault;
  throw new NodeFault(
    'BASE_UNSAFE',
    `${cannotUse}: "${path}" is ${found}, so that others can put something else in its place; ${cure}`,
  );
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
 * An unmounted disk leaves an empty directory on the root filesystem, which a cache would fill. A disk is
 * known by its line in /etc/fstab, or by what the first Prolog since the boot has seen.
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

/** Opens `<base>/.trash`, which only root can enter, on the same filesystem as the entries. */
export function openTrash(base: Directory): Directory {
  unlessErrno(['EEXIST'], () => mkdirSync(inDirectory(base, trashName), trashMode));
  const trash = openDirectory(inDirectory(base, trashName), `${base.path}/${trashName}`);
  if (trash.stats.uid === 0 && trash.stats.dev === base.stats.dev) {
    fchmodSync(trash.fd, trashMode);
    return trash;
  }
  closeSync(trash.fd);
  throw new NodeFault(
    'BASE_UNSAFE',
    `Cannot use "${trash.path}": want a directory of root on the base's filesystem`,
  );
}
