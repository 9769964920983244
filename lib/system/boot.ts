/** Which run of the kernel this is: random(4), another at each boot. */
import { readFileSync } from 'node:fs';
import { unlessErrno } from './errno.ts';

let known: string | undefined;

/** @returns undefined where /proc does not tell */
export function bootId(): string | undefined {
  known ??= unlessErrno(['ENOENT', 'EACCES'], () =>
    readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim(),
  );
  return known;
}
