/** image.ts: one image, one spelling, however it is called; and a file that is no image is told apart. */
import { JobFault } from '../../../lib/core/faults.ts';
import {
  imageOfPyxis,
  estimateSpace,
  parseDigest,
  parseImage,
  parseSuperblock,
  superblockBytes,
  type RegistryImage,
  type SquashfsFacts,
} from '../../../lib/core/image.ts';
import { forAll } from '../../helpers/property.ts';
import { assert, suite } from '../../helpers/suite.ts';

const digest = `sha256:${'0123456789abcdef'.repeat(4)}`;

function registryImage(image: string): RegistryImage {
  const request = parseImage(image, '/home/usera');
  if (request.kind === 'path') throw new Error(`taken for a path: ${image}`);
  return request;
}

const canonical = (image: string): string => registryImage(image).canonical;

const paths = suite('parseImage() of a path');

paths('starts with a slash or a dot, and nothing else does', () => {
  for (const image of ['/x.sqsh', './x', '../x', '.hidden.sqsh', '.', '/', '/a b\n.sqsh', '/ä', '..']) {
    assert.is(parseImage(image, '/w').kind, 'path');
  }
  for (const image of ['x.sqsh', 'dir/x.sqsh', '~/x']) {
    assert.not.ok(isPath(image), image);
  }
});

function isPath(image: string): boolean {
  try {
    return parseImage(image, '/w').kind === 'path';
  } catch (error) {
    assert.instance(error, JobFault);
    return false;
  }
}

paths('an absolute one stays as it is, however it is written', () => {
  for (const path of ['/x.sqsh', '/a/../b/./c//d', '/ x']) {
    assert.equal(parseImage(path, undefined), { kind: 'path', path });
  }
});

paths('a relative one starts in the working directory, and keeps its dots for the kernel', () => {
  // `a/..` is not the directory of `a` where `a` is a symlink.
  assert.equal(parseImage('./x', '/w'), { kind: 'path', path: '/w/./x' });
  assert.equal(parseImage('../a/../x', '/w/v'), { kind: 'path', path: '/w/v/../a/../x' });
  assert.equal(parseImage('.x', '/'), { kind: 'path', path: '//.x' });
});

paths('a relative one needs a working directory', () => {
  const fault = assert.throws(
    () => parseImage('./x', undefined),
    JobFault,
    /^Cannot resolve "\.\/x": the job has no/,
  );
  assert.is(fault.code, 'BAD_REFERENCE');
});

paths('is shorter than PATH_MAX, counted in bytes', () => {
  const longest = `/${'a'.repeat(4094)}`;
  assert.equal(parseImage(longest, undefined), { kind: 'path', path: longest });
  for (const [image, workPath] of [
    [`${longest}b`, undefined],
    [`/${'é'.repeat(2048)}`, undefined],
    ['./x', longest],
  ] as const) {
    const fault = assert.throws(() => parseImage(image, workPath), JobFault, /longer than 4095 bytes/);
    assert.is(fault.code, 'BAD_REFERENCE');
    assert.ok(fault.message.length < 200);
  }
});

paths('what was no UTF-8 in the environment is refused, for it cannot be opened', () => {
  for (const image of ['/x\ufffd', 'ubuntu\ufffd']) {
    assert.throws(() => parseImage(image, '/w'), JobFault, /not UTF-8/);
  }
});

paths('pyxis hands a path to enroot as it was given, anything else as a URI', () => {
  for (const image of ['/x/y.sqsh', './y', '../y', 'docker://reg#a:1', 'dockerd://a'])
    assert.is(imageOfPyxis(image), image);
  for (const image of ['ubuntu', 'reg:5000#a:1', 'user@reg#a'])
    assert.is(imageOfPyxis(image), `docker://${image}`);
});

paths.run();

const references = suite('parseImage() of a reference');

references('all spellings of one image are one', () => {
  const ubuntu = 'docker://registry-1.docker.io#library/ubuntu:latest';
  for (const image of [
    ...[
      'ubuntu',
      'docker://ubuntu',
      'ubuntu:latest',
      'library/ubuntu',
      'docker.io/ubuntu',
      'docker.io#ubuntu',
    ],
    ...['docker.io#library/ubuntu:latest', 'index.docker.io/library/ubuntu', 'registry-1.docker.io/ubuntu'],
    'docker://registry-1.docker.io#library/ubuntu:latest',
  ]) {
    assert.is(canonical(image), ubuntu, image);
  }
  assert.is(canonical('nvcr.io/nvidia/cuda:12'), 'docker://nvcr.io#nvidia/cuda:12');
  assert.is(canonical('nvcr.io#nvidia/cuda:12'), 'docker://nvcr.io#nvidia/cuda:12');
  assert.is(canonical('localhost:5000#busybox:1'), 'docker://localhost:5000#busybox:1');
  assert.is(canonical('localhost:5000/busybox:1'), 'docker://localhost:5000#busybox:1');
});

