/**
 * `container-cache warm`, `pin`, `unpin` and `verify`: entries ahead of time, entries that stay, entries that
 * are still right.
 */
// test: timeout 600 s
import { spawnSync } from 'node:child_process';
import {
  appendFileSync,
  chmodSync,
  existsSync,
  lstatSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { TestNode, until, nameOf } from '../helpers/node.ts';
import { alice, bob, enterPrivateMachine, unlessPrivateMachine } from '../helpers/private-machine.ts';
import { treeOfFiles } from '../helpers/squashfs-image.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const never = { container_cache_gc_high: 100, container_cache_gc_low: 99, gc_min_age: 0 };
const always = { container_cache_gc_high: 1, container_cache_gc_low: 0, gc_min_age: 0 };

const options = { skip: unlessPrivateMachine };
const warm = suite('warm', options);

async function succeed(node: TestNode, ...parameters: string[]): Promise<string> {
  const { exitCode, stdout, stderr } = await node.admin(...parameters).result;
  assert.is(exitCode, 0, stderr);
  return stdout;
}

const entriesOf = (node: TestNode): string[] => node.entries(alice).map(nameOf);

warm('makes the entry that the next job finds, of the user and unpacked as the user', async () => {
  await using node = await TestNode.start({ settings: never });
  const image = node.image();
  assert.match(await succeed(node, 'warm', image, '--user', alice.name), /^unpacked .* unpacked in /);
  const [path = ''] = node.entries(alice);
  assert.equal([lstatSync(path).uid, lstatSync(join(path, 'etc')).uid], [alice.uid, alice.uid]);
  assert.equal(node.partials(alice), []);
  assert.is((await node.prolog({ id: 1, user: alice, image })).line['result'], 'reused');
  assert.match(await succeed(node, 'warm', image, '--user', String(alice.uid)), /^warm .* was already there/);
  assert.equal(node.entries(bob), []);
});

warm('reads the image with the rights of the user alone', async () => {
  await using node = await TestNode.start({ settings: never });
  const image = node.image();
  chmodSync(image, 0o600);
  const { exitCode, stdout } = await node.admin('warm', image, '--user', alice.name).result;
  assert.is(exitCode, 1);
  assert.match(stdout, /^failed .*Cannot read/);
  assert.equal(node.entries(alice), []);
});

warm('goes on after an image that cannot be had, and says which', async () => {
  await using node = await TestNode.start({ settings: never });
  const image = node.image();
  const { exitCode, stdout } = await node.admin(
    'warm',
    '/nowhere.sqsh',
    image,
    '--user',
    alice.name,
    '--json',
  ).result;
  assert.is(exitCode, 1);
  const lines = stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { image: string; result: string });
  assert.equal(
    lines.map(({ image: name, result }) => [name, result]),
    [
      ['/nowhere.sqsh', 'failed'],
      [image, 'created'],
    ],
  );
});

warm('says what is wrong with its use', async () => {
  await using node = await TestNode.start({ settings: never });
  for (const [parameters, message] of [
    [['warm', '/x.sqsh'], /--user/],
    [['warm', '--user', 'alice'], /pin lines of the configuration/],
    [['warm', '--pin'], /pin lines of the configuration/],
  ] as const) {
    const { exitCode, stderr } = await node.admin(...parameters).result;
    assert.is(exitCode, 2);
    assert.match(stderr, message);
  }
  const { exitCode, stdout } = await node.admin('warm', '/x.sqsh', '--user', 'nobody-of-that-name').result;
  assert.is(exitCode, 1);
  assert.match(stdout, /this node does not know the user nobody-of-that-name/);
});

warm('in the background returns at once and leaves an entry', async () => {
  await using node = await TestNode.start({ settings: never });
  const image = node.image();
  assert.is(await succeed(node, 'warm', '--background', '--user', alice.name, image), '');
  await until('the entry is there', () => node.entries(alice).length === 1);
});

warm('without an image unpacks and pins what the configuration lists, and follows it', async () => {
  await using node = await TestNode.start({ settings: never });
  const [first, second] = [node.image(), node.image(treeOfFiles(3))];
  const text = readFileSync(node.configPath, 'utf8');
  const pinned = async (): Promise<string[]> =>
    Object.keys(JSON.parse(await succeed(node, 'pin', '--json')) as object).sort();

  node.writeConfig(`${text}pin=${alice.name} ${first}\npin=${alice.name} ${second}\n`);
  await succeed(node, 'warm');
  assert.is(node.entries(alice).length, 2);
  assert.equal(await pinned(), entriesOf(node));

  // The image is rebuilt: its new entry is pinned, the old one no more.
  const before = entriesOf(node);
  spawnSync('mksquashfs', ['/etc/hostname', first, '-noappend', '-quiet', '-no-progress']);
  await succeed(node, 'warm');
  const added = entriesOf(node).filter((name) => !before.includes(name));
  assert.is(added.length, 1);
  assert.ok((await pinned()).includes(added[0]!));
  assert.is((await pinned()).length, 2);

  // One that cannot be had just now keeps its pin; one that is not listed any more loses it.
  rmSync(first);
  node.writeConfig(`${text}pin=${alice.name} ${first}\n`);
  assert.is((await node.admin('warm').result).exitCode, 1);
  assert.equal(await pinned(), added);
});

warm.run();

const pins = suite('pins', options);

