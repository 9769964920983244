/**
 * Running other programs: bounded in time and output, with a fixed environment, and never outliving us.
 *
 * What may take long starts through setpriv(1) (as-user.ts, trash.ts), which asks the kernel to kill it when
 * we die (`--pdeathsig`) and, for a command that is to run as a user, drops root for good. A command that
 * does not end in time is killed; if it does not even die (a process in an uninterruptible wait on a hung
 * filesystem), we go on without it.
 */
import { spawn, spawnSync, type ChildProcess, type StdioOptions } from 'node:child_process';
import { closeSync, writeSync } from 'node:fs';
import { formatDuration } from '../core/readable.ts';
import { elapsedMs } from './clock.ts';
import { startConfined } from './confined.ts';
import { errnoOf } from './errno.ts';
import { readEnd, readStart } from './files.ts';
import { openScratchFile } from './unnamed-file.ts';

/** What every child gets: slurmd gives the Prolog no PATH, and a user's must not count. */
export const systemPath = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
export const childEnvironment: Readonly<Record<string, string>> = { PATH: systemPath, LC_ALL: 'C' };

export interface Command {
  readonly file: string;
  /** What it is called in messages, where `file` only runs it; else `file`. */
  readonly program?: string;
  readonly args: readonly string[];
  readonly timeoutMs: number;
  /** Beside PATH and LC_ALL. */
  readonly environment?: Readonly<Record<string, string>>;
  readonly input?: string;
  /** Sees all of stdout; without it the first `capturedBytes` are kept. */
  readonly onStdout?: (chunk: Buffer) => void;
  readonly onStderr?: (chunk: Buffer) => void;
  /** Descriptors that the child gets as 3, 4, … */
  readonly descriptors?: readonly number[];
  /** Runs as a user: what it starts ends with it (confined.ts). */
  readonly isConfined?: boolean;
  /** Called once, right after the start. */
  readonly onStart?: (pid: number) => void;
}

export interface CommandResult {
  readonly stdout: Buffer;
  readonly durationMs: number;
}

/** The same command, which the kernel kills when we die. */
export function endingWithUs(command: Command): Command {
  return {
    ...command,
    program: command.program ?? command.file,
    file: 'setpriv',
    args: ['--pdeathsig=KILL', '--', command.file, ...command.args],
  };
}

/** What a user's command may leave in files in memory, which are root's: they are read up to less. */
const longestFileBytes = 1024 * 1024;
/** Bytes of stdout kept, and of stderr, whose end is kept. */
const capturedBytes = 64 * 1024;
const stderrTailBytes = 1024;
/** After the end of a command, for what still is in its pipes. */
const drainLimitMs = 1000;

/** A command that could not be started, failed, or was killed. */
export class CommandFailed extends Error {
  override readonly name = 'CommandFailed';
  readonly file: string;
  readonly exitCode: number | undefined;
  readonly signal: string | undefined;
  readonly timedOut: boolean;
  readonly stderrTail: string;
  readonly durationMs: number;

  constructor(command: Command, end: CommandEnd, options?: ErrorOptions) {
    super(describeEnd(command, end), options);
    this.file = command.file;
    this.exitCode = end.exitCode;
    this.signal = end.signal;
    this.timedOut = end.timedOut;
    this.stderrTail = end.stderrTail;
    this.durationMs = end.durationMs;
  }
}

interface CommandEnd {
  readonly exitCode: number | undefined;
  readonly signal: string | undefined;
  readonly timedOut: boolean;
  readonly stderrTail: string;
  readonly durationMs: number;
}

function describeEnd(command: Command, end: CommandEnd): string {
  const cause = findCause(end.stderrTail);
  const tail = cause === '' ? '' : `: ${cause}`;
  const program = command.program ?? command.file;
  if (end.timedOut)
    return `${program} did not end within ${formatDuration(command.timeoutMs)} and was killed${tail}`;
  if (end.signal !== undefined) return `${program} was ended by ${end.signal}${tail}`;
  if (end.exitCode !== undefined) return `${program} exited with ${end.exitCode}${tail}`;
  return `${program} could not be started${tail}`;
}

