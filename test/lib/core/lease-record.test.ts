/** lease-record.ts: strict, for a record names a process to be killed. */
import { entryName } from '../../../lib/core/layout.ts';
import {
  formatLeaseRecord,
  longestLeaseRecordBytes,
  parseLeaseRecord,
  type LeaseRecord,
} from '../../../lib/core/lease-record.ts';
import { forAll } from '../../helpers/property.ts';
import { assert, suite } from '../../helpers/suite.ts';

const record: LeaseRecord = {
  jobId: 4711,
  uid: 1000,
  holder: { pid: 31_337, startTicks: '123456789' },
  sinceMs: 1_700_000_000_000,
  entries: [entryName(1000, '00deadbeef001122'), entryName(1000, 'ffffffffffffffff')],
};

const test = suite('lease record');

test('is one line of JSON that reads back', () => {
  const text = formatLeaseRecord(record);
  assert.match(text, /^\{"version":1,"jobId":4711,.*\}\n$/);
  assert.equal(parseLeaseRecord(text), record);
  assert.equal(parseLeaseRecord(formatLeaseRecord({ ...record, entries: [] })), { ...record, entries: [] });
});

test('reads back what was written', () => {
  forAll(200, (random) => {
    const uid = random.integer(0, 2 ** 32 - 2);
    const written = {
      jobId: random.integer(1, 2 ** 32 - 2),
      uid,
      holder: { pid: random.integer(2, 2 ** 22), startTicks: random.text('0123456789', 1, 20) },
      sinceMs: random.integer(0, 2 ** 42),
      entries: Array.from({ length: random.integer(0, 5) }, () =>
        entryName(uid, random.text('0123456789abcdef', 16, 16)),
      ),
    };
    assert.equal(parseLeaseRecord(formatLeaseRecord(written)), written);
  });
});

test('a thousand entries fit into what is read', () => {
  const entries = Array.from({ length: 1000 }, () => entryName(4_294_967_294, '0'.repeat(16)));
  const text = formatLeaseRecord({ ...record, uid: 4_294_967_294, entries });
  assert.ok(Buffer.byteLength(text) <= longestLeaseRecordBytes);
});

/** A record with one field replaced by a text of JSON. */
const withField = (field: string, json: string): string =>
  JSON.stringify({ version: 1, ...record, [field]: '@' }).replace('"@"', json);

test('a holder is neither init nor a process group nor all processes', () => {
  for (const pid of ['0', '1', '-1', '-31337', '1.5', '"31337"', 'null', '1e400']) {
    assert.is(parseLeaseRecord(withField('holder', `{"pid":${pid},"startTicks":"1"}`)), undefined, pid);
  }
  assert.equal(parseLeaseRecord(withField('holder', '{"pid":2,"startTicks":"1"}'))?.holder.pid, 2);
});

test('a start time is digits', () => {
  for (const ticks of ['123', '""', '"-1"', '"1.5"', '" 1"', '"1\\n"', '"123456789012345678901"', 'null']) {
    assert.is(parseLeaseRecord(withField('holder', `{"pid":2,"startTicks":${ticks}}`)), undefined, ticks);
  }
});

test('a holder that is no object is none', () => {
  for (const holder of ['null', '[]', '31337', '"31337"', '[31337,"1"]', '{}']) {
    assert.is(parseLeaseRecord(withField('holder', holder)), undefined, holder);
  }
});

test('an entry is one of the record’s own user, by its name', () => {
  for (const name of [
    entryName(1001, '00deadbeef001122'),
    '../1001/pyxis_cache_u1001_00deadbeef001122',
    'pyxis_cache_u1000_00deadbeef001122/../..',
    'pyxis_cache_u1000_00DEADBEEF001122',
    'pyxis_cache_u01000_00deadbeef001122',
    '',
    '.',
  ]) {
    const text = withField('entries', JSON.stringify([...record.entries, name]));
    assert.is(parseLeaseRecord(text), undefined, name);
  }
  for (const entries of ['null', '{}', '"x"', '[null]', '[[]]', '[1]']) {
    assert.is(parseLeaseRecord(withField('entries', entries)), undefined, entries);
  }
});

test('counts are whole numbers', () => {
  for (const field of ['jobId', 'uid', 'sinceMs']) {
    for (const wrong of ['-1', '1.5', '"1"', 'null', '9007199254740992', 'true', '[1]']) {
      assert.is(parseLeaseRecord(withField(field, wrong)), undefined, `${field}=${wrong}`);
    }
  }
});

test('another version or another shape is no record', () => {
  for (const version of ['0', '2', '"1"', 'null'])
    assert.is(parseLeaseRecord(withField('version', version)), undefined);
  const text = formatLeaseRecord(record);
  for (const other of [
    '',
    'null',
    '1',
    '[]',
    '{}',
    `[${text}]`,
    text.slice(0, -3),
    text + text,
    '{"version":1}',
  ]) {
    assert.is(parseLeaseRecord(other), undefined, other);
  }
});

test('whatever the file holds, reading it never throws, and never names a process it should not', () => {
  forAll(1000, (random) => {
    const found = parseLeaseRecord(random.mutation(formatLeaseRecord(record)));
    if (found === undefined) return;
    assert.ok(Number.isSafeInteger(found.holder.pid) && found.holder.pid > 1);
    for (const name of found.entries)
      assert.match(name, new RegExp(`^pyxis_cache_u${found.uid}_[0-9a-f]{16}$`));
  });
});

test.run();
