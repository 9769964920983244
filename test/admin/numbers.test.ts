/** What jobs, steps and collections leave in `stats`, `metrics` and the hits of `status`. */
// test: timeout 600 s
import { spawnSync } from 'node:child_process';
import {
  appendFileSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { formatEvent, type StartEvent } from '../../lib/core/events.ts';
import { TestNode, nameOf } from '../helpers/node.ts';
import { alice, bob, enterPrivateMachine, unlessPrivateMachine } from '../helpers/private-machine.ts';
import { startAcquire } from '../helpers/run-acquire.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const never = { container_cache_gc_high: 100, container_cache_gc_low: 99, gc_min_age: 0 };

interface Starts {
  hits: number;
  waits: number;
  misses: number;
  bypasses: Record<string, number>;
  failures: Record<string, number>;
  unpackMs: number;
  savedMs: number;
}
interface Stats {
  jobs: Starts;
  steps: Starts;
  evictions: Record<string, number>;
}

const test = suite('numbers', { skip: unlessPrivateMachine });

async function print(node: TestNode, ...parameters: string[]): Promise<string> {
  const { exitCode, stdout, stderr } = await node.admin(...parameters).result;
  assert.is(exitCode, 0, stderr);
  return stdout;
}

const stats = async (node: TestNode, ...parameters: string[]): Promise<Stats> =>
  JSON.parse(await print(node, 'stats', '--json', ...parameters)) as Stats;

/** @returns the value of a metric, by its name and labels as they are printed */
function metric(text: string, name: string): number {
  const line = text.split('\n').find((one) => one.startsWith(`container_cache_${name} `));
  if (line === undefined) throw new Error(`no metric ${name} in ${text}`);
  return Number(line.split(' ').at(-1));
}

/**
 * What the enroot wrapper notes of containers that start from entries (test/enroot/wrapper.test.ts), each
 * `result entry`.
 */
function noteContainers(node: TestNode, jobId: number, ...containers: string[]): void {
  const path = join(node.userPath(alice), `.steps-${jobId}.events`);
  const lines = containers.map((container) => {
    const [result, entry] = container.split(' ');
    return `${JSON.stringify({ kind: 'container', entry, result })}\n`;
  });
  appendFileSync(path, lines.join(''));
  chownSync(path, alice.uid, alice.gid);
}

test('a miss, a hit, a bypass and a fault of jobs are counted, and a job without an image is not', async () => {
  await using node = await TestNode.start({ settings: never });
  const image = node.image();
  const results = [];
  for (const [id, request] of [
    { image },
    { image },
    { image },
    { image, name: 'mine' },
    { image: '/nowhere.sqsh' },
    {},
  ].entries())
    results.push((await node.prolog({ id: id + 1, user: alice, ...request })).line['result']);
  assert.equal(results, ['created', 'reused', 'reused', 'bypassed', 'bypassed', 'none']);
  const entry = nameOf(node.entries(alice)[0]!);
  noteContainers(node, 1, `created ${entry}`);
  noteContainers(node, 2, `reused ${entry}`);
  noteContainers(node, 3, `reused ${entry}`);
  assert.is((await stats(node)).jobs.hits, 0);
  for (const id of [1, 2, 3]) await node.epilog({ id, user: alice });
  const { jobs, steps } = await stats(node);
  assert.equal([jobs.misses, jobs.hits, jobs.waits], [1, 2, 0]);
  assert.equal(jobs.bypasses, { UNSUPPORTED_OPTION: 1, IMAGE_UNREADABLE: 1 });
  assert.equal(jobs.failures, {});
  assert.is(jobs.savedMs, 2 * jobs.unpackMs);
  assert.is(steps.misses + steps.hits, 0);

  const text = await print(node, 'metrics');
  assert.is(metric(text, 'hits_total{source="job"}'), 2);
  assert.is(metric(text, 'misses_total{source="job"}'), 1);
  assert.is(metric(text, 'bypasses_total{source="job",reason="UNSUPPORTED_OPTION"}'), 1);
  assert.is(metric(text, 'failures_total{source="job",code="NO_SPACE"}'), 0);
  assert.is(metric(text, 'unpack_seconds_bucket{source="job",le="+Inf"}'), 1);
  assert.is(metric(text, 'entries'), 1);
  assert.is(metric(text, 'leases'), 0);
  const entries = JSON.parse(await print(node, 'status', '--json')) as { entries: { hits: number }[] };
  assert.equal(
    entries.entries.map(({ hits }) => hits),
    [2],
  );
  assert.match(await print(node, 'stats'), /^hit ratio {2}66\.7 %$/m);
});

test('an entry that no container starts from is no hit: the job may not see the base', async () => {
  await using node = await TestNode.start({ settings: never });
  const image = node.image();
  for (const id of [1, 2]) {
    await node.prolog({ id, user: alice, image });
    await node.epilog({ id, user: alice });
  }
  const { jobs } = await stats(node);
  assert.equal([jobs.misses, jobs.hits], [1, 0]);
});

test('each further container of the job that made the entry is a hit', async () => {
  await using node = await TestNode.start({ settings: never });
  await node.prolog({ id: 1, user: alice, image: node.image() });
  const made = `created ${nameOf(node.entries(alice)[0]!)}`;
  noteContainers(node, 1, made, made, made);
  await node.epilog({ id: 1, user: alice });
  const { jobs, steps } = await stats(node);
  assert.equal([jobs.misses, jobs.hits, steps.hits], [1, 2, 0]);
});

test('what a step acquired is counted by its Epilog', async () => {
  await using node = await TestNode.start({ settings: never });
  const image = node.image();
  await node.prolog({ id: 1, user: alice });
  for (const result of ['created', 'reused']) {
    const { exitCode } = await startAcquire(node, [image], { jobId: 1 }).answer;
    assert.is(exitCode, 0);
    noteContainers(node, 1, `${result} ${nameOf(node.entries(alice)[0]!)}`);
  }
  assert.equal(node.stepEvents(alice), ['.steps-1.events']);
  assert.is((await stats(node)).steps.hits, 0);
  await node.epilog({ id: 1, user: alice });
  const { steps, jobs } = await stats(node);
  assert.equal([steps.misses, steps.hits, jobs.hits], [1, 1, 0]);
  assert.equal(node.stepEvents(alice), []);
});

test('each of several images that the steps of a job acquired is counted', async () => {
  await using node = await TestNode.start({ settings: never });
  await node.prolog({ id: 1, user: alice });
  for (const image of [node.image(), node.image(), node.image()])
    assert.is((await startAcquire(node, [image], { jobId: 1 }).answer).exitCode, 0);
  await node.epilog({ id: 1, user: alice });
  assert.is((await stats(node)).steps.misses, 3);
});

const start: StartEvent = {
  kind: 'start',
  atMs: 1,
  source: 'job',
  result: 'reused',
  entry: `pyxis_cache_u${alice.uid}_00deadbeef001122`,
};

test('a user can claim no more than starts from their own entries', async () => {
  await using node = await TestNode.start({ settings: never });
  await node.prolog({ id: 1, user: alice });
  const forged = [
    formatEvent(start),
    formatEvent({ ...start, entry: `pyxis_cache_u${bob.uid}_00deadbeef001122` }),
    formatEvent({ kind: 'eviction', atMs: 1, reason: 'rm', entry: start.entry! }),
    'no event\n',
    formatEvent({ ...start, source: 'warm' }),
    `{"kind":"container","entry":"pyxis_cache_u${bob.uid}_00deadbeef001122","result":"reused"}\n`,
    '{"kind":"container","entry":7,"result":"reused"}\n',
    `{"kind":"container","entry":"${start.entry}","result":"free"}\n`,
  ];
  writeFileSync(join(node.userPath(alice), '.steps-1.events'), forged.join(''));
  chownSync(join(node.userPath(alice), '.steps-1.events'), alice.uid, alice.gid);
  assert.is((await node.epilog({ id: 1, user: alice })).exitCode, 0);
  const { jobs, steps, evictions } = await stats(node);
  assert.equal([jobs.hits, steps.hits, evictions['rm']], [0, 2, 0]);
});

test('whatever a user puts in the place of their notes, the Epilog ends well and nothing of root is read or removed', async () => {
  await using node = await TestNode.start({ settings: { ...never, on_failure: 'fail' } });
  await node.prolog({ id: 1, user: alice });
  const path = join(node.userPath(alice), '.steps-1.events');
  const secret = join(node.root, 'secret');
  writeFileSync(secret, formatEvent(start), { mode: 0o600 });
  for (const [what, put] of [
    [
      'a symlink',
      () => {
        symlinkSync(secret, path);
      },
    ],
    [
      'a FIFO',
      () => {
        spawnSync('mkfifo', ['--mode=0666', path]);
      },
    ],
    [
      'a directory',
      () => {
        mkdirSync(path);
      },
    ],
    [
      'a file of root',
      () => {
        writeFileSync(path, formatEvent(start), { mode: 0o600 });
      },
    ],
    [
      'a file without end',
      () => {
        writeFileSync(path, 'x'.repeat(1_000_000));
      },
    ],
  ] as const) {
    put();
    const { exitCode, line } = await node.epilog({ id: 1, user: alice });
    assert.equal([exitCode, line['code']], [0, undefined], what);
    rmSync(path, { recursive: true, force: true });
  }
  assert.is((await stats(node)).steps.hits, 0);
  assert.ok(existsSync(secret));
});

test('notes of a job without an Epilog go with a collection a month later', async () => {
  await using node = await TestNode.start({ settings: never });
  await node.prolog({ id: 1, user: alice });
  for (const [name, days] of [
    ['.steps-8.events', 40],
    ['.steps-9.events', 20],
  ] as const) {
    const path = join(node.userPath(alice), name);
    writeFileSync(path, '');
    chownSync(path, alice.uid, alice.gid);
    spawnSync('touch', ['--date', `${days} days ago`, path]);
  }
  await node.gc();
  assert.equal(node.stepEvents(alice), ['.steps-9.events']);
});

test('evictions are counted by what they were for', async () => {
  await using node = await TestNode.start({
    settings: { ...never, container_cache_gc_high: 1, container_cache_gc_low: 0 },
  });
  for (const hash of ['1', '2', '3'])
    node.plant(alice, { hash: hash.padStart(16, '0'), usedSecondsAgo: 1000 * Number(hash), bytes: 8192 });
  await print(node, 'rm', nameOf(node.entries(alice)[0]!));
  await node.gc('--force');
  assert.equal((await stats(node)).evictions, { watermark: 2, room: 0, size: 0, quota: 0, rm: 1 });
  const text = await print(node, 'metrics');
  assert.is(metric(text, 'evictions_total{reason="watermark"}'), 2);
  assert.ok(metric(text, 'last_collection_timestamp_seconds') > Date.now() / 1000 - 600);
});

test('metrics replace their file at once, readable for node_exporter', async () => {
  await using node = await TestNode.start({ settings: never });
  const directory = join(node.root, 'textfile');
  mkdirSync(directory);
  const path = join(directory, 'container-cache.prom');
  writeFileSync(path, 'old');
  const before = lstatSync(path).ino;
  assert.is(await print(node, 'metrics', '--output', path), '');
  assert.equal([lstatSync(path).mode & 0o777, lstatSync(path).ino === before], [0o644, false]);
  assert.match(readFileSync(path, 'utf8'), /^# HELP container_cache_hits_total /);
  assert.equal(readdirSync(directory), ['container-cache.prom']);
});

test('promtool finds nothing wrong with them', async () => {
  await using node = await TestNode.start({ settings: never });
  await node.prolog({ id: 1, user: alice, image: node.image() });
  const input = await print(node, 'metrics');
  const { status, stdout, stderr } = spawnSync('promtool', ['check', 'metrics'], { input, encoding: 'utf8' });
  assert.equal([status, stdout, stderr], [0, '', '']);
});

test('--since wants a time, and says which', async () => {
  await using node = await TestNode.start({ settings: never });
  for (const since of ['yesterday', '7', '2026-13-45', '-1d', '']) {
    const { exitCode, stderr } = await node.admin('stats', `--since=${since}`).result;
    assert.is(exitCode, 2, since);
    assert.match(stderr, /use 30m, 12h, 7d, 2w, or a UTC date such as 2026-11-01/);
  }
  await print(node, 'stats', '--since', '2026-11-01T08:00');
});

test('a state directory that cannot be written to costs the numbers alone', async () => {
  await using node = await TestNode.start({
    settings: { ...never, on_failure: 'fail', state_dir: '/proc/none' },
  });
  const image = node.image();
  for (const [id, result] of ['created', 'reused'].entries()) {
    const { exitCode, line } = await node.prolog({ id: id + 1, user: alice, image });
    assert.equal([exitCode, line['result']], [0, result]);
  }
  assert.is((await node.epilog({ id: 1, user: alice })).exitCode, 0);
  const listed = JSON.parse(await print(node, 'status', '--json')) as { entries: { hits: number | null }[] };
  assert.is(listed.entries[0]?.hits, null);
});

test.run();
