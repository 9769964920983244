/** mountinfo.ts on lines as the kernel writes them, and on lines as a user would. */
import {
  locationOf,
  missingMounts,
  mountOf,
  mountPointsBelow,
  namesInUse,
  parseMountinfo,
  type Mount,
} from '../../../lib/core/mountinfo.ts';
import { forAll } from '../../helpers/property.ts';
import { assert, suite } from '../../helpers/suite.ts';

const entryA = '.pyxis_cache_u1000_aaaaaaaaaaaaaaaa';
const entryB = '.pyxis_cache_u1000_bbbbbbbbbbbbbbbb';

/** A node: root, a data disk, and what is usual besides. */
const node = `\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
23 22 0:21 / /proc rw,nosuid - proc proc rw
24 22 0:22 / /run rw,nosuid shared:5 master:2 propagate_from:1 - tmpfs tmpfs rw,size=100k
30 22 259:1 / /raid rw,noatime shared:9 - xfs /dev/nvme0n1 rw,attr2,inode64
31 22 259:1 /sub/data /data rw - xfs /dev/nvme0n1 rw,attr2,inode64
`;

const parse = suite('parseMountinfo()');

parse('reads device, root, mount point, filesystem and its options', () => {
  assert.equal(parseMountinfo(node)[0], {
    device: '254:0',
    root: '/',
    mountPoint: '/',
    filesystem: 'ext4',
    superOptions: 'rw,errors=remount-ro',
  });
  assert.is(parseMountinfo(node).length, 5);
});

parse('any number of optional fields may stand before the dash, none included', () => {
  assert.equal(
    parseMountinfo(node).map((mount) => mount.filesystem),
    ['ext4', 'proc', 'tmpfs', 'xfs', 'xfs'],
  );
});

parse('blanks, tabs, newlines and backslashes in names are written in octal', () => {
  const [mount] = parseMountinfo('1 2 8:1 /a\\040b\\134c /m\\011n\\012o\\040-\\040p rw - ext4 /dev/x rw\n');
  assert.is(mount?.root, '/a b\\c');
  assert.is(mount?.mountPoint, '/m\tn\no - p');
});

parse('an escaped backslash does not begin another escape', () => {
  const [mount] = parseMountinfo('1 2 8:1 / /a\\134040b rw - ext4 /dev/x rw\n');
  assert.is(mount?.mountPoint, '/a\\040b');
});

parse('an empty source and options with blanks in them are kept apart', () => {
  const [mount] = parseMountinfo('1 2 0:50 / /m rw - fuse.x  rw,user_id=0\n');
  assert.is(mount?.filesystem, 'fuse.x');
  assert.is(mount?.superOptions, 'rw,user_id=0');
});

parse('lines of another form are passed over', () => {
  assert.equal(parseMountinfo(''), []);
  assert.equal(parseMountinfo('\n\nnonsense\n1 2 3\n - \n1 2 8:1 / /m rw\n1 2 8:1 - ext4 x rw\n'), []);
  assert.is(parseMountinfo(`nonsense\n${node}1 2`).length, 5);
});

parse('never throws, and gives strings whatever it reads', () => {
  forAll(500, (random) => {
    for (const mount of parseMountinfo(random.mutation(node))) {
      for (const value of Object.values(mount)) assert.type(value, 'string');
    }
  });
});

parse.run();

const location = suite('mountOf(), locationOf(), mountPointsBelow()');
const mounts = parseMountinfo(node);

location('a path lies on the mount with the longest mount point, whatever their order', () => {
  assert.is(mountOf('/raid/data', mounts)?.mountPoint, '/raid');
  assert.is(mountOf('/raid/data', mounts.toReversed())?.mountPoint, '/raid');
  assert.is(mountOf('/raid', mounts)?.mountPoint, '/raid');
  assert.is(mountOf('/home/x', mounts)?.mountPoint, '/');
  assert.is(mountOf('/', mounts)?.mountPoint, '/');
});

location('a name that begins like a mount point is not below it', () => {
  assert.is(mountOf('/raid2', mounts)?.mountPoint, '/');
  assert.is(mountOf('/rai', mounts)?.mountPoint, '/');
});

location('of two mounts on one point the later one covers the other', () => {
  const covered = parseMountinfo(`${node}40 30 8:9 / /raid rw - ext4 /dev/sdb rw\n`);
  assert.is(mountOf('/raid/data', covered)?.device, '8:9');
});

location('without a mount there is no location', () => {
  assert.is(mountOf('/raid', []), undefined);
  assert.is(locationOf('/raid', []), undefined);
});

