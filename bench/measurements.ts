/**
 * The measurements, one for each goal of the project. All that is not the thing measured (Epilogs, deletions,
 * writing back to disk) happens between the samples.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import { basename, join } from 'node:path';
import process from 'node:process';
import { setTimeout as delay } from 'node:timers/promises';
import { formatEntryMetadata, parseEntryMetadata } from '../lib/core/entry-metadata.ts';
import { usedPercent } from '../lib/core/gc-plan.ts';
import {
  createLockName,
  directoryName,
  entryName,
  entryPath,
  lockPath,
  trashPath,
  userPath,
} from '../lib/core/layout.ts';
import { holdEntry } from '../lib/store/held-entry.ts';
import { writeJobFiles } from '../lib/store/job-files.ts';
import { releaseLease, takeLease } from '../lib/store/lease.ts';
import { bootId } from '../lib/system/boot.ts';
import { readUsage } from '../lib/system/disk-usage.ts';
import { readMounts } from '../lib/system/mounts.ts';
import { listProcesses } from '../lib/system/processes.ts';
import { slurmdEnvironment } from '../test/helpers/slurmd-calls.ts';
import { busyLoops, startBusyLoops } from './busy-loops.ts';
import type { Finding } from './report.ts';
import { compare, Samples } from './samples.ts';
import { interleave } from '../test/helpers/statistics.ts';
import {
  isCollectorRunning,
  removeAndSettle,
  settleDisk,
  timeProgram,
  waitForCollectors,
  type Node,
  type Workbench,
} from './workbench.ts';

interface Measurement {
  readonly id: string;
  readonly title: string;
  readonly measure: (bench: Workbench) => Finding[] | Promise<Finding[]>;
}

export const measurements: readonly Measurement[] = [
  { id: 'a', title: 'warm Prolog and Epilog against the bare runtime', measure: measureWarm },
  { id: 'b', title: 'cold Prolog against bare unsquashfs', measure: measureCold },
  { id: 'c', title: 'Prolog that sets off an eviction against a warm one', measure: measureEviction },
  { id: 'd', title: 'memory of a lease holder', measure: measureHolder },
  { id: 'e', title: 'warm Prolog on a crowded node against an empty one', measure: measureCrowd },
];

/** First calls fill caches and are not counted. */
const warmUpRounds = 3;

const warmGoal = 1.4;
const busyGoal = 1.6;
const warmRounds = 40;

function measureWarm(bench: Workbench): Finding[] {
  const { plan } = bench;
  const node = bench.configure('warm', 'data');
  const emptyProgram = join(plan.directory, 'nothing.cjs');
  fs.writeFileSync(emptyProgram, '');
  // The same environment, so that only what the Prolog does is left.
  const environment = slurmdEnvironment('prolog', bench.newJob(plan.tinyImagePath), node.configPath);
  bench.prologAndEpilog(node, plan.bigImagePath, 'created');
  const kinds = ['warm', 'bare', 'floor'] as const;
  const measure = (rounds: number): Samples<'warm' | 'epilog' | 'bare' | 'floor'> => {
    const samples = new Samples<'warm' | 'epilog' | 'bare' | 'floor'>();
    const run = {
      warm: () => {
        const { durationMs, epilogMs } = bench.prologAndEpilog(node, plan.bigImagePath, 'reused');
        samples.add('epilog', epilogMs);
        return durationMs;
      },
      bare: () => timeProgram(process.execPath, [emptyProgram], { environment }),
      floor: () => timeProgram('/bin/true', [], { environment }),
    };
    for (const kind of interleave(kinds, rounds)) samples.add(kind, run[kind]());
    return samples;
  };
  measure(warmUpRounds);
  const samples = measure(warmRounds);
  const measureBusy = (): ReturnType<typeof measure> => {
    using _ = startBusyLoops(busyLoops);
    measure(warmUpRounds);
    return measure(warmRounds);
  };
  const busy = measureBusy();
  const bare = samples.figure('bare', 'bare runtime');
  const busyBare = busy.figure('bare', `bare runtime, ${busyLoops} busy loops`);
  return [
    compare('a', samples.figure('warm', 'warm Prolog'), bare, { goal: warmGoal }),
    compare('a', samples.figure('epilog', 'Epilog'), bare, { goal: warmGoal }),
    compare('a', busy.figure('warm', `warm Prolog, ${busyLoops} busy loops`), busyBare, { goal: busyGoal }),
    compare('a', busy.figure('epilog', `Epilog, ${busyLoops} busy loops`), busyBare, {}),
    compare('a', bare, samples.figure('floor', '/bin/true'), {
      note: 'B is what starting any program costs here; both A and B of the goal contain it',
    }),
  ];
}

