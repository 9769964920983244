/** trusted-file.ts: whose files are opened, and what lies on the way to them. */
import {
  chmodSync,
  chownSync,
  closeSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  renameSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { openTrustedFile } from '../../../lib/system/trusted-file.ts';
import { mountSquashfuse, unlessSquashfuse } from '../../helpers/filesystem.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  machineRoot,
  unlessPrivateMachine,
} from '../../helpers/private-machine.ts';
import { makeImage } from '../../helpers/squashfs-image.ts';
import { assert, suite } from '../../helpers/suite.ts';

enterPrivateMachine();

const test = suite('openTrustedFile()', { skip: unlessPrivateMachine });

/** A file of root three directories deep. */
function scene(): { readonly root: string; readonly directory: string; readonly path: string } {
  const root = mkdtempSync(join(machineRoot, 'trusted-'));
  const directory = join(root, 'images/site');
  mkdirSync(directory, { recursive: true });
  for (const one of [root, join(root, 'images'), directory]) chmodSync(one, 0o755);
  const path = join(directory, 'a.sqsh');
  writeFileSync(path, 'image', { mode: 0o644 });
  return { root, directory, path };
}

const whyNot = (path: string, owners: readonly number[] = []): string => {
  try {
    closeSync(openTrustedFile(path, owners).fd);
    return 'trusted';
  } catch (error) {
    return (error as Error).message;
  }
};

test('a file of root below directories of root is opened', () => {
  const { path } = scene();
  const { fd, stats } = openTrustedFile(path, []);
  closeSync(fd);
  assert.is(Number(stats.size), 5);
});

test('whoever else could write the file or rename a directory on the way is told', () => {
  const groupOfFile = scene();
  chmodSync(groupOfFile.path, 0o664);
  assert.match(whyNot(groupOfFile.path), /a\.sqsh" is writable by its group/);
  const groupOfDirectory = scene();
  chmodSync(groupOfDirectory.directory, 0o775);
  assert.match(whyNot(groupOfDirectory.path), /site" is writable by its group/);
  const above = scene();
  chmodSync(join(above.root, 'images'), 0o777);
  assert.match(whyNot(above.path), /images" is writable by everybody/);
  chmodSync(join(above.root, 'images'), 0o1777);
  assert.is(whyNot(above.path), 'trusted');
  chmodSync(above.directory, 0o1777);
  assert.match(whyNot(above.path), /site" is writable by everybody/);
  const owned = scene();
  chownSync(owned.directory, alice.uid, alice.gid);
  assert.match(
    whyNot(owned.path),
    new RegExp(`site" is owned by uid ${alice.uid}, who is not in trusted_owners`),
  );
});

test('a trusted owner may own the file and the directories, and nobody else', () => {
  const { directory, path } = scene();
  for (const one of [directory, path]) chownSync(one, alice.uid, alice.gid);
  assert.is(whyNot(path, [alice.uid]), 'trusted');
  assert.match(whyNot(path, [bob.uid]), /owned by uid/);
});

test('an access list that lets somebody write shows', () => {
  const { path } = scene();
  // acl(5) as it is stored: owner rw, a user rw, group r, mask rw, others r.
  const entries = [
    [1, 6, -1],
    [2, 6, bob.uid],
    [4, 4, -1],
    [16, 6, -1],
    [32, 4, -1],
  ];
  const bytes = Buffer.alloc(4 + 8 * entries.length);
  bytes.writeUInt32LE(2, 0);
  entries.forEach(([tag = 0, permissions = 0, id = 0], index) => {
    bytes.writeUInt16LE(tag, 4 + 8 * index);
    bytes.writeUInt16LE(permissions, 6 + 8 * index);
    bytes.writeInt32LE(id, 8 + 8 * index);
  });
  command('setfattr', '--name=system.posix_acl_access', `--value=0x${bytes.toString('hex')}`, path);
  command(
    'setpriv',
    `--reuid=${bob.uid}`,
    `--regid=${bob.gid}`,
    '--clear-groups',
    'sh',
    '-c',
    `echo more >>${path}`,
  );
  assert.match(whyNot(path), /a\.sqsh" is writable by its group, mode 0664/);
});

test('no symlink is followed, wherever it leads', () => {
  const { root, directory, path } = scene();
  symlinkSync(path, join(directory, 'link.sqsh'));
  symlinkSync(directory, join(root, 'images/linked'));
  assert.match(whyNot(join(directory, 'link.sqsh')), /link\.sqsh" is a symlink/);
  assert.match(whyNot(join(root, 'images/linked/a.sqsh')), /linked" is a symlink/);
});

test('a directory, a FIFO and a path with dots are refused', () => {
  const { directory } = scene();
  command('mkfifo', join(directory, 'fifo'));
  chmodSync(join(directory, 'fifo'), 0o644);
  assert.match(whyNot(directory), /no regular file/);
  assert.match(whyNot(join(directory, 'fifo')), /no regular file/);
  assert.match(whyNot(`${directory}/../site/a.sqsh`), /not a real path/);
});

test('a file that its former owner still has open for writing is refused', () => {
  const { path } = scene();
  chownSync(path, alice.uid, alice.gid);
  const writer = openSync(path, 'r+');
  chownSync(path, 0, 0);
  assert.match(whyNot(path), /open for writing/);
  closeSync(writer);
  assert.is(whyNot(path), 'trusted');
});

test('a hard link that a user has elsewhere gives no right to write', () => {
  const { root, path } = scene();
  const home = join(root, 'home');
  mkdirSync(home);
  chownSync(home, alice.uid, alice.gid);
  linkSync(path, join(home, 'a.sqsh'));
  assert.is(whyNot(path), 'trusted');
  assert.match(whyNot(join(home, 'a.sqsh')), /home" is owned by uid/);
});

test('what is opened is what was looked at, whatever is renamed meanwhile', () => {
  const { directory, path } = scene();
  const { fd, stats } = openTrustedFile(path, []);
  renameSync(path, join(directory, 'b.sqsh'));
  writeFileSync(path, 'another');
  assert.is(command('cat', `/proc/${process.pid}/fd/${fd}`), 'image');
  assert.is(Number(stats.size), 5);
  closeSync(fd);
});

test.unless(unlessSquashfuse(), 'a file on a FUSE is refused, although it looks like root’s', async () => {
  const image = makeImage(join(scene().directory, 'fuse.sqsh'), { 'a.sqsh': 'image' });
  await using fuse = await mountSquashfuse(image);
  assert.match(whyNot(join(fuse.path, 'a.sqsh')), /\(FUSE\)/);
});

test.run();
