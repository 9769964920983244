/**
 * The base and the user directory: what is refused, what is made, what is set right, and that nothing is
 * followed.
 */
// test: timeout 600 s
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  renameSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { mountSilentFuse, unlessFuse } from '../helpers/filesystem.ts';
import { holders, TestNode, until, type ProgramResult } from '../helpers/node.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  mount,
  replaceFile,
  umount,
  unlessPrivateMachine,
} from '../helpers/private-machine.ts';
import { assert, suite, unlessStrace } from '../helpers/suite.ts';

enterPrivateMachine();

const ownerAndMode = (path: string): [number, number, string] => {
  const { uid, gid, mode } = lstatSync(path);
  return [uid, gid, (mode & 0o7777).toString(8)];
};

/**
 * Everything below the node's root, with owner, mode and target; not the times, nor what the programs write
 * by design.
 */
const listing = (node: TestNode): string => command('find', node.root, '-printf', '%p %y %u:%g %m %l\n');

/**
 * The same trouble under both policies; it is the node's, so `fail` exits 1, and nothing is made or changed.
 */
async function assertRefused(node: TestNode, code: string, reason: RegExp): Promise<void> {
  const image = node.image();
  for (const [policy, exitCode] of [
    ['continue', 0],
    ['fail', 1],
  ] as const) {
    node.configure({ on_failure: policy });
    const before = listing(node);
    for (const job of [
      { id: 7, user: alice },
      { id: 7, user: alice, image },
    ]) {
      const result = await node.prolog(job);
      assert.equal([result.exitCode, result.line['result'], result.line['code']], [exitCode, 'failed', code]);
      assert.match(result.line['reason']!, reason);
    }
    assert.equal(listing(node), before);
    assert.equal(holders(), []);
  }
}

const base = suite('Prolog: the base', { skip: unlessPrivateMachine });

base('that is missing is made, of root, mode 0755', async () => {
  await using node = await TestNode.start();
  assert.not(existsSync(node.basePath));
  assert.is((await node.prolog({ id: 7, user: alice })).exitCode, 0);
  assert.equal(ownerAndMode(node.basePath), [0, 0, '755']);
});

base('whose parent is missing is not made: a disk may not be mounted', async () => {
  await using node = await TestNode.start({ basePath: '/mnt/nothing/here/data' });
  await assertRefused(node, 'BASE_UNSAFE', /ENOENT/);
});

for (const [name, spoil, reason] of [
  [
    'a symlink to a good directory',
    (path: string) => {
      mkdirSync(`${path}.real`);
      symlinkSync(`${path}.real`, path);
    },
    /symlink or no directory, want a directory/,
  ],
  [
    'a file',
    (path: string) => {
      writeFileSync(path, '');
    },
    /symlink or no directory, want a directory/,
  ],
  [
    "a user's",
    (path: string) => {
      mkdirSync(path);
      chownSync(path, alice.uid, 0);
    },
    /owned by uid 59001, mode \d+, want root and 0755; chown root /,
  ],
  [
    'writable for its group',
    (path: string) => {
      mkdirSync(path);
      chmodSync(path, 0o775);
    },
    /mode 0775, want root and 0755; chmod go-w /,
  ],
  [
    'writable for everybody',
    (path: string) => {
      mkdirSync(path);
      chmodSync(path, 0o757);
    },
    /mode 0757, want root and 0755; leave it to its users, and use a directory of its own/,
  ],
  [
    'writable for everybody and sticky',
    (path: string) => {
      mkdirSync(path);
      chmodSync(path, 0o1777);
    },
    /mode 1777, want root and 0755; leave it to its users, and use a directory of its own/,
  ],
  [
    'in a directory that everybody can write',
    (path: string) => {
      mkdirSync(path);
      chmodSync(dirname(path), 0o777);
    },
    /mode 0777, so that others can put something else in its place; chmod \+t /,
  ],
  [
    "in a user's directory",
    (path: string) => {
      mkdirSync(path);
      chownSync(dirname(path), alice.uid, 0);
    },
    /owned by uid 59001/,
  ],
] as const) {
  base(`that is ${name} is refused, and left as it is`, async () => {
    await using node = await TestNode.start();
    spoil(node.basePath);
    await assertRefused(node, 'BASE_UNSAFE', reason);
  });
}

