/**
 * The collector where others fill the disk, and where the cache has a limit of its own: what goes, and what
 * is left alone.
 */
// test: timeout 600 s
import { randomBytes } from 'node:crypto';
import { closeSync, existsSync, linkSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { entryName } from '../../../lib/core/layout.ts';
import { requireSettings } from '../../../lib/core/settings.ts';
import { collectingWithin, makeRoomAgain } from '../../../lib/store/provision.ts';
import { openDirectory } from '../../../lib/system/directory.ts';
import { readUsage } from '../../../lib/system/disk-usage.ts';
import { readSettings } from '../../../lib/system/settings-file.ts';
import { openLog } from '../../../lib/system/syslog.ts';
import { makeExt4, unlessExt4 } from '../../helpers/filesystem.ts';
import { nameOf, setUsed, TestNode, type LogLine, type ProgramResult } from '../../helpers/node.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  unlessPrivateMachine,
} from '../../helpers/private-machine.ts';
import { assert, suite } from '../../helpers/suite.ts';

enterPrivateMachine();

/** A different one for each number. */
const hash = (number: number): string => number.toString(16).padStart(16, '0');

const evicted = ({ lines }: ProgramResult): string[] =>
  lines.filter(({ word }) => word === 'gc-evicted').map(({ fields }) => fields['entry']!);

const mebibyte = 1024 * 1024;

const goal = suite('collector: a disk that others fill', { skip: unlessExt4() });

goal(
  'that other files keep from being reached: what is used stays, job after job, and this is said once',
  async () => {
    for (const kind of ['inodes', 'blocks'] as const) {
      using disk = makeExt4({ mebibytes: 48, inodes: 1024 });
      await using node = await TestNode.start({
        basePath: disk.path,
        settings: { container_cache_gc_high: 60, container_cache_gc_low: 50, gc_min_age: 0 },
      });
      const images = [0, 1, 2, 3].map((number) =>
        node.image({ [`file${number}`]: randomBytes(200_000).toString('hex') }),
      );
      // What fills the disk is somebody else's, beside the base.
      const foreign = join(disk.path, 'others');
      mkdirSync(foreign);
      const { totalBytes, totalInodes } = readUsage(disk.path);
      if (kind === 'blocks')
        writeFileSync(join(foreign, 'file'), Buffer.alloc(Math.round(totalBytes * 0.65), 1));
      else
        for (let index = 0; index < totalInodes * 0.65; index++)
          writeFileSync(join(foreign, String(index)), '');
      command('sync', '--file-system', disk.path);
      const stale = node.plant(bob, { hash: hash(9), usedSecondsAgo: 90_000, files: 3 });
      const lines: LogLine[] = [];
      const results: (string | undefined)[] = [];
      for (let id = 1; id <= 8; id++) {
        const job = { id, user: alice, image: images[id % 4]! };
        const { line } = await node.prolog(job);
        results.push(line['result']);
        await node.epilog(job);
        await node.settle();
        if (id > 6) lines.push(...(await node.gc('--background')).lines);
      }
      assert.equal(results, [...Array<string>(4).fill('created'), ...Array<string>(4).fill('reused')], kind);
      assert.is(node.entries(alice).length, 4, kind);
      // Nobody has used it for more than a day: it is unpacked again once, if ever.
      assert.not(existsSync(stale));
      const warnings = lines.filter(({ word, level }) => word === 'gc' && level === 'warning');
      assert.ok(warnings.length <= 1, JSON.stringify(warnings));
      assert.equal(
        [await node.gc()].map(({ exitCode, lines: [summary] }) => [
          exitCode,
          summary?.fields['result'],
          summary?.fields['evicted'],
        ]),
        [[1, 'goal-missed', '0']],
      );
      // As soon as it can be reached, it is.
      rmSync(foreign, { recursive: true });
      node.configure({ container_cache_gc_high: 30, container_cache_gc_low: 25, gc_min_age: 0 });
      node.plant(bob, { hash: hash(8), usedSecondsAgo: 5000, bytes: Math.round(totalBytes / 3) });
      command('sync', '--file-system', disk.path);
      assert.equal(evicted(await node.gc())[0], entryName(bob.uid, hash(8)));
    }
  },
);

goal('and a disk that others fill gives an image its room all the same', async () => {
  using disk = makeExt4({ mebibytes: 48, inodes: 1024 });
  await using node = await TestNode.start({
    basePath: disk.path,
    settings: { container_cache_gc_high: 60, container_cache_gc_low: 50, gc_min_age: 0 },
  });
  const { availableBytes } = readUsage(disk.path);
  const old = node.plant(bob, { hash: hash(1), usedSecondsAgo: 1000, bytes: 8 * mebibyte });
  writeFileSync(join(disk.path, 'others'), Buffer.alloc(availableBytes - 14 * mebibyte, 1));
  command('sync', '--file-system', disk.path);
  assert.equal(evicted(await node.gc()), []);
  const { line } = await node.prolog({
    id: 7,
    user: alice,
    image: node.image({ file: { content: randomBytes(10 * mebibyte) } }),
  });
  assert.is(line['result'], 'created', line['reason']);
  assert.not(existsSync(old));
  await node.epilog({ id: 7, user: alice });
  await node.settle();
});

