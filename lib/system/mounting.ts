/**
 * Mounting image files as root: a squashfs file by the kernel, and views of it. Only our addon can
 * (addon/image-mount.c).
 *
 * Each throws an error with the kernel's number: ENOSYS (Linux before 5.12, or no addon), EINVAL (what is no
 * squashfs that this kernel reads, or a filesystem without idmapped mounts), ENODEV (no squashfs), EPERM.
 */
import { errnoName } from '../core/errno-names.ts';
import { findBeneath, type BeneathAddon } from './native-addon.ts';

function call(what: string, action: (addon: BeneathAddon) => number): number {
  const addon = findBeneath();
  // -38: ENOSYS
  const result = addon === undefined ? -38 : action(addon);
  if (result >= 0) return result;
  const code = errnoName(result) ?? 'EIO';
  throw Object.assign(new Error(`${code}: cannot ${what}`), { code, errno: result });
}

/**
 * Mounts an open squashfs file: read-only, nosuid, nodev.
 *
 * @returns a descriptor of the mount, which is nowhere yet: it goes with the descriptor
 */
export const mountImage = (file: number): number =>
  call('mount the image', (addon) => addon.mountImage(file));

/** Puts a mount on a directory that only root can change. */
export function attachMount(mounted: number, path: string): void {
  call(`attach the mount to "${path}"`, (addon) => addon.attachMount(mounted, path));
}

/** Shows what is mounted on `source` on `target` as well: root's files are there the user's. */
export function makeView(source: string, target: string, { uid, gid }: { uid: number; gid: number }): void {
  call(`make a view of "${source}" for uid ${uid}`, (addon) => addon.makeView(source, target, uid, gid));
}

/** Nobody finds it there any more; who is in it keeps it until they leave. */
export function unmountAtOnce(path: string): void {
  call(`unmount "${path}"`, (addon) => addon.unmount(path));
}

/** Whether a process of this node has a file open for writing; of a filesystem that cannot tell: no. */
export function hasWriter(file: number): boolean {
  return findBeneath()?.hasWriter(file) === 1;
}

/** Gives a directory of root to pass to one user and to nobody else, by an access list. */
export function letPass(directory: number, uid: number): void {
  call(`let uid ${uid} pass`, (addon) => addon.letPass(directory, uid));
}
