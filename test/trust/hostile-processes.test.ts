/**
 * What a user's processes can do to programs that run as root beside them: nothing of theirs is waited for
 * without a limit, nothing they say is believed about the node, and nobody else's process is ended (I6, I10,
 * I16, I17).
 */
// test: timeout 600 s
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { leasePath } from '../../lib/core/layout.ts';
import { formatLeaseRecord } from '../../lib/core/lease-record.ts';
import { acquire } from '../helpers/run-acquire.ts';
import { mountSquashfuse, unlessSquashfuse } from '../helpers/filesystem.ts';
import { isAlive, setUsed, TestNode, until, untilStopped, nameOf } from '../helpers/node.ts';
import {
  alice,
  bob,
  enterPrivateMachine,
  machineRoot,
  mount,
  replaceProgram,
  umount,
  unlessPrivateMachine,
  type TestUser,
} from '../helpers/private-machine.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const test = suite("a user's processes", { skip: unlessPrivateMachine });

const settings = { on_failure: 'fail' };
const everything = { ...settings, container_cache_gc_high: 1, container_cache_gc_low: 0, gc_min_age: 0 };
const started: ChildProcess[] = [];

function start(user: TestUser, file: string, parameters: readonly string[], lease?: number): ChildProcess {
  const ids = [`--reuid=${user.uid}`, `--regid=${user.gid}`, '--clear-groups', '--', file, ...parameters];
  const child = spawn('setpriv', ids, {
    cwd: '/',
    detached: true,
    stdio: ['ignore', 'pipe', 'inherit'],
    env: {
      PATH: '/usr/sbin:/usr/bin:/sbin:/bin',
      ...(lease === undefined ? {} : { CONTAINER_CACHE_LEASE: String(lease) }),
    },
  });
  started.push(child);
  return child;
}

async function endAll(): Promise<void> {
  for (const child of started.splice(0)) {
    if (child.exitCode === null && child.signalCode === null) process.kill(-child.pid!, 'SIGKILL');
    await until('it has ended', () => child.exitCode !== null || child.signalCode !== null);
  }
}

test.after.each(endAll);

const said = (child: ChildProcess): Promise<void> =>
  new Promise((resolve) => child.stdout!.once('data', () => resolve()));

/**
 * Stays for ever in the middle of execve(2): it closes a file of a FUSE whose server does not answer, which
 * the kernel waits for before whoever asks for the process's environment, state or namespaces gets an answer.
 */
const stuckInExec = `
  require('fs').openSync(process.argv[1], 'r');
  require('fs').writeSync(1, 'x');
  process.kill(process.pid, 'SIGSTOP');
  process.execve('/usr/bin/sleep', ['sleep', 'infinity'], { CONTAINER_CACHE_LEASE: '7' });`;

test.unless(
  unlessSquashfuse(),
  'one that nobody can look at without waiting for ever keeps neither Prolog nor Epilog nor collector nor check from their end',
  async () => {
    await using node = await TestNode.start({ settings: everything });
    const image = node.image();
    await node.prolog({ id: 1, user: bob, image });
    await node.epilog({ id: 1, user: bob });
    await node.settle();
    const old = node.plant(bob, { hash: '00000000000000aa', usedSecondsAgo: 1000 });
    await using fuse = await mountSquashfuse(node.image({ file: 'x' }));
    const process_ = start(alice, process.execPath, ['-e', stuckInExec, join(fuse.path, 'file')], 7);
    await said(process_);
    await untilStopped(process_.pid!);
    await fuse.stop();
    process.kill(process_.pid!, 'SIGCONT');
    // It takes a moment to get there.
    await until('nobody can look at it', () => {
      const look = ['--signal=KILL', '0.5', 'cat', `/proc/${process_.pid!}/environ`];
      const { status, signal } = spawnSync('timeout', look);
      return status === 137 || signal === 'SIGKILL';
    });
    // Its number may be one that a lease's holder had.
    const holder = { pid: process_.pid!, startTicks: '1' };
    const leaseOfIt = formatLeaseRecord({ jobId: 9, uid: bob.uid, holder, sinceMs: 1, entries: [] });
    writeFileSync(leasePath(node.runtimePath, 9), leaseOfIt);
    const prolog = await node.prolog({ id: 2, user: bob, image });
    const gc = await node.gc('--force');
    const ofBob = await node.epilog({ id: 2, user: bob });
    const own = await node.epilog({ id: 7, user: alice });
    // One of them has removed it.
    writeFileSync(leasePath(node.runtimePath, 9), leaseOfIt);
    const check = await node.admin('check', '--json').result;
    // As soon as the server answers, everybody can look again; so does the end of this test.
    fuse.go();
    assert.equal([prolog.exitCode, gc.exitCode === null, ofBob.exitCode, own.exitCode], [0, false, 0, 0]);
    assert.ok(['created', 'reused'].includes(prolog.line['result']!));
    assert.not(existsSync(old));
    assert.is(ofBob.line['holders'], '1');
    assert.match(check.stdout, /lease of job 9 has lost its holder/);
  },
);

