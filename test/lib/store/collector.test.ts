/** The collector on real small filesystems: what goes, in which order, and what stays. */
// test: timeout 600 s
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  existsSync,
  lchownSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { blocksUsedPercent, inodesUsedPercent } from '../../../lib/core/gc-plan.ts';
import { directoryName, entryName, lockFileName } from '../../../lib/core/layout.ts';
import { readUsage } from '../../../lib/system/disk-usage.ts';
import { end, endAll, inBackground, unshare } from '../../helpers/background-script.ts';
import { makeExt4, unlessExt4 } from '../../helpers/filesystem.ts';
import { HeldProgram } from '../../helpers/held-program.ts';
import {
  isAlive,
  lockFileOf,
  nameOf,
  setUsed,
  TestNode,
  until,
  type ProgramResult,
} from '../../helpers/node.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  machineRoot,
  unlessPrivateMachine,
} from '../../helpers/private-machine.ts';
import { assert, suite } from '../../helpers/suite.ts';

enterPrivateMachine();

/** A different one for each number. */
const hash = (number: number): string => number.toString(16).padStart(16, '0');

/** Settings under which a collection evicts whatever it may. */
const everything = { container_cache_gc_high: 1, container_cache_gc_low: 0, gc_min_age: 0 };

const evicted = ({ lines }: ProgramResult): string[] =>
  lines.filter(({ word }) => word === 'gc-evicted').map(({ fields }) => fields['entry']!);

const goal = suite('collector: from the high watermark to below the low one', { skip: unlessExt4() });

for (const kind of ['inodes', 'blocks'] as const) {
  const percent = (path: string): number =>
    (kind === 'inodes' ? inodesUsedPercent : blocksUsedPercent)(readUsage(path));
  const size = kind === 'inodes' ? { mebibytes: 32, inodes: 512 } : { mebibytes: 64, inodes: 4096 };

  goal(
    `by ${kind}: evicts over all users, first what was unused longest, and no more than needed`,
    async () => {
      using disk = makeExt4(size);
      await using node = await TestNode.start({
        basePath: disk.path,
        settings: { container_cache_gc_high: 70, container_cache_gc_low: 50, gc_min_age: 0 },
      });
      const { totalBytes, totalInodes } = readUsage(disk.path);
      // Entries of about a tenth of the disk each, alternating between the users, and made in no order: on a
      // busy node over seconds.
      const planted: string[] = [];
      for (const number of [3, 0, 5, 1, 4, 2, 6]) {
        const share =
          kind === 'inodes'
            ? { files: Math.round(totalInodes / 10) }
            : { bytes: Math.round(totalBytes / 10) };
        const user = number % 2 === 0 ? alice : bob;
        planted[number] = node.plant(user, {
          hash: hash(number),
          usedSecondsAgo: 1000 - 100 * number,
          ...share,
        });
      }
      command('sync', '--file-system', disk.path);
      assert.ok(percent(disk.path) >= 70, `${percent(disk.path)} %`);
      // Below its own watermark, the other kind decides nothing.
      assert.ok((kind === 'inodes' ? blocksUsedPercent : inodesUsedPercent)(readUsage(disk.path)) < 50);

      const collection = await node.gc();
      assert.is(collection.exitCode, 0);
      const gone = evicted(collection);
      assert.equal(gone, planted.slice(0, gone.length).map(nameOf));
      assert.equal(
        planted.map((path) => existsSync(path)),
        planted.map((_, number) => number >= gone.length),
      );
      assert.ok(percent(disk.path) < 50, `${percent(disk.path)} %`);
      // One less would not have been enough.
      const lastEviction = collection.lines.findLast(({ word }) => word === 'gc-evicted')!.fields;
      const freed = Number(lastEviction[kind === 'inodes' ? 'freed_inodes' : 'freed_bytes']);
      const all = kind === 'inodes' ? totalInodes : totalBytes;
      assert.ok(percent(disk.path) + (100 * freed) / all >= 50);
      assert.equal(node.trash(), []);
    },
  );
}

