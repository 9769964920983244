/**
 * A Prolog that is killed at any moment: its children end with it, what it leaves is never taken for an
 * entry, and the next Prolog, Epilog or collector goes on without repair by hand (I1, I2, I17, I18).
 */
// test: timeout 600 s
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { leasePath } from '../../lib/core/layout.ts';
import { tryFlock } from '../../lib/system/flock.ts';
import { HeldProgram } from '../helpers/held-program.ts';
import { holders, holds, isAlive, processes, TestNode, until, type RunningProgram } from '../helpers/node.ts';
import { alice, command, enterPrivateMachine, unlessPrivateMachine } from '../helpers/private-machine.ts';
import { setModifiedAt, treeOfFiles } from '../helpers/squashfs-image.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const test = suite('Prolog: killed', { skip: unlessPrivateMachine });

/** Kills like slurmd: the whole process group. */
function killGroup(program: RunningProgram): void {
  process.kill(-program.pid, 'SIGKILL');
}

/** Processes of the user, which are the children of a Prolog. */
function processesOf(uid: number): string[] {
  return processes()
    .filter(({ pid }) => {
      try {
        return new RegExp(`^Uid:\\s+${uid}\\s`, 'm').test(readFileSync(`/proc/${pid}/status`, 'utf8'));
      } catch {
        return false;
      }
    })
    .map(({ commandLine }) => commandLine);
}

const countFiles = (path: string): number =>
  existsSync(path) ? command('find', path, '-type', 'f').split('\n').length - 1 : 0;

test('while unsquashfs writes: unsquashfs ends, and half a tree has no name of an entry', async () => {
  await using node = await TestNode.start();
  const total = 20_000;
  const image = node.image(treeOfFiles(total));
  // On a fast machine it may be done before we are: then again, with what is another image.
  for (let attempt = 1; ; attempt++) {
    setModifiedAt(image, attempt);
    const prolog = node.startProlog({ id: attempt, user: alice, image });
    const partial = await until('unsquashfs has written files', () => {
      const [name] = node.partials(alice);
      const rootfs = join(node.userPath(alice), name ?? 'none', 'rootfs');
      return existsSync(join(rootfs, 'd0/f1')) && name;
    });
    // It alone: its children get the signal that they asked for.
    prolog.kill('SIGKILL');
    await prolog.result;
    await until('nothing of the user runs', () => processesOf(alice.uid).length === 0);
    const written = countFiles(join(node.userPath(alice), partial));
    if (written < total) {
      assert.ok(written > 0);
      assert.equal(node.entries(alice), []);
      assert.equal([holders(), node.leases()], [[], []]);

      // Another job does not wait for the dead one's Epilog; that one then finds its own leftovers.
      const next = await node.prolog({ id: 1000, user: alice, image });
      assert.is(next.line['result'], 'created');
      assert.is(countFiles(node.entries(alice)[0]!), total + 1);
      assert.is((await node.epilog({ id: attempt, user: alice })).line['partials'], '1');
      await node.settle();
      assert.equal([node.partials(alice), node.trash()], [[], []]);
      return;
    }
    await node.epilog({ id: attempt, user: alice });
    assert.ok(attempt < 20, 'unsquashfs is never caught at work');
  }
});

test('while unsquashfs writes, and never an Epilog: the collector removes the tree and the lock file', async () => {
  await using node = await TestNode.start();
  const image = node.image();
  {
    using unsquashfs = new HeldProgram('unsquashfs', {
      first: 'case "$*" in *-dest*) /usr/bin/unsquashfs "$@" etc;; esac',
    });
    const prolog = node.startProlog({ id: 1, user: alice, image });
    await unsquashfs.started();
    killGroup(prolog);
    await prolog.result;
  }
  const [partial = ''] = node.partials(alice);
  assert.equal(readdirSync(join(node.userPath(alice), partial, 'rootfs')), ['etc']);
  // Below the watermark, too: leftovers are nobody's.
  assert.is((await node.gc()).exitCode, 0);
  assert.equal([node.others(alice), node.trash()], [[], []]);
});

