/**
 * Which entry an image file has: the one of its content, wherever the file is and whatever it is called.
 *
 * Reading many gigabytes for each job would cost as much as the cache saves. So each user has an index of
 * what was read, in `<base>/<uid>/.images`:
 *
 *   <identity>           the content's SHA-256, for a file of that path, size, times and superblock
 *   <fingerprint>.seen   empty: there was an entry of an image of that size and superblock
 *
 *   1. The identity is known: so is the entry. One small file is read for it.
 *   2. Else, if the fingerprint was seen, the file may be a copy of a cached image: its content is read
 *      first.
 *   3. Else it cannot be a copy: it is unpacked at once, and its content is read at the same time.
 *
 * The identity has the time of the inode, which nobody can set: `cp -p` or `rsync -t` over an image changes
 * it. A file that changed less than a clock tick before it was read is not remembered. After the unpack the
 * identity is compared again (create.ts); if it changed, the tree is discarded.
 *
 * The create lock is that of the fingerprint: of jobs that each stage a copy at once, one unpacks.
 *
 * With `create_mode=background` a Prolog does not read the image. With `use_squashfuse=1` a step asks only
 * the index.
 *
 * The index, the lock and the entries belong to one user: a forged index leads only to that user's entries.
 */
import { isSea } from 'node:sea';
import { JobFault } from '../core/faults.ts';
import { entryName, imagesName, seenName } from '../core/layout.ts';
import { asUser, type UserIds } from '../system/as-user.ts';
import {
  inDirectoryOf,
  inIndexOf,
  readSmallFileBeneath,
  statBeneath,
  writeFileBeneath,
} from '../system/beneath.ts';
import { CommandFailed, runBriefly, type Command } from '../system/run-command.ts';
import { findCommandForUsers } from '../system/self.ts';
import { hashContent } from './image-hash.ts';
import { probeSquashfs, type ImageSource, type SquashfsSource } from './image-source.ts';

/** How the entry of an image is found. */
export interface EntryKey {
  /** Of the entry; undefined as long as nobody has read the image. */
  readonly name: string | undefined;
  /** Of the create lock, which is that of all images that might turn out to be the same. */
  readonly lockName: string;
  /** Whether identify() would find the name, or would have to read the image for it. */
  readonly isKnown: () => boolean;
  /** @returns undefined: no entry can be of this image. @throws JobFault */
  readonly identify: (limitMs: number) => Promise<string | undefined>;
}

const contentPattern = /^[0-9a-f]{64}$/;
const longestContentBytes = 128;

/** How the entry of a source is found. */
export function entryKey(user: UserIds, userPath: string, source: ImageSource): EntryKey {
  if (source.kind === 'registry') return keyOfName(entryName(user.uid, source.hash));
  const nameOf = (content: string | undefined): string | undefined =>
    content === undefined ? undefined : entryName(user.uid, hashContent(content));
  const recall = (): string | undefined => recallContent(user, userPath, source);
  const isSeen = (): boolean => wasSeen(user, userPath, source);
  return {
    name: nameOf(recall()),
    lockName: entryName(user.uid, source.fingerprint),
    isKnown: () => recall() !== undefined || isSeen(),
    identify: async (limitMs) =>
      nameOf(recall() ?? (isSeen() ? await readContent(user, userPath, source, limitMs) : undefined)),
  };
}

/** For an entry whose name needs no look at the image. */
export function keyOfName(name: string): EntryKey {
  return { name, lockName: name, isKnown: () => true, identify: () => Promise.resolve(name) };
}

export function recallContent(
  user: UserIds,
  userPath: string,
  { identity }: SquashfsSource,
): string | undefined {
  try {
    const text = inDirectoryOf(user, userPath, (userDirectory) =>
      readSmallFileBeneath(userDirectory, `${imagesName}/${identity}`, longestContentBytes),
    );
    const content = text?.trim() ?? '';
    return contentPattern.test(content) ? content : undefined;
  } catch {
    return undefined;
  }
}

function wasSeen(user: UserIds, userPath: string, { fingerprint }: SquashfsSource): boolean {
  try {
    inDirectoryOf(user, userPath, (userDirectory) =>
      statBeneath(userDirectory, `${imagesName}/${seenName(fingerprint)}`),
    );
    return true;
  } catch {
    return false;
  }
}

/** Of an image that is being made an entry. */
export function rememberContent(
  user: UserIds,
  userPath: string,
  source: SquashfsSource,
  { content, readSinceMs }: FileContent,
): void {
  inIndexOf(user, userPath, imagesName, (index) => {
    writeFileBeneath(index, seenName(source.fingerprint), '', 0o600);
    if (wasStill(source, readSinceMs)) writeFileBeneath(index, source.identity, `${content}\n`, 0o600);
  });
}

/** Filesystems note times by a clock that ticks; some by whole seconds. */
const clockTickMs = 100;
const coarseClockTickMs = 2000;

/** Whether the next change of the file will have another time than the last one had when we began to read. */
function wasStill({ changedAt }: SquashfsSource, readSinceMs: number): boolean {
  const isCoarse = /^\d+(?:\.0*)?$/.test(changedAt);
  return Number(changedAt) * 1000 + (isCoarse ? coarseClockTickMs : clockTickMs) < readSinceMs;
}

export interface FileContent {
  /** SHA-256, hex. */
  readonly content: string;
  /** Since the epoch. */
  readonly readSinceMs: number;
}

/**
 * The content of the file that the source was, which must not have changed meanwhile.
 *
 * @throws JobFault IMAGE_CHANGED, IMAGE_UNREADABLE, CREATE_TIMEOUT
 */
async function readContent(
  user: UserIds,
  userPath: string,
  source: SquashfsSource,
  limitMs: number,
): Promise<string> {
  const file = await hashFile(user, source.path, limitMs);
  const now = await probeSquashfs(user, { kind: 'path', path: source.path });
  if (now.identity !== source.identity)
    throw new JobFault('IMAGE_CHANGED', `Cannot use "${source.path}": it changed while it was read`);
  rememberContent(user, userPath, source, file);
  return file.content;
}

/**
 * Ours reads 1.3 GB/s on one processor with SHA instructions, sha256sum of coreutils 0.3 (b2sum: 0.8). But
 * users may be unable to execute it.
 */
function hashCommand(path: string): Pick<Command, 'file' | 'args'> {
  const self = isSea() ? findCommandForUsers() : undefined;
  if (self !== undefined) return { file: self, args: ['hash-image', path] };
  return { file: 'sha256sum', args: ['--zero', '--', path] };
}

/** Reads a file as its user, in a child: it may be on a filesystem that hangs. @throws JobFault */
export async function hashFile(user: UserIds, path: string, limitMs: number): Promise<FileContent> {
  const readSinceMs = Date.now();
  try {
    const { stdout } = await runBriefly(asUser(user, { ...hashCommand(path), timeoutMs: limitMs }));
    const content = /^[0-9a-f]{64}/.exec(stdout.toString('latin1'))?.[0] ?? '';
    if (contentPattern.test(content)) return { content, readSinceMs };
    throw new JobFault('IMAGE_UNREADABLE', `Cannot read "${path}": its user answered in its stead`);
  } catch (cause) {
    if (!(cause instanceof CommandFailed)) throw cause;
    throw new JobFault(
      cause.timedOut ? 'CREATE_TIMEOUT' : 'IMAGE_UNREADABLE',
      `Cannot read all of "${path}" as the job's user`,
      { cause },
    );
  }
}