const coldGoal = 1.05;
const coldRounds = 6;
const warmPerCold = 3;

async function measureCold(bench: Workbench): Promise<Finding[]> {
  const { plan } = bench;
  const node = bench.configure('cold', 'cold');
  const unpack = await observeUnpack(bench, node);
  const destination = join(bench.userPath(node), 'bare-unsquashfs');
  const samples = new Samples<'cold' | 'bare' | 'warm'>();
  const run = {
    cold: () => {
      const { job, lease, durationMs } = bench.prologAndEpilog(node, plan.bigImagePath, 'created');
      samples.add('cold', durationMs);
      for (let count = 0; count < warmPerCold; count++)
        samples.add('warm', bench.prologAndEpilog(node, job.image, 'reused').durationMs);
      removeAndSettle(...lease.entries.map((name) => join(bench.userPath(node), directoryName(name))));
    },
    bare: () => {
      const durationMs = timeProgram(
        'prlimit',
        [`--nofile=${unpack.openFiles}`, ...unpack.command(destination)],
        {
          user: plan.user,
        },
      );
      samples.add('bare', durationMs);
      removeAndSettle(destination);
    },
  };
  for (const kind of interleave(['cold', 'bare'] as const, coldRounds)) run[kind]();
  const cold = samples.figure('cold', 'cold Prolog');
  const bare = samples.figure('bare', 'bare unsquashfs');
  const warm = samples.figure('warm', 'warm Prolog');
  return [
    {
      ...compare('b', cold, bare, { goal: coldGoal }),
      result: (cold.value.median - warm.value.median) / bare.value.median,
      formula: `(A - ${warm.value.median.toFixed(1)} ms, a warm Prolog) / B`,
      note: `B is, as the same user, what the Prolog was seen to run: ${unpack.command('DESTINATION').slice(0, -1).join(' ')} IMAGE`,
    },
  ];
}

interface ObservedUnpack {
  /** The command with another destination. */
  readonly command: (destination: string) => string[];
  /** Its limit of open files, by which unsquashfs sizes its tables. */
  readonly openFiles: string;
}

/** Looks at the unsquashfs of a cold Prolog while it runs: the bare one must have the same flags. */
async function observeUnpack(bench: Workbench, node: Node): Promise<ObservedUnpack> {
  const { plan } = bench;
  const job = bench.newJob(plan.bigImagePath);
  const child = spawn(plan.prologPath, [], {
    cwd: '/',
    env: slurmdEnvironment('prolog', job, node.configPath),
    stdio: 'ignore',
  });
  const ended = once(child, 'exit');
  let seen: { argv: string[]; limits: string; uid: string | undefined } | undefined;
  while (seen === undefined && child.exitCode === null && child.signalCode === null) {
    await delay(5);
    seen = listProcesses().map(lookAtUnpack).find(Boolean);
  }
  await ended;
  bench.epilog(node, job);
  removeAndSettle(bench.userPath(node));
  // The next Prolog must make only its entry, not the user's directory as well.
  fs.mkdirSync(bench.userPath(node), { mode: 0o700 });
  fs.chownSync(bench.userPath(node), plan.user.uid, plan.user.gid);

  const flag = seen?.argv.findIndex((word) => word === '-dest' || word === '-d') ?? -1;
  const openFiles = /^Max open files +(\d+)/m.exec(seen?.limits ?? '')?.[1];
  if (seen === undefined || flag < 0 || openFiles === undefined)
    throw new Error('Saw no unsquashfs with a destination while a cold Prolog ran');
  if (seen.uid !== String(plan.user.uid))
    throw new Error(`unsquashfs ran as uid ${String(seen.uid)}, want ${plan.user.uid}`);
  const { argv } = seen;
  return { command: (destination) => argv.with(flag + 1, destination), openFiles };
}

