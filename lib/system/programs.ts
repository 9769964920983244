/** Programs on disk: where they are found, what they are. */
import { closeSync, openSync, readSync, statSync } from 'node:fs';
import { isGone, unlessErrno } from './errno.ts';
import { isExecutable } from './files.ts';

/**
 * The first executable file of that name in a PATH.
 *
 * @param searchPath directories, joined by colons; relative ones are passed over
 */
export function findProgram(name: string, searchPath: string): string | undefined {
  return searchPath
    .split(':')
    .filter((directory) => directory.startsWith('/'))
    .map((directory) => `${directory.replace(/\/+$/, '')}/${name}`)
    .find((path) => isRegularFile(path) && isExecutable(path));
}

export function isRegularFile(path: string): boolean {
  return unlessErrno([...isGone, 'EACCES', 'ELOOP'], () => statSync(path).isFile()) ?? false;
}

const chunkBytes = 1024 * 1024;

/** Whether two files have the same content. */
export function haveSameContent(one: string, other: string): boolean {
  const [a, b] = [statSync(one), statSync(other)];
  if (a.dev === b.dev && a.ino === b.ino) return true;
  if (a.size !== b.size) return false;
  const others = chunksOf(other);
  try {
    for (const chunk of chunksOf(one)) if (others.next().value?.equals(chunk) !== true) return false;
    return others.next().done === true;
  } finally {
    others.return(undefined);
  }
}

/** Whether a file holds these bytes somewhere. */
export function contains(path: string, text: string): boolean {
  let rest = Buffer.alloc(0);
  for (const chunk of chunksOf(path)) {
    const window = Buffer.concat([rest, chunk]);
    if (window.includes(text)) return true;
    rest = window.subarray(Math.max(0, window.byteLength - text.length));
  }
  return false;
}

/** Each is a copy of its own. */
function* chunksOf(path: string): Generator<Buffer, undefined> {
  const fd = openSync(path, 'r');
  try {
    for (;;) {
      const buffer = Buffer.allocUnsafe(chunkBytes);
      const count = readSync(fd, buffer, 0, chunkBytes, null);
      if (count === 0) return undefined;
      yield buffer.subarray(0, count);
    }
  } finally {
    closeSync(fd);
  }
}
