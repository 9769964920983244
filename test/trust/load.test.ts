/** Many at once, and a node that has seen many users: what must go as for one. */
// test: timeout 600 s
import { chmodSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { inodesUsedPercent } from '../../lib/core/gc-plan.ts';
import { readUsage } from '../../lib/system/disk-usage.ts';
import { holders, holds, TestNode, nameOf } from '../helpers/node.ts';
import {
  addUsers,
  alice,
  command,
  enterPrivateMachine,
  machineRoot,
  mount,
  replaceProgram,
  umount,
  unlessPrivateMachine,
  type TestUser,
} from '../helpers/private-machine.ts';
import { Random } from '../helpers/property.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

/** The machine has only so many processors; a program of ours waits its turn. */
const programLimitMs = 400_000;

const test = suite('load', { skip: unlessPrivateMachine });

let users: readonly TestUser[] = [];
test.before(() => {
  if (unlessPrivateMachine === undefined) users = addUsers(200);
});

test('of 200 Prologs at once all succeed, and of each image one unpacks', async () => {
  await using node = await TestNode.start({ programLimitMs });
  const unpacks = join(machineRoot, 'unpacks');
  writeFileSync(unpacks, '');
  chmodSync(unpacks, 0o666);
  using _ = replaceProgram('unsquashfs', `echo "$*" >>${unpacks}\nexec /usr/bin/unsquashfs "$@"`);
  const image = node.image();
  // Half of them of one user, the others of 20.
  const jobs = Array.from({ length: 200 }, (_, index) => ({
    id: index + 1,
    user: index % 2 === 0 ? alice : users[((index - 1) / 2) % 20]!,
    image,
  }));
  const results = await Promise.all(jobs.map((job) => node.prolog(job)));

  const failed = results.filter(
    ({ exitCode, line }) => exitCode !== 0 || !['created', 'reused', 'waited'].includes(line['result'] ?? ''),
  );
  assert.equal(
    failed.map(({ stderr, signal }) => `${signal} ${stderr}`),
    [],
  );
  const created = results.filter(({ line }) => line['result'] === 'created');
  assert.equal([created.length, readFileSync(unpacks, 'utf8').split('\n').length - 1], [21, 21]);
  assert.is(holders().length, 200);
  for (const { id, user } of jobs) {
    const [entry, ...more] = node.entries(user);
    assert.equal(more, []);
    assert.ok(holds(node.lease(id)!.holder.pid, entry!), `job ${id}`);
    assert.equal(node.partials(user), []);
  }
});

test('1,000 entries of 200 users go in the order of their use, whoever has them, and no more than must', async () => {
  const base = join(machineRoot, 'many');
  command('mkdir', base);
  // An entry is three inodes: a directory, a file, the lock file. They fill two thirds.
  mount('--types', 'tmpfs', '--options', 'mode=0755,size=64m,nr_inodes=4900', 'tmpfs', base);
  try {
    await using node = await TestNode.start({
      basePath: base,
      programLimitMs,
      settings: { container_cache_gc_high: 65, container_cache_gc_low: 60, gc_min_age: 0 },
    });
    const random = new Random(1);
    // Far enough apart for the minute that planting them takes on a busy machine.
    const ages = Array.from({ length: 1000 }, (_, index) => (index + 10) * 100);
    for (let index = ages.length - 1; index > 0; index--) {
      const other = random.integer(0, index);
      [ages[index], ages[other]] = [ages[other]!, ages[index]!];
    }
    const planted = ages.map((usedSecondsAgo, index) => {
      const hash = index.toString(16).padStart(16, '0');
      return { usedSecondsAgo, path: node.plant(users[index % users.length]!, { hash, usedSecondsAgo }) };
    });
    const order = planted.sort((a, b) => b.usedSecondsAgo - a.usedSecondsAgo).map(({ path }) => nameOf(path));
    assert.ok(inodesUsedPercent(readUsage(base)) >= 65);

    const plan = await node.gc('--dry-run');
    const named = (kind: string): string[] =>
      [...plan.stdout.matchAll(new RegExp(`^${kind} .* entry=(\\S+)`, 'gm'))].map(([, name = '']) => name);
    const shown = [...named('evict'), ...named('spare'), ...named('keep')];
    assert.equal(shown, order);

    // The Prolog of a job whose image is not there starts the collector, and does not wait for it.
    const job = { id: 1, user: users[7]!, image: node.image() };
    const { exitCode, line } = await node.prolog(job);
    assert.equal([exitCode, line['result']], [0, 'created']);
    await node.settle();
    const isThere = new Set(users.flatMap((user) => node.entries(user)).map(nameOf));
    assert.ok(isThere.has(line['entry']!));
    // The unpack goes on beside the collector: what it wrote after the last look comes on top.
    const created = Number(
      command('du', '--summarize', '--inodes', node.entryPath(job.user, line['entry']!)).split('\t')[0],
    );
    const usage = readUsage(base);
    const percentWithout = inodesUsedPercent({ ...usage, freeInodes: usage.freeInodes + created + 1 });
    assert.ok(percentWithout < 60, `${percentWithout} %`);
    const gone = order.filter((name) => !isThere.has(name));
    assert.equal(gone, order.slice(0, gone.length));
    // One entry less would not have been enough.
    assert.ok(inodesUsedPercent({ ...readUsage(base), freeInodes: readUsage(base).freeInodes - 3 }) >= 60);
    assert.equal(node.trash(), []);

    // A job reuses what the collector has left, however many others there are.
    assert.is((await node.prolog({ ...job, id: 2 })).line['result'], 'reused');
    for (const id of [1, 2]) assert.is((await node.epilog({ ...job, id })).exitCode, 0);
    assert.ok(existsSync(node.entryPath(job.user, line['entry']!)));
  } finally {
    umount(base);
  }
});

test.run();
