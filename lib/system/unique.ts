/** Names that no other process takes at the same time. */
import process from 'node:process';

let count = 0;

/**
 * @returns hex digits: process ID, a monotonic clock, a counter. Not secret: who uses it creates with O_EXCL.
 */
export function uniqueHex(): string {
  count++;
  return `${process.pid.toString(16)}${process.hrtime.bigint().toString(16)}${count.toString(16)}`;
}