test('two thousand that claim to be step holders: the Epilog ends, and ends nobody but their user', async () => {
  await using node = await TestNode.start({ settings });
  const count = 2000;
  const bomb = `i=0; while [ $i -lt ${count} ]; do sleep infinity & i=$((i+1)); done; echo done; wait`;
  const [ofAlice, ofBob] = [
    start(alice, 'sh', ['-c', bomb], 7),
    start(bob, 'sh', ['-c', 'echo x; sleep infinity'], 7),
  ];
  await Promise.all([said(ofAlice), said(ofBob)]);
  await node.prolog({ id: 7, user: alice, image: node.image() });
  const { exitCode, line } = await node.epilog({ id: 7, user: alice });
  assert.equal([exitCode, line['holders'], Number(line['steps']) > 0], [0, '1', true]);
  assert.ok(isAlive(ofBob.pid!));
});

test('more than the user may have: the job runs without the cache, and the node is not drained', async () => {
  await using node = await TestNode.start({ settings });
  const many = start(alice, 'sh', [
    '-c',
    'i=0; while [ $i -lt 60 ]; do sleep infinity & i=$((i+1)); done; echo x; wait',
  ]);
  await said(many);
  const wrapper = ['prlimit', '--nproc=50:50', '--'];
  const { exitCode, line } = await node.prolog({ id: 7, user: alice, image: node.image(), wrapper });
  assert.equal([exitCode, line['code']], [0, 'UNPACK_FAILED'], line['reason']);
  assert.is(
    (await node.prolog({ id: 8, user: bob, image: node.image(), wrapper })).line['result'],
    'created',
  );
});

for (const [program, where] of [
  ['find', '*-maxdepth 0*'],
  ['unsquashfs', '*-dest*'],
] as const) {
  for (const end of ['exit 127', 'echo "setpriv: no" >&2; exit 1']) {
    test(`a traced ${program} that is made to end with "${end}" says nothing about the node`, async () => {
      await using node = await TestNode.start({ settings });
      const pattern = where.replaceAll(' ', '\\ ');
      using _ = replaceProgram(
        program,
        `case "$*" in ${pattern}) ${end};; esac\nexec /usr/bin/${program} "$@"`,
      );
      const { exitCode, line } = await node.prolog({ id: 7, user: alice, image: node.image() });
      assert.equal([exitCode, line['code'] === 'TOOL_MISSING'], [0, false], line['reason']);
    });
  }
}

test('an image name whose message ends, after blanks, like one of setpriv drains no node', async () => {
  await using node = await TestNode.start({ settings });
  // The kept end of the message is then blanks, which are cut off, and this.
  const image = `/${'x'.repeat(300)}${' '.repeat(1000)}setpriv: no`;
  const { exitCode, line } = await node.prolog({ id: 7, user: alice, image });
  assert.equal([exitCode, line['code']], [0, 'IMAGE_UNREADABLE'], line['reason']);
});

test("a full /dev/shm, where every user may write, costs nobody's job the cache", async () => {
  await using node = await TestNode.start({ settings });
  mount('--types', 'tmpfs', '--options', 'mode=1777,size=64k', 'tmpfs', '/dev/shm');
  try {
    spawnSync('sh', ['-c', 'cat /dev/zero >/dev/shm/full'], { stdio: 'ignore' });
    const { exitCode, line } = await node.prolog({ id: 7, user: bob, image: node.image() });
    assert.equal([exitCode, line['result']], [0, 'created'], line['reason']);
  } finally {
    umount('/dev/shm');
  }
});

const namespaces = ['--user', '--map-root-user', '--mount'];
const unlessUserNamespaces =
  unlessPrivateMachine ??
  (spawnSync('unshare', [...namespaces, 'true'], { env: { PATH: '/usr/bin:/bin' } }).status === 0
    ? undefined
    : 'needs user namespaces');

test.unless(
  unlessUserNamespaces,
  "mounts beyond number in a namespace of one user keep that user's entries, and nobody else's",
  async () => {
    await using node = await TestNode.start({ settings: everything });
    const own = node.plant(alice, { hash: '0000000000000001', usedSecondsAgo: 1000 });
    const others = node.plant(bob, { hash: '0000000000000001', usedSecondsAgo: 1000 });
    const deep = join(machineRoot, 'home', alice.name, ...Array.from({ length: 15 }, () => 'd'.repeat(250)));
    mkdirSync(deep, { recursive: true });
    // Each binds what is there once more: 2^14 mounts, each with a mount point and a root of 4,000
    // characters.
    const script = `cd "$1"; mount -t tmpfs tmpfs .; cd "$1"; mkdir a; mount --bind a a
      i=0; while [ $i -lt 14 ]; do i=$((i+1)); mkdir a/$i 2>/dev/null || true; mount --rbind . a 2>/dev/null; cd "$1"; done
      echo x; exec sleep infinity`;
    const mounts = start(alice, 'unshare', [...namespaces, 'sh', '-uc', script, 'sh', deep]);
    await said(mounts);
    const told = spawnSync('sh', ['-c', `cat /proc/${mounts.pid!}/mountinfo | wc -c`], {
      encoding: 'utf8',
    }).stdout;
    assert.ok(Number(told) > 64 * 1024 * 1024, `${told} bytes of mounts: too few`);
    await node.gc('--force');
    assert.equal([existsSync(own), existsSync(others)], [true, false]);
    await endAll();
    setUsed(own, 1000);
    await node.gc('--force');
    assert.not(existsSync(own));
  },
);

