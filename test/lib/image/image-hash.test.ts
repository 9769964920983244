/** image-hash.ts: another image, another hash; the same image, the same hash, from version to version. */
import { superblockBytes, type SquashfsFacts } from '../../../lib/core/image.ts';
import {
  hashContent,
  hashDigest,
  hashFingerprint,
  hashIdentity,
  hashReference,
} from '../../../lib/image/image-hash.ts';
import { assert, suite } from '../../helpers/suite.ts';

const digest = `sha256:${'0123456789abcdef'.repeat(4)}`;

/** 1000 inodes, version 4.0, 500,000 bytes. */
function superblock(): Buffer {
  const bytes = Buffer.alloc(superblockBytes);
  bytes.write('hsqs', 0, 'latin1');
  bytes.writeUInt32LE(1000, 4);
  bytes.writeUInt16LE(0xc0, 24);
  bytes.writeUInt16LE(4, 28);
  bytes.writeBigUInt64LE(500_000n, 40);
  return bytes;
}

const facts = (more: Partial<SquashfsFacts> = {}): SquashfsFacts => ({
  realPath: '/x/y.sqsh',
  sizeBytes: 500_000,
  modifiedAt: '1700000000.123456789',
  changedAt: '1700000001.5',
  superblock: superblock(),
  ...more,
});

const test = suite('image hash');

test('is 16 lower-case hex digits, whatever is hashed', () => {
  const hashes = [hashIdentity(facts()), hashFingerprint(facts()), hashContent('ab'.repeat(32))];
  for (const hash of [...hashes, hashDigest(digest), hashReference('docker://x#y:z')]) {
    assert.match(hash, /^[0-9a-f]{16}$/);
  }
});

test('stays the same between versions of this program, or every entry would be made anew', () => {
  // By sha256sum(1), of `6:digest71:sha256:0123…` and so on.
  assert.is(hashDigest(digest), '28bba689e7fff146');
  assert.is(hashReference('docker://registry-1.docker.io#library/ubuntu:latest'), '84e836c78c0183a8');
  assert.is(hashIdentity(facts()), '83043e564cd5ba29');
  assert.is(hashFingerprint(facts()), '99fa03cb0fda807e');
  assert.is(hashContent('ab'.repeat(32)), 'f6898465b54e8146');
});

test('of a file changes with each of what it is made of', () => {
  const changed: Partial<SquashfsFacts>[] = [
    { realPath: '/x/y.sqsh2' },
    { sizeBytes: 500_001 },
    { modifiedAt: '1700000000.123456788' },
    { modifiedAt: '1700000000.12345678' },
    { changedAt: '1700000001.6' },
  ];
  for (const more of changed)
    assert.is(hashFingerprint(facts(more)) === hashFingerprint(facts()), more.sizeBytes === undefined);
  const all = [facts(), ...changed.map((more) => facts(more))];
  for (let position = 0; position < superblockBytes; position++) {
    const bytes = superblock();
    bytes[position]! ^= 1;
    all.push(facts({ superblock: bytes }));
  }
  assert.is(new Set(all.map(hashIdentity)).size, all.length);
  assert.is(new Set(all.map(hashFingerprint)).size, all.length - changed.length + 1);
  assert.is(hashIdentity(facts()), hashIdentity(facts()));
});

test('does not let what stands side by side run together', () => {
  const one = facts({ realPath: '/x1', sizeBytes: 500_000 });
  const other = facts({ realPath: '/x', sizeBytes: 1_500_000 });
  assert.is.not(hashIdentity(one), hashIdentity(other));
  assert.is.not(
    hashIdentity(facts({ realPath: '/x6:500000' })),
    hashIdentity(facts({ realPath: '/x', modifiedAt: '6:500000' })),
  );
});

test('of a digest and of a reference with the same text differ', () => {
  assert.is.not(hashDigest('x'), hashReference('x'));
});

test.run();
