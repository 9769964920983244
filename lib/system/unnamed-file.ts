/** Files without a name (O_TMPFILE, open(2)): nobody else can open them, and nothing is left of them. */
import { constants, openSync } from 'node:fs';

/** fcntl.h has O_TMPFILE as this bit together with O_DIRECTORY; Node does not export it. */
const tmpfileFlags = 0o20000000 | constants.O_DIRECTORY;

/**
 * @param directory on whose filesystem it is
 * @throws ENOTSUP or EISDIR where the filesystem cannot, EACCES, ENOSPC, …
 */
export function openUnnamedFile(directory: string, mode: number): number {
  // O_EXCL: nor can it be given a name later.
  return openSync(directory, tmpfileFlags | constants.O_RDWR | constants.O_EXCL, mode);
}

/** In memory first, and where no user can fill it. */
const scratchDirectories = ['/run', '/dev/shm', '/tmp', '/var/tmp'] as const;

/** @returns undefined if no place takes one */
export function openScratchFile(): number | undefined {
  for (const directory of scratchDirectories) {
    try {
      return openUnnamedFile(directory, 0o600);
    } catch {
      // The next may be there, writable, and of a filesystem that can.
    }
  }
  return undefined;
}
