/** mounting.ts: what the kernel makes of our calls, with a real squashfs file. */
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { errnoOf } from '../../../lib/system/errno.ts';
import {
  attachMount,
  hasWriter,
  letPass,
  makeView,
  mountImage,
  unmountAtOnce,
} from '../../../lib/system/mounting.ts';
import { loopDevicesOf, unlessImageMounts } from '../../helpers/image-mounts.ts';
import { alice, bob, command, enterPrivateMachine, machineRoot } from '../../helpers/private-machine.ts';
import { makeImage } from '../../helpers/squashfs-image.ts';
import { assert, suite } from '../../helpers/suite.ts';

enterPrivateMachine();

const test = suite('mounting images', { skip: unlessImageMounts() });

const tree = { 'etc/environment': 'A=1\n', 'bin/tool': 'x' };
const at = (): string => {
  const root = mkdtempSync(join(machineRoot, 'mounting-'));
  command('chmod', '0755', root);
  for (const name of ['image', 'view']) mkdirSync(join(root, name));
  return root;
};

/** Mounts an image, and closes the file before anybody looks. */
function mountAt(image: string, path: string): void {
  const file = openSync(image, 'r');
  const mounted = mountImage(file);
  closeSync(file);
  attachMount(mounted, path);
  closeSync(mounted);
}

const optionsOf = (path: string): string[] =>
  readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .map((line) => line.split(' '))
    .findLast((fields) => fields[4] === path)?.[5]
    ?.split(',') ?? [];

const asUser = (uid: number, script: string): string =>
  command('setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', 'sh', '-c', script);

test('a mounted image is read-only, without set-id bits and devices, and belongs to root', () => {
  const root = at();
  mountAt(makeImage(join(root, 'a.sqsh'), tree), join(root, 'image'));
  assert.is(readFileSync(join(root, 'image/etc/environment'), 'utf8'), 'A=1\n');
  assert.equal(
    ['ro', 'nosuid', 'nodev'].map((option) => optionsOf(join(root, 'image')).includes(option)),
    [true, true, true],
  );
  assert.throws(
    () => {
      writeFileSync(join(root, 'image/new'), '');
    },
    Error,
    /EROFS/,
  );
  unmountAtOnce(join(root, 'image'));
});

test('in a view the files are the user’s own, and nobody can write there', () => {
  const root = at();
  mountAt(makeImage(join(root, 'a.sqsh'), tree), join(root, 'image'));
  makeView(join(root, 'image'), join(root, 'view'), alice);
  const { uid, gid } = statSync(join(root, 'view/etc/environment'));
  assert.equal([uid, gid], [alice.uid, alice.gid]);
  assert.is(statSync(join(root, 'image/etc')).uid, 0);
  assert.throws(() => asUser(alice.uid, `: >${root}/view/etc/environment`), Error, /Read-only file system/);
  assert.throws(() => asUser(alice.uid, `chmod 0777 ${root}/view/etc`), Error, /Read-only file system/);
  for (const option of ['ro', 'nosuid', 'nodev'])
    assert.ok(optionsOf(join(root, 'view')).includes(option), option);
  unmountAtOnce(join(root, 'view'));
  unmountAtOnce(join(root, 'image'));
});

test('after the last unmount no loop device is left', () => {
  const root = at();
  mountAt(makeImage(join(root, 'a.sqsh'), tree), join(root, 'image'));
  makeView(join(root, 'image'), join(root, 'view'), alice);
  assert.is(loopDevicesOf(root).length, 1);
  unmountAtOnce(join(root, 'image'));
  assert.is(readFileSync(join(root, 'view/etc/environment'), 'utf8'), 'A=1\n');
  unmountAtOnce(join(root, 'view'));
  assert.equal(loopDevicesOf(root), []);
});

test('a mount that is put nowhere goes with its descriptor', () => {
  const root = at();
  const file = openSync(makeImage(join(root, 'a.sqsh'), tree), 'r');
  closeSync(mountImage(file));
  closeSync(file);
  assert.equal(loopDevicesOf(root), []);
});

test('what is no squashfs is refused, and leaves no loop device', () => {
  const root = at();
  const path = join(root, 'a.sqsh');
  writeFileSync(path, Buffer.alloc(65_536, 'hsqs'));
  const file = openSync(path, 'r');
  assert.throws(() => mountImage(file), Error, /^EINVAL: cannot mount the image/);
  closeSync(file);
  assert.equal(loopDevicesOf(root), []);
});

test('a squashfs that says it is longer than its file is refused', () => {
  const image = makeImage(join(at(), 'a.sqsh'), tree);
  const bytes = readFileSync(image);
  bytes.writeBigUInt64LE(BigInt(bytes.byteLength) * 1000n, 40);
  writeFileSync(image, bytes);
  const file = openSync(image, 'r');
  assert.throws(() => mountImage(file), Error, /EINVAL/);
  closeSync(file);
});

test('a filesystem that cannot be shown with other ids says so', () => {
  const root = at();
  command('mount', '-t', 'proc', 'proc', join(root, 'image'));
  let code: string | undefined;
  try {
    makeView(join(root, 'image'), join(root, 'view'), alice);
  } catch (error) {
    code = errnoOf(error);
  }
  assert.is(code, 'EINVAL');
});

test('a file that a process could write is told from one that nobody could', () => {
  const path = join(at(), 'file');
  writeFileSync(path, '');
  const reader = openSync(path, 'r');
  assert.not(hasWriter(reader));
  const writer = openSync(path, 'r+');
  assert.ok(hasWriter(reader));
  closeSync(writer);
  assert.not(hasWriter(reader));
  closeSync(reader);
});

test('through a directory of root only its user may pass, who can change nothing in it', () => {
  const root = at();
  const path = join(root, 'of-alice');
  mkdirSync(join(path, 'inside'), { recursive: true });
  command('chmod', '0700', path);
  const directory = openSync(path, 'r');
  letPass(directory, alice.uid);
  closeSync(directory);
  assert.is(asUser(alice.uid, `cd ${path}/inside && pwd`).trim(), `${path}/inside`);
  assert.throws(() => asUser(bob.uid, `cd ${path}/inside`), Error, /Permission denied|can't cd/);
  assert.throws(() => asUser(alice.uid, `ls ${path}`), Error, /Permission denied/);
  assert.throws(() => asUser(alice.uid, `mv ${path}/inside ${path}/other`), Error, /Permission denied/);
  assert.throws(() => asUser(alice.uid, `chmod 0777 ${path}`), Error, /not permitted/);
});

test.run();
