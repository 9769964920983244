/** Who, beside root, decides what a path leads to, and who cannot get there. */
import { lstatSync, readlinkSync, realpathSync, statSync, type Stats } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { cureOf } from '../core/path-cure.ts';

export interface PathFault {
  /** The directory or file on the way that is at fault. */
  readonly path: string;
  /** `owned by uid 1000, mode 0777` */
  readonly found: string;
  /** What to do so that nobody else can change it. */
  readonly cure: string;
}

const groupOrOtherMayWrite = 0o022;
const sticky = 0o1000;

/**
 * Looks for what lets anybody but root change what a path leads to: owner and mode of the file, of each directory above
 * it, and the same for where its symlinks lead.
 *
 * @param isOnTheWay it is a directory above what is meant, and may be sticky
 * @throws ENOENT, … if it leads nowhere
 */
export function whoElseCanChange(path: string, isOnTheWay = false): PathFault | undefined {
  return findOnTheWay(
    path,
    (stats, isEnd) =>
      stats.uid === 0 &&
      ((stats.mode & groupOrOtherMayWrite) === 0 || ((isOnTheWay || !isEnd) && (stats.mode & sticky) !== 0)),
  );
}

const mostLinks = 40;

/**
 * Follows the symlinks of a path, each step of which must be root's alone: so what it leads to stays the same until it is opened.
 *
 * @returns the path without symlinks
 * @throws Error naming the step that somebody else can change; ENOENT, …
 */
export function followSafely(path: string): string {
  let names = resolve(path).split('/');
  let at = '/';
  let links = 0;
  for (let name = names.shift(); name !== undefined; name = names.shift()) {
    const step = resolve(at, name);
    const stats = lstatSync(step);
    const isClosed =
      (stats.mode & groupOrOtherMayWrite) === 0 || (stats.isDirectory() && (stats.mode & sticky) !== 0);
    if (stats.uid !== 0 || !(isClosed || stats.isSymbolicLink())) {
      const mode = (stats.mode & 0o7777).toString(8).padStart(4, '0');
      throw new Error(
        `${path} is a symlink, and on its way ${step} is owned by uid ${stats.uid}, mode ${mode}`,
      );
    }
    if (!stats.isSymbolicLink()) {
      at = step;
      continue;
    }
    if (++links > mostLinks) throw new Error(`${path} leads through more than ${mostLinks} symlinks`);
    const target = readlinkSync(step);
    if (target.startsWith('/')) at = '/';
    names = [...target.split('/'), ...names];
  }
  return at;
}

/**
 * Looks for what keeps a user from a path.
 *
 * @param bits what others must be allowed at its end: 0o5 to read and execute
 * @throws ENOENT, … if it leads nowhere
 */
export function whoCannotReach(path: string, bits: number): PathFault | undefined {
  return findOnTheWay(path, (stats, isEnd) => {
    const wanted = isEnd ? bits : 0o1;
    return (stats.mode & wanted) === wanted;
  });
}

function findOnTheWay(
  path: string,
  isRight: (stats: Stats, isEnd: boolean) => boolean,
): PathFault | undefined {
  for (const end of new Set([path, realpathSync(path)])) {
    for (let step = end; ; step = dirname(step)) {
      const stats = statSync(step);
      if (!isRight(stats, step === end)) {
        const mode = (stats.mode & 0o7777).toString(8).padStart(4, '0');
        const { uid } = stats;
        const cure = cureOf({
          path: step,
          uid,
          mode: stats.mode,
          isDirectory: stats.isDirectory(),
          isEnd: step === end,
        });
        return { path: step, found: `owned by uid ${uid}, mode ${mode}`, cure };
      }
      if (step === '/') break;
    }
  }
  return undefined;
}
