/** errno.ts on system calls that really fail. */
import { readFileSync, rmdirSync } from 'node:fs';
import { errnoOf, isGone, unlessErrno } from '../../../lib/system/errno.ts';
import { assert, suite } from '../../helpers/suite.ts';

const test = suite('errno');

function thrownBy(action: () => unknown): unknown {
  try {
    action();
  } catch (error) {
    return error;
  }
  return undefined;
}

test('a failed system call tells its number by name', () => {
  assert.is(errnoOf(thrownBy(() => readFileSync('/nonexistent/x'))), 'ENOENT');
  assert.is(errnoOf(thrownBy(() => readFileSync('/etc/passwd/x'))), 'ENOTDIR');
  assert.is(errnoOf(thrownBy(() => readFileSync('/'))), 'EISDIR');
});

test('what is no failed system call has none', () => {
  for (const thrown of [new Error('ENOENT'), 'ENOENT', null, undefined, 2, { code: 'ENOENT' }]) {
    assert.is(errnoOf(thrown), undefined);
  }
  assert.is(errnoOf(Object.assign(new Error('x'), { code: 2 })), undefined);
});

test('a failure that was expected gives undefined, any other is thrown on', () => {
  assert.is(
    unlessErrno(isGone, () => readFileSync('/nonexistent')),
    undefined,
  );
  assert.is(
    unlessErrno(isGone, () => readFileSync('/etc/passwd/x')),
    undefined,
  );
  const error = assert.throws(() => unlessErrno(isGone, () => rmdirSync('/')), Error);
  assert.not.ok(['ENOENT', 'ENOTDIR'].includes(errnoOf(error) ?? ''));
  const noErrno = (): never => {
    throw new RangeError('no errno');
  };
  assert.throws(() => unlessErrno(isGone, noErrno), RangeError);
});

test('what succeeds is handed on', () => {
  assert.is(
    unlessErrno(isGone, () => 7),
    7,
  );
});

test.run();
