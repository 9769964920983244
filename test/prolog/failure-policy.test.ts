/**
 * What is wrong with the configuration or with what slurmd says: named in the log, and the exit code that the
 * admin chose.
 */
// test: timeout 600 s
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { HeldProgram } from '../helpers/held-program.ts';
import { holders, TestNode } from '../helpers/node.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  replaceProgram,
  syslogPath,
  unlessPrivateMachine,
} from '../helpers/private-machine.ts';
import { smallTree, type Tree } from '../helpers/squashfs-image.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const config = suite('Prolog: a wrong configuration', { skip: unlessPrivateMachine });

const logged = 'log_target=stderr\n';
const base = (node: TestNode): string =>
  `container_cache_data_path=${node.basePath}\nstate_dir=${node.statePath}\n`;

for (const [what, text, reason] of [
  [
    'an unknown key',
    (node: TestNode) => `${base(node)}gc_minage=5\n`,
    /:3: unknown key \\"gc_minage\\"; is it gc_min_age\?; the job/,
  ],
  [
    'a value of the wrong type',
    (node: TestNode) => `${base(node)}\n# a comment\ngc_min_age=soon\n`,
    /:5: gc_min_age: found \\"soon\\", want a whole number from 0/,
  ],
  [
    'a low watermark that is not below the high one',
    (node: TestNode) => `${base(node)}container_cache_gc_low=85\n`,
    /:3: container_cache_gc_low: found low 85 and high 85, want low below high/,
  ],
  [
    'a relative path',
    () => 'container_cache_data_path=raid/data\n',
    /:1: container_cache_data_path: found \\"raid\/data\\", want an absolute path/,
  ],
  ['no path', () => '', /container_cache_data_path: not set, want the absolute path/],
  ['a line without a value', (node: TestNode) => `${base(node)}on\n`, /:3: found \\"on\\", want key=value/],
  [
    'a key that is there twice',
    (node: TestNode) => base(node) + base(node),
    /:3: container_cache_data_path: found a second time/,
  ],
] as const) {
  config(
    `${what} is named with file and line, nothing is done, and on_failure decides the exit code`,
    async () => {
      await using node = await TestNode.start();
      const image = node.image();
      for (const [policy, expected] of [
        ['', 0],
        ['on_failure=continue\n', 0],
        ['on_failure=fail\n', 1],
      ] as const) {
        node.writeConfig(text(node) + logged + policy);
        const { exitCode, line } = await node.prolog({ id: 7, user: alice, image });
        assert.equal([exitCode, line['result'], line['code']], [expected, 'failed', 'BAD_CONFIG']);
        assert.match(line['reason']!, reason);
        assert.ok(line['reason']!.includes(node.configPath));
      }
      assert.not(existsSync(node.basePath));
      assert.equal(holders(), []);
    },
  );
}

config('says so if enroot keeps containers where only we make directories, and only then', async () => {
  await using node = await TestNode.start();
  const image = node.image();
  const conf = join(node.root, 'sysconf/enroot.conf');
  mkdirSync(`${conf}.d`, { recursive: true });
  const dropIn = join(`${conf}.d`, '50-site.conf');
  const broken = `${base(node)}enroot_sysconf_path=${dirname(conf)}\ngc_minage=5\n`;
  const told = async (line: string, text = broken, file = conf): Promise<string | undefined> => {
    for (const one of [conf, dropIn]) rmSync(one, { force: true });
    writeFileSync(file, `# comment\nENROOT_CACHE_PATH /x\n${line}\n`);
    rmSync(syslogPath, { force: true });
    node.writeConfig(text);
    assert.is((await node.prolog({ id: 7, user: alice, image })).exitCode, 0);
    return /^<28>data-path job=7 uid=\d+ reason="(.*)"$/m.exec(readFileSync(syslogPath, 'utf8'))?.[1];
  };
  const own = join(node.root, 'closed', String(alice.uid));
  for (const line of [
    `ENROOT_DATA_PATH ${node.basePath}/$(id -u)`,
    `ENROOT_DATA_PATH="${node.basePath}/\${UID}"`,
    `ENROOT_DATA_PATH ${dirname(own)}/$EUID/enroot`,
  ])
    for (const file of [conf, dropIn])
      assert.match(
        (await told(line, broken, file)) ?? '',
        /pyxis has container_scope=job its epilog drains this node/,
        line,
      );
  for (const line of [
    '',
    'ENROOT_DATA_PATH ${HOME}/enroot',
    `ENROOT_DATA_PATH $(d=${node.basePath}/$(id -u); [ -w "$d" ] && echo "$d")`,
    'ENROOT_DATA_PATH /tmp/enroot-data/user-$(id -u)',
  ])
    assert.is(await told(line), undefined, line);
  // It is there already.
  mkdirSync(own, { recursive: true });
  command('chown', String(alice.uid), own);
  assert.is(await told(`ENROOT_DATA_PATH ${dirname(own)}/$EUID/enroot`), undefined);
  // Another job has its directory, made by us.
  const good = `${base(node)}enroot_sysconf_path=${dirname(conf)}\n`;
  assert.is(await told(`ENROOT_DATA_PATH ${node.basePath}/$(id -u)`, good), undefined);
});

