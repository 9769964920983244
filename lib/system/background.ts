/** Programs that go on when we are gone. */
import { spawn } from 'node:child_process';
import { confinedTo } from './as-user.ts';
import { childEnvironment } from './run.ts';
import { selfCommand } from './self.ts';

/**
 * It looks at what is the users' with their ids (setuid, setgid), moves and deletes their trees (dac_override, fowner), reads the
 * mounts of all processes (sys_ptrace), and confines its own children (setpcap).
 */
const collectorCapabilities = [
  ...(['setuid', 'setgid', 'setpcap'] as const),
  ...(['dac_override', 'fowner', 'sys_ptrace'] as const),
];

/**
 * Starts a collector at idle priority, in a session of its own, so that slurmd neither waits for it nor kills it with
 * the Prolog.
 *
 * @param configPath the configuration we were started with, if not the default
 */
export function startBackgroundCollector(configPath: string | undefined): void {
  const self = selfCommand();
  const priority = ['ionice', '--class', 'idle', 'nice', '--adjustment=19'];
  const child = spawn(
    'setpriv',
    [...confinedTo(collectorCapabilities), ...priority, self.file, ...self.args, 'gc', '--background'],
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
