/**
 * Images by which a user attacks: by their path, and by what is in them. Each ends as an entry that can be
 * used or in a bypass, in bounded time, and the collector can delete it (I1, I10, I12, I16, I17).
 */
// test: timeout 600 s
import { chmodSync, existsSync, lstatSync, mkdirSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createLockName, entryName } from '../../lib/core/layout.ts';
import { acquire } from '../helpers/run-acquire.ts';
import { mountSilentFuse, unlessFuse } from '../helpers/filesystem.ts';
import { smallTree, type Tree } from '../helpers/squashfs-image.ts';
import { holders, lockFileOf, TestNode } from '../helpers/node.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  unlessPrivateMachine,
} from '../helpers/private-machine.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const settings = { on_failure: 'fail' };

const paths = suite('an image path', { skip: unlessPrivateMachine });

/** What Prolog and acquire make of a path below a directory; `made`: an image lies there. */
const names: readonly (readonly [string, string, 'made' | 'none', string])[] = [
  [
    'a newline, and a forged line of the log after it',
    'a\ncontainer-cache[1]: error: prolog x=1',
    'made',
    '',
  ],
  [
    'a newline, and a forged line of the job file after it',
    'a\nother\tpyxis_cache_u59002_00deadbeef001122\t-',
    'made',
    '',
  ],
  ['a tab', 'a\tb', 'made', ''],
  ['control characters', 'a\u001b[31m\u0007\u007f', 'made', ''],
  ['shell metacharacters', '$(touch x);`touch y`|&<>*?[]{}!#~\'"\\', 'made', ''],
  ['words of find(1)', '-delete -exec rm {} ;', 'made', ''],
  ['a leading dash', '-rf', 'made', ''],
  ['the longest name', 'x'.repeat(255), 'made', ''],
  ['dots on the way out and in again', '../images/dots.sqsh', 'made', ''],
  ['more dots than there are directories', `${'../'.repeat(100)}etc/passwd`, 'none', 'NOT_SQUASHFS'],
  ['4,096 bytes', 'x/'.repeat(2048), 'none', 'BAD_REFERENCE'],
  ['a name longer than names can be', 'x'.repeat(256), 'none', 'IMAGE_UNREADABLE'],
  ['bytes that are no UTF-8', 'a\ufffdb', 'none', 'BAD_REFERENCE'],
];

paths('with whatever name is an image of that name, or a bypass', async () => {
  await using node = await TestNode.start({ settings });
  const directory = join(node.root, 'images');
  const good = node.image();
  await node.prolog({ id: 9, user: alice });
  for (const [index, [what, name, exists, code]] of names.entries()) {
    if (exists === 'made') command('cp', '--', good, join(directory, name));
    // In turn also relative to the working directory, as `./NAME`.
    const image = index % 2 === 0 ? `${directory}/${name}` : `./${name}`;
    const { exitCode, line, lines } = await node.prolog({ id: 7, user: alice, image, workPath: directory });
    assert.equal([exitCode, line['code'] ?? ''], [0, code], `${what}: ${line['reason']}`);
    assert.is(lines.filter(({ word }) => word === 'prolog').length, 1, what);
    for (const listed of (node.jobFile(7, 'images') ?? '').trimEnd().split('\n'))
      assert.not(listed.startsWith('other'), what);
    await node.epilog({ id: 7, user: alice });
    if (name.includes('\ufffd')) continue;
    const held = await acquire(node, [`${directory}/${name}`], { jobId: 9 });
    assert.equal([held.exitCode === 0, held.log?.fields['code'] ?? ''], [code === '', code], what);
  }
  assert.equal([existsSync('/x'), existsSync('/y'), existsSync(join(directory, 'y'))], [false, false, false]);
  await node.epilog({ id: 9, user: alice });
});

paths(
  'that only root can read, a device, a FIFO or a directory is a bypass for Prolog and acquire',
  async () => {
    await using node = await TestNode.start({ settings });
    const secret = node.image();
    chmodSync(secret, 0o600);
    const closed = join(node.root, 'closed');
    mkdirSync(closed, { mode: 0o700 });
    renameSync(node.image(), join(closed, 'image'));
    const fifo = join(node.root, 'fifo');
    command('mkfifo', '--mode=0666', fifo);
    await node.prolog({ id: 9, user: alice });
    for (const [image, code] of [
      [secret, 'IMAGE_UNREADABLE'],
      [join(closed, 'image'), 'IMAGE_UNREADABLE'],
      [fifo, 'NOT_SQUASHFS'],
      ['/dev/zero', 'NOT_SQUASHFS'],
      ['/dev/null', 'NOT_SQUASHFS'],
      ['/dev/stdin', 'NOT_SQUASHFS'],
      ['/proc/1/environ', 'NOT_SQUASHFS'],
      ['/', 'NOT_SQUASHFS'],
    ] as const) {
      const { exitCode, line } = await node.prolog({ id: 7, user: alice, image });
      assert.equal([exitCode, line['result'], line['code']], [0, 'bypassed', code], image);
      if (image !== '/dev/stdin') {
        const tried = await acquire(node, [image], { jobId: 9 });
        assert.equal([tried.exitCode, tried.log?.fields['code']], [1, code], image);
      }
    }
    assert.equal([node.entries(alice), holders()], [[], []]);
  },
);