config('that is not there, is no file or is huge: the log says so and the job runs', async () => {
  await using node = await TestNode.start();
  const path = node.configPath;
  for (const spoil of [
    () => undefined,
    () => {
      symlinkSync('/no/such/file', path);
    },
    () => {
      mkdirSync(path);
    },
    () => {
      command('mkfifo', path);
    },
    () => {
      writeFileSync(path, '#'.repeat(1024 * 1024));
    },
  ]) {
    command('rm', '--recursive', '--force', path, syslogPath);
    spoil();
    const { exitCode } = await node.prolog({ id: 7, user: alice, image: '/x' });
    assert.is(exitCode, 0);
    // Where there is no configuration, the log goes where it goes by default.
    assert.match(
      readFileSync(syslogPath, 'utf8'),
      /^<27>prolog job=7 .*code=BAD_CONFIG reason="Cannot read /,
    );
  }
});

config.run();

const jobs = suite('Prolog: a job that is not as slurmd makes it', { skip: unlessPrivateMachine });

for (const [what, environment] of [
  ['no job ID', { SLURM_JOB_ID: undefined }],
  ['a job ID of 0', { SLURM_JOB_ID: '0' }],
  ['a job ID that is a path', { SLURM_JOB_ID: '../7' }],
  ['no uid', { SLURM_JOB_UID: undefined }],
  ['a negative uid', { SLURM_JOB_UID: '-1' }],
  ['the uid that means none', { SLURM_JOB_UID: '4294967295' }],
  ['a gid that is no number', { SLURM_JOB_GID: 'x' }],
] as const) {
  jobs(`with ${what} is refused, and never drains the node`, async () => {
    await using node = await TestNode.start({ settings: { on_failure: 'fail' } });
    for (const run of [
      () => node.prolog({ id: 7, user: alice, image: '/x', environment }),
      () => node.epilog({ id: 7, user: alice, environment }),
    ]) {
      const { exitCode, line } = await run();
      assert.equal([exitCode, line['result'], line['code']], [0, 'failed', 'BAD_JOB']);
    }
    assert.not(existsSync(node.basePath));
  });
}

jobs('a relative image without a working directory is left to pyxis', async () => {
  await using node = await TestNode.start({ settings: { on_failure: 'fail' } });
  for (const workPath of [undefined, '', 'relative']) {
    const { exitCode, line } = await node.prolog({
      id: 7,
      user: alice,
      image: './x.sqsh',
      environment: { SLURM_JOB_WORK_DIR: workPath },
    });
    assert.equal([exitCode, line['result'], line['code']], [0, 'bypassed', 'BAD_REFERENCE']);
  }
});

jobs.run();

const tools = suite('Prolog: a tool that does not work', { skip: unlessPrivateMachine });

for (const tool of ['setpriv', 'find', 'unsquashfs', 'prlimit']) {
  tools(`${tool} that cannot run fails the node, and nothing is left behind`, async () => {
    await using node = await TestNode.start();
    using _ = replaceProgram(tool, 'exit 127');
    for (const [policy, expected] of [
      ['continue', 0],
      ['fail', 1],
    ] as const) {
      node.configure({ on_failure: policy });
      const { exitCode, line } = await node.prolog({ id: 7, user: alice, image: node.image() });
      assert.equal(
        [exitCode, line['result'], line['code']],
        [expected, 'failed', 'TOOL_MISSING'],
        line['reason'],
      );
    }
    await node.settle();
    assert.equal([node.entries(alice), node.partials(alice), holders()], [[], [], []]);
  });
}

tools('a syslog that does not work costs the line and nothing else', async () => {
  await using node = await TestNode.start({ settings: { log_target: 'syslog' } });
  using _ = replaceProgram('logger', 'echo "socket /dev/log: No such file" >&2; exit 1');
  const { exitCode, stderr } = await node.prolog({ id: 7, user: alice, image: join(node.root, 'none') });
  assert.is(exitCode, 0);
  // slurmd logs what a Prolog writes to stderr.
  assert.match(stderr, /Cannot reach syslog.*\n.*prolog job=7/s);
});

tools.run();

const users = suite('Prolog: what a user can bring about never drains the node', {
  skip: unlessPrivateMachine,
});

/** The Prolog's end for an image, with the policy under which a fault of the node would exit 1. */
async function endFor(node: TestNode, image: string): Promise<string | undefined> {
  node.configure({ on_failure: 'fail' });
  const { exitCode, line, stderr } = await node.prolog({ id: 7, user: alice, image });
  assert.is(exitCode, 0, stderr);
  assert.not(['BUG', 'TOOL_MISSING', 'NO_SPACE'].includes(line['code']!), line['reason']);
  await node.settle();
  assert.equal([node.entries(alice), node.partials(alice), holders()], [[], [], []]);
  return line['code'];
}