/** What programs say about what goes well, and what follows from an error that was told before. */
const noCause = /^(?:\[(?:INFO|WARN|WARNING|DEBUG)\]|$)/;
const aftermath = /Broken pipe|Exiting with failure status|Error is not recoverable|exit status of all/i;
const complaint =
  /error|fail|fatal|cannot|can't|could not|unable|denied|refused|invalid|no such|not found|no space/i;

/**
 * The line of a program's stderr that says why it failed: the first complaint, else the last line that says
 * anything.
 */
function findCause(stderrTail: string): string {
  const lines = stderrTail.split('\n').map((line) => line.trim());
  // The first may be the end of a line.
  const whole =
    lines.length > 1 && Buffer.byteLength(stderrTail) > stderrTailBytes - 4 ? lines.slice(1) : lines;
  const said = whole.filter((line) => !noCause.test(line));
  return said.find((line) => complaint.test(line) && !aftermath.test(line)) ?? said.at(-1) ?? '';
}

/** Some failures to start are events of the child, others (no memory, too long a command line) are thrown. */
function start(command: Command, stdio: StdioOptions, fileBytes = 0): ChildProcess {
  const spawnIt = (): ChildProcess =>
    spawn(command.file, command.args, {
      cwd: '/',
      env: { ...childEnvironment, ...command.environment },
      stdio,
    });
  try {
    return command.isConfined === true ? startConfined(spawnIt, fileBytes) : spawnIt();
  } catch (cause) {
    const end = { exitCode: undefined, signal: undefined, timedOut: false, stderrTail: '', durationMs: 0 };
    throw new CommandFailed(command, end, { cause });
  }
}

/** Where what a command says goes, and what is kept of it. */
interface Output {
  /** Of the three standard streams. */
  readonly stdio: readonly (number | 'ignore' | 'pipe')[];
  /** Connects the pipes, where there are any. */
  readonly connect?: (child: ChildProcess) => void;
  readonly stdout: () => Buffer;
  readonly stderrTail: () => Buffer;
  readonly close?: () => void;
}

/** @throws CommandFailed unless it exits with 0 in time */
async function runWith(output: Output, command: Command, fileBytes?: number): Promise<CommandResult> {
  const startedAtMs = elapsedMs();
  const { promise, resolve, reject } = Promise.withResolvers<CommandResult>();
  let child: ChildProcess;
  try {
    child = start(command, [...output.stdio, ...(command.descriptors ?? [])], fileBytes);
  } catch (error) {
    output.close?.();
    throw error;
  }
  const closePipes = (): void => {
    for (const pipe of [child.stdin, child.stdout, child.stderr]) pipe?.destroy();
  };
  let isOver = false;
  const end = (exitCode: number | null, signal: string | null, timedOut = false, cause?: unknown): void => {
    if (isOver) return;
    isOver = true;
    clearTimeout(timer);
    clearTimeout(drain);
    const durationMs = Math.round(elapsedMs() - startedAtMs);
    const stdout = output.stdout();
    const stderrTail = output.stderrTail().toString('utf8').trim();
    output.close?.();
    const how = {
      exitCode: exitCode ?? undefined,
      signal: signal ?? undefined,
      timedOut,
      stderrTail,
      durationMs,
    };
    if (exitCode === 0) resolve({ stdout, durationMs });
    else reject(new CommandFailed(command, how, { cause }));
  };
  const timer = setTimeout(() => {
    // Not until it has ended: in an uninterruptible wait it may never end. A signal that is refused is an
    // 'error' event, which must not come first.
    closePipes();
    child.unref();
    end(null, 'SIGKILL', true);
    child.kill('SIGKILL');
  }, command.timeoutMs);
  // Something that it started may have its output open for ever: then what it wrote itself has to do.
  let drain: NodeJS.Timeout | undefined;
  child.on('exit', () => {
    clearTimeout(timer);
    if (!isOver) drain = setTimeout(closePipes, drainLimitMs);
  });
  child.on('close', end);
  child.on('error', (error) => {
    end(null, null, false, error);
  });
  output.connect?.(child);
  try {
    if (child.pid !== undefined) command.onStart?.(child.pid);
  } catch (error) {
    // By the promise: thrown, it would leave the command's own end without anybody to tell it to, and that
    // ends the program.
    reject(error);
    child.kill('SIGKILL');
  }
  return promise;
}

