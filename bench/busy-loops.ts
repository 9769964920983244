/** Load: nodes with jobs are busy. */
import { spawn } from 'node:child_process';

/** On two processors. */
export const busyLoops = 4;

/** Starts loops that only use a processor. Disposing of it ends them. */
export function startBusyLoops(count: number): Disposable {
  const loops = Array.from({ length: count }, () =>
    spawn('sh', ['-c', 'while :; do :; done'], { stdio: 'ignore' }),
  );
  return {
    [Symbol.dispose]: () => {
      for (const loop of loops) loop.kill('SIGKILL');
    },
  };
}
