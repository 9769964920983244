/** `container-cache gc`: its plan, what it prints, its exit codes. */
// test: timeout 600 s
import { spawn } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { readUsage } from '../../lib/system/disk-usage.ts';
import { makeExt4, unlessExt4 } from '../helpers/filesystem.ts';
import { holders, TestNode, type NodeOptions, nameOf } from '../helpers/node.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  replaceProgram,
  unlessPrivateMachine,
} from '../helpers/private-machine.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const hash = (number: number): string => number.toString(16).padStart(16, '0');
const everything = { container_cache_gc_high: 1, container_cache_gc_low: 0, gc_min_age: 0 };

/** All that a look could change: names, inodes, owners, modes, times of content and of attributes. */
const listing = (path: string): string => command('find', path, '-printf', '%p %i %u:%g %m %s %T@ %C@ %l\n');

const plan = suite('gc --dry-run', { skip: unlessPrivateMachine });

interface Forecast {
  due: boolean;
  plan: {
    room: { bytes: number; inodes: number };
    evict: { name: string; uid: number; inodes: number }[];
    reserve: { name: string }[];
    kept: { entry: { name: string }; reason: string }[];
  };
}

async function forecast(node: TestNode, ...options: string[]): Promise<Forecast> {
  const { exitCode, stdout, stderr } = await node.gc('--dry-run', '--json', ...options);
  assert.is(exitCode, 0, stderr);
  return JSON.parse(stdout) as Forecast;
}

/** A node with what a collector may meet. */
async function crowdedNode(settings: NodeOptions['settings'], basePath?: string): Promise<TestNode> {
  const node = await TestNode.start({
    settings: settings ?? {},
    ...(basePath === undefined ? {} : { basePath }),
  });
  for (let number = 0; number < 6; number++)
    node.plant(number % 2 === 0 ? alice : bob, {
      hash: hash(number),
      usedSecondsAgo: 9000 - 1000 * number,
      files: 40,
    });
  node.plant(bob, { hash: hash(10), usedSecondsAgo: 5500, files: 40, metadata: null });
  node.plant(alice, { hash: hash(11), usedSecondsAgo: 5 });
  await node.prolog({ id: 7, user: alice, image: node.image() });
  await node.settle();
  const partial = join(node.userPath(alice), `.pyxis_cache_u${alice.uid}_${hash(12)}.7-ab.partial`);
  mkdirSync(partial);
  command('chown', `${alice.uid}:${alice.gid}`, partial);
  mkdirSync(join(node.basePath, '.trash/left.abc'), { recursive: true });
  writeFileSync(join(node.userPath(bob), 'file'), '');
  symlinkSync('/etc', join(node.userPath(bob), `.pyxis_cache_u${bob.uid}_${hash(13)}`));
  return node;
}

plan('changes nothing', async () => {
  await using node = await crowdedNode({ ...everything, gc_min_age: 60 });
  const before = listing(node.root);
  await node.gc('--dry-run');
  await node.gc('--dry-run', '--json', '--force');
  assert.is(listing(node.root), before);
});

plan('is what happens then', async () => {
  await using node = await crowdedNode({ ...everything, gc_min_age: 60 });
  const { due, plan: planned } = await forecast(node, '--force');
  assert.ok(due);
  const { stdout } = await node.gc('--force', '--json');
  const result = JSON.parse(stdout) as { evicted: { name: string }[]; kept: Record<string, number> };
  assert.equal(
    result.evicted.map(({ name }) => name),
    [...planned.evict, ...planned.reserve].map(({ name }) => name),
  );
  const reasons: Record<string, number> = {};
  for (const { reason } of planned.kept) reasons[reason] = (reasons[reason] ?? 0) + 1;
  assert.equal(result.kept, reasons);
  assert.equal(result.kept, { young: 1, leased: 1 });
  assert.is(result.evicted.length, 7);
});

