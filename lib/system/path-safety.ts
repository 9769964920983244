/** Who, beside root, decides what a path leads to, and who cannot get there. */
import { lstatSync, readlinkSync, type Stats } from 'node:fs';
import { resolve } from 'node:path';
import { cureOf, formatOwner, isRootsAlone } from '../core/path-cure.ts';

interface PathFault {
  /** The directory, symlink or file on the way that is at fault. */
  readonly path: string;
  /** `owned by uid 1000, mode 0777` */
  readonly found: string;
  /** What to do so that nobody else can change it. */
  readonly cure: string;
}

interface Step {
  readonly path: string;
  readonly stats: Stats;
  /** What the path leads to, not something above it. */
  readonly isEnd: boolean;
}

const mostLinks = 40;

/**
 * The way to a path as the kernel goes it, from the root down: each directory, each symlink before it is
 * followed, and the end.
 *
 * @throws ENOENT, … if it leads nowhere
 */
function* stepsTo(path: string): Generator<Step> {
  let names = resolve(path)
    .split('/')
    .filter((name) => name !== '');
  let at = '/';
  let links = 0;
  yield { path: at, stats: lstatSync(at), isEnd: names.length === 0 };
  for (let name = names.shift(); name !== undefined; name = names.shift()) {
    const step = resolve(at, name);
    const stats = lstatSync(step);
    const isLink = stats.isSymbolicLink();
    yield { path: step, stats, isEnd: !isLink && names.length === 0 };
    if (!isLink) {
      at = step;
      continue;
    }
    if (++links > mostLinks) throw new Error(`${path} leads through more than ${mostLinks} symlinks`);
    const target = readlinkSync(step);
    if (target.startsWith('/')) at = '/';
    names = [...target.split('/').filter((one) => one !== ''), ...names];
    // Of a link to the root directory.
    if (names.length === 0) names = ['.'];
  }
}

/**
 * What the end of a path is, if not what is meant itself: a directory above it, which may be sticky; then
 * also one without symlinks.
 */
type Purpose = 'itself' | 'above' | 'only directories';

function findFault({ path, stats, isEnd }: Step, purpose: Purpose): PathFault | undefined {
  const { uid, mode } = stats;
  const isDirectory = stats.isDirectory();
  if (purpose === 'only directories' && !isDirectory)
    return { path, found: 'no directory', cure: 'name the directory that it leads to' };
  // The mode of a symlink says nothing.
  const isLink = stats.isSymbolicLink();
  const isAbove = !isEnd || purpose !== 'itself';
  if (isLink ? uid === 0 : isRootsAlone(stats, isAbove)) return undefined;
  const cure = isLink ? `chown -h root ${path}` : cureOf({ path, uid, mode, isDirectory, isEnd: !isAbove });
  return { path, found: formatOwner(stats), cure };
}

/**
 * Looks for what lets anybody but root change what a path leads to: owner and mode of the file, of each
 * directory above it, and the same for where its symlinks lead.
 *
 * @returns the first, from the root down
 * @throws ENOENT, … if it leads nowhere
 */
export function whoElseCanChange(path: string, purpose: Purpose = 'itself'): PathFault | undefined {
  for (const step of stepsTo(path)) {
    const fault = findFault(step, purpose);
    if (fault !== undefined) return fault;
  }
  return undefined;
}

/**
 * Follows the symlinks of a path, each step of which must be root's alone: so what it leads to stays the same
 * until it is opened.
 *
 * @returns the path without symlinks
 * @throws Error naming the step that somebody else can change; ENOENT, …
 */
export function followSafely(path: string): string {
  let end = path;
  for (const step of stepsTo(path)) {
    const fault = findFault(step, 'itself');
    if (fault !== undefined)
      throw new Error(`${path} is a symlink, and on its way ${fault.path} is ${fault.found}`);
    end = step.path;
  }
  return end;
}

/**
 * Looks for what keeps a user from a path.
 *
 * @param bits what others must be allowed at its end: 0o5 to read and execute
 * @throws ENOENT, … if it leads nowhere
 */
export function whoCannotReach(path: string, bits: number): Omit<PathFault, 'cure'> | undefined {
  for (const { path: at, stats, isEnd } of stepsTo(path)) {
    const wanted = isEnd ? bits : 0o1;
    if (!stats.isSymbolicLink() && (stats.mode & wanted) !== wanted)
      return { path: at, found: formatOwner(stats) };
  }
  return undefined;
}
