/**
 * Full and broken disks: whatever fails, at whatever moment, the job runs, nothing half-made is published,
 * and the next job after the trouble works. on_failure=fail shows whose fault it is taken for.
 */
// test: timeout 600 s
import {
  chmodSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { projectRoot } from '../../build/source-files.ts';
import { parseEntryMetadata } from '../../lib/core/entry-metadata.ts';
import { readUsage } from '../../lib/system/disk-usage.ts';
import { makeExt4, mountSilentFuse, unlessExt4, unlessFuse } from '../helpers/filesystem.ts';
import { HeldProgram } from '../helpers/held-program.ts';
import { smallTree } from '../helpers/squashfs-image.ts';
import {
  holders,
  lockFileOf,
  setUsed,
  TestNode,
  until,
  type NodeOptions,
  type ProgramResult,
} from '../helpers/node.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  machineRoot,
  mount,
  replaceProgram,
  syslogPath,
  umount,
  unlessPrivateMachine,
} from '../helpers/private-machine.ts';
import { assert, suite, unlessStrace } from '../helpers/suite.ts';

enterPrivateMachine();

const strace = '/usr/bin/strace';
const mebibyte = 1024 * 1024;

/** Without an enroot nothing of the machine's has a part in it. */
const noEnroot = { enroot_path: '/none/enroot', gc_min_age: 0 };

function startNode(options: NodeOptions = {}): Promise<TestNode> {
  return TestNode.start({ ...options, settings: { ...noEnroot, ...options.settings } });
}

/**
 * What has to hold after every trouble: another job gets a whole entry, and in the end nothing is left over.
 */
async function assertRecovers(node: TestNode, image: string, what: string): Promise<void> {
  const job = { id: 1000, user: alice, image };
  const { exitCode, line } = await node.prolog(job);
  assert.is(exitCode, 0, what);
  assert.ok(['created', 'reused'].includes(line['result']!), `${what}: ${JSON.stringify(line)}`);
  const [entry = '', ...more] = node.entries(alice);
  assert.equal(more, [], what);
  for (const name of Object.keys(smallTree)) assert.ok(existsSync(join(entry, name)), `${what}: ${name}`);
  assert.ok(parseEntryMetadata(readFileSync(lockFileOf(entry), 'utf8')), what);
  for (const id of [7, 1000]) assert.is((await node.epilog({ ...job, id })).exitCode, 0, what);
  await node.settle();
  await node.gc();
  assert.equal([node.partials(alice), node.trash(), holders(), node.leases()], [[], [], [], []], what);
}

/** A failed job leaves no entry, no holder and no lease. */
function assertNothingMade(node: TestNode, what = ''): void {
  assert.equal([node.entries(alice), holders(), node.leases()], [[], [], []], what);
}

interface Point {
  readonly call: string;
  /** Which one of its kind. */
  readonly ordinal: number;
  readonly text: string;
}

const changing = ['mkdir', 'rename', 'rmdir', 'unlink', 'chmod', 'fchmod', 'chown', 'fchown', 'utimensat'];

/**
 * The calls of a Prolog's own that change a disk, but for write(2), of which an event loop makes any number.
 */
