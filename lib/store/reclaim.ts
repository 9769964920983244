/**
 * What deleting entries would free, looked at on the disk: what entries claim decides nothing about what is deleted (I10).
 *
 * A file with several names is freed with the last of them: it counts once all of them were met, in whichever entries they are.
 */
import type { SpaceNeed } from '../core/image.ts';
import { asUser, type UserIds } from '../system/as-user.ts';
import { splitLines } from '../system/lines.ts';
import { CommandFailed, run } from '../system/run.ts';

/** find(1) counts in these, whatever the filesystem's are. */
const blockBytes = 512;
/** Names of millions of files could fill our memory; those above this count as nothing. */
const mostLinkedFiles = 1_000_000;
/** Millions of files on a slow disk. An entry that takes longer counts as what was seen of it. */
const measureLimitMs = 60_000;

export class Reclaim {
  /** Names not met yet, by inode. */
  readonly #missingNames = new Map<string, number>();

  /** @returns what deleting a tree would free after all those that were measured before; what its user cannot read is left out */
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

/** What a tree takes, a file with several names as its share for each of them; what its user cannot read is left out. */
export async function measureShare(user: UserIds, path: string): Promise<SpaceNeed> {
  let blocks = 0;
  let inodes = 0;
  await walk(user, path, (size, names) => {
    blocks += size / names;
    inodes += 1 / names;
  });
  return { bytes: Math.round(blocks * blockBytes), inodes: Math.round(inodes) };
}

/** Calls back for each name: blocks of the file, number of its names; of a file, not of a directory, also its inode. */
async function walk(
  user: UserIds,
  path: string,
  onName: (blocks: number, names: number, inode: string | undefined) => void,
): Promise<void> {
  const count = (line: string): void => {
    // The user may trace find(1) and make it print anything: what is no line of its own counts as nothing.
    const [, size, names, inode] = /^(\d{1,12})(?: (\d{1,9}) (\d{1,20}))?$/.exec(line) ?? [];
    if (size !== undefined) onName(Number(size), Math.max(1, Number(names ?? 1)), inode);
  };
  const print = ['(', '-type', 'd', '-printf', '%b\\n', '-o', '-printf', '%b %n %i\\n', ')'];
  const command = asUser(
    user,
    {
      file: 'find',
      args: [path, '-mount', ...print],
      timeoutMs: measureLimitMs,
      onStdout: splitLines(count, 'latin1').add,
    },
    { canGain: false, groups: 'none' },
  );
  await run(command).catch((error: unknown) => {
    if (!(error instanceof CommandFailed)) throw error;
  });
}
