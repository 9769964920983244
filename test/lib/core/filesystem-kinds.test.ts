/** filesystem-kinds.ts on the types and options that mountinfo shows. */
import { filesystemKind, mountOptions } from '../../../lib/core/filesystem-kinds.ts';
import { assert, suite } from '../../helpers/suite.ts';

const test = suite('filesystems');

test('are known by their type', () => {
  const kinds = {
    ext4: 'local',
    xfs: 'local',
    nfs4: 'network',
    lustre: 'network',
    gpfs: 'network',
    cifs: 'network',
    fuse: 'fuse',
    'fuse.sshfs': 'fuse',
    fuseblk: 'fuse',
    tmpfs: 'memory',
    overlay: 'stacked',
    fusion: 'unknown',
    newfs: 'unknown',
  };
  assert.equal(Object.fromEntries(Object.keys(kinds).map((type) => [type, filesystemKind(type)])), kinds);
});

test('have the options of the mount that is on top', () => {
  const mountinfo = `\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
30 22 259:1 / /raid rw,noexec - xfs /dev/a rw
31 30 259:2 / /raid rw,noatime - xfs /dev/b rw
32 22 259:3 / /a\\040b ro - xfs /dev/c rw
`;
  assert.equal(mountOptions(mountinfo, '/raid'), ['rw', 'noatime']);
  assert.equal(mountOptions(mountinfo, '/a b'), ['ro']);
  assert.equal(mountOptions(mountinfo, '/none'), []);
});

test.run();
