/**
 * Room for a new entry, on real small filesystems: who makes it, who waits for it, and what happens where
 * there is none.
 */
// test: timeout 600 s
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { getPriority } from 'node:os';
import { readUsage } from '../../lib/system/disk-usage.ts';
import { makeExt4, unlessExt4, type FilesystemSize } from '../helpers/filesystem.ts';
import { HeldProgram } from '../helpers/held-program.ts';
import { holders, openFiles, setUsed, TestNode, type NodeOptions, nameOf } from '../helpers/node.ts';
import { alice, bob, command, enterPrivateMachine } from '../helpers/private-machine.ts';
import { treeOfFiles } from '../helpers/squashfs-image.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const unlessDisk = unlessExt4();
const mebibyte = 1024 * 1024;
const limitedInInodes: FilesystemSize = { mebibytes: 32, inodes: 512 };
const limitedInBlocks: FilesystemSize = { mebibytes: 48, inodes: 4096 };

/** Watermarks that are out of the way: only what does not fit makes a collection due. */
const noWatermarks = { container_cache_gc_high: 100, container_cache_gc_low: 99, gc_min_age: 0 };

async function withDisk(
  size: FilesystemSize,
  settings: NodeOptions['settings'],
  body: (node: TestNode) => Promise<void>,
): Promise<void> {
  using disk = makeExt4(size);
  await using node = await TestNode.start({ basePath: disk.path, settings: settings ?? {} });
  await body(node);
  await node.settle();
  for (const { id } of node.leases().map(({ jobId }) => ({ id: jobId })))
    await node.epilog({ id, user: alice });
  await node.settle();
}

const room = suite('Prolog: room', { skip: unlessDisk });

room('that an image lacks in inodes is made by evicting, and the Prolog waits for it', async () => {
  await withDisk(limitedInInodes, noWatermarks, async (node) => {
    const { totalInodes, freeInodes } = readUsage(node.basePath);
    const third = Math.floor(freeInodes / 3);
    const [oldest, old, newer] = [3000, 2000, 1000].map((usedSecondsAgo, number) =>
      node.plant(number % 2 === 0 ? bob : alice, {
        hash: `000000000000000${number}`,
        usedSecondsAgo,
        files: third - 10,
      }),
    );
    assert.ok(readUsage(node.basePath).freeInodes < 40);
    const image = node.image(treeOfFiles(Math.floor(1.5 * third)));
    const { exitCode, line, lines } = await node.prolog({ id: 7, user: alice, image });
    assert.equal([exitCode, line['result']], [0, 'created'], line['reason']);
    assert.equal(
      [oldest!, old!, newer!].map((path) => existsSync(path)),
      [false, false, true],
    );
    assert.equal(
      lines.filter(({ word }) => word === 'gc-evicted').map(({ fields }) => fields['entry']),
      [nameOf(oldest!), nameOf(old!)],
    );
    assert.ok(readUsage(node.basePath).freeInodes < totalInodes);
    assert.equal(node.trash(), []);
  });
});

room('that an image lacks in bytes is made by evicting, and the Prolog waits for it', async () => {
  await withDisk(limitedInBlocks, noWatermarks, async (node) => {
    const old = node.plant(bob, { hash: '0000000000000001', usedSecondsAgo: 1000, bytes: 24 * mebibyte });
    command('sync', '--file-system', node.basePath);
    const image = node.image({ file: { content: randomBytes(20 * mebibyte) } });
    const { exitCode, line } = await node.prolog({ id: 7, user: alice, image });
    assert.equal([exitCode, line['result']], [0, 'created'], line['reason']);
    assert.not(existsSync(old));
  });
});

