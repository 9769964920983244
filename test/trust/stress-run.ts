/**
 * Many jobs of many users on one node that is too small for them, with kills, requeues and a collector that never has enough,
 * and a model that knows which entries must be there. The jobs are those of stress-plan.ts; they run in lanes, job after job in each.
 *
 * Asserted after every step of any lane, for every job that is between its Prolog and its Epilog (numbers of DESIGN.md):
 *
 *   I1  an entry that has its name is complete: its listing and content are the image's
 *   I2, I3, I4  what a job or a step holds is at its path, and the inode there is the one that its holder has open
 *   I5  no entry is unpacked twice at once, and none that is there
 *   I6  after the Epilog nothing holds for the job any more, and no holder of another job has ended
 *   I9  nothing but a lack of space makes an exit code other than 0, with on_failure=fail
 *   I16 a container starts, whatever is amiss
 *   I17 after the Epilog none of the job's stubs, holders, partial trees, records and files is left
 *
 * and whenever the node is idle, that a collector leaves nothing: no lease, holder, partial tree, lock file, trash (I13), and no entry
 * either if it has to evict all (I10: whatever the entries say of themselves).
 *
 * A lease or holder that the test itself killed protects nothing any more; from then on only I1 is asked of its entry.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { distDirectory } from '../../build/build.ts';
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
import { bootId } from '../../lib/system/boot.ts';
import { processUid } from '../../lib/system/processes.ts';
import { withUserIds } from '../../lib/system/as-user.ts';
import {
  holders,
  holds,
  isAlive,
  kill,
  lockFileOf,
  parseLog,
  TestNode,
  until,
  type ProgramResult,
  type RunningProgram,
  nameOf,
} from '../helpers/node.ts';
import type { Tree } from '../helpers/image.ts';
import { Random } from '../helpers/property.ts';
import {
  addUsers,
  command,
  machineRoot,
  mount,
  replaceProgram,
  umount,
  type TestUser,
} from '../helpers/private-machine.ts';
import { installWrapper, stepEnvironment, type InstalledWrapper } from '../helpers/wrapper.ts';
import { planJob, type JobPlan, type KillPlan, type RunPlan, type StepPlan } from './stress-plan.ts';

export interface StressOptions {
  readonly seed: number;
  readonly jobs: number;
  /** Of the first job; a failure can be had again without the jobs before it. */
  readonly firstJob?: number;
  readonly lanes: number;
  readonly users: number;
  readonly images: number;
  /** `starving`: always above the high watermark, everything always has to go. `small`: the filesystem takes a third of what is used. */
  readonly disk: 'starving' | 'small';
  readonly tell?: (line: string) => void;
  /** Asked before each job; jobs not begun when it says so are not run. */
  readonly isOver?: () => boolean;
}

