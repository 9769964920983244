/**
 * Killing a program at any of its system calls that change the disk or a lock: trace-and-kill.c, compiled for
 * this machine.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { projectRoot } from '../../build/source-files.ts';
import { command, machineRoot, unlessPrivateMachine } from './private-machine.ts';

/** The number of a system call among those of all processes with one label; see trace-and-kill.c. */
export interface Point {
  readonly label: string;
  readonly number: number;
  /** The call and what it changes. */
  readonly call: string;
}

/**
 * Who is killed: the process that makes the call, all of the program's process group, or the program alone.
 */
export type KillMode = 'process' | 'group' | 'program';

export interface Kill {
  readonly label: string;
  readonly number: number;
  readonly mode: KillMode;
}

interface TracedRun {
  readonly points: readonly Point[];
  /** Whether the point came at which something was to be killed. */
  readonly killed: boolean;
}

/** For SuiteOptions.skip: why nothing can be killed like that here. To be called inside a private machine. */
export function unlessCrashTracer(): string | undefined {
  if (unlessPrivateMachine !== undefined) return unlessPrivateMachine;
  if (!existsSync('/usr/bin/gcc')) return 'needs gcc';
  try {
    const tracer = new CrashTracer(machineRoot);
    command(tracer.wrapper()[0]!, ...tracer.wrapper().slice(1), '/bin/true');
    return undefined;
  } catch (error) {
    return `needs ptrace and seccomp: ${(error as Error).message.trim()}`;
  }
}

export class CrashTracer {
  readonly #directory: string;
  readonly #watched: string;

  /** @param watched the directory in which calls count */
  constructor(watched: string) {
    this.#directory = mkdtempSync(join(machineRoot, 'tracer-'));
    this.#watched = watched;
    const source = join(projectRoot, 'test/helpers/trace-and-kill.c');
    const options = ['-std=gnu11', '-Wall', '-Wextra', '-Werror', '-O1'];
    command('gcc', ...options, '-o', join(this.#directory, 'crash-tracer'), source);
  }

  /** The command that runs a program and kills it at a point, or nothing. */
  wrapper(kill?: Kill): string[] {
    const options = ['--watch', this.#watched, '--report', this.#report];
    if (kill !== undefined) options.push('--kill', `${kill.label}:${kill.number}`, '--mode', kill.mode);
    return [join(this.#directory, 'crash-tracer'), ...options, '--'];
  }

  get #report(): string {
    return join(this.#directory, 'report');
  }

  /** What the last run has met. Its report is complete when all that it traced has ended. */
  takeReport(): TracedRun {
    const lines = readFileSync(this.#report, 'utf8').split('\n');
    rmSync(this.#report);
    return {
      killed: lines.some((line) => line.startsWith('KILLED ')),
      points: lines.flatMap((line) => {
        const match = /^([^\s:]+):(\d+) (.+)$/.exec(line);
        return match === null ? [] : [{ label: match[1]!, number: Number(match[2]), call: match[3]! }];
      }),
    };
  }
}
