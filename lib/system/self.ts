/** How this program is started again. */
import { dirname } from 'node:path';
import process from 'node:process';
import { isSea } from 'node:sea';
import { isGone, unlessErrno } from './errno.ts';
import { whoCannotReach, whoElseCanChange } from './path-safety.ts';

/**
 * @returns file and first arguments, as bundled or under the bare runtime; a command like `gc` must follow
 */
export function selfCommand(): { readonly file: string; readonly args: readonly string[] } {
  if (isSea()) return { file: process.execPath, args: [] };
  return { file: process.execPath, args: [new URL('../../main.ts', import.meta.url).pathname] };
}

const executableName = 'container-cache';
/** Where packages put it. */
const usualPath = `/usr/libexec/container-cache/${executableName}`;

/**
 * The executable that jobs' users start. The one that runs may be a copy that only root can reach, as in an
 * /etc/slurm/prolog.d of mode 0700.
 *
 * @returns undefined if users can execute none, or under the bare runtime
 */
export function findCommandForUsers(self = isSea() ? process.execPath : undefined): string | undefined {
  if (self === undefined) return undefined;
  if (canUsersExecute(self)) return self;
  return [`${dirname(self)}/${executableName}`, usualPath].find(
    (path) => canUsersExecute(path) && isSafe(path),
  );
}

const readAndExecute = 0o5;
const unreachable = [...isGone, 'EACCES', 'ELOOP'] as const;

function canUsersExecute(path: string): boolean {
  const look = unlessErrno(unreachable, () => ({ fault: whoCannotReach(path, readAndExecute) }));
  return look !== undefined && look.fault === undefined;
}

/** One user must not choose what others run. */
function isSafe(path: string): boolean {
  const look = unlessErrno(unreachable, () => ({ fault: whoElseCanChange(path) }));
  return look !== undefined && look.fault === undefined;
}
