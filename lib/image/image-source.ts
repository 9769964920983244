/**
 * What is behind an image name, read as the job's user in a child process with a time limit: root must not
 * open what the user could not, and an image on a hung filesystem must not hang the Prolog.
 */
import { JobFault, NodeFault } from '../core/faults.ts';
import {
  parseSuperblock,
  superblockBytes,
  type PathImage,
  type RegistryImage,
  type SquashfsFacts,
  type Superblock,
} from '../core/image.ts';
import type { ImageSizes } from '../core/settings.ts';
import type { UserIds } from '../system/as-user.ts';
import { findBeneath } from '../system/native-addon.ts';
import { CommandFailed, runBriefly } from '../system/run-command.ts';
import { isFindMissing } from '../system/tool.ts';
import { runForUser } from '../system/user-groups.ts';
import { hashFingerprint, hashIdentity } from './image-hash.ts';

export type ImageSource = SquashfsSource | RegistrySource;

export interface SquashfsSource {
  readonly kind: 'path';
  /** image-hash.ts */
  readonly identity: string;
  readonly fingerprint: string;
  /** Size and times, as `find -printf '%s %T@ %C@'` prints them. */
  readonly stamp: string;
  /** Of the inode, seconds since the epoch. */
  readonly changedAt: string;
  /** As the job gave it, absolute: what is unpacked. */
  readonly path: string;
  /** What that leads to. */
  readonly realPath: string;
  readonly superblock: Superblock;
  readonly sizes: ImageSizes;
  /** Our addon's child looked, which its user cannot trace (look.c). */
  readonly isVouched: boolean;
}

export interface RegistrySource {
  readonly kind: 'registry';
  readonly hash: string;
  readonly image: RegistryImage;
  /**
   * What enroot imports: the image by its digest, so that what is unpacked is what the hash says; else by its
   * tag.
   */
  readonly importUri: string;
  /** Why the hash may be older than the registry's image. */
  readonly warning: string | undefined;
  /** The home directory with whose credentials the registry was asked; undefined if nobody was. */
  readonly askedFrom: string | undefined;
  /**
   * Asks, before an import that no question went before, whether the registry answers. @throws RegistryFault
   */
  readonly confirm: (() => Promise<void>) | undefined;
}

/** Of what stat(2) counts, whatever the filesystem's blocks are. */
const statBlockBytes = 512;

/** A stat and two reads; a parallel filesystem that takes longer than this is hung. */
const probeTimeoutMs = 15_000;

/**
 * @throws JobFault IMAGE_UNREADABLE, NOT_SQUASHFS, USER_UNKNOWN; NodeFault TOOL_MISSING
 */
export async function probeSquashfs(user: UserIds, image: PathImage): Promise<SquashfsSource> {
  const seen = await look(user, image.path, lookLimitMs);
  return sourceOf(image, seen ?? (await askPrograms(user, image.path)), seen !== undefined);
}

/**
 * Whether the user has the image that the source tells of. The programs that look where our addon did not
 * come to an answer run as the user, who can make them say anything: then the addon looks once more, and
 * takes its time.
 */
export async function isVouchedFor(user: UserIds, source: SquashfsSource): Promise<boolean> {
  if (source.isVouched) return true;
  const seen = await look(user, source.path, probeTimeoutMs);
  if (seen === undefined) return false;
  return sourceOf({ kind: 'path', path: source.path }, seen, true).identity === source.identity;
}

function sourceOf(image: PathImage, seen: Buffer, isVouched: boolean): SquashfsSource {
  const facts = parseSeen(image.path, seen);
  const superblock = parseSuperblock(facts);
  return {
    kind: 'path',
    identity: hashIdentity(facts),
    fingerprint: hashFingerprint(facts),
    stamp: `${facts.sizeBytes} ${facts.modifiedAt} ${facts.changedAt}`,
    changedAt: facts.changedAt,
    path: image.path,
    realPath: facts.realPath,
    superblock,
    sizes: { claimedBytes: superblock.usedBytes, writtenBytes: facts.writtenBytes },
    isVouched,
  };
}