location('a directory is named by its device and its path there', () => {
  assert.equal(locationOf('/raid/containers', mounts), { device: '259:1', path: '/containers' });
  assert.equal(locationOf('/raid', mounts), { device: '259:1', path: '/' });
  assert.equal(locationOf('/home/x', mounts), { device: '254:0', path: '/home/x' });
  assert.equal(locationOf('/', mounts), { device: '254:0', path: '/' });
});

location('on a bind mount it is named as on the mount it was bound from', () => {
  assert.equal(locationOf('/data', mounts), { device: '259:1', path: '/sub/data' });
  assert.equal(locationOf('/data/x', mounts), { device: '259:1', path: '/sub/data/x' });
  assert.equal(locationOf('/raid/sub/data/x', mounts), locationOf('/data/x', mounts));
});

location('mount points below a directory are those strictly below it', () => {
  const below = parseMountinfo(
    `${node}40 30 0:9 / /raid/data/1000/x rw - tmpfs t rw\n41 30 0:9 / /raid/data2 rw - tmpfs t rw\n`,
  );
  assert.equal(mountPointsBelow('/raid/data', below), ['/raid/data/1000/x']);
  assert.equal(mountPointsBelow('/raid/data/1000/x', below), []);
  assert.equal(mountPointsBelow('/raid', below), ['/raid/data/1000/x', '/raid/data2']);
  assert.equal(mountPointsBelow('/', below).length, below.length - 1);
});

location.run();

const inUse = suite('namesInUse()');

/** The names in use of a base on the data disk, seen with more mounts than the node has. */
function namesOf(lines: string, basePath = '/raid/data'): string[] {
  const base = locationOf(basePath, mounts)!;
  return [...namesInUse(parseMountinfo(node + lines), basePath, base)].sort();
}

inUse('a node that only has its disks mounted uses none', () => {
  assert.equal(namesOf(''), []);
});

inUse('an entry that is bound somewhere is in use, and so is one of which a part is', () => {
  assert.equal(namesOf(`50 22 259:1 /data/1000/${entryA} /somewhere rw - xfs /dev/nvme0n1 rw\n`), [
    `1000/${entryA}`,
  ]);
  assert.equal(namesOf(`50 22 259:1 /data/1000/${entryA}/usr/lib /x rw - xfs /dev/nvme0n1 rw\n`), [
    `1000/${entryA}`,
  ]);
});

inUse('the same path on another disk is another directory', () => {
  assert.equal(namesOf(`50 22 254:0 /data/1000/${entryA} /x rw - ext4 /dev/vda1 rw\n`), []);
});

inUse('the base or a user directory bound somewhere uses no entry', () => {
  assert.equal(namesOf('50 22 259:1 /data /x rw - xfs d rw\n51 22 259:1 /data/1000 /y rw - xfs d rw\n'), []);
});

inUse('a base that is itself a bind mount is known by where it was bound from', () => {
  assert.equal(namesOf(`50 22 259:1 /sub/data/1000/${entryA} /x rw - xfs d rw\n`, '/data'), [
    `1000/${entryA}`,
  ]);
  assert.equal(namesOf(`50 22 259:1 /data/1000/${entryA} /x rw - xfs d rw\n`, '/data'), []);
});

inUse('a base that is the whole disk is known as well', () => {
  // The other name is that of the directory bound to /data: no entry, so nobody will ask for it.
  assert.equal(namesOf(`50 22 259:1 /1000/${entryA} /x rw - xfs d rw\n`, '/raid'), [
    `1000/${entryA}`,
    'sub/data',
  ]);
});

const overlay = (options: string): string => `60 22 0:77 / / rw - overlay overlay ${options}\n`;

inUse('lower layers of an overlay are in use: a list with colons', () => {
  assert.equal(
    namesOf(
      overlay(`rw,lowerdir=/raid/data/1000/${entryA}:/raid/data/1000/${entryB},upperdir=/u,workdir=/w`),
    ),
    [`1000/${entryA}`, `1000/${entryB}`],
  );
  assert.equal(namesOf(overlay(`rw,lowerdir=/usr:/raid/data/1000/${entryA}:/opt,userxattr`)), [
    `1000/${entryA}`,
  ]);
});

inUse('or one option for each, as new kernels have it', () => {
  assert.equal(
    namesOf(
      overlay(`rw,lowerdir+=/raid/data/1000/${entryA},lowerdir+=/raid/data/1000/${entryB},upperdir=/u`),
    ),
    [`1000/${entryA}`, `1000/${entryB}`],
  );
});

inUse('or data layers behind a double colon, or in options of their own', () => {
  assert.equal(namesOf(overlay(`rw,lowerdir=/x::/raid/data/1000/${entryA}`)), [`1000/${entryA}`]);
  assert.equal(namesOf(overlay(`rw,lowerdir+=/x,datadir+=/raid/data/1000/${entryA}`)), [`1000/${entryA}`]);
});

