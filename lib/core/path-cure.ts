/**
 * Files and directories on the way to something of root's: whether somebody else can change them, and what to
 * do about it, the least that helps. Others may work in a directory that is everybody's, such as /scratch:
 * with the sticky bit they still can, and nobody can rename what is not theirs.
 */

interface Owned {
  readonly uid: number;
  readonly mode: number;
}

interface OnTheWay extends Owned {
  readonly path: string;
  readonly isDirectory: boolean;
  /** What the path leads to, not a directory above it. */
  readonly isEnd: boolean;
}

const groupOrOtherMayWrite = 0o022;
const sticky = 0o1000;

/** @param maySticky others may write, if only who owns a name can rename it */
export const isRootsAlone = ({ uid, mode }: Owned, maySticky = false): boolean =>
  uid === 0 && ((mode & groupOrOtherMayWrite) === 0 || (maySticky && (mode & sticky) !== 0));

/** @returns `0755` */
export const formatMode = (mode: number): string => (mode & 0o7777).toString(8).padStart(4, '0');

/** @returns `owned by uid 1000, mode 0777` */
export const formatOwner = ({ uid, mode }: Owned): string => `owned by uid ${uid}, mode ${formatMode(mode)}`;

/** @returns commands and, where they take something from somebody, what else could be done */
export function cureOf({ path, uid, mode, isDirectory, isEnd }: OnTheWay): string {
  const isOpen = (mode & groupOrOtherMayWrite) !== 0;
  const chown = uid === 0 ? [] : [`chown root ${path}`];
  if (!isEnd && isDirectory) {
    const chmod = isOpen && (mode & sticky) === 0 ? [`chmod +t ${path}`] : [];
    const lost =
      uid === 0
        ? ''
        : ` (uid ${uid} can then no longer rename or delete what lies in it), or use a directory elsewhere`;
    return `${[...chown, ...chmod].join(' && ')}${lost}`;
  }
  return [...chown, ...(isOpen ? [`chmod go-w ${path}`] : [])].join(' && ');
}

/** The same for a base that is itself a directory for everybody: it is better left as it is. */
export function cureOfBase(basePath: string, uid: number, mode: number): string {
  const isShared = (mode & groupOrOtherMayWrite) !== 0;
  if (!isShared) return `chown root ${basePath}`;
  const own = `${basePath}/container-cache`;
  const isEverybodys = (mode & (sticky | 0o002)) !== 0;
  return isEverybodys
    ? `leave it to its users, and use a directory of its own in it: install -d -m 0755 ${own}, container_cache_data_path=${own}` +
        (uid === 0 && (mode & sticky) !== 0
          ? ''
          : `; before that, ${cureOf({ path: basePath, uid, mode, isDirectory: true, isEnd: false })}`)
    : [...(uid === 0 ? [] : [`chown root ${basePath}`]), `chmod go-w ${basePath}`].join(' && ');
}
