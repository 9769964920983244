/** gc-plan.ts: what the collector may evict, decided without a disk or a clock. */
import {
  blocksUsedPercent,
  countUntil,
  fits,
  inodesUsedPercent,
  isCollectionDue,
  isGoalReached,
  keepReason,
  maxCacheBytes,
  planCollection,
  usedPercent,
  type CollectionPolicy,
  type EntryFacts,
  type Usage,
} from '../../../lib/core/gc-plan.ts';
import type { SpaceNeed } from '../../../lib/core/image.ts';
import { forAll } from '../../helpers/property.ts';
import { assert, suite } from '../../helpers/suite.ts';

const policy: CollectionPolicy = { gcHighPercent: 85, gcLowPercent: 80, gcMinAgeSeconds: 120 };
const nowMs = 1_700_000_000_000;
const minuteMs = 60_000;

let count = 0;

/** An entry that may go: 10 bytes, 10 inodes, used an hour ago. */
function entry(facts: Partial<EntryFacts> = {}): EntryFacts {
  count++;
  return {
    uid: 1000,
    name: `entry${String(count).padStart(6, '0')}`,
    usedAtMs: nowMs - 60 * minuteMs,
    leased: false,
    mounted: false,
    pinned: false,
    takesRoom: true,
    bytes: 10,
    inodes: 10,
    ...facts,
  };
}

/** A disk of 1000 bytes and 1000 inodes, none of them reserved. */
function disk(usedBytes: number, usedInodes = 0): Usage {
  return {
    totalBytes: 1000,
    freeBytes: 1000 - usedBytes,
    availableBytes: 1000 - usedBytes,
    totalInodes: 1000,
    freeInodes: 1000 - usedInodes,
  };
}
const full = disk(1000);

const percent = suite('usedPercent()');

percent('counts as df does: of what users can have', () => {
  // 50 of 1000 are reserved for root.
  const usage = { ...disk(0), freeBytes: 525, availableBytes: 475 };
  assert.is(blocksUsedPercent(usage), 50);
  assert.is(blocksUsedPercent({ ...usage, freeBytes: 50, availableBytes: 0 }), 100);
  assert.is(blocksUsedPercent({ ...usage, freeBytes: 1000, availableBytes: 950 }), 0);
});

percent('is that of blocks or of inodes, whichever is fuller', () => {
  assert.is(usedPercent(disk(300, 200)), 30);
  assert.is(usedPercent(disk(200, 300)), 30);
});

percent('inodes that are made as they are needed are never used up', () => {
  const btrfs = { ...disk(500), totalInodes: 0, freeInodes: 0 };
  assert.is(inodesUsedPercent(btrfs), 0);
  assert.is(usedPercent(btrfs), 50);
});

percent('a disk without a block is full', () => {
  assert.is(blocksUsedPercent({ ...disk(0), totalBytes: 0, freeBytes: 0, availableBytes: 0 }), 100);
});

percent.run();

const due = suite('isCollectionDue(), isGoalReached(), fits()');

due('a collection starts at the high watermark, of blocks or of inodes', () => {
  assert.ok(isCollectionDue(disk(850), policy));
  assert.ok(isCollectionDue(disk(0, 850), policy));
  assert.not.ok(isCollectionDue(disk(849, 849), policy));
});

due('it ends below the low watermark, of blocks and of inodes', () => {
  assert.ok(isGoalReached(disk(799, 799), policy));
  assert.not.ok(isGoalReached(disk(800), policy));
  assert.not.ok(isGoalReached(disk(0, 800), policy));
});

due('what is to be written and does not fit makes it due, below the watermark too', () => {
  assert.not.ok(isCollectionDue(disk(100, 100), policy, { bytes: 900, inodes: 900 }));
  assert.ok(isCollectionDue(disk(100, 100), policy, { bytes: 901, inodes: 0 }));
  assert.ok(isCollectionDue(disk(100, 100), policy, { bytes: 0, inodes: 901 }));
});

due('the blocks that are reserved for root fit nothing of a user', () => {
  assert.not.ok(fits({ ...disk(900), availableBytes: 50 }, { bytes: 51, inodes: 1 }));
});

