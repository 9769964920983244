/** What makes an image one that the node mounts, decided from facts alone. */
import {
  formatMountedFacts,
  isBelowTrusted,
  isRefused,
  parseMountedFacts,
  refusalFor,
  whyChangeable,
  whyChangedByStock,
  type MountedFacts,
} from '../../../lib/core/mounted-facts.ts';
import { assert, suite } from '../../helpers/suite.ts';

const facts: MountedFacts = {
  ...{ image: '/images/a.sqsh', createdAtMs: 1, readyMs: 2, bytes: 3, inodes: 4, unpackedBytes: 5 },
  ...{ source: 'copy', bootId: 'boot' },
};

const test = suite('mounted facts');

test('are read as they were written, with and without a refusal', () => {
  for (const refusal of [undefined, { reason: 'it is so' }, { reason: 'no room', untilMs: 5 }]) {
    const all = refusal === undefined ? facts : { ...facts, refusal };
    assert.equal(parseMountedFacts(formatMountedFacts(all)), all);
  }
});

test('anything else is none', () => {
  for (const text of ['', '{', '[]', '{"version":2}', formatMountedFacts(facts).replace('"copy"', '"theft"')])
    assert.is(parseMountedFacts(text), undefined);
  const refused = formatMountedFacts({ ...facts, refusal: { reason: 'x' } });
  assert.is(parseMountedFacts(refused.replace('"x"', '1')), undefined);
});

test('a refusal for a failure that may pass holds for minutes, one for the image itself for ever', () => {
  const now = 1_000_000_000;
  assert.ok(isRefused(refusalFor('no room', now), now + 60_000));
  assert.not(isRefused(refusalFor('no room', now), now + 600_000));
  // A clock that was set back.
  assert.not(isRefused(refusalFor('no room', now), now - 600_000));
  assert.ok(isRefused({ reason: 'several owners' }, now * 2));
  assert.not(isRefused(undefined, now));
});

test('an image is trusted only below a directory, not beside it and not as itself', () => {
  const below = (path: string): boolean => isBelowTrusted(path, ['/images', '/lustre/site']);
  assert.equal(
    ['/images/a', '/lustre/site/b/c', '/images', '/images2/a', '/lustre/a', '/home/images/a'].map(below),
    [true, true, false, false, false, false],
  );
});

test('only root and trusted owners may change what is trusted', () => {
  assert.is(whyChangeable({ uid: 0, mode: 0o100644 }, []), undefined);
  assert.is(whyChangeable({ uid: 7, mode: 0o100644 }, [7]), undefined);
  assert.match(whyChangeable({ uid: 7, mode: 0o100644 }, [8]) ?? '', /^owned by uid 7/);
  assert.match(whyChangeable({ uid: 0, mode: 0o40775 }, []) ?? '', /^writable by its group, mode 0775$/);
  assert.match(whyChangeable({ uid: 0, mode: 0o41777 }, []) ?? '', /^writable by everybody, mode 1777$/);
  // Nobody can rename what is not theirs in /tmp.
  assert.is(whyChangeable({ uid: 0, mode: 0o41777 }, [], true), undefined);
  assert.match(whyChangeable({ uid: 0, mode: 0o40777 }, [], true) ?? '', /^writable by everybody/);
});

test('what find(1) prints of the first file that enroot would change is told', () => {
  assert.is(whyChangedByStock('\n'), undefined);
  assert.match(whyChangedByStock('f 0644 1000 0 /etc/a b\n') ?? '', /"\/etc\/a b" in it belongs to 1000:0/);
  assert.match(whyChangedByStock('f 04755 0 0 /bin/su\n') ?? '', /"\/bin\/su" in it has mode 04755/);
  assert.match(whyChangedByStock('c 0666 0 0 /dev/null\n') ?? '', /"\/dev\/null" in it is a device/);
});

test.run();