test('locks held for ever on entry and create lock keep the own entry alone', async () => {
  await using node = await TestNode.start({ settings: everything });
  const own = node.plant(alice, { hash: '0000000000000001', usedSecondsAgo: 1000 });
  const others = node.plant(bob, { hash: '0000000000000001', usedSecondsAgo: 1000 });
  const lock = join(own, '.pyxis_cache_lock');
  const holder = start(alice, 'sh', [
    '-c',
    'exec 9<"$1"; flock --exclusive 9; echo x; exec sleep infinity',
    'sh',
    lock,
  ]);
  await said(holder);
  await node.gc('--force');
  assert.equal([existsSync(own), existsSync(others)], [true, false]);
  await endAll();
  await node.gc('--force');
  assert.not(existsSync(own));
});

test("another's entry can be neither read, locked, touched, moved nor removed, and goes as if nothing had been tried", async () => {
  await using node = await TestNode.start({ settings: everything });
  const others = node.plant(bob, { hash: '0000000000000001', usedSecondsAgo: 1000 });
  const tried = spawnSync(
    'setpriv',
    [
      ...[`--reuid=${alice.uid}`, `--regid=${alice.gid}`, '--clear-groups', 'sh', '-c'],
      'ls "$1"; cat "$1/f0"; flock --shared --nonblock "$1/.pyxis_cache_lock" true; touch "$1"; rm -r "$1"; mv "$1" "$2"; ' +
        'flock --shared --nonblock "$3/pyxis-container-cache-gc.lock" true; ls "$3/.trash"; mkdir "$3/59003"',
      ...['sh', others, node.userPath(alice), node.basePath],
    ],
    { encoding: 'utf8', env: { PATH: '/usr/bin:/bin' } },
  );
  assert.equal(
    [tried.stdout, tried.stderr.match(/Permission denied/g)!.length >= 8],
    ['', true],
    tried.stderr,
  );
  await node.gc('--force');
  assert.not(existsSync(others));
});

test("another's job ID in acquire gives an own entry and an own holder, which the other's Epilog leaves alone", async () => {
  await using node = await TestNode.start({ settings });
  const image = node.image();
  await node.prolog({ id: 7, user: alice, image });
  await node.prolog({ id: 8, user: bob });
  const environment = { SLURM_JOB_UID: String(alice.uid), CONTAINER_CACHE_LEASE: '7' };
  const { entry, holder } = await acquire(node, [image], { user: bob, jobId: 7, environment });
  assert.equal([entry], node.entries(bob).map(nameOf));
  const { exitCode, line } = await node.epilog({ id: 7, user: alice });
  assert.equal([exitCode, line['holders'], line['steps'], isAlive(holder!)], [0, '1', undefined, true]);
});

test('leases, job files and node facts can be neither read by others nor forged', async () => {
  await using node = await TestNode.start({ settings });
  await node.prolog({ id: 7, user: bob, image: node.image() });
  writeFileSync(join(node.root, 'forged'), 'forged\n', { mode: 0o644 });
  const script = `cd "$1"; ls leases; ls jobs; for f in leases/7 leases/8 jobs/7/images jobs/7/env jobs/8/images node new; do
    cp "$2" $f; ln -sf "$2" $f; done; mkdir jobs/8; cat leases/7; cat jobs/7/images; rm -rf leases jobs node; echo over`;
  const ids = [`--reuid=${alice.uid}`, `--regid=${alice.gid}`, '--clear-groups', 'sh', '-c', script, 'sh'];
  const before = spawnSync('find', [node.runtimePath, '-printf', '%p %i %m %s %T@\n'], {
    encoding: 'utf8',
  }).stdout;
  const tried = spawnSync('setpriv', [...ids, node.runtimePath, join(node.root, 'forged')], {
    encoding: 'utf8',
    env: { PATH: '/usr/bin:/bin' },
  });
  assert.is(tried.stdout, 'over\n');
  const after = spawnSync('find', [node.runtimePath, '-printf', '%p %i %m %s %T@\n'], {
    encoding: 'utf8',
  }).stdout;
  assert.is(after, before);
});

test.run();
