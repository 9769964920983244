/** job-state.ts: when a job is over, by squeue's words. */
import { findOverState } from '../../../lib/core/job-state.ts';
import { assert, suite } from '../../helpers/suite.ts';

const test = suite('findOverState()');

test('tells the state of a job that is over', () => {
  for (const state of ['COMPLETING', 'CANCELLED', 'TIMEOUT', 'REQUEUE_HOLD', 'NODE_FAIL', 'PREEMPTED'])
    assert.is(findOverState(`7 ${state}\n`, 7), state);
  assert.is(findOverState('  7   COMPLETING  \n', 7), 'COMPLETING');
});

test('is silent about all else', () => {
  for (const answer of [
    '7 RUNNING',
    '7 CONFIGURING',
    '7 SUSPENDED',
    '7 PENDING',
    '7 A_STATE_TO_COME',
    '7',
    '',
    'x',
  ])
    assert.is(findOverState(`${answer}\n`, 7), undefined, answer);
});

test('takes no other task of an array, and no other job, for the job', () => {
  assert.is(findOverState('17 CANCELLED\n70 CANCELLED\n7 RUNNING\n8 COMPLETING\n', 7), undefined);
  assert.is(findOverState('8 RUNNING\n7 CANCELLED\n', 7), 'CANCELLED');
});

test.run();
