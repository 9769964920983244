/** Trees that nobody may change: what they are when they are first looked at, they must stay. */
import { lstatSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

/**
 * Names, kinds, owners, modes, links, times and content; the time of the inode's change tells of whatever
 * else was done to it.
 */
function describeTree(path: string): string[] {
  const stats = lstatSync(path);
  const { mode, uid, gid, nlink, size, mtimeMs, ctimeMs } = stats;
  const line = [path, mode.toString(8), uid, gid, nlink, size, mtimeMs, ctimeMs].join(' ');
  if (stats.isDirectory())
    return [line, ...readdirSync(path).flatMap((name) => describeTree(join(path, name)))];
  return [line, stats.isFile() ? readFileSync(path, 'latin1') : ''];
}

export class Untouched {
  readonly #trees: ReadonlyMap<string, readonly string[]>;

  constructor(paths: readonly string[]) {
    this.#trees = new Map(paths.map((path) => [path, describeTree(path)]));
  }

  /** @returns what is not as it was */
  changes(): string[] {
    return [...this.#trees].flatMap(([path, before]) => {
      const now = describeTree(path);
      return now.filter((line, index) => line !== before[index]).concat(before.slice(now.length));
    });
  }
}
