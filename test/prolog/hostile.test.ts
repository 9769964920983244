/**
 * A user who arranges the own directory against the Prolog: nothing outside of it is opened, followed or
 * changed, the Prolog ends, and it never exits non-zero (I10, I16, I17).
 */
// test: timeout 600 s
import {
  chmodSync,
  chownSync,
  closeSync,
  existsSync,
  lchownSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { basename, join } from 'node:path';
import { tryFlock, type FlockMode } from '../../lib/system/flock.ts';
import { HeldProgram } from '../helpers/held-program.ts';
import { holders, lockFileOf, TestNode, type ProgramResult } from '../helpers/node.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  unlessPrivateMachine,
  type TestUser,
} from '../helpers/private-machine.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

/** With the policy under which a wrong exit code would drain the node. */
const settings = { on_failure: 'fail' };

/** A directory of somebody, with a file that a careless program would take for a lock file. */
function makePrecious(node: TestNode, owner: TestUser | { uid: 0; gid: 0 }): string {
  const path = join(node.root, `precious-${owner.uid}`);
  mkdirSync(path, { mode: 0o700 });
  writeFileSync(join(path, '.pyxis_cache_lock'), 'precious\n', { mode: 0o600 });
  command('chown', '--recursive', `${owner.uid}:${owner.gid}`, path);
  return path;
}

const listing = (path: string): string => command('find', path, '-printf', '%p %i %u:%g %m %s %T@ %C@ %l\n');

function makeSymlink(target: string, path: string): void {
  symlinkSync(target, path);
  lchownSync(path, alice.uid, alice.gid);
}

function flockFile(path: string, mode: FlockMode): Disposable {
  const fd = openSync(path, 'r');
  assert.ok(tryFlock(fd, mode));
  return {
    [Symbol.dispose]: () => {
      closeSync(fd);
    },
  };
}

/** A node on which alice's entry is there and no job has it. */
async function withEntry(): Promise<{ node: TestNode; image: string; entry: string; createLock: string }> {
  const node = await TestNode.start({ settings });
  const image = node.image();
  await node.prolog({ id: 1, user: alice, image });
  await node.epilog({ id: 1, user: alice });
  const [entry = ''] = node.entries(alice);
  const createLock = node.createLock(alice);
  return { node, image, entry, createLock };
}

function assertHarmless({ exitCode, line }: ProgramResult, code: string): void {
  assert.equal([exitCode, line['result'], line['code']], [0, 'failed', code], line['reason']);
  assert.equal(holders(), []);
}

const entryTest = suite('Prolog: a hostile entry', { skip: unlessPrivateMachine });

for (const owner of [alice, bob, { uid: 0, gid: 0 } as const]) {
  entryTest(`that is a symlink to a directory of uid ${owner.uid} is not followed`, async () => {
    const { node, image, entry } = await withEntry();
    await using _ = node;
    const precious = makePrecious(node, owner);
    const before = listing(precious);
    command('rm', '--recursive', entry);
    makeSymlink(precious, entry);
    assertHarmless(await node.prolog({ id: 2, user: alice, image }), 'ENTRY_DAMAGED');
    await node.epilog({ id: 2, user: alice });
    assert.is(listing(precious), before);
  });

  entryTest(`whose lock file is a symlink to a file of uid ${owner.uid} is not used`, async () => {
    const { node, image, entry } = await withEntry();
    await using _ = node;
    const precious = makePrecious(node, owner);
    const before = listing(precious);
    rmSync(lockFileOf(entry));
    makeSymlink(join(precious, '.pyxis_cache_lock'), lockFileOf(entry));
    assertHarmless(await node.prolog({ id: 2, user: alice, image }), 'ENTRY_DAMAGED');
    assert.is(listing(precious), before);
  });
}

const others: readonly [string, (path: string) => void][] = [
  [
    'a file',
    (path) => {
      writeFileSync(path, '');
      chownSync(path, alice.uid, alice.gid);
    },
  ],
  [
    'a FIFO',
    (path) => {
      command('mkfifo', path);
      chownSync(path, alice.uid, alice.gid);
    },
  ],
  [
    'a directory',
    (path) => {
      mkdirSync(path);
      chownSync(path, alice.uid, alice.gid);
    },
  ],
  [
    'a symlink to itself',
    (path) => {
      makeSymlink(basename(path), path);
    },
  ],
  [
    "another's",
    (path) => {
      mkdirSync(path);
      chownSync(path, bob.uid, bob.gid);
    },
  ],
];