test('while others wait for the entry: one of them makes it', async () => {
  await using node = await TestNode.start();
  const image = node.image();
  using unsquashfs = new HeldProgram('unsquashfs');
  const creator = node.startProlog({ id: 1, user: alice, image });
  await unsquashfs.started();
  const waiting = Array.from({ length: 8 }, (_, index) =>
    node.startProlog({ id: 2 + index, user: alice, image }),
  );
  await until('all wait for the create lock', () => waitingForLocks() >= waiting.length);
  // One of those that wait is killed as well: it must not get the lock later and keep it.
  killGroup(waiting[3]!);
  killGroup(creator);
  unsquashfs.letGo();
  const results = await Promise.all(waiting.map(({ result }) => result));
  const said = results.map(({ line }) => line['result']);
  assert.is(said[3], undefined);
  assert.is(said.filter((word) => word === 'created').length, 1);
  assert.is(said.filter((word) => word === 'waited').length, 6);
  assert.is(unsquashfs.pids().length, 2);
  assert.is(holders().length, 7);
  await node.epilog({ id: 1, user: alice });
  await node.settle();
  assert.equal(node.partials(alice), []);
});

/** Requests that wait, as the kernel lists them: proc(5), /proc/locks. */
const waitingForLocks = (): number => readFileSync('/proc/locks', 'utf8').match(/-> FLOCK/g)?.length ?? 0;

test('while it waits for the entry: nothing of it waits on', async () => {
  await using node = await TestNode.start();
  const image = node.image();
  using unsquashfs = new HeldProgram('unsquashfs');
  const creator = node.startProlog({ id: 1, user: alice, image });
  await unsquashfs.started();
  const waiter = node.startProlog({ id: 2, user: alice, image });
  await until('it waits for the create lock', () => waitingForLocks() > 0);
  waiter.kill('SIGKILL');
  await waiter.result;
  await until('nobody waits', () => waitingForLocks() === 0);
  unsquashfs.letGo();
  assert.is((await creator.result).line['result'], 'created');
});

test('after the entry is published and before there is a holder: the entry is whole, and free', async () => {
  await using node = await TestNode.start();
  const job = { id: 1, user: alice, image: node.image() };
  // With a file in the place of the leases' directory the Prolog gets no further.
  mkdirSync(node.runtimePath);
  writeFileSync(join(node.runtimePath, 'leases'), '');
  assert.is((await node.prolog(job)).line['code'], 'LEASE_FAILED');
  command('rm', '--recursive', node.runtimePath);
  assert.equal(holders(), []);
  const { line } = await node.prolog({ ...job, id: 2 });
  assert.is(line['result'], 'reused');
  assert.ok(holds(node.lease(2)!.holder.pid, node.entries(alice)[0]!));
});

test('after the holder is started and before it is recorded: the Epilog finds the holder', async () => {
  await using node = await TestNode.start();
  const job = { id: 1, user: alice, image: node.image() };
  await node.prolog(job);
  const { pid } = node.lease(1)!.holder;
  command('rm', leasePath(node.runtimePath, 1));
  // The entry is safe all the same: what counts is the flock.
  node.configure({ container_cache_gc_high: 1, container_cache_gc_low: 0, gc_min_age: 0 });
  await node.gc('--force');
  assert.is(node.entries(alice).length, 1);
  assert.is((await node.epilog(job)).line['holders'], '1');
  assert.not(isAlive(pid));
});

test('by SIGTERM, as at the end of PrologEpilogTimeout: the same as by SIGKILL', async () => {
  await using node = await TestNode.start();
  const job = { id: 1, user: alice, image: node.image() };
  using unsquashfs = new HeldProgram('unsquashfs');
  const prolog = node.startProlog(job);
  await unsquashfs.started();
  process.kill(-prolog.pid, 'SIGTERM');
  await prolog.result;
  await until('nothing of the user runs', () => processesOf(alice.uid).length === 0);
  await node.epilog(job);
  await node.settle();
  assert.equal([node.entries(alice), node.partials(alice), node.trash(), holders()], [[], [], [], []]);
  unsquashfs.letGo();
  assert.is((await node.prolog({ ...job, id: 2 })).line['result'], 'created');
});

test('a create lock that a collector has removed locks nothing: who waits for it takes the new one', async () => {
  await using node = await TestNode.start();
  const image = node.image();
  await node.prolog({ id: 1, user: alice, image });
  const [entry = ''] = node.entries(alice);
  const lock = node.createLock(alice);
  await node.epilog({ id: 1, user: alice });
  command('rm', '--recursive', entry);
  // Somebody has the lock, as the collector while it looks; then removes the file under it.
  const fd = openSync(lock, 'r');
  assert.ok(tryFlock(fd, 'exclusive'));
  const waiter = node.startProlog({ id: 3, user: alice, image });
  await until('it waits for the create lock', () => waitingForLocks() > 0);
  command('rm', lock);
  closeSync(fd);
  assert.is((await waiter.result).line['result'], 'created');
  // It has made a lock file of its own, which those that come later find.
  assert.ok(existsSync(lock));
});

test.run();
