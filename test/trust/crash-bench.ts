/**
 * Kills our programs at every system call that changes the disk or a lock, and looks at what is left (I1, I2,
 * I3, I6, I17, I18, I19).
 *
 * A scenario is a program and the node that it meets. Each run of it begins with the same node, ends at one
 * point, and is followed by what happens on a node after that: the next job, a collector, the Epilogs,
 * another collector.
 */
import { createHash } from 'node:crypto';
import {
  closeSync,
  existsSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { basename, join } from 'node:path';
import { parseEntryMetadata } from '../../lib/core/entry-metadata.ts';
import {
  createLockName,
  digestsName,
  imagesName,
  parseCreateLockName,
  directoryName,
  lockFileName,
  partialName,
  trashName,
  collectorLockName,
} from '../../lib/core/layout.ts';
import { formatLeaseRecord, parseLeaseRecord } from '../../lib/core/lease-record.ts';
import { parseNodeFacts } from '../../lib/core/node-facts.ts';
import { tryFlock } from '../../lib/system/flock.ts';
import { acquire, startAcquire } from '../helpers/run-acquire.ts';
import { CrashTracer, type Kill, type KillMode, type Point } from '../helpers/crash-tracer.ts';
import { startRoomAgent } from '../../lib/store/room-agent.ts';
import { hasRoomAgent } from '../../lib/store/room-presence.ts';
import type { Tree } from '../helpers/squashfs-image.ts';
import {
  holders,
  holds,
  isAlive,
  kill,
  lockFileOf,
  processes,
  TestNode,
  until,
  type ProgramResult,
  nameOf,
} from '../helpers/node.ts';
import { alice, bob, command, mount, umount } from '../helpers/private-machine.ts';
import { StandInRegistry } from '../helpers/directory-registry.ts';
import { assert } from '../helpers/suite.ts';

/** The job whose program is killed, the next one, and one of another user that runs all the while. */
const [victimId, nextId, otherId] = [7, 8, 3];

/** Every kind of thing that an unpack makes or changes. */
const imageTree: Tree = {
  'etc/os-release': 'ID=crash\n',
  'etc/closed': { content: 'x', mode: 0o044 },
  'bin/tool': { content: '#!/bin/sh\n', mode: 0o755 },
  'bin/other': { link: 'bin/tool' },
  'closed/file': 'x'.repeat(5000),
  closed: { directory: true, mode: 0o055 },
  'usr/lib': { symlink: '../lib' },
  empty: { directory: true },
  ...Object.fromEntries(
    Array.from({ length: 16 }, (_, index) => [`data/f${index}`, String(index).repeat(300)]),
  ),
};

interface Scenario {
  readonly what: string;
  /** Makes the node, once. Its programs have ended afterwards, and its files are kept. */
  readonly prepare: (bench: CrashBench) => Promise<void>;
  /** What cannot be kept as files: jobs that run. */
  readonly arrange?: (bench: CrashBench) => Promise<void>;
  readonly run: (bench: CrashBench, wrapper: readonly string[]) => Promise<unknown>;
  /** The image of the next job. */
  readonly image: (bench: CrashBench) => string;
  /** What the node itself, or the job that was hit, does next. */
  readonly again?: (bench: CrashBench) => Promise<void>;
  /** The base is a filesystem of its own with that few inodes. */
  readonly inodes?: number;
  /** A call among its points without which it would not be what it says. */
  readonly meets?: RegExp;
}

const pathImage = ({ image }: CrashBench): string => image;
const runProlog = ({ node }: CrashBench, wrapper: readonly string[], image: string): Promise<ProgramResult> =>
  node.prolog({ id: victimId, user: alice, image, wrapper });

export const scenarios: Readonly<Record<string, Scenario>> = {
  'prolog-first': {
    what: 'the first Prolog of a node: base, user directory, node facts, entry',
    prepare: async () => {},
    run: (bench, wrapper) => runProlog(bench, wrapper, bench.image),
    image: pathImage,
  },
  'prolog-create': {
    what: 'a Prolog that unpacks a file',
    prepare: (bench) => bench.meetUser(),
    run: (bench, wrapper) => runProlog(bench, wrapper, bench.image),
    image: pathImage,
  },
  'prolog-reuse': {
    what: 'a Prolog that reuses an entry',
    prepare: (bench) => bench.makeEntries(bench.image),
    run: (bench, wrapper) => runProlog(bench, wrapper, bench.image),
    image: pathImage,
  },
  'prolog-requeue': {
    what: 'a Prolog of a requeued job, which replaces the lease of the former run',
    prepare: (bench) => bench.makeEntries(bench.image, bench.otherImage),
    arrange: async (bench) => {
      await bench.served({ id: victimId, user: alice, image: bench.otherImage });
    },
    run: (bench, wrapper) => runProlog(bench, wrapper, bench.image),
    image: pathImage,
    again: async (bench) => {
      await bench.served({ id: victimId, user: alice, image: bench.image });
    },
  },
  'prolog-room': {
    what: 'a Prolog that evicts entries to make room',
    inodes: 100,
    meets: /^rename .*\/\.pyxis_cache_u\d+_0000000000000000$/,
    prepare: async (bench) => {
      await bench.meetUser();
      await bench.served({ id: otherId, user: bob, image: bench.image });
      for (const [number, user] of [alice, bob, alice].entries())
        bench.plant(user, { hash: `000000000000000${number}`, usedSecondsAgo: 4000 - number, files: 16 });
    },
    arrange: (bench) => bench.startOther(),
    run: (bench, wrapper) => runProlog(bench, wrapper, bench.image),
    image: pathImage,
  },
  'prolog-registry': {
    what: 'a Prolog that imports from a registry',
    prepare: (bench) => bench.meetUser(),
    run: (bench, wrapper) => runProlog(bench, wrapper, bench.reference),
    image: ({ reference }) => reference,
  },
  'prolog-damaged': {
    what: 'a Prolog that puts a damaged entry aside',
    prepare: async (bench) => {
      await bench.makeEntries(bench.image);
      command('rm', lockFileOf(bench.node.entries(alice)[0]!));
    },
    run: (bench, wrapper) => runProlog(bench, wrapper, bench.image),
    image: pathImage,
  },
  'acquire-create': {
    what: 'an acquire that unpacks, as the user',
    prepare: (bench) => bench.meetUser(),
    run: ({ node, image }, wrapper) =>
      startAcquire(node, [image], { rootWrapper: wrapper, jobId: victimId }).answer,
    image: pathImage,
    again: (bench) => bench.acquired(),
  },
  'acquire-reuse': {
    what: 'an acquire that reuses an entry, as the user',
    prepare: (bench) => bench.makeEntries(bench.image),
    run: ({ node, image }, wrapper) =>
      startAcquire(node, [image], { rootWrapper: wrapper, jobId: victimId }).answer,
    image: pathImage,
    again: (bench) => bench.acquired(),
  },
  'epilog-lease': {
    what: 'an Epilog of a job with a lease',
    prepare: (bench) => bench.makeEntries(bench.image),
    arrange: async (bench) => {
      await bench.served({ id: victimId, user: alice, image: bench.image });
    },
    run: ({ node }, wrapper) => node.epilog({ id: victimId, user: alice, wrapper }),
    image: pathImage,
  },
  'epilog-leftovers': {
    what: 'an Epilog of a job that left a partial tree, a stub, and the holder of a step',
    prepare: async (bench) => {
      await bench.makeEntries(bench.image, bench.otherImage);
      bench.leave();
    },
    arrange: async (bench) => {
      await bench.served({ id: victimId, user: alice, image: bench.otherImage });
      await bench.acquired();
    },
    run: ({ node }, wrapper) => node.epilog({ id: victimId, user: alice, wrapper }),
    image: pathImage,
  },
  collector: {
    what: 'a collector with trash, partial trees, an old stub, a dead lease, and entries to evict',
    prepare: async (bench) => {
      await bench.makeEntries(bench.otherImage);
      await bench.served({ id: otherId, user: bob, image: bench.image });
      bench.leave();
      bench.leaveAfterCrashes();
      for (const [number, user] of [alice, bob].entries())
        bench.plant(user, { hash: `000000000000000${number}`, usedSecondsAgo: 4000 - number, files: 4 });
    },
    arrange: (bench) => bench.startOther(),
    run: ({ node }, wrapper) => node.adminBy(wrapper, 'gc', '--force').result,
    image: pathImage,
  },
};

/** A kill and what was hit by it, to be told where something is wrong afterwards. */
export interface Shot {
  readonly scenario: string;
  readonly point: Point;
  readonly mode: KillMode;
}

export const describeShot = ({ scenario, point, mode }: Shot): string =>
  `${scenario} --kill ${point.label}:${point.number} --mode ${mode} (${point.call})`;

/** A program that is not ours makes a call for each file: of more points than this only some are tried. */
const mostPointsOfChild = 9;

/** The kills of a scenario's points: of our programs every one, of the programs they run a sample. */
export function planShots(scenario: string, points: readonly Point[]): Shot[] {
  const ours = (label: string): boolean => label === 'program' || label === 'spawn';
  const chosen = [...Map.groupBy(points, ({ label }) => label)].flatMap(([label, all]) =>
    ours(label) || all.length <= mostPointsOfChild ? all : sample(all),
  );
  return chosen.flatMap((point) => {
    const modes: KillMode[] =
      point.label === 'program' ? ['process', 'group'] : ['process', 'program', 'group'];
    return modes.map((mode) => ({ scenario, point, mode }));
  });
}

/** The first, the middle and the last ones. */
function sample(points: readonly Point[]): Point[] {
  const third = mostPointsOfChild / 3;
  const middle = Math.floor((points.length - third) / 2);
  return [...points.slice(0, third), ...points.slice(middle, middle + third), ...points.slice(-third)];
}

export class CrashBench implements AsyncDisposable {
  readonly node: TestNode;
  readonly image: string;
  readonly otherImage: string;
  readonly reference = 'docker://app:1';
  readonly #scenario: Scenario;
  readonly #tracer: CrashTracer;
  /** What an entry of an image holds, or one that was planted, by its name. */
  readonly #trees = new Map<string, string>();
  /** Entries of a job that runs: they are never to go. */
  #inUse: string[] = [];

  private constructor(scenario: Scenario, node: TestNode, registry: StandInRegistry) {
    this.#scenario = scenario;
    this.node = node;
    this.#tracer = new CrashTracer(node.root);
    this.image = node.image(imageTree);
    this.otherImage = node.image({ 'etc/other': 'x' });
    registry.push('app:1', 'a', imageTree);
    this.#learn(this.image, this.image);
    this.#learn(this.otherImage, this.otherImage);
    this.#learn(this.reference, this.image);
  }

  static async start(name: string): Promise<CrashBench> {
    const scenario = scenarios[name];
    if (scenario === undefined) throw new Error(`There is no scenario "${name}"`);
    const registry = new StandInRegistry();
    const settings = {
      enroot_path: registry.enrootPath,
      container_cache_gc_low: 0,
      gc_min_age: 0,
      create_processors: 1,
      ...(scenario.inodes === undefined ? {} : { container_cache_gc_high: 100 }),
    };
    const bench = new CrashBench(scenario, await TestNode.start({ settings }), registry);
    bench.#mountBase();
    await scenario.prepare(bench);
    await bench.#endJobs();
    bench.#keep();
    return bench;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#unmountBase();
    await this.node[Symbol.asyncDispose]();
  }

  /** Runs the scenario to its end. @returns its points */
  async record(): Promise<readonly Point[]> {
    await this.#begin();
    await this.#scenario.run(this, this.#tracer.wrapper());
    const { points } = this.#tracer.takeReport();
    const { meets } = this.#scenario;
    assert.ok(meets === undefined || points.some(({ call }) => meets.test(call)), `${String(meets)} is met`);
    await this.#recover();
    return points;
  }

  /** @returns false if the point did not come; @throws what does not hold afterwards */
  async shoot(kill: Kill): Promise<boolean> {
    await this.#begin();
    await this.#scenario.run(this, this.#tracer.wrapper(kill));
    const { killed } = this.#tracer.takeReport();
    await this.#recover();
    return killed;
  }

  // What scenarios are made of.

  /** The first job of the user on this node, without an image. */
  async meetUser(): Promise<void> {
    await this.node.prolog({ id: 1, user: alice });
    await this.node.epilog({ id: 1, user: alice });
  }

  async makeEntries(...images: readonly string[]): Promise<void> {
    for (const [index, image] of images.entries()) await this.served({ id: 10 + index, user: alice, image });
  }

  /** A Prolog that has to succeed. @returns its job's entry */
  async served(job: { id: number; user: typeof alice; image: string }): Promise<string> {
    const { exitCode, line } = await this.node.prolog(job);
    assert.is(exitCode, 0);
    assert.ok(
      ['created', 'reused', 'waited'].includes(line['result'] ?? ''),
      `the Prolog of job ${job.id}: ${JSON.stringify(line)}`,
    );
    const entry = this.node.entryPath(job.user, line['entry']!);
    const lease = this.node.lease(job.id);
    assert.ok(lease !== undefined && isAlive(lease.holder.pid), `job ${job.id} has a lease with a holder`);
    assert.equal(lease.entries, [nameOf(entry)]);
    assert.ok(holds(lease.holder.pid, entry), `the holder of job ${job.id} holds its entry`);
    assert.equal(
      holders(job.id)
        .map(({ pid }) => pid)
        .filter((pid) => pid === lease.holder.pid),
      [lease.holder.pid],
    );
    assert.is(this.node.jobFile(job.id, 'images')?.split('\t')[1], nameOf(entry));
    this.#assertWhole(entry);
    return entry;
  }

  async acquired(): Promise<void> {
    const { exitCode, entry, holder, log } = await acquire(this.node, [this.image], { jobId: victimId });
    assert.is(exitCode, 0, JSON.stringify(log));
    const path = this.node.entryPath(alice, entry!);
    assert.ok(holder !== undefined && holds(holder, path), 'the step holds its entry');
    this.#assertWhole(path);
  }

  async startOther(): Promise<void> {
    this.#inUse = [await this.served({ id: otherId, user: bob, image: this.image })];
    utimesSync(this.#inUse[0]!, 1, 1);
  }

  plant(user: typeof alice, entry: Parameters<TestNode['plant']>[1]): void {
    const path = this.node.plant(user, entry);
    this.#trees.set(nameOf(path), describeTree(path));
  }

  /** What a job leaves that was killed in its step. */
  leave(): void {
    const home = this.node.userPath(alice);
    const partial = join(home, partialName(`pyxis_cache_u${alice.uid}_00deadbeef001122`, victimId, 'abcd'));
    const stub = join(home, directoryName(`pyxis_${victimId}.0`));
    mkdirSync(join(partial, 'rootfs/etc'), { recursive: true });
    writeFileSync(join(partial, 'rootfs/etc/half'), 'x');
    mkdirSync(join(stub, '.container-cache/upper/etc'), { recursive: true });
    writeFileSync(join(stub, '.container-cache/upper/etc/written'), 'x');
    writeFileSync(join(stub, '.container-cache/entry'), 'pyxis_cache_u0_0\n-\n/x\n');
    utimesSync(join(stub, '.container-cache/entry'), 1, 1);
    command('chown', '--recursive', `${alice.uid}:${alice.gid}`, partial, stub);
  }

  /** What a collector finds after other crashes. */
  leaveAfterCrashes(): void {
    const { node } = this;
    const home = node.userPath(alice);
    const lock = join(home, createLockName(`pyxis_cache_u${alice.uid}_00deadbeef003344`));
    writeFileSync(lock, '');
    command('chown', `${alice.uid}:${alice.gid}`, lock);
    mkdirSync(join(node.basePath, trashName), { recursive: true, mode: 0o700 });
    const tree = join(node.basePath, trashName, 'pyxis_cache_u59001_00deadbeef005566.abcd');
    mkdirSync(join(tree, 'a/b'), { recursive: true });
    for (const name of ['a/f1', 'a/f2', 'a/b/f3']) writeFileSync(join(tree, name), 'x');
    symlinkSync(node.root, join(tree, 'a/outside'));
    // Process IDs end far below this one.
    const record = {
      jobId: 99,
      uid: alice.uid,
      holder: { pid: 2 ** 30, startTicks: '1' },
      sinceMs: 0,
      entries: [],
    };
    mkdirSync(join(node.runtimePath, 'leases'), { recursive: true });
    writeFileSync(join(node.runtimePath, 'leases/99'), formatLeaseRecord(record));
  }

  // The node before, and after.

  get #kept(): string {
    return join(this.node.root, 'kept');
  }

  #mountBase(): void {
    if (this.#scenario.inodes === undefined) return;
    mkdirSync(this.node.basePath, { recursive: true, mode: 0o755 });
    mount(
      '--types',
      'tmpfs',
      '--options',
      `mode=0755,size=64m,nr_inodes=${this.#scenario.inodes}`,
      'tmpfs',
      this.node.basePath,
    );
  }

  #unmountBase(): void {
    if (this.#scenario.inodes !== undefined) umount(this.node.basePath);
  }

  #keep(): void {
    mkdirSync(this.#kept);
    for (const path of [this.node.basePath, this.node.runtimePath])
      if (existsSync(path)) command('cp', '--archive', path, this.#kept);
  }

  async #begin(): Promise<void> {
    const { basePath, runtimePath, root } = this.node;
    this.#unmountBase();
    for (const pid of this.node.roomAgents()) kill(pid);
    command('rm', '--recursive', '--force', basePath, runtimePath);
    this.#mountBase();
    command('cp', '--archive', `${this.#kept}/.`, root);
    // Not by a program that is traced: the tracer waits for all that such a program starts, and the agent
    // never ends.
    startRoomAgent(runtimePath, this.node.configPath, false);
    await until('the room agent waits', () => hasRoomAgent(runtimePath));
    this.#inUse = [];
    await this.#scenario.arrange?.(this);
  }

  /** What follows a crash on a node: the next job, a collector, the Epilogs, another collector. */
  async #recover(): Promise<void> {
    const { node } = this;
    this.#assertNothingHalf();
    await this.#scenario.again?.(this);
    const entry = await this.served({ id: nextId, user: alice, image: this.#scenario.image(this) });
    await node.gc('--force');
    this.#assertWhole(entry);
    this.#assertNothingHalf();
    await this.#endJobs();
    assert.is((await node.gc()).exitCode, 0);
    this.#assertNothingLeft();
  }

  async #endJobs(): Promise<void> {
    const epilogs = [
      ...[1, victimId, nextId, 10, 11].map((id) => ({ id, user: alice })),
      { id: otherId, user: bob },
    ].filter(({ id }) => id === victimId || existsSync(join(this.node.runtimePath, 'leases', String(id))));
    await Promise.all(
      epilogs.map(async (job) => {
        const { exitCode, line } = await this.node.epilog(job);
        assert.equal([exitCode, line['code']], [0, undefined], line['reason']);
      }),
    );
    this.#inUse = [];
    await this.node.settle();
  }

  #learn(image: string, path: string): void {
    const tree = join(this.node.root, `tree-${basename(image)}`);
    command('unsquashfs', '-no-progress', '-dest', tree, path);
    // The listing is the image's own word for what an entry must hold.
    const listed = command('unsquashfs', '-ls', path)
      .split('\n')
      .filter((line) => line.startsWith('squashfs-root/'));
    const description = describeTree(tree, givenToOwner);
    assert.is(description.split('\n').length, listed.length);
    this.#trees.set(image, description);
  }

  /** Half an entry is worse than none. */
  #assertWhole(entry: string): void {
    const name = nameOf(entry);
    const metadata = parseEntryMetadata(readFileSync(lockFileOf(entry), 'utf8'));
    const wanted = this.#trees.get(name) ?? this.#trees.get(metadata?.image ?? '');
    assert.ok(metadata !== undefined && wanted !== undefined, `${name} says what it is`);
    assert.is(describeTree(entry), wanted, `${name} is whole`);
  }

  /** Entries are whole, those in use are there, and files that are replaced by rename are old or new. */
  #assertNothingHalf(): void {
    const { node } = this;
    for (const entry of [...node.entries(alice), ...node.entries(bob)]) {
      // A damaged entry, without a lock file, is none: nobody uses it, and a Prolog puts it aside.
      if (existsSync(lockFileOf(entry)) || this.#scenario !== scenarios['prolog-damaged'])
        this.#assertWhole(entry);
    }
    for (const entry of this.#inUse) assert.ok(existsSync(entry), `${entry} is in use`);
    const leases = namesIn(join(node.runtimePath, 'leases')).filter(isNoDotFile);
    // A note that a holder was being started is for the Epilog.
    for (const name of leases.filter((one) => !one.endsWith('.starting')))
      assert.ok(
        parseLeaseRecord(readFileSync(join(node.runtimePath, 'leases', name), 'utf8')),
        `lease ${name}`,
      );
    const facts = join(node.runtimePath, 'node');
    if (existsSync(facts)) assert.ok(parseNodeFacts(readFileSync(facts, 'utf8')), 'the node facts are whole');
    for (const id of namesIn(join(node.runtimePath, 'jobs'))) {
      const images = node.jobFile(Number(id), 'images');
      assert.ok(
        images === undefined || /^([^\t\n]+(?:\t[^\t\n]+){3}\n)?$/.test(images),
        `images of job ${id}`,
      );
      const environment = node.jobFile(Number(id), 'env');
      assert.ok(environment === undefined || /^(|export [^\n]+\n)*$/.test(environment), `env of job ${id}`);
    }
  }

  /** After the Epilogs and a collector. */
  #assertNothingLeft(): void {
    const { node } = this;
    assert.equal(holders(), []);
    const users = new RegExp(`^Uid:\\s+(${alice.uid}|${bob.uid})\\s`, 'm');
    const agents = node.roomAgents();
    const left = processes().filter(
      ({ pid, commandLine }) =>
        (commandLine.includes(node.root) && !agents.includes(pid)) || users.test(statusOf(pid)),
    );
    assert.ok(agents.length <= 1, 'one room agent at most');
    assert.equal(left, [], 'no process is left');
    assert.equal(namesIn(join(node.runtimePath, 'leases')), []);
    assert.equal(namesIn(join(node.runtimePath, 'jobs')), []);
    const ofTheNode = ['leases', 'jobs', 'node', 'collector.lock', 'sizes', 'gc-missed', 'room', 'room.lock'];
    assert.equal(without(namesIn(node.runtimePath), ofTheNode), []);
    const known = [collectorLockName, trashName, String(alice.uid), String(bob.uid)];
    assert.equal(without(namesIn(node.basePath), known), []);
    assert.equal(node.trash(), []);
    for (const user of [alice, bob]) {
      // Named by what images have in common, not by their entries.
      const locks = node.others(user).filter((name) => parseCreateLockName(name) !== undefined);
      assert.equal(without(node.others(user), [...locks, digestsName, imagesName]), []);
      assert.equal(
        namesIn(join(node.userPath(user), digestsName)).filter((name) => !/^[0-9a-f]{16}$/.test(name)),
        [],
      );
      const files = [
        ...node.entries(user).map(lockFileOf),
        ...locks.map((name) => join(node.userPath(user), name)),
        join(node.basePath, collectorLockName),
      ];
      for (const file of files) assert.ok(isFree(file), `${file} is locked by nobody`);
    }
  }
}

