/**
 * The one door by which root touches what lies below a user's directory. There the user can put anything in
 * the way, at any moment.
 *
 *   1. Everything is reached from an open directory. The kernel follows no symlink on the way, leaves the
 *      directory by no `..`, and crosses no mount: openat2(2). Where it cannot (Linux before 5.6, a seccomp
 *      filter, no addon), each name is a step of its own.
 *   2. What is found is first a descriptor that only stands for it (O_PATH): its type is looked at there, and
 *      only a regular file or a directory is then opened, by that descriptor. So nobody waits for the writer
 *      of a FIFO, wakes a device, or reads a socket.
 *   3. What is made, moved or removed is one name in an open directory.
 *   4. A directory is read in pieces, never as a whole.
 *
 * Whatever fails here is a BeneathError: the user's trouble, with whichever error number
 * (lib/core/faults.ts). Callers act with the user's effective ids (as-user.ts); a move into the trash needs
 * root's.
 *
 * A name is a string whose characters are bytes (latin1): whatever a directory holds can be told, opened and
 * removed.
 */
import {
  closeSync,
  constants,
  fstatSync,
  futimesSync,
  mkdirSync,
  openSync,
  opendirSync,
  readFileSync,
  renameSync,
  rmdirSync,
  unlinkSync,
  writeFileSync,
  type Stats,
} from 'node:fs';
import { errnoName } from '../core/errno-names.ts';
import { BeneathError, systemErrorOf } from '../core/faults.ts';
import { withUserIds, type UserIds } from './as-user.ts';
import { asideName } from './aside.ts';
import { withDirectory, type Directory } from './directory.ts';
import { isGone, unlessErrno } from './errno.ts';
import { readAndClose } from './files.ts';
import { findBeneath } from './native-addon.ts';

/** O_PATH of open(2), which Node does not export. */
const onlyPath = 0o10000000;
const noLink = constants.O_NOFOLLOW;
/**
 * Of a file that was a regular one a moment ago; O_NONBLOCK as ever, should a filesystem have its own mind.
 */
const always = constants.O_NONBLOCK | constants.O_NOCTTY;

/**
 * Runs `action` with the user's ids and with their directory open.
 *
 * @param path which only root can change: what of it is the user's begins below
 */
export function inDirectoryOf<T>(
  user: UserIds,
  path: string,
  action: (directory: Directory) => T extends Promise<unknown> ? never : T,
): T {
  return withUserIds<T>(user, () => withDirectory(path, action));
}

/** What lstat(2) would say, of any type. @throws BeneathError */
export function statBeneath(directory: Directory, path: string): Stats {
  return withPath(directory, path, 0, (stands) => fstatSync(stands));
}

/**
 * Opens a directory to read it and to reach what is in it. @throws BeneathError, ENOTDIR for anything else
 */