paths.unless(
  unlessFuse,
  'under a mount that never answers is waited for with a limit, by Prolog and acquire',
  async () => {
    await using node = await TestNode.start({ settings });
    await node.prolog({ id: 9, user: alice });
    const point = join(node.root, 'hung');
    mkdirSync(point);
    await using _ = await mountSilentFuse(point, bob, { forOthers: true });
    const image = join(point, 'image.sqsh');
    const [prolog, step] = await Promise.all([
      node.prolog({ id: 7, user: alice, image }),
      acquire(node, [image], { jobId: 9 }),
    ]);
    assert.equal([prolog.exitCode, prolog.line['code']], [0, 'IMAGE_UNREADABLE']);
    assert.match(prolog.line['reason']!, /is its filesystem hung/);
    assert.equal([step.exitCode, step.log?.fields['code']], [1, 'IMAGE_UNREADABLE']);
  },
);

paths.run();

const contents = suite('an image with', { skip: unlessPrivateMachine });

const deep = 'd/'.repeat(1000);
const trees: readonly (readonly [string, Tree])[] = [
  ['setuid and setgid files', { 'bin/su': { content: 'x', mode: 0o6755 } }],
  [
    'device nodes',
    { ...smallTree, 'dev/sda': { device: 'b 666 0 0 8 0' }, 'dev/null': { device: 'c 666 0 0 1 3' } },
  ],
  [
    'absolute and .. symlinks',
    { a: { symlink: '/etc/shadow' }, b: { symlink: '../../../../etc' }, etc: { symlink: '/etc' } },
  ],
  ['a file named like the lock file', { '.pyxis_cache_lock': { content: 'x', mode: 0o000 } }],
  ['a symlink named like the lock file', { '.pyxis_cache_lock': { symlink: '/etc/shadow' } }],
  ['a FIFO named like the lock file', { '.pyxis_cache_lock': { fifo: true } }],
  [
    'a closed directory named like the lock file',
    { '.pyxis_cache_lock/a/b': 'x', '.pyxis_cache_lock': { directory: true, mode: 0o000 } },
  ],
  ['1,000 levels named like the lock file', { [`.pyxis_cache_lock/${deep}x`]: 'x' }],
  [
    'directories of mode 0000',
    { 'a/b/c': 'x', 'a/b': { directory: true, mode: 0o000 }, a: { directory: true, mode: 0o000 } },
  ],
  ['1,000 levels', { [`${deep}x`]: 'x' }],
  [
    '10,000 hard links',
    {
      l: 'x',
      ...Object.fromEntries(Array.from({ length: 10_000 }, (_, index) => [`l${index}`, { link: 'l' }])),
    },
  ],
];

for (const [what, tree] of trees) {
  contents(`${what} is an entry that can be used again, and goes with the collector`, async () => {
    await using node = await TestNode.start({ settings });
    const image = node.image(tree);
    const made = await node.prolog({ id: 7, user: alice, image });
    assert.equal([made.exitCode, made.line['result']], [0, 'created'], made.line['reason']);
    const [entry = ''] = node.entries(alice);
    const lock = lstatSync(lockFileOf(entry));
    // The owner's right to write goes when the disk has it all.
    assert.equal([lock.isFile(), lock.uid, lock.nlink, lock.mode & 0o7577], [true, alice.uid, 1, 0o400]);
    // Nobody but the user gets to what would run with the user's rights.
    assert.is(statSync(node.userPath(alice)).mode & 0o7777, 0o700);
    assert.is((await node.prolog({ id: 8, user: alice, image })).line['result'], 'reused');
    for (const id of [7, 8]) await node.epilog({ id, user: alice });
    node.configure({ container_cache_gc_high: 1, container_cache_gc_low: 0, gc_min_age: 0 });
    await node.settle();
    await node.gc('--force');
    assert.equal([node.entries(alice), node.partials(alice), node.trash()], [[], [], []]);
  });
}

contents.run();

const inDirectory = suite('names in the user directory', { skip: unlessPrivateMachine });

inDirectory(
  'as long as names can be, and more than are looked at: Epilog and collector end, and others are served',
  async () => {
    await using node = await TestNode.start({ settings });
    await node.prolog({ id: 7, user: alice });
    const start = `.pyxis_cache_u${alice.uid}_00deadbeef001122.7-`;
    const longest = `${start.padEnd(255 - '.partial'.length, 'a')}.partial`;
    const first = join(node.userPath(alice), longest);
    mkdirSync(first);
    // Create locks of as many entries: to look at each with all the others would take hours.
    for (let index = 0; index < 2_500; index++)
      writeFileSync(
        join(
          node.userPath(alice),
          createLockName(entryName(alice.uid, index.toString(16).padStart(16, '0'))),
        ),
        '',
      );
    command('chown', '--recursive', `${alice.uid}:${alice.gid}`, node.userPath(alice));
    const old = node.plant(bob, { hash: '00000000000000aa', usedSecondsAgo: 1000 });
    const epilog = await node.epilog({ id: 7, user: alice });
    assert.is(epilog.exitCode, 0, epilog.line['reason']);
    await node.settle();
    node.configure({ ...settings, container_cache_gc_high: 1, container_cache_gc_low: 0, gc_min_age: 0 });
    // On a busy machine the Epilog's collector may still be at it, and `gc` give up waiting.
    const isDone = (): boolean => node.others(alice).length === 0 && !existsSync(old);
    for (let round = 0; round < 4 && !isDone(); round++) await node.gc('--force');
    assert.not(existsSync(old));
    assert.equal(node.others(alice), []);
    assert.equal(node.trash(), []);
  },
);

inDirectory.run();
