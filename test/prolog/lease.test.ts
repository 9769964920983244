/**
 * The lease that a Prolog leaves behind: a holder that outlives it, holds the entry, and has nothing else of
 * it.
 */
// test: timeout 600 s
import { spawnSync } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { holderTitle } from '../../lib/core/layout.ts';
import { tryFlock } from '../../lib/system/flock.ts';
import { processStartTicks } from '../../lib/system/processes.ts';
import { holders, holds, isAlive, lockFileOf, openFiles, TestNode, until } from '../helpers/node.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  machineRoot,
  mount,
  umount,
  unlessPrivateMachine,
} from '../helpers/private-machine.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const test = suite('Prolog: lease', { skip: unlessPrivateMachine });

/** Whether an exclusive flock, the collector's, would be refused. */
function isLeased(entry: string): boolean {
  const fd = openSync(lockFileOf(entry), 'r');
  try {
    return !tryFlock(fd, 'exclusive');
  } finally {
    closeSync(fd);
  }
}

const statusField = (pid: number, name: string): string | undefined =>
  new RegExp(`^${name}:\\s*(.*)$`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1];

test('the holder outlives the Prolog, the end of its output, and the kill of its process group', async () => {
  await using node = await TestNode.start();
  const prolog = node.startProlog({ id: 7, user: alice, image: node.image() });
  // Resolves when no process has the output open: a holder that inherited it would keep this waiting for
  // ever.
  await prolog.result;
  const { pid } = node.lease(7)!.holder;
  // slurmd does so when the output is read; the group may be empty by then.
  assert.throws(() => process.kill(-prolog.pid, 'SIGKILL'), Error, /ESRCH/);
  assert.ok(isAlive(pid));
  const [, , , , , session] = readFileSync(`/proc/${pid}/stat`, 'latin1').split(' ');
  assert.is(session, String(pid));
  assert.ok(isLeased(node.entries(alice)[0]!));
});

test('the holder has /dev/null and the lock file open, and nothing else', async () => {
  await using node = await TestNode.start();
  await node.prolog({ id: 7, user: alice, image: node.image() });
  const [entry] = node.entries(alice);
  const open = openFiles(node.lease(7)!.holder.pid).map(({ fd, path }) => `${fd} ${path}`);
  assert.equal(open.sort(), ['0 /dev/null', '1 /dev/null', '2 /dev/null', `3 ${lockFileOf(entry!)}`]);
});

test("the holder is root's, named after its job, and in the root directory", async () => {
  await using node = await TestNode.start();
  await node.prolog({ id: 7, user: alice, image: node.image(), environment: { SECRET: 'x' } });
  const { pid, startTicks } = node.lease(7)!.holder;
  assert.is(processStartTicks(pid), startTicks);
  assert.equal(
    holders(7).map((one) => [one.pid, one.commandLine]),
    [[pid, `${holderTitle(7)} infinity`]],
  );
  assert.is(statusField(pid, 'Uid'), '0\t0\t0\t0');
  assert.is(readFileSync(`/proc/${pid}/environ`, 'utf8'), 'CONTAINER_CACHE_LEASE=7\0');
  assert.is(spawnSync('readlink', [`/proc/${pid}/cwd`], { encoding: 'utf8' }).stdout, '/\n');
});

const capabilities = BigInt(`0x${statusField(process.pid, 'CapEff') ?? '0'}`);
const sysResource = 1n << 24n;
const unlessSysResource = (capabilities & sysResource) === 0n ? 'needs CAP_SYS_RESOURCE' : undefined;

test.unless(unlessPrivateMachine ?? unlessSysResource, 'the holder is not for the OOM killer', async () => {
  await using node = await TestNode.start();
  await node.prolog({ id: 7, user: alice, image: node.image() });
  assert.is(readFileSync(`/proc/${node.lease(7)!.holder.pid}/oom_score_adj`, 'utf8'), '-1000\n');
});

test('an entry is leased exactly as long as any of its holders lives', async () => {
  await using node = await TestNode.start();
  const image = node.image();
  await node.prolog({ id: 1, user: alice, image });
  await node.prolog({ id: 2, user: alice, image });
  const [entry] = node.entries(alice);
  assert.ok(isLeased(entry!));
  await node.epilog({ id: 1, user: alice });
  assert.ok(isLeased(entry!));
  const { pid } = node.lease(2)!.holder;
  process.kill(pid, 'SIGKILL');
  // Not at once: the collector that the Epilog has started tries each lock, too.
  await until('the entry is free', () => !isAlive(pid) && !isLeased(entry!));
});

