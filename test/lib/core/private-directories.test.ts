/** private-directories.ts: what jobs do not see as the node does. */
import {
  directoriesOfSpankPlugin,
  hiddenBy,
  isTmpfsPlugin,
  polyinstantiatedDirectories,
  privateDirectories,
} from '../../../lib/core/private-directories.ts';
import { assert, suite } from '../../helpers/suite.ts';

const test = suite('private directories');
const usual = ['/tmp', '/dev/shm'];

test('job_container.conf names them by Dirs=, else they are /tmp and /dev/shm', () => {
  const at = (text: string | undefined, version: readonly [number, number] | undefined = [24, 5]): string[] =>
    privateDirectories(text, version);
  assert.equal(at(undefined), usual);
  assert.equal(at('AutoBasePath=true\nBasePath=/raid/jobs\n'), usual);
  assert.equal(at('BasePath=/raid/jobs Dirs=/tmp,/var/tmp Shared=true\n'), ['/tmp', '/var/tmp']);
  assert.equal(at('# Dirs=/x\nNodeName=a[1-4] basepath=/raid dirs="/scratch"\n'), ['/scratch']);
  assert.equal(at('NodeName=a BasePath=/r Dirs=/scratch\nNodeName=b BasePath=/r\n'), ['/scratch', ...usual]);
  assert.equal(at('defaults:\n  dirs: "/tmp,/raid"\n  base_path: /x\n'), ['/tmp', '/raid']);
  // 22.05 does not know the word.
  assert.equal(at('BasePath=/raid/jobs Dirs=/var/tmp\n', [22, 5]), usual);
  assert.equal(privateDirectories('BasePath=/raid/jobs Dirs=/var/tmp\n', undefined), ['/var/tmp']);
});

test('pam_namespace and SPANK plugins are read, too', () => {
  assert.equal(
    polyinstantiatedDirectories('# /x y\n/tmp /tmp-inst/ level root\n$HOME $HOME/i user\n\n/raid\n'),
    ['/tmp'],
  );
  assert.equal(
    directoriesOfSpankPlugin('private-tmpdir.so', ['base=/scratch', 'mount=/tmp', 'mount=/var/tmp']),
    ['/tmp', '/var/tmp'],
  );
  assert.equal(directoriesOfSpankPlugin('auto_tmpdir.so', []), usual);
  assert.equal(directoriesOfSpankPlugin('spank_pyxis.so', ['mount=/tmp']), []);
});

test('a path is hidden by what it lies in, and by nothing else', () => {
  assert.is(hiddenBy('/tmp/data', usual), '/tmp');
  assert.is(hiddenBy('/tmp', ['/tmp/']), '/tmp/');
  for (const path of ['/tmpx/data', '/raid/tmp', '/']) assert.is(hiddenBy(path, usual), undefined);
  assert.ok(isTmpfsPlugin('job_container/tmpfs') && isTmpfsPlugin('namespace/linux'));
  assert.not.ok(isTmpfsPlugin('job_container/none') || isTmpfsPlugin(undefined));
});

test.run();
