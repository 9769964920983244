/** layout.ts: paths as its header draws them, and names that are ours told from names that are not. */
import {
  collectorLockName,
  createLockName,
  directoryName,
  digestPath,
  entryName,
  entryPath,
  holderTitle,
  imageMountPath,
  isEntryNameFor,
  isEntryNameOf,
  isMountedEntryName,
  jobPath,
  jobsPath,
  leasePath,
  leasesPath,
  lockPath,
  mountedEntryName,
  mountedEntryPath,
  parseCreateLockName,
  parseEntryDirectoryName,
  parseIdName,
  parsePartialName,
  parseStubDirectoryName,
  parseUnsharedName,
  partialName,
  nodeFactsPath,
  stubMarkPath,
  trashPath,
  unsharedName,
  userPath,
  viewPath,
} from '../../../lib/core/layout.ts';
import { forAll } from '../../helpers/property.ts';
import { assert, suite } from '../../helpers/suite.ts';

const hash = '00deadbeef001122';
const name = 'pyxis_cache_u1000_00deadbeef001122';

const paths = suite('paths');

paths('are where the header of layout.ts draws them', () => {
  const base = '/raid/data';
  assert.is(collectorLockName, 'pyxis-container-cache-gc.lock');
  assert.is(trashPath(base), '/raid/data/.trash');
  assert.is(userPath(base, 1000), '/raid/data/1000');
  assert.is(entryName(1000, hash), name);
  assert.is(entryPath(base, 1000, name), `/raid/data/1000/.${name}`);
  assert.is(lockPath(entryPath(base, 1000, name)), `/raid/data/1000/.${name}/.pyxis_cache_lock`);
  assert.is(createLockName(name), `.${name}.create.lock`);
  assert.is(partialName(name, 42, '9f3c'), `.${name}.42-9f3c.partial`);
  assert.is(digestPath(base, 1000, hash), `/raid/data/1000/.digests/${hash}`);
  assert.is(leasesPath('/run/container-cache'), '/run/container-cache/leases');
  assert.is(leasePath('/run/container-cache', 42), '/run/container-cache/leases/42');
  assert.is(jobsPath('/run/container-cache'), '/run/container-cache/jobs');
  assert.is(jobPath('/run/container-cache', 42), '/run/container-cache/jobs/42');
  assert.is(nodeFactsPath('/run/container-cache'), '/run/container-cache/node');
  assert.is(
    stubMarkPath(`${base}/1000/${directoryName('pyxis_42.0')}`),
    '/raid/data/1000/.pyxis_42.0/.container-cache/entry',
  );
  assert.is(holderTitle(42), 'container-cache-lease 42');
  const mounted = mountedEntryName(hash);
  assert.is(mounted, `pyxis_cache_mounted_${hash}`);
  assert.is(mountedEntryPath(base, mounted), `/raid/data/.mounted/${mounted}`);
  assert.is(imageMountPath('/run/container-cache', mounted), `/run/container-cache/images/${mounted}`);
  assert.is(viewPath('/run/container-cache', 1000, mounted), `/run/container-cache/views/1000/${mounted}`);
});

paths('a mounted entry is every user’s and in no user’s directory', () => {
  const mounted = mountedEntryName(hash);
  assert.equal([isMountedEntryName(mounted), isMountedEntryName(name)], [true, false]);
  assert.equal([isEntryNameOf(1000, mounted), isEntryNameFor(1000, mounted)], [false, true]);
  assert.equal([isEntryNameFor(1000, name), isEntryNameFor(1001, name)], [true, false]);
  assert.is(parseEntryDirectoryName(1000, `.${mounted}`), undefined);
  assert.not(isMountedEntryName('pyxis_cache_mounted_../../../../etc'));
});

paths('all of ours is hidden from enroot, which lists with `ls -1` and `*/`', () => {
  for (const ours of [
    createLockName(name),
    partialName(name, 42, 'a'),
    directoryName(name),
    directoryName('pyxis_42.0'),
  ])
    assert.ok(ours.startsWith('.'), ours);
});

paths.run();

const names = suite('names');

names('parse back to what they were made of', () => {
  forAll(300, (random) => {
    const uid = random.pick([0, 1, random.integer(0, 2 ** 32 - 2), 4_294_967_294]);
    const jobId = random.pick([1, random.integer(1, 2 ** 32 - 2), 4_294_967_293]);
    const entry = entryName(uid, random.text('0123456789abcdef', 16, 16));
    const nonce = random.text('0123456789abcdef', 1, 40);
    assert.ok(isEntryNameOf(uid, entry));
    assert.is(parseEntryDirectoryName(uid, directoryName(entry)), entry);
    assert.equal(parseCreateLockName(createLockName(entry)), { entry });
    assert.equal(parseUnsharedName(unsharedName(entry)), { entry });
    assert.equal(parsePartialName(partialName(entry, jobId, nonce)), { entry, jobId });
    assert.is(parseIdName(String(uid)), uid);
  });
});

