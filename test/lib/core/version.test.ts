/** version.ts on what programs say of themselves. */
import { isAtLeast, parseVersion } from '../../../lib/core/version.ts';
import { assert, suite } from '../../helpers/suite.ts';

const test = suite('versions');

test('are found in the words around them', () => {
  assert.equal(parseVersion('slurm-wlm 22.05.8\n'), [22, 5, 8]);
  assert.equal(parseVersion('slurm 24.11.0-0rc1'), [24, 11, 0]);
  assert.equal(parseVersion('6.18.44-generic'), [6, 18, 44]);
  assert.is(parseVersion('slurm'), undefined);
});

test('compare by number, and missing parts are 0', () => {
  assert.ok(isAtLeast([24, 11], [24, 11]));
  assert.ok(isAtLeast([24, 11, 1], [24, 11]));
  assert.ok(isAtLeast([25, 5], [24, 11]));
  assert.ok(isAtLeast([5, 11], [5, 11, 0]));
  assert.not(isAtLeast([24, 5, 99], [24, 11]));
  assert.not(isAtLeast([5, 10], [5, 11]));
});

test.run();
