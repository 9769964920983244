/**
 * A rootfs of ours beside the one that `enroot create` would have made: unsquashfs as the user, then what
 * enroot 4.1 does to permissions, worked out here bit by bit from its documented effect.
 */
// test: timeout 600 s
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { parseEntryMetadata } from '../../../lib/core/entry-metadata.ts';
import { lockFileOf, TestNode } from '../../helpers/node.ts';
import {
  alice,
  command,
  enterPrivateMachine,
  machineRoot,
  unlessPrivateMachine,
} from '../../helpers/private-machine.ts';
import { smallTree, type Tree, type TreeItem } from '../../helpers/squashfs-image.ts';
import { assert, suite } from '../../helpers/suite.ts';

enterPrivateMachine();

const test = suite('a rootfs, beside that of enroot create', { skip: unlessPrivateMachine });

/** enroot opens directories for writing down to this depth only, the rootfs itself being 0. */
const deepestWritable = 15;

/** The same image unpacked by unsquashfs as the user, its exit code aside, with enroot's permissions. */
function unpackLikeEnroot(node: TestNode, image: string): string {
  const parent = join(node.root, 'expected');
  mkdirSync(parent);
  chownSync(parent, alice.uid, alice.gid);
  const path = join(parent, 'rootfs');
  const ids = [`--reuid=${alice.uid}`, `--regid=${alice.gid}`, '--init-groups', '--inh-caps=-all', '--'];
  const unsquashfs = ['unsquashfs', '-no-progress', '-quiet', '-user-xattrs', '-dest', path, image];
  const { status, stderr } = spawnSync('setpriv', [...ids, ...unsquashfs], { encoding: 'utf8' });
  assert.ok(status === 0 || status === 2, stderr);
  openLikeEnroot(path, 0);
  return path;
}

function openLikeEnroot(path: string, depth: number): void {
  const stats = lstatSync(path);
  const mode = stats.mode & 0o7777;
  if (stats.isDirectory()) {
    chmodSync(path, mode | (depth <= deepestWritable ? 0o700 : 0o500));
    for (const name of readdirSync(path)) openLikeEnroot(join(path, name), depth + 1);
  } else if (!stats.isSymbolicLink()) {
    chmodSync(path, mode | 0o400 | ((mode & 0o111) === 0 ? 0 : 0o100));
  }
}

/** All that can be seen of a tree but inode numbers; hard links by the names that they join. */
function describe(root: string): string[] {
  const names = new Map<string, string[]>();
  const found = command(
    'find',
    root,
    '!',
    '-name',
    '.pyxis_cache_lock',
    '-printf',
    '%P\\1%y\\1%m\\1%U:%G\\1%n\\1%l\\1%i\\0',
  );
  const rows = found
    .split('\0')
    .filter(Boolean)
    .map((row) => row.split('\u0001'));
  for (const [name = '', , , , , , inode = ''] of rows)
    names.set(inode, [...(names.get(inode) ?? []), name].sort());
  return rows
    .map(([name = '', type = '', mode = '', owner = '', links = '', target = '', inode = '']) => {
      const path = join(root, name);
      const { mtimeMs, size } = lstatSync(path);
      const isFile = type === 'f';
      const text = isFile ? readFileSync(path, 'latin1') : '';
      const xattrs = isFile
        ? command('getfattr', '--absolute-names', '--dump', path).split('\n').slice(1).join()
        : '';
      // The root's own time is when it was last used.
      const time = name === '' ? '' : mtimeMs;
      const joined = isFile ? `${links} ${names.get(inode)?.join() ?? ''}` : '';
      return JSON.stringify([name, type, mode, owner, joined, target, isFile ? size : 0, time, text, xattrs]);
    })
    .sort();
}

async function assertLikeEnroot(tree: Tree, options: readonly string[] = []): Promise<void> {
  await using node = await TestNode.start();
  const image = node.image(tree, options);
  const { line } = await node.prolog({ id: 1, user: alice, image });
  assert.is(line['result'], 'created', line['reason']);
  const [entry = ''] = node.entries(alice);
  assert.equal(describe(entry), describe(unpackLikeEnroot(node, image)));
  // What the entry says that it takes is what it takes, hard links counted once.
  const metadata = parseEntryMetadata(readFileSync(lockFileOf(entry), 'utf8'));
  const du = (...options_: string[]): number =>
    Number(command('du', '--summarize', '--exclude=.pyxis_cache_lock', ...options_, entry).split('\t')[0]);
  assert.equal([metadata?.bytes, metadata?.inodes], [du('--block-size=1'), du('--inodes')]);
}

test('is the same in every permission of a file', async () => {
  const modes = [
    0o000, 0o001, 0o010, 0o100, 0o111, 0o200, 0o222, 0o333, 0o400, 0o444, 0o500, 0o640, 0o755, 0o777,
  ];
  const special = [0o4755, 0o2755, 0o6711, 0o1644, 0o4000, 0o7777];
  await assertLikeEnroot(
    Object.fromEntries(
      [...modes, ...special].map((mode) => [`f${mode.toString(8)}`, { content: 'x', mode }]),
    ),
  );
});

