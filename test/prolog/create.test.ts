/** Making an entry: who makes it, what becomes of failures, and which images are served. */
// test: timeout 600 s
import {
  chmodSync,
  existsSync,
  lstatSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { HeldProgram } from '../helpers/held-program.ts';
import { holders, holds, isAlive, TestNode, until } from '../helpers/node.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  machineRoot,
  replaceProgram,
  unlessPrivateMachine,
} from '../helpers/private-machine.ts';
import { makeImage, smallTree, treeOfFiles, type Tree } from '../helpers/squashfs-image.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const race = suite('Prolog: many at once', { skip: unlessPrivateMachine });

race('of 16 Prologs at once for one missing image one unpacks, and all have a lease', async () => {
  await using node = await TestNode.start();
  const image = node.image();
  using unsquashfs = new HeldProgram('unsquashfs');
  const running = Array.from({ length: 16 }, (_, index) =>
    node.startProlog({ id: index + 1, user: alice, image }),
  );
  await unsquashfs.started();
  unsquashfs.letGo();
  const results = await Promise.all(running.map(({ result }) => result));

  assert.is(unsquashfs.pids().length, 1);
  assert.equal(
    results.map(({ exitCode }) => exitCode),
    Array<number>(16).fill(0),
  );
  assert.is(results.filter(({ line }) => line['result'] === 'created').length, 1);
  const [entry, ...more] = node.entries(alice);
  assert.equal(more, []);
  assert.is(holders().length, 16);
  for (let jobId = 1; jobId <= 16; jobId++)
    assert.ok(holds(node.lease(jobId)!.holder.pid, entry!), `job ${jobId}`);
  assert.equal(node.partials(alice), []);
});

race('a collector that runs all the time never takes an entry from a job that has it', async () => {
  // Everything is always due and nothing is ever young.
  await using node = await TestNode.start({
    settings: { container_cache_gc_high: 1, container_cache_gc_low: 0, gc_min_age: 0 },
  });
  const images = [node.image(treeOfFiles(20, 'a')), node.image(treeOfFiles(20, 'b'))];
  let isOver = false;
  let evictions = 0;
  const collecting = (async () => {
    while (!isOver) {
      const { lines } = await node.gc('--force');
      evictions += lines.filter(({ word }) => word === 'gc-evicted').length;
    }
  })();
  const runJobs = async (first: number): Promise<void> => {
    for (let jobId = first; jobId < first + 12; jobId++) {
      const job = { id: jobId, user: jobId % 2 === 0 ? alice : bob, image: images[jobId % images.length]! };
      const { exitCode, line } = await node.prolog(job);
      assert.is(exitCode, 0);
      assert.ok(['created', 'reused', 'waited'].includes(line['result']!), JSON.stringify(line));
      const entry = node.entryPath(job.user, line['entry']!);
      // The holder's open lock file is the one the path leads to: the entry is there, whole, and is the one
      // held.
      assert.ok(holds(node.lease(jobId)!.holder.pid, entry), `job ${jobId} holds an entry that is gone`);
      assert.is(readdirSync(join(entry, 'd0')).length, 20);
      await node.epilog(job);
    }
  };
  try {
    await Promise.all([runJobs(100), runJobs(200), runJobs(300)]);
  } finally {
    isOver = true;
    await collecting;
  }
  assert.ok(evictions > 0, 'the collector never had a chance');
  assert.equal(holders(), []);
});

const failure = suite('Prolog: an unpack that fails', { skip: unlessPrivateMachine });

failure(
  'a Prolog killed in the middle takes unsquashfs with it, and leaves what its Epilog removes',
  async () => {
    await using node = await TestNode.start();
    const job = { id: 1, user: alice, image: node.image() };
    using unsquashfs = new HeldProgram('unsquashfs');
    const running = node.startProlog(job);
    await unsquashfs.started();
    running.kill('SIGKILL');
    await running.result;
    await until('unsquashfs has ended', () => !unsquashfs.pids().some(isAlive));
    assert.is(node.partials(alice).length, 1);
    await node.epilog(job);
    assert.equal(node.partials(alice), []);
    unsquashfs.letGo();
    assert.is((await node.prolog({ ...job, id: 2 })).line['result'], 'created');
  },
);

failure('one that takes longer than create_timeout is ended, and the job runs', async () => {
  await using node = await TestNode.start({ settings: { create_timeout: 1, on_failure: 'fail' } });
  using unsquashfs = new HeldProgram('unsquashfs');
  const { exitCode, line } = await node.prolog({ id: 1, user: alice, image: node.image() });
  assert.equal([exitCode, line['result'], line['code']], [0, 'failed', 'CREATE_TIMEOUT']);
  await until('unsquashfs has ended', () => unsquashfs.pids().every((pid) => !isAlive(pid)));
  assert.equal([node.entries(alice), node.partials(alice), holders()], [[], [], []]);
});

failure('an image that is replaced meanwhile makes no entry', async () => {
  await using node = await TestNode.start();
  const image = node.image();
  using unsquashfs = new HeldProgram('unsquashfs');
  const running = node.startProlog({ id: 1, user: alice, image });
  await unsquashfs.started();
  makeImage(image, treeOfFiles(3, 'other'));
  unsquashfs.letGo();
  const { exitCode, line } = await running.result;
  assert.equal([exitCode, line['code']], [0, 'IMAGE_CHANGED']);
  assert.equal(node.entries(alice), []);
});

