/** sweep.ts: what crashes left behind goes with the next collection, and nothing that somebody uses. */
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { createLockName, entryName, partialName } from '../../../lib/core/layout.ts';
import { tryFlock } from '../../../lib/system/flock.ts';
import { end, endAll, inBackground, unshare } from '../../helpers/background-script.ts';
import { lockFileOf, nameOf, TestNode } from '../../helpers/node.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  unlessPrivateMachine,
} from '../../helpers/private-machine.ts';
import { assert, suite } from '../../helpers/suite.ts';

enterPrivateMachine();

/** A different one for each number. */
const hash = (number: number): string => number.toString(16).padStart(16, '0');

/** Settings under which a collection evicts whatever it may. */
const everything = { container_cache_gc_high: 1, container_cache_gc_low: 0, gc_min_age: 0 };

const left = suite('collector: what crashes left behind', { skip: unlessPrivateMachine });

left.after.each(endAll);

left('trash that an earlier collector left, also what its user had closed', async () => {
  await using node = await TestNode.start({ settings: everything });
  node.makeUserDirectory(alice);
  const left = join(node.basePath, '.trash/pyxis_cache_u59001_0000000000000001.abcdef');
  mkdirSync(join(left, 'a/b'), { recursive: true });
  writeFileSync(join(left, 'a/b/file'), '');
  command('chown', '--recursive', `${alice.uid}`, left);
  for (const path of ['a/b', 'a', '.']) chmodSync(join(left, path), 0o000);
  symlinkSync(node.root, join(node.basePath, '.trash/link'));
  writeFileSync(join(node.basePath, '.trash/-rf'), '');
  // Far below the watermark: leftovers go always.
  node.configure({ container_cache_gc_high: 99, container_cache_gc_low: 98 });
  assert.is((await node.gc()).exitCode, 0);
  assert.equal(node.trash(), []);
  assert.ok(existsSync(node.configPath));
});

left("a dead creator's partial directory and create lock; a living one's stay", async () => {
  await using node = await TestNode.start({ settings: everything });
  const user = node.makeUserDirectory(alice);
  const leave = (number: number): { partial: string; lock: string } => {
    const entry = `pyxis_cache_u${alice.uid}_${hash(number)}`;
    const partial = join(user, partialName(entry, 7, 'abcd'));
    const lock = join(user, createLockName(entry));
    mkdirSync(join(partial, 'rootfs'), { recursive: true });
    writeFileSync(lock, '');
    command('chown', '--recursive', `${alice.uid}:${alice.gid}`, partial, lock);
    return { partial, lock };
  };
  const dead = leave(1);
  const living = leave(2);
  const lockless = leave(3);
  rmSync(lockless.lock);
  const creator = openSync(living.lock, 'r');
  try {
    assert.ok(tryFlock(creator, 'exclusive'));
    assert.is((await node.gc('--force')).exitCode, 1);
    assert.equal(
      readdirSync(user).sort(),
      [living.partial, living.lock].map((path) => basename(path)).sort(),
    );
  } finally {
    closeSync(creator);
  }
  await node.gc('--force');
  assert.equal([readdirSync(user), node.trash()], [[], []]);
  assert.not(existsSync(dead.partial));
});

left(
  'a stub that no Epilog came for; one that is young or mounted stays, and so does a container',
  async () => {
    await using node = await TestNode.start({ settings: everything });
    const user = node.makeUserDirectory(alice);
    const anHourAgo = Date.now() / 1000 - 3700;
    const leave = (name: string, { isOld, isStub }: { isOld: boolean; isStub: boolean }): string => {
      const path = join(user, name);
      mkdirSync(join(path, '.container-cache/upper'), { recursive: true });
      const mark = join(path, '.container-cache', isStub ? 'entry' : 'other');
      writeFileSync(mark, '');
      command('chown', '--recursive', `${alice.uid}:${alice.gid}`, path);
      if (isOld) utimesSync(mark, anHourAgo, anHourAgo);
      return path;
    };
    const old = leave('.pyxis_42.0', { isOld: true, isStub: true });
    const ofJobScope = leave('.pyxis_42_42.1', { isOld: true, isStub: true });
    const mounted = leave('.pyxis_43.0', { isOld: true, isStub: true });
    const young = leave('.pyxis_44.0', { isOld: false, isStub: true });
    const container = leave('.pyxis_45.0', { isOld: true, isStub: false });
    const named = leave('.pyxis_mine', { isOld: true, isStub: true });
    symlinkSync(node.root, join(user, '.pyxis_46.0'));
    const step = await inBackground(unshare, 'mount --bind "$1" /srv', mounted);
    await node.gc('--force');
    const all = [old, ofJobScope, mounted, young, container, named, node.root];
    assert.equal(
      all.map((path) => existsSync(path)),
      [false, false, true, true, true, true, true],
    );
    await end(step);
    await node.gc('--force');
    assert.not(existsSync(mounted));
  },
);

left('entries and stubs of version 0.1, without a dot, but not those that are in use', async () => {
  await using node = await TestNode.start({
    settings: { container_cache_gc_high: 99, container_cache_gc_low: 98 },
  });
  const plant = (number: number): string => {
    const path = node.plant(alice, { hash: hash(number), usedSecondsAgo: 0 });
    const former = join(dirname(path), nameOf(path));
    renameSync(path, former);
    return former;
  };
  const [idle, locked, mounted, lockless] = [1, 2, 3, 4].map(plant) as [string, string, string, string];
  rmSync(lockFileOf(lockless));
  const current = node.plant(alice, { hash: hash(5), usedSecondsAgo: 0 });
  const ofBob = join(node.userPath(alice), entryName(bob.uid, hash(6)));
  mkdirSync(ofBob);
  const lease = openSync(lockFileOf(locked), 'r');
  const step = await inBackground(unshare, 'mount --bind "$1" /srv', mounted);
  try {
    assert.ok(tryFlock(lease, 'shared'));
    assert.is((await node.gc()).exitCode, 0);
    const all = [idle, locked, mounted, lockless, current, ofBob];
    assert.equal(
      all.map((path) => existsSync(path)),
      [false, true, true, false, true, true],
    );
  } finally {
    closeSync(lease);
    await end(step);
  }
  await node.gc();
  assert.equal([existsSync(locked), existsSync(mounted), node.trash()], [false, false, []]);
});

left('a create lock that cannot be opened stops neither the sweep nor the collection', async () => {
  await using node = await TestNode.start({ settings: everything });
  const user = node.makeUserDirectory(alice);
  const elsewhere = join(node.root, 'elsewhere');
  for (const [number, make] of [
    (path: string) => {
      symlinkSync(elsewhere, path);
    },
    (path: string) => {
      mkdirSync(path);
    },
    (path: string) => {
      command('mkfifo', path);
    },
  ].entries()) {
    make(join(user, createLockName(`pyxis_cache_u${alice.uid}_${hash(number)}`)));
  }
  node.plant(alice, { hash: hash(9), usedSecondsAgo: 1000 });
  node.plant(bob, { hash: hash(9), usedSecondsAgo: 1000 });
  await node.gc('--force');
  assert.equal([node.entries(alice), node.entries(bob)], [[], []]);
  assert.not(existsSync(elsewhere));
});

left.run();
