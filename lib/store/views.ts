/**
 * Views: how each user sees mounted images, as if their files were the user's.
 *
 *   <runtime>/images/<entry>        root, 0700: the kernel's mount of the image; one for all users
 *   <runtime>/views/<uid>/<entry>   an idmapped mount of it, read-only; one for each user and image
 *
 * `views/<uid>` is root's, and only its user may pass through it (an access list). So users can neither
 * rename a mount point nor reach what others see.
 *
 *   1. The Prolog flocks `views/<uid>` shared until it ends, and holds the entry; then it looks which mounts
 *      there are, and makes what is missing.
 *   2. Whoever sweeps flocks `views/<uid>` exclusively: no Prolog of the user is at work. Without a lease of
 *      the user, and after `gc_min_age`, the user's views are unmounted.
 *   3. An image is unmounted when nobody has a view of it, under the exclusive flock of its entry.
 *
 * Containers that run keep what they have mounted, whatever is unmounted here: the kernel frees the loop
 * device with the last of them. A reboot forgets all mounts.
 */
import {
  closeSync,
  existsSync,
  fstatSync,
  futimesSync,
  mkdirSync,
  readdirSync,
  realpathSync,
  rmdirSync,
  statSync,
  utimesSync,
} from 'node:fs';
import {
  copyName,
  imageMountPath,
  imageMountsPath,
  isMountedEntryName,
  lockPath,
  mountedEntryPath,
  parseIdName,
  userViewsPath,
  viewPath,
  viewsPath,
} from '../core/layout.ts';
import type { UserIds } from '../system/as-user.ts';
import { abandonedAsides, sweepAsides } from '../system/aside.ts';
import { openDirectory, type Directory } from '../system/directory.ts';
import { isGone, unlessErrno } from '../system/errno.ts';
import { leadsTo, openRegularFile } from '../system/files.ts';
import { flockWithin, tryFlock } from '../system/flock.ts';
import { attachMount, letPass, makeView, mountImage, unmountAtOnce } from '../system/mounting.ts';
import { readMounts } from '../system/mounts.ts';
import { prepareRuntimeDirectory } from '../system/runtime-directory.ts';
import { listHeldLeases } from './lease.ts';
import {
  ifCreateLockIsFree,
  noteMountedUse,
  openMountedStore,
  touchMounted,
  underCreateLock,
} from './mounted-store.ts';

const closedMode = 0o700;
/** Everybody may pass, to their own; nobody may look around. */
const passableMode = 0o711;

/** What is mounted of images; a mount point may have several mounts, one over the other. */
interface ImageMounts {
  readonly images: readonly string[];
  /** Names beside them, of what a program tries for a moment. */
  readonly trials: readonly string[];
  readonly views: readonly { readonly uid: number; readonly name: string; readonly path: string }[];
}

/** Finds what earlier programs have mounted: in the kernel's list, of this mount namespace. */
export function findImageMounts(runtimePath: string): ImageMounts {
  const root = unlessErrno(isGone, () => realpathSync(runtimePath));
  const points = root === undefined ? [] : readMounts().map(({ mountPoint }) => mountPoint);
  const below = (path: string): string[] =>
    points.flatMap((point) => (point.startsWith(`${path}/`) ? [point.slice(path.length + 1)] : []));
  const views = below(viewsPath(root ?? '')).flatMap((rest) => {
    const [user = '', name = ''] = rest.split('/');
    const uid = parseIdName(user);
    return uid === undefined || !isMountedEntryName(name)
      ? []
      : [{ uid, name, path: viewPath(runtimePath, uid, name) }];
  });
  const names = below(imageMountsPath(root ?? ''));
  return {
    images: names.filter(isMountedEntryName),
    trials: names.filter((name) => !isMountedEntryName(name)),
    views,
  };
}

/** How long a sweep of a user's views takes at most. */
const sweepLimitMs = 2000;

