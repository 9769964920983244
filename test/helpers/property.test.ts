/** The generator behind the property tests: a failure is reported, and can be had again by its seed. */
import process from 'node:process';
import { forAll, Random } from './property.ts';
import { assert, suite } from './suite.ts';

const test = suite('forAll()');

function numbersOf(random: Random): number[] {
  return Array.from({ length: 20 }, () => random.integer(-3, 3));
}

test('tries as many cases as it is told, each with other numbers', () => {
  const seen = new Set<string>();
  forAll(50, (random) => seen.add(String(numbersOf(random))));
  assert.is(seen.size, 50);
});

test('numbers reach both ends of their range and never leave it', () => {
  const numbers = new Set<number>();
  forAll(50, (random) => numbersOf(random).forEach((number) => numbers.add(number)));
  assert.equal(
    [...numbers].sort((a, b) => a - b),
    [-3, -2, -1, 0, 1, 2, 3],
  );
});

test('a case that fails is named by a seed that brings it back', () => {
  let failing: number[] = [];
  const error = assert.throws(
    () =>
      forAll(1000, (random) => {
        failing = numbersOf(random);
        if (failing[0] === 2) throw new RangeError('two');
      }),
    Error,
    /CONTAINER_CACHE_TEST_SEED=\d+: RangeError: two/,
  );
  assert.instance(error.cause, RangeError);
  const seed = /SEED=(\d+)/.exec(error.message)?.[1];
  assert.equal(numbersOf(new Random(Number(seed))), failing);
  const before = process.env['CONTAINER_CACHE_TEST_SEED'];
  process.env['CONTAINER_CACHE_TEST_SEED'] = seed;
  try {
    let first: number[] | undefined;
    forAll(3, (random) => (first ??= numbersOf(random)));
    assert.equal(first, failing);
  } finally {
    if (before === undefined) delete process.env['CONTAINER_CACHE_TEST_SEED'];
    else process.env['CONTAINER_CACHE_TEST_SEED'] = before;
  }
});

test('a mutation differs from its text, nearly always', () => {
  let same = 0;
  forAll(200, (random) => {
    if (random.mutation('{"version":1}') === '{"version":1}') same++;
  });
  assert.ok(same < 40, `${same} of 200 are the same`);
});

test.run();