due('any number of inodes fits where they are made as they are needed', () => {
  assert.ok(fits({ ...disk(0), totalInodes: 0, freeInodes: 0 }, { bytes: 1, inodes: 1_000_000 }));
});

due('at the extremes of the settings: 100 percent is full, 0 is never reached', () => {
  assert.ok(isCollectionDue(full, { ...policy, gcHighPercent: 100 }));
  assert.not.ok(isCollectionDue(disk(999), { ...policy, gcHighPercent: 100 }));
  assert.not.ok(isGoalReached(disk(0), { ...policy, gcLowPercent: 0 }));
});

due.run();

const keep = suite('keepReason()');

keep('an entry in use is kept, however old', () => {
  assert.is(keepReason(entry({ leased: true, usedAtMs: 0 }), policy, nowMs), 'leased');
  assert.is(keepReason(entry({ mounted: true, usedAtMs: 0 }), policy, nowMs), 'mounted');
  assert.is(keepReason(entry({ pinned: true, usedAtMs: 0 }), policy, nowMs), 'pinned');
});

keep('an entry is young until gc_min_age has passed', () => {
  const usedAgo = (ageMs: number): string | undefined =>
    keepReason(entry({ usedAtMs: nowMs - ageMs }), policy, nowMs);
  assert.is(usedAgo(0), 'young');
  assert.is(usedAgo(119_999), 'young');
  assert.is(usedAgo(120_000), undefined);
});

keep('with gc_min_age=0 nothing is young', () => {
  assert.is(keepReason(entry({ usedAtMs: nowMs }), { ...policy, gcMinAgeSeconds: 0 }, nowMs), undefined);
});

keep('an entry used in the future is not young, or it could never go', () => {
  assert.is(keepReason(entry({ usedAtMs: nowMs + 1 }), policy, nowMs), undefined);
  assert.is(keepReason(entry({ usedAtMs: nowMs * 10 }), policy, nowMs), undefined);
});

keep.run();

const plan = suite('planCollection()');

plan('keeps a leased entry, however old', () => {
  const leased = entry({ usedAtMs: 0, leased: true });
  const newer = entry({ usedAtMs: 2 });
  const planned = planCollection([leased, newer], full, policy, nowMs);
  assert.equal(planned.evict, [newer]);
  assert.equal(planned.kept, [{ entry: leased, reason: 'leased' }]);
});

plan('keeps what is mounted and what is young, and says so', () => {
  const mounted = entry({ mounted: true });
  const young = entry({ usedAtMs: nowMs - minuteMs });
  assert.equal(planCollection([young, mounted], full, policy, nowMs), {
    room: { bytes: 201, inodes: 0 },
    evict: [],
    reserve: [],
    kept: [
      { entry: young, reason: 'young' },
      { entry: mounted, reason: 'mounted' },
    ],
  });
});

plan('evicts the least recently used first, over all users', () => {
  const newest = entry({ uid: 1, usedAtMs: 3000 });
  const oldest = entry({ uid: 3, usedAtMs: 1000 });
  const middle = entry({ uid: 2, usedAtMs: 2000 });
  assert.equal(planCollection([newest, oldest, middle], full, policy, nowMs).evict, [oldest, middle, newest]);
});

plan('evicts as many as the low watermark asks for, and holds the rest in reserve', () => {
  // 850 of 1000 in use: 51 bytes must go, and each entry has 10.
  const entries = Array.from({ length: 10 }, (_, index) => entry({ usedAtMs: index }));
  const planned = planCollection(entries, disk(850), policy, nowMs);
  assert.equal(planned.evict, entries.slice(0, 6));
  assert.equal(planned.reserve, entries.slice(6));
});

plan('evicts for inodes while there are blocks enough', () => {
  const entries = [entry({ usedAtMs: 0, bytes: 0, inodes: 60 }), entry({ usedAtMs: 1 })];
  assert.equal(planCollection(entries, disk(100, 850), policy, nowMs).evict, entries.slice(0, 1));
});

plan('evicts nothing where the goal is reached already', () => {
  const planned = planCollection([entry(), entry()], disk(500, 500), policy, nowMs);
  assert.is(planned.evict.length, 0);
  assert.is(planned.reserve.length, 2);
});