inUse('a layer with a blank or a comma before it does not hide the next', () => {
  assert.equal(namesOf(overlay(`rw,lowerdir=/a\\040b\\054c:/raid/data/1000/${entryA}`)), [`1000/${entryA}`]);
  assert.equal(namesOf(overlay(`rw,lowerdir=/a\\134:b:/raid/data/1000/${entryA}`)), [`1000/${entryA}`]);
});

inUse('an upper layer is a stub in use', () => {
  const stub = '/raid/data/1000/.pyxis_42.0';
  assert.equal(namesOf(overlay(`rw,lowerdir=/usr,upperdir=${stub}/upper,workdir=${stub}/work`)), [
    '1000/.pyxis_42.0',
  ]);
});

inUse('only an overlay has layers, whatever another filesystem calls its options', () => {
  const options = `rw,lowerdir=/raid/data/1000/${entryA}`;
  assert.equal(namesOf(`60 22 0:77 / /x rw - fuse.evil overlay ${options}\n`), []);
  assert.equal(namesOf(`60 22 0:77 / /x rw - tmpfs overlay ${options}\n`), []);
});

inUse('a path outside the base, or one that only begins like it, is none', () => {
  for (const path of [
    `/raid/data2/1000/${entryA}`,
    `/raid/dat/1000/${entryA}`,
    `data/1000/${entryA}`,
    '/raid/data',
  ]) {
    assert.equal(namesOf(overlay(`rw,lowerdir=${path}`)), [], path);
  }
});

inUse('never throws, whatever the options of an overlay say', () => {
  const line = overlay(`rw,lowerdir=/raid/data/1000/${entryA}:/x,lowerdir+=/raid/data/1000/${entryB}`);
  forAll(500, (random) => {
    for (const name of namesOf(random.mutation(line).replaceAll('\n', ' ') + '\n')) {
      assert.match(name, /^[^/]*\/[^/]*$/);
    }
  });
});

inUse.run();

const missing = suite('missingMounts()');

const fstab = `
# /etc/fstab
UUID=1  /        ext4  errors=remount-ro  0 1
UUID=2  none     swap  sw                 0 0
/dev/nvme0n1 \t /raid  xfs  noatime,nofail 0 2
#/dev/sdb /raid/data ext4 defaults 0 0
`;
const without = (point: string): Mount[] => mounts.filter((mount) => mount.mountPoint !== point);

missing('none is missing where all are mounted', () => {
  assert.equal(missingMounts('/raid/data', fstab, mounts), []);
});

missing('a disk that should be there and is not is named', () => {
  assert.equal(missingMounts('/raid/data', fstab, without('/raid')), ['/raid']);
  assert.equal(missingMounts('/raid', fstab, without('/raid')), ['/raid']);
});

missing('a disk that is missing elsewhere does not matter', () => {
  assert.equal(missingMounts('/var/data', fstab, without('/raid')), []);
  assert.equal(missingMounts('/raid2/data', fstab, without('/raid')), []);
  assert.equal(missingMounts('/raid/data', `${fstab}/dev/sdc /raid/data/1000 ext4 rw 0 0\n`, mounts), []);
});

missing('comments, swap and lines cut short name no disk', () => {
  const odd =
    '#/dev/x /raid/data ext4\n  # y /raid/data\nUUID=2 none swap sw\n/dev/x\n\n\t\n/dev/x relative ext4 rw';
  assert.equal(missingMounts('/raid/data', odd, mounts), []);
});

missing('a mount point may be written with octal escapes or with a slash at its end', () => {
  assert.equal(missingMounts('/my disk/data', 'UUID=3 /my\\040disk ext4 rw 0 0\n', mounts), ['/my disk']);
  assert.equal(missingMounts('/raid/data', '/dev/x /raid/ xfs rw 0 0\n', mounts), []);
  assert.equal(missingMounts('/raid/data', '/dev/x /raid/ xfs rw 0 0\n', without('/raid')), ['/raid']);
});

missing('every one that is missing on the way is named', () => {
  const nested = '/dev/x /raid xfs rw 0 0\n/dev/y /raid/data ext4 rw 0 0\n';
  assert.equal(missingMounts('/raid/data', nested, without('/raid')), ['/raid', '/raid/data']);
  assert.equal(missingMounts('/raid/data', nested, mounts), ['/raid/data']);
});

missing('never throws, whatever fstab holds', () => {
  forAll(300, (random) => {
    for (const point of missingMounts('/raid/data', random.mutation(fstab), mounts)) {
      assert.ok(point === '/raid/data' || '/raid/data'.startsWith(`${point}/`));
    }
  });
});

missing.run();
