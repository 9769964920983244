/**
 * Time on a clock that nobody sets.
 *
 * Not performance.now(): the runtime would load eleven modules for it, which takes a warm Prolog more than a
 * millisecond.
 */
import process from 'node:process';

const millisecondsPerSecond = 1000;

/** @returns milliseconds since this process started, with fractions */
export const elapsedMs = (): number => process.uptime() * millisecondsPerSecond;

/** @returns milliseconds of processor time of this process, the kernel's work for it included */
export function processorMs(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1000;
}

/** Waits, and the event loop with us. */
export function pauseFor(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}
