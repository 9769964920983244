/** The mounts of this process, and those of all processes of the node. */
import { readFileSync } from 'node:fs';
import { locationOf, namesInUse, parseMountinfo, type Location, type Mount } from '../core/mountinfo.ts';
import { processorMs } from './clock.ts';
import { listProcesses, processMountinfo, processUid } from './processes.ts';

export function readMounts(): Mount[] {
  return parseMountinfo(readFileSync('/proc/self/mountinfo', 'latin1'));
}

/**
 * How much the processes of one user may tell, and the processor time that the kernel may take for it. A
 * container has a few kilobytes of mounts; who has more than this keeps the own entries, and takes no more of
 * the collector's time.
 */
export const mountinfoLimits = { bytes: 16 * 1024 * 1024, processorMs: 500 } as const;

interface MountinfoLimits {
  readonly bytes: number;
  readonly processorMs: number;
}

let scannedMs = 0;

/**
 * Processor time of all scans of this process: it counts for the users whose mounts were read, not for
 * whoever's turn it was.
 */
export const mountScanMs = (): number => scannedMs;

/**
 * Which directories of a user directory are mounted in any process's view: entries and stubs. One scan of all
 * processes, by the first who asks; after that, of those that have been started since.
 *
 * Only processes of that user and of root count: in a user namespace anybody can make an overlay whose
 * options show any path, and must not keep another's entry by it.
 *
 * A mount that a process makes later is a container's, which holds its entry. So what was held since the
 * scan, or used (each use, and its end, sets the time of the entry), may be mounted by now, and stays.
 */
export class MountScan {
  readonly #basePath: string;
  readonly #limits: MountinfoLimits;
  readonly #usersByName = new Map<string, Set<number>>();
  readonly #seen = new Set<number>();
  readonly #lastSeen = new Map<number, string>();
  readonly #told = new Map<number, { bytes: number; ms: number }>();
  readonly #held = new Set<string>();
  #base: Location | undefined;
  #startedMs = 0;

  constructor(basePath: string, limits: MountinfoLimits = mountinfoLimits) {
    this.#basePath = basePath;
    this.#limits = limits;
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

  /** Users with more mounts than are read: a collector keeps all that they have. */
  tooManyOf(): number[] {
    return [...this.#told.keys()].filter((uid) => !this.#hasToldAll(uid));
  }

  #hasToldAll(uid: number): boolean {
    const { bytes, ms } = this.#told.get(uid) ?? { bytes: 0, ms: 0 };
    return bytes < this.#limits.bytes && ms < this.#limits.processorMs;
  }

  #update(): void {
    if (this.#base === undefined) {
      this.#startedMs = Date.now();
      this.#base = locationOf(this.#basePath, readMounts());
      if (this.#base === undefined)
        throw new Error(`Cannot find the mount of ${this.#basePath} in /proc/self/mountinfo`);
    }
    const startedMs = processorMs();
    for (const pid of listProcesses()) {
      if (this.#seen.has(pid)) continue;
      this.#seen.add(pid);
      this.#look(pid, this.#base);
    }
    scannedMs += processorMs() - startedMs;
  }

  #look(pid: number, base: Location): void {
    const uid = processUid(pid);
    if (uid === undefined || !this.#hasToldAll(uid)) return;
    const told = this.#told.get(uid) ?? { bytes: 0, ms: 0 };
    const startedMs = processorMs();
    // Root's count for everybody, so they are never left out.
    const isLate = (): boolean =>
      uid !== 0 && told.ms + processorMs() - startedMs >= this.#limits.processorMs;
    const mountinfo = processMountinfo(
      pid,
      uid === 0 ? mountinfoLimits.bytes : this.#limits.bytes - told.bytes,
      isLate,
    );
    if (uid !== 0) {
      told.bytes += mountinfo?.length ?? 0;
      told.ms += processorMs() - startedMs;
      this.#told.set(uid, told);
    }
    if (mountinfo === undefined) return;
    // Neighbours mostly see the same. By what it is called, a view could be told only at the risk of waiting
    // (processes.ts).
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
