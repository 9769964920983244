/** Programs that go on when we are gone. */
import { spawn } from 'node:child_process';
import { childEnvironment } from './run.ts';
import { selfCommand } from './self.ts';

const settleLimitSeconds = 3600;

/**
 * Has the disk take all that was written to a filesystem, then changes a file's mode, by which others know. It goes on as long as
 * that takes.
 *
 * @param directory on the filesystem
 * @param file a descriptor: what its path leads to by then may be another file
 */
export function startSettling(directory: string, file: number, mode: number): void {
  // find(1) executes the second only if the first exited with 0.
  const sync = ['-exec', 'sync', '--file-system', '--', '{}', ';'];
  const mark = ['-exec', 'chmod', mode.toString(8), '/proc/self/fd/3', ';'];
  const child = spawn(
    'timeout',
    ['--kill-after=5s', `${settleLimitSeconds}s`, 'find', directory, '-prune', ...sync, ...mark],
    { cwd: '/', detached: true, env: childEnvironment, stdio: ['ignore', 'ignore', 'ignore', file] },
  );
  child.on('error', () => undefined);
  child.unref();
}

/**
 * Starts a collector at idle priority, in a session of its own, so that slurmd neither waits for it nor kills it with
 * the Prolog.
 *
 * @param configPath the configuration we were started with, if not the default
 */
export function startBackgroundCollector(configPath: string | undefined): void {
  const self = selfCommand();
  const child = spawn(
    'ionice',
    ['--class', 'idle', 'nice', '--adjustment=19', self.file, ...self.args, 'gc', '--background'],
    {
      cwd: '/',
      detached: true,
      env: { ...childEnvironment, ...(configPath === undefined ? {} : { CONTAINER_CACHE_CONF: configPath }) },
      stdio: 'ignore',
    },
  );
  // Without a collector the node fills up, and the next one is tried with the next job.
  child.on('error', () => undefined);
  child.unref();
}
