/** Events of many programs become one sum, each counted once. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  appendFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { countSince, updateCounters } from '../../admin/counters-file.ts';
import type { StartEvent } from '../../lib/core/events.ts';
import { keptDays, listDays, recordEvents } from '../../lib/store/event-files.ts';
import { assert, suite } from '../helpers/suite.ts';

const entry = 'pyxis_cache_u1000_00deadbeef001122';
const dayMs = 86_400_000;
const nowMs = Date.UTC(2026, 10, 24, 12);
const test = suite<{ state: string }>('the counters of a node', { state: { state: '' } });

test.before.each((context) => {
  context.state = join(mkdtempSync(join(tmpdir(), 'counters-')), 'state');
});
test.after.each(({ state }) => {
  rmSync(join(state, '..'), { recursive: true });
});

const start = (event: Partial<StartEvent> = {}): StartEvent => ({
  kind: 'start',
  atMs: nowMs,
  source: 'job',
  result: 'reused',
  entry,
  ...event,
});

const reused = async (state: string): Promise<number | undefined> =>
  (await updateCounters(state)).starts.job.results.reused;

test('each event is counted once, however often they are added up', async ({ state }) => {
  for (let round = 1; round <= 3; round++) {
    assert.ok(recordEvents(state, [start()], nowMs));
    assert.is(await reused(state), round);
    assert.is(await reused(state), round);
  }
});

test('while eight programs write and two add up nothing is lost or counted twice', async ({ state }) => {
  const module = new URL('../../lib/store/event-files.ts', import.meta.url).href;
  const script = `import { recordEvents } from ${JSON.stringify(module)};
    for (let i = 0; i < 250; i++) recordEvents(${JSON.stringify(state)}, [${JSON.stringify(start())}], ${nowMs});`;
  const writers = Array.from({ length: 8 }, () =>
    spawn(process.execPath, [...process.execArgv, '--input-type=module-typescript', '--eval', script], {
      stdio: 'inherit',
    }),
  );
  let isDone = false;
  const adding = [0, 1].map(async () => {
    while (!isDone) await updateCounters(state);
  });
  for (const result of await Promise.all(writers.map((writer) => once(writer, 'close'))))
    assert.is(result[0], 0);
  isDone = true;
  await Promise.all(adding);
  assert.is(await reused(state), 2000);
});

test('a line that is being written, or was cut, is not counted; the ones behind it are', async ({
  state,
}) => {
  recordEvents(state, [start()], nowMs);
  const day = join(state, 'events/2026-11-24');
  const line = `${JSON.stringify(start())}\n`;
  appendFileSync(day, line.slice(0, 20));
  assert.is(await reused(state), 1);
  appendFileSync(day, line.slice(20));
  assert.is(await reused(state), 2);
  appendFileSync(day, `${line.slice(0, 30)}\n${line}`);
  assert.is(await reused(state), 3);
});

test('a file that lost its end in a crash is read on from what is left', async ({ state }) => {
  recordEvents(state, [start(), start()], nowMs);
  assert.is(await reused(state), 2);
  truncateSync(join(state, 'events/2026-11-24'), JSON.stringify(start()).length + 1);
  recordEvents(state, [start()], nowMs);
  assert.is(await reused(state), 2);
  recordEvents(state, [start()], nowMs);
  assert.is(await reused(state), 3);
});

test('counters that cannot be read are made anew from the days that are kept', async ({ state }) => {
  recordEvents(state, [start(), start()], nowMs);
  await updateCounters(state);
  for (const text of ['', '{', '{"version":2}', 'null']) {
    writeFileSync(join(state, 'counters'), text);
    assert.is(await reused(state), 2, text);
  }
});

test('a new day makes a new file, and old days go', async ({ state }) => {
  for (let day = 0; day < keptDays + 5; day++) {
    recordEvents(state, [start()], nowMs + day * dayMs);
    if (day === 3) await updateCounters(state);
  }
  assert.is(listDays(state).length, keptDays);
  assert.is(listDays(state)[0], '2026-11-29');
  // Of the five days that went four had been added up.
  assert.is(await reused(state), keptDays + 4);
});

test('over a time only its events count, and what was unpacked before is known for what it saves', ({
  state,
}) => {
  recordEvents(
    state,
    [start({ atMs: nowMs - 3 * dayMs, result: 'created', unpackMs: 9000 })],
    nowMs - 3 * dayMs,
  );
  recordEvents(state, [start({ atMs: nowMs - 2 * dayMs })], nowMs - 2 * dayMs);
  recordEvents(state, [start()], nowMs);
  const { starts } = countSince(state, nowMs - dayMs);
  assert.equal(starts.job.results, { reused: 1 });
  assert.equal([starts.job.savedMs, starts.job.unpackMs], [9000, 0]);
});

test('what cannot be written is not counted, and nobody is the worse for it', ({ state }) => {
  writeFileSync(state, 'a file in the place of the directory');
  assert.is(recordEvents(state, [start()], nowMs), false);
  rmSync(state);
  mkdirSync(join(state, 'events'), { recursive: true });
  symlinkSync('/etc/hostname', join(state, 'events/2026-11-24'));
  assert.is(recordEvents(state, [start()], nowMs), false);
});

test('only root can look at who started what', ({ state }) => {
  recordEvents(state, [start()], nowMs);
  assert.is(statSync(join(state, 'events')).mode & 0o777, 0o700);
  assert.equal(readdirSync(join(state, 'events')), ['2026-11-24']);
});

test.run();
