/** enroot-conf.ts on enroot.conf and the files of mounts.d. */
import { isOurMountsFile, mountsBefore, mountsPath, parseEnrootConf } from '../../../lib/core/enroot-conf.ts';
import { assert, suite } from '../../helpers/suite.ts';

const conf = suite('parseEnrootConf()');

conf('reads keys and values as written, with blanks or one = between', () => {
  assert.equal(
    parseEnrootConf(`\
#ENROOT_CACHE_PATH /off
ENROOT_DATA_PATH        /raid/data/$(id -u)
 ENROOT_RUNTIME_PATH = /run/enroot/user-$(id -u) \t
ENROOT_SQUASH_OPTIONS=-comp lzo -noD
ENROOT_TEMP_PATH
MELLANOX_VISIBLE_DEVICES all
enroot_data_path /x
`),
    [
      { key: 'ENROOT_DATA_PATH', value: '/raid/data/$(id -u)' },
      { key: 'ENROOT_RUNTIME_PATH', value: '/run/enroot/user-$(id -u)' },
      { key: 'ENROOT_SQUASH_OPTIONS', value: '-comp lzo -noD' },
    ],
  );
});

conf.run();

const mounts = suite('mounts.d');

mounts('our file holds our line and at most comments beside it', () => {
  assert.ok(isOurMountsFile('${CONTAINER_CACHE_FSTAB}\n'));
  assert.ok(isOurMountsFile('# of container-cache\n\n ${CONTAINER_CACHE_FSTAB}'));
  assert.not(isOurMountsFile(''));
  assert.not(isOurMountsFile('$CONTAINER_CACHE_FSTAB'));
  assert.not(isOurMountsFile('${CONTAINER_CACHE_FSTAB}\n/a /a none bind'));
});

mounts('what sorts before ours comes before ours', () => {
  const names = [
    '10-system.fstab',
    '00-a.fstab',
    'README',
    '.00.fstab',
    '0.fstab',
    '00-container-cache.fstab',
    '00-d.fstab',
  ];
  assert.equal(mountsBefore('00-container-cache.fstab', names), ['0.fstab', '00-a.fstab']);
});

mounts('a line puts a path into containers by itself or by a directory above it', () => {
  assert.ok(mountsPath('/a/taskprolog /a/taskprolog none x-create=file,bind', '/a/taskprolog'));
  assert.ok(mountsPath('/a /a/ none bind', '/a/taskprolog'));
  assert.not(mountsPath('/a/taskprolog /b none bind', '/a/taskprolog'));
  assert.not(mountsPath('# /a /a none bind', '/a/taskprolog'));
  assert.not(mountsPath('/a/task /a/task none bind', '/a/taskprolog'));
  assert.not(mountsPath('${VARIABLE}', '/a/taskprolog'));
});

mounts.run();
