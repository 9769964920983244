/** What is read back of an event, and what is none. */
import { formatEvent, parseEvent, type CacheEvent } from '../../../lib/core/events.ts';
import { assert, suite } from '../../helpers/suite.ts';

const entry = 'pyxis_cache_u1000_00deadbeef001122';
const test = suite('events');

const events: readonly CacheEvent[] = [
  { kind: 'start', atMs: 1, source: 'job', result: 'reused', entry },
  { kind: 'start', atMs: 2, source: 'job', result: 'created', entry, unpackMs: 1500 },
  { kind: 'start', atMs: 3, source: 'step', result: 'failed', code: 'NO_SPACE' },
  { kind: 'start', atMs: 4, source: 'step', result: 'bypassed', code: 'UNPACKING', image: '/a\n"b".sqsh' },
  { kind: 'eviction', atMs: 5, reason: 'watermark', entry },
  { kind: 'collection', atMs: 6, result: 'goal-missed' },
];

test('reads back what it wrote, one line each', () => {
  for (const event of events) {
    const line = formatEvent(event);
    assert.is(line.indexOf('\n'), line.length - 1);
    assert.equal(parseEvent(line.slice(0, -1)), event);
  }
});

test('takes no part of a line for an event', () => {
  for (const event of events) {
    const line = formatEvent(event).slice(0, -1);
    for (let length = 0; length < line.length; length++)
      assert.is(parseEvent(line.slice(0, length)), undefined);
  }
});

test('takes nothing that it would not write', () => {
  const start = { kind: 'start', atMs: 1, source: 'job', result: 'reused', entry };
  for (const change of [
    { atMs: -1 },
    { atMs: 1.5 },
    { atMs: '1' },
    { source: 'root' },
    { result: 'stolen' },
    { entry: '../../etc' },
    { entry: undefined },
    { kind: 'constructor' },
    { result: 'created' },
    { result: 'created', unpackMs: 1e12 },
    { result: 'failed', code: '__proto__' },
  ])
    assert.is(parseEvent(JSON.stringify({ ...start, ...change })), undefined, JSON.stringify(change));
  for (const text of ['', 'null', '[]', '7', '"start"', '{}']) assert.is(parseEvent(text), undefined, text);
});

test.run();
