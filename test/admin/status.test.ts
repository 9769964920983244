/** `container-cache status`, `explain` and `rm`: what they show, what they refuse, their exit codes. */
// test: timeout 600 s
import { existsSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { formatEntryMetadata } from '../../lib/core/entry-metadata.ts';
import { makeExt4, unlessExt4 } from '../helpers/filesystem.ts';
import { TestNode, nameOf } from '../helpers/node.ts';
import { alice, bob, enterPrivateMachine, unlessPrivateMachine } from '../helpers/private-machine.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const hash = (number: number): string => number.toString(16).padStart(16, '0');
/** The disk of the tests is somewhere between: nothing is due. */
const never = { container_cache_gc_high: 100, container_cache_gc_low: 99, gc_min_age: 60 };
const always = { container_cache_gc_high: 1, container_cache_gc_low: 0, gc_min_age: 60 };
const mebibyte = 1024 ** 2;

interface Status {
  watermarks: { high: number; low: number };
  collectionDue: boolean;
  usage: { blocksPercent: number };
  entries: {
    name: string;
    uid: number;
    image: string;
    bytes: number;
    keptBecause: string | null;
    place: number | null;
    goesNext: boolean;
    jobs: number[];
  }[];
}

/** Three entries that may go, bob's the oldest, and one that job 7 of alice uses. */
async function nodeWithEntries(basePath?: string): Promise<{ node: TestNode; used: string }> {
  const node = await TestNode.start({ settings: never, ...(basePath === undefined ? {} : { basePath }) });
  node.plant(alice, { hash: hash(1), usedSecondsAgo: 1000, bytes: 3 * mebibyte });
  node.plant(bob, { hash: hash(2), usedSecondsAgo: 3000, bytes: mebibyte });
  node.plant(alice, { hash: hash(3), usedSecondsAgo: 2000, bytes: 2 * mebibyte });
  await node.prolog({ id: 7, user: alice, image: node.image() });
  const used = node.entries(alice).map(nameOf);
  return { node, used: used.find((name) => !/_0{15}[13]$/.test(name))! };
}

const status = suite('status', { skip: unlessPrivateMachine });

async function read(node: TestNode, ...options: string[]): Promise<Status> {
  const { exitCode, stdout, stderr } = await node.admin('status', '--json', ...options).result;
  assert.is(exitCode, 0, stderr);
  return JSON.parse(stdout) as Status;
}

const numbers = ({ entries }: Status): string[] => entries.map(({ name }) => name.slice(-1));

status('tells of each entry who holds it, and where it stands in the line', async () => {
  const { node, used } = await nodeWithEntries();
  await using _ = node;
  const { entries, collectionDue, watermarks } = await read(node, '--sort', 'used', '--reverse');
  assert.equal([collectionDue, watermarks], [false, { high: 100, low: 99 }]);
  assert.equal(
    entries.map(({ uid, keptBecause, place, jobs, goesNext }) => [uid, keptBecause, place, jobs, goesNext]),
    [
      [bob.uid, null, 1, [], false],
      [alice.uid, null, 2, [], false],
      [alice.uid, null, 3, [], false],
      [alice.uid, 'leased', null, [7], false],
    ],
  );
  assert.is(entries.at(-1)!.name, used);
  await node.epilog({ id: 7, user: alice });
  assert.equal((await read(node)).entries.map(({ keptBecause, jobs }) => [keptBecause, jobs])[0], [
    'young',
    [],
  ]);
});

status.unless(unlessExt4(), 'what goes next is what the next collection takes', async () => {
  using disk = makeExt4({ mebibytes: 32, inodes: 512 });
  const { node } = await nodeWithEntries(disk.path);
  await using _ = node;
  node.configure(always);
  const { entries, collectionDue } = await read(node);
  assert.ok(collectionDue);
  const next = entries.filter(({ goesNext }) => goesNext).map(({ name }) => name);
  const { stdout } = await node.gc('--json');
  const { evicted } = JSON.parse(stdout) as { evicted: { name: string }[] };
  assert.equal(evicted.map(({ name }) => name).sort(), next.sort());
  assert.is(next.length, 3);
  await node.epilog({ id: 7, user: alice });
  await node.settle();
});

status('can be sorted and filtered', async () => {
  const { node, used } = await nodeWithEntries();
  await using _ = node;
  assert.equal(numbers(await read(node, '--user', String(bob.uid))), ['2']);
  assert.equal(numbers(await read(node, '--image', `${hash(3)}.sqsh`)), ['3']);
  assert.equal(numbers(await read(node, '--image', '/images/000', '--sort', 'size')), ['1', '3', '2']);
  assert.equal(numbers(await read(node, '--image', '/images/000', '--sort', 'image', '--reverse')), [
    '3',
    '2',
    '1',
  ]);
  assert.is((await read(node, '--sort', 'created')).entries[0]!.name, used);
});

status('for people it is a table without colour in a pipe, with a bar and a sum', async () => {
  const { node, used } = await nodeWithEntries();
  await using _ = node;
  const { stdout, exitCode } = await node.admin('status').result;
  assert.is(exitCode, 0);
  assert.not.match(stdout, /\u001b/);
  assert.match(stdout, /^blocks \[[#.|]{40}\] +[\d.]+ % {2}/m);
  assert.match(stdout, new RegExp(`in use +7 +${used}$`, 'm'));
  assert.match(stdout, new RegExp(`/images/${hash(2)}\\.sqsh +1\\.0 MiB +2 .* idle #1 +- `, 'm'));
  assert.match(stdout, /^4 entries of 2 users, .*; 1 in use$/m);
});

status('more than a pipe holds comes out of it whole, however slow its reader', async () => {
  await using node = await TestNode.start({ settings: never });
  const image = `/${'x'.repeat(20_000)}`;
  const space = { createdAtMs: 0, unpackMs: 1, bytes: 1, inodes: 1, bootId: undefined };
  for (let number = 0; number < 8; number++)
    node.plant(alice, {
      hash: hash(number),
      usedSecondsAgo: 100,
      metadata: formatEntryMetadata({ image, ...space }),
    });
  const slowly = ['sh', '-c', '"$@" | (sleep 1; cat)', 'sh'];
  const { stdout } = await node.adminBy(slowly, 'status', '--json').result;
  const { entries } = JSON.parse(stdout) as Status;
  assert.equal(
    entries.map((entry) => entry.image),
    entries.map(() => image),
  );
  assert.is(entries.length, 8);
});

status('wrong options are told with exit code 2', async () => {
  await using node = await TestNode.start();
  for (const [parameters, message] of [
    [['--sort', 'colour'], /Choices: "used"/],
    [['--user', 'no-such-user'], /--user no-such-user: there is no such user/],
    [['--watch', '2'], /--watch needs a terminal/],
    [['--watch', '0'], /a number of seconds from 0\.1/],
  ] as const) {
    const { exitCode, stderr, stdout } = await node.admin('status', ...parameters).result;
    assert.equal([exitCode, stdout], [2, '']);
    assert.match(stderr, message);
  }
});

status('a node without an entry has a status', async () => {
  await using node = await TestNode.start({ settings: never });
  const { stdout, exitCode } = await node.admin('status').result;
  assert.is(exitCode, 0);
  assert.match(stdout, /^0 entries of 0 users, 0 B; 0 in use$/m);
});

status.run();

const explain = suite('explain', { skip: unlessPrivateMachine });

explain('an entry, an image or a job', async () => {
  const { node, used } = await nodeWithEntries();
  await using _ = node;
  const tell = async (what: string): Promise<[number | null, string]> => {
    const { exitCode, stdout } = await node.admin('explain', what).result;
    return [exitCode, stdout];
  };
  const [exitCode, ofJob] = await tell('7');
  assert.is(exitCode, 0);
  assert.match(ofJob, new RegExp(`^${used}\n`));
  assert.match(ofJob, /held by +job 7 \(since .*, process \d+\)\n +evicted +not while it is held/);
  const oldest = `pyxis_cache_u${bob.uid}_${hash(2)}`;
  assert.match(
    (await tell(oldest))[1],
    /evicted +when the disk reaches 100 %; it is number 1 of 3 candidates/,
  );
  assert.is((await tell(`/images/${hash(2)}.sqsh`))[1].split('\n')[0], oldest);
  assert.is((await tell('/images/000'))[1].match(/^pyxis_cache_u/gm)?.length, 3);
  await node.epilog({ id: 7, user: alice });
  assert.match((await tell(used))[1], /evicted +not within the next \d+ (?:s|min): gc_min_age is 60 s/);
  for (const [what, message] of [
    ['8', /^Job 8 holds no entry on this node/],
    ['/no/such', /^This node has no entry with this name or image: \/no\/such/],
    [`pyxis_cache_u1_${hash(9)}`, /^This node has no entry/],
  ] as const) {
    const [code, text] = await tell(what);
    assert.is(code, 1);
    assert.match(text, message);
  }
});

explain('a job whose image was left to enroot', async () => {
  await using node = await TestNode.start({ settings: never });
  await node.prolog({ id: 7, user: alice, image: node.image() });
  writeFileSync(join(node.runtimePath, 'jobs/7/images'), '/no/such.sqsh\t-\t-\n');
  rmSync(join(node.runtimePath, 'leases/7'));
  const { exitCode, stdout } = await node.admin('explain', '7').result;
  assert.is(exitCode, 0);
  assert.match(stdout, /^\/no\/such\.sqsh: not served by the cache/);
});

explain.run();

const rm = suite('rm', { skip: unlessPrivateMachine });

rm('deletes what it is told, however young, and nothing that is in use', async () => {
  const { node, used } = await nodeWithEntries();
  await using _ = node;
  const names = [`pyxis_cache_u${bob.uid}_${hash(2)}`, used];
  const first = await node.admin('rm', ...names).result;
  assert.is(first.exitCode, 1);
  assert.match(first.stdout, new RegExp(`^deleted ${names[0]}\n$`));
  assert.match(first.stderr, new RegExp(`kept ${used}: in use by job 7\n`));
  assert.equal(node.entries(bob), []);
  assert.is(node.entries(alice).length, 3);
  await node.epilog({ id: 7, user: alice });
  const second = await node.admin('rm', used).result;
  assert.equal([second.exitCode, second.stdout], [0, `deleted ${used}\n`]);
  assert.is(node.entries(alice).length, 2);
  assert.equal(node.trash(), []);
});

rm('a name that is no entry is never a path', async () => {
  const { node } = await nodeWithEntries();
  await using _ = node;
  for (const name of ['../etc', '.', `${alice.uid}`, '--', `pyxis_cache_u${bob.uid}_${hash(5)}`]) {
    const { exitCode, stdout } = await node.admin('rm', name).result;
    assert.ok(exitCode === 1 || exitCode === 2, name);
    assert.is(stdout, '');
  }
  assert.ok(existsSync(node.userPath(alice)));
  assert.is(node.entries(alice).length + node.entries(bob).length, 4);
});

rm.run();
