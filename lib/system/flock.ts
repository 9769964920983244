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
import { errnoName } from '../core/errno-names.ts';
import { loadFsExt, type FsExtAddon } from './native-addon.ts';
import { CommandFailed, endingWithUs, run, runSync, type Command } from './run-command.ts';

/** LOCK_SH or LOCK_EX of flock(2). */
export type FlockMode = 'shared' | 'exclusive';

/**
 * flock(1) exits with this, and nothing else does, when the lock is held by another. EX_TEMPFAIL of
 * sysexits.h.
 */
const conflictExitCode = 75;
/** Longer than flock(1) takes to start, and to say that its own time is up. */
const commandLimitMs = 10_000;

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
 * @returns false if the time ran out; an earlier lock of the descriptor may then be lost (see tryFlock).
 * @throws {Error} if the descriptor cannot be locked at all, or flock(1) cannot be run.
 */
export async function flockWithin(descriptor: number, mode: FlockMode, timeoutMs: number): Promise<boolean> {
  if (tryFlock(descriptor, mode)) return true;
  if (timeoutMs <= 0) return false;
  const wait = flockCommand(descriptor, mode, ['--timeout', (timeoutMs / 1000).toFixed(3)]);
  // A waiter must not outlive us and take the lock for nobody. If it was orphaned before the kernel could
  // know, its own time-out ends it.
  return run(endingWithUs({ ...wait, timeoutMs: timeoutMs + commandLimitMs })).then(() => true, refusal);
}

function tryFlockByCommand(descriptor: number, mode: FlockMode): boolean {
  const { failure } = runSync(flockCommand(descriptor, mode, ['--nonblock']));
  return failure === undefined || refusal(failure);
}

function flockCommand(descriptor: number, mode: FlockMode, how: readonly string[]): Command {
  // Its number there: the first after the standard streams.
  const args = [`--${mode}`, ...how, '--conflict-exit-code', String(conflictExitCode), '3'];
  return { file: 'flock', args, descriptors: [descriptor], timeoutMs: commandLimitMs };
}

/** @returns false if another has the lock @throws any other failure */
function refusal(failure: unknown): false {
  if (failure instanceof CommandFailed && (failure.exitCode === conflictExitCode || failure.timedOut))
    return false;
  throw failure;
}
