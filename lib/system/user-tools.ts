/**
 * Why a command could not run as a user: for want of something on the node, or because of the user.
 *
 * What a process says that runs as the user, by its exit code or its text, is the user's to choose: they may trace it, and names of
 * theirs are in its messages. And it may find no room among the user's processes (RLIMIT_NPROC). So root looks for itself.
 */
import { asUser, isRoot, nobody, type UserIds } from './as-user.ts';
import { CommandFailed, run, type Command } from './run.ts';

const lookLimitMs = 10_000;

/** setpriv(1) and prlimit(1) exit with 126 or 127 where they cannot execute what they are to run. */
export function isNotExecuted({ exitCode, signal }: CommandFailed): boolean {
  return exitCode === undefined ? signal === undefined : exitCode >= 126;
}

/**
 * @param files programs that the command needs beside setpriv(1)
 * @returns whether one of them does not run for nobody either, or the node does not know the user
 */
export async function isNodeAtFault(user: UserIds, files: readonly string[]): Promise<boolean> {
  // A step's own process decides nothing about the node.
  if (!isRoot()) return true;
  if ((await exitCodeOf({ file: 'getent', args: ['passwd', String(user.uid)] })) !== 0) return true;
  if ((await exitCodeOf(asNobody('true', []))) !== 0) return true;
  for (const file of files) {
    // unsquashfs(1) exits with 1 after it has told its version.
    if (((await exitCodeOf(asNobody(file, ['--version']))) ?? Infinity) > 1) return true;
  }
  return false;
}

const asNobody = (file: string, args: readonly string[]): Command =>
  asUser(nobody, { file, args, timeoutMs: lookLimitMs });

async function exitCodeOf(command: Omit<Command, 'timeoutMs'>): Promise<number | undefined> {
  try {
    await run({ ...command, timeoutMs: lookLimitMs });
    return 0;
  } catch (error) {
    if (!(error instanceof CommandFailed)) throw error;
    return error.exitCode;
  }
}
