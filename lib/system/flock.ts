/**
 * flock(2): locks of whole files that belong to the open file.
 *
 * Every descriptor of one open file, inherited ones included, holds the same lock, and the last one
 * to be closed gives it back. So a lock outlives the process that took it as long as another holds
 * the descriptor (a lease is just that), and flock(1) can take a lock for us on a descriptor that
 * it inherits.
 *
 * Waiting is left to flock(1): Node has no wait that can be called off (a blocked thread of its pool
 * cannot), and asking again and again would miss its turn under load.
 */
import { spawn, spawnSync } from 'node:child_process';
import { errnoName } from '../core/errno-names.ts';
import { loadFsExt, type FsExtAddon } from './native-addon.ts';

/** LOCK_SH or LOCK_EX of flock(2). */
export type FlockMode = 'shared' | 'exclusive';

/** flock(1) exits with this, and nothing else does, when the lock is held by another. EX_TEMPFAIL of sysexits.h. */
const CONFLICT_EXIT_CODE = 75;
/** slurmd gives a Prolog no PATH (slurm.conf(5)). */
const COMMAND_ENVIRONMENT = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C' };
/** The descriptor's number in flock(1): the first after the standard streams. */
const INHERITED_DESCRIPTOR = 3;
const STDERR_LENGTH_MAX = 4096;

/** undefined: not tried yet; null: it cannot be loaded here, flock(1) does its work. */
let addon: FsExtAddon | null | undefined;

function loadAddon(): FsExtAddon | null {
  if (addon === undefined) {
    try {
      addon = loadFsExt();
    } catch {
      addon = null;
    }
  }
  return addon;
}

/** Loads what the first lock needs, for a caller that is waiting anyway. */
export function prepareFlock(): void {
  loadAddon();
}

/**
 * Takes the lock, or changes it to `mode`, without waiting. To change a lock is not atomic: it is
 * given up first, and may be lost to another (flock(2)).
 *
 * @returns false if another open file holds a lock in its way.
 * @throws {Error} if the descriptor cannot be locked at all.
 */
export function tryFlock(descriptor: number, mode: FlockMode): boolean {
  const binding = loadAddon();
  if (binding === null) return tryFlockByCommand(descriptor, mode);
  const { LOCK_SH, LOCK_EX, LOCK_NB } = binding.constants;
  try {
    binding.flock(descriptor, (mode === 'shared' ? LOCK_SH : LOCK_EX) | LOCK_NB);
    return true;
  } catch (cause) {
    // EWOULDBLOCK is another name of EAGAIN on Linux.
    const { code, errno } = cause as NodeJS.ErrnoException;
    if (code === 'EAGAIN') return false;
    // fs-ext knows few numbers by name; whoever catches it must see that the kernel refused.
    const name = /^E[A-Z0-9]+$/.test(code ?? '') ? code : (errnoName(errno ?? 0) ?? 'EIO');
    throw Object.assign(new Error(`Cannot flock descriptor ${descriptor} ${mode}`, { cause }), {
      code: name,
    });
  }
}

/**
 * Takes the lock, waiting for it at most `timeoutMs`. The wait ends with this process, too.
 *
 * @param options.signal calls the wait off: then the descriptor holds no lock, and the promise rejects with the signal's reason.
 * @returns false if the time ran out; an earlier lock of the descriptor may then be lost (see tryFlock).
 * @throws {Error} if the descriptor cannot be locked at all, or flock(1) cannot be run.
 */
