/**
 * Children that run as a user, who can stop or trace them: then they are killed at once, and nobody waits for
 * their time to be over.
 */
import process from 'node:process';
import { errnoOf } from './errno.ts';
import { isStopped } from './processes.ts';
import { run, type Command, type CommandResult } from './run-command.ts';

const watchIntervalMs = 200;

/** @throws CommandFailed as run() does; SIGKILL for one that was stopped */
export async function runUnlessStopped(command: Command): Promise<CommandResult> {
  let watch: NodeJS.Timeout | undefined;
  try {
    return await run({
      ...command,
      onStart: (pid) => {
        watch = setInterval(() => {
          if (isStopped(pid)) killQuietly(pid);
        }, watchIntervalMs);
      },
    });
  } finally {
    clearInterval(watch);
  }
}

/** It may have ended meanwhile. */
function killQuietly(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if (errnoOf(error) !== 'ESRCH') throw error;
  }
}
