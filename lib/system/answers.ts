/** Whether a path can be looked at without waiting for ever: a directory of a dead file server cannot. */
import { CommandFailed, endingWithUs, run } from './run-command.ts';

/**
 * A child looks first; it can be abandoned, we could not.
 *
 * @returns true also if there is nothing at the path
 */
export async function answersWithin(path: string, timeoutMs: number): Promise<boolean> {
  try {
    await run(endingWithUs({ file: 'stat', args: ['--dereference', '--format=%i', '--', path], timeoutMs }));
    return true;
  } catch (error) {
    if (error instanceof CommandFailed) return !error.timedOut;
    throw error;
  }
}
