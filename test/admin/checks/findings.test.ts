/** findings.ts: what counts as well, and how it is shown. */
import { formatFindings, isWell, reporter } from '../../../admin/checks/findings.ts';
import { assert, suite } from '../../helpers/suite.ts';

const base = reporter('base');
const slurm = reporter('slurm.conf');

const verdict = suite('isWell()');

verdict('warnings do not count, what is bad or was not looked at does', () => {
  assert.ok(isWell([]));
  assert.ok(isWell([base.ok('a'), base.warn('b', 'c')]));
  assert.not(isWell([base.ok('a'), base.bad('b', 'c')]));
  assert.not(isWell([base.ok('a'), base.skip('b', 'c')]));
});

verdict.run();

const format = suite('formatFindings()');

format('a line each, aligned, the remedy below the text, a summary at the end', () => {
  assert.is(
    formatFindings([base.ok('is there'), slurm.bad('is wrong', 'mend it'), base.warn('is slow', 'wait')]),
    `\
ok    base        is there
bad   slurm.conf  is wrong
                  mend it
warn  base        is slow
                  wait
FAILED: 1 error, 1 warning.
`,
  );
});

format('says in one word when there is nothing to say', () => {
  assert.match(formatFindings([base.ok('a')]), /\nOK: no problem found\.\n$/);
  assert.match(formatFindings([base.warn('a', 'b')]), /\nOK: 1 warning\.\n$/);
  assert.match(formatFindings([base.skip('a', 'b')]), /\nFAILED: 1 not checked\.\n$/);
});

format('nothing that is found can end a line or move a cursor', () => {
  const [line] = formatFindings([base.ok('a\n  bad  base\u001b[2J\u202eb')]).split('\n');
  assert.is(line, 'ok    base  a bad  base?[2J?b');
});

format.run();
