/**
 * Names for what is not complete yet, or there for a moment only: `.<name>.<pid>-<start time>-<count>.aside`.
 *
 * They tell who is at work, so that what a crash left is told at once from what is under way: its process is gone.
 */
import { readdirSync, rmSync } from 'node:fs';
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

/** Those of the names whose process is gone. Of a user's process there is no asking for its start (processes.ts): it is taken for the one. */
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
