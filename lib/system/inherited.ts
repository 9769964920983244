/** What a process gets from whoever started it, and must not keep. */
import { closeSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import process from 'node:process';
import { dropGroups } from './as-user.ts';
import { errnoOf, isGone, unlessErrno } from './errno.ts';

/**
 * Node itself settles these at its start, and those after them up to the first gap (libuv,
 * uv_disable_stdio_inheritance).
 */
const lastSettledDescriptor = 15;
/** O_CLOEXEC of open(2), as fdinfo shows it (proc_pid_fdinfo(5)). */
const closeOnExec = 0o2000000;

/**
 * Settles what is inherited, before anything is started or made.
 *
 * Descriptors beyond the standard ones: a holder would keep them open for the whole job, and whoever waits
 * for the end of such a pipe would wait as long. What the runtime itself has opened closes on exec, what was
 * handed to us does not. The mask of file modes and the supplementary groups: slurmd's or an admin's may be
 * anything.
 */
export function settleInheritance(): void {
  process.umask(0o022);
  dropGroups();
  for (const name of ownDescriptors()) {
    const fd = Number(name);
    if (fd <= lastSettledDescriptor) continue;
    // The one that read the directory is gone.
    const info = unlessErrno(isGone, () => readFileSync(`/proc/self/fdinfo/${name}`, 'latin1'));
    const flags = /^flags:\s+(\d+)$/m.exec(info ?? '')?.[1];
    if (flags !== undefined && (Number.parseInt(flags, 8) & closeOnExec) === 0) closeSync(fd);
  }
}

function ownDescriptors(): string[] {
  try {
    return readdirSync('/proc/self/fd');
  } catch {
    // Where /proc does not answer, the job has its Prolog all the same.
    return [];
  }
}

/** slurmd is exempt from the OOM killer and its children inherit that; what works for users must not be. */
export function makeKillable(pid: number): void {
  const file = `/proc/${pid}/oom_score_adj`;
  try {
    if (Number(readFileSync(file, 'latin1')) < 0) writeFileSync(file, '0');
  } catch (error) {
    if (!['ENOENT', 'ESRCH', 'EACCES'].includes(errnoOf(error) ?? '')) throw error;
  }
}
