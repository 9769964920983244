/**
 * Names for what is not complete yet, or there for a moment only: `.<name>.<pid>-<start time>-<count>.aside`.
 *
 * They tell who is at work, so that what a crash left is told at once from what is under way: its process is
 * gone.
 */
import {
  closeSync,
  constants,
  fchmodSync,
  fchownSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import process from 'node:process';
import { isGone, unlessErrno } from './errno.ts';
import { processStartTicks, processUid } from './processes.ts';

const asidePattern = /^\..+\.(\d{1,10})-(\d{1,20})-\d+\.aside$/;

let count = 0;

/** @returns a path beside `path` that no other process takes */
export function asidePath(path: string): string {
  return `${dirname(path)}/${asideName(basename(path))}`;
}

/** @returns a name beside `name` that no other process takes */
export function asideName(name: string): string {
  count++;
  const owner = `${process.pid}-${processStartTicks(process.pid) ?? '0'}-${count}`;
  return `.${name}.${owner}.aside`;
}

/**
 * Those of the names whose process is gone. Of a user's process there is no asking for its start
 * (processes.ts): it is taken for the one.
 */
export function abandonedAsides(names: readonly string[]): string[] {
  return names.filter((name) => {
    const [, pid, startTicks] = asidePattern.exec(name) ?? [];
    if (pid === undefined) return false;
    const uid = processUid(Number(pid));
    return uid === undefined || (uid === 0 && processStartTicks(Number(pid)) !== startTicks);
  });
}

/** Removes what crashes left aside in a directory that only root can change. */
export function sweepAsides(path: string): void {
  const names = unlessErrno(isGone, () => readdirSync(path)) ?? [];
  for (const name of abandonedAsides(names)) rmSync(join(path, name), { recursive: true, force: true });
}

interface FileOwner {
  readonly mode: number;
  readonly gid?: number;
}

/** Replaces a file at once: a reader sees the old text or the new, never a part. */
export function writeFileAtomically(path: string, text: string, owner: FileOwner): void {
  const aside = asidePath(path);
  // The directory is root's, or the acting user's, who could only be in their own way.
  const fd = openSync(
    aside,
    constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW,
    0o600,
  );
  try {
    try {
      writeFileSync(fd, text);
      if (owner.gid !== undefined) fchownSync(fd, -1, owner.gid);
      fchmodSync(fd, owner.mode);
    } finally {
      closeSync(fd);
    }
    renameSync(aside, path);
  } catch (error) {
    rmSync(aside, { force: true });
    throw error;
  }
}
