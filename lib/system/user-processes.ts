/** The environment of users' processes, which root must not read itself (processes.ts). */
import { asUser, type UserIds } from './as-user.ts';
import { listProcesses, processIds, processUid } from './processes.ts';
import { runSync } from './run-command.ts';

/** Of a user, those that are looked at. */
const mostProcesses = 20_000;
const childLimitMs = 5000;

export interface FoundVariable {
  readonly pid: number;
  /** Whose process it is. */
  readonly uid: number;
  readonly name: string;
  readonly value: number;
}

/** All who have processes here, root apart; one with processes of several groups several times. */
export function listProcessOwners(): UserIds[] {
  const owners = listProcesses().flatMap((pid) => processIds(pid) ?? []);
  const users = owners.filter(({ uid }) => uid !== 0);
  return [...new Map(users.map((user) => [`${user.uid}:${user.gid}`, user])).values()];
}

/**
 * Looks for numbers in the environment of a user's processes.
 *
 * The kernel makes the reader wait while the process is being executed, and with a filesystem of their own
 * (FUSE) users can make that last for ever: so a child reads it, as the user, with a time limit. What comes
 * after such a process is not found.
 *
 * @param names of the variables
 * @param value the only one to be found; without it any of ten digits at most
 * @param pids where to look
 */
export function findVariables(
  user: UserIds,
  names: readonly string[],
  value?: number,
  pids: readonly number[] = listProcesses().filter((pid) => processUid(pid) === user.uid),
): FoundVariable[] {
  const paths = pids.slice(0, mostProcesses).map((pid) => `/proc/${pid}/environ`);
  if (paths.length === 0) return [];
  const output = ['--with-filename', '--line-buffered', '--no-messages', `--max-count=${names.length}`];
  const pattern = ['--null-data', '--text', '--line-regexp', '--extended-regexp'];
  const expression = `(${names.join('|')})=${value ?? '[0-9]{1,10}'}`;
  return runAsUser(user, 'grep', [...output, ...pattern, '-e', expression, '--', ...paths])
    .split('\0')
    .flatMap((line) => {
      const [, pid, name, found] = /^\/proc\/(\d+)\/environ:(\w+)=(\d+)$/.exec(line) ?? [];
      return pid === undefined || name === undefined
        ? []
        : [{ pid: Number(pid), uid: user.uid, name, value: Number(found) }];
    });
}

/** @returns what it printed within five seconds, whatever came of it */
export function runAsUser(user: UserIds, program: string, parameters: readonly string[]): string {
  const command = { file: program, args: parameters, timeoutMs: childLimitMs };
  return runSync(asUser(user, command, { canGain: false, groups: 'none' })).stdout;
}
