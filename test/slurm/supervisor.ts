/**
 * The process that keeps a cluster's namespaces (supervise.sh, namespace.sh), from the test's side.
 *
 * The test holds the write end of the supervisor's standard input. Closing it is how a cluster is
 * stopped, and the kernel closes it as well when the test is killed.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import type * as net from 'node:net';
import * as path from 'node:path';

import { ClusterError } from './cluster-error.ts';
import { signalIfAlive } from './command.ts';
import { SYSTEM_PATH } from './machine.ts';

/** Patience with the end of the processes before process 1 is killed, and after that. */
const STOP_TIMEOUT_MS = 10_000;

export interface Supervisor {
  readonly child: ChildProcess;
  /** The cluster's process 1, as seen on the host. */
  readonly initPid: number;
  readonly directory: string;
}

/** Makes the namespaces; returns when their mounts are in place. */
export async function startSupervisor(directory: string): Promise<Supervisor> {
  const child = spawn(path.join(import.meta.dirname, 'supervise.sh'), [directory], {
    // Its own session: what ends the test (Ctrl-C, a limit on its process group) must not end the clean-up.
    detached: true,
    stdio: ['pipe', 'pipe', 'pipe'],
    env: { PATH: SYSTEM_PATH },
  });
  const initPid = await readInitPid(child);

  // A test that forgets stop() must still be able to end; the pipe closes then, and the cluster goes.
  child.unref();
  for (const stream of [child.stdin, child.stdout, child.stderr]) (stream as net.Socket).unref();
  return { child, initPid, directory };
}

/** Ends every process and mount of the cluster and waits until its directory is deleted. */
export async function stopSupervisor({ child, directory, initPid }: Supervisor): Promise<void> {
  if (child.exitCode === null && child.signalCode === null) {
    child.ref();
    const exited = once(child, 'exit').then(() => true);
    child.stdin?.end();
    if (!(await settlesWithin(exited, STOP_TIMEOUT_MS))) signalIfAlive(initPid, 'SIGKILL');
    if (!(await settlesWithin(exited, STOP_TIMEOUT_MS))) {
      throw new ClusterError(
        `Cannot stop the cluster in "${directory}": supervisor ${String(child.pid)} runs, wanted it to end`,
      );
    }
  }
  if (fs.existsSync(directory)) {
    throw new ClusterError(`Cannot delete the cluster's directory "${directory}": it is still there`);
  }
}

async function readInitPid(child: ChildProcess): Promise<number> {
  let stdout = '';
  let stderr = '';
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  return new Promise<number>((resolve, reject) => {
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
      const match = /^ready (\d+)$/m.exec(stdout);
      if (match !== null) resolve(Number(match[1]));
    });
    child.once('error', reject);
    child.once('close', (exitCode) => {
      const ending = `exit code ${String(exitCode)}, ${stderr.trim()}`;
      reject(new ClusterError(`Cannot make the cluster's namespaces: ${ending}`));
    });
  });
}

async function settlesWithin(promise: Promise<unknown>, timeoutMs: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const timeout = new Promise<false>((resolve) => {
    timer = setTimeout(() => resolve(false), timeoutMs);
  });
  const settled = await Promise.race([promise.then(() => true), timeout]);
  clearTimeout(timer);
  return settled;
}
