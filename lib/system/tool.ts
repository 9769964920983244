/**
 * Whether a program is at fault, or who had us run it: a user can stop, trace and end what runs under their
 * uid, and so make it say anything. So a program that seems to be missing is tried once more as nobody.
 */
import process from 'node:process';
import { isUsedUp } from '../core/faults.ts';
import { asUser, isRoot, nobody, type UserIds } from './as-user.ts';
import { CommandFailed, run, type Command } from './run-command.ts';

/** setpriv(1) and prlimit(1) exit with 126 or 127 where they cannot execute what they are to run. */
export function isNotExecuted({ exitCode, signal }: CommandFailed): boolean {
  return exitCode === undefined ? signal === undefined : exitCode >= 126;
}

/** execve(2) for want of memory or, with RLIMIT_NPROC, of processes. */
const exhausted = /Resource temporarily unavailable|Cannot allocate memory|Too many open files/;

/** @param command what runs the program as a user, and ends at once */
export async function isMissing(command: (user: UserIds) => Command): Promise<boolean> {
  const self = { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 };
  try {
    await run(command(isRoot() ? nobody : self));
    return false;
  } catch (error) {
    if (!(error instanceof CommandFailed)) throw error;
    return isNotExecuted(error) && !isUsedUp(error) && !exhausted.test(error.stderrTail);
  }
}

export const toolTimeoutMs = 10_000;

export const isFindMissing = (): Promise<boolean> =>
  isMissing((user) => asUser(user, { file: 'find', args: ['--version'], timeoutMs: toolTimeoutMs }));
