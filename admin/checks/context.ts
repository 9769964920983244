/** What all checks of a node share. A check changes nothing on the node and never waits without a limit. */
import { readFileSync, realpathSync } from 'node:fs';
import { dirname } from 'node:path';
import process from 'node:process';
import { isSea } from 'node:sea';
import type { Environment } from '../../lib/core/job.ts';
import type { Settings } from '../../lib/core/settings.ts';
import type { SlurmConf } from '../../lib/core/slurm-conf.ts';
import { answersWithin } from '../../lib/system/answers.ts';
import { asUser, isRoot, nobody } from '../../lib/system/as-user.ts';
import { unlessErrno } from '../../lib/system/errno.ts';
import { whoCannotReach, whoElseCanChange } from '../../lib/system/path-safety.ts';
import { CommandFailed, run } from '../../lib/system/run-command.ts';
import type { Slurmd } from '../../lib/system/slurmd.ts';
import type { Finding, Reporter } from './findings.ts';

export interface CheckContext {
  readonly environment: Environment;
  readonly isRoot: boolean;
  readonly settings: Settings;
  /** This build; undefined under the bare runtime, which is no build. */
  readonly executable: string | undefined;
  readonly slurmd: Slurmd | undefined;
  readonly slurm: SlurmSource | undefined;
}

/** Where Slurm's configuration is from. */
export interface SlurmSource {
  readonly conf: SlurmConf;
  /** slurm.conf; undefined if slurmctld told it: then the node has no such file. */
  readonly path: string | undefined;
}

export type Check = (context: CheckContext) => Promise<Finding[]>;

/** A local disk answers at once; what has not answered after this will not. */
const answerLimitMs = 5000;

/** To be asked before we look at a path ourselves: of a file server that is away nothing comes back. */
export function answers(path: string): Promise<boolean> {
  return answersWithin(path, answerLimitMs);
}

const longestTextBytes = 1024 * 1024;

/** The text of a file of the administrator, symlinks followed; undefined: none that we could read. */
export async function readText(path: string): Promise<string | undefined> {
  if (!(await answers(path))) return undefined;
  return unlessErrno(['ENOENT', 'ENOTDIR', 'EACCES', 'EISDIR', 'ELOOP'], () =>
    readFileSync(path).subarray(0, longestTextBytes).toString('utf8'),
  );
}

/** A file of /proc or /sys; undefined: this kernel has none. */
export function readKernelValue(path: string): string | undefined {
  return unlessErrno(['ENOENT', 'EACCES', 'EINVAL'], () => readFileSync(path, 'latin1').trim());
}

export function findOwnExecutable(): string | undefined {
  return isSea() ? realpathSync(process.execPath) : undefined;
}

const graceSeconds = 1;

/**
 * Runs what an administrator wrote, as nobody if we are root: who stands for any user. What it starts in turn
 * ends with it.
 *
 * @returns its output; undefined: it failed, or did not end in time
 */
export async function runAsAnybody(
  file: string,
  parameters: readonly string[],
  environment: Readonly<Record<string, string>>,
): Promise<string | undefined> {
  const command = {
    file: 'timeout',
    args: [`--kill-after=${graceSeconds}s`, `${answerLimitMs / 1000}s`, file, ...parameters],
    environment,
    timeoutMs: answerLimitMs + 2 * graceSeconds * 1000,
  };
  const privileges = { canGain: true, deathSignal: 'TERM' } as const;
  try {
    const { stdout } = await run(isRoot() ? asUser(nobody, command, privileges) : command);
    return stdout.toString('utf8');
  } catch (error) {
    if (error instanceof CommandFailed) return undefined;
    throw error;
  }
}

/** Where this build was installed, for remedies that name its files. */
export function installDirectory({ executable }: Pick<CheckContext, 'executable'>): string {
  return executable === undefined ? '/usr/libexec/container-cache' : dirname(executable);
}

/** @returns undefined: only root can change it and, with a `use`, users can reach it for that */
export function accessFault(report: Reporter, path: string, use?: 'read' | 'execute'): Finding | undefined {
  const others = whoElseCanChange(path);
  if (others !== undefined)
    return report.bad(`${path}: somebody else can change it: ${others.path} is ${others.found}`, others.cure);
  const [bits, change] = use === 'read' ? [0o4, 'o+rX'] : [0o5, 'o+rx'];
  const closed = use && whoCannotReach(path, bits);
  return (
    closed &&
    report.bad(
      `${path}: users cannot ${use} it: ${closed.path} is ${closed.found}`,
      `chmod ${change} ${closed.path}`,
    )
  );
}
