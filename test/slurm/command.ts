/**
 * Commands that a test starts: captured, limited in time and output, and with a process group of
 * their own so that a signal reaches what they started as well.
 */
import { spawn } from 'node:child_process';

import { ClusterError } from './cluster-error.ts';

/** How long a command may take unless the caller says otherwise. */
export const RUN_TIMEOUT_MS = 180_000;
/** Captured output of one command, per stream; what follows is dropped. */
const OUTPUT_LIMIT_CHARACTERS = 16 * 1024 * 1024;

interface CommandOptions {
  /** The whole environment of the command. */
  readonly env: Readonly<Record<string, string>>;
  readonly input?: string | undefined;
  readonly timeoutMs?: number | undefined;
}

export interface RunResult {
  readonly stdout: string;
  readonly stderr: string;
  /** null if a signal ended the command. */
  readonly exitCode: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** A command under way. */
export interface Running {
  /** Rejects only if the command cannot be started or exceeds its time. */
  readonly result: Promise<RunResult>;
  /** What the command has printed so far. */
  readonly output: () => { readonly stdout: string; readonly stderr: string };
  /** Sends a signal to the command and its children, in the cluster too (but not to jobs it submitted). */
  readonly kill: (signal: NodeJS.Signals) => void;
}

export function startCommand(argv: readonly string[], options: CommandOptions): Running {
  const [program = '', ...args] = argv;
  const timeoutMs = options.timeoutMs ?? RUN_TIMEOUT_MS;
  const child = spawn(program, args, {
    detached: true,
    stdio: [options.input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
    env: { ...options.env },
  });
  const kill = (signal: NodeJS.Signals): void => {
    if (child.pid !== undefined) signalIfAlive(-child.pid, signal);
  };
  const stdout = capture(child.stdout);
  const stderr = capture(child.stderr);
  // A command that does not read its input is no error of ours.
  child.stdin?.on('error', () => undefined);
  child.stdin?.end(options.input);

  const result = new Promise<RunResult>((resolve, reject) => {
    const timer = setTimeout(() => {
      kill('SIGKILL');
      const printed = tail(stdout()) + tail(stderr());
      reject(
        new ClusterError(`Cannot finish "${argv.join(' ')}" within ${timeoutMs} ms: killed\n${printed}`),
      );
    }, timeoutMs);
    child.once('error', (error) => {
      clearTimeout(timer);
      reject(error);
    });
    child.once('close', (exitCode, signal) => {
      clearTimeout(timer);
      resolve({ stdout: stdout(), stderr: stderr(), exitCode, signal });
    });
  });
  return { result, output: () => ({ stdout: stdout(), stderr: stderr() }), kill };
}

/** The standard output of a command; throws if it failed. */
export function succeeded(argv: readonly string[], result: RunResult): string {
  if (result.exitCode === 0) return result.stdout;
  const ending = result.signal ?? `exit code ${String(result.exitCode)}`;
  const printed = tail(result.stdout) + tail(result.stderr);
  throw new ClusterError(`Cannot run "${argv.join(' ')}": ${ending}, wanted 0\n${printed}`);
}

/** Signals a process, or with a negative number a process group; nothing happens if it is gone. */
export function signalIfAlive(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

function capture(stream: NodeJS.ReadableStream | null): () => string {
  let text = '';
  stream?.setEncoding('utf8');
  stream?.on('data', (chunk: string) => {
    if (text.length + chunk.length <= OUTPUT_LIMIT_CHARACTERS) text += chunk;
  });
  return () => text;
}

function tail(text: string): string {
  return text.split('\n').slice(-20).join('\n');
}