plan('does its best where it cannot reach the goal', () => {
  const entries = [entry({ usedAtMs: 1 }), entry({ usedAtMs: 2 })];
  assert.equal(planCollection(entries, full, policy, nowMs).evict, entries);
  assert.equal(planCollection([], full, policy, nowMs).evict, []);
});

plan('at the same time goes by uid, then by name, in whatever order they were found', () => {
  const usedAtMs = 1000;
  const [a, b, c] = [
    entry({ uid: 9, name: 'b', usedAtMs }),
    entry({ uid: 10, name: 'a', usedAtMs }),
    entry({ uid: 10, name: 'b', usedAtMs }),
  ];
  for (const found of [
    [a, b, c],
    [c, b, a],
    [b, c, a],
  ]) {
    assert.equal(planCollection(found, full, policy, nowMs).evict, [a, b, c]);
  }
});

plan('an entry used in the future is the most recently used one, and goes last', () => {
  const future = entry({ usedAtMs: nowMs + minuteMs });
  const past = entry({ usedAtMs: nowMs - 10 * minuteMs });
  assert.equal(planCollection([future, past], full, policy, nowMs).evict, [past, future]);
});

plan('an entry that claims nothing frees nothing in the forecast, and the next goes too', () => {
  const silent = entry({ usedAtMs: 0, bytes: 0, inodes: 0 });
  const honest = entry({ usedAtMs: 1, bytes: 300 });
  const spared = entry({ usedAtMs: 2 });
  const planned = planCollection([silent, honest, spared], full, policy, nowMs);
  assert.equal(planned.evict, [silent, honest]);
  assert.equal(planned.reserve, [spared]);
});

plan(
  'an entry that claims more than there is does not go before its turn, and keeps none from the reserve',
  () => {
    const huge = entry({ usedAtMs: 5, bytes: Number.MAX_SAFE_INTEGER, inodes: Number.MAX_SAFE_INTEGER });
    const older = entry({ usedAtMs: 1 });
    const newer = entry({ usedAtMs: 9 });
    const planned = planCollection([huge, older, newer], full, policy, nowMs);
    assert.equal(planned.evict, [older, huge]);
    assert.equal(planned.reserve, [newer]);
  },
);

plan('a forged size makes the forecast no better than an empty disk', () => {
  const huge = entry({ usedAtMs: 1, bytes: Number.MAX_SAFE_INTEGER, inodes: Number.MAX_SAFE_INTEGER });
  const other = entry({ usedAtMs: 2 });
  const planned = planCollection([huge, other], full, { ...policy, gcLowPercent: 0 }, nowMs);
  assert.equal(planned.evict, [huge, other]);
});

plan('leaves out inodes where they are made as they are needed', () => {
  const btrfs = { ...disk(850), totalInodes: 0, freeInodes: 0 };
  const [first, second] = [entry({ usedAtMs: 1, bytes: 100 }), entry({ usedAtMs: 2 })];
  assert.equal(planCollection([first, second], btrfs, policy, nowMs).evict, [first]);
});

plan('evicts for what is to be written, too', () => {
  const entries = Array.from({ length: 10 }, (_, index) => entry({ usedAtMs: index, bytes: 50 }));
  const count = (need: SpaceNeed): number =>
    planCollection(entries, disk(850), policy, nowMs, need).evict.length;
  assert.is(count({ bytes: 200, inodes: 0 }), 2);
  assert.is(count({ bytes: 201, inodes: 0 }), 2);
  assert.is(count({ bytes: 251, inodes: 0 }), 3);
  assert.is(count({ bytes: 0, inodes: 1001 }), 10);
});

