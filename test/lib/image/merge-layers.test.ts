/** One tree of an image's layers, beside what the kernel's own overlay shows of the same layers. */
// test: timeout 300 s
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  lstatSync,
  lutimesSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { build, distDirectory } from '../../../build/build.ts';
import { runMergeLayers } from '../../../lib/image/merge-layers.ts';
import {
  alice,
  command,
  enterPrivateMachine,
  machineRoot,
  unlessPrivateMachine,
} from '../../helpers/private-machine.ts';
import { forAll, type Random } from '../../helpers/property.ts';
import { assert, suite } from '../../helpers/suite.ts';

enterPrivateMachine();

/** What a layer has at a path; `gone` hides what is below, `opaque` all that is below in a directory. */
type Item =
  | { readonly kind: 'directory'; readonly mode: number; readonly isOpaque?: boolean }
  | { readonly kind: 'file'; readonly content: string }
  | { readonly kind: 'link'; readonly target: string }
  | { readonly kind: 'gone' };

/** By path; a directory stands before what is in it. Names are bytes, here as latin1. */
type Layer = ReadonlyMap<string, Item>;

const bytes = (path: string): Buffer => Buffer.from(path, 'latin1');

/** @param layers the topmost first @returns the directory, as enroot-layers.ts leaves one */
function writeLayers(layers: readonly Layer[]): string {
  const directory = mkdtempSync(join(machineRoot, 'layers-'));
  writeFileSync(join(directory, 'order'), layers.map((_, index) => index).join(':'));
  layers.forEach((layer, index) => {
    const root = join(directory, String(index));
    writeLayer(root, layer, (hidden) => {
      for (const [path, name] of hidden) writeFileSync(bytes(`${path}/.wh.${name}`), '');
    });
    const whiteouts = command('find', root, '-name', '.wh.*', '-printf', '%P\\0');
    if (index > 0) writeFileSync(`${root}.whiteouts`, whiteouts);
  });
  return directory;
}

/** A directory and a name in it, `.wh..opq` for all of them. */
type Hidden = readonly [path: string, name: string];

function writeLayer(root: string, layer: Layer, hide: (hidden: readonly Hidden[]) => void): void {
  mkdirSync(root, { mode: 0o755 });
  const timed: [string, number][] = [];
  const hidden: Hidden[] = [];
  let seconds = 1_600_000_000 + 1000 * Number(root.at(-1));
  for (const [path, item] of layer) {
    const full = `${root}/${path}`;
    if (item.kind === 'gone') {
      hidden.push([full.slice(0, full.lastIndexOf('/')), path.slice(path.lastIndexOf('/') + 1)]);
      continue;
    }
    if (item.kind === 'file') writeFileSync(bytes(full), item.content);
    else if (item.kind === 'link') symlinkSync(item.target, bytes(full));
    else {
      mkdirSync(bytes(full));
      chmodSync(bytes(full), item.mode);
      if (item.isOpaque === true) hidden.push([full, '.wh..opq']);
    }
    timed.unshift([full, seconds++]);
  }
  hide(hidden);
  for (const [path, time] of [...timed, [root, seconds] as const]) lutimesSync(bytes(path), time, time);
}

/** @returns all that can be seen of a tree */
function describe(root: string): string[] {
  const lines: string[] = [];
  const look = (path: string): void => {
    const name = bytes(root + path);
    let stats;
    try {
      stats = lstatSync(name);
    } catch {
      // The kernel shows the whiteouts of a directory that hides something else than a directory, as names of
      // nothing.
      return;
    }
    const mode = (stats.mode & 0o7777).toString(8);
    const what = stats.isDirectory()
      ? 'directory'
      : stats.isSymbolicLink()
        ? `link ${readlinkSync(name)}`
        : `file ${readFileSync(name, 'latin1')}`;
    lines.push(`${path} ${mode} ${stats.mtimeMs / 1000} ${what}`);
    if (!stats.isDirectory()) return;
    for (const child of readdirSync(name, { encoding: 'latin1' }).sort()) look(`${path}/${child}`);
  };
  look('');
  return lines;
}

