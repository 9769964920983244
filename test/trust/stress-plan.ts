/**
 * What the jobs of the stress test do, decided from a seed and a job's number alone: no outcome and no other job changes it, so
 * the seed brings the schedule of a failure back.
 */
import { Random } from '../helpers/property.ts';

/** How a program is killed. */
export interface KillPlan {
  readonly afterMs: number;
  /** Its process group, as slurmd kills it, or the process alone. */
  readonly group: boolean;
}

export interface StepPlan {
  /** Of which image the container is: the job's own, or another that its Prolog did not see. */
  readonly image: number;
  /** The wrapper with create, start and remove; or `container-cache acquire` alone. */
  readonly by: 'wrapper' | 'acquire';
  /** Kills `create` or `acquire`. */
  readonly kill: KillPlan | undefined;
  /** Kills the process that holds the step's entry. */
  readonly killHolder: boolean;
  /** How long the container runs. */
  readonly runMs: number;
  /** Else nobody removes the container, as when slurmstepd dies. */
  readonly isRemoved: boolean;
}

export interface RunPlan {
  /** Kills of its Prolog, each before another try; `epilog`: whether an Epilog runs in between. */
  readonly prologKills: readonly { readonly kill: KillPlan; readonly epilog: boolean }[];
  readonly steps: readonly StepPlan[];
  /** Kills the holder of the lease before the step of this number. */
  readonly killLeaseBefore: number | undefined;
  /** The user writes something else into the entry's lock file. */
  readonly forgesMetadata: boolean;
  /** Another user's process pretends to be this job's holder. */
  readonly hasForgedHolder: boolean;
  /** `none`: only long after, when its node is idle. */
  readonly epilog: 'once' | 'twice at once' | 'none';
}

export interface JobPlan {
  readonly id: number;
  readonly user: number;
  readonly image: number;
  /** More than one: requeued, with the same job ID. */
  readonly runs: readonly RunPlan[];
}

export interface Workload {
  readonly users: number;
  readonly images: number;
}

/** Until a Prolog of a missing image is through, on a machine that has time. */
const longestProgramMs = 250;

export function planJob(seed: number, id: number, { users, images }: Workload): JobPlan {
  // Seeds one apart, and jobs one apart, must have nothing in common.
  const random = new Random(Math.imul(seed, 0x9e3779b1) ^ Math.imul(id, 0x85ebca6b));
  const user = random.integer(0, users - 1);
  const image = random.integer(0, images - 1);
  const runs = random.integer(1, 12) === 1 ? 2 : 1;
  return {
    id,
    user,
    image,
    runs: Array.from({ length: runs }, () => planRun(random, image, images)),
  };
}

function planRun(random: Random, image: number, images: number): RunPlan {
  const oneIn = (count: number): boolean => random.integer(1, count) === 1;
  const kill = (): KillPlan => ({ afterMs: random.integer(0, longestProgramMs), group: oneIn(2) });
  const prologKills = oneIn(7)
    ? Array.from({ length: random.integer(1, 2) }, () => ({ kill: kill(), epilog: oneIn(2) }))
    : [];
  const steps = Array.from({ length: random.pick([0, 0, 1, 1, 2]) }, (): StepPlan => ({
    image: oneIn(3) ? random.integer(0, images - 1) : image,
    by: oneIn(4) ? 'acquire' : 'wrapper',
    kill: oneIn(8) ? kill() : undefined,
    killHolder: oneIn(12),
    runMs: random.integer(0, 40),
    isRemoved: !oneIn(5),
  }));
  return {
    prologKills,
    steps,
    killLeaseBefore: oneIn(15) ? random.integer(0, 1) : undefined,
    forgesMetadata: oneIn(10),
    hasForgedHolder: oneIn(20),
    epilog: oneIn(14) ? 'twice at once' : oneIn(14) ? 'none' : 'once',
  };
}
