/** Two Slurms that run containers, alike but for the cache, and how times are taken inside. */
import { USER, type ContainerCluster } from '../test/slurm/containers.ts';

export interface Pair {
  readonly cached: ContainerCluster;
  readonly stock: ContainerCluster;
  /** With the cache, but without PrologFlags=Alloc. */
  readonly startUnallocated: () => Promise<ContainerCluster>;
  readonly imagePath: string;
  /** Of a few files, which may be unpacked many times. */
  readonly tinyImagePath: string;
  /** On the disk to be measured. */
  readonly directory: string;
}

const runTimeoutMs = 600_000;

/** Runs a script of bash(1) as the user; its last line is a number of microseconds. @returns milliseconds */
export async function timeInside({ cluster }: ContainerCluster, script: string): Promise<number> {
  const { exitCode, stdout, stderr } = await cluster.run(USER, ['bash', '-ec', script], {
    timeoutMs: runTimeoutMs,
  });
  const microseconds = Number(stdout.trimEnd().split('\n').at(-1));
  if (exitCode !== 0 || !Number.isFinite(microseconds))
    throw new Error(`Cannot measure "${script}": exit code ${String(exitCode)}: ${stdout}${stderr}`);
  await cluster.waitForNodeIdle();
  return microseconds / 1000;
}

/** A script that prints how long a command takes. */
export const timed = (command: string): string =>
  `started=\${EPOCHREALTIME/./}; ${command}; ended=\${EPOCHREALTIME/./}; echo $((ended - started))`;

export const srun = (imagePath: string, command: string): string =>
  `srun --container-image=${imagePath} ${command}`;
