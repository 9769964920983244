/**
 * Many jobs of many users on one node that is too small for them, with kills, scancel, requeues, named
 * containers, a hostile user and a collector that is always at work; and a model that knows which entries
 * must be there. The jobs are those of stress-plan.ts; they run in lanes, job after job in each. Every disk
 * is a trouble of its own:
 *
 *   starving  always above the high watermark: everything always has to go
 *   small     takes a third of what is used
 *   quota     is large; each user's directory may take part of what the user's jobs use
 *   shared    as small, and somebody else fills it, and frees it, all the time
 *
 * Asserted after every step of any lane, for every job that is between its Prolog and its Epilog (numbers of
 * DESIGN.md):
 *
 *   I1   an entry that has its name is complete: its listing and content are the image's
 *   I2   what a job or a step holds is at its path, and the inode there is the one that its holder has open;
 *        I3 and I4 as well
 *   I5   no entry is unpacked twice at once, and none that is there
 *   I6   after the Epilog nothing holds for the job, and no holder of another job has ended
 *   I8   a container starts, whatever fails
 *   I16  no exit code is other than 0, with on_failure=fail
 *   I19  after the Epilog none of the job's stubs, holders, partial directories, records, files and processes
 *        is left, also if the job was cancelled
 *
 * and (the words of a violation in brackets):
 *
 *   [cancel]  a cancelled job's Prolog ends, and does not go on unpacking
 *   [named]   a named container stays as its user left it, until the user removes it
 *   [quota]   while a user has no job, none of the user's entries is evicted; and a job that is alone gets
 *             its entry, whatever the quota
 *   [room]    where there is room for it, no job lacks it
 *   [hostile] the hostile user (hostile-tricks.ts) changes nothing of root and of other users, and is in none
 *             of their lines; only lines about the hostile user tell of trouble with a directory. Of others'
 *             jobs the same is asserted as without
 *   [vain]    on the idle node: where other files fill the disk so that nothing would help, nothing is
 *             evicted; otherwise the cache gives way
 *
 * and whenever the node is idle, that a collector leaves nothing: no lease, holder, partial directory, lock
 * file, trash (I18), and no entry either if it has to evict all (I14: whatever the metadata says).
 *
 * A lease or holder that the test itself killed protects nothing any more; from then on only I1 is asked of
 * its entry.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { formatEntryMetadata } from '../../lib/core/entry-metadata.ts';
import {
  createLockName,
  directoryName,
  holderVariable,
  imagesName,
  lockFileName,
  parseStubDirectoryName,
} from '../../lib/core/layout.ts';
import { readLease } from '../../lib/store/lease.ts';
import { blocksUsedPercent } from '../../lib/core/gc-plan.ts';
import { bootId } from '../../lib/system/boot.ts';
import { processUid } from '../../lib/system/processes.ts';
import { withUserIds } from '../../lib/system/as-user.ts';
import { readUsage } from '../../lib/system/disk-usage.ts';
import {
  holders,
  holds,
  isAlive,
  kill,
  lockFileOf,
  parseLog,
  processes,
  TestNode,
  until,
  type ProgramResult,
  nameOf,
  programPath,
} from '../helpers/node.ts';
import { Random } from '../helpers/property.ts';
import {
  addUsers,
  bob,
  command,
  homeOf,
  machineRoot,
  mount,
  umount,
  type TestUser,
} from '../helpers/private-machine.ts';
import { installWrapper, type InstalledWrapper } from '../helpers/wrapper.ts';
import { HostileUser, hostileUser } from './stress-hostile.ts';
import { ifThere, inodeOf, kibibytesOf, listingOf, makeStressImage, type Image } from './stress-images.ts';
import {
  planJob,
  type CancelPlan,
  type JobPlan,
  type KillPlan,
  type NamedPlan,
  type RunPlan,
  type StepPlan,
} from './stress-plan.ts';
import { enrootStandIn, replaceSqueue, replaceUnsquashfs, watchDirectories } from './stress-stand-ins.ts';
import { Untouched } from './untouched.ts';
import { startAsUser, type UserProgram, type UserResult } from './user-program.ts';

export const disks = ['starving', 'small', 'quota', 'shared'] as const;
type Disk = (typeof disks)[number];

export interface StressOptions {
  readonly seed: number;
  readonly jobs: number;
  /** Of the first job; a failure can be had again without the jobs before it. */
  readonly firstJob?: number;
  readonly lanes: number;
  readonly users: number;
  readonly images: number;
  readonly disk: Disk;
  readonly tell?: (line: string) => void;
  /** Asked before each job; jobs not begun when it says so are not run. */
  readonly isOver?: () => boolean;
}

interface StressReport {
  jobs: number;
  runs: number;
  steps: number;
  created: number;
  reused: number;
  waited: number;
  noSpace: number;
  quotaExceeded: number;
  cancelledPrologs: number;
  cancelledSteps: number;
  /** From scancel, or when the Prolog first asks, until it has ended. */
  slowestCancelMs: number;
  named: number;
  hostileJobs: number;
  tricks: number;
  /** By the kernel, or there was nothing to play them to. */
  tricksRefused: number;
  /** System calls below the hostile user's directory that were made to fail. */
  failedCalls: number;
  /** Looks at what a disk that others fill does to the idle cache: in vain, and not. */
  vainLooks: number;
  yieldLooks: number;
  stubs: number;
  /** Steps that the real enroot served. */
  stoodAside: number;
  unpacks: number;
  evictions: number;
  killedPrologs: number;
  killedAcquires: number;
  killedCollectors: number;
  killedHolders: number;
  checks: number;
  seconds: number;
  readonly violations: string[];
}

/** More would be of one cause. */
const mostViolations = 20;
/** Jobs of each lane between two looks at the idle node. */
const jobsPerRound = 25;
const programLimitMs = 300_000;
/** The Prolog's first question to slurmctld comes by then. */
const firstQuestionMs = 2500;
/** Three seconds between questions, and what a machine takes whose processors are all busy. */
const longestCancelMs = 60_000;
/** Until what was killed has ended, 100 ms each. */
const mostLooks = 100;
/** Between what du(1) counts and what the filesystem does. */
const marginPercent = 3;
/** The index of images, the create lock, the lock file. */
const roomForFilesKibibytes = 64;
/** No other job has it. */
const idleJobId = 999_999_999;

interface Held {
  readonly jobId: number;
  readonly user: TestUser;
  readonly entry: string;
  readonly inode: number;
  readonly holder: number;
  /** A lease has a record. */
  readonly isLease: boolean;
}