pins('keep an entry from every collection and from rm, until it is unpinned', async () => {
  await using node = await TestNode.start({ settings: always });
  for (const hash of ['1', '2'])
    node.plant(alice, { hash: hash.padStart(16, '0'), usedSecondsAgo: 1000, bytes: 8192 });
  const [first = '', second = ''] = entriesOf(node);
  await succeed(node, 'pin', first);
  const status = JSON.parse(await succeed(node, 'status', '--json')) as {
    entries: { name: string; keptBecause: string }[];
  };
  assert.is(status.entries.find(({ name }) => name === first)?.keptBecause, 'pinned');
  assert.match(await succeed(node, 'explain', first), /not while it is pinned/);
  await node.gc('--force');
  assert.equal(entriesOf(node), [first]);
  const { exitCode, stderr } = await node.admin('rm', first).result;
  assert.is(exitCode, 1);
  assert.match(stderr, /it is pinned; run `container-cache unpin` first/);
  assert.match(await succeed(node, 'pin'), new RegExp(`^${first} +by hand +.* yes `, 'm'));

  await succeed(node, 'unpin', first);
  await node.gc('--force');
  assert.equal(entriesOf(node), []);
  assert.is((await node.admin('unpin', first, second).result).exitCode, 1);
  assert.is((await node.admin('pin', first).result).exitCode, 1);
});

pins('no user can pin: what an entry says of itself, and what lies in the base, pins nothing', async () => {
  await using node = await TestNode.start({ settings: always });
  node.plant(bob, { hash: '1'.padStart(16, '0'), usedSecondsAgo: 1000, bytes: 8192 });
  const name = nameOf(node.entries(bob)[0]!);
  await succeed(node, 'pin', name);
  const forged = node.plant(alice, { hash: '1'.padStart(16, '0'), usedSecondsAgo: 1000, bytes: 8192 });
  writeFileSync(
    join(node.userPath(alice), 'pins'),
    JSON.stringify({ version: 1, pins: { [nameOf(forged)]: {} } }),
  );
  await node.gc('--force');
  assert.equal([node.entries(alice).length, node.entries(bob).length], [0, 1]);
});

pins(
  'a list that cannot be read stops no collection, is said, and is not lost by a further pin',
  async () => {
    await using node = await TestNode.start({ settings: always });
    node.plant(alice, { hash: '1'.padStart(16, '0'), usedSecondsAgo: 1000, bytes: 8192 });
    const [name = ''] = entriesOf(node);
    await succeed(node, 'pin', name);
    appendFileSync(join(node.statePath, 'pins'), 'x');
    const { exitCode, stderr } = await node.admin('pin', name).result;
    assert.is(exitCode, 1);
    assert.match(stderr, /Cannot read pins .*remove it and pin anew/);
    assert.match(readFileSync(join(node.statePath, 'pins'), 'utf8'), /x$/);
    const { lines } = await node.gc('--force');
    assert.ok(lines.some(({ level, word }) => level === 'warning' && word === 'gc-pins'));
    assert.equal(entriesOf(node), []);
  },
);

pins('twenty at once are all kept', async () => {
  await using node = await TestNode.start({ settings: never });
  for (let index = 0; index < 8; index++)
    node.plant(alice, { hash: index.toString(16).padStart(16, '0'), usedSecondsAgo: 1000, bytes: 0 });
  await Promise.all(entriesOf(node).map((name) => succeed(node, 'pin', name)));
  assert.is(Object.keys(JSON.parse(await succeed(node, 'pin', '--json')) as object).length, 8);
});

pins.run();

const verify = suite('verify', options);

verify('an entry is the same as its image, as long as nobody changed it', async () => {
  await using node = await TestNode.start({ settings: never });
  const image = node.image({
    'bin/program': { content: '#!/bin/sh\n', mode: 0o4755 },
    'etc/closed': { content: 'x', mode: 0o000 },
    'etc/link': { symlink: '../bin/program' },
    'a name\nof two lines': { content: '' },
  });
  await node.prolog({ id: 1, user: alice, image });
  const [path = ''] = node.entries(alice);
  assert.match(await succeed(node, 'verify'), /^same .*: \d+ files and directories$/m);

  writeFileSync(join(path, 'etc/closed'), 'other');
  rmSync(join(path, 'etc/link'));
  const { exitCode, stdout } = await node.admin('verify', nameOf(path)).result;
  assert.is(exitCode, 1);
  assert.match(
    stdout,
    /^different .*: 2 lines only in the listing of the image, 1 only in that of the entry$/m,
  );
  assert.match(stdout, /^ {4}- l \/etc\/link -> \.\.\/bin\/program$/m);
});

verify('what cannot be compared is said to be unknown', async () => {
  await using node = await TestNode.start({ settings: never });
  const image = node.image();
  await node.prolog({ id: 1, user: alice, image });
  const [path = ''] = node.entries(alice);
  rmSync(image);
  const gone = await node.admin('verify').result;
  assert.is(gone.exitCode, 1);
  assert.match(gone.stdout, /^unknown .*Cannot read/m);
  const other = await node.admin('verify', '--json', 'pyxis_cache_u1_0000000000000000').result;
  assert.equal([other.exitCode, (JSON.parse(other.stdout) as { result: string }).result], [1, 'unknown']);
  assert.ok(existsSync(path));
});

verify.run();