references('the canonical spelling stands for itself', () => {
  for (const image of [
    'ubuntu',
    'u@nvcr.io#a/b:1',
    `localhost:5000/x@${digest}`,
    '$oauthtoken@nvcr.io/a/b/c:x:y',
  ]) {
    assert.is(canonical(canonical(image)), canonical(image));
  }
});

references('another tag, image, registry or user is another image', () => {
  const all = [
    'ubuntu',
    'ubuntu:22.04',
    'debian',
    'ns/ubuntu',
    'nvcr.io/ubuntu',
    'u@ubuntu',
    'ubuntu:Latest',
  ];
  assert.is(new Set(all.map(canonical)).size, all.length);
});

// As enroot 4.1.2 takes them.
references('before the first slash is a registry if it has a dot or a port, else a namespace', () => {
  assert.is(canonical('localhost/x'), 'docker://registry-1.docker.io#localhost/x:latest');
  assert.is(canonical('localhost:5000/x'), 'docker://localhost:5000#x:latest');
  assert.is(canonical('registry.example/x'), 'docker://registry.example#x:latest');
  assert.is(canonical('localhost#5000/busybox:1'), 'docker://localhost#5000/busybox:1');
  assert.is(canonical('host:5000'), 'docker://registry-1.docker.io#library/host:5000');
});

references('a user stands before the last at sign', () => {
  assert.is(canonical('$oauthtoken@nvcr.io#nvidia/cuda:12'), 'docker://$oauthtoken@nvcr.io#nvidia/cuda:12');
  assert.is(canonical('$oauthtoken@nvcr.io/nvidia/cuda:12'), 'docker://$oauthtoken@nvcr.io#nvidia/cuda:12');
  assert.is(canonical('a@b.com@nvcr.io#x:1'), 'docker://a@b.com@nvcr.io#x:1');
});

references('a digest is one, and is not taken for an image of a user', () => {
  for (const [image, expected] of [
    ['ubuntu', 'docker://registry-1.docker.io#library/ubuntu'],
    ['ubuntu:22.04', 'docker://registry-1.docker.io#library/ubuntu'],
    ['nvcr.io/a/b', 'docker://nvcr.io#a/b'],
    ['127.0.0.1:5000/a/b:1', 'docker://127.0.0.1:5000#a/b'],
    ['u@nvcr.io#a/b', 'docker://u@nvcr.io#a/b'],
    ['a@b.com@localhost:5000/x:1', 'docker://a@b.com@localhost:5000#x'],
  ] as const) {
    const request = registryImage(`${image}@${digest}`);
    assert.is(request.digest, digest, image);
    // With both, the tag does not count.
    assert.is(request.canonical, `${expected}@${digest}`);
    assert.is(request.uri, `docker://${image}@${digest}`);
  }
  assert.is(registryImage('ubuntu').digest, undefined);
});

references('a digest is 64 lower-case hex digits', () => {
  for (const wrong of [
    'sha256:abc',
    digest.slice(0, -1),
    `${digest}0`,
    digest.replace('a', 'A'),
    'sha256:',
  ]) {
    assert.throws(() => parseImage(`ubuntu@${wrong}`, undefined), JobFault, /^Cannot parse/);
  }
});

references('enroot gets the text of the user, with the scheme that pyxis puts before it', () => {
  assert.is(registryImage('ubuntu').uri, 'docker://ubuntu');
  assert.is(registryImage('docker://docker.io#ubuntu').uri, 'docker://docker.io#ubuntu');
});

references('images of local daemons are not cached', () => {
  for (const image of ['dockerd://ubuntu', 'podman://ubuntu', 'oci://x', 'dockerd:///x']) {
    const fault = assert.throws(
      () => parseImage(image, undefined),
      JobFault,
      /^Images of \w+:\/\/ are not cached$/,
    );
    assert.is(fault.code, 'UNSUPPORTED_OPTION');
  }
});