names('of one kind are never of another', () => {
  const all = [
    name,
    directoryName(name),
    createLockName(name),
    unsharedName(name),
    partialName(name, 42, 'a'),
    '.pyxis_7.0',
    '1000',
  ];
  const kinds = [
    (text: string) => isEntryNameOf(1000, text),
    (text: string) => parseEntryDirectoryName(1000, text) !== undefined,
    (text: string) => parseCreateLockName(text) !== undefined,
    (text: string) => parseUnsharedName(text) !== undefined,
    (text: string) => parsePartialName(text) !== undefined,
    (text: string) => parseStubDirectoryName(text) !== undefined,
    (text: string) => parseIdName(text) !== undefined,
  ];
  assert.equal(
    all.map((text) => kinds.map((is) => is(text))),
    all.map((_, row) => kinds.map((_kind, column) => row === column)),
  );
});

names('an entry counts only in the directory of the user it names', () => {
  assert.ok(isEntryNameOf(1000, name));
  for (const uid of [0, 100, 1001, 10_000, -1000, Number.NaN]) {
    assert.not.ok(isEntryNameOf(uid, name));
    assert.is(parseEntryDirectoryName(uid, directoryName(name)), undefined);
  }
});

names('an entry is named exactly so', () => {
  for (const wrong of [
    '',
    name.slice(0, -1),
    `${name}0`,
    name.toUpperCase(),
    name.replace('d', 'g'),
    name.replace('d', 'D'),
    name.replace('u1000', 'u01000'),
    name.replace('u1000', 'u+1000'),
    name.replace('u1000', 'u1e3'),
    name.replace('u1000', 'u'),
    ` ${name}`,
    `${name} `,
    `${name}\n`,
    `x\n${name}`,
    `${name}/`,
    `${name}/..`,
    `../1000/${name}`,
    `.${name}`,
    `${name}\0`,
  ]) {
    assert.not.ok(isEntryNameOf(1000, wrong), JSON.stringify(wrong));
    assert.is(parseEntryDirectoryName(1000, directoryName(wrong)), undefined, JSON.stringify(wrong));
    assert.is(parseCreateLockName(`.${wrong}.create.lock`), undefined, JSON.stringify(wrong));
    assert.is(parsePartialName(`.${wrong}.42-9f.partial`), undefined, JSON.stringify(wrong));
  }
});

names('a partial one has a job and a nonce of hex digits', () => {
  for (const middle of [
    '',
    '42',
    '42-',
    '-9f',
    '00-9f',
    '042-9f',
    '42-9F',
    '42-9g',
    '42-9f-9f',
    '42 -9f',
    '42-9f\n',
  ]) {
    assert.is(parsePartialName(`.${name}.${middle}.partial`), undefined, middle);
  }
  for (const wrong of [
    `${name}.42-9f.partial`,
    `.${name}.42-9f.partial~`,
    `.${name}.42-9f.Partial`,
    `.${name}.partial`,
  ]) {
    assert.is(parsePartialName(wrong), undefined);
  }
});

names('a create lock is named exactly so', () => {
  for (const wrong of [
    `${name}.create.lock`,
    `.${name}.create.lock~`,
    `.${name}.createXlock`,
    `.${name}.lock`,
    '.create.lock',
  ]) {
    assert.is(parseCreateLockName(wrong), undefined);
  }
});

names('an id is decimal, without sign, blank or leading zero', () => {
  assert.is(parseIdName('0'), 0);
  assert.is(parseIdName('42'), 42);
  for (const wrong of [
    '',
    '00',
    '042',
    '-1',
    '+1',
    '1.0',
    '1e3',
    '0x1',
    ' 1',
    '1 ',
    '1\n',
    '99999999999',
    'NaN',
    '.',
    '..',
    '١',
  ]) {
    assert.is(parseIdName(wrong), undefined, wrong);
  }
});

names("a step's container tells its job, in both scopes of pyxis; a named one does not", () => {
  for (const dot of ['.', '']) {
    assert.equal(parseStubDirectoryName(`${dot}pyxis_42.0`), { jobId: 42 });
    assert.equal(parseStubDirectoryName(`${dot}pyxis_42.4294967291`), { jobId: 42 });
    assert.equal(parseStubDirectoryName(`${dot}pyxis_42_42.1`), { jobId: 42 });
  }
  for (const wrong of [
    'pyxis_42',
    'pyxis_42.',
    'pyxis_42_43.1',
    'pyxis_042.1',
    'pyxis_0.1',
    'pyxis_mine',
    name,
  ])
    for (const dot of ['.', '', '..']) assert.is(parseStubDirectoryName(`${dot}${wrong}`), undefined, wrong);
});

names('whatever a user calls a file, it is ours by its exact name or not at all', () => {
  const samples = [name, createLockName(name), partialName(name, 42, '9f3c'), '1000'] as const;
  forAll(2000, (random) => {
    const text = random.mutation(random.pick(samples));
    if (isEntryNameOf(1000, text)) assert.match(text, /^pyxis_cache_u1000_[0-9a-f]{16}$/);
    const lock = parseCreateLockName(text);
    if (lock !== undefined) assert.is(createLockName(lock.entry), text);
    const partial = parsePartialName(text);
    if (partial !== undefined) {
      const nonce = /-([0-9a-f]+)\.partial$/.exec(text)?.[1] ?? '';
      assert.is(partialName(partial.entry, partial.jobId, nonce), text);
    }
    const id = parseIdName(text);
    if (id !== undefined) assert.is(String(id), text);
  });
});

names.run();