/** Opens the directory of a user's views, which stays while it is open. */
async function openUserViews(runtimePath: string, { uid }: UserIds): Promise<Directory> {
  prepareRuntimeDirectory(runtimePath, viewsPath(runtimePath), passableMode);
  const path = userViewsPath(runtimePath, uid);
  for (;;) {
    unlessErrno(['EEXIST'], () => mkdirSync(path, closedMode));
    const directory = openDirectory(path);
    let isOurs = false;
    try {
      if (!(await flockWithin(directory.fd, 'shared', sweepLimitMs))) throw new Error(`"${path}" is locked`);
      // A sweep may just have removed it.
      isOurs = leadsTo(path, directory.fd);
      if (!isOurs) continue;
      letPass(directory.fd, uid);
      return directory;
    } finally {
      if (!isOurs) closeSync(directory.fd);
    }
  }
}

/** Mounts an open image for all users, under its create lock. */
export function mountForAll(runtimePath: string, name: string, file: number): void {
  prepareRuntimeDirectory(runtimePath, imageMountsPath(runtimePath), closedMode);
  const path = imageMountPath(runtimePath, name);
  unlessErrno(['EEXIST'], () => mkdirSync(path, closedMode));
  const mounted = mountImage(file);
  try {
    attachMount(mounted, path);
  } finally {
    closeSync(mounted);
  }
}

/** Shows a mounted image once more, on a directory that is made for it. */
export function showImage(runtimePath: string, name: string, target: string, user: UserIds): void {
  unlessErrno(['EEXIST'], () => mkdirSync(target, closedMode));
  makeView(imageMountPath(runtimePath, name), target, user);
}

interface ViewRequest {
  readonly basePath: string;
  readonly runtimePath: string;
  readonly user: UserIds;
  /** Of an entry that the caller holds. */
  readonly name: string;
  readonly limitMs: number;
}

/**
 * Sees to it that the user has a view of an entry. The user's directory stays locked until this process ends,
 * by when the job has its lease.
 *
 * @returns its path; undefined if the image is not mounted, and has no copy to be mounted here
 * @throws what the kernel refuses
 */
export async function ensureView(request: ViewRequest): Promise<string | undefined> {
  const { runtimePath, user, name } = request;
  const path = viewPath(runtimePath, user.uid, name);
  const directory = await openUserViews(runtimePath, user);
  let isReady = false;
  try {
    const now = new Date();
    futimesSync(directory.fd, now, now);
    isReady = hasView(findImageMounts(runtimePath), request);
    if (!isReady)
      isReady =
        (await underCreateLock(request.basePath, name, request.limitMs, () => makeMissing(request)))
          ?.result === true;
    return isReady ? path : undefined;
  } finally {
    if (!isReady) closeSync(directory.fd);
  }
}

function hasView({ views }: ImageMounts, { runtimePath, user, name }: ViewRequest): boolean {
  if (!views.some((view) => view.uid === user.uid && view.name === name)) return false;
  const stats = statSync(viewPath(runtimePath, user.uid, name));
  // A job may run with another group.
  return stats.uid === user.uid && stats.gid === user.gid;
}

function makeMissing(request: ViewRequest): boolean {
  const { basePath, runtimePath, user, name } = request;
  const mounts = findImageMounts(runtimePath);
  if (hasView(mounts, request)) return true;
  if (!mounts.images.includes(name)) {
    const file = unlessErrno(isGone, () =>
      openRegularFile(`${mountedEntryPath(basePath, name)}/${copyName}`),
    );
    if (file === undefined) return false;
    try {
      mountForAll(runtimePath, name, file);
    } finally {
      closeSync(file);
    }
  }
  const path = viewPath(runtimePath, user.uid, name);
  for (const view of mounts.views) if (view.uid === user.uid && view.name === name) unmountAtOnce(view.path);
  showImage(runtimePath, name, path, user);
  return true;
}

/** Takes a view from its user. Containers that have it mounted keep it. */
export function dropView(runtimePath: string, uid: number, name: string): void {
  const path = viewPath(runtimePath, uid, name);
  for (const view of findImageMounts(runtimePath).views) if (view.path === path) unmountAtOnce(path);
  removeMountPoint(path);
}