references('what is no reference is refused with the form that is wanted', () => {
  const wrong = [
    ...[
      '',
      'docker://',
      'Foo/Bar',
      'UBUNTU',
      'x:',
      'a b',
      ' /x',
      'ubuntu\n',
      'ubuntu\nx',
      'a#b#c',
      '#x',
      'x#',
      '@x',
      'x@',
    ],
    ...[
      'u@',
      'a/b@c',
      'nvcr.io#/x y',
      'ubuntu:tag with blank',
      'ü',
      'x?y',
      "x';id",
      '$(id)',
      '`id`',
      'a\u0000b',
      'u/v@x',
    ],
    ...[`@${digest}`, `docker://@${digest}`, 'u@@'],
  ];
  for (const image of wrong) {
    const fault = assert.throws(() => parseImage(image, '/w'), JobFault);
    assert.is(fault.code, 'BAD_REFERENCE', image);
    assert.is(
      fault.message,
      `Cannot parse "${image}", want [docker://][USER@][REGISTRY#]IMAGE[:TAG|@DIGEST]`,
    );
  }
});

references('has at most 1024 characters', () => {
  const longest = `docker://${'a'.repeat(1024 - 'docker://'.length)}`;
  assert.is(registryImage(longest).uri, longest);
  assert.throws(() => parseImage(`${longest}a`, undefined), JobFault, /longer than 1024 characters/);
  assert.throws(() => parseImage('a'.repeat(1_000_000), undefined), JobFault, /longer than 1024 characters/);
});

