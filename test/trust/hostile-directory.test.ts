/**
 * What a user puts into their own directory, at rest: it costs that user at most their own cache, and one
 * line tells who it is. Another user's entries, jobs and exit codes are as if it was not there.
 *
 * Nothing is timed: what a pass does is counted, in system calls, processes and lines.
 */
// test: timeout 600 s
import { spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import {
  chmodSync,
  chownSync,
  existsSync,
  linkSync,
  lutimesSync,
  mkdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { Reclaim } from '../../lib/system/tree-size.ts';
import { mostVainEvictions, userBudget } from '../../lib/store/users.ts';
import { makeExt4, unlessExt4 } from '../helpers/filesystem.ts';
import { HeldProgram } from '../helpers/held-program.ts';
import { isAlive, TestNode, until } from '../helpers/node.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  replaceProgram,
  unlessPrivateMachine,
} from '../helpers/private-machine.ts';
import { assert, suite, unlessStrace } from '../helpers/suite.ts';

enterPrivateMachine();

/** A collection takes whatever it may; a wrong exit code would drain the node. */
const settings = {
  container_cache_gc_high: 1,
  container_cache_gc_low: 0,
  gc_min_age: 0,
  enroot_path: '/none/enroot',
  on_failure: 'fail',
};
const hash = (number: number): string => number.toString(16).padStart(16, '0');
const longAgo = new Date(0);

/** Gives alice all below her directory, and makes it look old. */
function handOver(path: string): void {
  command('chown', '--recursive', '--no-dereference', `${alice.uid}:${alice.gid}`, path);
  lutimesSync(path, longAgo, longAgo);
}

const test = suite('a hostile directory', { skip: unlessPrivateMachine });

/** What alice makes of the stubs of a job of hers, by what it is. */
const stubs: Readonly<Record<string, (stub: string) => void>> = {
  'a symlink to a name that is too long': (stub) => {
    symlinkSync('x'.repeat(300), join(stub, '.container-cache'));
  },
  'a symlink to itself': (stub) => {
    symlinkSync('.container-cache', join(stub, '.container-cache'));
  },
  'a symlink to what only EINVAL comes from': (stub) => {
    symlinkSync('/proc/self/task/1/net/../../../none/net', join(stub, '.container-cache'));
  },
  'a FIFO': (stub) => {
    command('mkfifo', join(stub, '.container-cache'));
  },
  'a FIFO for a mark': (stub) => {
    mkdirSync(join(stub, '.container-cache'));
    command('mkfifo', join(stub, '.container-cache/entry'));
  },
  'a directory for a mark': (stub) => {
    mkdirSync(join(stub, '.container-cache/entry'), { recursive: true });
  },
  'what nobody may enter': (stub) => {
    mkdirSync(join(stub, '.container-cache'), { mode: 0o000 });
    chmodSync(stub, 0o000);
  },
};

test("whatever a stub is: the collector and the Epilog go on, and bob's entry is evicted", async () => {
  await using node = await TestNode.start({ settings });
  node.plant(alice, { hash: hash(1), usedSecondsAgo: 1000 });
  const ofBob = node.plant(bob, { hash: hash(2), usedSecondsAgo: 500 });
  for (const [index, make] of Object.values(stubs).entries()) {
    for (const name of [`.pyxis_77.${index}`, `pyxis_77.1${index}`]) {
      const stub = join(node.userPath(alice), name);
      mkdirSync(stub);
      make(stub);
      handOver(stub);
    }
  }
  const { exitCode, line } = await node.epilog({ id: 77, user: alice });
  assert.is(exitCode, 0, JSON.stringify(line));
  assert.is.not(line['code'], 'BUG', line['reason']);
  const { lines } = await node.gc('--force');
  assert.not(existsSync(ofBob));
  assert.equal(
    lines.filter(({ level, fields }) => level === 'warning' && fields['uid'] === String(bob.uid)),
    [],
  );
});

test("who closes the own directory is told, and is not in the way of an admin's command", async () => {
  await using node = await TestNode.start({ settings });
  node.plant(alice, { hash: hash(1), usedSecondsAgo: 1000 });
  node.plant(bob, { hash: hash(2), usedSecondsAgo: 500 });
  for (const mode of [0o600, 0o300, 0o000]) {
    chmodSync(node.userPath(alice), mode);
    for (const parameters of [['status'], ['gc', '--dry-run', '--force'], ['metrics'], ['pin'], ['verify']]) {
      const { exitCode, stdout, stderr } = await node.admin(...parameters).result;
      const what = `${parameters.join(' ')}, ${mode.toString(8)}: ${stdout}${stderr}`;
      assert.ok(exitCode === 0 || (parameters[0] === 'verify' && exitCode === 1), what);
      if (!['metrics', 'pin'].includes(parameters[0]!))
        assert.match(stdout, `pyxis_cache_u${bob.uid}_${hash(2)}`);
    }
  }
});

test('what a child of a user prints is a number, or nothing', async () => {
  await using node = await TestNode.start({ settings });
  // Few files are looked at without a child.
  const entry = node.plant(alice, { hash: hash(1), usedSecondsAgo: 1000, files: 100 });
  for (const text of ['x', 'NaN NaN NaN', 'Infinity', '-5', '1e300', '0x10', '8 x 5', '', '9'.repeat(400)]) {
    using _ = replaceProgram('find', `echo '${text}'; echo 8`);
    const { bytes, inodes } = await new Reclaim().measure(alice, entry);
    assert.equal([bytes, inodes], [8 * 512, 1], text);
  }
});

test.unless(
  unlessExt4(),
  'a child that counts more than there is decides for its own user only: bob gets the room he needs',
  async () => {
    using disk = makeExt4({ mebibytes: 48, inodes: 4096 });
    await using node = await TestNode.start({
      basePath: disk.path,
      settings: { ...settings, container_cache_gc_high: 100, container_cache_gc_low: 99 },
    });
    const ofAlice = [1, 2, 3].map((number) =>
      node.plant(alice, { hash: hash(number), usedSecondsAgo: 9000 - number, files: 70 }),
    );
    const ofBob = node.plant(bob, { hash: hash(9), usedSecondsAgo: 500, bytes: 24 * 1024 * 1024 });
    command('sync', '--file-system', node.basePath);
    const image = node.image({ file: { content: randomBytes(20 * 1024 * 1024) } });
    using _ = replaceProgram(
      'find',
      `case "$*" in *${alice.uid}*printf*) echo 99999999999; exit;; esac; exec /usr/bin/find "$@"`,
    );
    const { line } = await node.prolog({ id: 7, user: bob, image });
    assert.is(line['result'], 'created', line['reason']);
    // What she lied about may go, and nothing of it made room.
    assert.not(existsSync(ofAlice[0]!));
    assert.not(existsSync(ofBob));
    await node.epilog({ id: 7, user: bob });
  },
);

test("another user's directory in a tree stays, with a line that names whose tree it is; the rest goes", async () => {
  await using node = await TestNode.start({ settings });
  const entry = node.plant(alice, { hash: hash(1), usedSecondsAgo: 1000, files: 100 });
  const other = node.plant(alice, { hash: hash(2), usedSecondsAgo: 900 });
  mkdirSync(join(entry, 'open/deep'), { recursive: true, mode: 0o755 });
  const precious = join(entry, 'open/deep/bobs');
  mkdirSync(precious, { mode: 0o700 });
  writeFileSync(join(precious, 'file'), 'precious');
  for (const path of [join(entry, 'open'), join(entry, 'open/deep')]) chownSync(path, alice.uid, alice.gid);
  for (const path of [precious, join(precious, 'file')]) chownSync(path, bob.uid, bob.gid);
  // What its owner closed to themselves is no reason to leave it.
  chmodSync(join(other, 'f0'), 0o000);
  mkdirSync(join(other, 'closed/inner'), { recursive: true });
  for (const path of ['closed/inner', 'closed']) {
    chownSync(join(other, path), alice.uid, alice.gid);
    chmodSync(join(other, path), 0o000);
  }
  const { lines } = await node.gc('--force');
  const [left = '', ...more] = node.trash();
  assert.equal(more, []);
  const path = join(node.basePath, '.trash', left);
  assert.is(readFileSync(join(path, 'open/deep/bobs/file'), 'utf8'), 'precious');
  assert.equal(command('find', path, '-type', 'f'), `${join(path, 'open/deep/bobs/file')}\n`);
  const told = lines.filter(({ word }) => word === 'gc-trash');
  assert.equal(
    told.map(({ fields }) => [fields['uid'], fields['entry']]),
    [[String(alice.uid), left]],
  );
});

test('a child that deletes is killed when its user stops it', async () => {
  await using node = await TestNode.start({ settings });
  node.plant(alice, { hash: hash(1), usedSecondsAgo: 1000, files: 100 });
  const ofBob = node.plant(bob, { hash: hash(2), usedSecondsAgo: 500 });
  using deleting = new HeldProgram('find', { where: '*-delete*' });
  let isOver = false;
  const collection = node.gc('--force').finally(() => {
    isOver = true;
  });
  // From without: in its PID namespace the first process hears no signal of its own.
  await until('the collection has ended', () => {
    for (const pid of isOver ? [] : deleting.pids().filter(isAlive))
      spawnSync('kill', ['-s', 'STOP', String(pid)]);
    return isOver;
  });
  const { lines } = await collection;
  assert.not(existsSync(ofBob));
  assert.match(lines.find(({ word }) => word === 'gc-trash')?.fields['reason'] ?? '', /SIGKILL/);
});

test.run();

const volume = suite('a hostile directory: volume', { skip: unlessPrivateMachine ?? unlessStrace });

/** Runs a collection and counts its system calls, by lines of strace that match. */
async function countCalls(
  node: TestNode,
  calls: string,
  patterns: Readonly<Record<string, RegExp>>,
): Promise<{ counts: Record<string, number>; lines: Awaited<ReturnType<TestNode['gc']>>['lines'] }> {
  const trace = join(node.root, 'trace');
  const strace = ['/usr/bin/strace', '-f', '-qq', '-o', trace, '-e', 'signal=none', '-e', `trace=${calls}`];
  const { lines } = await node.adminBy(strace, 'gc', '--force').result;
  const text = readFileSync(trace, 'utf8').split('\n');
  const counts = Object.fromEntries(
    Object.entries(patterns).map(([name, pattern]) => [name, text.filter((one) => pattern.test(one)).length]),
  );
  return { counts, lines };
}

const aliceLines = (lines: Awaited<ReturnType<TestNode['gc']>>['lines'], level: string): number =>
  lines.filter((line) => line.level === level && line.fields['uid'] === String(alice.uid)).length;

volume(
  'empty entries cost no process each, one scan of the mounts, and a few lines; too many wait for the next collector',
  async () => {
    await using node = await TestNode.start({ settings });
    const extra = 20;
    for (let number = 0; number < mostVainEvictions + extra; number++)
      node.plant(alice, { hash: hash(number), usedSecondsAgo: 10_000 - number, metadata: null });
    const ofBob = node.plant(bob, { hash: hash(1000), usedSecondsAgo: 10 });
    const { counts, lines } = await countCalls(node, 'execve,openat,tgkill', {
      processes: /execve\(/,
      scans: /\/proc\/1\/mountinfo"/,
      // A change of IDs that stops all threads, which the one of our own thread does not.
      stops: /tgkill\(/,
    });
    assert.not(existsSync(ofBob));
    assert.is(node.entries(alice).length, extra);
    assert.ok(counts['processes']! < 30, JSON.stringify(counts));
    assert.is(counts['scans'], 1);
    assert.ok(counts['stops']! < 30, JSON.stringify(counts));
    const told = lines.filter(({ word }) => word === 'user-budget');
    assert.equal(
      told.map(({ fields }) => fields['uid']),
      [String(alice.uid)],
    );
    assert.ok(aliceLines(lines, 'info') <= userBudget.lines + 2, `${aliceLines(lines, 'info')} lines`);
    await node.gc('--force');
    assert.equal(node.entries(alice), []);
  },
);

volume('many stubs that point at one large directory are not read', async () => {
  await using node = await TestNode.start({ settings });
  const user = node.userPath(alice);
  node.plant(alice, { hash: hash(1), usedSecondsAgo: 1000 });
  const large = join(user, 'large');
  mkdirSync(large);
  writeFileSync(join(large, 'file'), '');
  for (let number = 0; number < 5000; number++) linkSync(join(large, 'file'), join(large, `${number}`));
  for (let number = 0; number < 100; number++) {
    const stub = join(user, `.pyxis_77.${number}`);
    mkdirSync(stub);
    if (number % 2 === 0) symlinkSync('../large', join(stub, '.container-cache'));
    else for (let link = 0; link < 10; link++) linkSync(join(large, 'file'), join(stub, `${link}`));
    handOver(stub);
  }
  const { counts } = await countCalls(node, 'getdents64', { pieces: /getdents64\(/ });
  // Some of it are those of /proc and of the base.
  assert.ok(counts['pieces']! < 600, JSON.stringify(counts));
});

volume('who has more than the budget is told once, and keeps nobody else from anything', async () => {
  await using node = await TestNode.start({ settings });
  const user = node.userPath(alice);
  node.plant(alice, { hash: hash(1), usedSecondsAgo: 1000 });
  const ofBob = node.plant(bob, { hash: hash(2), usedSecondsAgo: 500 });
  writeFileSync(join(user, 'file'), '');
  for (let number = 0; number < userBudget.names_of_ours + 10; number++)
    linkSync(join(user, 'file'), join(user, `.steps-${number + 1}.events`));
  for (let number = 0; number < 200; number++)
    command('mkfifo', join(user, `.pyxis_cache_u${alice.uid}_${hash(number + 10)}.create.lock`));
  const { lines } = await node.gc('--force');
  assert.not(existsSync(ofBob));
  assert.ok(aliceLines(lines, 'warning') <= userBudget.lines + 2, `${aliceLines(lines, 'warning')} lines`);
  const [told, ...more] = lines.filter(({ word }) => word === 'user-budget');
  assert.equal([more, told?.fields['uid']], [[], String(alice.uid)]);
  assert.match(told?.fields['exceeded'] ?? '', /names_of_ours/);
});

volume('more names than are read: told by the commands for people, too', async () => {
  await using node = await TestNode.start({ settings });
  const user = node.userPath(alice);
  node.plant(bob, { hash: hash(2), usedSecondsAgo: 500 });
  node.plant(alice, { hash: hash(1), usedSecondsAgo: 1000 });
  writeFileSync(join(user, 'file'), '');
  for (let number = 0; number < userBudget.names; number++)
    linkSync(join(user, 'file'), join(user, `${number}`));
  for (const parameters of [['status'], ['gc', '--dry-run', '--force']]) {
    const { exitCode, stdout, stderr } = await node.admin(...parameters).result;
    assert.is(exitCode, 0, stderr);
    assert.match(`${stdout}${stderr}`, `user-budget uid=${alice.uid}`);
    assert.match(stdout, `pyxis_cache_u${bob.uid}_${hash(2)}`);
  }
});

volume("mounts of a user's namespaces are read up to a limit, and once", async () => {
  await using node = await TestNode.start({ settings });
  for (let number = 0; number < 25; number++)
    node.plant(bob, { hash: hash(number), usedSecondsAgo: 1000 - number, files: 1 });
  const shell =
    'for i in $(seq 300); do mount -t tmpfs -o size=4k "$(printf %0200d $i)" /media; done; echo ready; exec sleep infinity';
  const child = spawn('unshare', ['--mount', '--propagation', 'private', 'sh', '-c', shell], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' },
  });
  try {
    await once(child.stdout, 'data');
    const { counts } = await countCalls(node, 'openat', {
      scans: new RegExp(`"/proc/${child.pid}/mountinfo"`),
    });
    assert.equal(node.entries(bob), []);
    assert.is(counts['scans'], 1);
  } finally {
    child.kill('SIGKILL');
  }
});

volume.run();
