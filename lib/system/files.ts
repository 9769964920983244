/** Small files: read with a limit and without following a symlink. aside.ts writes them. */
import { accessSync, closeSync, constants, fstatSync, lstatSync, openSync, readSync } from 'node:fs';
import { isGone, unlessErrno } from './errno.ts';

/** O_NONBLOCK: opening a FIFO that somebody put there must not wait for a writer. */
const safeRead = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK | constants.O_NOCTTY;

/**
 * Opens what must be a regular file, to read it or to flock it.
 *
 * @throws ELOOP for a symlink; EFTYPE-like Error for anything that is not a regular file
 */
export function openRegularFile(path: string, extraFlags = 0, mode = 0o600): number {
  const fd = openSync(path, safeRead | extraFlags, mode);
  try {
    if (!fstatSync(fd).isFile()) throw new Error(`Cannot use ${path}: not a regular file`);
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

/**
 * Whether a path leads to an open file: whoever locks a file that others rename or replace looks so after the
 * lock.
 *
 * @param refusals error numbers that mean "no" beside those of a path that is gone
 */
export function leadsTo(path: string, fd: number, refusals: readonly string[] = []): boolean {
  const file = fstatSync(fd);
  const now = unlessErrno([...isGone, ...refusals], () => lstatSync(path));
  return now?.ino === file.ino && now.dev === file.dev;
}

const firstReadBytes = 4096;

/** @returns at most `limitBytes` from the start of an open file; less if a read leaves it too late */
export function readStart(fd: number, limitBytes: number, isLate = (): boolean => false): Buffer {
  let buffer = Buffer.allocUnsafe(Math.min(firstReadBytes, limitBytes));
  let bytes = 0;
  for (;;) {
    const count = readSync(fd, buffer, bytes, buffer.byteLength - bytes, bytes);
    bytes += count;
    if (count === 0 || bytes === limitBytes || isLate()) return buffer.subarray(0, bytes);
    if (bytes < buffer.byteLength) continue;
    const larger = Buffer.allocUnsafe(Math.min(2 * bytes, limitBytes));
    buffer.copy(larger, 0, 0, bytes);
    buffer = larger;
  }
}

/** @returns at most `limitBytes` from the end of an open file */
export function readEnd(fd: number, limitBytes: number): Buffer {
  const { size } = fstatSync(fd);
  const buffer = Buffer.alloc(Math.min(size, limitBytes));
  const count = readSync(fd, buffer, 0, buffer.byteLength, size - buffer.byteLength);
  return buffer.subarray(0, count);
}

const chunkBytes = 64 * 1024;

/**
 * Hands on the whole lines of an open file from an offset on, without their ends.
 *
 * @returns the offset behind the last of them
 */
export function readLines(fd: number, fromBytes: number, onLine: (line: string) => void): number {
  const buffer = Buffer.allocUnsafe(chunkBytes);
  // Less than `fromBytes` is there where a crash took the end of the file.
  let position = Math.min(fromBytes, fstatSync(fd).size);
  for (;;) {
    const chunk = buffer.subarray(0, readSync(fd, buffer, 0, chunkBytes, position));
    const end = chunk.lastIndexOf(newline) + 1;
    // Nothing of ours writes a line as long as that: it is passed over.
    const whole = end === 0 && chunk.byteLength === chunkBytes ? chunkBytes : end;
    if (whole === 0) return position;
    for (const line of chunk.toString('utf8', 0, end).split('\n').slice(0, -1)) onLine(line);
    position += whole;
  }
}

const newline = 0x0a;

/**
 * @returns the text, or undefined if there is no such file
 * @throws if it is longer than the limit, a symlink or no regular file
 */
export function readSmallFile(path: string, limitBytes: number): string | undefined {
  const fd = unlessErrno(isGone, () => openRegularFile(path));
  return fd === undefined ? undefined : readAndClose(fd, path, limitBytes);
}

/** @throws if the file is longer than the limit */
export function readAndClose(fd: number, path: string, limitBytes: number): string {
  try {
    const start = readStart(fd, limitBytes + 1);
    if (start.byteLength > limitBytes)
      throw new Error(`Cannot read ${path}: longer than ${limitBytes} bytes`);
    return start.toString('utf8');
  } finally {
    closeSync(fd);
  }
}

/** Whether we may execute a file. */
export function isExecutable(path: string): boolean {
  const allowed = unlessErrno(['ENOENT', 'ENOTDIR', 'EACCES'], () => {
    accessSync(path, constants.X_OK);
    return true;
  });
  return allowed ?? false;
}
