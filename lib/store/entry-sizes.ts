/**
 * What entries take on disk, as root has counted it, kept in `<runtime>/sizes` so that not every unpack has
 * to count all files of the node. What an entry claims of itself plays no part (I14).
 *
 * A file with several names counts as its share for each of them: so entries that share files take together
 * what they take on disk, and nobody can make the cache look larger by hard links.
 *
 * A kept count is of the same directory (inode) and at most an hour old: a user can write to their entry, or
 * link its files elsewhere, and then the count is wrong for that long.
 */
import type { SpaceNeed } from '../core/image.ts';
import { parseJsonObject } from '../core/json.ts';
import { entryPath, entrySizesPath, isEntryName } from '../core/layout.ts';
import type { UserIds } from '../system/as-user.ts';
import { writeFileAtomically } from '../system/aside.ts';
import { readSmallFile } from '../system/files.ts';
import { measureShare } from '../system/tree-size.ts';

interface SizedEntry extends UserIds {
  readonly name: string;
  /** Of its directory. */
  readonly inode: number;
}

interface KeptSize extends SpaceNeed {
  readonly inode: number;
  readonly countedAtMs: number;
}

const keptForMs = 60 * 60_000;
/** Some hundred bytes for each entry; a node has thousands at most. */
const longestSizesBytes = 4 * 1024 * 1024;

export class EntrySizes {
  readonly #path: string;
  readonly #kept: Map<string, KeptSize>;
  /** What is written back: entries that are gone are forgotten. */
  readonly #used = new Map<string, KeptSize>();

  constructor(runtimePath: string) {
    this.#path = entrySizesPath(runtimePath);
    this.#kept = readKept(this.#path);
  }

  async measure(entry: SizedEntry, path: string): Promise<SpaceNeed> {
    const nowMs = Date.now();
    const known = this.#used.get(entry.name) ?? this.#kept.get(entry.name);
    const ageMs = nowMs - (known?.countedAtMs ?? Number.NaN);
    const isFresh = known?.inode === entry.inode && ageMs >= 0 && ageMs < keptForMs;
    const size = isFresh
      ? known
      : { ...(await measureShare(entry, path)), inode: entry.inode, countedAtMs: nowMs };
    this.#used.set(entry.name, size);
    return size;
  }

  /** What cannot be kept is counted anew by the next one. */
  save(): void {
    const lines = [...new Map([...this.#kept, ...this.#used])]
      .filter(([, { countedAtMs }]) => Date.now() - countedAtMs < keptForMs)
      .map(([name, size]) => `${JSON.stringify({ name, ...size })}\n`);
    try {
      writeFileAtomically(this.#path, lines.join(''), { mode: 0o600 });
    } catch {
      // See above.
    }
  }
}

/** What an entry takes. Root made a mounted one, and what it says of itself is so. */
export async function measureEntry(
  by: { measure: (entry: SizedEntry, path: string) => Promise<SpaceNeed> },
  base: { readonly path: string },
  entry: SizedEntry & SpaceNeed & { readonly kind: 'private' | 'mounted' },
): Promise<SpaceNeed> {
  return entry.kind === 'mounted'
    ? { bytes: entry.bytes, inodes: entry.inodes }
    : by.measure(entry, entryPath(base.path, entry.uid, entry.name));
}

function readKept(path: string): Map<string, KeptSize> {
  const kept = new Map<string, KeptSize>();
  try {
    for (const line of (readSmallFile(path, longestSizesBytes) ?? '').split('\n')) {
      const { name, bytes, inodes, inode, countedAtMs } = parseJsonObject(line) ?? {};
      const numbers = [bytes, inodes, inode, countedAtMs];
      if (isEntryName(name) && numbers.every((one) => typeof one === 'number' && one >= 0))
        kept.set(name, { bytes, inodes, inode, countedAtMs } as KeptSize);
    }
  } catch {
    // As good as none.
  }
  return kept;
}
