/** self.ts under the bare runtime; as an executable it is test/build/executable.test.ts' matter. */
import { spawnSync } from 'node:child_process';
import process from 'node:process';
import { selfCommand } from '../../../lib/system/self.ts';
import { assert, suite } from '../../helpers/suite.ts';

const test = suite('selfCommand()');

test('starts this very program', () => {
  const { file, args } = selfCommand();
  assert.is(file, process.execPath);
  const { status, stdout } = spawnSync(file, [...args, '--help'], { encoding: 'utf8' });
  assert.is(status, 0);
  assert.match(stdout, /container-cache/);
});

test.run();