export async function flockWithin(
  descriptor: number,
  mode: FlockMode,
  timeoutMs: number,
  options: { signal?: AbortSignal } = {},
): Promise<boolean> {
  options.signal?.throwIfAborted();
  if (tryFlock(descriptor, mode)) return true;
  if (timeoutMs <= 0) return false;

  // prctl(2), PR_SET_PDEATHSIG: a waiter must not outlive us and take the lock for nobody. If it was
  // orphaned before it could ask for the signal, its own time-out ends it.
  const command = [
    'setpriv',
    '--pdeathsig',
    'KILL',
    'flock',
    `--${mode}`,
    '--timeout',
    (timeoutMs / 1000).toFixed(3),
    '--conflict-exit-code',
    String(CONFLICT_EXIT_CODE),
    String(INHERITED_DESCRIPTOR),
  ] as const;
  try {
    return await runFlock(command, descriptor, options.signal);
  } catch (error) {
    // It may have got the lock in the moment it was stopped.
    if (options.signal?.aborted === true) {
      unlock(descriptor);
      throw options.signal.reason;
    }
    throw error;
  }
}

/**
 * Gives the lock up for every descriptor of the open file, also in other processes.
 *
 * @throws {Error} if the descriptor is not open.
 */
export function unlock(descriptor: number): void {
  const binding = loadAddon();
  if (binding === null) {
    runFlockSync(['flock', '--unlock', String(INHERITED_DESCRIPTOR)], descriptor);
    return;
  }
  try {
    binding.flock(descriptor, binding.constants.LOCK_UN);
  } catch (cause) {
    throw new Error(`Cannot unlock descriptor ${descriptor}`, { cause });
  }
}

function tryFlockByCommand(descriptor: number, mode: FlockMode): boolean {
  const command = [
    'flock',
    `--${mode}`,
    '--nonblock',
    '--conflict-exit-code',
    String(CONFLICT_EXIT_CODE),
    String(INHERITED_DESCRIPTOR),
  ] as const;
  return runFlockSync(command, descriptor);
}

type Command = readonly [string, ...string[]];

function runFlockSync(command: Command, descriptor: number): boolean {
  const [file, ...parameters] = command;
  const { status, signal, stderr, error } = spawnSync(file, parameters, {
    env: COMMAND_ENVIRONMENT,
    stdio: ['ignore', 'ignore', 'pipe', descriptor],
    encoding: 'utf8',
    maxBuffer: STDERR_LENGTH_MAX,
  });
  return interpret(command, { status, signal, stderr, error });
}

function runFlock(command: Command, descriptor: number, signal: AbortSignal | undefined): Promise<boolean> {
  const [file, ...parameters] = command;
  const { promise, resolve, reject } = Promise.withResolvers<boolean>();
  const child = spawn(file, parameters, {
    env: COMMAND_ENVIRONMENT,
    stdio: ['ignore', 'ignore', 'pipe', descriptor],
    killSignal: 'SIGKILL',
    ...(signal ? { signal } : {}),
  });
  let stderr = '';
  child.stderr?.setEncoding('utf8').on('data', (chunk: string) => {
    stderr = (stderr + chunk).slice(0, STDERR_LENGTH_MAX);
  });
  let error: Error | undefined;
  // Also when called off; the process is gone only at "close", and until then it may get the lock.
  child.on('error', (cause) => {
    error = cause;
    if (child.pid === undefined) reject(commandError(command, 'cannot be started', cause));
  });
  child.on('close', (status, killedBy) => {
    try {
      resolve(interpret(command, { status, signal: killedBy, stderr, error }));
    } catch (failure) {
      reject(failure);
    }
  });
  return promise;
}

interface Outcome {
  status: number | null;
  signal: NodeJS.Signals | null;
  stderr: string;
  error: Error | undefined;
}

function interpret(command: Command, { status, signal, stderr, error }: Outcome): boolean {
  if (error) throw commandError(command, error.message, error);
  if (status === 0) return true;
  if (status === CONFLICT_EXIT_CODE) return false;
  throw commandError(command, `${signal ?? `exit code ${String(status)}`}: ${stderr.trim()}`);
}

function commandError(command: Command, state: string, cause?: Error): Error {
  return new Error(`Cannot run "${command.join(' ')}": ${state}`, { cause });
}