room('that is there by the true sizes is used, although the estimate asked for more', async () => {
  await withDisk(limitedInBlocks, noWatermarks, async (node) => {
    const old = node.plant(bob, { hash: '0000000000000001', usedSecondsAgo: 1000, bytes: 8 * mebibyte });
    // Compressed by its header, but of the same size unpacked: the estimate is three times that.
    const image = node.image({ file: { content: randomBytes(16 * mebibyte) }, zeros: '\0'.repeat(100_000) });
    const { line } = await node.prolog({ id: 7, user: alice, image });
    assert.is(line['result'], 'created', line['reason']);
    assert.ok(existsSync(old));
  });
});

for (const [kind, size] of [
  ['inodes', limitedInInodes],
  ['blocks', limitedInBlocks],
] as const) {
  for (const policy of ['continue', 'fail'] as const) {
    room(
      `that cannot be made in ${kind}: nothing begins, nothing is lost, on_failure=${policy}`,
      async () => {
        await withDisk(size, { ...noWatermarks, on_failure: policy }, async (node) => {
          const { freeInodes } = readUsage(node.basePath);
          const half =
            kind === 'inodes'
              ? treeOfFiles(Math.floor(freeInodes / 2))
              : { file: { content: randomBytes(20 * mebibyte) } };
          await node.prolog({ id: 1, user: bob, image: node.image(half) });
          const [leased] = node.entries(bob);
          setUsed(leased!, 1e6);
          const more =
            kind === 'inodes'
              ? treeOfFiles(Math.floor(freeInodes / 2))
              : { file: { content: randomBytes(24 * mebibyte) } };
          using unsquashfs = new HeldProgram('unsquashfs', { where: '*-dest*' });
          const { exitCode, line, lines } = await node.prolog({
            id: 7,
            user: alice,
            image: node.image(more),
          });
          assert.equal([exitCode, line['result'], line['code']], [0, 'failed', 'NO_SPACE']);
          assert.match(line['reason']!, /bytes and \d+ inodes free, \d+ bytes and \d+ inodes needed/);
          assert.equal(unsquashfs.pids(), []);
          assert.is(lines.find(({ word }) => word === 'gc')?.fields['kept_leased'], '1');
          assert.ok(existsSync(leased!));
          await node.settle();
          assert.equal([node.entries(alice), node.partials(alice), node.trash()], [[], [], []]);
          assert.is(holders().length, 1);
        });
      },
    );
  }
}

room('that runs out in the middle of an unpack: no entry, nothing left of it, no lease', async () => {
  await withDisk(limitedInBlocks, noWatermarks, async (node) => {
    // A hundred mebibytes in a few kilobytes: no estimate sees that coming.
    const image = node.image({ ...treeOfFiles(10), zeros: { content: Buffer.alloc(100 * mebibyte, 'x') } });
    const free = readUsage(node.basePath).freeBytes;
    const { exitCode, line } = await node.prolog({ id: 7, user: alice, image });
    assert.equal([exitCode, line['result'], line['code']], [0, 'failed', 'NO_SPACE'], line['reason']);
    assert.equal([node.entries(alice), holders()], [[], []]);
    await node.settle();
    assert.equal([node.partials(alice), node.trash()], [[], []]);
    command('sync', '--file-system', node.basePath);
    assert.ok(readUsage(node.basePath).freeBytes > free - mebibyte);
  });
});

room(
  'for an image larger than the whole disk is not looked for: nothing is evicted, and it is no fault of the node',
  async () => {
    await withDisk(limitedInBlocks, { ...noWatermarks, on_failure: 'fail' }, async (node) => {
      const old = node.plant(bob, { hash: '0000000000000001', usedSecondsAgo: 1000, bytes: 8 * mebibyte });
      // Not compressed, so that already the estimate asks for too much.
      const zeros = { content: Buffer.alloc(60 * mebibyte, 'x') };
      const image = node.image({ zeros }, ['-noD', '-noF', '-no-duplicates']);
      const { exitCode, line } = await node.prolog({ id: 7, user: alice, image });
      assert.equal([exitCode, line['result'], line['code']], [0, 'failed', 'UNPACK_FAILED'], line['reason']);
      assert.match(line['reason']!, /the whole filesystem has/);
      assert.ok(existsSync(old));
      assert.equal([node.entries(alice), node.partials(alice)], [[], []]);
    });
  },
);