goal('below the high watermark nothing is evicted, above the low one or not', async () => {
  using disk = makeExt4({ mebibytes: 32, inodes: 512 });
  await using node = await TestNode.start({
    basePath: disk.path,
    settings: { container_cache_gc_high: 70, container_cache_gc_low: 10, gc_min_age: 0 },
  });
  const { totalInodes } = readUsage(disk.path);
  const entry = node.plant(alice, {
    hash: hash(1),
    usedSecondsAgo: 1000,
    files: Math.round(totalInodes / 2),
  });
  const { exitCode, stdout } = await node.gc();
  assert.equal([exitCode, stdout], [0, 'Nothing to do: usage is below the high watermark.\n']);
  assert.ok(existsSync(entry));
  // By hand it can be made to go on to the low one.
  const forced = await node.gc('--force');
  assert.equal([forced.exitCode, evicted(forced)], [0, [nameOf(entry)]]);
});

goal('what entries claim about their size decides nothing', async () => {
  using disk = makeExt4({ mebibytes: 32, inodes: 512 });
  await using node = await TestNode.start({
    basePath: disk.path,
    settings: { container_cache_gc_high: 60, container_cache_gc_low: 30, gc_min_age: 0 },
  });
  const files = Math.round(readUsage(disk.path).totalInodes / 10);
  const claim = (bytes: unknown, inodes: unknown): string =>
    JSON.stringify({ version: 1, image: '/x', createdAtMs: 0, unpackMs: 0, bytes, inodes });
  const texts = [
    claim(Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER),
    claim(-1, 1e300),
    claim('0', null),
    'no JSON',
    `"${'x'.repeat(1024 * 1024)}"`,
    '',
    '[]',
    claim(0, 0),
  ];
  const planted = texts.map((metadata, number) =>
    node.plant(alice, { hash: hash(number), usedSecondsAgo: 1000 - 100 * number, files, metadata }),
  );
  const collection = await node.gc();
  assert.is(collection.exitCode, 0);
  const gone = evicted(collection);
  assert.equal(gone, planted.slice(0, gone.length).map(nameOf));
  // 8 tenths less 30 percent and the inodes of a new ext4.
  assert.ok(gone.length >= 5 && gone.length <= 6, `${gone.length} evicted`);
  assert.ok(inodesUsedPercent(readUsage(disk.path)) < 30);
});

goal('that cannot be reached: says so, by hand also with exit code 1, and why the rest stays', async () => {
  using disk = makeExt4({ mebibytes: 32, inodes: 512 });
  await using node = await TestNode.start({
    basePath: disk.path,
    settings: { ...everything, gc_min_age: 3600 },
  });
  node.plant(alice, { hash: hash(1), usedSecondsAgo: 10 });
  const old = node.plant(bob, { hash: hash(2), usedSecondsAgo: 4000 });
  const { exitCode, line, lines } = await node.gc();
  assert.is(exitCode, 1);
  const summary = lines.findLast(({ word }) => word === 'gc');
  assert.ok(summary);
  assert.is(summary.level, 'warning');
  assert.equal(
    [summary.fields['result'], summary.fields['evicted'], summary.fields['kept_young']],
    ['goal-missed', '1', '1'],
  );
  assert.equal(line, {});
  assert.not(existsSync(old));
  assert.is((await node.gc('--background')).exitCode, 0);
});

goal.run();

const kept = suite('collector: what stays', { skip: unlessPrivateMachine });

kept.after.each(endAll);

/** Collects as much as possible and returns the reasons why something stayed. */
async function collectAll(node: TestNode): Promise<Record<string, number>> {
  const { stdout, stderr } = await node.gc('--force', '--json');
  try {
    return (JSON.parse(stdout) as { kept: Record<string, number> }).kept;
  } catch {
    throw new Error(`gc said: ${stdout}${stderr}`);
  }
}

