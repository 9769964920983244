/**
 * /proc/<pid>/mountinfo (proc(5)), and what it says about directories in use.
 *
 *   36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
 *   (1)(2)(3)   (4)   (5)      (6)      (7)   (8) (9)   (10)         (11)
 */

export interface Mount {
  /** (3), `major:minor` */
  readonly device: string;
  /** (4), which directory of the filesystem is mounted */
  readonly root: string;
  /** (5) */
  readonly mountPoint: string;
  /** (9) */
  readonly filesystem: string;
  /** (11), joined by commas, still escaped */
  readonly superOptions: string;
}

/** Lines that do not have the form are passed over: they cannot be about us. */
export function parseMountinfo(text: string): Mount[] {
  const mounts: Mount[] = [];
  for (const line of text.split('\n')) {
    const [left, right] = line.split(' - ', 2);
    const [, , device, root, mountPoint] = left?.split(' ') ?? [];
    const [filesystem, , ...options] = right?.split(' ') ?? [];
    if (device === undefined || root === undefined || mountPoint === undefined || filesystem === undefined)
      continue;
    mounts.push({
      device,
      root: unescapeOctal(root),
      mountPoint: unescapeOctal(mountPoint),
      filesystem,
      superOptions: options.join(' '),
    });
  }
  return mounts;
}

/** Blank, tab, newline, backslash and, in options, comma are written as three octal digits. */
function unescapeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
}

/** A directory as the kernel names it in (3) and (4), whatever it is mounted on. */
export interface Location {
  readonly device: string;
  readonly path: string;
}

/** @returns the mount an absolute path lies on: the last of those with the longest mount point */
export function mountOf(path: string, mounts: readonly Mount[]): Mount | undefined {
  let found: Mount | undefined;
  for (const mount of mounts) {
    if (isWithin(path, mount.mountPoint) && mount.mountPoint.length >= (found?.mountPoint.length ?? 0))
      found = mount;
  }
  return found;
}

export function locationOf(path: string, mounts: readonly Mount[]): Location | undefined {
  const mount = mountOf(path, mounts);
  if (mount === undefined) return undefined;
  const below = mount.mountPoint === '/' ? path : path.slice(mount.mountPoint.length);
  return { device: mount.device, path: joinPath(mount.root, below) };
}

/** The mount points strictly below a directory. */
export function mountPointsBelow(path: string, mounts: readonly Mount[]): string[] {
  return mounts.map((mount) => mount.mountPoint).filter((point) => point !== path && isWithin(point, path));
}

/**
 * Whether something is mounted on a directory or below it. A user may mount a filesystem of their own (FUSE)
 * in their own directory; it refuses us, or its server never answers.
 */
export function hasMounts(path: string, mounts: readonly Mount[]): boolean {
  return mounts.some((mount) => isWithin(mount.mountPoint, path));
}

/**
 * Which entries and stubs some mounts use, be it as a root (a bind mount) or as a layer of an overlay.
 *
 * @param basePath the base as its users name it, which is how an overlay's options show it
 * @param base the same as the kernel names it
 * @returns names like `1000/.pyxis_cache_u1000_00deadbeef001122`: user directory and what lies in it
 */
export function namesInUse(mounts: readonly Mount[], basePath: string, base: Location): Set<string> {
  const names = new Set<string>();
  const add = (path: string, parent: string): void => {
    const [user, name] = isWithin(path, parent)
      ? path.slice(parent === '/' ? 1 : parent.length + 1).split('/')
      : [];
    if (user !== undefined && name !== undefined) names.add(`${user}/${name}`);
  };
  for (const mount of mounts) {
    if (mount.device === base.device) add(mount.root, base.path);
    if (mount.filesystem === 'overlay')
      for (const layer of overlayLayers(mount.superOptions)) add(layer, basePath);
  }
  return names;
}

/**
 * The layers of an overlay: `lowerdir=a:b`, or one `lowerdir+=a` for each since Linux 6.8, and the upper one.
 */
function overlayLayers(superOptions: string): string[] {
  const layers: string[] = [];
  for (const option of superOptions.split(',')) {
    const value = /^(?:lowerdir|datadir|upperdir)\+?=(.*)$/.exec(option)?.[1];
    if (value !== undefined) layers.push(...unescapeOctal(value).split(':'));
  }
  return layers;
}

/**
 * The mount points named in an fstab(5) on the way to a path that are not mounted now. Where one is missing,
 * the directory under it is not the disk the admin meant and must not be filled.
 */
export function missingMounts(path: string, fstab: string, mounts: readonly Mount[]): string[] {
  const mounted = new Set(mounts.map((mount) => mount.mountPoint));
  return (
    fstab
      .split('\n')
      .map((line) => line.trim().split(/\s+/))
      .filter(([device]) => device !== undefined && device !== '' && !device.startsWith('#'))
      // mount(8) takes `/raid/` for `/raid`; the root itself is always there.
      .map(([, point = '']) => withoutLastSlashes(unescapeOctal(point)))
      .filter((point) => point.startsWith('/') && isWithin(path, point) && !mounted.has(point))
  );
}

function isWithin(path: string, parent: string): boolean {
  return path === parent || parent === '/' || path.startsWith(`${parent}/`);
}

function joinPath(parent: string, below: string): string {
  return (parent === '/' ? below : parent + below) || '/';
}

/** By hand, since /\/+$/ takes time that grows with the square of slashes in the middle. */
export function withoutLastSlashes(path: string): string {
  let end = path.length;
  while (path[end - 1] === '/') end--;
  return path.slice(0, end);
}