function lookAtUnpack(pid: number): { argv: string[]; limits: string; uid: string | undefined } | undefined {
  try {
    const argv = fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').slice(0, -1);
    if (basename(argv[0] ?? '') !== 'unsquashfs') return undefined;
    const status = fs.readFileSync(`/proc/${pid}/status`, 'latin1');
    const limits = fs.readFileSync(`/proc/${pid}/limits`, 'latin1');
    return { argv, limits, uid: /^Uid:\s+(\d+)/m.exec(status)?.[1] };
  } catch {
    // It ended while we looked.
    return undefined;
  }
}

const evictionGoal = 1.5;
const evictionRounds = 6;
const warmPerEviction = 3;
const oneDaySeconds = 86_400;

async function measureEviction(bench: Workbench): Promise<Finding[]> {
  const { plan } = bench;
  const calm = bench.configure('calm', 'evict');
  // Always due and never done: what may be evicted is evicted. All but the victims is too young.
  const due = bench.configure('due', 'evict', {
    container_cache_gc_high: 1,
    container_cache_gc_low: 0,
    gc_min_age: oneDaySeconds,
  });
  const usage = usedPercent(readUsage(plan.directory));
  if (usage < 1)
    throw new Error(
      `${plan.directory} is ${usage.toFixed(2)} % full, want at least 1 %: give another --directory`,
    );

  bench.prologAndEpilog(calm, plan.tinyImagePath, 'created');
  // Epilogs get the calm configuration: they start collectors as well.
  const samples = new Samples<'evict' | 'create' | 'warm' | 'eviction'>();
  const victims: string[] = [];
  let outlived = 0;
  const run = {
    warm: () => {
      for (let count = 0; count < warmPerEviction; count++)
        samples.add('warm', bench.prologAndEpilog(due, plan.tinyImagePath, 'reused', calm).durationMs);
    },
    create: () => {
      withCopy(plan.tinyImagePath, (image) => {
        settleDisk();
        samples.add('create', bench.prologAndEpilog(calm, image, 'created').durationMs);
      });
    },
    evict: async () => {
      victims.push(makeVictim(bench, calm));
      await withCopy(plan.tinyImagePath, async (image) => {
        settleDisk();
        const startedAtMs = performance.now();
        const { job, durationMs } = bench.prolog(due, image, 'created');
        if (isCollectorRunning()) outlived++;
        samples.add('evict', durationMs);
        await waitForCollectors();
        samples.add('eviction', performance.now() - startedAtMs);
        bench.epilog(calm, job);
      });
      const left = fs.readdirSync(trashPath(due.basePath));
      if (left.length > 0) throw new Error(`The collector left ${left.join(', ')} in the trash`);
    },
  };
  for (const kind of interleave(['warm', 'create', 'evict'] as const, evictionRounds)) {
    await run[kind]();
    // A warm Prolog must start none, however full the disk is.
    if (isCollectorRunning()) throw new Error(`A collector runs after "${kind}"`);
  }
  await proveEvictions(bench, victims);
  removeAndSettle(due.basePath);

  const evict = samples.figure('evict', 'creates a tiny entry, sets off an eviction');
  const create = samples.figure('create', 'creates a tiny entry');
  const warm = samples.figure('warm', 'warm Prolog');
  const eviction = samples.figure('eviction', 'eviction').value;
  return [
    compare('c', evict, warm, {
      goal: evictionGoal,
      note:
        `the collector of A ended ${(eviction.median / 1000).toFixed(1)} s after the Prolog began; ` +
        `of ${victims.length} collectors ${outlived} were still at work when their Prolog ended`,
    }),
    compare('c', create, warm),
    compare('c', evict, create),
  ];
}