export interface StressReport {
  jobs: number;
  runs: number;
  steps: number;
  created: number;
  reused: number;
  waited: number;
  noSpace: number;
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

interface Held {
  readonly jobId: number;
  readonly user: TestUser;
  readonly entry: string;
  readonly inode: number;
  readonly holder: number;
  /** A lease has a record. */
  readonly isLease: boolean;
}

/** Stands in for the real enroot: what the wrapper has it do, without namespaces. */
const standIn = `#!/bin/sh
here=\${0%/*}
data=\${ENROOT_DATA_PATH:-$here/data/$(id -u)}
list() { (cd "$1" && find . ! -name ${lockFileName} ! -path ./etc/mark | LC_ALL=C sort | cat - etc/mark | cksum) 2>&1; }
case $1 in
  version) echo 4.1.2 ;;
  create) [ ! -e "$data/$3" ] || { echo "[ERROR] File already exists: $3" >&2; exit 1; }; mkdir "$data/$3" ;;
  start)
    [ -d "$data/$2" ] || { echo "[ERROR] No such file or directory: $2" >&2; exit 1; }
    if [ -z "\${CONTAINER_CACHE_FSTAB-}" ]; then echo real; read -r _; exit 0; fi
    lower=\${CONTAINER_CACHE_FSTAB#*lowerdir=}
    lower=\${lower%%,*}
    list "$lower"
    read -r _
    list "$lower"
    ;;
  remove) rm -rf "$data/$3" ;;
esac
`;

/** A second unpack of an entry while one runs, or of one that is there, leaves a line. */
const watchedUnpack = (directory: string): string => `
for word in "$@"; do
  case $word in
    */.pyxis_cache_u*.partial/rootfs)
      partial=\${word%/rootfs} home=\${word%/.pyxis_cache_u*} name=\${partial##*/.}
      name=\${name%%.*}
      echo "unpack $name" >>${directory}/log
      exec 9>>"${directory}/$name"
      chmod 0666 "${directory}/$name" 2>/dev/null
      flock --nonblock 9 || echo "twice $name" >>${directory}/log
      [ ! -e "$home/.$name/${lockFileName}" ] || echo "needless $name" >>${directory}/log
      ;;
  esac
done
exec /usr/bin/unsquashfs "$@"`;

/** Kibibytes. Of each image every user can have an entry, with a page for each file: together far above the high watermark. */
function sizeOf({ users, images, disk }: StressOptions): number {
  const filesOfAll = images * (9 + 3.5 * (images - 1));
  return disk === 'starving' ? 6144 : Math.ceil(users * filesOfAll * 4 * 0.9) + 256;
}

/** @returns what happened; violations are in it, and nothing is thrown for them */
export async function runStress(options: StressOptions): Promise<StressReport> {
  const startedAtMs = performance.now();
  const disk = mkdtempSync(join(machineRoot, 'small-'));
  mount('--types', 'tmpfs', '--options', `mode=0755,size=${sizeOf(options)}k`, 'tmpfs', disk);
  try {
    const starving = { container_cache_gc_high: 1, container_cache_gc_low: 0 };
    const small = { container_cache_gc_high: 60, container_cache_gc_low: 40 };
    await using node = await TestNode.start({ basePath: disk, programLimitMs });
    const stress = new Stress(node, options);
    node.configure({
      ...(options.disk === 'starving' ? starving : small),
      gc_min_age: 0,
      on_failure: 'fail',
      ...stress.wrapper.settings,
    });
    // So that there is something of which it has too much, also when all entries are gone.
    writeFileSync(join(disk, 'ballast'), Buffer.alloc(128 * 1024));
    using _ = replaceProgram('unsquashfs', watchedUnpack(stress.watchPath));
    await stress.run();
    stress.report.seconds = Math.round((performance.now() - startedAtMs) / 1000);
    return stress.report;
  } finally {
    umount(disk);
  }
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
  /** When somebody who might have been unpacking for this uid was killed. */
  readonly #killedAtMs = new Map<string, number>();
  #watchedBytes = 0;
  #isIdle = false;

  constructor(node: TestNode, options: StressOptions) {
    this.#node = node;
    this.#options = options;
    this.#users = addUsers(options.users);
    this.#images = Array.from({ length: options.images }, (_, index) => makeStressImage(node, index));
    this.wrapper = installWrapper(node, standIn);
    for (const path of ['real/data', 'watch']) mkdirSync(join(node.root, path));
    this.watchPath = join(node.root, 'watch');
    writeFileSync(join(this.watchPath, 'log'), '');
    for (const path of [this.watchPath, join(this.watchPath, 'log')]) chmodSync(path, 0o777);
    for (const user of this.#users) {
      const data = join(node.root, 'real/data', String(user.uid));
      mkdirSync(data);
      chownSync(data, user.uid, user.gid);
    }
  }

  async run(): Promise<void> {
    const { lanes, jobs, firstJob = 1 } = this.#options;
    for (let from = firstJob; from < firstJob + jobs && !this.#isOver(); from += lanes * jobsPerRound) {
      const to = Math.min(from + lanes * jobsPerRound, firstJob + jobs);
      this.#isIdle = false;
      const collecting = this.#collect(from);
      await Promise.all(
        Array.from({ length: lanes }, async (_, lane) => {
          for (let id = from + lane; id < to && !this.#isOver(); id += lanes)
            await this.#runJob(planJob(this.#options.seed, id, this.#options));
        }),
      );
      this.#isIdle = true;
      await collecting;
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
      this.report.evictions += result.lines.filter(({ word }) => word === 'gc-evicted').length;
      this.#checkAll('collector');
      await sleep(random.integer(0, 300));
    }
  }

  #checkCollector({ exitCode, signal, lines, stderr }: ProgramResult): void {
    const troubles = lines.filter(({ word }) => ['gc-kept', 'gc-trash'].includes(word));
    this.#expect(troubles.length === 0, 'collector', `had trouble: ${JSON.stringify(troubles)}`);
    this.#expect(exitCode === 0 || exitCode === 1, 'collector', `exit code ${exitCode} ${signal}: ${stderr}`);
  }

  async #runJob(plan: JobPlan): Promise<void> {
    try {
      for (const [index, run] of plan.runs.entries()) {
        this.report.runs++;
        await this.#runOnce(plan, run, `job ${plan.id} run ${index + 1}`);
      }
    } catch (error) {
      this.#violation(`job ${plan.id}`, `the test itself failed: ${(error as Error).stack}`);
    }
    this.report.jobs++;
  }