const isNoDotFile = (name: string): boolean => !name.startsWith('.');
const namesIn = (path: string): string[] => (existsSync(path) ? readdirSync(path).sort() : []);
const without = (names: readonly string[], known: readonly string[]): string[] =>
  names.filter((name) => !known.includes(name));

function statusOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/status`, 'utf8');
  } catch {
    return '';
  }
}

function isFree(file: string): boolean {
  if (!existsSync(file)) return true;
  const fd = openSync(file, 'r');
  try {
    return tryFlock(fd, 'exclusive');
  } finally {
    closeSync(fd);
  }
}

/** What we give the owner, as enroot does. */
const givenToOwner = (mode: number, isDirectory: boolean): number =>
  mode | (isDirectory ? 0o700 : (mode & 0o011) === 0 ? 0o400 : 0o500);

/** A line for each name below a directory: path, mode, and content or target; our lock file apart. */
function describeTree(
  root: string,
  changeMode: (mode: number, isDirectory: boolean) => number = (mode) => mode,
  path = '',
): string {
  const lines = readdirSync(join(root, path))
    .sort()
    .filter((name) => !(path === '' && name === lockFileName))
    .flatMap((name) => {
      const inner = path === '' ? name : `${path}/${name}`;
      const file = join(root, inner);
      const stats = lstatSync(file);
      if (stats.isSymbolicLink()) return [`${inner} -> ${readlinkSync(file)}`];
      const mode = changeMode(stats.mode & 0o7777, stats.isDirectory()).toString(8);
      if (stats.isDirectory()) return [`${inner}/ ${mode}`, describeTree(root, changeMode, inner)];
      return [`${inner} ${mode} ${createHash('sha1').update(readFileSync(file)).digest('hex')}`];
    });
  return lines.filter(Boolean).join('\n');
}

/**
 * Everything is wrong at once if the machine is: a point that fails is told with all that makes it happen
 * again.
 */
export async function tryShot(bench: CrashBench, shot: Shot): Promise<'killed' | 'missed' | Error> {
  try {
    const { label, number } = shot.point;
    for (let attempt = 0; attempt < 3; attempt++)
      if (await bench.shoot({ label, number, mode: shot.mode })) return 'killed';
    return 'missed';
  } catch (cause) {
    return new Error(`${describeShot(shot)}: ${(cause as Error).message}`, { cause });
  }
}
