/** Whether an entry still is what was unpacked: the image's listing against the tree's. */
import { closeSync } from 'node:fs';
import { longestEntryMetadataBytes, parseEntryMetadata } from '../lib/core/entry-metadata.ts';
import { describeError } from '../lib/core/faults.ts';
import { parseImage } from '../lib/core/image.ts';
import { entryName, entryPath, lockPath, userPath } from '../lib/core/layout.ts';
import { hashFile, recallContent } from '../lib/image/content.ts';
import { hashContent } from '../lib/image/image-hash.ts';
import { probeSquashfs } from '../lib/image/image-source.ts';
import { holdEntry, markDamaged } from '../lib/store/held-entry.ts';
import { asUser, type UserIds } from '../lib/system/as-user.ts';
import { readStart } from '../lib/system/files.ts';
import { splitLines } from '../lib/system/lines.ts';
import { readMounts } from '../lib/system/mounts.ts';
import { run } from '../lib/system/run-command.ts';
import { findFormat, ListingComparison, type ListingDifference } from './listing.ts';

export type Verification =
  | { readonly result: 'same'; readonly files: number }
  | ({ readonly result: 'different' } & ListingDifference)
  /** Its image is not there to compare with. */
  | { readonly result: 'unknown'; readonly reason: string };

const listLimitMs = 30 * 60_000;

/**
 * Both are read as the entry's user; the entry is held meanwhile.
 *
 * @param image as the entry says it is called: a claim, but its hash must be that in the entry's name
 */
export async function verifyEntry(
  basePath: string,
  user: UserIds,
  name: string,
  image: string | undefined,
): Promise<Verification> {
  if (image === undefined) return { result: 'unknown', reason: 'its lock file does not name its image' };
  const path = entryPath(basePath, user.uid, name);
  try {
    const wanted = parseImage(image, undefined);
    if (wanted.kind === 'registry')
      return {
        result: 'unknown',
        reason:
          'its image comes from a registry, so there is no file to compare with; `rm` it, and the next job unpacks it again',
      };
    const source = await probeSquashfs(user, wanted);
    const content =
      recallContent(user, userPath(basePath, user.uid), source) ??
      (await hashFile(user, source.path, listLimitMs)).content;
    if (entryName(user.uid, hashContent(content)) !== name)
      return { result: 'unknown', reason: `"${image}" has changed since` };
    const held = await holdEntry(user, path, name, readMounts(), () => true);
    if (held === undefined)
      return {
        result: 'unknown',
        reason: 'somebody deleted it meanwhile, or it is from before the last boot',
      };
    try {
      return await compare(user, source.path, path);
    } finally {
      closeSync(held.fd);
    }
  } catch (error) {
    return { result: 'unknown', reason: describeError(error) };
  }
}

/**
 * Counts the files of an entry, and has it made anew if there are fewer than were unpacked: a program that
 * deletes old files may have been there. Cheaper than a comparison, and good for images of a registry, too.
 *
 * @returns what is missing, as a sentence; undefined: nothing, or it could not be found out
 */
export async function countEntry(basePath: string, user: UserIds, name: string): Promise<string | undefined> {
  const path = entryPath(basePath, user.uid, name);
  const held = await holdEntry(user, path, name, readMounts());
  if (held === undefined) return undefined;
  try {
    const metadata = parseEntryMetadata(readStart(held.fd, longestEntryMetadataBytes).toString('utf8'));
    if (metadata === undefined || metadata.inodes === 0) return undefined;
    const found = await countInodes(user, path);
    if (found >= metadata.inodes) return undefined;
    markDamaged(user, path);
    return `${metadata.inodes - found} of ${metadata.inodes} files and directories are missing`;
  } finally {
    closeSync(held.fd);
  }
}

/**
 * As they were counted when it was unpacked (unpack.ts): hard links once; without our lock file, which came
 * later.
 */
async function countInodes(user: UserIds, path: string): Promise<number> {
  const linked = new Set<string>();
  let inodes = 0;
  const lines = splitLines((line) => {
    if (line === '') inodes++;
    else linked.add(line);
  }, 'latin1');
  const links = ['!', '-type', 'd', '-links', '+1', '-printf', '%i\\n'];
  await run(
    asUser(user, {
      file: 'find',
      args: [path, '-path', lockPath(path), '-o', ...links, '-o', '-printf', '\\n'],
      timeoutMs: listLimitMs,
      onStdout: lines.add,
    }),
  );
  return inodes + linked.size;
}

async function compare(user: UserIds, imagePath: string, path: string): Promise<Verification> {
  const comparison = new ListingComparison();
  const list = async (file: string, args: readonly string[], add: (line: string) => void): Promise<void> => {
    const lines = splitLines(add, 'latin1');
    await run(asUser(user, { file, args, timeoutMs: listLimitMs, onStdout: lines.add }));
    lines.end();
  };
  const links = ['-type', 'l', '-printf', findFormat.link];
  await Promise.all([
    list('unsquashfs', ['-lln', imagePath], (line) => {
      comparison.addOfImage(line);
    }),
    list('find', [path, '-mindepth', '1', ...links, '-o', '-printf', findFormat.other], (line) => {
      comparison.addOfTree(line);
    }),
  ]);
  const difference = comparison.difference();
  return difference.missing.length + difference.extra.length === 0
    ? { result: 'same', files: comparison.files }
    : { result: 'different', ...difference };
}