test("a requeued job's Prolog replaces the lease: the old holder ends, the new one lives", async () => {
  await using node = await TestNode.start();
  const image = node.image();
  await node.prolog({ id: 7, user: alice, image });
  const old = node.lease(7)!.holder;
  const again = await node.prolog({ id: 7, user: alice, image });
  assert.is(again.line['result'], 'reused');
  const now = node.lease(7)!.holder;
  await until('the old holder has ended', () => !isAlive(old.pid));
  assert.equal(
    holders(7).map(({ pid }) => pid),
    [now.pid],
  );
  assert.ok(holds(now.pid, node.entries(alice)[0]!));
});

test('a job requeued with another image holds that one and no longer the first', async () => {
  await using node = await TestNode.start();
  await node.prolog({ id: 7, user: alice, image: node.image() });
  const [first] = node.entries(alice);
  await node.prolog({ id: 7, user: alice, image: node.image() });
  const second = node.entries(alice).find((entry) => entry !== first);
  await until('the old holder has ended', () => holders(7).length === 1 && !isLeased(first!));
  assert.ok(holds(node.lease(7)!.holder.pid, second!));
  assert.equal(node.jobFile(7, 'images')!.trimEnd().split('\n').length, 1);
});

test("a lease does not touch those of other jobs, of the same user or another's", async () => {
  await using node = await TestNode.start();
  const image = node.image();
  for (const [id, user] of [
    [1, alice],
    [11, alice],
    [111, bob],
  ] as const)
    await node.prolog({ id, user, image });
  await node.prolog({ id: 1, user: alice, image });
  await node.epilog({ id: 1, user: alice });
  assert.equal(
    holders()
      .flatMap(({ environment }) => environment.filter(Boolean))
      .sort(),
    ['CONTAINER_CACHE_LEASE=11', 'CONTAINER_CACHE_LEASE=111'],
  );
});

/** What is left of a Prolog whose runtime directory is not usable, by its policy. */
async function withoutRuntime(spoil: (runtimePath: string) => void, policy: string): Promise<number | null> {
  await using node = await TestNode.start({ settings: { on_failure: policy } });
  spoil(node.runtimePath);
  const { exitCode, line } = await node.prolog({ id: 7, user: alice, image: node.image() });
  assert.equal([line['result'], line['code']], ['failed', 'LEASE_FAILED']);
  assert.equal(holders(), []);
  assert.is(node.jobFile(7, 'env'), undefined);
  // The entry is there for the next job, and nobody holds it.
  assert.not(isLeased(node.entries(alice)[0]!));
  return exitCode;
}

const runtimeIsFile = (runtimePath: string): void => {
  writeFileSync(runtimePath, '');
};
const jobsIsFile = (runtimePath: string): void => {
  mkdirSync(runtimePath);
  writeFileSync(join(runtimePath, 'jobs'), '');
};

test('a Prolog that cannot write the lease leaves no holder and lets the job run', async () => {
  assert.is(await withoutRuntime(runtimeIsFile, 'continue'), 0);
  assert.is(await withoutRuntime(runtimeIsFile, 'fail'), 1);
});

test("a Prolog that cannot write the job's files gives the lease back and lets the job run", async () => {
  assert.is(await withoutRuntime(jobsIsFile, 'continue'), 0);
  assert.is(await withoutRuntime(jobsIsFile, 'fail'), 1);
});

test('where a holder cannot be started there is no lease', async () => {
  await using node = await TestNode.start();
  assert.not(existsSync(node.runtimePath));
  const broken = join(machineRoot, 'no-program');
  writeFileSync(broken, 'no program\n', { mode: 0o644 });
  mount('--bind', broken, '/usr/bin/sleep');
  try {
    const { exitCode, line } = await node.prolog({ id: 7, user: alice, image: node.image() });
    assert.equal([exitCode, line['result'], line['code']], [0, 'failed', 'LEASE_FAILED']);
  } finally {
    umount('/usr/bin/sleep');
  }
  assert.is(command('sleep', '0'), '');
  assert.equal(node.leases(), []);
  assert.not(isLeased(node.entries(alice)[0]!));
});

test.run();
