/**
 * What enroot and pyxis do while we make no user directories: a data path that only our Prolog makes is
 * missing then, and enroot fails.
 *
 * A module of its own so that a Prolog that works does not load it.
 */
import { lstatSync, readdirSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { parseEnrootConf, plainDataPath, type EnrootSetting } from '../core/enroot-conf.ts';
import { NodeFault } from '../core/faults.ts';
import type { UserIds } from '../system/as-user.ts';
import { isGone, unlessErrno } from '../system/errno.ts';
import { readSmallFile } from '../system/files.ts';

/** With these the Prolog makes no user directory. */
const codes = ['BAD_CONFIG', 'BASE_UNSAFE', 'BASE_UNFIT', 'DISK_FAILED', 'USER_DIRECTORY'];
const longestFileBytes = 64 * 1024;

/**
 * @returns a sentence for the log if this failure of ours makes enroot fail for the user; undefined: it does
 *   not, or only a shell could tell
 */
export function describeDataPathHazard(
  sysconfPath: string,
  user: UserIds,
  error: unknown,
): string | undefined {
  if (!(error instanceof NodeFault) || !codes.includes(error.code)) return undefined;
  try {
    const path = plainDataPath(readEnrootConf(sysconfPath), user.uid);
    if (path === undefined || canBeMade(path, user)) return undefined;
    return (
      `enroot.conf sets ENROOT_DATA_PATH to "${path}", which uid ${user.uid} cannot make: enroot fails, and where pyxis has ` +
      'container_scope=job its epilog drains this node, for jobs without a container too; OPERATIONS.md ("enroot.conf") has a line that falls back'
    );
  } catch {
    // The failure itself is told in any case.
    return undefined;
  }
}

function readEnrootConf(sysconfPath: string): EnrootSetting[] {
  const directory = join(sysconfPath, 'enroot.conf.d');
  const names = unlessErrno([...isGone, 'EACCES'], () => readdirSync(directory)) ?? [];
  const dropIns = names.filter((name) => name.endsWith('.conf') && !name.startsWith('.')).sort();
  const files = [join(sysconfPath, 'enroot.conf'), ...dropIns.map((name) => join(directory, name))];
  return files.flatMap((file) => parseEnrootConf(readSmallFile(file, longestFileBytes) ?? ''));
}

/** As far as the mode of the nearest directory tells; what it does not (ACLs) is taken for good. */
function canBeMade(path: string, user: UserIds): boolean {
  let here = path;
  while (here !== '/' && unlessErrno([...isGone, 'EACCES'], () => lstatSync(here)) === undefined)
    here = dirname(here);
  const stats = statSync(here);
  if (!stats.isDirectory() || here === path) return stats.isDirectory();
  const allows = (bits: number): boolean => (stats.mode & bits) === bits;
  // Whose groups the user is in is not looked up.
  return stats.uid === user.uid ? allows(0o300) : allows(0o030) || allows(0o003);
}