/** Another path is another image: so each creation is one. */
function withCopy<T>(imagePath: string, action: (copyPath: string) => T): T {
  const copyPath = `${imagePath}-${process.hrtime.bigint()}`;
  fs.copyFileSync(imagePath, copyPath);
  return action(copyPath);
}

const leastVictimInodes = 20_000;

/** Makes a big entry that was last used long ago, written back to disk. */
function makeVictim(bench: Workbench, node: Node): string {
  const link = `${bench.plan.bigImagePath}-${process.hrtime.bigint()}`;
  fs.linkSync(bench.plan.bigImagePath, link);
  const [name] = bench.prologAndEpilog(node, link, 'created').lease.entries;
  fs.rmSync(link);
  if (name === undefined) throw new Error('A lease without an entry');
  const path = join(bench.userPath(node), directoryName(name));
  // What the log says it freed is the filesystem's number, in which other programs have a share.
  const inodes = parseEntryMetadata(fs.readFileSync(lockPath(path), 'utf8'))?.inodes ?? 0;
  if (inodes < leastVictimInodes) throw new Error(`${path} has ${inodes} inodes, want ${leastVictimInodes}`);
  const longAgo = Date.now() / 1000 - 2 * oneDaySeconds;
  fs.utimesSync(path, longAgo, longAgo);
  settleDisk();
  return name;
}

async function proveEvictions(bench: Workbench, victims: readonly string[]): Promise<void> {
  for (const victim of victims) await bench.waitForSyslog(new RegExp(` gc-evicted .*entry=${victim} `));
}

const holderGoalMiB = 2;
const holderCount = 9;

function measureHolder(bench: Workbench): Finding[] {
  const node = bench.configure('holder', 'data');
  const { tinyImagePath } = bench.plan;
  bench.prologAndEpilog(node, tinyImagePath, 'created');
  const samples = new Samples<'Rss' | 'Pss'>();
  for (let count = 0; count < holderCount; count++) {
    const { job, lease } = bench.prolog(node, tinyImagePath, 'reused');
    const rollup = fs.readFileSync(`/proc/${lease.holder.pid}/smaps_rollup`, 'latin1');
    for (const key of ['Rss', 'Pss'] as const) {
      const kib = new RegExp(`^${key}: +(\\d+) kB`, 'm').exec(rollup)?.[1];
      if (kib === undefined) throw new Error(`Cannot read ${key} of holder ${lease.holder.pid}: ${rollup}`);
      samples.add(key, Number(kib) / 1024);
    }
    bench.epilog(node, job);
  }
  const finding = (what: 'Rss' | 'Pss', explanation: string, goal: number | undefined): Finding => {
    const a = samples.figure(what, `holder, ${what} (${explanation})`, 'MiB');
    return { id: 'd', a, b: undefined, result: a.value.median, formula: undefined, goal, note: undefined };
  };
  return [
    finding('Rss', 'all resident pages', holderGoalMiB),
    finding('Pss', 'shared ones by share', undefined),
  ];
}

const crowdGoal = 1.2;
const crowdEntryCount = 1000;
const crowdUserCount = 100;
const crowdLeaseCount = 200;
const crowdRounds = 8;
const samplesPerCrowdRound = 5;
/** Nobody has an account with these numbers. */
const firstCrowdUid = 2_000_000_000;
const firstCrowdJobId = 1_000_000;

