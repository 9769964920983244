/** errno-names.ts: the table is complete, and of one mind with Node. */
import { getSystemErrorMap } from 'node:util';
import { errnoName, errnoNames } from '../../../lib/core/errno-names.ts';
import { describeError, faultCode } from '../../../lib/core/faults.ts';
import { errnoOf } from '../../../lib/system/errno.ts';
import { assert, suite } from '../../helpers/suite.ts';

const test = suite('errnoName()');

test('names each number as Node does, where Node has a name', () => {
  // From -4000 on they are Node's own.
  const ofNode = [...getSystemErrorMap()].filter(([errno]) => errno > -1000 && errno < 0);
  assert.ok(ofNode.length > 60);
  for (const [errno, [name]] of ofNode) assert.equal([errno, errnoName(errno)], [errno, name]);
});

test('names those that Node does not know', () => {
  assert.is(errnoName(-122), 'EDQUOT');
  assert.is(errnoName(117), 'EUCLEAN');
  assert.is(errnoName(133), 'EHWPOISON');
});

test('has no name for what is no error number', () => {
  for (const errno of [0, 41, 58, 134, -4095, NaN, 1.5]) assert.is(errnoName(errno), undefined);
});

test('lists each once', () => {
  assert.is(errnoNames.length, 131);
  assert.is(new Set(errnoNames).size, errnoNames.length);
});

/** What Node throws for a system call that failed so. */
function thrownBy(number: number): Error {
  const [code = `Unknown system error -${number}`, meaning = code] = getSystemErrorMap().get(-number) ?? [];
  return Object.assign(new Error(`${code}: ${meaning}, open '/x'`), {
    code,
    errno: -number,
    syscall: 'open',
  });
}

test('whatever system call fails, what we read and decide by has its name, and no number', () => {
  for (let number = 1; number <= 133; number++) {
    const name = errnoName(number);
    if (name === undefined) continue;
    assert.is(errnoOf(thrownBy(number)), name);
    const text = describeError(new Error('Cannot open', { cause: thrownBy(number) }));
    assert.not.match(text, /Unknown|-\d/);
    assert.ok(text.startsWith(`Cannot open: ${name}`), text);
  }
  assert.is(faultCode(thrownBy(122)), 'QUOTA_EXCEEDED');
  assert.is(describeError(thrownBy(122)), "EDQUOT, open '/x'");
});

test.run();