goal(
  'nobody knows what is needed: more room than there was, as far as it is to be had, and nothing in vain',
  async () => {
    using disk = makeExt4({ mebibytes: 48, inodes: 1024 });
    await using node = await TestNode.start({
      basePath: disk.path,
      settings: { container_cache_gc_high: 60, container_cache_gc_low: 50, gc_min_age: 0 },
    });
    const small = node.plant(bob, { hash: hash(1), usedSecondsAgo: 5000, bytes: mebibyte });
    const base = openDirectory(node.basePath);
    try {
      const settings = requireSettings(readSettings({ CONTAINER_CACHE_CONF: node.configPath }));
      const log = openLog({ logTarget: 'stderr', logLevel: 'error', syslogFacility: 'daemon' });
      const request = collectingWithin({ settings, base, log }, 30_000);
      const { availableBytes } = readUsage(disk.path);
      writeFileSync(join(disk.path, 'others'), Buffer.alloc(availableBytes - mebibyte, 1));
      command('sync', '--file-system', disk.path);
      assert.is(await makeRoomAgain(request, undefined, 1), false);
      assert.ok(existsSync(small));
      rmSync(join(disk.path, 'others'));
      const [old, used] = [4000, 3000].map((usedSecondsAgo, index) =>
        node.plant(bob, { hash: hash(2 + index), usedSecondsAgo, bytes: 5 * mebibyte }),
      );
      const before = readUsage(disk.path).availableBytes;
      writeFileSync(join(disk.path, 'others'), Buffer.alloc(before - mebibyte, 1));
      command('sync', '--file-system', disk.path);
      assert.is(await makeRoomAgain(request, undefined, 1), true);
      assert.equal(
        [small, old, used].map((path) => existsSync(path!)),
        [false, false, true],
      );
      assert.is(await makeRoomAgain(request, undefined, 2), false);
    } finally {
      closeSync(base.fd);
    }
  },
);

goal.run();

const size = suite('collector: container_cache_max_size', { skip: unlessPrivateMachine });

const bigImage = (node: TestNode, mebibytes: number): string =>
  node.image({ file: { content: randomBytes(mebibytes * mebibyte) } });

size(
  'an unpack evicts what was unused longest, however much room the disk has; a larger image is bypassed',
  async () => {
    await using node = await TestNode.start({ settings: { container_cache_max_size: '20M', gc_min_age: 0 } });
    // What they claim is not what they take.
    const lie = (bytes: number): string =>
      JSON.stringify({ version: 1, image: '/x', createdAtMs: 0, unpackMs: 0, bytes, inodes: 1 });
    const [first, second] = [
      node.plant(bob, { hash: hash(1), usedSecondsAgo: 3000, bytes: 6 * mebibyte, metadata: lie(0) }),
      node.plant(alice, { hash: hash(2), usedSecondsAgo: 2000, bytes: 6 * mebibyte, metadata: lie(1e12) }),
    ];
    const result = await node.prolog({ id: 1, user: alice, image: bigImage(node, 6) });
    assert.equal([result.line['result'], evicted(result)], ['created', []], result.line['reason']);
    const next = await node.prolog({ id: 2, user: bob, image: bigImage(node, 6) });
    assert.equal([next.line['result'], evicted(next)], ['created', [nameOf(first)]], next.line['reason']);
    const large = await node.prolog({ id: 3, user: bob, image: bigImage(node, 21) });
    assert.equal([large.exitCode, large.line['result'], large.line['code']], [0, 'bypassed', 'TOO_LARGE']);
    assert.ok(existsSync(second));
    // What jobs hold stays, and then there is no room for more.
    const full = await node.prolog({ id: 4, user: bob, image: bigImage(node, 10) });
    assert.equal([full.line['result'], full.line['code'], evicted(full)], ['failed', 'NO_SPACE', []]);
    assert.match(full.line['reason']!, /container_cache_max_size/);
    assert.ok(existsSync(second));
    for (const id of [1, 2, 3, 4]) await node.epilog({ id, user: id === 1 ? alice : bob });
    await node.settle();
  },
);

size(
  'a lower limit, and percent of the disk, are reached by the next collection; hard links count once',
  async () => {
    await using node = await TestNode.start({ settings: { gc_min_age: 0 } });
    const paths = [1, 2, 3].map((number) =>
      node.plant(alice, { hash: hash(number), usedSecondsAgo: 9000 - 1000 * number, bytes: 4 * mebibyte }),
    );
    // Ten more names of one file would make 40 MiB of 4.
    for (let index = 0; index < 10; index++) linkSync(join(paths[2]!, 'f0'), join(paths[2]!, `link${index}`));
    setUsed(paths[2]!, 6000);
    node.configure({ gc_min_age: 0, container_cache_max_size: '13M' });
    assert.equal(evicted(await node.gc()), []);
    const { totalBytes } = readUsage(node.basePath);
    node.configure({
      gc_min_age: 0,
      container_cache_max_size: `${((100 * 9 * mebibyte) / totalBytes).toFixed(3)}%`,
    });
    const { exitCode, lines } = await node.gc();
    assert.equal([exitCode, lines.filter(({ word }) => word === 'gc-evicted').length], [0, 1]);
    assert.equal(
      paths.map((path) => existsSync(path)),
      [false, true, true],
    );
  },
);

size.run();