kept("a job's entry, from its Prolog to its Epilog, however old", async () => {
  await using node = await TestNode.start({ settings: everything });
  await node.prolog({ id: 7, user: alice, image: node.image() });
  const [entry] = node.entries(alice);
  setUsed(entry!, 1e6);
  assert.equal(await collectAll(node), { leased: 1 });
  assert.ok(existsSync(join(entry!, 'etc/os-release')));
  await node.epilog({ id: 7, user: alice });
  assert.equal(await collectAll(node), {});
  assert.equal([node.entries(alice), node.trash()], [[], []]);
});

kept('an entry whose job has ended without an Epilog goes, and so does the record of its lease', async () => {
  await using node = await TestNode.start({ settings: everything });
  await node.prolog({ id: 7, user: alice, image: node.image() });
  const { pid } = node.lease(7)!.holder;
  process.kill(pid, 'SIGKILL');
  await until('the holder has ended', () => !isAlive(pid));
  assert.equal(await collectAll(node), {});
  assert.equal([node.entries(alice), node.leases()], [[], []]);
});

const overlay = (lower: string): string =>
  `mkdir -p /media/u /media/w; mount -t overlay -o "lowerdir=${lower},upperdir=/media/u,workdir=/media/w,userxattr" overlay /srv`;

kept('an entry that is mounted in any namespace: bound, or the lower layer of an overlay', async () => {
  await using node = await TestNode.start({ settings: everything });
  const bound = node.plant(alice, { hash: hash(1), usedSecondsAgo: 1000 });
  const below = node.plant(alice, { hash: hash(2), usedSecondsAgo: 1000 });
  const inside = node.plant(alice, { hash: hash(3), usedSecondsAgo: 1000 });
  const free = node.plant(alice, { hash: hash(4), usedSecondsAgo: 1000 });
  mkdirSync(join(inside, 'usr'));
  const users = [
    await inBackground(unshare, 'mount --bind "$1" /srv', bound),
    await inBackground(unshare, `mount -t tmpfs tmpfs /media; ${overlay('$1')}`, below),
    await inBackground(unshare, 'mount --bind "$1/usr" /srv', inside),
  ];
  assert.equal(await collectAll(node), { mounted: 3 });
  assert.equal(
    [bound, below, inside, free].map((path) => existsSync(path)),
    [true, true, true, false],
  );
  for (const child of users) await end(child);
  assert.equal(await collectAll(node), {});
  assert.equal(node.entries(alice), []);
});

