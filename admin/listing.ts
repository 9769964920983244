/**
 * Listings of an image and of what was unpacked from it, made comparable: name, type, what group and others
 * may, and of a file size and time, of a symlink its target. Owners differ, since a user unpacks; the owner's
 * permissions are widened as enroot does; device nodes only root could make.
 *
 * A name with a newline is printed as it is by both programs, and becomes the same lines.
 */
import { lockFileName } from '../lib/core/layout.ts';

/** How find(1) prints an unpacked tree for parseTreeLine(). */
export const findFormat = {
  link: '%M %s %TY-%Tm-%Td %TH:%TM /%P -> %l\\n',
  other: '%M %s %TY-%Tm-%Td %TH:%TM /%P\\n',
};

const imageLine =
  /^([-dlcbps])(\S{9}) \d+\/\d+ +(\d+(?:, *\d+)?) (\d{4}-\d\d-\d\d \d\d:\d\d) squashfs-root(.*)$/s;
const treeLine = /^([-dlcbps])(\S{9}) (\d+) (\d{4}-\d\d-\d\d \d\d:\d\d) (\/.*)$/s;

/** @returns a line of `unsquashfs -lln`, comparable; undefined for one that does not count */
export const parseImageLine = (line: string): string | undefined => comparable(imageLine, line);

/** The same for a line of find(1). */
export const parseTreeLine = (line: string): string | undefined => comparable(treeLine, line);

function comparable(pattern: RegExp, line: string): string | undefined {
  const [whole, type = '', mode = '', size = '', time = '', name = ''] = pattern.exec(line) ?? [];
  if (whole === undefined) return line;
  if (name === '' || type === 'c' || type === 'b') return undefined;
  if (name === `/${lockFileName}` || name.startsWith(`/${lockFileName}/`)) return undefined;
  // setuid, setgid and sticky go with the filesystem and the groups of who unpacks.
  const permissions = mode.slice(3).replace(/[st]/g, 'x').replace(/[ST]/g, '-');
  // The name of a symlink is followed by its target.
  if (type === 'l') return `l ${name}`;
  return type === '-' ? `- ${permissions} ${size} ${time} ${name}` : `${type} ${permissions} ${name}`;
}

export interface ListingDifference {
  /** In the image and not, or not like that, in the tree. */
  readonly missing: readonly string[];
  readonly extra: readonly string[];
}

/** Compares what was added, in any order. */
export class ListingComparison {
  readonly #balance = new Map<string, number>();
  #files = 0;

  addOfImage(line: string): void {
    const listed = parseImageLine(line);
    if (listed === undefined) return;
    this.#files++;
    this.#count(listed, 1);
  }

  addOfTree(line: string): void {
    const listed = parseTreeLine(line);
    if (listed !== undefined) this.#count(listed, -1);
  }

  get files(): number {
    return this.#files;
  }

  difference(): ListingDifference {
    const lines = [...this.#balance];
    return {
      missing: lines.filter(([, balance]) => balance > 0).map(([line]) => line),
      extra: lines.filter(([, balance]) => balance < 0).map(([line]) => line),
    };
  }

  /** What both have is forgotten at once: images have a million files. */
  #count(line: string, change: number): void {
    const balance = (this.#balance.get(line) ?? 0) + change;
    if (balance === 0) this.#balance.delete(line);
    else this.#balance.set(line, balance);
  }
}
