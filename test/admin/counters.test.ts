/** What events add up to. */
import {
  addEvent,
  emptyCounters,
  forgetOldEntries,
  unpackBucketsSeconds,
  type Counters,
} from '../../admin/counters.ts';
import type { CacheEvent, StartEvent } from '../../lib/core/events.ts';
import { assert, suite } from '../helpers/suite.ts';

const entry = 'pyxis_cache_u1000_00deadbeef001122';
const test = suite('counters');

function sum(...events: readonly CacheEvent[]): Counters {
  const counters = emptyCounters(0);
  for (const event of events) addEvent(counters, event);
  return counters;
}

const start = (event: Partial<StartEvent>): StartEvent => ({
  kind: 'start',
  atMs: 1,
  source: 'job',
  result: 'reused',
  entry,
  ...event,
});

test('a reuse saves what the unpack took, and counts for its entry', () => {
  const created = start({ result: 'created', unpackMs: 15_000 });
  const { starts, entries } = sum(created, start({}), start({ source: 'step' }), start({ result: 'waited' }));
  assert.equal(starts.job.results, { created: 1, reused: 1, waited: 1 });
  assert.equal(starts.step.results, { reused: 1 });
  assert.equal([starts.job.savedMs, starts.step.savedMs, starts.job.unpackMs], [15_000, 15_000, 15_000]);
  assert.is(entries.get(entry)?.hits, 2);
});

test('what is not known is not saved, and no step changes what a Prolog has seen', () => {
  assert.is(sum(start({})).starts.job.savedMs, 0);
  const claimed = start({ source: 'step', result: 'created', unpackMs: 80_000_000 });
  const seen = start({ result: 'created', unpackMs: 1000 });
  assert.is(sum(seen, claimed, start({})).starts.job.savedMs, 1000);
  assert.is(sum(claimed, start({})).starts.job.savedMs, 80_000_000);
});

test('the hits of an entry end with it', () => {
  const evicted: CacheEvent = { kind: 'eviction', atMs: 2, reason: 'room', entry };
  const { entries, evictions } = sum(
    start({ result: 'created', unpackMs: 5 }),
    start({}),
    evicted,
    start({}),
  );
  assert.equal([entries.get(entry)?.hits, entries.get(entry)?.unpackMs], [1, undefined]);
  assert.equal(evictions, { room: 1 });
});

test('an unpack falls into the first bucket that holds it, and into the last if none does', () => {
  for (const [index, bound] of [...unpackBucketsSeconds, 10_000].entries()) {
    const { starts } = sum(start({ result: 'created', unpackMs: bound * 1000 }));
    assert.is(starts.job.unpackBuckets.indexOf(1), index);
    assert.is(starts.job.unpackBuckets.length, unpackBucketsSeconds.length + 1);
  }
});

test('codes count by themselves, collections by their result and the last by its time', () => {
  const failed = (code: 'NO_SPACE' | 'UNSUPPORTED_OPTION', result: 'failed' | 'bypassed'): StartEvent =>
    start({ result, code, entry: undefined });
  const { starts, collections, lastCollectionAtMs } = sum(
    failed('NO_SPACE', 'failed'),
    failed('NO_SPACE', 'failed'),
    failed('UNSUPPORTED_OPTION', 'bypassed'),
    { kind: 'collection', atMs: 9, result: 'collected' },
    { kind: 'collection', atMs: 7, result: 'goal-missed' },
  );
  assert.equal(starts.job.results, { failed: 2, bypassed: 1 });
  assert.equal(starts.job.codes, { NO_SPACE: 2, UNSUPPORTED_OPTION: 1 });
  assert.equal([collections, lastCollectionAtMs], [{ collected: 1, 'goal-missed': 1 }, 9]);
});

test('of too many entries the ones used last are remembered', () => {
  const counters = emptyCounters(0);
  for (let index = 0; index < 10_050; index++)
    addEvent(
      counters,
      start({ atMs: index, entry: `pyxis_cache_u1_${index.toString(16).padStart(16, '0')}` }),
    );
  forgetOldEntries(counters);
  assert.is(counters.entries.size, 10_000);
  assert.is(Math.min(...[...counters.entries.values()].map(({ usedAtMs }) => usedAtMs)), 50);
});

test.run();
