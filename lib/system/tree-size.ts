/**
 * What deleting entries would free, counted on the disk: what entries claim decides nothing about what is
 * deleted (I14).
 *
 * A file with several names is freed with the last of them: it counts once all of them were met, in whichever
 * entries they are. Copies that share blocks (reflinks) count each. Whoever makes such copies gains no more
 * than by an image that is as large as it says.
 */
import type { Stats } from 'node:fs';
import { basename, dirname } from 'node:path';
import type { SpaceNeed } from '../core/image.ts';
import { asUser, type UserIds } from './as-user.ts';
import { inDirectoryOf, namesBeneath, statBeneath, withDirectoryBeneath } from './beneath.ts';
import { elapsedMs } from './clock.ts';
import type { Directory } from './directory.ts';
import { splitLines } from './lines.ts';
import { CommandFailed } from './run-command.ts';
import { runUnlessStopped } from './unless-stopped.ts';

/** find(1) counts in these, whatever the filesystem's are. */
export const blockBytes = 512;
/** Names of millions of files could fill our memory: of so many is noted which are of one file. */
export const mostLinkedFiles = 1_000_000;
/**
 * Millions of files on a slow disk: so long find(1) may run for one user, in all that this process does. What
 * is not seen by then counts as nothing.
 */
const longestOfUserMs = 60_000;
const spentMsOf = new Map<number, number>();
/**
 * Trees of so few names are looked at without a process: a thousand empty entries of one user must not take
 * the time of others.
 */
const mostFewNames = 64;
const deepestFew = 8;

export class Reclaim {
  /** Names not met yet, by inode. */
  readonly #missingNames = new Map<string, number>();

  /**
   * @returns what deleting a tree would free after all those that were measured before; what its user cannot
   *   read is left out
   */
  async measure(user: UserIds, path: string): Promise<SpaceNeed> {
    let blocks = 0;
    let inodes = 0;
    await walk(user, path, (size, names, inode) => {
      if (inode !== undefined && !this.#isLastName(inode, names)) return;
      blocks += size;
      inodes++;
    });
    return { bytes: blocks * blockBytes, inodes };
  }

  #isLastName(inode: string, names: number): boolean {
    if (names <= 1) return true;
    const missing = (this.#missingNames.get(inode) ?? names) - 1;
    if (this.#missingNames.has(inode) || this.#missingNames.size < mostLinkedFiles)
      this.#missingNames.set(inode, missing);
    return missing === 0;
  }
}

/**
 * What a tree takes, a file with several names as its share for each of them; what its user cannot read is
 * left out.
 */
export async function measureShare(user: UserIds, path: string): Promise<SpaceNeed> {
  let blocks = 0;
  let inodes = 0;
  await walk(user, path, (size, names) => {
    blocks += size / names;
    inodes += 1 / names;
  });
  return { bytes: Math.round(blocks * blockBytes), inodes: Math.round(inodes) };
}

/** Blocks of what has the name, and number of its names; of a file, not of a directory, also its inode. */
type OnName = (blocks: number, names: number, inode: string | undefined) => void;

/** Has find(1) print each name of a tree for readNames(). */
export const printNames = ['(', '-type', 'd', '-printf', '%b\\n', '-o', '-printf', '%b %n %i\\n', ')'];

/** @returns what takes the output of find(1) */
export function readNames(onName: OnName): (chunk: Buffer) => void {
  return splitLines((line) => {
    // The user may trace find(1) and make it print anything: what is no line of its own counts as nothing.
    const [, size, names, inode] = /^(\d{1,12})(?: (\d{1,9}) (\d{1,20}))?$/.exec(line) ?? [];
    if (size !== undefined) onName(Number(size), Math.max(1, Number(names ?? 1)), inode);
  }, 'latin1').add;
}

/**
 * Calls back for each name.
 *
 * @param path whose directory only root can rename
 */
async function walk(user: UserIds, path: string, onName: OnName): Promise<void> {
  const few = lookAtFew(user, path);
  if (few !== undefined) {
    for (const { blocks } of few.directories) onName(blocks, 1, undefined);
    for (const { blocks, nlink, ino } of few.files) onName(blocks, nlink, String(ino));
    return;
  }
  const spentMs = spentMsOf.get(user.uid) ?? 0;
  if (spentMs >= longestOfUserMs) return;
  const command = asUser(
    user,
    {
      file: 'find',
      args: [path, '-mount', ...printNames],
      timeoutMs: longestOfUserMs - spentMs,
      onStdout: readNames(onName),
    },
    { canGain: false, groups: 'none' },
  );
  const startedMs = elapsedMs();
  try {
    await runUnlessStopped(command);
  } catch (error) {
    if (!(error instanceof CommandFailed)) throw error;
    // Its user stopped it: the next one would be stopped, too.
    if (error.signal !== undefined) spentMsOf.set(user.uid, longestOfUserMs);
  }
  spentMsOf.set(user.uid, (spentMsOf.get(user.uid) ?? 0) + elapsedMs() - startedMs);
}

interface FewNames {
  readonly directories: readonly Stats[];
  readonly files: readonly Stats[];
}

/** @returns what a small tree holds, itself included; undefined: it is large, or its user must be asked */
function lookAtFew(user: UserIds, path: string): FewNames | undefined {
  const found = { directories: [] as Stats[], files: [] as Stats[] };
  let names = 0;
  const look = (directory: Directory, depth: number): boolean => {
    found.directories.push(directory.stats);
    for (const name of namesBeneath(directory)) {
      if (++names > mostFewNames || depth === deepestFew) return false;
      const stats = statBeneath(directory, name);
      if (!stats.isDirectory()) found.files.push(stats);
      else if (!withDirectoryBeneath(directory, name, (inner) => look(inner, depth + 1))) return false;
    }
    return true;
  };
  try {
    const isWhole = inDirectoryOf(user, dirname(path), (parent) =>
      withDirectoryBeneath(parent, basename(path), (tree) => look(tree, 0)),
    );
    return isWhole ? found : undefined;
  } catch {
    return undefined;
  }
}