room('that is reserved for root is no room for a user', async () => {
  await withDisk(limitedInBlocks, noWatermarks, async (node) => {
    const { availableBytes, freeBytes } = readUsage(node.basePath);
    assert.ok(freeBytes - availableBytes > 2 * mebibyte, 'this ext4 reserves nothing');
    const size = availableBytes + (freeBytes - availableBytes) / 2;
    const { line } = await node.prolog({
      id: 7,
      user: alice,
      image: node.image({ file: { content: randomBytes(size) } }),
    });
    assert.is(line['code'], 'NO_SPACE');
  });
});

room.run();

const background = suite('Prolog: the collector in the background', { skip: unlessDisk });

/** A disk that is above the high watermark, with an entry that no job has. */
async function aboveWatermark(body: (node: TestNode, image: string) => Promise<void>): Promise<void> {
  const watermarks = { container_cache_gc_high: 30, container_cache_gc_low: 20, gc_min_age: 0 };
  await withDisk(limitedInInodes, { ...noWatermarks }, async (node) => {
    const image = node.image(treeOfFiles(10));
    await node.prolog({ id: 1, user: alice, image });
    const { totalInodes } = readUsage(node.basePath);
    const files = Math.floor(totalInodes / 3);
    node.plant(bob, { hash: '0000000000000001', usedSecondsAgo: 1000, files });
    node.configure(watermarks);
    await body(node, image);
  });
}

background('is not started by a Prolog that reuses, however full the disk', async () => {
  await aboveWatermark(async (node, image) => {
    assert.is((await node.prolog({ id: 2, user: alice, image })).line['result'], 'reused');
    await node.settle();
    assert.is(node.entries(bob).length, 1);
  });
});

background('is started by one that creates, which does not wait for it where its image fits', async () => {
  await aboveWatermark(async (node) => {
    using ionice = new HeldProgram('ionice');
    // Ends although the collector cannot delete.
    const { line } = await node.prolog({ id: 2, user: alice, image: node.image(treeOfFiles(11)) });
    assert.is(line['result'], 'created');
    await ionice.started();
    assert.equal([node.entries(bob).length, node.trash().length], [0, 1]);
    ionice.letGo();
    await node.settle();
    assert.equal([node.entries(bob), node.trash()], [[], []]);
    assert.is(node.entries(alice).length, 2);
  });
});

background('is not started below the high watermark', async () => {
  await aboveWatermark(async (node) => {
    node.configure({ container_cache_gc_high: 90, container_cache_gc_low: 80 });
    assert.is(
      (await node.prolog({ id: 2, user: alice, image: node.image(treeOfFiles(11)) })).line['result'],
      'created',
    );
    await node.settle();
    assert.is(node.entries(bob).length, 1);
  });
});

background('deletes at low priority, in a session of its own, with nothing of the Prolog', async () => {
  await aboveWatermark(async (node) => {
    using deletions = new HeldProgram('find', { where: '*-delete*' });
    const prolog = node.startProlog({ id: 2, user: alice, image: node.image(treeOfFiles(11)) });
    await prolog.result;
    await deletions.started();
    const status = (pid: number): string => command('ps', '-o', 'ni=,sid=,pgid=', '-p', String(pid)).trim();
    const [nice, session] = status(deletions.pids()[0]!).split(/ +/);
    assert.is(nice, String(Math.min(getPriority() + 10, 19)));
    assert.is.not(session, String(prolog.pid));
    assert.match(command('ionice', '--pid', String(deletions.pids()[0])), /^idle/);
    const open = openFiles(deletions.pids()[0]!).map(({ path }) => path);
    assert.equal(
      open.filter((path) => path.startsWith(node.runtimePath)),
      [],
    );
    deletions.letGo();
    await node.settle();
  });
});

background.run();