for (const [what, make] of others.filter(([name]) => name !== 'a directory')) {
  entryTest(`that is ${what} is not used`, async () => {
    const { node, image, entry } = await withEntry();
    await using _ = node;
    command('rm', '--recursive', entry);
    make(entry);
    assertHarmless(await node.prolog({ id: 2, user: alice, image }), 'ENTRY_DAMAGED');
  });
}

for (const [what, make] of others.filter(([name]) => name !== 'a file')) {
  entryTest(`whose lock file is ${what} is not used`, async () => {
    const { node, image, entry } = await withEntry();
    await using _ = node;
    rmSync(lockFileOf(entry));
    make(lockFileOf(entry));
    assertHarmless(await node.prolog({ id: 2, user: alice, image }), 'ENTRY_DAMAGED');
  });
}

entryTest("whose lock file is a link to another's file is not used", async () => {
  const { node, image, entry } = await withEntry();
  await using _ = node;
  const precious = join(makePrecious(node, bob), '.pyxis_cache_lock');
  chmodSync(precious, 0o644);
  rmSync(lockFileOf(entry));
  linkSync(precious, lockFileOf(entry));
  assertHarmless(await node.prolog({ id: 2, user: alice, image }), 'ENTRY_DAMAGED');
  assert.is(readFileSync(precious, 'utf8'), 'precious\n');
});

entryTest('whose lock is held exclusively for ever is waited for with a limit', async () => {
  const { node, image, entry } = await withEntry();
  await using _ = node;
  {
    using _lock = flockFile(lockFileOf(entry), 'exclusive');
    assertHarmless(await node.prolog({ id: 2, user: alice, image }), 'LOCK_TIMEOUT');
  }
  assert.is((await node.prolog({ id: 3, user: alice, image })).line['result'], 'reused');
});

for (const mode of [0o000, 0o300, 0o500]) {
  entryTest(`of mode ${mode.toString(8)} does not disturb the Prolog`, async () => {
    const { node, image, entry } = await withEntry();
    await using _ = node;
    chmodSync(entry, mode);
    const { exitCode, line } = await node.prolog({ id: 2, user: alice, image });
    assert.is(exitCode, 0);
    assert.ok(['reused', 'failed'].includes(line['result']!));
    assert.is(holders().length, line['result'] === 'reused' ? 1 : 0);
    assert.is((await node.epilog({ id: 2, user: alice })).exitCode, 0);
  });
}

entryTest.run();

const creating = suite('Prolog: hostile while an entry is made', { skip: unlessPrivateMachine });

for (const [what, make] of others.filter(([name]) => name !== 'a file' && name !== "another's")) {
  creating(`a create lock that is ${what} is not used`, async () => {
    const { node, image, entry, createLock } = await withEntry();
    await using _ = node;
    command('rm', '--recursive', '--force', entry, createLock);
    make(createLock);
    assertHarmless(await node.prolog({ id: 2, user: alice, image }), 'ENTRY_DAMAGED');
  });
}

creating('a create lock that is a symlink makes no file where it points to', async () => {
  const { node, image, entry, createLock } = await withEntry();
  await using _ = node;
  command('rm', '--recursive', '--force', entry, createLock);
  makeSymlink(join(node.root, 'made'), createLock);
  assertHarmless(await node.prolog({ id: 2, user: alice, image }), 'ENTRY_DAMAGED');
  assert.not(existsSync(join(node.root, 'made')));
});

for (const mode of ['shared', 'exclusive'] as const) {
  creating(`a create lock that is held ${mode} for ever is waited for until create_timeout`, async () => {
    const { node, image, entry, createLock } = await withEntry();
    await using _ = node;
    node.configure({ ...settings, create_timeout: 1 });
    command('rm', '--recursive', entry);
    writeFileSync(createLock, '');
    chownSync(createLock, alice.uid, alice.gid);
    using _lock = flockFile(createLock, mode);
    assertHarmless(await node.prolog({ id: 2, user: alice, image }), 'LOCK_TIMEOUT');
    assert.equal([node.entries(alice), node.partials(alice)], [[], []]);
  });
}

/**
 * Runs a Prolog that creates, and `act` with the path of its partial directory, before unsquashfs has begun
 * or after the tree is unpacked and looked through.
 */
