/** Who, beside root, decides what a path leads to, and who cannot get there. */
import { realpathSync, statSync, type Stats } from 'node:fs';
import { dirname } from 'node:path';

export interface PathFault {
  /** The directory or file on the way that is at fault. */
  readonly path: string;
  /** `owned by uid 1000, mode 0777` */
  readonly found: string;
}

const groupOrOtherMayWrite = 0o022;
const sticky = 0o1000;

/**
 * Looks for what lets anybody but root change what a path leads to: owner and mode of the file, of each directory above
 * it, and the same for where its symlinks lead.
 *
 * @throws ENOENT, … if it leads nowhere
 */
export function whoElseCanChange(path: string): PathFault | undefined {
  return findOnTheWay(
    path,
    (stats, isEnd) =>
      stats.uid === 0 &&
      ((stats.mode & groupOrOtherMayWrite) === 0 || (!isEnd && (stats.mode & sticky) !== 0)),
  );
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
        return { path: step, found: `owned by uid ${stats.uid}, mode ${mode}` };
      }
      if (step === '/') break;
    }
  }
  return undefined;
}
