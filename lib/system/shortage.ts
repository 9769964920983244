/**
 * Why a program could not write, by what it says: whichever of the programs that we or enroot start it was
 * (tar, zstd, curl, tee, mktemp, mksquashfs, unsquashfs …), it prints strerror(3). They run in the C locale.
 */
import { JobFault } from '../core/faults.ts';

type Shortage = 'NO_SPACE' | 'QUOTA_EXCEEDED';

const shortages = [
  ['QUOTA_EXCEEDED', /Disk quota exceeded|\bEDQUOT\b/],
  ['NO_SPACE', /No space left on device|\bENOSPC\b/],
] as const;

/** curl(1) could not write, and does not say why. */
const unwritten = /^curl: \(23\) .*$/m;
/** A disk with less has no room for a layer. */
const littleBytes = 64 * 2 ** 20;

/**
 * @returns the line of a program that could not write, as it seems for want of room on a disk with so much
 *   left
 */
export const unwrittenLine = (text: string, availableBytes: number): string | undefined =>
  availableBytes < littleBytes ? unwritten.exec(text)?.[0] : undefined;

/** @returns undefined for any other reason */
export function shortageIn(text: string): Shortage | undefined {
  return shortages.find(([, pattern]) => pattern.test(text))?.[0];
}

/** @param complaint the program's own line, such as `tar: x: Cannot write: No space left on device` */
export function shortageFault(code: Shortage, what: string, complaint?: string): JobFault {
  const why = code === 'NO_SPACE' ? 'the disk is full' : 'the disk quota of its user is used up';
  return new JobFault(code, `${what}: ${why}${complaint === undefined ? '' : ` (${complaint})`}`);
}

const longestKeptLine = 200;

/**
 * Reads all that a program prints: of a hundred complaints about a full disk the first counts, and the last
 * may be of something else.
 */
export class ShortageWatch {
  /** The first complaint of that kind, with the code that it stands for. */
  found: { readonly code: Shortage; readonly line: string } | undefined;
  #tail = '';

  readonly add = (chunk: Buffer): void => {
    if (this.found !== undefined) return;
    const text = this.#tail + chunk.toString('utf8');
    const code = shortageIn(text);
    const line = text.split(/[\r\n]+/).find((one) => shortageIn(one) === code);
    if (code !== undefined) this.found = { code, line: (line ?? '').trim().slice(-longestKeptLine) };
    // Bounded, whoever prints: enough for a phrase that two chunks share.
    this.#tail = text.slice(-longestKeptLine);
  };
}