/** An image with some bytes changed. */
function forgeImage(
  node: TestNode,
  change: (bytes: Buffer) => void,
  tree?: Tree,
  options?: readonly string[],
): string {
  const path = node.image(tree, options);
  const bytes = readFileSync(path);
  change(bytes);
  writeFileSync(path, bytes);
  return path;
}

/** Offsets in the superblock: fs/squashfs/squashfs_fs.h. */
const inodeCountOffset = 4;
const flagsOffset = 24;

users('an image name that reads like a message of setpriv', async () => {
  await using node = await TestNode.start();
  // Whatever part of the message is kept, one of these lengths makes it begin with the name of the tool.
  for (let shift = 0; shift < 8; shift++)
    assert.is(await endFor(node, `/${'setpriv:'.repeat(250)}${'x'.repeat(shift)}`), 'IMAGE_UNREADABLE');
});

for (const [program, where] of [
  ['find', '*-maxdepth 0*'],
  ['find', '*execdir*'],
  ['unsquashfs', '*-dest*'],
] as const) {
  users(`a signal to ${program} ${where}, which runs with the user's uid`, async () => {
    await using node = await TestNode.start();
    const image = node.image();
    // For that time the addon's look leaves it to the programs.
    command('touch', '--date=@-5', image);
    using held = new HeldProgram(program, { where });
    const ended = endFor(node, image);
    ended.catch(() => undefined);
    await held.started();
    const status = readFileSync(`/proc/${held.pids()[0]!}/status`, 'utf8');
    assert.match(status, new RegExp(`^Uid:\\s+${alice.uid}\\s`, 'm'));
    // The first process of a PID namespace hears no other but SIGSTOP.
    process.kill(held.pids()[0]!, 'SIGTERM');
    process.kill(held.pids()[0]!, 'SIGKILL');
    await ended;
  });
}

users('a superblock that claims more inodes than the disk has evicts nothing', async () => {
  await using node = await TestNode.start({ settings: { gc_min_age: 0 } });
  const others = node.plant(bob, { hash: '00000000000000aa', usedSecondsAgo: 1e6 });
  const claim = (bytes: Buffer): number => bytes.writeUInt32LE(0xffff_fff0, inodeCountOffset);
  await endFor(node, forgeImage(node, claim));
  // Without the table that unsquashfs compares it with, it is only a number: the image itself is good.
  const image = forgeImage(node, claim, smallTree, ['-no-exports']);
  const { exitCode, line } = await node.prolog({ id: 7, user: alice, image });
  assert.equal([exitCode, line['result']], [0, 'created'], line['reason']);
  assert.ok(existsSync(others));
});

users('a superblock that claims too much, before tables that cannot be read', async () => {
  await using node = await TestNode.start();
  const image = forgeImage(node, (bytes) => {
    bytes.writeUInt32LE(0xffff_fff0, inodeCountOffset);
    bytes.fill(0xff, 96);
  });
  await endFor(node, image);
});

users('tables that cannot be read', async () => {
  await using node = await TestNode.start();
  assert.is(
    await endFor(
      node,
      forgeImage(node, (bytes) => bytes.fill(0xff, 96)),
    ),
    'UNPACK_FAILED',
  );
});

users('data that cannot be read', async () => {
  await using node = await TestNode.start();
  const tree = { data: { content: randomBytes(1_000_000) }, text: 'abc'.repeat(100_000) };
  const image = forgeImage(node, (bytes) => bytes.fill(0x55, 1_000_100, 1_000_300), tree);
  assert.is(await endFor(node, image), 'UNPACK_FAILED');
});

users('a superblock of another version, byte order or kind', async () => {
  await using node = await TestNode.start();
  for (const change of [
    (bytes: Buffer) => bytes.writeUInt16LE(3, 28),
    (bytes: Buffer) => bytes.write('sqsh', 0),
    (bytes: Buffer) => bytes.writeBigUInt64LE(0xffff_ffff_ffff_ffffn, 40),
    (bytes: Buffer) => bytes.fill(0, 0, 96),
  ])
    assert.is(await endFor(node, forgeImage(node, change)), 'NOT_SQUASHFS');
  await endFor(
    node,
    forgeImage(node, (bytes) => bytes.writeUInt16LE(0xffff, flagsOffset)),
  );
});

users('an image that ends within its superblock, or is empty', async () => {
  await using node = await TestNode.start();
  const image = node.image();
  for (const length of [0, 1, 4, 95, 96, 200]) {
    writeFileSync(`${image}.cut`, readFileSync(image).subarray(0, length));
    assert.is(await endFor(node, `${image}.cut`), 'NOT_SQUASHFS');
  }
});

users.run();
