/** Which images are one entry: those of the same content, whatever they are called; and none else. */
// test: timeout 600 s
import {
  copyFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { superblockBytes } from '../../lib/core/image.ts';
import { TestNode } from '../helpers/node.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  unlessPrivateMachine,
} from '../helpers/private-machine.ts';
import { acquire } from '../helpers/run-acquire.ts';
import { makeImage, setModifiedAt } from '../helpers/squashfs-image.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const test = suite('content of images', { skip: unlessPrivateMachine });

/** Two images that differ in one byte of a file's data, and in nothing that is quick to read. */
function makeTwins(node: TestNode): readonly [string, string] {
  const options = ['-noI', '-noD', '-noF', '-noX', '-no-xattrs', '-mkfs-time', '0', '-all-time', '0'];
  const twins = ['a', 'b'].map((byte) =>
    makeImage(join(node.root, `images/twin-${byte}.sqsh`), { 'etc/mark': byte.repeat(9000) }, options),
  );
  for (const twin of twins) setModifiedAt(twin, 1_000_000_000);
  const [one, other] = twins.map((twin) => readFileSync(twin));
  assert.is(one!.length, other!.length);
  assert.ok(one!.subarray(0, superblockBytes).equals(other!.subarray(0, superblockBytes)));
  assert.not(one!.equals(other!));
  return [twins[0]!, twins[1]!];
}

const markOf = (node: TestNode, entry: string): string =>
  readFileSync(join(node.entryPath(alice, entry), 'etc/mark'), 'utf8').slice(0, 1);

for (const [how, copy] of [
  ['copied elsewhere', (from, to) => copyFileSync(from, to)],
  ['copied with its times', (from, to) => command('cp', '--preserve', from, to)],
  ['moved', (from, to) => renameSync(from, to)],
  [
    'touched',
    (from, to) => {
      copyFileSync(from, to);
      utimesSync(to, 1, 1);
    },
  ],
] as const satisfies readonly (readonly [string, (from: string, to: string) => void])[]) {
  test(`an image that was ${how} for each job is one entry, unpacked once`, async () => {
    await using node = await TestNode.start();
    let image = node.image();
    const results: (string | undefined)[] = [];
    for (const id of [1, 2, 3]) {
      const staged = join(node.root, `images/staged-${id}.sqsh`);
      copy(image, staged);
      const { line } = await node.prolog({ id, user: alice, image: staged });
      results.push(line['result']);
      if (!existsSync(image)) image = staged;
      else rmSync(staged);
    }
    assert.equal(results, ['created', 'reused', 'reused']);
    assert.is(node.entries(alice).length, 1);
    assert.equal(node.partials(alice), []);
  });
}

test('a step finds the entry of a copy as a Prolog does', async () => {
  await using node = await TestNode.start();
  const image = node.image();
  const { line } = await node.prolog({ id: 1, user: alice, image });
  copyFileSync(image, `${image}.copy`);
  const { entry, log } = await acquire(node, [`${image}.copy`], { jobId: 2 });
  assert.equal([entry, log?.fields['result']], [line['entry'], 'reused']);
});

test('of jobs that all stage a copy at once, one unpacks', async () => {
  await using node = await TestNode.start();
  const image = node.image();
  const ids = Array.from({ length: 6 }, (_, index) => index + 1);
  const lines = await Promise.all(
    ids.map(async (id) => {
      copyFileSync(image, `${image}.${id}`);
      return (await node.prolog({ id, user: alice, image: `${image}.${id}` })).line;
    }),
  );
  assert.is(lines.filter(({ result }) => result === 'created').length, 1);
  assert.is(new Set(lines.map(({ entry }) => entry)).size, 1);
  assert.is(node.entries(alice).length, 1);
});

test('images that differ in one byte of data alone are two entries, of two files or of one', async () => {
  await using node = await TestNode.start();
  const [one, other] = makeTwins(node);
  const entryOf = async (id: number, image: string): Promise<string> =>
    (await node.prolog({ id, user: alice, image })).line['entry']!;
  const first = await entryOf(1, one);
  const second = await entryOf(2, other);
  assert.equal([markOf(node, first), markOf(node, second)], ['a', 'b']);
  // As rsync --times and cp -p do it: size and modification time are the same.
  const { ino } = statSync(one);
  command('cp', '--preserve=timestamps', other, one);
  assert.is(statSync(one).ino, ino);
  assert.is(await entryOf(3, one), second);
  const { entry } = await acquire(node, [one], { jobId: 4 });
  assert.is(entry, second);
  assert.is(node.entries(alice).length, 2);
});

test('one user leads no other to an entry', async () => {
  await using node = await TestNode.start();
  const image = node.image();
  const ofAlice = await node.prolog({ id: 1, user: alice, image });
  const ofBob = await node.prolog({ id: 2, user: bob, image });
  assert.equal([ofAlice.line['result'], ofBob.line['result']], ['created', 'created']);
});

for (const [what, spoil] of [
  ['says nonsense', (path: string) => writeFileSync(path, '../../../etc\n')],
  ['is empty', (path: string) => writeFileSync(path, '')],
  ['is long', (path: string) => writeFileSync(path, 'a'.repeat(5000))],
  [
    'is a directory',
    (path: string) => {
      rmSync(path);
      mkdirSync(path);
    },
  ],
  [
    'leads elsewhere',
    (path: string) => {
      rmSync(path);
      symlinkSync('/etc/passwd', path);
    },
  ],
] as const) {
  test(`an index that ${what} fails no job`, async () => {
    await using node = await TestNode.start();
    const image = node.image();
    const { line } = await node.prolog({ id: 1, user: alice, image });
    const index = join(node.userPath(alice), '.images');
    const names = readdirSync(index);
    assert.ok(names.length > 0);
    for (const name of names) spoil(join(index, name));
    const second = await node.prolog({ id: 2, user: alice, image });
    assert.equal([second.exitCode, second.line['entry']], [0, line['entry']]);
    command('rm', '--recursive', index);
    writeFileSync(index, 'a file');
    const third = await node.prolog({ id: 3, user: alice, image });
    assert.equal([third.exitCode, third.line['entry']], [0, line['entry']]);
  });
}

test('an image whose content is known is not read again; what was written just before is', async () => {
  await using node = await TestNode.start();
  const image = node.image();
  const identities = (): string[] =>
    readdirSync(join(node.userPath(alice), '.images')).filter((name) => !name.endsWith('.seen'));
  await node.prolog({ id: 1, user: alice, image });
  while (identities().length === 0) await node.prolog({ id: 2, user: alice, image });
  const [name] = identities();
  const { ino } = lstatSync(join(node.userPath(alice), '.images', name!));
  await node.prolog({ id: 3, user: alice, image });
  assert.equal(identities(), [name]);
  assert.is(lstatSync(join(node.userPath(alice), '.images', name!)).ino, ino);
});

test('what was read a month ago is forgotten by the next collection, and what is not of the index stays', async () => {
  await using node = await TestNode.start();
  await node.prolog({ id: 1, user: alice, image: node.image() });
  const index = join(node.userPath(alice), '.images');
  const [kept] = readdirSync(index);
  for (const name of ['00112233445566aa', '00112233445566aa.seen', 'of-the-user']) {
    writeFileSync(join(index, name), '');
    setModifiedAt(join(index, name), Date.now() / 1000 - 31 * 86_400);
  }
  await node.gc();
  const names = readdirSync(index);
  assert.equal([names.includes(kept!), names.includes('of-the-user')], [true, true]);
  assert.not(names.some((name) => name.startsWith('00112233445566aa')));
});

test.run();
