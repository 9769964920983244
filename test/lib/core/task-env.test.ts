/** task-env.ts: lines as the TaskProlog must print them. */
import { parseSettings, requireSettings } from '../../../lib/core/settings.ts';
import { taskEnvironment } from '../../../lib/core/task-env.ts';
import { assert, suite } from '../../helpers/suite.ts';

const test = suite('taskEnvironment()');

test('points enroot at the directory of the user, read-only', () => {
  assert.is(
    taskEnvironment('/raid/data', 1000),
    'export ENROOT_DATA_PATH=/raid/data/1000\nexport ENROOT_ROOTFS_WRITABLE=n\n',
  );
});

test('every line is one that slurmd understands, whatever data path the settings let through', () => {
  const path = '/a.b/c_d-e/=@%+/0';
  const { basePath } = requireSettings(parseSettings(`container_cache_data_path=${path}`, 'x'));
  const text = taskEnvironment(basePath, 4_294_967_294);
  assert.ok(text.endsWith('\n'));
  for (const line of text.trimEnd().split('\n')) assert.match(line, /^export [A-Z_]+=[^\s"'`$\\]+$/);
});

test.run();
