/**
 * What the jobs of the stress test do, decided from a seed and a job's number alone: no outcome and no other
 * job changes it, so the seed brings the schedule of a failure back.
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

/** scancel, that long after the start of a program. */
export interface CancelPlan {
  readonly afterMs: number;
}

/** A container of the user's own (`--container-name`), which stays when the job is over. */
export interface NamedPlan {
  readonly image: number;
  /** What is done with it if it is there; else it is made. */
  readonly action: 'use' | 'remove';
  /** The Prolog is told of it, and so does nothing; there are no other steps. */
  readonly isJobs: boolean;
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
  /** scancel during the Prolog; its unpack, if there is one, takes as long as that of a large image. */
  readonly cancelProlog: CancelPlan | undefined;
  /** scancel during the step of that number, which kills all that runs of it. */
  readonly cancelStep: (CancelPlan & { readonly number: number }) | undefined;
  readonly named: NamedPlan | undefined;
}

/** What the hostile user does, and when; which trick it is the seed decides (hostile-tricks.ts). */
export interface TrickPlan {
  readonly during: 'before' | 'prolog' | 'steps' | 'epilog';
  readonly afterMs: number;
  readonly seed: number;
}

export interface HostilePlan {
  readonly tricks: readonly TrickPlan[];
  /**
   * A system call of root below the user's directory that fails, and how: numbers of tables
   * (error-points.ts).
   */
  readonly failure:
    { readonly of: 'prolog' | 'epilog'; readonly point: number; readonly error: number } | undefined;
  /** Then something that is no image. */
  readonly oddImage: number | undefined;
  /** The wrapper and acquire are run with an environment that lies. */
  readonly liesSeed: number;
}

export interface JobPlan {
  readonly id: number;
  /** Of an honest job; the hostile user is none of them. */
  readonly user: number;
  readonly image: number;
  readonly hostile: HostilePlan | undefined;
  /** More than one: requeued, with the same job ID. */
  readonly runs: readonly RunPlan[];
}

interface Workload {
  readonly users: number;
  readonly images: number;
}

/** Until a Prolog of a missing image is through, on a machine that has time. */
const longestProgramMs = 250;
/** A Prolog asks slurmctld after two seconds whether its job is over. */
const longestBeforeCancelMs = 3000;
/** Every so many jobs one is the hostile user's. */
const jobsPerHostile = 6;

export function planJob(seed: number, id: number, { users, images }: Workload): JobPlan {
  // Seeds one apart, and jobs one apart, must have nothing in common.
  const random = new Random(Math.imul(seed, 0x9e3779b1) ^ Math.imul(id, 0x85ebca6b));
  const user = random.integer(0, users - 1);
  const image = random.integer(0, images - 1);
  const runs = random.integer(1, 12) === 1 ? 2 : 1;
  if (random.integer(1, jobsPerHostile) === 1)
    return { id, user, image, hostile: planHostile(random), runs: [] };
  return {
    id,
    user,
    image,
    hostile: undefined,
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
    cancelProlog: oneIn(25) ? { afterMs: random.integer(0, longestBeforeCancelMs) } : undefined,
    cancelStep: oneIn(10)
      ? { number: random.integer(0, 1), afterMs: random.integer(0, longestProgramMs) }
      : undefined,
    named: oneIn(7)
      ? {
          image: random.integer(0, Math.min(largestNamed, images - 1)),
          action: random.pick<NamedPlan['action']>(['use', 'remove']),
          isJobs: oneIn(3),
        }
      : undefined,
  };
}

/** Named containers stay, and so must be of the small images. */
const largestNamed = 2;
const longestTrickMs = { before: 0, prolog: 400, steps: 100, epilog: 150 } as const;

function planHostile(random: Random): HostilePlan {
  const oneIn = (count: number): boolean => random.integer(1, count) === 1;
  const number = (): number => random.integer(0, 2 ** 31);
  const tricks = Array.from({ length: random.integer(1, 6) }, (): TrickPlan => {
    const during = random.pick<TrickPlan['during']>([
      'before',
      'before',
      'prolog',
      'prolog',
      'steps',
      'epilog',
    ]);
    return { during, afterMs: random.integer(0, longestTrickMs[during]), seed: number() };
  });
  return {
    tricks,
    failure: oneIn(2)
      ? { of: random.pick<'prolog' | 'epilog'>(['prolog', 'epilog']), point: number(), error: number() }
      : undefined,
    oddImage: oneIn(8) ? number() : undefined,
    liesSeed: number(),
  };
}
