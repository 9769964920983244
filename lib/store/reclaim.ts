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
    const count = (line: string): void => {
      const [size, names, inode] = line.split(' ');
      if (inode !== undefined && !this.#isLastName(inode, Number(names))) return;
      blocks += Number(size);
      inodes++;
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
