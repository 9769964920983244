/**
 * Opening a file that only root and trusted owners can have written.
 *
 * The way is gone from the root directory down, name by name, each from the open directory before it; no
 * symlink is followed. So what is looked at is what is opened: nobody who could change the answer can change
 * any directory on the way. Filesystems that another program serves (FUSE) are refused, for the program
 * decides what they show.
 */
import { closeSync, constants, fstatSync, openSync, statfsSync, type BigIntStats, type Stats } from 'node:fs';
import { whyChangeable } from '../core/mounted-facts.ts';
import { hasWriter } from './mounting.ts';

/** O_PATH of open(2), which Node does not export: what is there is not opened by it. */
const onlyPath = 0o10000000;
/** statfs(2); virtiofs has it, too. */
const fuseMagic = 0x65735546;

class Untrusted extends Error {
  override readonly name = 'Untrusted';
}

/**
 * @param path absolute, without symlinks
 * @param owners uids beside root's
 * @throws Untrusted with who could change it; a failed system call
 */
export function openTrustedFile(
  path: string,
  owners: readonly number[],
): { readonly fd: number; readonly stats: BigIntStats } {
  const names = path.split('/').slice(1);
  let at = openSync('/', onlyPath | constants.O_DIRECTORY);
  let shown = '';
  try {
    check(at, '/', owners, names.length > 1);
    for (const [index, name] of names.entries()) {
      if (name === '' || name === '.' || name === '..') throw new Untrusted(`"${path}" is not a real path`);
      const isLast = index === names.length - 1;
      shown += `/${name}`;
      const next = openSync(`/proc/self/fd/${at}/${name}`, onlyPath | constants.O_NOFOLLOW);
      closeSync(at);
      at = next;
      const stats = check(at, shown, owners, index < names.length - 2);
      if (isLast ? !stats.isFile() : !stats.isDirectory())
        throw new Untrusted(`"${shown}" is no ${isLast ? 'regular file' : 'directory'}`);
    }
    const fd = openSync(
      `/proc/self/fd/${at}`,
      constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY,
    );
    try {
      // Who opened it for writing when it was theirs could write to it still.
      if (hasWriter(fd)) throw new Untrusted(`a process has "${path}" open for writing`);
      return { fd, stats: fstatSync(fd, { bigint: true }) };
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  } finally {
    closeSync(at);
  }
}

function check(fd: number, shown: string, owners: readonly number[], isAbove: boolean): Stats {
  const stats = fstatSync(fd);
  // The mode of a symlink says nothing; it is refused for what it is.
  const fault = stats.isSymbolicLink() ? 'a symlink' : whyChangeable(stats, owners, isAbove);
  if (fault !== undefined) throw new Untrusted(`"${shown}" is ${fault}`);
  if (statfsSync(`/proc/self/fd/${fd}`).type === fuseMagic)
    throw new Untrusted(`"${shown}" is on a filesystem that another program serves (FUSE)`);
  return stats;
}
