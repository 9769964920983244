/** The mounts of this process, and those of all processes of the node. */
import { readFileSync } from 'node:fs';
import { locationOf, namesInUse, parseMountinfo, type Mount } from '../core/mountinfo.ts';
import { listProcesses, processMountinfo, processUid } from './processes.ts';

export function readMounts(): Mount[] {
  return parseMountinfo(readFileSync('/proc/self/mountinfo', 'latin1'));
}

/**
 * How much the processes of one user may tell. A container has a few kilobytes of mounts; who has more than this keeps the own
 * entries, and takes no more of the collector's time.
 */
const mostMountinfoBytes = 16 * 1024 * 1024;

/** How long a scan is good for: a second, or ten times what it took, so that a collection spends no more than a tenth of its time on them. */
const scanGoodForMs = 1000;
const scanShare = 10;

/** Which of a user's entries are mounted, by a scan of all processes that is made anew when it is too old. */
export class MountScan {
  readonly #basePath: string;
  #isMounted: ((uid: number, name: string) => boolean) | undefined;
  #goodUntilMs = 0;

  constructor(basePath: string) {
    this.#basePath = basePath;
  }

  isMounted(uid: number, name: string): boolean {
    if (this.#isMounted === undefined || performance.now() > this.#goodUntilMs) {
      const startedMs = performance.now();
      this.#isMounted = findMountedEntries(this.#basePath);
      const endedMs = performance.now();
      this.#goodUntilMs = endedMs + Math.max(scanGoodForMs, scanShare * (endedMs - startedMs));
    }
    return this.#isMounted(uid, name);
  }
}

/**
 * Which directories of a user directory are mounted in any process's view: entries and stubs.
 *
 * Only processes of that user and of root count: in a user namespace anybody can make an overlay whose options show
 * any path, and must not keep another's entry by it.
 *
 * @returns a function of uid and directory name
 */
export function findMountedEntries(basePath: string): (uid: number, name: string) => boolean {
  const base = locationOf(basePath, readMounts());
  if (base === undefined) throw new Error(`Cannot find the mount of ${basePath} in /proc/self/mountinfo`);
  const usersByName = new Map<string, Set<number>>();
  const lastSeen = new Map<number, string>();
  const toldBytes = new Map<number, number>();
  const hasToldAll = (uid: number): boolean => (toldBytes.get(uid) ?? 0) < mostMountinfoBytes;
  for (const pid of listProcesses()) {
    const uid = processUid(pid);
    if (uid === undefined || !hasToldAll(uid)) continue;
    const told = toldBytes.get(uid) ?? 0;
    const mountinfo = processMountinfo(pid, mostMountinfoBytes - told);
    if (mountinfo === undefined) continue;
    // Root's count for everybody, so they are never left out.
    if (uid !== 0) toldBytes.set(uid, told + mountinfo.length);
    // Neighbours mostly see the same. By what it is called, a view could be told only at the risk of waiting (processes.ts).
    if (lastSeen.get(uid) === mountinfo) continue;
    lastSeen.set(uid, mountinfo);
    for (const name of namesInUse(parseMountinfo(mountinfo), basePath, base)) {
      const users = usersByName.get(name) ?? new Set();
      usersByName.set(name, users.add(uid));
    }
  }
  return (uid, name) => {
    const users = usersByName.get(`${uid}/${name}`);
    return !hasToldAll(uid) || (users !== undefined && (users.has(uid) || users.has(0)));
  };
}