async function during(
  phase: 'before' | 'after',
  act: (partial: string, node: TestNode) => void,
): Promise<{ node: TestNode; result: ProgramResult }> {
  const node = await TestNode.start({ settings });
  const image = node.image();
  using program =
    phase === 'before'
      ? new HeldProgram('unsquashfs')
      : new HeldProgram('find', { where: '*execdir*', first: '/usr/bin/find "$@"', then: 'exit 0' });
  const prolog = node.startProlog({ id: 2, user: alice, image });
  await program.started();
  act(join(node.userPath(alice), node.partials(alice)[0]!), node);
  program.letGo();
  return { node, result: await prolog.result };
}

for (const phase of ['before', 'after'] as const) {
  for (const owner of [alice, bob, { uid: 0, gid: 0 } as const]) {
    for (const part of ['', 'rootfs']) {
      const name = part === '' ? 'the partial directory' : 'the tree in it';
      creating(
        `${name}, put away ${phase} the unpack for a symlink to uid ${owner.uid}'s directory`,
        async () => {
          let precious = '';
          let before = '';
          const { node, result } = await during(phase, (partial, current) => {
            precious = makePrecious(current, owner);
            before = listing(precious);
            const path = join(partial, part);
            if (existsSync(path)) renameSync(path, join(current.userPath(alice), 'aside'));
            makeSymlink(precious, path);
          });
          await using _ = node;
          assert.is(result.exitCode, 0, result.line['reason']);
          // Into alice's own directory alice may be led.
          if (owner !== alice) assert.is(listing(precious), before);
          assert.ok(lstatSync(precious).isDirectory());
          await node.settle();
          assert.equal([node.partials(alice), node.trash()], [[], []]);
          assert.is((await node.epilog({ id: 2, user: alice })).exitCode, 0);
        },
      );
    }
  }

  for (const [what, act] of [
    [
      'is removed',
      (partial: string) => {
        command('rm', '--recursive', partial);
      },
    ],
    [
      'is emptied',
      (partial: string) => {
        command('rm', '--recursive', '--force', join(partial, 'rootfs'));
      },
    ],
    [
      'is closed',
      (partial: string) => {
        chmodSync(partial, 0o000);
      },
    ],
    [
      'cannot be renamed into place, as something has the name',
      (partial: string, node: TestNode) => {
        const entry = /pyxis_cache_u\d+_[0-9a-f]{16}/.exec(partial)![0];
        mkdirSync(join(node.entryPath(alice, entry), 'x'), { recursive: true });
        command('chown', '--recursive', `${alice.uid}:${alice.gid}`, node.entryPath(alice, entry));
      },
    ],
    [
      'is in a user directory that is closed',
      (_: string, node: TestNode) => {
        chmodSync(node.userPath(alice), 0o000);
      },
    ],
  ] as const) {
    creating(
      `a partial directory that ${what} ${phase} the unpack fails the job's own attempt alone`,
      async () => {
        const { node, result } = await during(phase, act);
        await using _ = node;
        assert.is(result.exitCode, 0, result.line['reason']);
        assert.not(
          ['BUG', 'NO_SPACE', 'USER_DIRECTORY'].includes(result.line['code']!),
          result.line['reason'],
        );
        assert.is(holders().length, result.line['result'] === 'created' ? 1 : 0);
        await node.settle();
        assert.equal(node.trash(), []);
        assert.is((await node.epilog({ id: 2, user: alice })).exitCode, 0);
      },
    );
  }
}

creating('a tree whose lock file is made beforehand, and flocked, is not published', async () => {
  const locks: Disposable[] = [];
  const { node, result } = await during('after', (partial) => {
    const path = lockFileOf(join(partial, 'rootfs'));
    writeFileSync(path, '');
    chownSync(path, alice.uid, alice.gid);
    locks.push(flockFile(path, 'exclusive'));
  });
  await using _ = node;
  for (const lock of locks) lock[Symbol.dispose]();
  // The file is removed and made anew: what somebody holds is no longer the lock file.
  assert.equal([result.exitCode, result.line['result']], [0, 'created']);
  assert.is(holders().length, 1);
});

creating('a process of the user that stays in the partial directory keeps nothing back', async () => {
  const node = await TestNode.start({ settings });
  await using _ = node;
  using unsquashfs = new HeldProgram('unsquashfs', { then: 'exit 1' });
  const prolog = node.startProlog({ id: 2, user: alice, image: node.image() });
  await unsquashfs.started();
  const inside = openSync(join(node.userPath(alice), node.partials(alice)[0]!), 'r');
  try {
    unsquashfs.letGo();
    assertHarmless(await prolog.result, 'UNPACK_FAILED');
    await node.settle();
    assert.equal([node.partials(alice), node.trash()], [[], []]);
  } finally {
    closeSync(inside);
  }
});

creating.run();
