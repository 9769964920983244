/**
 * The addons, compiled from C and C++: fs-ext's (flock.ts) and our own (addon/). Each is loaded on first use.
 *
 * In development they lie in node_modules, compiled by build/run. In the one-file executable each
 * travels as an asset, and the dynamic linker wants a file: so it is written to a file without a
 * name (O_TMPFILE, see open(2)) and loaded through its descriptor. Nothing is left on disk, nobody
 * can swap the file under its name, and nothing need be installed beside the executable.
 *
 * The linker refuses a filesystem mounted noexec, and a user can write to few places. Neither can
 * be told beforehand, so the candidates are tried in turn. If none serves, the caller must do
 * without (flock.ts falls back to flock(1), beneath.ts to /proc/self/fd).
 */
import { closeSync, writeSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname } from 'node:path';
import { getRawAsset, isSea } from 'node:sea';
import { openUnnamedFile } from './unnamed-file.ts';

/** What flock.ts calls of fs-ext's addon. Its own JavaScript would only map names to the constants. */
export interface FsExtAddon {
  /** flock(2) without a callback: returns when done, throws an error with `code` and `errno`. */
  flock(descriptor: number, operation: number): unknown;
  constants: Readonly<Record<'LOCK_SH' | 'LOCK_EX' | 'LOCK_NB', number>>;
}

/** Our own addon. Each gives what the system call did, or a negative error number. */
export interface BeneathAddon {
  /**
   * openat2(2) with O_PATH: beneath the directory, no symlink followed, no mount crossed. @returns a
   * descriptor
   */
  openPath(directory: number, path: string, flags: number): number;
  /** Signals that a crash raises end the process with this code from now on. */
  exitOnCrash(code: number): number;
  /** _exit(2). */
  exitNow(code: number): number;
  /** What the next child of this thread starts is killed with it, and has limits; until endConfined(). */
  beginConfined(fileBytes: number): number;
  endConfined(): number;
  /** The effective ids of the calling thread alone. */
  setIds(uid: number, gid: number): number;
  /** A child looks at a file as a user; one at a time (look.c). @param bytes of the file's start */
  startLook(uid: number, gid: number, path: string, bytes: number): number;
  /** @returns what it saw; undefined where there is no answer, for whatever reason */
  finishLook(limitMs: number): Buffer | number | undefined;
  /** @returns the process ID (holder.c) */
  startHolder(file: string, title: string, variable: string, descriptors: readonly number[]): number;
  /** Sends a line to a syslog daemon's socket (log.c). */
  sendLine(socket: string, priority: number, tag: string, text: string, limitMs: number): number;
  /** Process IDs by the owner of /proc/<pid> (owned-processes.c). */
  processesOf(uid: number): readonly number[] | number;
  /** The SHA-256 of bytes that are at hand (hash.c). */
  sha256(bytes: Buffer): Buffer | number;
  /** A squashfs file mounted, but nowhere yet (image-mount.c). @returns a descriptor, with which it goes */
  mountImage(file: number): number;
  attachMount(mounted: number, path: string): number;
  /** The same mount once more, where root's files are a user's. */
  makeView(source: string, target: string, uid: number, gid: number): number;
  unmount(path: string): number;
  /** @returns 1 if a process has the file open for writing */
  hasWriter(file: number): number;
  /** Root's directory, through which one user may pass. */
  letPass(directory: number, uid: number): number;
}

/** Where each lies in node_modules, by the name of its asset in the executable. */
export const addonFiles = {
  'fs_ext.node': 'fs-ext/build/Release/fs_ext.node',
  'beneath.node': '.container-cache/beneath.node',
} as const;

type AddonName = keyof typeof addonFiles;

const loaded = new Map<AddonName, unknown>();

/**
 * fs-ext's addon.
 *
 * @throws {AggregateError} if no directory will hold a loadable file; one error for each.
 */
export const loadFsExt = (): FsExtAddon => load('fs_ext.node') as FsExtAddon;

/**
 * Our own addon.
 *
 * @throws {AggregateError} as loadFsExt()
 */
export const loadBeneath = (): BeneathAddon => load('beneath.node') as BeneathAddon;

let found: BeneathAddon | null | undefined;

/** Our own addon, where it can be had; it is tried once. */
export function findBeneath(): BeneathAddon | undefined {
  if (found === undefined) {
    try {
      found = loadBeneath();
    } catch {
      found = null;
    }
  }
  return found ?? undefined;
}

function load(name: AddonName): unknown {
  if (!loaded.has(name)) loaded.set(name, isSea() ? loadFromAsset(name) : loadFromNodeModules(name));
  return loaded.get(name);
}

function loadFromNodeModules(name: AddonName): unknown {
  return createRequire(import.meta.url)(`../../node_modules/${addonFiles[name]}`);
}

function loadFromAsset(name: AddonName): unknown {
  const bytes = new Uint8Array(getRawAsset(name));
  const failures: Error[] = [];
  for (const directory of candidateDirectories()) {
    try {
      return loadThrough(directory, bytes);
    } catch (cause) {
      failures.push(new Error(`Cannot load ${name} from a nameless file in "${directory}"`, { cause }));
    }
  }
  throw new AggregateError(failures, `Cannot load ${name}: ${failures.length} directories tried`);
}

/** Memory first: a nameless file on a disk filesystem costs a journal entry. */
function candidateDirectories(): string[] {
  const { XDG_RUNTIME_DIR, TMPDIR, HOME } = process.env;
  const directories = [
    '/dev/shm',
    '/run',
    '/tmp',
    '/var/tmp',
    dirname(process.execPath),
    XDG_RUNTIME_DIR,
    TMPDIR,
    HOME,
  ];
  return directories.filter((directory) => directory?.startsWith('/') === true) as string[];
}

function loadThrough(directory: string, bytes: Uint8Array): unknown {
  const descriptor = openUnnamedFile(directory, 0o700);
  try {
    let written = 0;
    while (written < bytes.length) written += writeSync(descriptor, bytes, written);
    const module = { exports: {} };
    // The linker takes an addon whose path it has seen for the one it has loaded, and descriptors' numbers
    // come back.
    process.dlopen(module, `/proc/self/fd/${'./'.repeat(loaded.size)}${descriptor}`);
    return module.exports;
  } finally {
    // The mapping keeps the file.
    closeSync(descriptor);
  }
}
