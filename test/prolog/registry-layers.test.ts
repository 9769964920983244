/**
 * Images from a registry, made of the layers that enroot unpacks (lib/image/enroot-layers.ts), or of its
 * squashfs file.
 */
// test: timeout 300 s
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { StandInRegistry } from '../helpers/directory-registry.ts';
import { TestNode, until, type NodeOptions } from '../helpers/node.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  machineRoot,
  mount,
  umount,
  unlessPrivateMachine,
} from '../helpers/private-machine.ts';
import type { Tree } from '../helpers/squashfs-image.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const image = 'reg.example:5000/team/app:latest';

async function startNode(
  settings: NodeOptions['settings'] = {},
  basePath?: string,
): Promise<{ node: TestNode; registry: StandInRegistry }> {
  const registry = new StandInRegistry();
  const node = await TestNode.start({
    ...(basePath !== undefined && { basePath }),
    settings: { enroot_path: registry.enrootPath, ...settings },
  });
  return { node, registry };
}

const test = suite('registry images: of their layers', { skip: unlessPrivateMachine });

/** Text of files, by path, without what is ours. */
const filesOf = (node: TestNode): string[] =>
  command(
    'find',
    node.entries(alice)[0]!,
    '-type',
    'f',
    '!',
    '-name',
    '.pyxis_cache_lock',
    '-printf',
    '%P %m %s\n',
  )
    .split('\n')
    .sort();

const tree: Tree = {
  'etc/mark': 'a',
  'bin/su': { content: 'su', mode: 0o4755 },
  'closed/file': { content: 'x', mode: 0 },
  closed: { directory: true, mode: 0o500 },
};

test('no squashfs file is made, and the entry is as if there had been one', async () => {
  const results = [];
  for (const programs of [undefined, '']) {
    const { node, registry } = await startNode();
    await using _ = node;
    registry.set('programs', programs);
    registry.push(image, 'a', tree);
    const { line } = await node.prolog({ id: 1, user: alice, image });
    assert.is(line['result'], 'created', line['reason']);
    assert.equal(node.partials(alice), []);
    results.push([registry.made(), filesOf(node)]);
  }
  const [[made, files], [madeByPrograms, filesByPrograms]] = results as [
    [unknown, string[]],
    [unknown, string[]],
  ];
  assert.equal([made, madeByPrograms], [['layers'], ['file']]);
  assert.equal(files, filesByPrograms);
  assert.ok(files.includes('bin/su 755 2'));
});

test('what cannot be merged is left to enroot', async () => {
  const { node, registry } = await startNode();
  await using _ = node;
  registry.push(image, 'a', { ...tree, 'etc/.wh..wh.plnk': 'of another time' });
  const { line, lines } = await node.prolog({ id: 1, user: alice, image });
  assert.is(line['result'], 'created', line['reason']);
  assert.equal(registry.made(), ['layers', 'file']);
  // The layers do not take room beside the file.
  assert.equal(registry.beside(), ['tmp', 'tmp']);
  const layers = lines.find(({ word }) => word === 'layers');
  assert.match(layers?.fields['reason'] ?? '', /unknown whiteout .*plnk/);
  assert.ok(filesOf(node).includes('closed/file 400 1'));
  await node.settle();
  assert.equal([node.partials(alice), node.trash()], [[], []]);
});

