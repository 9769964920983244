/** The mounts of this process, and those of all processes of the node. */
import { readFileSync } from 'node:fs';
import { locationOf, namesInUse, parseMountinfo, type Location, type Mount } from '../core/mountinfo.ts';
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
 * Which directories of a user directory are mounted in any process's view: entries and stubs. One scan of all processes, by the first
 * who asks; after that, of those that have been started since.
 *
 * Only processes of that user and of root count: in a user namespace anybody can make an overlay whose options show
 * any path, and must not keep another's entry by it.
 *
 * A mount that a process makes later is a container's, which holds its entry. So what was held since the scan, or used (each use, and its
 * end, sets the time of the entry), may be mounted by now, and stays.
 */
export class MountScan {
  readonly #basePath: string;
  readonly #usersByName = new Map<string, Set<number>>();
  readonly #seen = new Set<number>();
  readonly #lastSeen = new Map<number, string>();
  readonly #toldBytes = new Map<number, number>();
  readonly #held = new Set<string>();
  #base: Location | undefined;
  #startedMs = 0;

  constructor(basePath: string) {
    this.#basePath = basePath;
  }

  isMounted(uid: number, name: string): boolean {
    this.#update();
    const users = this.#usersByName.get(`${uid}/${name}`);
    return !this.#hasToldAll(uid) || (users !== undefined && (users.has(uid) || users.has(0)));
  }

  /** @param usedAtMs of the entry, by its directory: the future says nothing (a user's touch) */
  mayBeMounted(uid: number, name: string, isHeld: boolean, usedAtMs: number): boolean {
    if (this.isMounted(uid, name)) return true;
    const key = `${uid}/${name}`;
    const wasHeld = this.#held.has(key);
    if (isHeld) this.#held.add(key);
    return wasHeld || (usedAtMs >= this.#startedMs && usedAtMs < Date.now() + 1);
  }

  #hasToldAll(uid: number): boolean {
    return (this.#toldBytes.get(uid) ?? 0) < mostMountinfoBytes;
  }

  #update(): void {
    if (this.#base === undefined) {
      this.#startedMs = Date.now();
      this.#base = locationOf(this.#basePath, readMounts());
      if (this.#base === undefined)
        throw new Error(`Cannot find the mount of ${this.#basePath} in /proc/self/mountinfo`);
    }
    for (const pid of listProcesses()) {
      if (this.#seen.has(pid)) continue;
      this.#seen.add(pid);
      this.#look(pid, this.#base);
    }
  }

  #look(pid: number, base: Location): void {
    const uid = processUid(pid);
    if (uid === undefined || !this.#hasToldAll(uid)) return;
    const told = this.#toldBytes.get(uid) ?? 0;
    const mountinfo = processMountinfo(pid, mostMountinfoBytes - told);
    if (mountinfo === undefined) return;
    // Root's count for everybody, so they are never left out.
    if (uid !== 0) this.#toldBytes.set(uid, told + mountinfo.length);
    // Neighbours mostly see the same. By what it is called, a view could be told only at the risk of waiting (processes.ts).
    if (this.#lastSeen.get(uid) === mountinfo) return;
    this.#lastSeen.set(uid, mountinfo);
    for (const name of namesInUse(parseMountinfo(mountinfo), this.#basePath, base)) {
      const users = this.#usersByName.get(name) ?? new Set();
      this.#usersByName.set(name, users.add(uid));
    }
  }
}

/** @returns a function of uid and directory name, of one scan now */
export function findMountedEntries(basePath: string): (uid: number, name: string) => boolean {
  const scan = new MountScan(basePath);
  return (uid, name) => scan.isMounted(uid, name);
}
