/**
 * `container-cache acquire`, run as the enroot wrapper runs it: as the job's user, with the environment of a
 * step.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { parseLog, programPath, type LogLine, type TestNode } from './node.ts';
import { alice, readersGid, type TestUser } from './private-machine.ts';

interface Answer {
  readonly exitCode: number | null;
  readonly entry: string | undefined;
  readonly holder: number | undefined;
  readonly stdout: string;
  readonly log: LogLine | undefined;
}

interface AcquireOptions {
  readonly user?: TestUser;
  readonly jobId?: number;
  readonly environment?: Readonly<Record<string, string>>;
  readonly workPath?: string;
  /** A command that runs the program as the user, for example strace. */
  readonly wrapper?: readonly string[];
  /** A command that runs it as root. */
  readonly rootWrapper?: readonly string[];
}

export function startAcquire(
  node: TestNode,
  parameters: readonly string[],
  options: AcquireOptions = {},
): { readonly child: ChildProcess; readonly answer: Promise<Answer> } {
  const user = options.user ?? alice;
  const groups = user === alice ? `--groups=${readersGid}` : '--clear-groups';
  const child = spawn(
    '/usr/bin/env',
    [
      ...(options.rootWrapper ?? []),
      '/usr/bin/setpriv',
      ...[`--reuid=${user.uid}`, `--regid=${user.gid}`, groups, '--inh-caps=-all', '--bounding-set=-all'],
      ...['--', ...(options.wrapper ?? []), programPath('container-cache'), 'acquire', ...parameters],
    ],
    {
      cwd: options.workPath ?? '/',
      env: {
        PATH: '/usr/bin:/bin',
        HOME: '/',
        CONTAINER_CACHE_CONF: node.configPath,
        SLURM_JOB_ID: String(options.jobId ?? 7),
        ...options.environment,
      },
      stdio: ['ignore', 'pipe', 'pipe'],
    },
  );
  let [stdout, stderr] = ['', ''];
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  const answer = once(child, 'close').then(([exitCode]): Answer => {
    const [entry, holder] = stdout.trim().split(' ');
    const log = parseLog(stderr).findLast(({ word }) => word === 'acquire');
    return {
      exitCode: exitCode as number | null,
      entry: entry === '' ? undefined : entry,
      holder: holder === undefined || holder === '-' ? undefined : Number(holder),
      stdout,
      log,
    };
  });
  return { child, answer };
}

export const acquire = (
  node: TestNode,
  parameters: readonly string[],
  options?: AcquireOptions,
): Promise<Answer> => startAcquire(node, parameters, options).answer;
