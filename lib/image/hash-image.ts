/**
 * `container-cache hash-image FILE`: the SHA-256 of an image, for content.ts, which starts it as the image's
 * user.
 */
import { createHash } from 'node:crypto';
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import process from 'node:process';

const chunkBytes = 1024 * 1024;

/** @returns the exit code */
export function runHashImage([path, ...rest]: readonly string[]): number {
  if (path === undefined || rest.length > 0) return 2;
  try {
    // O_NONBLOCK: what was an image may be a FIFO by now.
    const fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
    try {
      if (!fstatSync(fd).isFile()) throw new Error('not a regular file');
      process.stdout.write(`${hashOf(fd)}\n`);
    } finally {
      closeSync(fd);
    }
    return 0;
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : 'unknown error'}\n`);
    return 1;
  }
}

function hashOf(fd: number): string {
  const hash = createHash('sha256');
  const buffer = Buffer.allocUnsafe(chunkBytes);
  for (;;) {
    const count = readSync(fd, buffer, 0, chunkBytes, null);
    if (count === 0) return hash.digest('hex');
    hash.update(buffer.subarray(0, count));
  }
}