/**
 * Runs a command to its end.
 *
 * @throws CommandFailed unless it exits with 0 in time
 */
export function run(command: Command): Promise<CommandResult> {
  const stdout: Buffer[] = [];
  let stdoutBytes = 0;
  let stderrTail = Buffer.alloc(0);
  const output: Output = {
    stdio: [command.input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
    connect: (child) => {
      child.stdout?.on('data', (chunk: Buffer) => {
        if (command.onStdout !== undefined) command.onStdout(chunk);
        else if (stdoutBytes < capturedBytes) stdout.push(chunk.subarray(0, capturedBytes - stdoutBytes));
        stdoutBytes += chunk.byteLength;
      });
      child.stderr?.on('data', (chunk: Buffer) => {
        command.onStderr?.(chunk);
        stderrTail = Buffer.concat([stderrTail, chunk]).subarray(-stderrTailBytes);
      });
      // EPIPE, if the child ends without reading: its exit code tells the rest.
      child.stdin?.on('error', () => undefined);
      child.stdin?.end(command.input);
    },
    stdout: () => Buffer.concat(stdout),
    stderrTail: () => stderrTail,
  };
  return runWith(output, command);
}

/**
 * Runs a command whose output is short, through files in memory instead of pipes: half the cost, in a process
 * that has made no pipe before. Otherwise like run(); callbacks for the output are not called.
 *
 * @throws CommandFailed unless it exits with 0 in time
 */
export async function runBriefly(command: Command): Promise<CommandResult> {
  const files = [openScratchFile(), openScratchFile(), openScratchFile()] as const;
  const [input, stdout, stderr] = files;
  const close = (): void => {
    for (const fd of files) if (fd !== undefined) closeSync(fd);
  };
  if (input === undefined || stdout === undefined || stderr === undefined) {
    close();
    return run(command);
  }
  try {
    // Written at a position, so that the descriptor's own offset, which the child inherits, stays at the
    // start.
    writeSync(input, command.input ?? '', 0);
  } catch (error) {
    close();
    throw error;
  }
  const output: Output = {
    stdio: [input, stdout, stderr],
    stdout: () => readStart(stdout, capturedBytes),
    stderrTail: () => readEnd(stderr, stderrTailBytes),
    close,
  };
  return runWith(output, command, longestFileBytes);
}

/** The answers of whoever can be made to say a lot. */
const longestAnswerBytes = 4 * 1024 * 1024;

/**
 * Runs a command to its end, without the event loop.
 *
 * @returns what it printed within its time, whatever came of it; nothing if it could not be started
 */
export function runSync(command: Pick<Command, 'file' | 'args' | 'timeoutMs' | 'descriptors'>): {
  readonly stdout: string;
  readonly failure: CommandFailed | undefined;
} {
  const startedAtMs = elapsedMs();
  const { status, signal, error, stdout, stderr } = spawnSync(command.file, command.args, {
    cwd: '/',
    env: childEnvironment,
    stdio: ['ignore', 'pipe', 'pipe', ...(command.descriptors ?? [])],
    timeout: command.timeoutMs,
    killSignal: 'SIGKILL',
    maxBuffer: longestAnswerBytes,
  });
  // Null where it could not be started.
  const textOf = (bytes: Buffer | null): string => bytes?.toString('utf8') ?? '';
  const end = {
    exitCode: status ?? undefined,
    signal: signal ?? undefined,
    timedOut: errnoOf(error) === 'ETIMEDOUT',
    stderrTail: textOf(stderr).slice(-stderrTailBytes).trim(),
    durationMs: Math.round(elapsedMs() - startedAtMs),
  };
  return {
    stdout: textOf(stdout),
    failure: status === 0 ? undefined : new CommandFailed(command, end, { cause: error }),
  };
}
