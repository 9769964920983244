/** plugstack.ts on files as in spank(7). */
import { parsePlugstack } from '../../../lib/core/plugstack.ts';
import { assert, suite } from '../../helpers/suite.ts';

const test = suite('parsePlugstack()');

test('reads plugins with their arguments, and includes', () => {
  assert.equal(
    parsePlugstack(`\
# required /off.so
required /usr/lib/slurm/spank_pyxis.so container_scope=job  use_enroot_load=1 # why
Optional renice.so

include /etc/slurm/plugstack.conf.d/*
`),
    [
      {
        kind: 'plugin',
        path: '/usr/lib/slurm/spank_pyxis.so',
        parameters: ['container_scope=job', 'use_enroot_load=1'],
      },
      { kind: 'plugin', path: 'renice.so', parameters: [] },
      { kind: 'include', pattern: '/etc/slurm/plugstack.conf.d/*' },
    ],
  );
});

test('passes over what is neither', () => {
  assert.equal(parsePlugstack('required\nloaded /x.so\n'), []);
});

test.run();