test('a full disk in the middle: what is unused gives way, and without that nothing is left', async () => {
  const base = join(machineRoot, 'small');
  command('mkdir', base);
  mount('--types', 'tmpfs', '--options', 'mode=0755,size=32m', 'tmpfs', base);
  try {
    const { node, registry } = await startNode({ gc_min_age: 0 }, base);
    await using _ = node;
    const mebibyte = 1024 * 1024;
    registry.push(image, 'a', { file: { content: randomBytes(20 * mebibyte) } });
    const old = node.plant(bob, { hash: '0000000000000001', usedSecondsAgo: 1000, bytes: 15 * mebibyte });
    const { line } = await node.prolog({ id: 1, user: alice, image });
    assert.is(line['result'], 'created', line['reason']);
    assert.not(existsSync(old));
    // Now the only entry is in use.
    const other = 'reg.example:5000/other:v1';
    registry.push(other, 'b', { file: { content: randomBytes(20 * mebibyte) } });
    const second = await node.prolog({ id: 2, user: bob, image: other });
    assert.equal([second.exitCode, second.line['code']], [0, 'NO_SPACE'], second.line['reason']);
    await node.settle();
    assert.equal([node.entries(bob), node.partials(bob), node.trash()], [[], [], []]);
    assert.is(node.entries(alice).length, 1);
    assert.equal([...new Set(registry.made())], ['layers']);
    for (const [id, user] of [
      [1, alice],
      [2, bob],
    ] as const)
      await node.epilog({ id, user });
    await node.settle();
  } finally {
    umount(base);
  }
});

test('a Prolog that is killed while layers are merged leaves nothing that a job would start from', async () => {
  const { node, registry } = await startNode();
  await using _ = node;
  // Each directory has a whiteout: none of them moves as a whole.
  const large: Tree = Object.fromEntries(
    Array.from({ length: 3000 }, (_value, index) => [
      [`d${index}/file`, String(index)],
      [`d${index}/.wh.gone`, ''],
    ]).flat() as [string, string][],
  );
  registry.push(image, 'a', large);
  const killed = node.startProlog({ id: 1, user: alice, image });
  await until('layers are merged', () =>
    node.partials(alice).some((name) => existsSync(join(node.userPath(alice), name, 'merged'))),
  );
  process.kill(-killed.pid, 'SIGKILL');
  await killed.result;
  assert.equal(node.entries(alice), []);
  await node.epilog({ id: 1, user: alice });
  await node.settle();
  assert.equal([node.partials(alice), node.trash()], [[], []]);
  const { line } = await node.prolog({ id: 2, user: alice, image });
  assert.is(line['result'], 'created', line['reason']);
  assert.is(filesOf(node).filter((text) => text.startsWith('d')).length, 3000);
  await node.settle();
});

test('a larger image than the cache may take is bypassed, and what was unused longest gives way', async () => {
  const { node, registry } = await startNode({ container_cache_max_size: '20M', gc_min_age: 0 });
  await using _ = node;
  const mebibyte = 1024 * 1024;
  const old = node.plant(bob, { hash: '0000000000000001', usedSecondsAgo: 1000, bytes: 12 * mebibyte });
  const sized = (reference: string, mark: string, mebibytes: number): void => {
    registry.push(reference, mark, { file: { content: randomBytes(mebibytes * mebibyte) } });
  };
  sized('reg.example:5000/large:v1', 'b', 21);
  const large = await node.prolog({ id: 1, user: alice, image: 'reg.example:5000/large:v1' });
  assert.equal([large.line['result'], large.line['code']], ['bypassed', 'TOO_LARGE'], large.line['reason']);
  assert.ok(existsSync(old));
  sized('reg.example:5000/first:v1', 'c', 10);
  const first = await node.prolog({ id: 2, user: alice, image: 'reg.example:5000/first:v1' });
  assert.is(first.line['result'], 'created', first.line['reason']);
  assert.not(existsSync(old));
  // The first one's job goes on.
  sized('reg.example:5000/second:v1', 'd', 12);
  const second = await node.prolog({ id: 3, user: alice, image: 'reg.example:5000/second:v1' });
  assert.equal([second.line['result'], second.line['code']], ['failed', 'NO_SPACE'], second.line['reason']);
  assert.match(second.line['reason']!, /container_cache_max_size/);
  assert.is(node.entries(alice).length, 1);
  assert.equal(registry.made(), ['layers', 'layers', 'layers']);
  await node.settle();
});

test.run();