plan('says for people what goes, what would be spared, and why the rest stays', async () => {
  await using node = await crowdedNode({ gc_min_age: 60 });
  const { exitCode, stdout } = await node.gc('--dry-run');
  assert.is(exitCode, 0);
  const lines = stdout.trimEnd().split('\n');
  assert.match(
    lines[0]!,
    /^blocks \d+\.\d % used, inodes \d+\.\d % used; a collection starts at 85 % and ends below 80 %$/,
  );
  assert.is(lines[1], 'No collection is due.');
  assert.is(lines.filter((line) => line.startsWith('spare  ')).length, 7);
  assert.match(
    stdout,
    new RegExp(`^spare  .*uid=${bob.uid} entry=pyxis_cache_u${bob.uid}_${hash(1)} .*image=/images/`, 'm'),
  );
  assert.match(stdout, /^keep .* because=leased$/m);
  assert.match(stdout, /^keep .* because=young$/m);
});

plan('says what --force does, at any usage', async () => {
  await using node = await crowdedNode({ gc_min_age: 60 });
  const verdict = async (...parameters: string[]): Promise<string> =>
    (await node.gc('--dry-run', ...parameters)).stdout.split('\n')[1]!;
  const { stdout } = await node.gc('--dry-run', '--force');
  assert.is(
    await verdict('--force'),
    'No collection is due, and --force evicts nothing: usage is below the low watermark.',
  );
  assert.not.match(stdout, /^evict/m);
  assert.match(stdout, /^trash  deleted first: 1 in \.trash$/m);
  node.configure({ container_cache_gc_high: 100, container_cache_gc_low: 0, gc_min_age: 60 });
  assert.is(await verdict('--force'), 'No collection is due; --force collects anyway.');
  assert.is(await verdict(), 'No collection is due.');
});

plan('an image name in an entry cannot move the cursor of who reads the plan', async () => {
  await using node = await TestNode.start({ settings: everything });
  const image = '/x\u001b[2J\nevict  uid=0';
  const metadata = JSON.stringify({ version: 1, image, createdAtMs: 0, unpackMs: 0, bytes: 1, inodes: 1 });
  node.plant(alice, { hash: hash(1), usedSecondsAgo: 100, metadata });
  const { stdout } = await node.gc('--dry-run', '--force');
  assert.not(stdout.includes('\u001b'));
  assert.is(stdout.match(/^evict/gm)?.length, 1);
});

plan('of a node without a base, or without entries, is empty', async () => {
  await using node = await TestNode.start({ settings: everything });
  const { plan: planned } = await forecast(node, '--force');
  assert.equal([planned.evict, planned.reserve, planned.kept], [[], [], []]);
});

plan.run();

const exact = suite('gc --dry-run on a disk that is too full', { skip: unlessExt4() });

exact('plans, by what true entries claim, just what is then evicted', async () => {
  using disk = makeExt4({ mebibytes: 32, inodes: 512 });
  const node = await crowdedNode(
    // Not due while it is filled, or the Prolog would begin.
    { container_cache_gc_high: 100, container_cache_gc_low: 99, gc_min_age: 60 },
    disk.path,
  );
  {
    await using _ = node;
    node.configure({ container_cache_gc_high: 50, container_cache_gc_low: 35, gc_min_age: 60 });
    // What leftovers take is freed beforehand, and not part of the plan.
    command('rm', '--recursive', join(disk.path, '.trash/left.abc'));
    const { totalInodes, freeInodes } = readUsage(disk.path);
    assert.ok(freeInodes / totalInodes < 0.5);
    const { due, plan: planned } = await forecast(node);
    assert.ok(due && planned.evict.length > 0 && planned.reserve.length > 0);
    const claimed = planned.evict.reduce((sum, { inodes }) => sum + inodes, 0);
    assert.ok(planned.room.inodes > 0 && planned.room.inodes <= claimed);
    assert.match(
      (await node.gc('--dry-run')).stdout,
      new RegExp(`^room   .* and ${planned.room.inodes} inodes must be freed$`, 'm'),
    );
    const { stdout } = await node.gc('--json');
    const { evicted } = JSON.parse(stdout) as { evicted: { name: string }[] };
    assert.equal(
      evicted.map(({ name }) => name),
      planned.evict.map(({ name }) => name),
    );
    await node.epilog({ id: 7, user: alice });
    await node.settle();
  }
});

exact.run();

const usage = suite('gc: use and misuse', { skip: unlessPrivateMachine });

