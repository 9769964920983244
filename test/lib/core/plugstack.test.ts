/** plugstack.ts on files as in spank(7). */
import { parsePlugstack, pyxisOptions, type PyxisOptions } from '../../../lib/core/plugstack.ts';
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

test('an argument may be quoted', () => {
  assert.equal(
    parsePlugstack(`required "/usr/lib/my plugins/spank_pyxis.so" importer="/opt/an importer" 'a b'c\n`),
    [
      {
        kind: 'plugin',
        path: '/usr/lib/my plugins/spank_pyxis.so',
        parameters: ['importer=/opt/an importer', 'a bc'],
      },
    ],
  );
});

const plain: PyxisOptions = { importer: undefined, runtimePath: '/run/pyxis' };

for (const [what, lines, expected] of [
  ['nothing', '', plain],
  ['pyxis alone', 'required spank_pyxis.so container_scope=job', plain],
  ['another plugin', 'required renice.so runtime_path=/x', plain],
  [
    'the last of an argument',
    'optional /x/spank_pyxis.so importer=/a runtime_path=/r importer=/b',
    { importer: '/b', runtimePath: '/r' },
  ],
  ['an importer taken back', 'required /x/pyxis.so importer=/a importer=', plain],
  ['an importer of a renamed plugin', 'required /x/containers.so importer=/a', { ...plain, importer: '/a' }],
  [
    'two lines that agree',
    'required a/spank_pyxis.so importer=/a\noptional b/spank_pyxis.so importer=/a',
    { ...plain, importer: '/a' },
  ],
  ['two lines that do not', 'required spank_pyxis.so\noptional spank_pyxis.so importer=/a', undefined],
] as const) {
  test(`pyxis' options of ${what}`, () => {
    const plugins = parsePlugstack(lines).filter((line) => line.kind === 'plugin');
    assert.equal(pyxisOptions(plugins), expected);
  });
}

test.run();