function pointsOf(trace: string): Point[] {
  const counts = new Map<string, number>();
  return trace.split('\n').flatMap((text) => {
    const call = /^(\w+)\(/.exec(text)?.[1];
    if (call === undefined) return [];
    const ordinal = (counts.get(call) ?? 0) + 1;
    counts.set(call, ordinal);
    return call === 'openat' && !/O_CREAT|O_TMPFILE/.test(text) ? [] : [{ call, ordinal, text }];
  });
}

function straceOf(trace: string, ...options: readonly string[]): readonly string[] {
  const calls = [...changing, 'openat', 'flock'].join(',');
  return [strace, '-qq', '-o', trace, '-e', 'signal=none', '-e', `trace=${calls}`, ...options];
}

/** In CI every fifth call fails, in one way; each of them in all ways: with this variable. */
const allWays = process.env['CONTAINER_CACHE_TEST_ALL_ERRORS'] !== undefined;
const everyCall = allWays ? 1 : 10;
const errors = ['ENOSPC', 'EDQUOT', 'EIO', 'EROFS'] as const;

const calls = suite('a disk that fails at one call', { skip: unlessPrivateMachine ?? unlessStrace });

calls(
  'of a Prolog that makes an entry, at each in turn: the job runs, and the next has its entry',
  async () => {
    let points: Point[];
    {
      await using node = await startNode();
      const trace = join(node.root, 'trace');
      await node.prolog({ id: 7, user: alice, image: node.image(), wrapper: straceOf(trace) });
      points = pointsOf(readFileSync(trace, 'utf8')).filter(({ call }) => call !== 'flock');
    }
    assert.ok(points.length > 20, `${points.length} calls`);
    let [tried, missed] = [0, 0];
    for (const [index, { call, ordinal, text }] of points.entries()) {
      if (index % everyCall > 0) continue;
      for (const error of allWays ? errors : [errors[index % errors.length]!]) {
        tried++;
        const what = `${error} at ${text}`;
        const isUsersDoing = error === 'ENOSPC' || error === 'EDQUOT';
        await using node = await startNode({ settings: { on_failure: isUsersDoing ? 'fail' : 'continue' } });
        const image = node.image();
        const trace = join(node.root, 'trace');
        const wrapper = straceOf(trace, '-e', `inject=${call}:error=${error}:when=${ordinal}`);
        const { exitCode, line, stderr } = await node.prolog({ id: 7, user: alice, image, wrapper });
        // Waiting for a child or a lock reads /proc: how often is the machine's doing, so the last ordinals
        // may not come.
        if (!readFileSync(trace, 'utf8').includes('(INJECTED)')) missed++;
        assert.is(exitCode, 0, `${what}: ${stderr}`);
        assert.ok(line['result'], `${what}: ${stderr}`);
        assert.is.not(line['code'], 'BUG', `${what}: ${stderr}`);
        if (isUsersDoing && line['result'] === 'failed')
          assert.ok(['NO_SPACE', 'QUOTA_EXCEEDED'].includes(line['code']!), `${what}: ${stderr}`);
        if (line['result'] === 'failed') assert.equal([holders(), node.leases()], [[], []], what);
        await assertRecovers(node, image, what);
      }
    }
    assert.ok(missed <= 2, `${missed} of ${tried} points were not met`);
    process.stdout.write(`disk: ${points.length} calls, ${tried} points, ${missed} not met\n`);
  },
);

for (const error of errors) {
  calls(`${error} in unsquashfs, at its start, in its middle and at its end, makes no entry`, async () => {
    await using node = await startNode({ settings: { on_failure: 'fail' } });
    const image = node.image();
    for (const inject of [
      'mkdir:when=1',
      'openat:when=40+',
      'write:when=2+',
      'utimensat:when=1+',
      'chmod:when=1+',
    ]) {
      const [call, when] = inject.split(':');
      {
        using _ = replaceProgram(
          'unsquashfs',
          `exec ${strace} -f -qq -o /dev/null -e 'inject=${call}:error=${error}:${when}' /usr/bin/unsquashfs "$@"`,
        );
        const { exitCode, line, stderr } = await node.prolog({ id: 7, user: alice, image });
        assert.is(exitCode, 0, `${inject}: ${stderr}`);
        if (line['result'] === 'created') {
          // Not a call that this unsquashfs makes.
          command('rm', '--recursive', node.entries(alice)[0]!);
          await node.epilog({ id: 7, user: alice });
          continue;
        }
        assert.is(line['result'], 'failed', `${inject}: ${stderr}`);
        assertNothingMade(node, inject);
      }
    }
    await assertRecovers(node, image, error);
  });
}

calls('a holder that cannot be looked at, for want of a descriptor, is ended', async () => {
  await using node = await startNode({ settings: { on_failure: 'fail' } });
  const image = node.image();
  await node.prolog({ id: 6, user: alice, image });
  await node.epilog({ id: 6, user: alice });
  const trace = join(node.root, 'trace');
  const opens = (): string[] => readFileSync(trace, 'utf8').match(/^openat\(.*$/gm) ?? [];
  const isOfProcess = (open: string | undefined): boolean => /"\/proc\/\d+\//.test(open ?? '');
  let result: ProgramResult;
  let tries = 0;
  do {
    await node.prolog({ id: 7, user: alice, image, wrapper: straceOf(trace) });
    await node.epilog({ id: 7, user: alice });
    const first = opens().findIndex(isOfProcess) + 1;
    const wrapper = straceOf(trace, '-e', `inject=openat:error=EMFILE:when=${first}+`);
    result = await node.prolog({ id: 7, user: alice, image, wrapper });
    // Which call is the first to look at a process differs from run to run, if seldom.
  } while (++tries < 10 && !isOfProcess(opens().find((open) => open.endsWith('(INJECTED)'))));
  const { exitCode, line } = result;
  assert.ok(tries < 10, opens().join('\n'));
  assert.equal([exitCode, line['result'], line['code']], [0, 'failed', 'NO_RESOURCES'], line['reason']);
  await until('it has ended', () => holders().length === 0);
  assert.equal(node.leases(), []);
  await assertRecovers(node, image, 'after it');
});

for (const error of ['ENOLCK', 'ENOSYS', 'EOPNOTSUPP', 'EINVAL']) {
  calls(`a base without flock (${error}) is refused with a line that says what to do`, async () => {
    await using node = await startNode();
    const image = node.image();
    for (const [policy, expected] of [
      ['continue', 0],
      ['fail', 1],
    ] as const) {
      node.configure({ ...noEnroot, on_failure: policy });
      const wrapper = straceOf(join(node.root, 'trace'), '-e', `inject=flock:error=${error}`);
      const { exitCode, line } = await node.prolog({ id: 7, user: alice, image, wrapper });
      assert.equal(
        [exitCode, line['result'], line['code']],
        [expected, 'failed', 'BASE_UNFIT'],
        line['reason'],
      );
      assert.match(
        line['reason']!,
        /flock does not work .*set container_cache_data_path to a directory on a disk/,
      );
    }
    assertNothingMade(node);
    await assertRecovers(node, image, error);
  });
}

calls.run();

const full = suite('a full filesystem', { skip: unlessPrivateMachine });

/** A tmpfs, root's and 0755. */
class Tmpfs implements Disposable {
  readonly path: string;
  constructor(options: string, path = mkdtempSync(join(machineRoot, 'tmpfs-'))) {
    this.path = path;
    chmodSync(path, 0o755);
    mount('--types', 'tmpfs', '--options', `mode=0755,${options}`, 'tmpfs', path);
  }
  /** Takes all that is left. */
  fill(): void {
    const filler = join(this.path, 'filler');
    try {
      for (;;) writeFileSync(filler, Buffer.alloc(4096), { flag: 'a' });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
    }
  }
  free(): void {
    rmSync(join(this.path, 'filler'));
  }
  [Symbol.dispose](): void {
    command('umount', '--lazy', this.path);
  }
}

function assertFailed({ exitCode, line }: ProgramResult, expected: number, code: string): void {
  assert.equal([exitCode, line['result'], line['code']], [expected, 'failed', code], line['reason']);
}

full('runtime directory costs the lease, and drains nothing: pyxis lets users fill /run', async () => {
  using run = new Tmpfs('size=64k');
  await using node = await startNode();
  node.configure({ ...noEnroot, runtime_dir: join(run.path, 'cc'), on_failure: 'fail' });
  const image = node.image();
  run.fill();
  assertFailed(await node.prolog({ id: 7, user: alice, image }), 0, 'NO_SPACE');
  assert.equal(holders(), []);
  run.free();
  await assertRecovers(node, image, 'runtime directory');
});

full('memory, /run and /tmp cost no log line and no entry', async () => {
  await using node = await startNode();
  node.configure({ ...noEnroot, log_target: 'syslog' });
  const image = node.image();
  rmSync(syslogPath, { force: true });
  // Not where the programs under test lie.
  const places = ['/dev/shm', '/run', '/tmp', '/var/tmp'].filter(
    (path) => existsSync(path) && !projectRoot.startsWith(`${path}/`),
  );
  // One inode: that of the directory.
  const covers = places.map((path) => {
    mount('--types', 'tmpfs', '--options', 'size=4k,nr_inodes=1', 'tmpfs', path);
    return path;
  });
  try {
    assert.is((await node.prolog({ id: 7, user: alice, image })).exitCode, 0);
  } finally {
    for (const path of covers) umount(path);
  }
  assert.match(readFileSync(syslogPath, 'utf8'), /prolog job=7 .*result=created/);
  await node.epilog({ id: 7, user: alice });
});

full('base without an inode left, before the user directory is there', async () => {
  using disk = new Tmpfs('size=8m,nr_inodes=2');
  await using node = await startNode({ basePath: join(disk.path, 'base'), settings: { on_failure: 'fail' } });
  const image = node.image();
  mkdirSync(node.basePath);
  for (const job of [
    { id: 7, user: alice },
    { id: 7, user: alice, image },
  ])
    assertFailed(await node.prolog(job), 0, 'NO_SPACE');
  assertNothingMade(node);
  mount('--options', 'remount,nr_inodes=1000', disk.path);
  await assertRecovers(node, image, 'inodes');
});

full('base when the lock file is to be written: the tree is complete, and not published', async () => {
  using disk = new Tmpfs('size=8m');
  await using node = await startNode({ basePath: join(disk.path, 'base'), settings: { on_failure: 'fail' } });
  const image = node.image();
  mkdirSync(node.basePath);
  {
    using walk = new HeldProgram('find', { where: '*execdir*' });
    const prolog = node.startProlog({ id: 7, user: alice, image });
    await walk.started();
    disk.fill();
    walk.letGo();
    assertFailed(await prolog.result, 0, 'NO_SPACE');
  }
  assertNothingMade(node);
  disk.free();
  await assertRecovers(node, image, 'lock file');
});

full.run();

const broken = suite('a base', { skip: unlessPrivateMachine });

broken(
  'that becomes read-only, before a job and in the middle of an unpack, fails the node and not the job',
  async () => {
    using disk = new Tmpfs('size=8m');
    const remount = (how: string): void => {
      mount('--options', `remount,${how}`, disk.path);
    };
    await using node = await startNode({ basePath: join(disk.path, 'base') });
    const images = [node.image(), node.image({ ...smallTree, more: 'x' })] as const;
    const trouble = async (run: () => Promise<ProgramResult>): Promise<void> => {
      for (const [policy, expected] of [
        ['continue', 0],
        ['fail', 1],
      ] as const) {
        node.configure({ ...noEnroot, on_failure: policy });
        assertFailed(await run(), expected, 'DISK_FAILED');
        assert.equal([holders(), node.leases()], [[], []]);
        remount('rw');
      }
    };
    await node.prolog({ id: 1, user: alice, image: images[0] });
    await node.epilog({ id: 1, user: alice });
    for (const image of images)
      await trouble(() => {
        remount('ro');
        return node.prolog({ id: 7, user: alice, image });
      });
    await trouble(async () => {
      using unsquashfs = new HeldProgram('unsquashfs', { where: '*-dest*' });
      const prolog = node.startProlog({ id: 7, user: alice, image: images[1] });
      await unsquashfs.started();
      remount('ro');
      unsquashfs.letGo();
      return await prolog.result;
    });
    node.configure(noEnroot);
    await assertRecovers(node, images[0], 'read-only');
  },
);

broken(
  'that is unmounted, without a line in /etc/fstab, is refused, and its mount point stays empty',
  async () => {
    const point = mkdtempSync(join(machineRoot, 'point-'));
    chmodSync(point, 0o755);
    await using node = await startNode({ basePath: point });
    const image = node.image();
    {
      using disk = new Tmpfs('size=8m', point);
      assert.is((await node.prolog({ id: 7, user: alice, image })).line['result'], 'created');
      await node.epilog({ id: 7, user: alice });
      command('rm', '--recursive', node.entries(alice)[0]!);
      using unsquashfs = new HeldProgram('unsquashfs', { where: '*-dest*' });
      const prolog = node.startProlog({ id: 7, user: alice, image });
      await unsquashfs.started();
      command('umount', '--lazy', disk.path);
      unsquashfs.letGo();
      const { exitCode, line } = await prolog.result;
      assert.equal([exitCode, line['result']], [0, 'failed'], line['reason']);
      mount('--types', 'tmpfs', '--options', 'mode=0755', 'tmpfs', point);
    }
    await node.settle();
    for (const run of [
      () => node.prolog({ id: 8, user: alice }),
      () => node.prolog({ id: 8, user: alice, image }),
      () => node.epilog({ id: 8, user: alice }),
    ]) {
      const result = await run();
      assertFailed(result, 0, 'BASE_UNSAFE');
      assert.match(result.line['reason']!, /was mounted for it and is not any more/);
    }
    assert.match((await node.gc('--force')).stderr, /BASE_UNSAFE/);
    assert.equal([readdirSync(point), holders()], [[], []]);
    using _ = new Tmpfs('size=8m', point);
    await assertRecovers(node, image, 'mounted again');
  },
);

broken('that is not there is not made on the root filesystem: its disk may not be mounted', async () => {
  const parent = mkdtempSync('/var/lib/container-cache-test-');
  try {
    chmodSync(parent, 0o755);
    await using node = await startNode({ basePath: join(parent, 'data') });
    const image = node.image();
    const isRoot =
      command('findmnt', '--noheadings', '--output', 'TARGET', '--target', parent).trim() === '/';
    const result = await node.prolog({ id: 7, user: alice, image });
    if (isRoot) {
      assertFailed(result, 0, 'BASE_UNSAFE');
      assert.match(result.line['reason']!, /would be on the root filesystem: mount its disk/);
      assert.not(existsSync(node.basePath));
      mkdirSync(node.basePath);
    }
    await assertRecovers(node, image, 'made by hand');
  } finally {
    command('rm', '--recursive', '--one-file-system', parent);
  }
});

broken.unless(unlessFuse, 'on a server that never answers is refused without a look at it', async () => {
  await using node = await startNode();
  mkdirSync(node.basePath);
  const image = node.image();
  {
    await using _ = await mountSilentFuse(
      node.basePath,
      { uid: 0, gid: 0, name: 'root' },
      { forOthers: true },
    );
    for (const [policy, expected] of [
      ['continue', 0],
      ['fail', 1],
    ] as const) {
      node.configure({ ...noEnroot, on_failure: policy });
      const result = await node.prolog({ id: 7, user: alice, image });
      assertFailed(result, expected, 'BASE_UNFIT');
      assert.match(
        result.line['reason']!,
        /is on fuse.* set container_cache_data_path to a directory on a disk/,
      );
      assertFailed(await node.epilog({ id: 7, user: alice }), expected, 'BASE_UNFIT');
    }
    assert.match((await node.gc()).stderr, /BASE_UNFIT/);
  }
  node.configure(noEnroot);
  await assertRecovers(node, image, 'server');
});

broken.run();

/** An image of a few kilobytes whose listing asks for that much. */
function makeSparseImage(node: TestNode, bytes: number): string {
  const tree = mkdtempSync(join(node.root, 'tree-'));
  writeFileSync(join(tree, 'hole'), '');
  truncateSync(join(tree, 'hole'), bytes);
  const image = join(node.root, 'images', `sparse-${bytes}.sqsh`);
  command('mksquashfs', tree, image, '-quiet', '-no-progress', '-no-exports');
  const file = readFileSync(image);
  file.writeUInt32LE(0xffff_fff0, inodeCountOffset);
  writeFileSync(image, file, { mode: 0o644 });
  return image;
}
/** In the superblock: fs/squashfs/squashfs_fs.h. */
const inodeCountOffset = 4;

const room = suite('room for an image', { skip: unlessExt4() });

room('that could not be made is not looked for: nothing is evicted, and no node is drained', async () => {
  using disk = makeExt4({ mebibytes: 64, inodes: 4096 });
  await using node = await startNode({
    basePath: disk.path,
    settings: { container_cache_gc_high: 100, container_cache_gc_low: 99, on_failure: 'fail' },
  });
  const held = node.image({ data: { content: Buffer.alloc(24 * mebibyte, 'x') } });
  await node.prolog({ id: 1, user: bob, image: held });
  setUsed(node.entries(bob)[0]!, 1e6);
  const old = node.plant(bob, { hash: '00000000000000aa', usedSecondsAgo: 1e6, bytes: 8 * mebibyte });
  // What entries say of themselves, and names of one file that is freed once, must not make it seem possible.
  const forged = node.plant(alice, {
    hash: '00000000000000bb',
    usedSecondsAgo: 1e5,
    bytes: 4 * mebibyte,
    metadata: JSON.stringify({
      version: 1,
      image: 'x',
      createdAtMs: 0,
      unpackMs: 0,
      bytes: 1e12,
      inodes: 1e6,
    }),
  });
  for (let index = 0; index < 30; index++) linkSync(join(forged, 'f0'), join(forged, `link${index}`));
  setUsed(forged, 1e5);
  command('sync', '--file-system', disk.path);
  const { totalBytes, availableBytes } = readUsage(disk.path);
  // A few bytes on the image's disk, and less than the whole of ours. The superblock claims too much, so that
  // the listing is asked.
  const size = availableBytes + 16 * mebibyte;
  assert.ok(size < totalBytes);
  const result = await node.prolog({ id: 7, user: alice, image: makeSparseImage(node, size) });
  assertFailed(result, 0, 'NO_SPACE');
  assert.equal([existsSync(old), existsSync(forged)], [true, true]);
  assert.equal(
    result.lines.filter(({ word }) => word === 'gc-evicted'),
    [],
  );
  // With room for it when those two go, they do.
  const image = makeSparseImage(node, availableBytes + 10 * mebibyte);
  const fitting = await node.prolog({ id: 8, user: alice, image });
  assert.is(fitting.line['result'], 'created', fitting.line['reason']);
  assert.equal([existsSync(old), existsSync(forged), node.entries(bob).length], [false, false, 1]);
  for (const id of [1, 8]) await node.epilog({ id, user: id === 1 ? bob : alice });
});

room.run();

const power = suite('an entry after a power loss', { skip: unlessPrivateMachine });

const modeOf = (entry: string): number => statSync(lockFileOf(entry)).mode & 0o777;

/** As if the node had crashed since: another boot, all jobs gone. */
function crash(entry: string): void {
  const path = lockFileOf(entry);
  writeFileSync(path, readFileSync(path, 'utf8').replace(/"bootId":"[^"]*"/, '"bootId":"another"'));
}

power('is used again if the disk had taken all of it, which nobody waited for', async () => {
  await using node = await startNode();
  const image = node.image();
  using sync = new HeldProgram('sync');
  assert.is((await node.prolog({ id: 7, user: alice, image })).line['result'], 'created');
  const [entry = ''] = node.entries(alice);
  await sync.started();
  assert.is(modeOf(entry), 0o600);
  sync.letGo();
  await until('it is settled', () => modeOf(entry) === 0o400);
  await node.epilog({ id: 7, user: alice });
  crash(entry);
  const { ino } = lstatSync(entry);
  await assertRecovers(node, image, 'settled');
  assert.is(lstatSync(entry).ino, ino);
});

for (const [what, spoil] of [
  ['', crash],
  [', and its own lock file is empty', (entry: string) => truncateSync(lockFileOf(entry), 0)],
] as const) {
  power(`is made anew if the disk had not taken all of it${what}`, async () => {
    await using node = await startNode();
    const image = node.image();
    using _ = replaceProgram('sync', 'exit 1');
    await node.prolog({ id: 7, user: alice, image });
    const [entry = ''] = node.entries(alice);
    const { ino } = lstatSync(entry);
    // In the same boot nothing can be lost.
    assert.is((await node.prolog({ id: 8, user: alice, image })).line['result'], 'reused');
    spoil(entry);
    // Never under a job that has it, whatever its lock file says.
    const { exitCode, line } = await node.prolog({ id: 9, user: alice, image });
    assert.equal([exitCode, line['code'], lstatSync(entry).ino], [0, 'ENTRY_DAMAGED', ino]);
    for (const id of [7, 8]) await node.epilog({ id, user: alice });
    truncateSync(join(entry, 'etc/os-release'), 0);
    await assertRecovers(node, image, 'unsettled');
    assert.is.not(lstatSync(entry).ino, ino);
    assert.is(readFileSync(join(entry, 'etc/os-release'), 'utf8'), 'ID=test\n');
  });
}

power.run();