usage('prints one line per eviction and a summary, or with --json one document', async () => {
  await using node = await TestNode.start({ settings: everything });
  const entry = node.plant(alice, { hash: hash(1), usedSecondsAgo: 100, files: 5 });
  const { stdout, exitCode } = await node.gc('--force');
  assert.is(exitCode, 1, 'below 0 percent no disk can get');
  const [eviction, summary] = stdout.trimEnd().split('\n');
  assert.match(
    eviction!,
    new RegExp(
      `^gc-evicted uid=${alice.uid} entry=${nameOf(entry)} image=/images/${hash(1)}.sqsh unused_seconds=1\\d\\d freed_bytes=\\d+ freed_inodes=\\d+$`,
    ),
  );
  assert.match(
    summary!,
    /^gc result=goal-missed evicted=1 freed_bytes=\d+ freed_inodes=\d+ free_bytes=\d+ free_inodes=\d+ /,
  );

  node.plant(alice, { hash: hash(1), usedSecondsAgo: 100 });
  const json = await node.gc('--force', '--json');
  assert.is((JSON.parse(json.stdout) as { result: string }).result, 'goal-missed');
});

usage('in the background prints nothing and logs', async () => {
  await using node = await TestNode.start({ settings: everything });
  node.plant(alice, { hash: hash(1), usedSecondsAgo: 100 });
  const { exitCode, stdout, lines } = await node.gc('--background', '--force');
  assert.equal([exitCode, stdout], [0, '']);
  assert.equal(
    lines.map(({ word }) => word),
    ['gc-evicted', 'gc'],
  );
});

usage('wrong use exits 2 and says how; what cannot be done exits 1 and says why', async () => {
  await using node = await TestNode.start();
  node.configure(everything);
  const entry = node.plant(alice, { hash: hash(1), usedSecondsAgo: 100 });
  for (const parameters of [
    [],
    ['nothing'],
    ['gc', '--force', '--dry-rn'],
    ['gc', '--force', '--no-such-option'],
    ['gc', '--force', 'extra'],
  ]) {
    const { exitCode, stderr, stdout } = await node.admin(...parameters).result;
    assert.equal([parameters, exitCode, stdout], [parameters, 2, '']);
    assert.match(stderr, /container-cache --help/);
    assert.ok(existsSync(entry), 'a typing error in --dry-run would have collected');
  }
  node.writeConfig('container_cache_data_path=relative\n');
  const { exitCode, stderr } = await node.gc();
  assert.is(exitCode, 1);
  assert.match(stderr, /^container-cache: BAD_CONFIG: .*want an absolute path/);
});

usage('a base that is not safe is not collected', async () => {
  await using node = await TestNode.start({ settings: everything });
  const entry = node.plant(alice, { hash: hash(1), usedSecondsAgo: 100 });
  command('chmod', '0777', node.basePath);
  const { exitCode, stderr } = await node.gc('--force');
  assert.is(exitCode, 1);
  assert.match(stderr, /^container-cache: BASE_UNSAFE: /);
  assert.ok(existsSync(entry));
});

usage('help is there for the command and for gc', async () => {
  await using node = await TestNode.start();
  for (const parameters of [['--help'], ['gc', '--help']]) {
    const { exitCode, stdout } = await node.admin(...parameters).result;
    assert.is(exitCode, 0);
    assert.match(stdout, /gc/);
  }
});

usage.run();

const overdue = suite('gc: leases that no Epilog released', { skip: unlessPrivateMachine });

/** Slurm's answer; a number: how squeue fails. */
function squeue(answer: string | number): Disposable {
  const fails = `echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit ${answer}`;
  return replaceProgram('squeue', typeof answer === 'number' ? fails : `printf '${answer}'`);
}

/** A node with two jobs, each with an entry of its own, whose leases are as old as told. */
async function withLeases(minutes: number): Promise<TestNode> {
  const node = await TestNode.start({ settings: everything });
  for (const id of [7, 8]) {
    await node.prolog({ id, user: alice, image: node.image({ file: `of ${id}` }) });
    const path = join(node.runtimePath, 'leases', String(id));
    const record = JSON.parse(readFileSync(path, 'utf8')) as { sinceMs: number };
    writeFileSync(path, JSON.stringify({ ...record, sinceMs: record.sinceMs - minutes * 60_000 }));
  }
  return node;
}

