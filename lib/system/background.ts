/** Programs that go on when we are gone. */
import { spawn } from 'node:child_process';
import { closeSync, constants, existsSync } from 'node:fs';
import { backgroundCollectorPath, imageMountsPath, warmingName } from '../core/layout.ts';
import { asUser, confinedTo, type UserIds } from './as-user.ts';
import { openRegularFile } from './files.ts';
import { tryFlock } from './flock.ts';
import { childEnvironment } from './run-command.ts';
import { selfCommand } from './self.ts';

const settleLimitSeconds = 3600;

/**
 * Has the disk take all that was written to a filesystem, then changes a file's mode, by which others know.
 * It goes on as long as that takes.
 *
 * As the user: a file of theirs may by now be a hard link to another's that they may write to, but not change
 * the mode of.
 *
 * @param directory on the filesystem, the user's
 * @param fd of the file: what its path leads to by then may be another
 */
export function startSettling(user: UserIds, directory: string, fd: number, mode: number): void {
  // find(1) executes the second only if the first exited with 0.
  const sync = ['-exec', 'sync', '--file-system', '--', '{}', ';'];
  const mark = ['-exec', 'chmod', mode.toString(8), '/proc/self/fd/3', ';'];
  const limit = ['--kill-after=5s', `${settleLimitSeconds}s`];
  const { file, args } = asUser(
    user,
    {
      file: 'timeout',
      args: [...limit, 'find', directory, '-prune', ...sync, ...mark],
      timeoutMs: settleLimitSeconds * 1000,
    },
    { canGain: false, deathSignal: 'clear', groups: 'none' },
  );
  const stdio = ['ignore', 'ignore', 'ignore', fd] as const;
  const child = spawn(file, args, { cwd: '/', detached: true, env: childEnvironment, stdio: [...stdio] });
  child.on('error', () => undefined);
  child.unref();
}

/**
 * It looks at what is the users' with their ids (setuid, setgid), moves their trees (dac_override, fowner),
 * reads the mounts of all processes (sys_ptrace), confines its own children (setpcap), and ends those that
 * run as a user (kill). Where images were mounted, it unmounts (sys_admin).
 */
export const collectorCapabilities = [
  ...(['setuid', 'setgid', 'setpcap'] as const),
  ...(['dac_override', 'fowner', 'kill', 'sys_ptrace'] as const),
];

/**
 * The first words of a command that comes behind all that jobs do. Not at nice's end: on a node whose
 * processors are all busy, that would be a hundredth of one of them, and nothing would come to an end.
 */
export const lowPriority = ['ionice', '--class', 'idle', 'nice', '--adjustment=10'] as const;

/**
 * Starts a collector, in a session of its own, so that slurmd neither waits for it nor kills it with the
 * Prolog; unless the last one that was started so has not ended yet. It has our own priority: it holds locks
 * of entries for which a Prolog may be waiting.
 *
 * @param runtimePath where the file is whose flock the collector has as long as it lives
 * @param configPath the configuration we were started with, if not the default
 */
export function startBackgroundCollector(runtimePath: string, configPath: string | undefined): void {
  const lock = openQuietly(backgroundCollectorPath(runtimePath));
  try {
    if (lock !== undefined && !tryFlock(lock, 'exclusive')) return;
    const unmounting = existsSync(imageMountsPath(runtimePath)) ? (['sys_admin'] as const) : [];
    const confinement = ['setpriv', ...confinedTo([...collectorCapabilities, ...unmounting])] as const;
    startQuietly(confinement, ['gc', '--background'], configPath, '/', lock);
  } finally {
    if (lock !== undefined) closeSync(lock);
  }
}

/** Two collectors are no harm: the second finds the base's own lock taken. */
function openQuietly(path: string): number | undefined {
  try {
    return openRegularFile(path, constants.O_CREAT);
  } catch {
    return undefined;
  }
}

/**
 * Starts the admin command at low priority, in a session of its own.
 *
 * @param configPath the configuration we were started with, if not the default
 * @param directory where relative paths among its arguments start
 */
export function startInBackground(
  parameters: readonly string[],
  configPath: string | undefined,
  directory: string,
): void {
  startQuietly(lowPriority, parameters, configPath, directory);
}

/**
 * So many at once for one user: short jobs, each of an image of its own, must not fill the node with
 * processes.
 */
const mostWarmingsOfUser = 4;

/**
 * Unpacks images for a user, as startInBackground() does; unless as many as one user may have are under way.
 *
 * @param images absolute paths or URIs
 * @param turnsPath where the files are whose flocks tell how many are: each has one as long as it lives
 * @returns whether it was started
 */
export function startWarming(
  user: UserIds,
  images: readonly string[],
  configPath: string | undefined,
  turnsPath: string,
): boolean {
  const { uid, gid, userName = '' } = user;
  const turn = takeWarmingTurn(uid, turnsPath);
  if (turn === 'none') return false;
  try {
    // All that Slurm says of the user: the node may know nothing.
    const name = userName === '' ? [] : [`--user-name=${userName}`];
    const parameters = ['warm', `--user=${uid}`, `--group=${gid}`, ...name, ...images];
    startQuietly(lowPriority, parameters, configPath, '/', turn);
    return true;
  } finally {
    if (turn !== undefined) closeSync(turn);
  }
}

/** @returns undefined where there can be no such file */
function takeWarmingTurn(uid: number, turnsPath: string): number | 'none' | undefined {
  for (let turn = 1; turn <= mostWarmingsOfUser; turn++) {
    const lock = openQuietly(`${turnsPath}/${warmingName(uid, turn)}`);
    if (lock === undefined || tryFlock(lock, 'exclusive')) return lock;
    closeSync(lock);
  }
  return 'none';
}

function startQuietly(
  [file, ...args]: readonly [string, ...string[]],
  parameters: readonly string[],
  configPath: string | undefined,
  directory: string,
  inherited?: number,
): void {
  const self = selfCommand();
  const child = spawn(file, [...args, self.file, ...self.args, ...parameters], {
    cwd: directory,
    detached: true,
    env: { ...childEnvironment, ...(configPath === undefined ? {} : { CONTAINER_CACHE_CONF: configPath }) },
    // What is inherited stays open in the program itself, not in what it starts: Node sees to that.
    stdio: ['ignore', 'ignore', 'ignore', ...(inherited === undefined ? [] : [inherited])],
  });
  // Without a collector the node fills up, and without an unpack the image is not there: both are tried with
  // the next job.
  child.on('error', () => undefined);
  child.unref();
}