interface World {
  readonly sizeKibibytes: number;
  /** Of each user's directory. */
  readonly quotaKibibytes: number | undefined;
  readonly settings: Readonly<Record<string, number>>;
}

/**
 * Of each image every user can have an entry, with a page for each file: together far above the high
 * watermark of a small disk.
 */
function worldOf({ users, images, lanes, disk }: StressOptions): World {
  const imagesKibibytes = 4 * images * (9 + 3.5 * (images - 1));
  // Named containers, and what the hostile user can keep in use.
  const besideKibibytes = 1024;
  const smallKibibytes = Math.ceil(users * imagesKibibytes * 0.9) + 256 + besideKibibytes;
  const watermarks = (high: number, low: number): World['settings'] => ({
    container_cache_gc_high: high,
    container_cache_gc_low: low,
  });
  switch (disk) {
    case 'starving':
      return { sizeKibibytes: 12_288, quotaKibibytes: undefined, settings: watermarks(1, 0) };
    case 'small':
      return { sizeKibibytes: smallKibibytes, quotaKibibytes: undefined, settings: watermarks(60, 40) };
    case 'shared':
      return { sizeKibibytes: smallKibibytes, quotaKibibytes: undefined, settings: watermarks(85, 80) };
    case 'quota':
      return {
        sizeKibibytes: 4 * (users + 1) * imagesKibibytes + 8192,
        // The largest image, a named container of each lane, stubs and what is noted of images must have
        // room.
        quotaKibibytes: Math.ceil(imagesKibibytes * 0.15) + 4 * (7 * images + 5) + 68 * lanes + 128,
        settings: watermarks(100, 99),
      };
  }
}

/** @returns what happened; violations are in it, and nothing is thrown for them */
export async function runStress(options: StressOptions): Promise<StressReport> {
  const startedAtMs = performance.now();
  const disk = mkdtempSync(join(machineRoot, 'small-'));
  const world = worldOf(options);
  mount('--types', 'tmpfs', '--options', `mode=0755,size=${world.sizeKibibytes}k`, 'tmpfs', disk);
  try {
    await using node = await TestNode.start({ basePath: disk, programLimitMs });
    const stress = new Stress(node, options);
    node.configure({
      ...world.settings,
      gc_min_age: 0,
      on_failure: 'fail',
      ...stress.wrapper.settings,
    });
    // So that there is something of which it has too much, also when all entries are gone.
    writeFileSync(join(disk, 'ballast'), Buffer.alloc(128 * 1024));
    const { watchPath } = stress;
    using _ = replaceUnsquashfs({ basePath: disk, watchPath, quotaKibibytes: world.quotaKibibytes });
    using _squeue = replaceSqueue(watchDirectories(watchPath).over);
    await stress.run();
    stress.report.seconds = Math.round((performance.now() - startedAtMs) / 1000);
    return stress.report;
  } finally {
    umount(disk);
  }
}

/** How many jobs of a user there are, and whether there was another one meanwhile. */
class Presence {
  readonly #jobs = new Map<number, number>();
  readonly #overlaps = new Map<number, number>();