const heldJobs = (node: TestNode): number[] => node.leases().map(({ jobId }) => jobId);

overdue('go when slurmctld no longer knows the job; what it knows stays', async () => {
  await using node = await withLeases(11);
  using _ = squeue('8\\n');
  const [entry = ''] = node.lease(7)!.entries;
  const forecast = await node.gc('--dry-run');
  assert.match(forecast.stdout, /^lease  job=7 uid=\d+: slurmctld says that the job has ended/m);
  assert.not.match(forecast.stdout, /job=8/);
  assert.equal(heldJobs(node), [7, 8]);
  const { lines } = await node.gc('--background', '--force');
  assert.equal(heldJobs(node), [8]);
  assert.equal([holders(7).length, holders(8).length], [0, 1]);
  assert.equal([node.jobFile(7, 'images'), typeof node.jobFile(8, 'images')], [undefined, 'string']);
  const told = lines.find(({ word }) => word === 'lease-overdue');
  assert.equal([told?.fields['job'], told?.fields['entries']], ['7', entry]);
  assert.equal(node.entries(alice).map(nameOf), node.lease(8)!.entries);
  await node.epilog({ id: 8, user: alice });
});

overdue(
  'stay while slurmctld does not answer, while they are young, and while the job has a process',
  async () => {
    for (const { minutes, answer, jobHasProcess } of [
      { minutes: 11, answer: 1, jobHasProcess: false },
      { minutes: 9, answer: '', jobHasProcess: false },
      { minutes: 11, answer: '', jobHasProcess: true },
    ]) {
      await using node = await withLeases(minutes);
      using _ = squeue(answer);
      const environment = { PATH: '/usr/bin:/bin', SLURM_JOB_ID: '7' };
      const child = jobHasProcess ? spawn('sleep', ['1000'], { env: environment }) : undefined;
      // What another user says of that job is no process of it.
      const { uid, gid } = bob;
      const other = spawn('sleep', ['1000'], { env: { ...environment, SLURM_JOB_ID: '8' }, uid, gid });
      try {
        await node.gc('--background');
        assert.equal(heldJobs(node), jobHasProcess ? [7] : [7, 8], JSON.stringify({ minutes, answer }));
      } finally {
        child?.kill('SIGKILL');
        other.kill('SIGKILL');
      }
      for (const id of [7, 8]) await node.epilog({ id, user: alice });
    }
  },
);

/** A Slurm with a prefix: a slurmd that only runs, and a squeue that knows job 8 and notes its SLURM_CONF. */
function startOtherSlurm(prefix: string): Disposable & { readonly asked: () => string } {
  for (const name of ['sbin', 'bin', 'etc']) mkdirSync(join(prefix, name), { recursive: true });
  copyFileSync('/usr/bin/sleep', join(prefix, 'sbin/slurmd'));
  const noted = join(prefix, 'asked');
  writeFileSync(join(prefix, 'bin/squeue'), `#!/bin/sh\necho "$SLURM_CONF" >>${noted}\necho 8\n`, {
    mode: 0o755,
  });
  const slurmd = spawn(join(prefix, 'sbin/slurmd'), ['1000'], {
    env: { SLURM_CONF: `${prefix}/etc/slurm.conf` },
  });
  return {
    asked: () => readFileSync(noted, 'utf8'),
    [Symbol.dispose]: () => {
      slurmd.kill('SIGKILL');
    },
  };
}

overdue('are found by the squeue and the slurm.conf of the slurmd that runs, wherever they are', async () => {
  await using node = await withLeases(11);
  // Another Slurm's, in PATH: it knows nothing of these jobs.
  using _ = squeue('7\\n8\\n');
  const prefix = join(node.root, 'opt/slurm');
  using slurm = startOtherSlurm(prefix);
  await node.gc('--background', '--force');
  assert.equal(heldJobs(node), [8]);
  assert.is(slurm.asked(), `${prefix}/etc/slurm.conf\n`);
  await node.epilog({ id: 8, user: alice });
});

overdue.run();
