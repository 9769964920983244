/**
 * uvu's assertions, with a `throws` that checks the error's class (uvu's passes on any error) and
 * a `rejects` for promises (uvu has none). Tests reach both as `assert` of suite.ts.
 */
import { Assertion, match } from 'uvu/assert';

export * from 'uvu/assert';

export function describeError(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}

/** A class of errors, abstract or not, whatever its constructor takes. */
// eslint-disable-next-line @typescript-eslint/no-explicit-any -- a constructor's parameters are contravariant
type ErrorClass<Thrown extends Error> = abstract new (...parameters: any[]) => Thrown;

function check<Thrown extends Error>(
  error: unknown,
  expected: ErrorClass<Thrown>,
  message: RegExp | undefined,
): Thrown {
  if (!(error instanceof expected)) {
    throw new Assertion({
      message: `Expected a ${expected.name}, got: ${describeError(error)}`,
      generated: false,
      operator: 'throws',
      expects: expected.name,
      actual: error instanceof Error ? error.constructor.name : typeof error,
    });
  }
  if (message) match(error.message, message);
  return error;
}

function nothingThrown(expected: ErrorClass<Error>): never {
  throw new Assertion({
    message: `Expected a ${expected.name}, but nothing was thrown`,
    generated: false,
    operator: 'throws',
    expects: expected.name,
    actual: undefined,
  });
}

/** Asserts that `body` throws an `expected` whose message matches, and returns it. */
export function throws<Thrown extends Error>(
  body: () => unknown,
  expected: ErrorClass<Thrown>,
  message?: RegExp,
): Thrown {
  try {
    body();
  } catch (error) {
    return check(error, expected, message);
  }
  return nothingThrown(expected);
}

/**
 * Asserts that the promise, or that of `body`, rejects with an `expected` whose message matches, and returns
 * it.
 */
export async function rejects<Thrown extends Error>(
  body: Promise<unknown> | (() => Promise<unknown>),
  expected: ErrorClass<Thrown>,
  message?: RegExp,
): Promise<Thrown> {
  try {
    await (typeof body === 'function' ? body() : body);
  } catch (error) {
    return check(error, expected, message);
  }
  return nothingThrown(expected);
}
