/**
 * The start of a child that runs as a user: of what it starts, nothing outlives it.
 *
 * What runs as a user may do anything that user likes: enroot executes what their credentials file says, and
 * a process of theirs can trace it and run code in it. So the child is the first process of a PID namespace:
 * when it ends, or is killed, the kernel kills all others there, be they stopped, of a session of their own,
 * or orphans (pid_namespaces(7)). It is no daemon of Slurm's either: it has limits, and slurmd's protection
 * from the kernel's out-of-memory killer is not for it.
 *
 * Where the kernel refuses (no CAP_SYS_ADMIN, no addon), the child starts without: a time limit then ends it
 * alone.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { unlessErrno } from './errno.ts';
import { findBeneath } from './native-addon.ts';

const ownAdjustment = '/proc/self/oom_score_adj';

/**
 * @param start forks at once, in this thread
 * @param fileBytes how large the files may be that the child writes; 0: as large as ours
 */
export function startConfined<T>(start: () => T, fileBytes: number): T {
  const addon = findBeneath();
  const adjustment = protectionFromOom();
  if (adjustment !== undefined) adjust('0');
  try {
    addon?.beginConfined(fileBytes);
    return start();
  } finally {
    addon?.endConfined();
    if (adjustment !== undefined) adjust(adjustment);
  }
}

function adjust(value: string): void {
  try {
    writeFileSync(ownAdjustment, value);
  } catch {
    // To lower it needs CAP_SYS_RESOURCE: then the last part of a Prolog goes without the protection.
  }
}

/** @returns ours, where it protects us more than others */
function protectionFromOom(): string | undefined {
  const adjustment = unlessErrno(['ENOENT', 'EACCES'], () => readFileSync(ownAdjustment, 'latin1').trim());
  return adjustment?.startsWith('-') === true ? adjustment : undefined;
}