/** A filesystem at hand answers in less than a millisecond. Our own work stands still meanwhile. */
const lookLimitMs = 500;

/**
 * Our addon looks, in a child that executes nothing, while the caller goes on with what it has to do at once.
 *
 * @returns what the programs of askPrograms() would print; undefined wherever that is not simply so: they
 *   find out why
 */
async function look({ uid, gid }: UserIds, path: string, limitMs: number): Promise<Buffer | undefined> {
  const addon = findBeneath();
  if (addon?.startLook(uid, gid, path, superblockBytes) !== 0) return undefined;
  await new Promise(setImmediate);
  const seen = addon.finishLook(limitMs);
  return typeof seen === 'number' ? undefined : seen;
}

/**
 * One find(1) prints type, size and times of what the path leads to, then its real path, then the first
 * bytes. The three may be of different files if the image is being replaced; whoever unpacks probes again
 * afterwards.
 */
async function askPrograms(user: UserIds, path: string): Promise<Buffer> {
  const args = ['-L', path, '-maxdepth', '0', '-printf', '%y %s %T@ %C@ %b\\0'];
  args.push('-type', 'f', '-exec', 'realpath', '--zero', '--', '{}', ';');
  args.push('-exec', 'head', `--bytes=${superblockBytes}`, '--', '{}', ';');
  try {
    const command = { file: 'find', args, timeoutMs: probeTimeoutMs };
    return (await runForUser(user, command, { canGain: false }, runBriefly)).stdout;
  } catch (cause) {
    throw await unreadable(path, cause);
  }
}

function parseSeen(path: string, stdout: Buffer): SquashfsFacts & Pick<ImageSizes, 'writtenBytes'> {
  const statsEnd = stdout.indexOf(0);
  const [type, size, modifiedAt, changedAt, blocks] = stdout
    .toString('latin1', 0, Math.max(statsEnd, 0))
    .split(' ');
  if (type !== 'f') {
    throw new JobFault('NOT_SQUASHFS', `Cannot use "${path}": not a regular file`);
  }
  const realPathEnd = stdout.indexOf(0, statsEnd + 1);
  const superblock = stdout.subarray(realPathEnd + 1);
  // find(1) exits with 0 where what it executed could not open the file: then the first bytes are missing.
  const isRead = realPathEnd >= 0 && superblock.byteLength >= Math.min(superblockBytes, Number(size));
  if (size === undefined || modifiedAt === undefined || changedAt === undefined || !isRead) {
    throw new JobFault(
      'IMAGE_UNREADABLE',
      `Cannot read "${path}": permission denied or it changed meanwhile`,
    );
  }
  return {
    realPath: stdout.toString('utf8', statsEnd + 1, realPathEnd),
    sizeBytes: Number(size),
    writtenBytes: Number(blocks ?? 0) * statBlockBytes,
    modifiedAt,
    changedAt,
    superblock,
  };
}

async function unreadable(path: string, cause: unknown): Promise<Error> {
  if (!(cause instanceof CommandFailed)) return cause instanceof Error ? cause : new Error(String(cause));
  if (cause.timedOut) {
    return new JobFault(
      'IMAGE_UNREADABLE',
      `Cannot read "${path}" within ${probeTimeoutMs} ms: is its filesystem hung?`,
    );
  }
  // Not by a signal, which the user can send, nor by how a long message ends, which the user's file name can
  // be.
  const isNotStarted = cause.exitCode === undefined && cause.signal === undefined;
  const isSetprivs = (cause.exitCode ?? 0) > 1 || /^setpriv: [^\n]{1,200}$/.test(cause.stderrTail);
  if (isNotStarted || isSetprivs) {
    const message = `Cannot look at "${path}" as its user`;
    if (await isFindMissing()) return new NodeFault('TOOL_MISSING', message, { cause });
  }
  return new JobFault('IMAGE_UNREADABLE', `Cannot read "${path}" as the job's user`, { cause });
}