const asUser = (uid: number): string[] => [
  'setpriv',
  `--reuid=${uid}`,
  `--regid=${uid}`,
  '--clear-groups',
  '--',
];
const ownNamespaces = ['unshare', '--user', '--map-root-user', '--mount'];
const overlayProbe = spawnSync(
  'unshare',
  [...ownNamespaces.slice(1), 'sh', '-euc', `mount -t tmpfs tmpfs /media; ${overlay('/usr/bin')}`],
  { encoding: 'utf8', env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' } },
);
const unlessUserOverlay =
  unlessPrivateMachine ??
  (overlayProbe.status === 0
    ? undefined
    : `needs overlays in user namespaces: ${overlayProbe.stderr.trim()}`);

kept.unless(
  unlessUserOverlay,
  "an entry that its own user's container has as an overlay's lower layer",
  async () => {
    await using node = await TestNode.start({ settings: everything });
    const entry = node.plant(alice, { hash: hash(1), usedSecondsAgo: 1000 });
    const container = await inBackground(
      [...asUser(alice.uid), ...ownNamespaces],
      `mount -t tmpfs tmpfs /media; ${overlay('$1')}`,
      entry,
    );
    assert.equal(await collectAll(node), { mounted: 1 });
    await end(container);
    assert.equal(await collectAll(node), {});
    assert.not(existsSync(entry));
  },
);

kept.unless(
  unlessUserOverlay,
  "another user's overlay that shows an entry's path keeps nothing",
  async () => {
    await using node = await TestNode.start({ settings: everything });
    const entry = node.plant(alice, { hash: hash(1), usedSecondsAgo: 1000 });
    // In a namespace of one's own anything can be at any path.
    const forgery = `mount -t tmpfs tmpfs /media; mount -t tmpfs tmpfs ${machineRoot}; mkdir -p "$1"; ${overlay('$1')}`;
    const forger = await inBackground([...asUser(bob.uid), ...ownNamespaces], forgery, entry);
    assert.match(readFileSync(`/proc/${forger.pid!}/mountinfo`, 'utf8'), `lowerdir=${entry}`);
    assert.equal(await collectAll(node), {});
    assert.not(existsSync(entry));
  },
);

kept('an entry used within gc_min_age; one used in the future is not young, but goes last', async () => {
  await using node = await TestNode.start({ settings: { ...everything, gc_min_age: 1000 } });
  const young = node.plant(alice, { hash: hash(1), usedSecondsAgo: 500 });
  const future = node.plant(alice, { hash: hash(2), usedSecondsAgo: -1e8 });
  const old = node.plant(bob, { hash: hash(3), usedSecondsAgo: 2000 });
  const older = node.plant(bob, { hash: hash(4), usedSecondsAgo: 3000 });
  const collection = await node.gc('--force');
  assert.equal(evicted(collection), [older, old, future].map(nameOf));
  assert.equal(node.entries(alice), [young]);
});

kept('what is no entry of ours, in the base and in a user directory', async () => {
  await using node = await TestNode.start({ settings: everything });
  const mine = node.plant(alice, { hash: hash(1), usedSecondsAgo: 1000 });
  const user = node.userPath(alice);
  const precious = join(node.root, 'precious');
  mkdirSync(precious);
  writeFileSync(join(precious, lockFileName), '');
  chownSync(precious, alice.uid, alice.gid);

  const directoryOf = (number: number): string => directoryName(entryName(alice.uid, hash(number)));
  // A container of pyxis', a file of the user, names that are almost ours.
  for (const name of [
    'pyxis_mine',
    'pyxis_cache_u59002_0000000000000001',
    '.pyxis_cache_u59002_0000000000000001',
    `.pyxis_cache_u59001_${hash(1)}x`,
    `..pyxis_cache_u59001_${hash(1)}`,
    'ubuntu',
  ])
    mkdirSync(join(user, name));
  writeFileSync(join(user, directoryOf(2)), 'a file');
  symlinkSync(precious, join(user, directoryOf(3)));
  lchownSync(join(user, directoryOf(3)), alice.uid, alice.gid);
  mkdirSync(join(user, directoryOf(4)));
  chownSync(join(user, directoryOf(4)), bob.uid, bob.gid);
  mkdirSync(join(user, directoryOf(5)), { mode: 0o700 });
  // In the base: root's directory, a file, and a symlink named like a user's, and numbers that are no uid.
  mkdirSync(join(node.basePath, '59003'));
  mkdirSync(join(node.basePath, '59003', `.pyxis_cache_u59003_${hash(1)}`));
  chownSync(join(node.basePath, '59003', `.pyxis_cache_u59003_${hash(1)}`), 59003, 59003);
  writeFileSync(join(node.basePath, '59004'), '');
  mkdirSync(join(precious, `.pyxis_cache_u59005_${hash(1)}`));
  command('chown', '--recursive', '59005', precious);
  symlinkSync(precious, join(node.basePath, '59005'));
  for (const name of ['lost+found', '059001', '59001.old', '99999999999'])
    mkdirSync(join(node.basePath, name));
  const before = listing(node.basePath).filter((line) => !line.includes(mine) && !line.includes(`${user} `));

  assert.equal(await collectAll(node), {});
  assert.not(existsSync(mine));
  const after = listing(node.basePath);
  assert.equal(
    before.filter((line) => !after.includes(line) && !line.startsWith(`${node.basePath} `)),
    [],
  );
  assert.ok(existsSync(join(precious, lockFileName)));
});

/** Everything below a directory, with owner, mode and modification time. */
function listing(path: string): string[] {
  return command('find', path, '-printf', '%p %i %u %m %T@ %l\n').split('\n');
}

kept('a mount point of the user, whose server need not answer, and all that is in it', async () => {
  await using node = await TestNode.start({ settings: everything });
  const first = node.plant(alice, { hash: hash(1), usedSecondsAgo: 1000 });
  const second = node.plant(alice, { hash: hash(2), usedSecondsAgo: 1000 });
  mkdirSync(join(first, 'mnt'));
  command('mount', '--types', 'tmpfs', 'tmpfs', join(first, 'mnt'));
  try {
    writeFileSync(join(first, 'mnt/file'), '');
    assert.equal(await collectAll(node), {});
    assert.equal(node.entries(alice), [first]);
    assert.ok(existsSync(join(first, 'mnt/file')));
  } finally {
    command('umount', join(first, 'mnt'));
  }
  assert.not(existsSync(second));
});

kept.run();

const gone = suite('collector: what goes all the same', { skip: unlessPrivateMachine });

gone('an entry without a lock file, or with something else in its place', async () => {
  await using node = await TestNode.start({ settings: everything });
  const plant = (number: number): string =>
    node.plant(alice, { hash: hash(number), usedSecondsAgo: 1000, metadata: null });
  const elsewhere = join(node.root, 'elsewhere');
  writeFileSync(elsewhere, '');
  plant(1);
  symlinkSync(elsewhere, lockFileOf(plant(2)));
  command('mkfifo', lockFileOf(plant(3)));
  mkdirSync(lockFileOf(plant(4)));
  assert.equal(await collectAll(node), {});
  assert.equal([node.entries(alice), node.trash()], [[], []]);
});

gone('an entry that its user has closed, whole or in part', async () => {
  await using node = await TestNode.start({ settings: everything });
  for (const [number, mode] of [0o000, 0o500, 0o100, 0o555].entries()) {
    const entry = node.plant(alice, { hash: hash(number), usedSecondsAgo: 1000 });
    mkdirSync(join(entry, 'closed/deep'), { recursive: true });
    writeFileSync(join(entry, 'closed/deep/file'), '');
    command('chown', '--recursive', `${alice.uid}:${alice.gid}`, entry);
    for (const path of ['closed/deep', 'closed', '.']) chmodSync(join(entry, path), mode);
    setUsed(entry, 1000);
  }
  assert.equal(await collectAll(node), {});
  assert.equal([node.entries(alice), node.trash()], [[], []]);
});

gone(
  "a user who closes the user directory stops no collection, of others' entries or of the own",
  async () => {
    await using node = await TestNode.start({ settings: everything });
    node.plant(alice, { hash: hash(1), usedSecondsAgo: 1000 });
    node.plant(bob, { hash: hash(1), usedSecondsAgo: 1000 });
    for (const mode of [0o000, 0o500, 0o300]) {
      node.plant(alice, { hash: hash(2), usedSecondsAgo: 1000 });
      node.plant(bob, { hash: hash(2), usedSecondsAgo: 1000 });
      chmodSync(node.userPath(alice), mode);
      assert.equal(await collectAll(node), {}, mode.toString(8));
      assert.equal([node.entries(alice), node.entries(bob)], [[], []], mode.toString(8));
    }
  },
);

gone.run();

const races = suite('collector: races', { skip: unlessPrivateMachine });

races.after.each(endAll);

races('an entry that is used, leased or mounted after the plan stays', async () => {
  await using node = await TestNode.start({ settings: everything });
  const image = node.image();
  await node.prolog({ id: 1, user: bob, image });
  await node.epilog({ id: 1, user: bob });
  await node.settle();
  // The Epilog has collected bob's entry already: it is made again, with a job that ends without an Epilog.
  await node.prolog({ id: 2, user: bob, image });
  process.kill(node.lease(2)!.holder.pid, 'SIGKILL');
  const [leased] = node.entries(bob);
  setUsed(leased!, 1000);
  const first = node.plant(alice, { hash: hash(1), usedSecondsAgo: 9000, files: 100 });
  const used = node.plant(alice, { hash: hash(2), usedSecondsAgo: 2000 });
  const mounted = node.plant(alice, { hash: hash(3), usedSecondsAgo: 700 });
  const last = node.plant(alice, { hash: hash(4), usedSecondsAgo: 500 });
  using deletions = new HeldProgram('find', { where: '*-delete*' });
  const collection = node.startGc('--force', '--json');
  await deletions.started();
  // The plan is made. The entry is gone at once and whole, although nothing of it is deleted yet.
  assert.not(existsSync(first));
  assert.is(node.trash().length, 1);
  utimesSync(used, new Date(), new Date());
  const container = await inBackground(unshare, 'mount --bind "$1" /srv', mounted);
  const { line } = await node.prolog({ id: 3, user: bob, image });
  assert.is(line['result'], 'reused');
  deletions.letGo();
  const { stdout } = await collection.result;
  const { kept: reasons } = JSON.parse(stdout) as { kept: unknown };
  await end(container);
  assert.equal(reasons, { leased: 1, used: 1, mounted: 1 });
  assert.equal(
    [leased!, used, mounted, last].map((path) => existsSync(path)),
    [true, true, true, false],
  );
});

races('a collector killed in a deletion leaves trash, which the next one deletes', async () => {
  await using node = await TestNode.start({ settings: everything });
  const entry = node.plant(alice, { hash: hash(1), usedSecondsAgo: 1000, files: 100 });
  {
    using deletions = new HeldProgram('find', { where: '*-delete*' });
    const collection = node.startGc('--force');
    await deletions.started();
    collection.kill('SIGKILL');
    await collection.result;
    await until('the deletion has ended with it', () => deletions.pids().every((pid) => !isAlive(pid)));
  }
  assert.not(existsSync(entry));
  assert.is(node.trash().length, 1);
  await node.gc('--force');
  assert.equal(node.trash(), []);
});

races('of two collectors one works: by hand the second waits, in the background it leaves', async () => {
  await using node = await TestNode.start({ settings: everything });
  const first = node.plant(alice, { hash: hash(1), usedSecondsAgo: 1000, files: 100 });
  using deletions = new HeldProgram('find', { where: '*-delete*' });
  const one = node.startGc('--force');
  await deletions.started();
  const second = node.plant(alice, { hash: hash(2), usedSecondsAgo: 1000 });
  const background = await node.gc('--background', '--force');
  assert.is(background.exitCode, 0);
  assert.equal(
    background.lines.map(({ word, fields }) => [word, fields['result']]),
    [['gc', 'locked']],
  );
  assert.ok(existsSync(second));

  const two = node.startGc('--force');
  await until('the second waits for the lock', () =>
    readFileSync('/proc/locks', 'utf8').includes('-> FLOCK'),
  );
  deletions.letGo();
  const results = [await one.result, await two.result];
  assert.equal(results.map(evicted), [[nameOf(first)], [nameOf(second)]]);
});

races('a user who replaces an entry between plan and eviction loses only what is at its place', async () => {
  await using node = await TestNode.start({ settings: everything });
  node.plant(bob, { hash: hash(1), usedSecondsAgo: 9000, files: 100 });
  const entry = node.plant(alice, { hash: hash(2), usedSecondsAgo: 1000 });
  const precious = join(node.root, 'precious');
  mkdirSync(precious);
  writeFileSync(join(precious, lockFileName), '');
  command('chown', '--recursive', `${alice.uid}:${alice.gid}`, precious);
  using deletions = new HeldProgram('find', { where: '*-delete*' });
  const collection = node.startGc('--force');
  await deletions.started();
  command('mv', entry, `${entry}.aside`);
  symlinkSync(precious, entry);
  lchownSync(entry, alice.uid, alice.gid);
  deletions.letGo();
  await collection.result;
  assert.ok(existsSync(join(precious, lockFileName)));
  assert.ok(lstatSync(`${entry}.aside`).isDirectory());
});

races.run();