  /** @returns how many there are with it */
  begin({ uid }: TestUser): number {
    const jobs = (this.#jobs.get(uid) ?? 0) + 1;
    this.#jobs.set(uid, jobs);
    if (jobs > 1) this.#overlaps.set(uid, this.overlaps({ uid }) + 1);
    return jobs;
  }

  /** @returns how many are left */
  end({ uid }: TestUser): number {
    const jobs = (this.#jobs.get(uid) ?? 0) - 1;
    this.#jobs.set(uid, jobs);
    return jobs;
  }

  isAlone = ({ uid }: TestUser): boolean => this.#jobs.get(uid) === 1;

  overlaps = ({ uid }: Pick<TestUser, 'uid'>): number => this.#overlaps.get(uid) ?? 0;
}

interface NamedContainer {
  readonly inode: number;
  readonly listing: string;
}

class Stress {
  readonly wrapper: InstalledWrapper;
  readonly watchPath: string;
  readonly report: StressReport = {
    jobs: 0,
    runs: 0,
    steps: 0,
    created: 0,
    reused: 0,
    waited: 0,
    noSpace: 0,
    quotaExceeded: 0,
    cancelledPrologs: 0,
    cancelledSteps: 0,
    slowestCancelMs: 0,
    named: 0,
    hostileJobs: 0,
    tricks: 0,
    tricksRefused: 0,
    failedCalls: 0,
    vainLooks: 0,
    yieldLooks: 0,
    stubs: 0,
    stoodAside: 0,
    unpacks: 0,
    evictions: 0,
    killedPrologs: 0,
    killedAcquires: 0,
    killedCollectors: 0,
    killedHolders: 0,
    checks: 0,
    seconds: 0,
    violations: [],
  };

  readonly #node: TestNode;
  readonly #options: StressOptions;
  readonly #users: readonly TestUser[];
  readonly #images: readonly Image[];
  readonly #held = new Set<Held>();
  /** Jobs whose Epilog is still to come, when the node is idle. */
  readonly #withoutEpilog: { id: number; user: TestUser }[] = [];
  readonly #presence = new Presence();
  /** Of a user without a job: what must be there when the next one begins. */
  readonly #entriesAtRest = new Map<number, readonly string[]>();
  /** Users of whose jobs somebody was killed that may have asked for room. */
  readonly #isUnsettled = new Set<number>();
  readonly #named = new Map<string, NamedContainer>();
  /** Programs of steps, by job. */
  readonly #running = new Map<number, Set<number>>();
  readonly #cancelled = new Set<number>();
  readonly #hostile: HostileUser;
  readonly #untouched: Untouched;
  readonly #watch: ReturnType<typeof watchDirectories>;
  /** When somebody who might have been unpacking for this uid was killed. */
  readonly #killedAtMs = new Map<string, number>();
  #watchedBytes = 0;
  #isIdle = false;

  constructor(node: TestNode, options: StressOptions) {
    this.#node = node;
    this.#options = options;
    this.#users = addUsers(options.users);
    this.#images = Array.from({ length: options.images }, (_, index) => makeStressImage(node, index));
    this.wrapper = installWrapper(node, enrootStandIn(node.basePath));
    this.watchPath = join(node.root, 'watch');
    this.#watch = watchDirectories(this.watchPath);
    for (const path of [this.watchPath, ...Object.values(this.#watch)]) mkdirSync(path);
    for (const { path, kibibytes } of this.#images)
      writeFileSync(join(this.#watch.need, basename(path)), `${kibibytes}\n`);
    writeFileSync(join(this.watchPath, 'log'), '');
    for (const path of [this.watchPath, join(this.watchPath, 'log')]) chmodSync(path, 0o777);
    const precious = makePrecious(node);
    this.#untouched = new Untouched(precious);
    this.#hostile = new HostileUser({
      node,
      wrapperPath: this.wrapper.path,
      overPath: this.#watch.over,
      judge: {
        expect: (...parameters) => {
          this.#expect(...parameters);
        },
        checkLines: (result, where) => {
          this.#checkLines(result, where, true);
        },
      },
      aims: () => ({
        paths: [...precious, ...this.#users.map((user) => node.userPath(user)), node.basePath],
        jobs: [...this.#held].map(({ user, ...held }) => ({ ...held, uid: user.uid })),
      }),
    });
  }

  async run(): Promise<void> {
    const { lanes, jobs, firstJob = 1 } = this.#options;
    for (let from = firstJob; from < firstJob + jobs && !this.#isOver(); from += lanes * jobsPerRound) {
      const to = Math.min(from + lanes * jobsPerRound, firstJob + jobs);
      this.#isIdle = false;
      const beside = [this.#collect(from), this.#writeForeign(from)];
      await Promise.all(
        Array.from({ length: lanes }, async (_, lane) => {
          for (let id = from + lane; id < to && !this.#isOver(); id += lanes)
            await this.#runJob(planJob(this.#options.seed, id, this.#options));
        }),
      );
      this.#isIdle = true;
      await Promise.all(beside);
      await this.#checkIdle(to);
      this.#options.tell?.(
        `${this.#options.disk}: ${to - firstJob} jobs, ${this.report.violations.length} violations`,
      );
    }
  }

  #isOver(): boolean {
    return this.report.violations.length >= mostViolations || this.#options.isOver?.() === true;
  }

  #violation(where: string, text: string): void {
    if (this.report.violations.length >= mostViolations) return;
    this.report.violations.push(`${where}: ${text}`);
    this.#options.tell?.(`${where}: ${text}`);
  }

  #expect(holdsTrue: boolean, where: string, text: string): void {
    this.report.checks++;
    if (!holdsTrue) this.#violation(where, text);
  }

  /** The collector that is at work all the time, but for when it was just killed. */
  async #collect(round: number): Promise<void> {
    const random = new Random(this.#options.seed ^ round);
    while (!this.#isIdle) {
      const collector = this.#node.startGc(...(random.integer(0, 3) === 0 ? ['--background'] : []));
      const isKilled = random.integer(1, 6) === 1;
      const killing = isKilled
        ? killLater(collector.pid, { afterMs: random.integer(0, 400), group: true })
        : undefined;
      const result = await collector.result;
      await killing;
      if (result.signal === 'SIGKILL') this.report.killedCollectors++;
      else this.#checkCollector(result);
      this.#checkAll('collector');
      await sleep(random.integer(0, 600));
    }
  }

  #checkCollector(result: ProgramResult): void {
    const { exitCode, signal, stderr } = result;
    this.#checkLines(result, 'collector');
    this.#expect(exitCode === 0 || exitCode === 1, 'collector', `exit code ${exitCode} ${signal}: ${stderr}`);
  }

  /** Who has trouble is the hostile user, and their trouble is nobody else's. */
  #checkLines({ lines }: ProgramResult, where: string, isTheirs = false): void {
    const hostile = String(hostileUser.uid);
    const mention = new RegExp(`u${hostile}_|/${hostile}\\b|uid=${hostile}`);
    this.report.evictions += lines.filter(({ word }) => word === 'gc-evicted').length;
    for (const { word, fields } of lines) {
      const text = `${word} ${JSON.stringify(fields)}`;
      const isTrouble = ['gc-kept', 'gc-trash', 'user-skipped', 'user-budget'].includes(word);
      if (isTrouble)
        this.#expect(fields['uid'] === hostile, where, `[hostile] trouble with an honest user: ${text}`);
      if (!isTheirs && mention.test(text))
        this.#expect(fields['uid'] === hostile, where, `[hostile] is in another's line: ${text}`);
    }
  }

  /** Somebody who is none of ours fills the disk and frees it again. */
  async #writeForeign(round: number): Promise<void> {
    if (this.#options.disk !== 'shared') return;
    const random = new Random(this.#options.seed ^ round ^ 0x5bd1e995);
    const files = ['foreign-0', 'foreign-1'].map((name) => join(this.#node.basePath, name));
    while (!this.#isIdle) {
      this.#fill(random.pick(files as [string, string]), random.pick([0, 0.3, 0.6, 0.9, 0.97, 1.2]));
      await sleep(random.integer(50, 800));
    }
    for (const file of files) rmSync(file, { force: true });
  }

  /** @param share of what is free without it */
  #fill(file: string, share: number): void {
    rmSync(file, { force: true });
    const bytes = Math.floor(readUsage(this.#node.basePath).availableBytes * share);
    try {
      writeFileSync(file, Buffer.alloc(bytes));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
    }
  }

  async #runJob(plan: JobPlan): Promise<void> {
    try {
      if (plan.hostile !== undefined) {
        this.report.hostileJobs++;
        await this.#hostile.runJob(plan.id, plan.hostile, this.#images[plan.image]!.path);
        Object.assign(this.report, this.#hostile.counts);
        this.#checkUntouched(`job ${plan.id} of the hostile user`);
        this.#checkAll(`job ${plan.id} of the hostile user`);
      }
      for (const [index, run] of plan.runs.entries()) {
        this.report.runs++;
        await this.#runOnce(plan, run, `job ${plan.id} run ${index + 1}`);
      }
    } catch (error) {
      this.#violation(`job ${plan.id}`, `the test itself failed: ${(error as Error).stack}`);
    }
    this.report.jobs++;
  }

  #checkUntouched(where: string): void {
    const changes = this.#untouched.changes();
    this.#expect(changes.length === 0, where, `[hostile] changed what is others': ${changes.join('; ')}`);
  }

  async #runOnce(plan: JobPlan, run: RunPlan, where: string): Promise<void> {
    const user = this.#users[plan.user]!;
    const image = this.#images[plan.image]!;
    const isNamed = run.named?.isJobs === true;
    const job = { id: plan.id, user, image: image.path, ...(isNamed ? { name: 'box' } : {}) };
    this.#begin(user, where);
    for (const { kill: killing, epilog } of run.prologKills) {
      const prolog = this.#node.startProlog(job);
      const killed = killLater(prolog.pid, killing);
      const { signal } = await prolog.result;
      await killed;
      if (signal === 'SIGKILL') this.report.killedPrologs++;
      this.#noteKill(user);
      if (epilog) await this.#finish(job, 'once', `${where}, after a killed Prolog`);
      this.#checkAll(where);
    }
    const isClean = run.prologKills.every(({ epilog }) => epilog);
    const lease = await this.#runProlog(job, image, run, isClean, where);
    this.#checkAll(where);
    if (lease !== undefined && run.forgesMetadata) this.#forgeMetadata(lease);
    if (run.cancelProlog === undefined) await this.#runSteps(plan, run, lease, where);
    if (lease !== undefined && this.#held.has(lease))
      this.#checkComplete(lease.entry, image, `${where}, at its end`);
    if (run.epilog === 'none' && plan.runs.length === 1) {
      this.#withoutEpilog.push(job);
      this.#checkAll(where);
      return;
    }
    await this.#finish(job, run.epilog, where, run.hasForgedHolder);
    this.#end(user);
    this.#checkAll(where);
  }

  async #runSteps(plan: JobPlan, run: RunPlan, lease: Held | undefined, where: string): Promise<void> {
    if (run.named !== undefined) await this.#runNamed(plan, run.named, where);
    for (const [number, step] of run.named?.isJobs === true ? [] : run.steps.entries()) {
      if (run.killLeaseBefore === number && lease !== undefined) this.#killHolder(lease);
      this.report.steps++;
      const isLeased = lease !== undefined && this.#held.has(lease);
      const cancelling =
        run.cancelStep?.number === number ? this.#cancelStep(plan, run.cancelStep) : undefined;
      if (step.by === 'wrapper')
        await this.#runContainer(plan, step, number, isLeased ? lease : undefined, where);
      else await this.#runAcquire(plan, step, where);
      await cancelling;
      this.#checkAll(where);
      if (this.#cancelled.delete(plan.id)) break;
    }
  }

  /** Ends all that runs of the job, as slurmstepd does. */
  async #cancelStep({ id, user }: JobPlan, { afterMs }: CancelPlan): Promise<void> {
    await sleep(afterMs);
    this.#cancelled.add(id);
    this.report.cancelledSteps++;
    for (const pid of this.#running.get(id) ?? []) kill(-pid);
    this.#noteKill(this.#users[user]!);
  }

  /** [quota] Nobody else's job has made the user's entries go. */
  #begin(user: TestUser, where: string): void {
    if (this.#presence.begin(user) > 1) return;
    const before = this.#entriesAtRest.get(user.uid);
    this.#entriesAtRest.delete(user.uid);
    if (before === undefined) return;
    const now = this.#node.entries(user);
    const gone = before.filter((entry) => !now.includes(entry));
    this.#expect(gone.length === 0, where, `[quota] went without a job of their user: ${gone.join()}`);
  }

  #end(user: TestUser): void {
    if (this.#presence.end(user) > 0) return;
    if (!this.#isUnsettled.delete(user.uid) && this.#options.disk === 'quota')
      this.#entriesAtRest.set(user.uid, this.#node.entries(user));
  }

  /** @returns the lease, if the job has one */
  async #runProlog(
    job: { id: number; user: TestUser; image: string; name?: string },
    image: Image,
    { cancelProlog }: RunPlan,
    isClean: boolean,
    where: string,
  ): Promise<Held | undefined> {
    const overlaps = this.#presence.overlaps(job.user);
    const isAlone = isClean && this.#presence.isAlone(job.user);
    const [slowFile, overFile] = [this.#watch.slow, this.#watch.over].map((path) =>
      join(path, String(job.id)),
    );
    if (cancelProlog !== undefined) writeFileSync(slowFile!, '');
    const startedMs = performance.now();
    const prolog = this.#node.startProlog(job);
    const cancelling =
      cancelProlog &&
      sleep(cancelProlog.afterMs).then(() => {
        writeFileSync(overFile!, '');
      });
    const result = await prolog.result;
    const endedMs = performance.now();
    await cancelling;
    for (const file of [slowFile!, overFile!]) rmSync(file, { force: true });
    this.#checkLines(result, where);
    const wasAlone = isAlone && overlaps === this.#presence.overlaps(job.user);
    if (result.line['code'] !== 'CANCELLED') {
      const lease = this.#checkProlog(result, job, image, wasAlone, where);
      const isUnpacked = result.line['result'] === 'created' && cancelProlog !== undefined;
      this.#expect(!isUnpacked, where, `[cancel] a Prolog went on: ${result.stderr}`);
      return lease;
    }
    this.#noteKill(job.user);
    const { exitCode, signal, stderr } = result;
    this.#expect(
      exitCode === 0 && signal === null && cancelProlog !== undefined,
      where,
      `[cancel] exit code ${exitCode} ${signal}: ${stderr}`,
    );
    const lateMs = Math.round(endedMs - startedMs - Math.max(cancelProlog?.afterMs ?? 0, firstQuestionMs));
    this.report.cancelledPrologs++;
    this.report.slowestCancelMs = Math.max(this.report.slowestCancelMs, lateMs);
    this.#expect(lateMs < longestCancelMs, where, `[cancel] took ${lateMs} ms`);
    return undefined;
  }

  #noteKill(user: TestUser): void {
    this.#killedAtMs.set(String(user.uid), performance.now());
    this.#isUnsettled.add(user.uid);
  }

  /** @returns the lease, if the job has one */
  #checkProlog(
    result: ProgramResult,
    job: { id: number; user: TestUser; name?: string },
    image: Image,
    wasAlone: boolean,
    where: string,
  ): Held | undefined {
    const { line, exitCode, signal, stderr } = result;
    this.#expect(
      exitCode === 0 && signal === null,
      where,
      `I16: Prolog: exit code ${exitCode} ${signal}: ${stderr}`,
    );
    if (this.#isShortage(line, wasAlone, where)) return undefined;
    const kind = line['result'];
    if (job.name !== undefined) {
      const isBypassed = kind === 'bypassed' && readLease(this.#node.runtimePath, job.id) === undefined;
      this.#expect(isBypassed, where, `[named] Prolog: ${stderr}`);
      return undefined;
    }
    if (kind !== 'created' && kind !== 'reused' && kind !== 'waited') {
      this.#violation(where, `Prolog: ${stderr}`);
      return undefined;
    }
    this.report[kind]++;
    const record = readLease(this.#node.runtimePath, job.id);
    const entry = this.#node.entryPath(job.user, line['entry'] ?? '');
    if (record === undefined || !existsSync(lockFileOf(entry))) {
      this.#violation(
        where,
        `I2, I3: after its Prolog it has ${record === undefined ? 'no lease' : 'no entry'}: ${stderr}`,
      );
      return undefined;
    }
    this.#expect(record.entries.join() === line['entry'], where, `the lease is on ${record.entries.join()}`);
    this.#expect(
      (this.#node.jobFile(job.id, 'images') ?? '').split('\t')[1] === line['entry'],
      where,
      'the job files name another entry',
    );
    const lease = this.#hold(job.id, job.user, entry, record.holder.pid, true);
    this.#checkComplete(entry, image, where);
    return lease;
  }

  /** Where there may be a lack of room, a job does without an entry. */
  #isShortage(line: Readonly<Record<string, string>>, wasAlone: boolean, where: string): boolean {
    const { disk } = this.#options;
    const code = line['code'];
    if (code === 'NO_SPACE') {
      this.report.noSpace++;
      this.#expect(disk === 'small' || disk === 'shared', where, `[room] lacked room: ${line['reason']}`);
    } else if (code === 'QUOTA_EXCEEDED') {
      this.report.quotaExceeded++;
      this.#expect(disk === 'quota' && !wasAlone, where, `[quota] lacked quota: ${line['reason']}`);
    }
    return code === 'NO_SPACE' || code === 'QUOTA_EXCEEDED';
  }

  #hold(jobId: number, user: TestUser, entry: string, holder: number, isLease: boolean): Held {
    const held = { jobId, user, entry, inode: lstatSync(lockFileOf(entry)).ino, holder, isLease };
    this.#held.add(held);
    return held;
  }

  /** By hand: from here on nothing protects the entry. */
  #killHolder(held: Held): void {
    this.#held.delete(held);
    kill(held.holder);
    this.report.killedHolders++;
  }

  /** What it holds for one step more, if another than the lease does. */
  #forget(jobId: number): void {
    for (const held of this.#held) if (held.jobId === jobId) this.#held.delete(held);
  }

  #forgeMetadata({ user, entry }: Held): void {
    // Of this boot, and never half written: an entry of another boot that is not settled yet is refused while
    // it is in use.
    const claim = formatEntryMetadata({
      image: '/x',
      createdAtMs: 0,
      unpackMs: 0,
      bytes: 0,
      inodes: Number.MAX_SAFE_INTEGER,
      bootId: bootId(),
    });
    withUserIds(user, () => {
      const file = lockFileOf(entry);
      const { mode, size } = lstatSync(file);
      chmodSync(file, 0o600);
      writeFileSync(file, claim.padEnd(size), { flag: 'r+' });
      chmodSync(file, mode & 0o777);
    });
  }

  /** I1. The entry must be held, or may go meanwhile. */
  #checkComplete(entry: string, image: Image, where: string): void {
    this.#expect(listingOf(entry) === image.listing, where, `I1: ${entry} is not what the image has`);
  }

