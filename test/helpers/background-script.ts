/** Scripts that do something to a node, such as a mount, and keep it so until they are ended. */
import { spawn, type ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { until } from './node.ts';

/** For inBackground(): with mounts of its own. */
export const unshare = ['unshare', '--mount', '--propagation', 'private'];

const started: ChildProcess[] = [];

/** For what a test that failed has left. */
export function endAll(): void {
  for (const child of started.splice(0)) child.kill('SIGKILL');
}
/** Starts a shell script that ends in a `sleep`, and waits until it is there. */
export async function inBackground(
  wrapper: readonly string[],
  script: string,
  ...parameters: string[]
): Promise<ChildProcess> {
  const [file, ...rest] = [...wrapper, 'sh', '-euc', `${script}; exec sleep infinity`, 'sh', ...parameters];
  const child = spawn(file!, rest, {
    stdio: ['ignore', 'inherit', 'inherit'],
    env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' },
  });
  started.push(child);
  await until(`"${script}" is done`, () => {
    if (child.exitCode !== null) throw new Error(`"${script}" ended with exit code ${child.exitCode}`);
    return readFileSync(`/proc/${child.pid!}/comm`, 'utf8') === 'sleep\n';
  });
  return child;
}

export async function end(child: ChildProcess): Promise<void> {
  child.kill('SIGKILL');
  await until('it has ended', () => child.exitCode !== null || child.signalCode !== null);
}