references('whatever a user writes is an image or a fault of the job', () => {
  const samples = [
    '/x/y.sqsh',
    './x',
    'ubuntu',
    'u@nvcr.io#a/b:1',
    `docker://localhost:5000/x@${digest}`,
  ] as const;
  forAll(2000, (random) => {
    const image = random.integer(0, 2) === 0 ? random.hostileText(30) : random.mutation(random.pick(samples));
    let request;
    try {
      request = parseImage(image, '/w');
    } catch (error) {
      assert.instance(error, JobFault);
      return;
    }
    if (request.kind === 'path') {
      assert.ok(request.path.startsWith('/') && request.path.endsWith(image));
      return;
    }
    // It becomes an argument of enroot: never an option, never two.
    assert.match(request.uri, /^docker:\/\/\S+$/);
    assert.match(
      request.canonical,
      /^docker:\/\/(?:[^#/]+@)?[^#/@]+#[a-z0-9/._-]+(?::[\w.:-]+|@sha256:[0-9a-f]{64})$/,
    );
    assert.is(canonical(request.canonical), request.canonical);
  });
});

references.run();

interface SuperblockParts {
  magic?: string;
  inodes?: number;
  flags?: number;
  major?: number;
  usedBytes?: bigint;
}

/** As fs/squashfs/squashfs_fs.h of Linux lays it out. */
function superblock({
  magic = 'hsqs',
  inodes = 1000,
  flags = 0xc0,
  major = 4,
  usedBytes = 500_000n,
}: SuperblockParts = {}): Uint8Array {
  const bytes = Buffer.alloc(superblockBytes);
  bytes.write(magic, 0, 'latin1');
  bytes.writeUInt32LE(inodes, 4);
  bytes.writeUInt16LE(flags, 24);
  bytes.writeUInt16LE(major, 28);
  bytes.writeBigUInt64LE(usedBytes, 40);
  return bytes;
}

const facts = (parts: SuperblockParts = {}, more: Partial<SquashfsFacts> = {}): SquashfsFacts => ({
  realPath: '/x/y.sqsh',
  sizeBytes: 500_000,
  modifiedAt: '1700000000.123456789',
  changedAt: '1700000000.123456789',
  superblock: superblock(parts),
  ...more,
});

const superblocks = suite('parseSuperblock()');

/** The superblock of what mksquashfs 4.5.1 made of a directory with two files: 4096 bytes in all. */
const realSuperblock = Buffer.from(
  '68737173' + // magic
    '03000000' + // three inodes: the directory and its files
    '00000000' + // made at
    '00000200' + // block size, 128 KiB
    '01000000' + // fragments
    '0100' + // gzip
    '1100' + // log2 of the block size
    'c000' + // flags: duplicates removed, exportable
    '0100' + // ids
    '04000000' + // version 4.0
    '4000000000000000' + // root inode
    'e700000000000000' + // bytes used
    // where its tables begin: ids, xattrs (none), inodes, directories, fragments, exports
    'df00000000000000ffffffffffffffff64000000000000008c00000000000000b700000000000000d100000000000000',
  'hex',
);

superblocks('reads what mksquashfs writes', () => {
  assert.is(realSuperblock.length, superblockBytes);
  assert.equal(parseSuperblock(facts({}, { superblock: realSuperblock, sizeBytes: 4096 })), {
    inodes: 3,
    usedBytes: 231,
    isDataCompressed: true,
  });
});

superblocks('reads from wherever in a buffer it lies', () => {
  const long = Buffer.concat([Buffer.alloc(13, 0xff), superblock({ inodes: 77 }), Buffer.alloc(5, 0xff)]);
  const part = long.subarray(13, 13 + superblockBytes);
  assert.is(parseSuperblock(facts({}, { superblock: part })).inodes, 77);
});

superblocks('knows data that is not compressed by its flag', () => {
  assert.is(parseSuperblock(facts({ flags: 0x2 })).isDataCompressed, false);
  assert.is(parseSuperblock(facts({ flags: 0xfffd })).isDataCompressed, true);
});

superblocks('an inode count is unsigned', () => {
  assert.is(parseSuperblock(facts({ inodes: 0xffff_ffff })).inodes, 4_294_967_295);
});

function refused(parts: SuperblockParts, more: Partial<SquashfsFacts> = {}): string {
  const fault = assert.throws(() => parseSuperblock(facts(parts, more)), JobFault);
  assert.is(fault.code, 'NOT_SQUASHFS');
  return fault.message;
}

superblocks('another magic is no squashfs, the big-endian one included', () => {
  for (const magic of ['sqsh', 'shsq', 'HSQS', '\u007fELF', 'PK\u0003\u0004', '\0\0\0\0']) {
    assert.is(refused({ magic }), 'Cannot use "/x/y.sqsh": not a squashfs file');
  }
});

superblocks('a file shorter than a superblock is no squashfs', () => {
  for (const length of [0, 3, 4, 95]) {
    const message = refused({}, { superblock: superblock().subarray(0, length), sizeBytes: length });
    assert.is(message, 'Cannot use "/x/y.sqsh": not a squashfs file');
  }
});

superblocks('another version is named', () => {
  for (const major of [0, 3, 5, 1024]) {
    assert.is(refused({ major }), `Cannot use "/x/y.sqsh": squashfs version ${major}, want 4`);
  }
});

superblocks('a file that is shorter than its filesystem was cut off', () => {
  assert.is(refused({}, { sizeBytes: 499_999 }), 'Cannot use "/x/y.sqsh": cut off, 499999 of 500000 bytes');
  assert.match(refused({ usedBytes: 2n ** 64n - 1n }), /cut off, 500000 of 18446744073709552000 bytes/);
  // mksquashfs pads its files.
  assert.is(parseSuperblock(facts({}, { sizeBytes: 503_808 })).usedBytes, 500_000);
});

superblocks('whatever the bytes are, they are a superblock or a fault of the job', () => {
  forAll(500, (random) => {
    const bytes = random.integer(0, 1) === 0 ? superblock() : Buffer.alloc(random.integer(0, 120));
    for (let changes = random.integer(0, 30); changes > 0 && bytes.length > 0; changes--) {
      bytes[random.integer(0, bytes.length - 1)] = random.integer(0, 255);
    }
    try {
      const { inodes, usedBytes } = parseSuperblock(facts({}, { superblock: bytes }));
      assert.ok(inodes >= 0 && usedBytes >= 0 && usedBytes <= 500_000);
    } catch (error) {
      assert.instance(error, JobFault);
    }
  });
});

superblocks.run();

const space = suite('estimateSpace()');

space('counts inodes exactly, with two of ours', () => {
  const need = estimateSpace(parseSuperblock(facts({ inodes: 263_132 })));
  assert.is(need.inodes, 263_134);
});

space('guesses three times the compressed size, and half a block for each inode', () => {
  const need = estimateSpace(parseSuperblock(facts({ inodes: 100, usedBytes: 400_000n })));
  assert.is(need.bytes, 3 * 400_000 + 100 * 2048);
});

space('takes data that is not compressed for as large as it is', () => {
  const need = estimateSpace(parseSuperblock(facts({ inodes: 100, usedBytes: 400_000n, flags: 0x2 })));
  assert.is(need.bytes, 400_000 + 100 * 2048);
});

space.run();

const digests = suite('parseDigest()');

digests('is what enroot prints, without the end of the line', () => {
  assert.is(parseDigest(`${digest}\n`), digest);
  assert.is(parseDigest(` ${digest}\r\n`), digest);
});

digests('is undefined for anything else', () => {
  const wrong = [
    '',
    '\n',
    'sha256:',
    digest.slice(1),
    digest.slice(0, -1),
    `${digest}a`,
    digest.toUpperCase(),
  ];
  for (const output of [
    ...wrong,
    `x ${digest}`,
    `${digest}\n${digest}`,
    `[INFO] x\n${digest}`,
    'sha512:00',
  ]) {
    assert.is(parseDigest(output), undefined);
  }
});

digests.run();