plan('tells the least room that reaches the goal', () => {
  forAll(500, (random) => {
    const [usedBytes, usedInodes] = [random.integer(0, 1000), random.integer(0, 1000)];
    const need = { bytes: random.integer(0, 1000), inodes: random.integer(0, 1000) };
    const lowPercent = random.integer(1, 99);
    const { room } = planCollection(
      [],
      disk(usedBytes, usedInodes),
      { ...policy, gcLowPercent: lowPercent },
      nowMs,
      need,
    );
    const isReached = ({ bytes, inodes }: SpaceNeed): boolean => {
      const usage = disk(usedBytes - bytes, usedInodes - inodes);
      return isGoalReached(usage, { ...policy, gcLowPercent: lowPercent }) && fits(usage, need);
    };
    assert.ok(room.bytes >= 0 && room.inodes >= 0);
    assert.ok(isReached(room));
    if (room.bytes > 0) assert.not.ok(isReached({ ...room, bytes: room.bytes - 1 }));
    if (room.inodes > 0) assert.not.ok(isReached({ ...room, inodes: room.inodes - 1 }));
  });
  const btrfs = { ...disk(850), totalInodes: 0, freeInodes: 0 };
  assert.equal(planCollection([], btrfs, policy, nowMs, { bytes: 0, inodes: 9 }).room, {
    bytes: 51,
    inodes: 0,
  });
});

plan('loses no entry, keeps what is in use, goes by age, and stops as soon as it may', () => {
  forAll(500, (random) => {
    const entries = Array.from({ length: random.integer(0, 12) }, () =>
      entry({
        uid: random.integer(0, 3),
        usedAtMs: nowMs - random.integer(-5, 5) * minuteMs,
        leased: random.integer(0, 4) === 0,
        mounted: random.integer(0, 4) === 0,
        pinned: random.integer(0, 4) === 0,
        bytes: random.pick([0, random.integer(0, 300), Number.MAX_SAFE_INTEGER]),
        inodes: random.pick([0, random.integer(0, 300), Number.MAX_SAFE_INTEGER]),
      }),
    );
    const usage = disk(random.integer(0, 1000), random.integer(0, 1000));
    const { evict, reserve, kept } = planCollection(entries, usage, policy, nowMs);
    const going = [...evict, ...reserve];

    assert.is(new Set([...going, ...kept.map((item) => item.entry)]).size, entries.length);
    assert.is(going.length + kept.length, entries.length);
    for (const candidate of going) assert.is(keepReason(candidate, policy, nowMs), undefined);
    for (const item of kept) assert.is(keepReason(item.entry, policy, nowMs), item.reason);
    for (const [index, later] of going.slice(1).entries())
      assert.ok(going[index]!.usedAtMs <= later.usedAtMs);

    const sum = (of: 'bytes' | 'inodes', parts: readonly EntryFacts[]): number =>
      parts.reduce((total, part) => total + Math.min(part[of], 1000), 0);
    const after = (parts: readonly EntryFacts[]): Usage =>
      disk(
        Math.max(0, 1000 - usage.freeBytes - sum('bytes', parts)),
        Math.max(0, 1000 - usage.freeInodes - sum('inodes', parts)),
      );
    if (reserve.length > 0) assert.ok(isGoalReached(after(evict), policy));
    if (evict.length > 0) assert.not.ok(isGoalReached(after(evict.slice(0, -1)), policy));
  });
});

plan.run();

const planned = suite('countUntil(), maxCacheBytes()');

const size = (bytes: number, inodes = 0): SpaceNeed => ({ bytes, inodes });

planned('as many go as are needed, and none if all of them are not enough', () => {
  const isEnough = (usage: Usage): boolean => isGoalReached(usage, policy);
  assert.is(countUntil(disk(799), [size(500)], isEnough), 0);
  assert.is(countUntil(disk(850), [size(10), size(41), size(99)], isEnough), 2);
  assert.is(countUntil(disk(850), [size(10), size(40)], isEnough), undefined);
  assert.is(countUntil(disk(100, 850), [size(500, 50), size(0, 1)], isEnough), 2);
  assert.is(countUntil(disk(900), [], isEnough), undefined);
});

planned('one that claims more than there is does not help where it is not what is lacking', () => {
  const isEnough = (usage: Usage): boolean => fits(usage, size(10, 500));
  assert.is(countUntil(disk(900, 900), [size(Number.MAX_SAFE_INTEGER)], isEnough), undefined);
});

planned('the limit of the cache is bytes, or a share of the whole disk, however full', () => {
  assert.is(maxCacheBytes(disk(900), policy), undefined);
  assert.is(maxCacheBytes(disk(900), { ...policy, maxSize: { bytes: 5 } }), 5);
  assert.is(maxCacheBytes(disk(900), { ...policy, maxSize: { percent: 12.5 } }), 125);
});

planned.run();
