/**
 * A program as pyxis runs it in a step: as the job's user, with the step's environment, in a process group of
 * its own.
 */
import { spawn } from 'node:child_process';
import { kill, type RunningProgram, type TestNode } from '../helpers/node.ts';
import type { TestUser } from '../helpers/private-machine.ts';
import { stepEnvironment } from '../helpers/wrapper.ts';

export interface UserResult {
  readonly exitCode: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly output: string;
}

export interface UserProgram extends Pick<RunningProgram, 'pid'> {
  readonly result: Promise<UserResult>;
  /** Ends what it reads. */
  readonly end: () => void;
}

interface StepRequest {
  readonly user: TestUser;
  readonly jobId: number;
  readonly stepId: number;
  readonly limitMs: number;
  /** Beside that of a step. */
  readonly environment?: Readonly<Record<string, string>>;
}

export function startAsUser(
  node: TestNode,
  { user, jobId, stepId, limitMs, environment }: StepRequest,
  command: readonly [string, ...string[]],
): UserProgram {
  const ids = [`--reuid=${user.uid}`, `--regid=${user.gid}`, '--clear-groups', '--inh-caps=-all'];
  const child = spawn('setpriv', [...ids, '--', ...command], {
    cwd: '/',
    detached: true,
    env: { ...stepEnvironment(node, user, jobId, stepId), ...environment },
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  const pid = child.pid!;
  const limit = setTimeout(() => {
    kill(-pid);
  }, limitMs);
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.setEncoding('utf8').on('data', (text: string) => (output += text));
  // It may end without having read.
  child.stdin.on('error', () => undefined);
  const { promise, resolve, reject } = Promise.withResolvers<UserResult>();
  child.on('error', reject);
  child.on('close', (exitCode, signal) => {
    clearTimeout(limit);
    resolve({ exitCode, signal, output });
  });
  return { pid, result: promise, end: () => child.stdin.end('\n') };
}