  /** After every step, for all that is held now. Nothing of ours changes in the middle of it. */
  #checkAll(where: string): void {
    for (const held of this.#held) {
      const inode = inodeOf(lockFileOf(held.entry));
      const what = `${held.isLease ? 'lease' : 'step'} of job ${held.jobId} on ${held.entry}`;
      this.#expect(
        inode === held.inode,
        where,
        `I3: ${what}: its lock file is ${inode ?? 'gone'}, was ${held.inode}`,
      );
      const isHolding = inode !== undefined && hasOpen(held.holder, lockFileOf(held.entry), held.inode);
      this.#expect(
        isHolding,
        where,
        `I4, I6: ${what}: process ${held.holder} (${isAlive(held.holder) ? 'alive' : 'ended'}) does not hold it any more`,
      );
      if (!held.isLease) continue;
      const record = readLease(this.#node.runtimePath, held.jobId);
      this.#expect(
        record?.holder.pid === held.holder,
        where,
        `${what}: the record names ${record?.holder.pid ?? 'nobody'}`,
      );
    }
    for (const [path, { inode }] of this.#named)
      this.#expect(inodeOf(path) === inode, where, `[named] ${path} is not there any more`);
    this.#checkAnyEntry(where);
    this.#checkUnpacks(where);
  }

  /** I1, of one entry of the node, held or not. */
  #checkAnyEntry(where: string): void {
    const user = this.#users[this.report.checks % this.#users.length]!;
    const entry = this.#node.entries(user).at(this.report.checks % 3);
    const inode = entry === undefined ? undefined : inodeOf(lockFileOf(entry));
    if (entry === undefined || inode === undefined) return;
    const listing = listingOf(entry);
    // The collector renames before it deletes: what is still there was there the whole time.
    if (inodeOf(lockFileOf(entry)) !== inode) return;
    const isKnown = this.#images.some((image) => image.listing === listing);
    this.#expect(isKnown, where, `I1: ${entry} is like no image`);
  }

  /** I5, by what the unpacks themselves noted. */
  #checkUnpacks(where: string): void {
    const log = readFileSync(join(this.watchPath, 'log'), 'latin1');
    const news = log.slice(this.#watchedBytes, log.lastIndexOf('\n') + 1);
    this.#watchedBytes += news.length;
    for (const line of news.split('\n').filter((text) => text !== '')) {
      const [what, name = ''] = line.split(' ');
      if (name.startsWith(`pyxis_cache_u${hostileUser.uid}_`)) continue;
      if (what === 'unpack') {
        this.report.unpacks++;
        continue;
      }
      // A killed creator's lock is free a moment before its unsquashfs is dead.
      const uid = /_u(\d+)_/.exec(name)?.[1] ?? '';
      const isAfterKill = performance.now() - (this.#killedAtMs.get(uid) ?? -Infinity) < 10_000;
      this.#expect(what === 'twice' && isAfterKill, where, `I5: unpacked ${what}: ${name}`);
    }
  }

  async #runContainer(
    plan: JobPlan,
    step: StepPlan,
    number: number,
    lease: Held | undefined,
    where: string,
  ): Promise<void> {
    const user = this.#users[plan.user]!;
    const image = this.#images[step.image]!;
    const name = `pyxis_${plan.id}.${number}`;
    const create = this.#asUser(plan, number, [this.wrapper.path, 'create', '--name', name, image.path]);
    const killing =
      step.kill === undefined ? undefined : killLater(create.pid, { ...step.kill, group: true });
    const created = await create.result;
    await killing;
    if (created.signal === 'SIGKILL') {
      this.report.killedAcquires++;
      this.#noteKill(user);
      return;
    }
    if (this.#isCancelled(plan) || this.#isWithoutRoom(created)) return;
    this.#expect(
      created.exitCode === 0,
      where,
      `I8: create: exit code ${created.exitCode}: ${created.output}`,
    );
    const stub = join(this.#node.userPath(user), directoryName(name));
    const [entryName, holder] = readMark(stub);
    const isOwn = lease !== undefined && step.image === plan.image;
    if (entryName === undefined) {
      this.report.stoodAside++;
      // Nothing is as small as what a disk that others have filled has no room for.
      const isAsWanted = !isOwn || this.#options.disk === 'shared';
      this.#expect(isAsWanted, where, `the container of a leased image is no stub: ${created.output}`);
    } else {
      this.report.stubs++;
      if (isOwn) this.#expect(entryName === nameOf(lease.entry), where, `the stub is of ${entryName}`);
    }
    const entry = entryName === undefined ? undefined : this.#node.entryPath(user, entryName);
    const isHeldByStep = holder !== undefined && holder !== '-' && entry !== undefined;
    const held = isHeldByStep ? this.#holdStep(plan.id, user, entry, Number(holder), where) : undefined;
    if (step.killHolder && held !== undefined) this.#killHolder(held);
    const isLeased = isOwn && entryName !== undefined;
    const isProtected = isLeased || (held !== undefined && this.#held.has(held));

    const start = this.#asUser(plan, number, [this.wrapper.path, 'start', name]);
    await sleep(step.runMs);
    this.#checkAll(where);
    start.end();
    const started = await start.result;
    if (this.#isCancelled(plan) || this.#isWithoutRoom(started)) return;
    if (isProtected) {
      const expected = `${image.checksum}\n${image.checksum}\n`;
      this.#expect(
        started.output === expected,
        where,
        `I1, I3: a container of ${entry} has ${started.output}, want ${expected}`,
      );
    }
    // The stand-in does not mount, so without a holder nothing keeps the entry while it runs.
    if (isProtected || entry === undefined)
      this.#expect(
        started.exitCode === 0,
        where,
        `I8: start: exit code ${started.exitCode}: ${started.output}`,
      );
    if (!step.isRemoved) return;
    if (held !== undefined) this.#held.delete(held);
    const remove = this.#asUser(plan, number, [this.wrapper.path, 'remove', '-f', name]);
    const removed = await remove.result;
    if (this.#isCancelled(plan)) return;
    this.#expect(removed.exitCode === 0, where, `remove: exit code ${removed.exitCode}: ${removed.output}`);
    this.#expect(!existsSync(stub), where, `I19: remove leaves ${stub}`);
    if (held !== undefined) await until('the holder has ended', () => !isAlive(held.holder));
  }

  /** scancel has ended the program. */
  #isCancelled({ id }: Pick<JobPlan, 'id'>): boolean {
    return this.#cancelled.has(id);
  }

  /** Stock would have failed there, too. */
  #isWithoutRoom({ output }: UserResult): boolean {
    const { disk } = this.#options;
    return (
      (disk === 'shared' && /No space left on device/.test(output)) ||
      (disk === 'quota' && /Disk quota exceeded/.test(output))
    );
  }

  /** [named] What the user has of their own: made by one job, used and changed by others, removed by one. */
  async #runNamed(plan: JobPlan, { image: index, action }: NamedPlan, where: string): Promise<void> {
    const user = this.#users[plan.user]!;
    const image = this.#images[index]!;
    // Each lane has its own.
    const name = `pyxis_box${plan.id % this.#options.lanes}`;
    const path = join(this.#node.userPath(user), name);
    const known = this.#named.get(path);
    this.report.named++;
    if (known === undefined) {
      const made = await this.#asUser(plan, 0, [this.wrapper.path, 'create', '--name', name, image.path])
        .result;
      if (made.exitCode !== 0 && this.#isWithoutRoom(made)) {
        rmSync(path, { recursive: true, force: true });
        return;
      }
      this.#expect(made.exitCode === 0, where, `[named] create: exit code ${made.exitCode}: ${made.output}`);
      const listing = listingOf(path);
      this.#expect(listing === image.listing, where, `[named] ${path} is not what the image has`);
      this.#named.set(path, { inode: inodeOf(path) ?? 0, listing });
      return;
    }
    this.#expect(listingOf(path) === known.listing, where, `[named] ${path} is not as its user left it`);
    if (action === 'remove') {
      this.#named.delete(path);
      const removed = await this.#asUser(plan, 0, [this.wrapper.path, 'remove', '-f', name]).result;
      this.#expect(removed.exitCode === 0 && !existsSync(path), where, `[named] remove: ${removed.output}`);
      return;
    }
    const start = this.#asUser(plan, 0, [this.wrapper.path, 'start', name]);
    start.end();
    const started = await start.result;
    this.#expect(started.output === 'real\n', where, `[named] start: ${started.output}`);
    withUserIds(user, () => {
      chmodSync(join(path, 'etc/mark'), plan.id % 2 === 0 ? 0o600 : 0o644);
    });
    this.#named.set(path, { ...known, listing: listingOf(path) });
  }

  #holdStep(jobId: number, user: TestUser, entry: string, holder: number, where: string): Held | undefined {
    if (!existsSync(lockFileOf(entry)) || !isAlive(holder)) {
      this.#violation(where, `I3: a step was given ${entry} and holder ${holder}: there is none`);
      return undefined;
    }
    return this.#hold(jobId, user, entry, holder, false);
  }

  async #runAcquire(plan: JobPlan, step: StepPlan, where: string): Promise<void> {
    const user = this.#users[plan.user]!;
    const image = this.#images[step.image]!;
    const acquire = this.#asUser(plan, 0, [programPath('container-cache'), 'acquire', image.path]);
    const killing = step.kill === undefined ? undefined : killLater(acquire.pid, step.kill);
    const { exitCode, signal, output } = await acquire.result;
    await killing;
    if (signal === 'SIGKILL') {
      this.report.killedAcquires++;
      this.#noteKill(user);
      return;
    }
    if (this.#isCancelled(plan)) return;
    const { fields } = parseLog(output).findLast(({ word }) => word === 'acquire') ?? {};
    if (exitCode === 1) {
      this.#expect(this.#isShortage(fields ?? {}, false, where), where, `acquire: ${output}`);
      return;
    }
    const [, entryName, holder] = /^(pyxis_cache_\S+) (\d+|-) \w+$/m.exec(output) ?? [];
    if (exitCode !== 0 || entryName === undefined) {
      this.#violation(where, `acquire: exit code ${exitCode}: ${output}`);
      return;
    }
    const kind = fields?.['result'];
    if (kind === 'created' || kind === 'reused' || kind === 'waited') this.report[kind]++;
    if (holder === '-') return;
    const held = this.#holdStep(plan.id, user, this.#node.entryPath(user, entryName), Number(holder), where);
    if (held === undefined) return;
    this.#checkComplete(held.entry, image, where);
    if (step.killHolder) this.#killHolder(held);
  }

  async #finish(
    job: { id: number; user: TestUser; image?: string },
    how: RunPlan['epilog'],
    where: string,
    hasForgedHolder = false,
  ): Promise<void> {
    const forger = hasForgedHolder ? this.#startForger(job) : undefined;
    this.#forget(job.id);
    const epilogs = [this.#node.epilog(job), ...(how === 'twice at once' ? [this.#node.epilog(job)] : [])];
    for (const result of await Promise.all(epilogs)) {
      const { exitCode, signal, stderr } = result;
      this.#expect(exitCode === 0, where, `I16: Epilog: exit code ${exitCode} ${signal}: ${stderr}`);
      this.#checkLines(result, where);
    }
    if (forger !== undefined) {
      this.#expect(
        forger.exitCode === null && forger.signalCode === null,
        where,
        "I6: the Epilog ended another user's process",
      );
      forger.kill('SIGKILL');
      await until('the forger has ended', () => forger.signalCode !== null);
    }
    await this.#checkNothingLeft(job, where);
  }

  /** A process of another user that says it holds for this job. */
  #startForger(job: { id: number; user: TestUser }): ChildProcess {
    const user = this.#users.find(({ uid }) => uid !== job.user.uid)!;
    return spawn('sleep', ['1000'], {
      uid: user.uid,
      gid: user.gid,
      cwd: '/',
      env: { PATH: '/usr/bin:/bin', [holderVariable]: String(job.id) },
      stdio: 'ignore',
    });
  }

  /** I6, I19: what the Epilog alone must have seen to. */
  async #checkNothingLeft(job: { id: number; user: TestUser }, where: string): Promise<void> {
    const left = holders(job.id).filter(({ pid }) => [0, job.user.uid].includes(processUid(pid) ?? -1));
    this.#expect(left.length === 0, where, `I6: after the Epilog there is still ${JSON.stringify(left)}`);
    this.#expect(
      readLease(this.#node.runtimePath, job.id) === undefined,
      where,
      'I19: after the Epilog the lease is there',
    );
    this.#expect(
      this.#node.jobFile(job.id, 'images') === undefined,
      where,
      'I19: after the Epilog the job files are there',
    );
    const names = this.#node
      .others(job.user)
      .filter((name) => parseStubDirectoryName(name)?.jobId === job.id || name.includes(`.${job.id}-`));
    this.#expect(names.length === 0, where, `I19: after the Epilog there is ${names.join()}`);
    let running = processesOf(job);
    for (let looks = 1; running.length > 0 && looks < mostLooks; looks++) {
      await sleep(100);
      running = processesOf(job);
    }
    this.#expect(running.length === 0, where, `I19: after the Epilog there still runs ${running.join('; ')}`);
  }

  /** I14, I18, I19: on an idle node a collector leaves nothing that nobody uses. */
  async #checkIdle(jobs: number): Promise<void> {
    const where = `idle after ${jobs - 1} jobs`;
    for (const job of this.#withoutEpilog.splice(0)) {
      await this.#finish(job, 'once', `${where}, late Epilog of job ${job.id}`);
      this.#end(job.user);
    }
    await this.#hostile.endAll();
    await this.#node.settle();
    // The second takes the create locks of entries that the first has evicted.
    for (let times = 0; times < 2; times++) {
      const result = await this.#node.gc('--force');
      this.#checkCollector(result);
    }
    this.#expect(holders().length === 0, where, `I6: holders are left: ${JSON.stringify(holders())}`);
    this.#expect(this.#node.leases().length === 0, where, 'leases are left');
    this.#checkUntouched(where);
    this.#hostile.removeAll();
    this.#expect(this.#node.trash().length === 0, where, `trash is left: ${this.#node.trash().join()}`);
    for (const [path, { listing }] of this.#named)
      this.#expect(listingOf(path) === listing, where, `[named] ${path} is not as its user left it`);
    for (const user of this.#users) {
      this.#begin(user, where);
      this.#end(user);
      const home = this.#node.userPath(user);
      const foreign = existsSync(home) ? command('find', home, '!', '-uid', String(user.uid)) : '';
      this.#expect(foreign === '', where, `I10: is not their user's: ${foreign}`);
      const entries = this.#node.entries(user);
      for (const entry of entries)
        this.#expect(
          this.#images.some(({ listing }) => listing === listingOf(entry)),
          where,
          `I1: ${entry} is like no image`,
        );
      if (this.#options.disk === 'starving')
        this.#expect(entries.length === 0, where, `I14: stay for no reason: ${entries.join()}`);
      const locks = new Set(entries.map((entry) => createLockName(nameOf(entry))));
      const others = this.#node
        .others(user)
        .filter(
          (name) =>
            !locks.has(name) &&
            name !== imagesName &&
            !this.#named.has(join(this.#node.userPath(user), name)),
        );
      this.#expect(others.length === 0, where, `I18: is left: ${others.join()}`);
    }
    for (const name of ['leases', 'jobs']) {
      const path = join(this.#node.runtimePath, name);
      const left = existsSync(path) ? readdirSync(path) : [];
      this.#expect(left.length === 0, where, `in ${name} is left: ${left.join()}`);
    }
    if (this.#options.disk === 'shared') {
      const random = new Random(this.#options.seed ^ jobs);
      await this.#leaveSome(random);
      await this.#checkYielding(random, where);
      await this.#fillCache(where);
      await this.#checkYielding(random, where);
    }
    this.#checkUnpacks(where);
  }

  /**
   * [vain] Other files fill the idle disk to just below its end. If without any entry it still is above the
   * low watermark, a collection evicts nothing, since all of it was just used; else it reaches its goal.
   */
  async #checkYielding(random: Random, where: string): Promise<void> {
    const file = join(this.#node.basePath, 'foreign-0');
    this.#fill(file, random.pick([0.9, 0.98, 0.99]));
    const used = blocksUsedPercent(readUsage(this.#node.basePath));
    const share = (100 * 1024 * this.#entriesKibibytes()) / readUsage(this.#node.basePath).totalBytes;
    const { high, low } = { high: 85, low: 80 };
    const before = this.#allEntries();
    const result = await this.#node.gc();
    this.#checkCollector(result);
    const gone = before.filter((entry) => !existsSync(entry));
    const now = blocksUsedPercent(readUsage(this.#node.basePath));
    const what = `${used.toFixed(1)} % used, ${share.toFixed(1)} % by entries, then ${now.toFixed(1)} %: ${gone.length} evicted`;
    if (used < high || used - share > low + marginPercent) {
      this.report.vainLooks++;
      this.#expect(gone.length === 0, where, `[vain] ${what}: ${result.stderr}`);
    } else if (used - share < low - marginPercent) {
      this.report.yieldLooks++;
      this.#expect(
        gone.length > 0 && now < low,
        where,
        `[vain] the cache does not give way: ${what}: ${result.stderr}`,
      );
    }
    await this.#checkJobInNeed(random, file, where);
    rmSync(file, { force: true });
  }

  /** [vain] The same for a job that needs room, whatever the watermarks. */
  async #checkJobInNeed(random: Random, file: string, where: string): Promise<void> {
    const image = this.#images.at(-1)!;
    const user = this.#users[random.integer(0, this.#users.length - 1)]!;
    const job = { id: idleJobId, user, image: image.path };
    const isOwn = (entry: string): boolean => entry.startsWith(`${this.#node.userPath(user)}/`);
    // So few that the watermark is out of reach: what is evicted is for the need alone.
    const [others, own] = [this.#allEntries().filter((entry) => !isOwn(entry)), this.#node.entries(user)];
    await this.#evict([...own, ...others.slice(4)]);
    this.#fill(file, 0.99);
    const before = this.#allEntries();
    const free = readUsage(this.#node.basePath).availableBytes / 1024;
    const reach = free + this.#entriesKibibytes();
    const result = await this.#node.prolog(job);
    this.#checkLines(result, where);
    const kind = result.line['result'];
    const gone = before.filter((entry) => !existsSync(entry));
    const what = `${image.kibibytes} KiB needed, ${free} free, ${reach} with all entries: ${result.stderr}`;
    if (reach < image.kibibytes) {
      this.report.vainLooks++;
      this.#expect(kind === 'failed' && gone.length === 0, where, `[vain] ${gone.length} evicted: ${what}`);
    } else if (reach > 2 * image.kibibytes + roomForFilesKibibytes) {
      this.report.yieldLooks++;
      this.#expect(kind === 'created', where, `[vain] the cache does not give way: ${what}`);
    }
    await this.#finish(job, 'once', where);
  }

  async #leaveSome(random: Random): Promise<void> {
    await this.#evict(this.#allEntries().slice(random.integer(0, 3)));
  }

  async #evict(entries: readonly string[]): Promise<void> {
    if (entries.length > 0) await this.#node.admin('rm', ...entries.map(nameOf)).result;
    await this.#node.settle();
  }

  /** Every user has two large images. */
  async #fillCache(where: string): Promise<void> {
    for (const user of this.#users)
      for (const { path } of this.#images.slice(-3, -1)) {
        const job = { id: idleJobId, user, image: path };
        await this.#node.prolog(job);
        await this.#finish(job, 'once', where);
      }
  }

  #allEntries(): string[] {
    return this.#users.flatMap((user) => this.#node.entries(user));
  }

  #entriesKibibytes(): number {
    return this.#allEntries().reduce((sum, entry) => sum + kibibytesOf(entry), 0);
  }

  /** A program as pyxis runs it in a step. */
  #asUser(plan: JobPlan, stepId: number, words: readonly [string, ...string[]]): UserProgram {
    const user = this.#users[plan.user]!;
    const program = startAsUser(this.#node, { user, jobId: plan.id, stepId, limitMs: programLimitMs }, words);
    const running = this.#running.get(plan.id) ?? new Set();
    this.#running.set(plan.id, running.add(program.pid));
    // Between two programs of a step scancel comes as well.
    if (this.#isCancelled(plan)) kill(-program.pid);
    const result = program.result.finally(() => {
      running.delete(program.pid);
      if (running.size === 0) this.#running.delete(plan.id);
    });
    return { ...program, result };
  }
}

/** What must stay as it is, whatever the hostile user does: of root, and of another user. */
function makePrecious(node: TestNode): string[] {
  const ofRoot = join(node.root, 'precious');
  const ofBob = join(homeOf(bob), `precious-${node.root.slice(-6)}`);
  for (const path of [ofRoot, ofBob]) {
    mkdirSync(join(path, 'closed'), { recursive: true, mode: 0o755 });
    for (const name of ['file', 'closed/file']) writeFileSync(join(path, name), `precious ${name}\n`);
    chmodSync(join(path, 'closed'), 0o700);
    chmodSync(join(path, 'closed/file'), 0o600);
  }
  command('chown', '--recursive', `${bob.uid}:${bob.gid}`, ofBob);
  return [
    ofRoot,
    ofBob,
    join(ofRoot, 'file'),
    join(ofBob, 'file'),
    join(ofRoot, 'closed'),
    join(ofBob, 'closed'),
  ];
}

/** Command lines of what runs for the job: of its environment, or with a partial tree of its. */
function processesOf({ id, user }: { id: number; user: TestUser }): string[] {
  const variable = `SLURM_JOB_ID=${id}`;
  return processes()
    .filter(({ pid, environment, commandLine }) => {
      const isOfJob = environment.includes(variable) || commandLine.includes(`.${id}-`);
      return isOfJob && [0, user.uid].includes(processUid(pid) ?? -1);
    })
    .map(({ commandLine }) => commandLine);
}

function hasOpen(pid: number, lockFile: string, inode: number): boolean {
  return (
    ifThere(
      () =>
        isAlive(pid) &&
        inodeOf(lockFile) === inode &&
        holds(pid, lockFile.slice(0, -lockFileName.length - 1)),
    ) ?? false
  );
}

function readMark(stub: string): string[] {
  return ifThere(() => readFileSync(join(stub, '.container-cache/entry'), 'utf8'))?.split('\n') ?? [];
}

async function killLater(pid: number, { afterMs, group }: KillPlan): Promise<void> {
  await sleep(afterMs);
  kill(group ? -pid : pid);
}
