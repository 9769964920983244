/**
 * The slurmd of this node, found among its processes, and by it Slurm's programs and configuration, wherever
 * they are.
 */
import { readFileSync, readlinkSync } from 'node:fs';
import { dirname } from 'node:path';
import { isRoot } from './as-user.ts';
import { unlessErrno } from './errno.ts';
import {
  listProcesses,
  processCommandLine,
  processStartTicks,
  processUid,
  processVariable,
} from './processes.ts';
import { findProgram } from './programs.ts';
import { systemPath } from './run-command.ts';

export interface Slurmd {
  readonly pid: number;
  /** `slurmd -D -f /etc/slurm/slurm.conf` */
  readonly commandLine: string;
  /** The file that it executes, or executed before an upgrade. */
  readonly executable: string | undefined;
}

/**
 * @returns the one that runs longest, since it starts children of its own name; one that sees our mounts
 *   before one in a container; undefined: none of root's runs
 */
export function findSlurmd(): Slurmd | undefined {
  const own = mountNamespace('self');
  const running = listProcesses().flatMap((pid) => {
    // A user can call a process anything, but not run it as root.
    if (processName(pid) !== 'slurmd' || processUid(pid) !== 0) return [];
    const startTicks = processStartTicks(pid);
    return startTicks === undefined
      ? []
      : [{ pid, startTicks: Number(startTicks), isElsewhere: Number(mountNamespace(pid) !== own) }];
  });
  const [oldest] = running.sort(
    (a, b) => a.isElsewhere - b.isElsewhere || a.startTicks - b.startTicks || a.pid - b.pid,
  );
  return oldest === undefined
    ? undefined
    : {
        pid: oldest.pid,
        commandLine: processCommandLine(oldest.pid) ?? '',
        executable: linkOf(oldest.pid, 'exe')?.replace(/ \(deleted\)$/, ''),
      };
}

/** @returns `/opt/slurm` for `/opt/slurm/sbin/slurmd` */
export const slurmPrefix = ({ executable }: Slurmd): string | undefined =>
  executable === undefined ? undefined : dirname(dirname(executable));

/**
 * A program of Slurm: the one beside the slurmd that runs, `/opt/slurm/bin/squeue` for
 * `/opt/slurm/sbin/slurmd`, since another in PATH may be of another version or cluster.
 */
export function findSlurmProgram(name: string, slurmd: Slurmd | undefined): string | undefined {
  const prefix = slurmd && slurmPrefix(slurmd);
  const beside =
    slurmd?.executable === undefined ? [] : [dirname(slurmd.executable), `${prefix}/bin`, `${prefix}/sbin`];
  return findProgram(name, [...beside, systemPath].join(':'));
}

/** @returns what slurmd was told by `-f FILE`, else by its SLURM_CONF */
export function slurmConfOf(slurmd: Slurmd | undefined): string | undefined {
  if (slurmd === undefined) return undefined;
  return (
    /(?:^| )-f *(\/\S+)/.exec(slurmd.commandLine)?.[1] ??
    (isRoot() ? processVariable(slurmd.pid, 'SLURM_CONF') : undefined)
  );
}

function processName(pid: number): string | undefined {
  return unlessErrno(['ENOENT', 'ESRCH'], () => readFileSync(`/proc/${pid}/comm`, 'utf8').trimEnd());
}

const mountNamespace = (pid: number | 'self'): string | undefined => linkOf(pid, 'ns/mnt');

function linkOf(pid: number | 'self', name: string): string | undefined {
  return unlessErrno(['ENOENT', 'ESRCH', 'EACCES', 'EPERM'], () => readlinkSync(`/proc/${pid}/${name}`));
}
