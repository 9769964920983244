/** create_mode=background: no job waits for an unpack, and the next one finds the entry. */
// test: timeout 600 s
import { chmodSync, chownSync, closeSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { formatEvent } from '../../lib/core/events.ts';
import { openRegularFile } from '../../lib/system/files.ts';
import { tryFlock } from '../../lib/system/flock.ts';
import { HeldProgram } from '../helpers/held-program.ts';
import { processes, TestNode, until } from '../helpers/node.ts';
import { alice, bob, enterPrivateMachine, unlessPrivateMachine } from '../helpers/private-machine.ts';
import { startAcquire } from '../helpers/run-acquire.ts';
import { treeOfFiles } from '../helpers/squashfs-image.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const settings = {
  container_cache_gc_high: 100,
  container_cache_gc_low: 99,
  create_mode: 'background',
  on_failure: 'fail',
};
const test = suite('create_mode=background', { skip: unlessPrivateMachine });

const warming = (): string[] =>
  processes()
    .map(({ commandLine }) => commandLine)
    .filter((line) => / warm --user=/.test(line));

async function untilUnpacked(node: TestNode): Promise<void> {
  await until('the entry is there', () => node.entries(alice).length === 1);
  await until('nothing is being unpacked', () => warming().length === 0);
}

test('the first job goes on without the cache, is told so, and the next one has the entry', async () => {
  await using node = await TestNode.start({ settings });
  const image = node.image();
  const first = await node.prolog({ id: 1, user: alice, image });
  assert.equal([first.exitCode, first.line['result'], first.line['code']], [0, 'bypassed', 'UNPACKING']);
  assert.is(node.lease(1), undefined);
  assert.is(node.jobFile(1, 'images'), `${image}\t-\tlater\t-\n`);
  await untilUnpacked(node);
  const second = await node.prolog({ id: 2, user: alice, image });
  assert.is(second.line['result'], 'reused');
  assert.is(node.lease(2)?.entries.length, 1);
});

test('a step of the first job has the entry as soon as it is there', async () => {
  await using node = await TestNode.start({ settings });
  const image = node.image();
  await node.prolog({ id: 1, user: alice, image });
  await untilUnpacked(node);
  const { exitCode, entry, holder } = await startAcquire(node, ['--existing', image], { jobId: 1 }).answer;
  assert.is(exitCode, 0);
  assert.ok(entry !== undefined && holder !== undefined);
  const { line } = await node.epilog({ id: 1, user: alice });
  assert.is(line['steps'], '1');
});

test('of many jobs at once with a missing image none waits, and it is unpacked once', async () => {
  await using node = await TestNode.start({ settings });
  const image = node.image(treeOfFiles(200));
  const results = await Promise.all(
    Array.from({ length: 6 }, (_, index) => node.prolog({ id: index + 1, user: alice, image })),
  );
  for (const { exitCode, line } of results)
    assert.ok(exitCode === 0 && ['UNPACKING', undefined].includes(line['code']), JSON.stringify(line));
  await untilUnpacked(node);
  assert.equal(node.partials(alice), []);
});

test('while somebody unpacks, a job neither waits nor starts another', async () => {
  await using node = await TestNode.start({ settings });
  const image = node.image();
  await node.prolog({ id: 1, user: alice, image });
  await untilUnpacked(node);
  rmSync(node.entries(alice)[0]!, { recursive: true });
  const lock = node.others(alice).find((name) => name.endsWith('.create.lock'))!;
  // As a creator does, for as long as this test looks.
  const fd = openRegularFile(join(node.userPath(alice), lock));
  try {
    assert.ok(tryFlock(fd, 'exclusive'));
    const { line } = await node.prolog({ id: 2, user: alice, image });
    assert.equal([line['code'], warming()], ['UNPACKING', []]);
  } finally {
    closeSync(fd);
  }
});

test('what steps would not wait for is unpacked after the job', async () => {
  await using node = await TestNode.start({ settings });
  const image = node.image();
  await node.prolog({ id: 1, user: alice });
  const { exitCode, log } = await startAcquire(node, [image], { jobId: 1 }).answer;
  assert.equal([exitCode, log?.level, log?.fields['code']], [1, 'info', 'UNPACKING']);
  assert.equal(node.entries(alice), []);
  const { line, exitCode: epilogCode } = await node.epilog({ id: 1, user: alice });
  assert.equal([epilogCode, line['unpacking']], [0, '1']);
  await untilUnpacked(node);
});

test('nothing but a whole name of an image gets from a step to the command that unpacks', async () => {
  await using node = await TestNode.start({ settings });
  await node.prolog({ id: 1, user: alice });
  const start = { kind: 'start', atMs: 1, source: 'step', result: 'bypassed', code: 'UNPACKING' } as const;
  const images = ['--user=0', '-v', 'x.sqsh', '', '--', '../x'];
  const path = join(node.userPath(alice), '.steps-1.events');
  writeFileSync(path, images.map((image) => formatEvent({ ...start, image })).join(''));
  chownSync(path, alice.uid, alice.gid);
  const { line, exitCode } = await node.epilog({ id: 1, user: alice });
  assert.equal([exitCode, line['unpacking']], [0, undefined]);
});

test('with create_mode=wait no step can have anything unpacked by the Epilog', async () => {
  await using node = await TestNode.start({ settings });
  const image = node.image();
  await node.prolog({ id: 1, user: alice });
  await startAcquire(node, [image], { jobId: 1 }).answer;
  node.configure({ ...settings, create_mode: 'wait' });
  const { line } = await node.epilog({ id: 1, user: alice });
  assert.is(line['unpacking'], undefined);
  assert.equal([node.entries(alice), warming()], [[], []]);
});

test('a user has four unpacks under way at most, whatever is asked for; another user has them as well', async () => {
  await using node = await TestNode.start({ settings });
  const most = 4;
  using unsquashfs = new HeldProgram('unsquashfs', { where: '*-dest*' });
  for (let id = 1; id <= most + 3; id++) {
    const image = node.image(treeOfFiles(2 * id));
    const { line } = await node.prolog({ id, user: alice, image });
    assert.is(line['code'], 'UNPACKING');
    assert.is(/waits for a later job/.test(line['reason'] ?? ''), id > most, line['reason']);
  }
  assert.is(warming().length, most);
  const ofBob = await node.prolog({ id: 20, user: bob, image: node.image() });
  assert.match(ofBob.line['reason'] ?? '', /is being unpacked in the background/);
  unsquashfs.letGo();
  await until('the entries are there', () => node.entries(alice).length === most);
  await until('nothing is being unpacked', () => warming().length === 0);
});

test('what the user cannot read is not unpacked', async () => {
  await using node = await TestNode.start({ settings });
  const image = node.image();
  chmodSync(image, 0o600);
  const { exitCode, line } = await node.prolog({ id: 1, user: alice, image });
  assert.equal([exitCode, line['code']], [0, 'IMAGE_UNREADABLE']);
  assert.equal([node.entries(alice), warming()], [[], []]);
});

test.run();
