/** entry-metadata.ts: a claim of a user, read without trust. */
import {
  formatEntryMetadata,
  longestEntryMetadataBytes,
  parseEntryMetadata,
  type EntryMetadata,
} from '../../../lib/core/entry-metadata.ts';
import { forAll } from '../../helpers/property.ts';
import { assert, suite } from '../../helpers/suite.ts';

const metadata: EntryMetadata = {
  image: '/x/y.sqsh',
  createdAtMs: 1_700_000_000_000,
  unpackMs: 2500,
  bytes: 7_200_000_000,
  inodes: 263_134,
  bootId: '5a0c9a5e-0000-4000-8000-000000000000',
};

const test = suite('entry metadata');

test('is one line of JSON', () => {
  assert.is(
    formatEntryMetadata(metadata),
    '{"version":1,"image":"/x/y.sqsh","createdAtMs":1700000000000,"unpackMs":2500,"bytes":7200000000,"inodes":263134,"bootId":"5a0c9a5e-0000-4000-8000-000000000000"}\n',
  );
});

test('reads back what was written, whatever the image is called', () => {
  forAll(300, (random) => {
    const written = {
      image: random.hostileText(100),
      createdAtMs: random.integer(0, 2 ** 42),
      unpackMs: random.integer(0, 2 ** 31),
      bytes: random.pick([0, random.integer(0, 2 ** 50), Number.MAX_SAFE_INTEGER]),
      inodes: random.integer(0, 2 ** 32),
      bootId: random.pick(['', 'x', undefined]),
    };
    const text = formatEntryMetadata(written);
    assert.is(text.indexOf('\n'), text.length - 1);
    assert.equal(parseEntryMetadata(text), written);
  });
});

test('the longest image path that a job can have fits into what is read', () => {
  const longest = formatEntryMetadata({ ...metadata, image: `/${'\u0001'.repeat(4094)}` });
  assert.ok(Buffer.byteLength(longest) <= longestEntryMetadataBytes);
});

test('a key that is not ours is not taken over', () => {
  const text = JSON.stringify({ version: 1, ...metadata, usedAtMs: 1, leased: true, __proto__: { x: 1 } });
  assert.equal(parseEntryMetadata(text), metadata);
});

test('an amount is a whole number, not negative, that arithmetic keeps exact', () => {
  for (const key of ['createdAtMs', 'unpackMs', 'bytes', 'inodes']) {
    for (const wrong of ['-1', '1.5', '1e400', '9007199254740992', '"1"', 'null', '[1]', '{}', 'true']) {
      const text = JSON.stringify({ version: 1, ...metadata, [key]: '@' }).replace('"@"', wrong);
      assert.is(parseEntryMetadata(text), undefined, text);
    }
    const { [key as 'bytes']: _, ...missing } = metadata;
    assert.is(parseEntryMetadata(JSON.stringify({ version: 1, ...missing })), undefined);
  }
});

test('another version, another kind of image or another shape is no metadata', () => {
  for (const version of [0, 2, '1', null, undefined]) {
    assert.is(parseEntryMetadata(JSON.stringify({ ...metadata, version })), undefined);
  }
  for (const image of [1, null, undefined, ['/x']]) {
    assert.is(parseEntryMetadata(JSON.stringify({ version: 1, ...metadata, image })), undefined);
  }
  const text = formatEntryMetadata(metadata);
  for (const other of [
    '',
    '\n',
    'null',
    '1',
    '"x"',
    '[]',
    '{}',
    `[${text}]`,
    text.slice(0, -3),
    text + text,
  ]) {
    assert.is(parseEntryMetadata(other), undefined, other);
  }
  assert.is(parseEntryMetadata('['.repeat(longestEntryMetadataBytes)), undefined);
});

test('whatever the file holds, reading it never throws', () => {
  forAll(1000, (random) => {
    const found = parseEntryMetadata(random.mutation(formatEntryMetadata(metadata)));
    if (found === undefined) return;
    for (const amount of [found.createdAtMs, found.unpackMs, found.bytes, found.inodes]) {
      assert.ok(Number.isSafeInteger(amount) && amount >= 0);
    }
  });
});

test.run();