  async #runOnce(plan: JobPlan, run: RunPlan, where: string): Promise<void> {
    const user = this.#users[plan.user]!;
    const image = this.#images[plan.image]!;
    const job = { id: plan.id, user, image: image.path };
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
    const result = await this.#node.prolog(job);
    const lease = this.#checkProlog(result, job, image, where);
    this.#checkAll(where);
    if (lease !== undefined && run.forgesMetadata) this.#forgeMetadata(lease);
    for (const [number, step] of run.steps.entries()) {
      if (run.killLeaseBefore === number && lease !== undefined) this.#killHolder(lease);
      this.report.steps++;
      const isLeased = lease !== undefined && this.#held.has(lease);
      if (step.by === 'wrapper')
        await this.#runContainer(plan, step, number, isLeased ? lease : undefined, where);
      else await this.#runAcquire(plan, step, where);
      this.#checkAll(where);
    }
    if (lease !== undefined && this.#held.has(lease))
      this.#checkComplete(lease.entry, image, `${where}, at its end`);
    if (run.epilog === 'none' && plan.runs.length === 1) this.#withoutEpilog.push(job);
    else await this.#finish(job, run.epilog, where, run.hasForgedHolder);
    this.#checkAll(where);
  }

  #noteKill(user: TestUser): void {
    this.#killedAtMs.set(String(user.uid), performance.now());
  }

  /** @returns the lease, if the job has one */
  #checkProlog(
    result: ProgramResult,
    job: { id: number; user: TestUser },
    image: Image,
    where: string,
  ): Held | undefined {
    const { line, exitCode, signal, stderr } = result;
    const isNoSpace = line['code'] === 'NO_SPACE';
    this.#expect(
      exitCode === (isNoSpace ? 1 : 0) && signal === null,
      where,
      `Prolog: exit code ${exitCode} ${signal}: ${stderr}`,
    );
    if (isNoSpace) {
      this.report.noSpace++;
      return undefined;
    }
    const kind = line['result'];
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
    // Of this boot, and never half written: an entry of another boot that is not settled yet is refused while it is in use.
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
      this.#expect(isHolding, where, `I4, I6: ${what}: process ${held.holder} does not hold it any more`);
      if (!held.isLease) continue;
      const record = readLease(this.#node.runtimePath, held.jobId);
      this.#expect(
        record?.holder.pid === held.holder,
        where,
        `${what}: the record names ${record?.holder.pid ?? 'nobody'}`,
      );
    }
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
    this.#expect(
      created.exitCode === 0,
      where,
      `I16: create: exit code ${created.exitCode}: ${created.output}`,
    );
    const stub = join(this.#node.userPath(user), directoryName(name));
    const [entryName, holder] = readMark(stub);
    const isOwn = lease !== undefined && step.image === plan.image;
    if (entryName === undefined) {
      this.report.stoodAside++;
      this.#expect(!isOwn, where, `the container of a leased image is no stub: ${created.output}`);
    } else {
      this.report.stubs++;
      if (isOwn) this.#expect(entryName === nameOf(lease.entry), where, `the stub is of ${entryName}`);
    }
    const entry = entryName === undefined ? undefined : this.#node.entryPath(user, entryName);
    const isHeldByStep = holder !== undefined && holder !== '-' && entry !== undefined;
    const held = isHeldByStep ? this.#holdStep(plan.id, user, entry, Number(holder), where) : undefined;
    if (step.killHolder && held !== undefined) this.#killHolder(held);
    const isProtected = isOwn || (held !== undefined && this.#held.has(held));

    const start = this.#asUser(plan, number, [this.wrapper.path, 'start', name]);
    await sleep(step.runMs);
    this.#checkAll(where);
    start.end();
    const started = await start.result;
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
        `I16: start: exit code ${started.exitCode}: ${started.output}`,
      );
    if (!step.isRemoved) return;
    if (held !== undefined) this.#held.delete(held);
    const remove = this.#asUser(plan, number, [this.wrapper.path, 'remove', '-f', name]);
    const removed = await remove.result;
    this.#expect(removed.exitCode === 0, where, `remove: exit code ${removed.exitCode}: ${removed.output}`);
    this.#expect(!existsSync(stub), where, `I17: remove leaves ${stub}`);
    if (held !== undefined) await until('the holder has ended', () => !isAlive(held.holder));
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
    const acquire = this.#asUser(plan, 0, [join(distDirectory, 'container-cache'), 'acquire', image.path]);
    const killing = step.kill === undefined ? undefined : killLater(acquire.pid, step.kill);
    const { exitCode, signal, output } = await acquire.result;
    await killing;
    if (signal === 'SIGKILL') {
      this.report.killedAcquires++;
      this.#noteKill(user);
      return;
    }
    const { fields } = parseLog(output).findLast(({ word }) => word === 'acquire') ?? {};
    if (exitCode === 1) {
      this.#expect(fields?.['code'] === 'NO_SPACE', where, `acquire: ${output}`);
      this.report.noSpace++;
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
    for (const { exitCode, signal, stderr } of await Promise.all(epilogs))
      this.#expect(exitCode === 0, where, `I9: Epilog: exit code ${exitCode} ${signal}: ${stderr}`);
    if (forger !== undefined) {
      this.#expect(
        forger.exitCode === null && forger.signalCode === null,
        where,
        "I6: the Epilog ended another user's process",
      );
      forger.kill('SIGKILL');
      await until('the forger has ended', () => forger.signalCode !== null);
    }
    this.#checkNothingLeft(job, where);
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

  /** I6, I17: what the Epilog alone must have seen to. */
  #checkNothingLeft(job: { id: number; user: TestUser }, where: string): void {
    const left = holders(job.id).filter(({ pid }) => [0, job.user.uid].includes(processUid(pid) ?? -1));
    this.#expect(left.length === 0, where, `I6: after the Epilog there is still ${JSON.stringify(left)}`);
    this.#expect(
      readLease(this.#node.runtimePath, job.id) === undefined,
      where,
      'I17: after the Epilog the lease is there',
    );
    this.#expect(
      this.#node.jobFile(job.id, 'images') === undefined,
      where,
      'I17: after the Epilog the job files are there',
    );
    const names = this.#node
      .others(job.user)
      .filter((name) => parseStubDirectoryName(name)?.jobId === job.id || name.includes(`.${job.id}-`));
    this.#expect(names.length === 0, where, `I17: after the Epilog there is ${names.join()}`);
  }

  /** I13, I17, I10: on an idle node a collector leaves nothing that nobody uses. */
  async #checkIdle(jobs: number): Promise<void> {
    const where = `idle after ${jobs - 1} jobs`;
    for (const job of this.#withoutEpilog.splice(0))
      await this.#finish(job, 'once', `${where}, late Epilog of job ${job.id}`);
    await this.#node.settle();
    // The second takes the create locks of entries that the first has evicted.
    for (let times = 0; times < 2; times++) {
      const result = await this.#node.gc('--force');
      this.#checkCollector(result);
      this.report.evictions += result.lines.filter(({ word }) => word === 'gc-evicted').length;
    }
    this.#expect(holders().length === 0, where, `I6: holders are left: ${JSON.stringify(holders())}`);
    this.#expect(this.#node.leases().length === 0, where, 'leases are left');
    this.#expect(this.#node.trash().length === 0, where, `trash is left: ${this.#node.trash().join()}`);
    for (const user of this.#users) {
      const entries = this.#node.entries(user);
      for (const entry of entries)
        this.#expect(
          this.#images.some(({ listing }) => listing === listingOf(entry)),
          where,
          `I1: ${entry} is like no image`,
        );
      if (this.#options.disk === 'starving')
        this.#expect(entries.length === 0, where, `I10: stay for no reason: ${entries.join()}`);
      const locks = new Set(entries.map((entry) => createLockName(nameOf(entry))));
      const others = this.#node.others(user).filter((name) => !locks.has(name) && name !== imagesName);
      this.#expect(others.length === 0, where, `I13: is left: ${others.join()}`);
    }
    for (const name of ['leases', 'jobs']) {
      const path = join(this.#node.runtimePath, name);
      const left = existsSync(path) ? readdirSync(path) : [];
      this.#expect(left.length === 0, where, `in ${name} is left: ${left.join()}`);
    }
    this.#checkUnpacks(where);
  }

  /** A program as pyxis runs it in a step. */
  #asUser(plan: JobPlan, stepId: number, [file, ...parameters]: readonly [string, ...string[]]): UserProgram {
    const user = this.#users[plan.user]!;
    const ids = [`--reuid=${user.uid}`, `--regid=${user.gid}`, '--clear-groups', '--inh-caps=-all'];
    const child = spawn('setpriv', [...ids, '--', file, ...parameters], {
      cwd: '/',
      detached: true,
      env: stepEnvironment(this.#node, user, plan.id, stepId),
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    const limit = setTimeout(() => child.kill('SIGKILL'), programLimitMs);
    let output = '';
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding('utf8').on('data', (text: string) => (output += text));
    // It may end without having read.
    child.stdin.on('error', () => undefined);
    const { promise, resolve, reject } = Promise.withResolvers<UserResult>();
    child.on('error', reject);
    child.on('close', (exitCode, signal) => {
      clearTimeout(limit);
      resolve({ exitCode, signal, output });
    });
    return { pid: child.pid!, result: promise, end: () => child.stdin.end('\n') };
  }
}

interface UserResult {
  readonly exitCode: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly output: string;
}

interface UserProgram extends Pick<RunningProgram, 'pid'> {
  readonly result: Promise<UserResult>;
  /** Ends what it reads. */
  readonly end: () => void;
}

/** What an image must become. */
interface Image {
  readonly path: string;
  readonly listing: string;
  /** As the stand-in enroot prints it. */
  readonly checksum: string;
}

/** Images differ in size, names and content: no tree can be taken for another image's. */
function makeStressImage(node: TestNode, index: number): Image {
  const files: Tree = Object.fromEntries(
    Array.from({ length: 5 + 7 * index }, (_, file) => [
      `d${file % 3}/f${index}-${file}`,
      `${index}`.repeat(10 + file),
    ]),
  );
  const tree: Tree = {
    ...files,
    'etc/mark': `image ${index}\n`,
    'bin/tool': { content: '#!/bin/sh\n', mode: 0o755 },
    'lib/link': { symlink: `../etc/mark-${index}` },
    large: Buffer.alloc(4096 * (index % 4), index).toString('latin1'),
  };
  const path = node.image(tree);
  const unpacked = join(node.root, `unpacked-${index}`);
  command('unsquashfs', '-no-progress', '-quiet', '-dest', unpacked, path);
  const list = `cd "$1" && find . ! -name ${lockFileName} ! -path ./etc/mark | LC_ALL=C sort | cat - etc/mark | cksum`;
  return { path, listing: listingOf(unpacked), checksum: command('sh', '-c', list, 'sh', unpacked).trim() };
}

/** Names, kinds, modes and content of a tree, but for our lock file. What goes meanwhile is missing in it. */
function listingOf(root: string, below = ''): string {
  const lines: string[] = [];
  const names = ifThere(() => readdirSync(join(root, below))) ?? [];
  for (const name of names.sort()) {
    if (below === '' && name === lockFileName) continue;
    const path = join(root, below, name);
    const stats = ifThere(() => lstatSync(path));
    if (stats === undefined) continue;
    const place = join(below, name);
    const mode = stats.mode.toString(8);
    if (stats.isDirectory()) lines.push(`${place} ${mode}`, listingOf(root, place));
    else if (stats.isSymbolicLink()) lines.push(`${place} -> ${ifThere(() => readlinkSync(path))}`);
    else lines.push(`${place} ${mode} ${ifThere(() => readFileSync(path, 'latin1'))}`);
  }
  return lines.join('\n');
}

function ifThere<T>(look: () => T): T | undefined {
  try {
    return look();
  } catch (error) {
    if (['ENOENT', 'ESRCH', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? ''))
      return undefined;
    throw error;
  }
}

const inodeOf = (path: string): number | undefined => ifThere(() => lstatSync(path).ino);

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
