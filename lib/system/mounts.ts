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

/**
 * Which of a user's entries are mounted: one scan of all processes, by the first who asks.
 *
 * A mount that is made later is made by a container that holds the entry. So what was held since the scan, or used (each use, and its
 * end, sets the time of the entry), may be mounted by now, and stays.
 */
export class MountScan {
  readonly #basePath: string;
  readonly #held = new Set<string>();
  #isMounted: ((uid: number, name: string) => boolean) | undefined;
  #startedMs = 0;

  constructor(basePath: string) {
    this.#basePath = basePath;
  }

  isMounted(uid: number, name: string): boolean {
    if (this.#isMounted === undefined) {
      this.#startedMs = Date.now();
      this.#isMounted = findMountedEntries(this.#basePath);
    }
    return this.#isMounted(uid, name);
  }

  /** @param usedAtMs of the entry, by its directory: the future says nothing (a user's touch) */
  mayBeMounted(uid: number, name: string, isHeld: boolean, usedAtMs: number): boolean {
    const key = `${uid}/${name}`;
    if (this.isMounted(uid, name)) return true;
    const wasHeld = this.#held.has(key);
    if (isHeld) this.#held.add(key);
    return wasHeld || (usedAtMs >= this.#startedMs && usedAtMs < Date.now() + 1);
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