test('is the same in every permission of a directory, and in what lies in closed ones', async () => {
  const modes = [0o000, 0o100, 0o200, 0o300, 0o400, 0o500, 0o555, 0o700, 0o755, 0o1777, 0o2755, 0o3000];
  await assertLikeEnroot(
    Object.fromEntries(
      modes.flatMap((mode): [string, TreeItem][] => {
        const name = `d${mode.toString(8)}`;
        return [
          [`${name}/inside/file`, { content: 'x', mode: 0o000 }],
          [`${name}/inside`, { directory: true, mode: 0o000 }],
          [name, { directory: true, mode }],
        ];
      }),
    ),
  );
});

test('is the same in closed directories of fifteen levels; further down it can be deleted, too', async () => {
  const levels = (count: number): string =>
    Array.from({ length: count }, (_, index) => `l${index + 1}`).join('/');
  const tree = (depth: number): Tree => ({
    [`${levels(depth)}/file`]: { content: 'x', mode: 0o000 },
    ...Object.fromEntries(
      Array.from(
        { length: depth },
        (_, index) => [levels(depth - index), { directory: true, mode: 0o500 }] as const,
      ),
    ),
  });
  await assertLikeEnroot(tree(deepestWritable));

  await using node = await TestNode.start();
  const image = node.image(tree(20));
  await node.prolog({ id: 1, user: alice, image });
  const [entry = ''] = node.entries(alice);
  assert.is(lstatSync(join(entry, levels(20))).mode & 0o7777, 0o700);
  assert.is(lstatSync(join(entry, levels(20), 'file')).mode & 0o7777, 0o400);
});

test('is the same in links, hard and symbolic, FIFOs, and names that a shell would mind', async () => {
  await assertLikeEnroot({
    'bin/busybox': { content: 'x'.repeat(10_000), mode: 0o755 },
    'bin/ls': { link: 'bin/busybox' },
    'bin/cat': { link: 'bin/busybox' },
    'bin/closed': { content: 'y', mode: 0o000 },
    'lib/closed': { link: 'bin/closed' },
    'etc/absolute': { symlink: '/etc/passwd' },
    'etc/dangling': { symlink: 'no/such/file' },
    'etc/loop': { symlink: 'loop' },
    'etc/up': { symlink: '../../../../..' },
    'run/fifo': { fifo: true, mode: 0o600 },
    '-rf': 'x',
    'a b\tc': 'x',
    'line\nbreak': 'x',
    'quote\'"': 'x',
    'back\\slash': 'x',
    '$(id)': 'x',
    ['n'.repeat(255)]: 'x',
    ümläut: 'x',
    empty: '',
    'empty-directory': { directory: true },
  });
});

test('is the same but for device nodes, which are left out; enroot fails on them', async () => {
  await assertLikeEnroot({
    ...smallTree,
    dev: { directory: true },
    'dev/null': { device: 'c 666 0 0 1 3' },
    'dev/sda': { device: 'b 660 0 6 8 0' },
    'dev/closed': { device: 'c 000 0 0 1 5' },
  });
});

test("is the user's own, whoever owns the files in the image", async () => {
  const owner = ['-force-uid', '12345', '-force-gid', '54321'];
  await assertLikeEnroot({ ...smallTree, 'etc/shadow': { content: 'x', mode: 0o640 } }, owner);
});

const note = { content: 'x', xattrs: { 'user.note': 'kept', 'security.note': "not a user's" } };

function unlessXattrs(): string | undefined {
  if (unlessPrivateMachine !== undefined) return unlessPrivateMachine;
  const path = join(machineRoot, 'xattr');
  writeFileSync(path, '');
  const { status } = spawnSync('setfattr', ['--name=user.note', '--value=x', path]);
  return status === 0 ? undefined : 'needs extended attributes of users on tmpfs (Linux 6.6)';
}

test.unless(unlessXattrs(), "has the user's extended attributes, and no others", async () => {
  await assertLikeEnroot({ ...smallTree, 'etc/note': note });
  await using node = await TestNode.start();
  await node.prolog({ id: 1, user: alice, image: node.image({ 'etc/note': note }) });
  const dump = command(
    'getfattr',
    '--absolute-names',
    '--match=-',
    '--dump',
    join(node.entries(alice)[0]!, 'etc/note'),
  );
  assert.equal(
    dump.split('\n').filter((line) => line.includes('=')),
    ['user.note="kept"'],
  );
});

for (const compression of ['gzip', 'lzo', 'xz', 'zstd', 'lz4']) {
  test(`is the same from an image compressed with ${compression}`, async () => {
    await assertLikeEnroot({ ...smallTree, zeros: '\0'.repeat(300_000) }, ['-comp', compression]);
  });
}

test('is the same from an image that is not compressed at all, and from one without files', async () => {
  await assertLikeEnroot(smallTree, ['-noI', '-noD', '-noF', '-noX']);
  await assertLikeEnroot({});
});

test.run();
