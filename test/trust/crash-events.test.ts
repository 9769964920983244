/**
 * What befalls a node beside kills of our programs: holders that die, reboots, Epilogs that do not come or
 * come twice, clocks.
 */
// test: timeout 600 s
import { existsSync, mkdirSync, readdirSync, rmSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { longestLeaseRecordBytes } from '../../lib/core/lease-record.ts';
import { holders, holds, isAlive, setUsed, TestNode, until } from '../helpers/node.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  mount,
  umount,
  unlessPrivateMachine,
} from '../helpers/private-machine.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const test = suite('Crashes of a node', { skip: unlessPrivateMachine });
const collectAll = { container_cache_gc_low: 0, gc_min_age: 0 };

test('a holder killed while its job runs: a mounted entry stays, the Epilog and the next job go on', async () => {
  await using node = await TestNode.start({ settings: collectAll });
  const job = { id: 7, user: alice, image: node.image() };
  await node.prolog(job);
  const [entry = ''] = node.entries(alice);
  const { pid } = node.lease(7)!.holder;
  process.kill(pid, 'SIGKILL');
  await until('the holder has ended', () => !isAlive(pid));
  const merged = join(node.root, 'merged');
  for (const name of ['upper', 'work', 'merged']) mkdirSync(join(node.root, name));
  const options = `lowerdir=${entry},upperdir=${join(node.root, 'upper')},workdir=${join(node.root, 'work')}`;
  mount('--types', 'overlay', '--options', options, 'overlay', merged);
  try {
    await node.gc('--force');
    assert.ok(existsSync(join(entry, 'etc/os-release')));
  } finally {
    umount(merged);
  }
  const { exitCode, line } = await node.epilog(job);
  assert.equal([exitCode, line['code']], [0, undefined]);
  assert.is((await node.prolog({ ...job, id: 8 })).line['result'], 'reused');
});

test('a reboot, with an entry and a partial tree on disk: the entry is reused, the tree goes', async () => {
  await using node = await TestNode.start();
  const image = node.image();
  await node.prolog({ id: 7, user: alice, image });
  for (const { pid } of holders()) process.kill(pid, 'SIGKILL');
  await until('the holders have ended', () => holders().length === 0);
  rmSync(node.runtimePath, { recursive: true });
  const partial = join(node.userPath(alice), `.pyxis_cache_u${alice.uid}_00deadbeef001122.6-abcd.partial`);
  mkdirSync(join(partial, 'rootfs/etc'), { recursive: true });
  command('chown', '--recursive', `${alice.uid}:${alice.gid}`, partial);
  assert.is((await node.prolog({ id: 8, user: alice, image })).line['result'], 'reused');
  assert.ok(holds(node.lease(8)!.holder.pid, node.entries(alice)[0]!));
  assert.is((await node.gc()).exitCode, 0);
  assert.equal([node.partials(alice), node.trash()], [[], []]);
});

test('no Epilog: the collector keeps the entry, and a later job of that ID replaces the lease', async () => {
  await using node = await TestNode.start({ settings: collectAll });
  await node.prolog({ id: 7, user: alice, image: node.image() });
  const old = node.lease(7)!.holder.pid;
  await node.gc('--force');
  assert.is(node.entries(alice).length, 1);
  const later = await node.prolog({ id: 7, user: bob, image: node.image() });
  assert.is(later.line['result'], 'created');
  assert.not(isAlive(old));
  assert.equal([holders(7).length, node.lease(7)!.uid], [1, bob.uid]);
  await node.gc('--force');
  assert.equal([node.entries(alice).length, node.entries(bob).length], [0, 1]);
});

test('two Epilogs of one job at once both end well and leave nothing', async () => {
  await using node = await TestNode.start();
  const job = { id: 7, user: alice, image: node.image() };
  await node.prolog(job);
  for (const { exitCode, line } of await Promise.all([node.epilog(job), node.epilog(job)]))
    assert.equal([exitCode, line['code']], [0, undefined], line['reason']);
  assert.equal([holders(), node.leases(), readdirSync(join(node.runtimePath, 'jobs'))], [[], [], []]);
});