/** The kernel's word: an overlay of the same layers, with its own kind of whiteouts. */
function describeOverlay(layers: readonly Layer[]): string[] {
  const directory = mkdtempSync(join(machineRoot, 'overlay-'));
  const merged = join(directory, 'merged');
  mkdirSync(merged);
  layers.forEach((layer, index) => {
    writeLayer(join(directory, String(index)), layer, (hidden) => {
      const lines = hidden.map(([path, name]) =>
        name === '.wh..opq'
          ? `setfattr --name=trusted.overlay.opaque --value=y ${quoted(path)}`
          : `mknod ${quoted(`${path}/${name}`)} c 0 0`,
      );
      command('bash', '-ec', lines.join('\n'));
    });
  });
  // Two are the least that it takes.
  mkdirSync(join(directory, 'empty'));
  const lower = [...layers.keys(), 'empty'].map((name) => `${directory}/${name}`).join(':');
  command('mount', '--types', 'overlay', 'overlay', '--options', `lowerdir=${lower}`, merged);
  try {
    return describe(merged);
  } finally {
    command('umount', merged);
    rmSync(directory, { recursive: true });
  }
}

/** For bash(1), whatever its bytes. */
const quoted = (text: string): string =>
  `$'${[...bytes(text)].map((byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join('')}'`;

const names = ['a', 'b', 'c', '.wh', 'z\n'] as const;

function someLayer(random: Random, isHiding: boolean): Layer {
  const layer = new Map<string, Item>();
  const fill = (directory: string, depth: number): void => {
    for (const name of names.slice(0, random.integer(0, names.length))) {
      const path = directory === '' ? name : `${directory}/${name}`;
      const kind = random.pick(['file', 'link', 'gone', 'directory', 'directory', 'directory']);
      if (kind === 'file') layer.set(path, { kind, content: String(random.integer(0, 1e6)) });
      else if (kind === 'link') layer.set(path, { kind, target: random.pick(['a', '../b', '/mnt', 'c']) });
      else if (kind === 'gone' && isHiding) layer.set(path, { kind });
      else if (kind === 'directory' && depth < 4) {
        const mode = random.pick([0o755, 0o700, 0o1777, 0o500]);
        layer.set(path, { kind: 'directory', mode, isOpaque: isHiding && random.integer(0, 7) === 0 });
        fill(path, depth + 1);
      }
    }
  };
  fill('', 0);
  return layer;
}

const test = suite('merge-layers', { skip: unlessPrivateMachine });

test('makes the tree that an overlay of the layers shows', () => {
  forAll(30, (random) => {
    // enroot's own hides nothing.
    const hiding = Array.from({ length: random.integer(1, 5) }, () => someLayer(random, true));
    const layers = [someLayer(random, false), ...hiding];
    const directory = writeLayers(layers);
    const rootfs = `${directory}.rootfs`;
    assert.is(runMergeLayers([directory, rootfs]), 0);
    assert.not(existsSync(directory));
    assert.equal(describe(rootfs), describeOverlay(layers));
    rmSync(rootfs, { recursive: true });
  });
});

test('takes any bytes for a name', () => {
  const name = '\xff\xfe \\';
  const lower: Layer = new Map([
    [name, { kind: 'directory', mode: 0o755 }],
    [`${name}/\xe9`, { kind: 'file', content: 'below' }],
    [`${name}/\xe8`, { kind: 'file', content: 'stays' }],
  ]);
  const upper: Layer = new Map([
    [name, { kind: 'directory', mode: 0o755 }],
    [`${name}/\xe9`, { kind: 'gone' }],
    [`${name}/\x80`, { kind: 'file', content: 'above' }],
  ]);
  const directory = writeLayers([upper, lower]);
  // find(1) of the test prints text: the list as enroot's find(1) prints it.
  writeFileSync(join(directory, '1.whiteouts'), '');
  writeFileSync(join(directory, 'order'), '2:1');
  command('mv', join(directory, '1'), join(directory, '3'));
  command('mv', join(directory, '0'), join(directory, '2'));
  command('mv', join(directory, '3'), join(directory, '1'));
  writeFileSync(join(directory, '2.whiteouts'), bytes(`${name}/.wh.\xe9\0`));
  const rootfs = `${directory}.rootfs`;
  assert.is(runMergeLayers([directory, rootfs]), 0);
  assert.equal(readdirSync(bytes(`${rootfs}/${name}`), { encoding: 'latin1' }).sort(), ['\x80', '\xe8']);
});

test('moves a directory that one layer has as a whole', () => {
  const layer: Layer = new Map([
    ['usr', { kind: 'directory', mode: 0o755 }],
    ['usr/lib', { kind: 'directory', mode: 0o755 }],
    ['usr/lib/file', { kind: 'file', content: 'x' }],
  ]);
  const directory = writeLayers([new Map(), layer, new Map([['etc', { kind: 'file', content: '' }]])]);
  const { ino } = statSync(join(directory, '1/usr'));
  const rootfs = `${directory}.rootfs`;
  assert.is(runMergeLayers([directory, rootfs]), 0);
  assert.is(statSync(join(rootfs, 'usr')).ino, ino);
});