for (const { what, script, code } of [
  {
    what: 'a symlink that found no space',
    script: 'echo "create_inode: failed to create symlink /x, because No space left on device" >&2; exit 2',
    code: 'NO_SPACE',
  },
  {
    what: 'a quota that is used up',
    script: 'echo "write failed, because Disk quota exceeded" >&2; exit 1',
    code: 'QUOTA_EXCEEDED',
  },
  {
    what: 'a complaint of another kind',
    script: 'echo "read_block: failed to read block" >&2; exit 2',
    code: 'UNPACK_FAILED',
  },
  { what: 'a signal', script: 'kill -9 $$', code: 'UNPACK_FAILED' },
]) {
  failure(`${what} makes no entry: ${code}`, async () => {
    await using node = await TestNode.start();
    using _program = replaceProgram('unsquashfs', script);
    const { exitCode, line } = await node.prolog({ id: 1, user: alice, image: node.image() });
    assert.equal([exitCode, line['result'], line['code']], [0, 'failed', code]);
    assert.equal([node.entries(alice), node.partials(alice), holders()], [[], [], []]);
  });
}

const content = suite('Prolog: what is in an image', { skip: unlessPrivateMachine });

content('device nodes, which no user can make, do not spoil the rest', async () => {
  await using node = await TestNode.start();
  const image = node.image({ ...smallTree, 'dev/null': { device: 'c 666 0 0 1 3' } });
  assert.is((await node.prolog({ id: 1, user: alice, image })).line['result'], 'created');
  const [entry] = node.entries(alice);
  assert.is(readFileSync(join(entry!, 'etc/os-release'), 'utf8'), 'ID=test\n');
  assert.not(existsSync(join(entry!, 'dev/null')));
});

const lockFiles: Record<string, Tree> = {
  file: { '.pyxis_cache_lock': 'not a lock' },
  symlink: { '.pyxis_cache_lock': { symlink: '/etc/passwd' } },
  directory: { '.pyxis_cache_lock/x': 'y' },
};
for (const [kind, tree] of Object.entries(lockFiles)) {
  content(`a ${kind} named like our lock file is not our lock file`, async () => {
    await using node = await TestNode.start();
    const image = node.image({ ...smallTree, ...tree });
    assert.is((await node.prolog({ id: 1, user: alice, image })).line['result'], 'created');
    const [entry] = node.entries(alice);
    const lock = lstatSync(join(entry!, '.pyxis_cache_lock'));
    assert.equal([lock.isFile(), lock.uid], [true, alice.uid]);
    assert.is((await node.prolog({ id: 2, user: alice, image })).line['result'], 'reused');
  });
}

content(
  'permissions are what enroot leaves: the owner reads all, and enters and writes every directory',
  async () => {
    await using node = await TestNode.start();
    const image = node.image({
      closed: { directory: true, mode: 0o000 },
      'listed/file': { content: 'x', mode: 0o444 },
      hidden: { content: 'x', mode: 0o000 },
      runs: { content: 'x', mode: 0o011 },
      setuid: { content: 'x', mode: 0o4755 },
    });
    assert.is((await node.prolog({ id: 1, user: alice, image })).line['result'], 'created');
    const [entry] = node.entries(alice);
    const modeOf = (name: string): string => (statSync(join(entry!, name)).mode & 0o7777).toString(8);
    assert.equal(['closed', 'listed/file', 'hidden', 'runs', 'setuid'].map(modeOf), [
      '700',
      '444',
      '400',
      '511',
      '755',
    ]);
  },
);

const bypass = suite('Prolog: bypasses', { skip: unlessPrivateMachine });

bypass('what the cache does not serve leaves the job alone, and the log says why', async () => {
  await using node = await TestNode.start({ settings: { on_failure: 'fail' } });
  const image = node.image();
  const secret = node.image();
  chmodSync(secret, 0o600);
  const cutOff = join(machineRoot, 'cut.sqsh');
  writeFileSync(cutOff, readFileSync(image).subarray(0, 200), { mode: 0o644 });
  const text = join(machineRoot, 'text.sqsh');
  writeFileSync(text, 'x'.repeat(5000), { mode: 0o644 });
  const fifo = join(machineRoot, 'fifo.sqsh');
  command('mkfifo', '--mode=666', fifo);
  const cases = [
    { code: 'UNSUPPORTED_OPTION', image, name: 'mine' },
    { code: 'UNSUPPORTED_OPTION', image: 'dockerd://x' },
    { code: 'UNSUPPORTED_OPTION', image: 'podman://x' },
    { code: 'BAD_REFERENCE', image: 'Upper/Case' },
    { code: 'IMAGE_UNREADABLE', image: secret },
    { code: 'IMAGE_UNREADABLE', image: '/no/such/file' },
    { code: 'NOT_SQUASHFS', image: cutOff },
    { code: 'NOT_SQUASHFS', image: text },
    { code: 'NOT_SQUASHFS', image: fifo },
    { code: 'NOT_SQUASHFS', image: '/etc' },
    { code: 'NOT_SQUASHFS', image: '/dev/null' },
  ];
  for (const { code, ...options } of cases) {
    const { exitCode, line } = await node.prolog({ id: 1, user: alice, ...options });
    assert.equal([exitCode, line['result'], line['code']], [0, 'bypassed', code], JSON.stringify(options));
    assert.ok(line['reason']);
  }
  assert.equal([node.entries(alice), holders(), node.leases()], [[], [], []]);
});

race.run();
failure.run();
content.run();
bypass.run();