test('a clock set back an hour: an entry used in the future is reused, and can still be evicted', async () => {
  await using node = await TestNode.start({ settings: { ...collectAll, gc_min_age: 600 } });
  const job = { id: 7, user: alice, image: node.image() };
  await node.prolog(job);
  await node.epilog(job);
  const [entry = ''] = node.entries(alice);
  setUsed(entry, -3600);
  assert.is((await node.prolog(job)).line['result'], 'reused');
  await node.epilog(job);
  setUsed(entry, -3600);
  const inAnHour = Date.now() / 1000 + 3600;
  utimesSync(node.userPath(alice), inAnHour, inAnHour);
  await node.gc('--force');
  assert.equal([node.entries(alice), node.trash()], [[], []]);
});

for (const hasEpilog of [true, false]) {
  const how = hasEpilog ? 'after its Epilog' : 'without an Epilog';
  test(`a job requeued ${how} has one holder, and its Epilog leaves none`, async () => {
    await using node = await TestNode.start();
    const job = { id: 7, user: alice, image: node.image() };
    await node.prolog(job);
    if (hasEpilog) await node.epilog(job);
    assert.is((await node.prolog(job)).line['result'], 'reused');
    assert.is(holders(7).length, 1);
    assert.ok(holds(node.lease(7)!.holder.pid, node.entries(alice)[0]!));
    assert.is((await node.epilog(job)).line['holders'], '1');
    assert.equal([holders(), node.leases()], [[], []]);
  });
}

test('a lease record that cannot be read does not keep the Epilog from stopping the holder', async () => {
  await using node = await TestNode.start();
  const job = { id: 7, user: alice, image: node.image() };
  const record = join(node.runtimePath, 'leases/7');
  const spoils = [
    () => {
      writeFileSync(record, 'x'.repeat(longestLeaseRecordBytes + 1));
    },
    () => {
      rmSync(record);
      mkdirSync(join(record, 'inner'), { recursive: true });
    },
  ];
  for (const spoil of spoils) {
    await node.prolog(job);
    spoil();
    const { exitCode, line } = await node.epilog(job);
    assert.equal([exitCode, line['code'], line['holders']], [0, undefined, '1'], line['reason']);
    assert.equal([holders(), existsSync(record)], [[], false]);
  }
});

test('what a crash left aside goes with the collector, wherever we write; what is under way stays', async () => {
  await using node = await TestNode.start();
  await node.prolog({ id: 7, user: alice, image: node.image() });
  const digests = join(node.userPath(alice), '.digests');
  const places = [node.basePath, node.runtimePath, join(node.runtimePath, 'leases'), digests];
  mkdirSync(digests);
  const living = `.8.${process.pid}-${readStartTicks(process.pid)}-1.aside`;
  // The same number, of a process that started at another time.
  const dead = [`.8.${process.pid}-1-1.aside`, `.8.${2 ** 30}-1-1.aside`];
  for (const place of places) for (const name of [living, ...dead]) writeFileSync(join(place, name), '');
  command('chown', '--recursive', `${alice.uid}:${alice.gid}`, digests);
  // Of an overlay that was tried; and where another user's directory leads to.
  mkdirSync(join(node.basePath, `.overlay-probe.${2 ** 30}-1-1.aside/merged`), { recursive: true });
  const outside = join(node.root, 'outside');
  mkdirSync(outside);
  writeFileSync(join(outside, dead[0]!), '');
  symlinkSync(outside, join(node.makeUserDirectory(bob), '.digests'));
  assert.is((await node.gc()).exitCode, 0);
  const left = places.map((place) => readdirSync(place).filter((name) => name.endsWith('.aside')));
  assert.equal(
    left,
    places.map(() => [living]),
  );
  assert.equal(readdirSync(outside), [dead[0]]);
  assert.ok(node.lease(7) !== undefined);
});

function readStartTicks(pid: number): string {
  return command('cat', `/proc/${pid}/stat`)
    .replace(/^.*\) /s, '')
    .split(' ')[19]!;
}

test.run();
