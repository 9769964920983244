/** States of a job, as squeue(1) names them. */

/**
 * States after which nobody wants the job's Prolog to go on. Of what a later Slurm may add, nothing is known:
 * the Prolog goes on.
 */
const overStates = [
  ...(['COMPLETING', 'COMPLETED', 'CANCELLED', 'FAILED', 'TIMEOUT', 'PREEMPTED', 'NODE_FAIL'] as const),
  ...(['BOOT_FAIL', 'DEADLINE', 'OUT_OF_MEMORY', 'REVOKED'] as const),
  ...(['REQUEUED', 'REQUEUE_FED', 'REQUEUE_HOLD', 'SPECIAL_EXIT'] as const),
];

/** For squeue(1): a job's own number, also of a task of an array or a part of a het job, and its state. */
export const jobStateFormat = '%A %T';

/**
 * @param answer of squeue in `jobStateFormat`: it may also have the other tasks of an array
 * @returns the state if the job is over; undefined: it is not, or the answer does not say
 */
export function findOverState(answer: string, jobId: number): string | undefined {
  for (const line of answer.split('\n')) {
    const [id, state] = line.trim().split(/\s+/);
    if (id === String(jobId)) return overStates.find((over) => over === state);
  }
  return undefined;
}
