/** faults.ts: whose problem a failure is, and how it is told in one line. */
import { errnoNames } from '../../../lib/core/errno-names.ts';
import {
  BeneathError,
  describeError,
  faultCode,
  isFaultCode,
  isFaultOfNode,
  JobFault,
  NodeFault,
} from '../../../lib/core/faults.ts';
import { assert, suite } from '../../helpers/suite.ts';

const codes = suite('faultCode()');

codes('is the code that a fault was made with', () => {
  assert.is(faultCode(new JobFault('NOT_SQUASHFS', 'x')), 'NOT_SQUASHFS');
  assert.is(faultCode(new NodeFault('BASE_UNSAFE', 'x')), 'BASE_UNSAFE');
});

codes('is BUG for whatever else is thrown', () => {
  for (const thrown of [new Error('x'), new TypeError('x'), 'x', 0, null, undefined, { code: 'NO_SPACE' }]) {
    assert.is(faultCode(thrown), 'BUG');
  }
  // What a failed system call carries is no code of ours.
  assert.is(faultCode(Object.assign(new Error('x'), { code: 'ENOENT' })), 'BUG');
});

codes("is the job's, and drains no node, for whatever a user can use up", () => {
  for (const [errno, code] of [
    ['ENOSPC', 'NO_SPACE'],
    ['EDQUOT', 'QUOTA_EXCEEDED'],
    ['EAGAIN', 'NO_RESOURCES'],
    ['ENOMEM', 'NO_RESOURCES'],
    ['EMFILE', 'NO_RESOURCES'],
    ['ENFILE', 'NO_RESOURCES'],
  ] as const) {
    const cause = Object.assign(new Error('x'), { code: errno });
    for (const error of [
      cause,
      new Error('y', { cause }),
      new NodeFault('LEASE_FAILED', 'y', { cause }),
      new NodeFault('TOOL_MISSING', 'y', { cause: new Error('z', { cause }) }),
    ])
      assert.equal([faultCode(error), isFaultOfNode(error)], [code, false]);
    assert.is(faultCode(new JobFault('BAD_JOB', 'y', { cause })), 'BAD_JOB');
  }
  for (const errno of ['EROFS', 'EIO', 'ENOENT', 'EACCES']) {
    const cause = Object.assign(new Error('x'), { code: errno });
    assert.ok(isFaultOfNode(new NodeFault('USER_DIRECTORY', 'y', { cause })));
    // Whoever is at fault is found out where no user is in the way (base-fault.ts).
    assert.not(isFaultOfNode(cause));
  }
});

codes("is the user's below their directory, with whichever error number", () => {
  for (const code of [...errnoNames, undefined]) {
    const cause = Object.assign(new Error('x'), { code });
    for (const error of [
      new BeneathError('y', { cause }),
      new Error('z', { cause: new BeneathError('y', { cause }) }),
    ]) {
      assert.not(isFaultOfNode(error), code);
      assert.ok(isFaultCode(faultCode(error)) && faultCode(error) !== 'BUG', code);
    }
  }
});

codes('a failure that we did not think of drains no node: a user may have found it', () => {
  for (const thrown of [
    new TypeError('x'),
    new RangeError('y'),
    Object.assign(new Error('z'), { code: 'EINVAL' }),
    'w',
  ])
    assert.not(isFaultOfNode(thrown));
});

codes('a fault of the job is none of the node, and the other way round', () => {
  assert.not.instance(new JobFault('BAD_JOB', 'x'), NodeFault);
  assert.not.instance(new NodeFault('BAD_CONFIG', 'x'), JobFault);
  assert.instance(new JobFault('BAD_JOB', 'x'), Error);
});

codes('a fault keeps its message, its class name and its cause', () => {
  const cause = new Error('EACCES');
  const fault = new NodeFault('BASE_UNSAFE', 'Cannot use "/raid"', { cause });
  assert.is(fault.message, 'Cannot use "/raid"');
  assert.is(fault.name, 'NodeFault');
  assert.is(fault.cause, cause);
  assert.is(String(new JobFault('BAD_JOB', 'x')), 'JobFault: x');
});

codes.run();

const describe = suite('describeError()');

describe('names an error and its causes, outermost first', () => {
  const inner = new Error('EIO: i/o error, read', { cause: 'the disk is gone' });
  const outer = new JobFault('IMAGE_UNREADABLE', 'Cannot read "/x"', { cause: inner });
  assert.is(describeError(outer), 'Cannot read "/x": EIO: i/o error, read: the disk is gone');
});

describe('ends where an error is its own cause', () => {
  const error = new Error('round');
  error.cause = error;
  assert.is(describeError(error), 'round');
});

describe('says nothing twice', () => {
  const cause = new Error('EIO: i/o error, read');
  const middle = new Error(`Cannot read "/x": ${cause.message}`, { cause });
  assert.is(
    describeError(new Error('Cannot unpack', { cause: middle })),
    'Cannot unpack: Cannot read "/x": EIO: i/o error, read',
  );
  assert.is(describeError(new Error(cause.message, { cause })), cause.message);
});

describe('has something to say about whatever is thrown', () => {
  assert.is(describeError('text'), 'text');
  assert.is(describeError(42), 'unknown error');
  assert.is(describeError({ message: 'not an Error' }), 'unknown error');
  assert.is(describeError(undefined), '');
  assert.is(describeError(new Error('x', { cause: null })), 'x');
  assert.is(describeError(new Error('x', { cause: { toString: undefined } })), 'x: unknown error');
});

describe.run();