test('follows no link of an image out of it', () => {
  const outside = mkdtempSync(join(machineRoot, 'outside-'));
  for (const name of ['victim', 'file']) writeFileSync(join(outside, name), 'stays');
  const lower: Layer = new Map([['way', { kind: 'link', target: outside }]]);
  const upper: Layer = new Map<string, Item>([
    ['way', { kind: 'directory', mode: 0o755, isOpaque: true }],
    ['way/victim', { kind: 'gone' }],
    ['way/file', { kind: 'file', content: 'new' }],
  ]);
  const directory = writeLayers([new Map(), upper, lower]);
  const rootfs = `${directory}.rootfs`;
  assert.is(runMergeLayers([directory, rootfs]), 0);
  assert.equal(readdirSync(outside).sort(), ['file', 'victim']);
  assert.is(readFileSync(join(outside, 'file'), 'utf8'), 'stays');
  assert.ok(lstatSync(join(rootfs, 'way')).isDirectory());
  assert.is(readFileSync(join(rootfs, 'way/file'), 'utf8'), 'new');
});

for (const name of ['.wh.', '.wh..', '.wh...', '.wh..wh.plnk', '.wh..wh.aufs']) {
  test(`refuses a file "${name}", which hides nothing that could be named`, () => {
    const directory = writeLayers([
      new Map(),
      new Map([
        ['d', { kind: 'directory', mode: 0o755 }],
        [`d/${name}`, { kind: 'file', content: '' }],
      ]),
      new Map([
        ['d', { kind: 'directory', mode: 0o755 }],
        ['d/below', { kind: 'file', content: 'x' }],
      ]),
    ]);
    assert.is(runMergeLayers([directory, `${directory}.rootfs`]), 1);
    assert.ok(existsSync(`${directory}.rootfs/d/below`));
  });
}

test('refuses a layer without a list of whiteouts: enroot has converted them', () => {
  const directory = writeLayers([new Map(), new Map([['f', { kind: 'file', content: '' }]])]);
  rmSync(join(directory, '1.whiteouts'));
  assert.is(runMergeLayers([directory, `${directory}.rootfs`]), 1);
});

test('takes two paths', () => {
  for (const parameters of [[], ['/x'], ['/x', '/y', '/z']]) assert.is(runMergeLayers(parameters), 2);
});

test('merges what its owner may neither enter nor change', async () => {
  await build();
  const directory = writeLayers([
    new Map(),
    new Map<string, Item>([
      ['closed', { kind: 'directory', mode: 0 }],
      ['closed/inner', { kind: 'directory', mode: 0o500 }],
      ['closed/inner/new', { kind: 'file', content: 'new' }],
      ['other', { kind: 'directory', mode: 0o500 }],
      ['other/f', { kind: 'file', content: 'f' }],
      ['gone', { kind: 'gone' }],
    ]),
    new Map<string, Item>([
      ['closed', { kind: 'directory', mode: 0o500 }],
      ['closed/inner', { kind: 'directory', mode: 0 }],
      ['closed/inner/old', { kind: 'file', content: 'old' }],
      ['gone', { kind: 'directory', mode: 0 }],
      ['gone/sub', { kind: 'directory', mode: 0o500 }],
      ['gone/sub/f', { kind: 'file', content: 'f' }],
    ]),
  ]);
  const parent = mkdtempSync(join(machineRoot, 'of-alice-'));
  command('mv', directory, join(parent, 'layers'));
  command('chown', '--recursive', '--no-dereference', `${alice.uid}:${alice.gid}`, parent);
  const ids = [`--reuid=${alice.uid}`, `--regid=${alice.gid}`, '--clear-groups', '--inh-caps=-all', '--'];
  const program = [join(distDirectory, 'container-cache'), 'merge-layers'];
  const paths = [join(parent, 'layers'), join(parent, 'rootfs')];
  const { status, stderr } = spawnSync('setpriv', [...ids, ...program, ...paths], { encoding: 'utf8' });
  assert.is(status, 0, stderr);
  // Its owner gets all permissions on what was in the way; settlePermissions() gives them on the rest.
  const wanted = ['/closed', '/closed/inner', '/closed/inner/new', '/closed/inner/old', '/other', '/other/f'];
  const lines = describe(join(parent, 'rootfs'));
  assert.equal(
    lines.map((line) => line.split(' ')[0]),
    ['', ...wanted],
  );
  assert.match(lines[4]!, / file old$/);
  assert.equal(readdirSync(parent), ['rootfs']);
});

test.run();