base('whose way leads through a symlink is refused', async () => {
  await using node = await TestNode.start();
  mkdirSync(join(node.root, 'real/data'), { recursive: true });
  symlinkSync(join(node.root, 'real'), join(node.root, 'way'));
  await using other = await TestNode.start({ basePath: join(node.root, 'way/data') });
  await assertRefused(other, 'BASE_UNSAFE', /\/way\\" is no directory/);
});

base('in a sticky directory, as /tmp is one, is good', async () => {
  await using node = await TestNode.start();
  chmodSync(node.root, 0o1777);
  assert.is((await node.prolog({ id: 7, user: alice, image: node.image() })).line['result'], 'created');
});

base('on a disk in /etc/fstab is used if the disk is mounted, and refused if not', async () => {
  await using node = await TestNode.start();
  mkdirSync(node.basePath);
  replaceFile('/etc/fstab', () => `# disks\nLABEL=raid  ${node.basePath}  ext4  defaults  0 2\n`);
  try {
    await assertRefused(node, 'BASE_UNSAFE', /is in \/etc\/fstab but not mounted/);
    mount('--types', 'tmpfs', '--options', 'mode=0755', 'tmpfs', node.basePath);
    assert.is((await node.prolog({ id: 7, user: alice, image: node.image() })).line['result'], 'created');
    await node.epilog({ id: 7, user: alice });
  } finally {
    umount('/etc/fstab');
  }
  await until('nothing holds the disk', () => holders().length === 0);
  await node.settle();
  umount(node.basePath);
});

base.run();

const user = suite('Prolog: the user directory', { skip: unlessPrivateMachine });

user("that is missing is made, the user's own, mode 0700", async () => {
  await using node = await TestNode.start();
  await node.prolog({ id: 7, user: alice });
  assert.equal(ownerAndMode(node.userPath(alice)), [alice.uid, alice.gid, '700']);
});

user('gets mode 0700 and its group back, whatever the user has made of them', async () => {
  await using node = await TestNode.start();
  const path = node.makeUserDirectory(alice);
  const image = node.image();
  for (const mode of [0o755, 0o777, 0o1777, 0o2770, 0o500, 0o000]) {
    chownSync(path, alice.uid, 100);
    chmodSync(path, mode);
    assert.is((await node.prolog({ id: 7, user: alice, image })).exitCode, 0);
    assert.equal(ownerAndMode(path), [alice.uid, alice.gid, '700'], mode.toString(8));
  }
  assert.is(node.entries(alice).length, 1);
});

user(
  "that is root's and empty, as of a Prolog killed between mkdir and chown, becomes the user's",
  async () => {
    await using node = await TestNode.start();
    mkdirSync(node.userPath(alice), { recursive: true });
    await node.prolog({ id: 7, user: alice });
    assert.equal(ownerAndMode(node.userPath(alice)), [alice.uid, alice.gid, '700']);
  },
);

const wrongDirectories: readonly [string, (path: string, node: TestNode) => void, RegExp][] = [
  [
    'a symlink',
    (path, node) => {
      mkdirSync(join(node.root, 'elsewhere'));
      chownSync(join(node.root, 'elsewhere'), alice.uid, alice.gid);
      symlinkSync(join(node.root, 'elsewhere'), path);
    },
    /symlink or no directory, want a directory/,
  ],
  [
    'a file',
    (path) => {
      writeFileSync(path, '');
      chownSync(path, alice.uid, alice.gid);
    },
    /symlink or no directory, want a directory/,
  ],
  [
    'a FIFO',
    (path) => {
      command('mkfifo', path);
    },
    /symlink or no directory, want a directory/,
  ],
  [
    "another user's",
    (path, node) => {
      renameSync(node.makeUserDirectory(bob), path);
    },
    /owned by uid 59002, want 59001/,
  ],
  [
    "root's and not empty",
    (path) => {
      mkdirSync(join(path, 'something'), { recursive: true });
    },
    /owned by uid 0, want 59001/,
  ],
];

for (const [name, spoil, reason] of wrongDirectories) {
  user(`that is ${name} is refused, and left as it is`, async () => {
    await using node = await TestNode.start();
    mkdirSync(node.basePath);
    spoil(node.userPath(alice), node);
    await assertRefused(node, 'USER_DIRECTORY', reason);
  });

  user(`that was replaced by ${name} is refused, although it had an entry`, async () => {
    await using node = await TestNode.start();
    const image = node.image();
    await node.prolog({ id: 1, user: alice, image });
    await node.epilog({ id: 1, user: alice });
    renameSync(node.userPath(alice), join(node.root, 'former'));
    spoil(node.userPath(alice), node);
    const { exitCode, line } = await node.prolog({ id: 2, user: alice, image });
    assert.equal([exitCode, line['code']], [0, 'USER_DIRECTORY']);
    assert.equal(holders(), []);
  });
}

/** What a user's mount brings about is the job's fault: a user may not be able to drain a node by it. */
async function assertNoHarm(node: TestNode, mountPoint: string, forOthers: boolean): Promise<void> {
  node.configure({
    on_failure: 'fail',
    container_cache_gc_high: 1,
    container_cache_gc_low: 0,
    gc_min_age: 0,
  });
  const image = node.image();
  await node.prolog({ id: 1, user: alice, image });
  const ofBob = node.plant(bob, { hash: '00000000000000aa', usedSecondsAgo: 1000 });
  const calls: [string, () => Promise<ProgramResult>][] = [
    ['prolog', () => node.prolog({ id: 2, user: alice, image })],
    ['prolog without an image', () => node.prolog({ id: 3, user: alice })],
    ['epilog', () => node.epilog({ id: 1, user: alice })],
    ['gc', () => node.gc('--force', '--background')],
  ];
  mkdirSync(mountPoint, { recursive: true });
  {
    await using _ = await mountSilentFuse(mountPoint, alice, { forOthers });
    for (const [name, call] of calls) {
      const { exitCode, line } = await call();
      assert.is(exitCode, 0, name);
      if (name.startsWith('prolog')) assert.equal([name, line['code']], [name, 'ENTRY_DAMAGED']);
    }
    assert.equal(holders(), []);
    assert.not(existsSync(ofBob));
  }
  const after = await node.prolog({ id: 4, user: alice, image });
  assert.is(after.exitCode, 0);
  assert.is(node.leases().length, 1);
}

for (const [who, forOthers] of [
  ['refuses root', false],
  ['never answers', true],
] as const) {
  for (const [where, path] of [
    ['on it', ''],
    ['in it', '.digests'],
    ['in a place of a user', 'pyxis_x/tmp'],
  ] as const) {
    user.unless(
      unlessFuse,
      `with a user's filesystem ${where} that ${who} costs that user the cache alone`,
      async () => {
        await using node = await TestNode.start();
        await assertNoHarm(node, join(node.userPath(alice), path), forOthers);
      },
    );
  }
}

user.unless(
  unlessPrivateMachine ?? unlessStrace,
  'that a process of its owner closes again and again costs that user the cache, and drains no node',
  async () => {
    await using node = await TestNode.start({ settings: { on_failure: 'fail' } });
    chmodSync(node.makeUserDirectory(alice), 0o600);
    // As if it was closed again just after our call.
    const closedAgain = 'inject=fchmod:retval=0';
    const wrapper = ['/usr/bin/strace', '-qq', '-o', join(node.root, 'trace'), '-e', closedAgain];
    const { exitCode, line } = await node.prolog({ id: 7, user: alice, image: node.image(), wrapper });
    assert.equal([exitCode, line['result'], line['code']], [0, 'failed', 'ENTRY_DAMAGED'], line['reason']);
  },
);

user.run();

const runtime = suite('runtime_dir', { skip: unlessPrivateMachine });

for (const [what, code, spoil] of [
  [
    "a user's",
    'BAD_CONFIG',
    (path: string) => {
      chownSync(path, alice.uid, alice.gid);
    },
  ],
  [
    'writable for everybody',
    'BAD_CONFIG',
    (path: string) => {
      chmodSync(path, 0o777);
    },
  ],
  [
    'below a directory that everybody may write',
    // In which the base is, too.
    'BASE_UNSAFE',
    (path: string) => {
      chmodSync(dirname(path), 0o777);
    },
  ],
] as const) {
  runtime(
    `that is ${what}: is refused by Prolog, Epilog and collector, and nothing in it is believed`,
    async () => {
      await using node = await TestNode.start({ settings: { on_failure: 'fail' } });
      const image = node.image();
      await node.prolog({ id: 1, user: alice, image });
      spoil(node.runtimePath);
      for (const [expected, call] of [
        [code, () => node.prolog({ id: 2, user: alice, image })],
        ['BAD_CONFIG', () => node.epilog({ id: 1, user: alice })],
      ] as const) {
        const { exitCode, line } = await call();
        assert.equal([exitCode, line['result'], line['code']], [1, 'failed', expected], line['reason']);
        if (expected === 'BAD_CONFIG')
          assert.match(line['reason'] ?? '', /want a directory of root that nobody else can write/);
      }
      assert.is.not((await node.gc('--force')).exitCode, 0);
      assert.is(holders(1).length, 1);
      chownSync(node.runtimePath, 0, 0);
      chmodSync(node.runtimePath, 0o711);
      chmodSync(node.root, 0o755);
      assert.is((await node.epilog({ id: 1, user: alice })).exitCode, 0);
      assert.equal(holders(), []);
    },
  );
}

runtime.run();