async function measureCrowd(bench: Workbench): Promise<Finding[]> {
  const { tinyImagePath } = bench.plan;
  const nodes = { empty: bench.configure('empty', 'empty'), crowded: bench.configure('crowded', 'crowded') };
  for (const node of Object.values(nodes)) bench.prologAndEpilog(node, tinyImagePath, 'created');
  const entries = makeCrowd(bench, nodes.crowded);
  const samples = new Samples<'empty' | 'crowded'>();
  for (const [round, kind] of interleave(['empty', 'crowded'] as const, crowdRounds + 1).entries()) {
    const node = nodes[kind];
    if (kind === 'crowded') await takeCrowdLeases(node, entries);
    for (let count = 0; count < samplesPerCrowdRound; count++) {
      const { durationMs } = bench.prologAndEpilog(node, tinyImagePath, 'reused');
      // The first of each kind is for the caches.
      if (round >= 2) samples.add(kind, durationMs);
    }
    if (kind === 'crowded') await releaseCrowdLeases(node);
  }
  return [
    compare(
      'e',
      samples.figure('crowded', 'warm Prolog, crowded node'),
      samples.figure('empty', 'empty node'),
      {
        goal: crowdGoal,
        note: `crowded: ${entries.length} other entries of ${crowdUserCount + 1} users, ${crowdLeaseCount} leases with living holders`,
      },
    ),
  ];
}

interface CrowdEntry {
  readonly user: { readonly uid: number; readonly gid: number };
  readonly name: string;
}

/** Small, but with all that belongs to an entry; the job's own user has some, too. */
function makeCrowd(bench: Workbench, node: Node): CrowdEntry[] {
  const { user } = bench.plan;
  const entries = Array.from({ length: crowdEntryCount }, (_, index): CrowdEntry => {
    const number = index % (crowdUserCount + 1);
    const uid = number === crowdUserCount ? user.uid : firstCrowdUid + number;
    const gid = number === crowdUserCount ? user.gid : uid;
    return { user: { uid, gid }, name: entryName(uid, index.toString(16).padStart(16, '0')) };
  });
  for (const entry of entries) makeCrowdEntry(node, entry);
  return entries;
}

function makeCrowdEntry(node: Node, { user, name }: CrowdEntry): void {
  const directory = userPath(node.basePath, user.uid);
  const path = entryPath(node.basePath, user.uid, name);
  const paths = [directory, path, join(path, 'etc'), join(path, 'usr'), join(path, 'usr/bin')];
  for (const made of paths) fs.mkdirSync(made, { recursive: true, mode: 0o700 });
  const metadata = {
    image: `/images/${name}.sqsh`,
    createdAtMs: Date.now(),
    unpackMs: 1000,
    bootId: bootId(),
    bytes: 20_480,
    inodes: 6,
  };
  const files = {
    [lockPath(path)]: formatEntryMetadata(metadata),
    [join(path, 'etc/os-release')]: 'ID=sample\n',
    [join(directory, createLockName(name))]: '',
  };
  for (const [file, text] of Object.entries(files)) fs.writeFileSync(file, text, { mode: 0o600 });
  for (const owned of [...paths, ...Object.keys(files)]) fs.chownSync(owned, user.uid, user.gid);
}

/** Taken as a Prolog takes them, but from here: 200 Prologs would take a while. */
async function takeCrowdLeases(node: Node, entries: readonly CrowdEntry[]): Promise<void> {
  const mounts = readMounts();
  for (const [index, { user, name }] of entries.slice(0, crowdLeaseCount).entries()) {
    const path = entryPath(node.basePath, user.uid, name);
    const held = await holdEntry(user, path, name, mounts);
    if (held === undefined) throw new Error(`Cannot hold ${path}: there is no such entry`);
    const job = { jobId: firstCrowdJobId + index, ...user };
    takeLease(node.runtimePath, job, [held]);
    fs.closeSync(held.fd);
    const images = [{ image: `/images/${name}.sqsh`, entry: name, stamp: '1 1.0' }];
    writeJobFiles(node.runtimePath, job, { environment: 'export ENROOT_ROOTFS_WRITABLE=n\n', images });
  }
}

async function releaseCrowdLeases(node: Node): Promise<void> {
  let stopped = 0;
  for (let index = 0; index < crowdLeaseCount; index++)
    stopped += releaseLease(node.runtimePath, firstCrowdJobId + index).stopped;
  if (stopped !== crowdLeaseCount)
    throw new Error(`${stopped} lease holders were alive, want ${crowdLeaseCount}`);
  // They are our children: the runtime reaps them when it comes to it.
  await delay(100);
}
