/**
 * Room for steps, which run as the user: the room agent, on real small filesystems that entries of others
 * fill; and quotas.
 */
// test: timeout 600 s
import { spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import {
  chmodSync,
  closeSync,
  constants,
  existsSync,
  openSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { hasRoomAgent } from '../../lib/store/room-presence.ts';
import { readUsage } from '../../lib/system/disk-usage.ts';
import { tryFlock } from '../../lib/system/flock.ts';
import { makeExt4, unlessExt4 } from '../helpers/filesystem.ts';
import { kill, lockFileOf, nameOf, TestNode, until, type NodeOptions } from '../helpers/node.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  replaceProgram,
  unlessPrivateMachine,
  type TestUser,
} from '../helpers/private-machine.ts';
import { acquire } from '../helpers/run-acquire.ts';
import { assert, suite } from '../helpers/suite.ts';
import { installWrapper, stepEnvironment } from '../helpers/wrapper.ts';

enterPrivateMachine();

const mebibyte = 1024 * 1024;
const noWatermarks = { container_cache_gc_high: 100, container_cache_gc_low: 99, gc_min_age: 0 };
const noEnroot = { enroot_path: '/none/enroot' };

async function withDisk(
  settings: NodeOptions['settings'],
  body: (node: TestNode) => Promise<void>,
  options: Parameters<typeof makeExt4>[0] = { mebibytes: 64, inodes: 4096 },
): Promise<void> {
  using disk = makeExt4(options);
  await using node = await TestNode.start({ basePath: disk.path, settings: { ...noEnroot, ...settings } });
  await body(node);
  await node.epilog({ id: 7, user: alice });
}

async function stopAgents(node: TestNode): Promise<void> {
  for (const pid of node.roomAgents()) kill(pid);
  await until('the agent has ended', () => !hasRoomAgent(node.runtimePath));
}

/** A job without an image, on a node whose disk has room for a third of an entry of that size. */
async function startFull(node: TestNode, mebibytes: number): Promise<string[]> {
  const planted: string[] = [];
  while (readUsage(node.basePath).availableBytes > mebibytes * 1.3 * mebibyte) {
    planted.push(
      node.plant(bob, {
        hash: planted.length.toString(16).padStart(16, '0'),
        usedSecondsAgo: 5000 - 100 * planted.length,
        bytes: mebibytes * mebibyte,
      }),
    );
    command('sync', '--file-system', node.basePath);
  }
  writeFileSync(
    join(node.basePath, 'others'),
    Buffer.alloc(readUsage(node.basePath).availableBytes - 2 * mebibyte, 1),
  );
  command('sync', '--file-system', node.basePath);
  await node.prolog({ id: 7, user: alice });
  await until('the room agent waits', () => hasRoomAgent(node.runtimePath));
  return planted;
}

const random = (mebibytes: number): { content: Buffer } => ({ content: randomBytes(mebibytes * mebibyte) });

const step = suite('room for a step', { skip: unlessExt4() });

step(
  'that unpacks an entry: root evicts of all users, first what was unused longest, and no more than needed',
  async () => {
    await withDisk(noWatermarks, async (node) => {
      const planted = await startFull(node, 12);
      const made = await acquire(node, [node.image({ file: random(10) })]);
      assert.equal([made.exitCode, made.log?.fields['result']], [0, 'created'], made.log?.fields['reason']);
      assert.equal(
        planted.map((path) => existsSync(path)),
        planted.map((_, index) => index > 0),
      );
    });
  },
);

step(
  'above the high watermark it gets its room; without an agent it is left to enroot, as ever',
  async () => {
    await withDisk(
      { container_cache_gc_high: 60, container_cache_gc_low: 30, gc_min_age: 0 },
      async (node) => {
        const planted = await startFull(node, 12);
        const image = node.image({ file: random(1) });
        await stopAgents(node);
        const alone = await acquire(node, [image]);
        assert.equal([alone.exitCode, alone.log?.fields['code']], [1, 'NO_SPACE']);
        assert.ok(planted.every((path) => existsSync(path)));
        await node.prolog({ id: 7, user: alice });
        await until('the next Prolog has started another', () => hasRoomAgent(node.runtimePath));
        const made = await acquire(node, [image]);
        assert.equal([made.exitCode, made.log?.fields['result']], [0, 'created'], made.log?.fields['reason']);
      },
    );
  },
);

step('that needs more than could be freed evicts nothing', async () => {
  await withDisk(noWatermarks, async (node) => {
    const planted = await startFull(node, 12);
    const made = await acquire(node, [node.image({ file: random(52) })]);
    assert.equal([made.exitCode, made.log?.fields['code']], [1, 'NO_SPACE'], made.log?.fields['reason']);
    assert.ok(planted.every((path) => existsSync(path)));
  });
});

step('the limit of the cache holds for steps, too', async () => {
  await withDisk({ ...noWatermarks, container_cache_max_size: '20M' }, async (node) => {
    await node.prolog({ id: 7, user: alice });
    await until('the room agent waits', () => hasRoomAgent(node.runtimePath));
    const old = node.plant(bob, { hash: '0000000000000001', usedSecondsAgo: 1000, bytes: 12 * mebibyte });
    const made = await acquire(node, [node.image({ file: random(10) })]);
    assert.equal([made.exitCode, made.log?.fields['result']], [0, 'created'], made.log?.fields['reason']);
    assert.not(existsSync(old));
    const large = await acquire(node, [node.image({ file: random(21) })]);
    assert.equal([large.exitCode, large.log?.fields['code']], [1, 'TOO_LARGE']);
  });
});

/** An enroot that unpacks as the real one does, into ENROOT_DATA_PATH. */
const enroot = `#!/bin/bash
case $1 in
  version) mkdir -p "$ENROOT_DATA_PATH"; echo 4.1.2 ;;
  create) unsquashfs -quiet -no-progress -user-xattrs -dest "$ENROOT_DATA_PATH/$3" "$4" >/dev/null || exit 1 ;;
  remove) rm -rf "$ENROOT_DATA_PATH/$3" ;;
esac
`;

/** The real enroot's part of a step of job 7, through the wrapper. */
function runWrapper(
  node: TestNode,
  path: string,
  ...parameters: string[]
): { status: number | null; stderr: string } {
  const ids = ['--reuid', String(alice.uid), '--regid', String(alice.gid), '--clear-groups'];
  const step = stepEnvironment(node, alice, 7);
  const environment = {
    ...step,
    PATH: `/usr/local/sbin:${step['PATH'] ?? ''}`,
    ENROOT_DATA_PATH: node.userPath(alice),
  };
  return spawnSync('setpriv', [...ids, '--', path, ...parameters], { env: environment, encoding: 'utf8' });
}

step('a container that enroot makes gets its room from the wrapper, before it is made', async () => {
  await withDisk(noWatermarks, async (node) => {
    const { path, settings } = installWrapper(node, enroot);
    node.configure({ ...noWatermarks, ...settings });
    const planted = await startFull(node, 12);
    const { status, stderr } = runWrapper(
      node,
      path,
      'create',
      '--name',
      'pyxis_mine',
      node.image({ file: random(10) }),
    );
    assert.equal(status, 0, stderr);
    assert.equal(statSync(join(node.userPath(alice), 'pyxis_mine/file')).size, 10 * mebibyte);
    assert.equal(
      planted.map((one) => existsSync(one)),
      planted.map((_, index) => index > 0),
    );
  });
});

step.run();

const hostile = suite('the room agent and hostile users', { skip: unlessExt4() });

const askAs = (user: TestUser, node: TestNode, text: string, script = ''): void => {
  const fifo = join(node.runtimePath, 'room');
  spawnSync(
    'setpriv',
    [
      '--reuid',
      String(user.uid),
      '--regid',
      String(user.gid),
      '--clear-groups',
      'bash',
      '-c',
      `${script} printf '%s\\n' $$ >"$0"; sleep 2`,
      fifo,
    ],
    { env: { PATH: '/usr/bin:/bin', CONTAINER_CACHE_ROOM: text }, encoding: 'utf8' },
  );
};

hostile(
  'floods, forged numbers, images that the user cannot read, and other users: nothing is evicted, and others are served',
  async () => {
    await withDisk(noWatermarks, async (node) => {
      const planted = await startFull(node, 12);
      const image = node.image({ file: random(10) });
      const secret = node.image({ file: random(11) });
      chmodSync(secret, 0o600);
      const fifo = openSync(join(node.runtimePath, 'room'), constants.O_WRONLY | constants.O_NONBLOCK);
      for (const text of [
        '\0'.repeat(4000),
        '99999999999999\n1\n2\n0\n-1\n',
        '\n'.repeat(4000),
        `${process.pid}\n`,
      ])
        writeSync(fifo, text);
      closeSync(fifo);
      askAs(alice, node, `entry ${secret}`);
      askAs(alice, node, 'entry relative.sqsh');
      askAs(alice, node, `everything ${image}`);
      // A user who has never had a job here.
      askAs({ uid: 65_000, gid: 65_000, name: 'none' }, node, `entry ${image}`);
      assert.ok(planted.every((path) => existsSync(path)));
      assert.equal(node.roomAgents().length, 1);
      const made = await acquire(node, [image]);
      assert.equal([made.exitCode, made.log?.fields['result']], [0, 'created'], made.log?.fields['reason']);
    });
  },
);

hostile('a FIFO that another user keeps full, with anything, keeps nobody from room', async () => {
  await withDisk(noWatermarks, async (node) => {
    await startFull(node, 12);
    const image = node.image({ file: random(10) });
    const nobody = ['--reuid', '65000', '--regid', '65000', '--clear-groups'];
    const floods = ["yes ''", 'yes 1', "yes 9 | tr -d '\\n'", 'cat /dev/zero', 'cat /dev/urandom'].map(
      (flood) => {
        const script = ['bash', '-c', `(${flood}) >"$0"`, join(node.runtimePath, 'room')];
        return spawn('setpriv', [...nobody, ...script], { stdio: 'ignore', detached: true });
      },
    );
    try {
      await until('the FIFO is full', () => {
        const fifo = openSync(join(node.runtimePath, 'room'), constants.O_WRONLY | constants.O_NONBLOCK);
        try {
          writeSync(fifo, '\n');
          return false;
        } catch {
          return true;
        } finally {
          closeSync(fifo);
        }
      });
      const made = await acquire(node, [image]);
      assert.equal([made.exitCode, made.log?.fields['result']], [0, 'created'], made.log?.fields['reason']);
    } finally {
      for (const { pid } of floods) process.kill(-pid!, 'SIGKILL');
    }
  });
});

hostile(
  'there is one, however many Prologs look for it; it ends when its FIFO is gone and it is woken',
  async () => {
    await withDisk(noWatermarks, async (node) => {
      await Promise.all([1, 2, 3, 4].map((id) => node.prolog({ id, user: alice })));
      await until('the room agent waits', () => hasRoomAgent(node.runtimePath));
      assert.equal(node.roomAgents().length, 1);
      const path = join(node.runtimePath, 'room');
      assert.equal([statSync(path).uid, statSync(path).mode & 0o777], [0, 0o622]);
      const fifo = openSync(path, constants.O_WRONLY | constants.O_NONBLOCK);
      rmSync(path);
      writeSync(fifo, 'x\n');
      closeSync(fifo);
      await until('it has ended', () => node.roomAgents().length === 0);
      assert.equal(readdirSync(node.runtimePath).includes('room'), false);
    });
  },
);

hostile.run();

const quota = suite('a disk quota', { skip: unlessPrivateMachine });

/**
 * Kernels without quotas are common: unsquashfs fails as it does where the user directory may take no more
 * than 20 MiB.
 */
function limitUsers(): Disposable {
  return replaceProgram(
    'unsquashfs',
    `dest='' previous=''
for word; do
  [ "$previous" != -dest ] || dest=$word
  previous=$word
done
if [ -n "$dest" ]; then
  used=$(du -sk "\${dest%/*/*}" | cut -f1)
  if [ "$((used + 6144))" -gt 20480 ]; then
    mkdir "$dest" && head -c 1048576 /dev/zero >"$dest/half"
    echo 'Write on output file failed because Disk quota exceeded' >&2
    exit 1
  fi
fi
exec /usr/bin/unsquashfs "$@"`,
  );
}

const kinds = [
  ['the job has its entry', 'prolog', true],
  ['the step has its entry', 'acquire', true],
  ['the step has its entry, though nobody makes room for it', 'acquire', false],
  ['the container that enroot makes is there', 'wrapper', true],
  ['the container that enroot makes is there, though nobody makes room for it', 'wrapper', false],
] as const;
for (const [what, kind, hasAgent] of kinds) {
  quota(
    `that is used up: the user's own entries go, first what was unused longest, and ${what}`,
    async () => {
      await using node = await TestNode.start({ settings: { ...noWatermarks, ...noEnroot } });
      const { path, settings } = installWrapper(node, enroot);
      // The youngest just now: a quota leaves no choice.
      const configured = { ...noWatermarks, ...settings, gc_min_age: 3600 };
      node.configure(configured);
      await node.prolog({ id: 7, user: alice });
      await until('the room agent waits', () => hasRoomAgent(node.runtimePath));
      if (!hasAgent) await stopAgents(node);
      const others = node.plant(bob, { hash: '0000000000000009', usedSecondsAgo: 9000, bytes: 4 * mebibyte });
      const own = [1, 2, 3].map((number) =>
        node.plant(alice, {
          hash: `000000000000000${number}`,
          usedSecondsAgo: 3000 - 1000 * number,
          bytes: 6 * mebibyte,
        }),
      );
      // The first is in use.
      const used = openSync(lockFileOf(own[0]!), constants.O_RDONLY);
      assert.ok(tryFlock(used, 'shared'));
      const image = node.image({ file: random(6) });
      try {
        using _limit = limitUsers();
        if (kind === 'wrapper') {
          const { status, stderr } = runWrapper(node, path, 'create', '--name', 'pyxis_mine', image);
          assert.equal(status, 0, stderr);
          assert.equal(statSync(join(node.userPath(alice), 'pyxis_mine/file')).size, 6 * mebibyte);
        } else {
          const result =
            kind === 'prolog'
              ? (await node.prolog({ id: 8, user: alice, image })).line
              : (await acquire(node, [image])).log?.fields;
          assert.equal(result?.['result'], 'created', result?.['reason']);
          assert.ok(
            node
              .entries(alice)
              .map(nameOf)
              .includes(result?.['entry'] ?? ''),
          );
        }
      } finally {
        closeSync(used);
      }
      assert.ok(existsSync(others));
      assert.equal(
        own.map((one) => existsSync(one)),
        [true, false, true],
      );
      assert.equal(node.partials(alice), []);
    },
  );
}

quota('with nothing of the user to delete is told as one', async () => {
  await using node = await TestNode.start({ settings: { ...noWatermarks, ...noEnroot } });
  node.makeUserDirectory(alice);
  writeFileSync(join(node.userPath(alice), 'own'), Buffer.alloc(18 * mebibyte, 1));
  using _limit = limitUsers();
  const { exitCode, line } = await node.prolog({
    id: 8,
    user: alice,
    image: node.image({ file: random(6) }),
  });
  assert.equal([exitCode, line['result'], line['code']], [0, 'failed', 'QUOTA_EXCEEDED'], line['reason']);
  assert.equal([node.entries(alice), node.partials(alice)], [[], []]);
});

quota.run();
