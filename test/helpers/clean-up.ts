/**
 * A program that leaves nothing behind: what it undoes at its end it undoes at Ctrl-C, too.
 */
import { constants } from 'node:os';
import process from 'node:process';
import { describeError } from '../../lib/core/faults.ts';

/** Registers what must be undone at the end; undone is last what was registered first. */
export type Defer = (undo: () => void | Promise<void>) => void;

const endingSignals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/**
 * Runs `body`, and when it has ended, failed or a signal came, everything it deferred. Sets the exit code:
 * what `body` returns, 1 if it or an undo fails, 128 and the signal's number after a signal.
 */
export async function runAndCleanUp(body: (defer: Defer) => Promise<number>): Promise<void> {
  const undos: (() => void | Promise<void>)[] = [];
  // An object, since the handlers change it behind the compiler's back.
  const state = { isInterrupted: false };

  async function undoAll(): Promise<boolean> {
    let isClean = true;
    for (let undo = undos.pop(); undo !== undefined; undo = undos.pop()) {
      try {
        await undo();
      } catch (error) {
        isClean = false;
        complain(error);
      }
    }
    return isClean;
  }

  for (const signal of endingSignals) {
    // A second Ctrl-C does not stop the clean-up: it takes seconds, and each of its waits has a limit.
    process.on(signal, () => {
      if (state.isInterrupted) return;
      state.isInterrupted = true;
      process.stderr.write(`\n${signal}: cleaning up\n`);
      void undoAll().then(() => process.exit(128 + constants.signals[signal]));
    });
  }

  let exitCode: number;
  try {
    exitCode = await body((undo) => undos.push(undo));
  } catch (error) {
    // While the signal's clean-up takes everything away, whatever `body` still does may fail.
    if (!state.isInterrupted) complain(error);
    exitCode = 1;
  }
  if (state.isInterrupted) return;
  // Registered handlers alone do not keep a process alive.
  process.exitCode = (await undoAll()) ? exitCode : 1;
}

function complain(error: unknown): void {
  process.stderr.write(`
${describeError(error)}
`);
}
