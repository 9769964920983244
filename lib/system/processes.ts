/**
 * Other processes, by /proc (proc(5)). A process can end between any two looks: then there is nothing to
 * tell.
 *
 * Of a user's process root reads no more than `status` and `mountinfo`. For the rest (stat, environ, cmdline,
 * what ns/ and root lead to) the kernel makes the reader wait while the process is being executed, which
 * users can make last for ever: by closing, at execve(2), a file of a FUSE whose server does not answer. Seen
 * on Linux 6.18.
 */
import { closeSync, openSync, readFileSync, readdirSync, statSync } from 'node:fs';
import { errnoOf } from './errno.ts';
import { readStart } from './files.ts';
import { findBeneath } from './native-addon.ts';

/** Reads a file of /proc/<pid>. ESRCH: it ended while we read. EACCES: hidden from us. */
function readProcessFile(pid: number, name: string, read = readWhole): string | undefined {
  try {
    return read(`/proc/${pid}/${name}`);
  } catch (error) {
    if (['ENOENT', 'ESRCH', 'EACCES', 'EPERM'].includes(errnoOf(error) ?? '')) return undefined;
    throw error;
  }
}

const readWhole = (path: string): string => readFileSync(path, 'latin1');

/** @returns when the process started, clock ticks after boot; undefined if it is gone or a zombie */
export function processStartTicks(pid: number): string | undefined {
  const stat = readProcessFile(pid, 'stat');
  // The second field is the name in parentheses and may hold blanks and parentheses itself.
  const fields = stat?.slice(stat.lastIndexOf(')') + 2).split(' ');
  const [state, startTicks] = [fields?.[0], fields?.[19]];
  return state === 'Z' || state === 'X' ? undefined : startTicks;
}

/** Of proc(5)'s clock ticks, on every Linux. */
const ticksPerSecond = 100;

/** @returns when the process started, ms since the epoch */
export function processStartedMs(pid: number): number | undefined {
  const ticks = processStartTicks(pid);
  const uptimeSeconds = Number(readFileSync('/proc/uptime', 'latin1').split(' ')[0]);
  return ticks === undefined
    ? undefined
    : Date.now() - (uptimeSeconds - Number(ticks) / ticksPerSecond) * 1000;
}

/** @returns undefined if the process is gone or hidden */
export function processParent(pid: number): number | undefined {
  const parent = /^PPid:\s+(\d+)/m.exec(readProcessFile(pid, 'status') ?? '')?.[1];
  return parent === undefined ? undefined : Number(parent);
}

/** @returns the value of a variable in the environment the process was started with */
export function processVariable(pid: number, name: string): string | undefined {
  const variable = readProcessFile(pid, 'environ')
    ?.split('\0')
    .find((text) => text.startsWith(`${name}=`));
  return variable?.slice(name.length + 1);
}

/** The command line, arguments joined by blanks. */
export function processCommandLine(pid: number): string | undefined {
  return readProcessFile(pid, 'cmdline')?.replace(/\0+$/, '').replaceAll('\0', ' ');
}

interface ProcessIds {
  readonly uid: number;
  readonly gid: number;
  /** At most 15 characters of the program's file name, or what the process calls itself; may be escaped. */
  readonly name: string;
}

/**
 * @returns the real IDs, or undefined if the process is gone or a zombie; never waits, whoever owns the
 *   process
 */
export function processIds(pid: number): ProcessIds | undefined {
  const status = readProcessFile(pid, 'status') ?? '';
  const [name = '', uid, gid] = [/^Name:\t(.*)/, /^Uid:\s+(\d+)/m, /^Gid:\s+(\d+)/m].map(
    (field) => field.exec(status)?.[1],
  );
  return uid === undefined || gid === undefined || /^State:\s+[ZX]/m.test(status)
    ? undefined
    : { uid: Number(uid), gid: Number(gid), name };
}

/** Whether a process is stopped, by a signal or by who traces it; never waits, whoever owns the process. */
export const isStopped = (pid: number): boolean =>
  /^State:\s+[Tt]/m.test(readProcessFile(pid, 'status') ?? '');

export const processUid = (pid: number): number | undefined => processIds(pid)?.uid;

/**
 * Users may have as many mounts as they like in a namespace of their own, and the kernel takes its time for
 * each.
 *
 * @returns the first `limitBytes` of it, or less once `isLate`
 */
export function processMountinfo(
  pid: number,
  limitBytes: number,
  isLate?: () => boolean,
): string | undefined {
  const read = (path: string): string => {
    const fd = openSync(path, 'r');
    try {
      return readStart(fd, limitBytes, isLate).toString('latin1');
    } finally {
      closeSync(fd);
    }
  };
  try {
    return readProcessFile(pid, 'mountinfo', read);
  } catch (error) {
    // A process that is about to end has no mount namespace any more.
    if (errnoOf(error) === 'EINVAL') return undefined;
    throw error;
  }
}

/**
 * Those that a user owns, as /proc/<pid> shows it; never waits. Not among them: processes that have changed
 * their IDs, or were started from files that their user cannot read (proc_pid(5), dumpable).
 */
export function processesOwnedBy(uid: number): readonly number[] {
  const found = findBeneath()?.processesOf(uid);
  if (typeof found === 'object') return found;
  return listProcesses().filter((pid) => statSync(`/proc/${pid}`, { throwIfNoEntry: false })?.uid === uid);
}

/**
 * All of them by their owner, with the same exceptions, the newest last until the numbers begin anew; by
 * undefined those that have ended.
 */
export const processesByOwner = (): ReadonlyMap<number | undefined, readonly number[]> =>
  Map.groupBy(listProcesses(), (pid) => statSync(`/proc/${pid}`, { throwIfNoEntry: false })?.uid);

export function listProcesses(): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number);
}
