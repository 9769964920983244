/**
 * What the node knows of an image that it mounts, or that it will not mount: `<base>/.mounted/<entry>/facts`.
 * Root writes and reads it.
 */
import { isAmount, parseJsonObject } from './json.ts';

export interface MountedFacts {
  /** The real path of the image file. */
  readonly image: string;
  readonly createdAtMs: number;
  /** How long it took until it was mounted. */
  readonly readyMs: number;
  /** Of the file. */
  readonly bytes: number;
  /** By its superblock. */
  readonly inodes: number;
  /** What it would take on the disk of each user, unpacked. */
  readonly unpackedBytes: number;
  /** `in-place`: the image itself is mounted. */
  readonly source: 'in-place' | 'reflink' | 'copy';
  /** Until the disk has all of a copy, the copy is good for this boot only. */
  readonly bootId: string | undefined;
  /** Why it is not mounted. */
  readonly refusal?: Refusal | undefined;
}

interface Refusal {
  readonly reason: string;
  /** Until when it holds, ms since the epoch; undefined: as long as the file is the same. */
  readonly untilMs?: number | undefined;
}

/** A path of PATH_MAX bytes, all of them escaped to six, and a reason. */
export const longestMountedFactsBytes = 40 * 1024;

/** After a failure that may pass, so that not every job tries again. */
const refusalLimitMs = 5 * 60_000;

export const refusalFor = (reason: string, nowMs: number): Refusal => ({
  reason,
  untilMs: nowMs + refusalLimitMs,
});

/** Whether a refusal is still to be believed. A clock that was set back ends it, too. */
export function isRefused(refusal: Refusal | undefined, nowMs: number): boolean {
  if (refusal === undefined) return false;
  if (refusal.untilMs === undefined) return true;
  const restMs = refusal.untilMs - nowMs;
  return restMs > 0 && restMs <= refusalLimitMs;
}

export function formatMountedFacts(facts: MountedFacts): string {
  return `${JSON.stringify({ version: 1, ...facts })}\n`;
}

/** @returns undefined for anything but well-formed facts of version 1 */
export function parseMountedFacts(text: string): MountedFacts | undefined {
  const value = parseJsonObject(text);
  if (value?.['version'] !== 1) return undefined;
  const { image, createdAtMs, readyMs, bytes, inodes, unpackedBytes, source, bootId } = value;
  if (typeof image !== 'string' || !isAmount(createdAtMs) || !isAmount(readyMs)) return undefined;
  if (!isAmount(bytes) || !isAmount(inodes) || !isAmount(unpackedBytes)) return undefined;
  if (source !== 'in-place' && source !== 'reflink' && source !== 'copy') return undefined;
  const refusal = parseRefusal(value['refusal']);
  if (refusal === 'malformed') return undefined;
  return {
    ...{ image, createdAtMs, readyMs, bytes, inodes, unpackedBytes, source },
    bootId: typeof bootId === 'string' ? bootId : undefined,
    ...(refusal === undefined ? {} : { refusal }),
  };
}

function parseRefusal(value: unknown): Refusal | 'malformed' | undefined {
  if (value === undefined) return undefined;
  const { reason, untilMs } = (typeof value === 'object' && value !== null ? value : {}) as Record<
    string,
    unknown
  >;
  if (typeof reason !== 'string' || (untilMs !== undefined && !isAmount(untilMs))) return 'malformed';
  return untilMs === undefined ? { reason } : { reason, untilMs };
}

/**
 * Whether an image can be a mounted entry: its real path is below one of the directories.
 *
 * @param directories of `trusted_images`, by their real paths
 */
export const isBelowTrusted = (realPath: string, directories: readonly string[]): boolean =>
  directories.some((directory) => realPath.startsWith(`${directory}/`));

interface Owned {
  readonly uid: number;
  readonly mode: number;
}

const groupOrOtherMayWrite = 0o022;
const sticky = 0o1000;

/**
 * Why somebody who is not trusted could change a file or directory. Access lists need no look: a line that
 * lets somebody write shows in the mode's bits of the group (acl(5)).
 *
 * @param owners uids beside root's
 * @param isAbove a directory above that of the image: in a sticky one others cannot rename what is not theirs
 * @returns undefined: nobody could
 */
export function whyChangeable(
  { uid, mode }: Owned,
  owners: readonly number[],
  isAbove = false,
): string | undefined {
  if (uid !== 0 && !owners.includes(uid)) return `owned by uid ${uid}, who is not in trusted_owners`;
  if ((mode & groupOrOtherMayWrite) === 0 || (isAbove && (mode & sticky) !== 0)) return undefined;
  return `writable by ${(mode & 0o002) === 0 ? 'its group' : 'everybody'}, mode ${(mode & 0o7777).toString(8).padStart(4, '0')}`;
}

/**
 * The options of find(1) that print, of each file of a mounted image, its blocks of 512 bytes and its hard
 * links; of the first one that `enroot create` would have made otherwise what it is, and nothing behind it:
 * of another owner than root, closed to its owner, with set-id bits, or a device. (settlePermissions() of
 * unpack.ts gives what they look for.)
 */
export const changedByStock: readonly string[] = [
  ...['(', '!', '-uid', '0', '-o', '!', '-gid', '0', '-o', '-type', 'b', '-o', '-type', 'c', '-o', '-type'],
  ...['s', '-o', '!', '-type', 'l', '-perm', '/6000', '-o', '-type', 'd', '!', '-perm', '-u=rwx', '-o'],
  ...['-type', 'f', '(', '!', '-perm', '-u=r', '-o', '!', '-perm', '-u=x', '-perm', '/go=x', ')', ')'],
  ...['-printf', '%y %#m %U %G /%P\\n', '-quit', '-o', '-printf', '%b %n\\n'],
];

/**
 * @param line what find(1) printed @returns why the image is not mounted; undefined: it is as it should be
 */
export function whyChangedByStock(line: string): string | undefined {
  const text = line.trim();
  if (text === '') return undefined;
  const [type = '?', mode = '?', uid = '?', gid = '?', ...path] = text.split(' ');
  const what = path.join(' ');
  if (type === 'b' || type === 'c' || type === 's') return `"${what}" in it is a device or a socket`;
  if (uid !== '0' || gid !== '0')
    return `"${what}" in it belongs to ${uid}:${gid}, and enroot gives all files to the user`;
  return `"${what}" in it has mode ${mode}, which enroot changes while it unpacks`;
}