export function openDirectoryBeneath(directory: Directory, path: string): Directory {
  return withPath(directory, path, constants.O_DIRECTORY, (stands) => {
    const fd = openSync(`/proc/self/fd/${stands}`, constants.O_RDONLY | constants.O_DIRECTORY);
    try {
      return { path: `${directory.path}/${path}`, fd, stats: fstatSync(fd) };
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  });
}

/** Runs `action` with the directory open, and closes it. */
export function withDirectoryBeneath<T>(
  directory: Directory,
  path: string,
  action: (directory: Directory) => T,
): T {
  const open = openDirectoryBeneath(directory, path);
  try {
    return action(open);
  } finally {
    closeSync(open.fd);
  }
}

/**
 * Opens a regular file that is there.
 *
 * @param flags O_RDONLY, or others of open(2)
 * @throws BeneathError
 */
export function openFileBeneath(
  directory: Directory,
  path: string,
  flags: number = constants.O_RDONLY,
): number {
  return withPath(directory, path, 0, (stands) => {
    if (!fstatSync(stands).isFile()) throw new Error('not a regular file');
    // What stands there is no symlink; the way to it by /proc is one.
    return openSync(`/proc/self/fd/${stands}`, (flags & ~constants.O_NOFOLLOW) | always);
  });
}

/**
 * @returns the text, or undefined if there is no such file
 * @throws BeneathError, also if it is longer than the limit
 */
export function readSmallFileBeneath(
  directory: Directory,
  path: string,
  limitBytes: number,
): string | undefined {
  const fd = unlessErrno(isGone, () => openFileBeneath(directory, path));
  if (fd === undefined) return undefined;
  const shown = `${directory.path}/${path}`;
  try {
    return readAndClose(fd, shown, limitBytes);
  } catch (cause) {
    throw beneathError('read', shown, cause);
  }
}

/** Replaces a file at once: a reader sees the old text or the new, never a part. @throws BeneathError */
export function writeFileBeneath(directory: Directory, name: string, text: string, mode: number): void {
  const aside = asideName(name);
  const fd = createFileBeneath(directory, aside, mode);
  try {
    try {
      writeFileSync(fd, text);
    } finally {
      closeSync(fd);
    }
    moveBeneath(directory, aside, directory, name);
  } catch (cause) {
    unlessErrno(isGone, () => {
      removeFileBeneath(directory, aside);
    });
    throw beneathError('write', `${directory.path}/${name}`, cause);
  }
}

/** Makes a file that must not be there. @throws BeneathError, EEXIST */
export function createFileBeneath(
  directory: Directory,
  name: string,
  mode: number,
  flags: number = constants.O_RDWR,
): number {
  return inDirectory(directory, name, 'create', (path) =>
    openSync(path, flags | constants.O_CREAT | constants.O_EXCL | noLink | always, mode),
  );
}

/** How often somebody may take a file away between two looks of ours, or put one there. */
const attempts = 20;

/** Opens a regular file, made if there is none. @throws BeneathError */
export function openOrCreateFileBeneath(
  directory: Directory,
  name: string,
  mode: number,
  flags: number = constants.O_RDWR,
): number {
  for (let attempt = 1; ; attempt++) {
    const isLast = attempt === attempts;
    const found = unlessGone(() => openFileBeneath(directory, name, flags), isLast);
    if (found !== undefined) return found;
    try {
      return createFileBeneath(directory, name, mode, flags);
    } catch (error) {
      if (isLast || systemErrorOf(error) !== 'EEXIST') throw error;
    }
  }
}

/** @throws BeneathError */
export function makeDirectoryBeneath(directory: Directory, name: string, mode: number): void {
  inDirectory(directory, name, 'make directory', (path) => mkdirSync(path, mode));
}

/**
 * Moves a name from one open directory to another; what has that name there is replaced, as rename(2) does.
 *
 * @throws BeneathError
 */
export function moveBeneath(from: Directory, name: string, to: Directory, newName: string): void {
  inDirectory(from, name, 'move', (path) => {
    renameSync(path, procPath(to.fd, newName));
  });
}

/** Removes a name that is no directory. @throws BeneathError */
export function removeFileBeneath(directory: Directory, name: string): void {
  inDirectory(directory, name, 'remove', (path) => {
    unlinkSync(path);
  });
}

/** @throws BeneathError, ENOTEMPTY */
export function removeDirectoryBeneath(directory: Directory, name: string): void {
  inDirectory(directory, name, 'remove directory', (path) => {
    rmdirSync(path);
  });
}

/** Sets the modification time of a directory. @throws BeneathError */
export function touchDirectoryBeneath(directory: Directory, path: string, time: Date): void {
  withDirectoryBeneath(directory, path, ({ fd }) => {
    try {
      futimesSync(fd, time, time);
    } catch (cause) {
      throw beneathError('set the time of', `${directory.path}/${path}`, cause);
    }
  });
}

/**
 * Runs `action` with a directory of a user directory open, which is made if it is not there. What fails below
 * the user's directory, whatever a user has put there, is passed over: what is not remembered is found out
 * again.
 */
export function inIndexOf(
  user: UserIds,
  userPath: string,
  name: string,
  action: (index: Directory) => void,
): void {
  try {
    inDirectoryOf(user, userPath, (userDirectory) => {
      unlessErrno(['EEXIST'], () => {
        makeDirectoryBeneath(userDirectory, name, 0o700);
      });
      withDirectoryBeneath(userDirectory, name, action);
    });
  } catch (error) {
    if (!(error instanceof BeneathError)) throw error;
  }
}

/** The names in an open directory, as they are met. @throws BeneathError */
export function* namesBeneath(directory: Directory): Generator<string> {
  for (const { name } of itemsBeneath(directory)) yield name;
}

/** The same with what they seem to be: by the time it is opened it may be something else. */
export function* itemsBeneath(
  directory: Directory,
): Generator<{ readonly name: string; readonly isDirectory: boolean }> {
  const act = <T>(action: () => T): T => {
    try {
      return action();
    } catch (cause) {
      throw beneathError('read', directory.path, cause);
    }
  };
  const open = act(() =>
    opendirSync(`/proc/self/fd/${directory.fd}`, { bufferSize: 256, encoding: 'latin1' }),
  );
  try {
    for (let item = act(() => open.readSync()); item !== null; item = act(() => open.readSync()))
      yield { name: item.name, isDirectory: item.isDirectory() };
  } finally {
    open.closeSync();
  }
}

/**
 * Whether a path leads to an open file or directory: whoever locks what others rename looks so after the
 * lock.
 */
export function leadsToBeneath(directory: Directory, path: string, fd: number): boolean {
  const file = fstatSync(fd);
  const now = unlessGone(() => statBeneath(directory, path), false);
  return now?.ino === file.ino && now.dev === file.dev;
}

/** Runs `action`; a name that is not there, or not any more, gives undefined. */
function unlessGone<T>(action: () => T, isLast: boolean): T | undefined {
  try {
    return action();
  } catch (error) {
    if (isLast || systemErrorOf(error) !== 'ENOENT') throw error;
    return undefined;
  }
}

function beneathError(what: string, path: string, cause: unknown): BeneathError {
  if (cause instanceof BeneathError) return cause;
  return new BeneathError(`Cannot ${what} "${path}"`, { cause });
}

/** One component: it can lead nowhere but into the directory. */
function inDirectory<T>(directory: Directory, name: string, what: string, action: (path: Buffer) => T): T {
  try {
    return action(procPath(directory.fd, name));
  } catch (cause) {
    throw beneathError(what, `${directory.path}/${name}`, cause);
  }
}

function procPath(fd: number, name: string): Buffer {
  if (name === '' || name === '.' || name === '..' || /[/\0]/.test(name))
    throw new Error('not the name of a file');
  return Buffer.from(`/proc/self/fd/${fd}/${name}`, 'latin1');
}

function withPath<T>(directory: Directory, path: string, flags: number, action: (fd: number) => T): T {
  try {
    const fd = openPath(directory.fd, path, flags);
    try {
      return action(fd);
    } finally {
      closeSync(fd);
    }
  } catch (cause) {
    throw beneathError('open', `${directory.path}/${path}`, cause);
  }
}

/** The kernel refuses openat2(2), or a test says so. */
let isWalking = false;

/** For tests: as on a kernel without openat2(2). */
export function walkFromNowOn(): void {
  isWalking = true;
}

function openPath(directory: number, path: string, flags: number): number {
  const result = isWalking ? undefined : findBeneath()?.openPath(directory, path, flags);
  if (result === undefined) return walk(directory, path, flags);
  if (result >= 0) return result;
  const code = errnoName(result);
  // EPERM: of a filter for system calls that does not know it; by itself openat2(2) does not say so for
  // O_PATH.
  if (code === 'ENOSYS' || code === 'EPERM') {
    isWalking = true;
    return walk(directory, path, flags);
  }
  throw Object.assign(new Error(`${code ?? result}, openat2`), { code, errno: result });
}

/**
 * The same, name by name: each must be a directory, no symlink, and on the mount that the directory is on.
 */
function walk(directory: number, path: string, flags: number): number {
  const names = path.split('/');
  const mount = mountId(directory);
  let at = directory;
  try {
    for (const [index, name] of names.entries()) {
      const isLast = index === names.length - 1;
      const next = openSync(procPath(at, name), onlyPath | noLink | (isLast ? flags : constants.O_DIRECTORY));
      if (at !== directory) closeSync(at);
      at = next;
      if (mountId(at) !== mount) throw Object.assign(new Error('EXDEV, on another mount'), { code: 'EXDEV' });
    }
    return at;
  } catch (error) {
    if (at !== directory) closeSync(at);
    throw error;
  }
}

function mountId(fd: number): string | undefined {
  return /^mnt_id:\s+(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'))?.[1];
}