/** Unmounts an entry, and whatever is seen of it: of one that nobody holds. */
export function unmountEntry(runtimePath: string, name: string): void {
  const { images, views } = findImageMounts(runtimePath);
  for (const view of views.filter((one) => one.name === name)) {
    unmountAtOnce(view.path);
    removeMountPoint(view.path);
  }
  for (const image of images.filter((one) => one === name)) unmountAtOnce(imageMountPath(runtimePath, image));
  removeMountPoint(imageMountPath(runtimePath, name));
}

/** With a second mount on it, it stays for the next time. */
function removeMountPoint(path: string): void {
  unlessErrno([...isGone, 'EBUSY', 'ENOTEMPTY'], () => {
    rmdirSync(path);
  });
}

/** When a job is over: its user's views stay for a while, and its entries were used now. */
export function markMountedUsed(
  { basePath, runtimePath }: Pick<SweepRequest, 'basePath' | 'runtimePath'>,
  uid: number,
  names: readonly string[],
): void {
  const now = new Date();
  for (const name of names) {
    touchMounted(basePath, name);
    noteMountedUse(basePath, uid, name);
  }
  unlessErrno(isGone, () => {
    utimesSync(userViewsPath(runtimePath, uid), now, now);
  });
}

interface SweepRequest {
  readonly basePath: string;
  readonly runtimePath: string;
  readonly gcMinAgeSeconds: number;
}

/** Whether images were mounted here since the boot. */
export const hasImageMounts = (runtimePath: string): boolean => existsSync(imageMountsPath(runtimePath));

/** Unmounts the views of users who have no job, and images that nobody has a view of. */
export function sweepViews(request: SweepRequest): void {
  const { basePath, runtimePath } = request;
  if (!hasImageMounts(runtimePath)) return;
  const users = unlessErrno(isGone, () => readdirSync(viewsPath(runtimePath))) ?? [];
  const busy = users.length === 0 ? new Set<number>() : findLeaseholders(runtimePath);
  for (const uid of users.flatMap((user) => parseIdName(user) ?? []))
    if (!busy.has(uid)) sweepUser(request, uid);
  const { images, trials, views } = findImageMounts(runtimePath);
  for (const trial of abandonedAsides(trials)) unmountAtOnce(`${imageMountsPath(runtimePath)}/${trial}`);
  sweepAsides(imageMountsPath(runtimePath));
  const idle = new Set(images.filter((name) => !views.some((view) => view.name === name)));
  if (idle.size === 0) return;
  closeSync(openMountedStore(basePath).fd);
  // Not while it is being made ready.
  for (const name of idle)
    ifCreateLockIsFree(basePath, name, () => {
      unmountUnheld(request, name);
    });
}

const findLeaseholders = (runtimePath: string): ReadonlySet<number> =>
  new Set(listHeldLeases(runtimePath).map(({ uid }) => uid));

function sweepUser({ runtimePath, gcMinAgeSeconds }: SweepRequest, uid: number): void {
  const path = userViewsPath(runtimePath, uid);
  const directory = unlessErrno(isGone, () => openDirectory(path));
  if (directory === undefined) return;
  try {
    // No Prolog of the user is at work: whoever was has set the time, and the job has its lease.
    if (!tryFlock(directory.fd, 'exclusive')) return;
    const ageMs = Date.now() - fstatSync(directory.fd).mtimeMs;
    if (ageMs >= 0 && ageMs < gcMinAgeSeconds * 1000) return;
    // A Prolog may have come and gone since they were listed.
    if (findLeaseholders(runtimePath).has(uid)) return;
    for (const view of findImageMounts(runtimePath).views) if (view.uid === uid) unmountAtOnce(view.path);
    for (const name of readdirSync(path)) removeMountPoint(`${path}/${name}`);
    removeMountPoint(path);
  } finally {
    closeSync(directory.fd);
  }
}

function unmountUnheld({ basePath, runtimePath }: SweepRequest, name: string): void {
  const lock = unlessErrno(isGone, () => openRegularFile(lockPath(mountedEntryPath(basePath, name))));
  try {
    if (lock === undefined || tryFlock(lock, 'exclusive')) unmountEntry(runtimePath, name);
  } finally {
    if (lock !== undefined) closeSync(lock);
  }
}
