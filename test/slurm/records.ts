/**
 * What Slurm says about jobs and nodes, and the kernel about processes, as values.
 */
import * as fsp from 'node:fs/promises';
import * as path from 'node:path';

/** One line of `scontrol show --oneliner`: its keys as Slurm spells them, e.g. `JobState`. */
export type SlurmRecord = Readonly<Record<string, string>>;

/** The states in which a job stays. COMPLETING is none of them: the Epilog still runs. */
export const FINAL_JOB_STATES: readonly string[] = [
  ...['COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT', 'NODE_FAIL', 'OUT_OF_MEMORY'],
  ...['BOOT_FAIL', 'DEADLINE', 'PREEMPTED'],
];

export interface NodeState {
  /** Base state: IDLE, MIXED, ALLOCATED, DOWN, … */
  readonly base: string;
  /** Flags after the base state: DRAIN, COMPLETING, NOT_RESPONDING, … */
  readonly flags: readonly string[];
  readonly drained: boolean;
  /** Why it is drained or down; undefined otherwise. */
  readonly reason: string | undefined;
}

export interface ClusterProcess {
  /** Inside the cluster, as its own programs see it. */
  readonly pid: number;
  readonly uid: number;
  readonly command: string;
}

/** Lines of `scontrol show --oneliner`. A value may hold spaces, so a key is what looks like one. */
export function parseRecords(text: string): SlurmRecord[] {
  return text
    .split('\n')
    .filter((line) => line.includes('='))
    .map((line) =>
      Object.fromEntries(
        line.split(/ +(?=[A-Z][A-Za-z:/_]*=)/).map((field) => {
          const equals = field.indexOf('=');
          return [field.slice(0, equals), field.slice(equals + 1).trimEnd()];
        }),
      ),
    );
}

export function jobState(record: SlurmRecord): string {
  return record['JobState'] ?? 'UNKNOWN';
}

/** `State=IDLE*+DRAIN`: flags follow the base state after "+", "*" means that slurmd does not answer. */
export function nodeState(record: SlurmRecord): NodeState {
  const [base = '', ...flags] = (record['State'] ?? '').replace('*', '+NOT_RESPONDING').split('+');
  return { base, flags, drained: flags.includes('DRAIN'), reason: record['Reason'] };
}

/** All processes of a /proc, by the name of their program; zombies and kernel threads left out. */
export async function readProcesses(
  procDirectory: string,
): Promise<(ClusterProcess & { program: string })[]> {
  const pids = (await fsp.readdir(procDirectory)).map(Number).filter((pid) => Number.isInteger(pid));
  const processes = await Promise.all(
    pids.map((pid) => readProcess(path.join(procDirectory, String(pid)), pid)),
  );
  return processes.filter((process) => process !== undefined);
}

async function readProcess(
  directory: string,
  pid: number,
): Promise<(ClusterProcess & { program: string }) | undefined> {
  try {
    const program = path.basename(await fsp.readlink(path.join(directory, 'exe')));
    const { uid } = await fsp.stat(directory);
    const command = (await fsp.readFile(path.join(directory, 'cmdline'), 'utf8'))
      .split('\0')
      .join(' ')
      .trim();
    return command === '' ? undefined : { pid, uid, command, program };
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    // Ended while we looked, or a zombie, which has no program any more.
    if (code === 'ENOENT' || code === 'ESRCH') return undefined;
    throw error;
  }
}
