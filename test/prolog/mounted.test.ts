/**
 * Mounted entries: which images the kernel mounts for all users, what each user sees, what goes when, and
 * what a user cannot bring about. test/enroot/mounted-steps.test.ts has the wrapper.
 */
// test: timeout 900 s
import { spawn } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { loopDevicesOf, mountPointsBelow, unlessImageMounts } from '../helpers/image-mounts.ts';
import { holds, setUsed, TestNode, until, type ProgramResult } from '../helpers/node.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  replaceProgram,
  type TestUser,
} from '../helpers/private-machine.ts';
import { acquire } from '../helpers/run-acquire.ts';
import { smallTree } from '../helpers/squashfs-image.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const skip = unlessImageMounts();
const mountedName = /^pyxis_cache_mounted_[0-9a-f]{16}$/;

class MountingNode implements AsyncDisposable {
  readonly node: TestNode;
  readonly images: string;
  #jobs = 0;

  private constructor(node: TestNode, settings: Readonly<Record<string, string | number>>) {
    this.node = node;
    this.images = join(node.root, 'images');
    this.configure(settings);
  }

  static async start(settings: Readonly<Record<string, string | number>> = {}): Promise<MountingNode> {
    return new MountingNode(await TestNode.start(), settings);
  }

  configure(settings: Readonly<Record<string, string | number>>): void {
    // What enroot would tell is told by the facts of the node: only an overlay takes a view.
    const enroot = join(this.node.root, 'enroot');
    writeFileSync(enroot, '#!/bin/sh\necho 4.1.2\n', { mode: 0o755 });
    this.node.configure({
      ...{ trusted_images: this.images, isolation: 'overlay', enroot_path: enroot },
      ...settings,
    });
  }

  prolog(user: TestUser, image: string): Promise<ProgramResult & { readonly id: number }> {
    const id = ++this.#jobs;
    return this.node.prolog({ id, user, image }).then((result) => ({ ...result, id }));
  }

  epilog(user: TestUser, id: number): Promise<ProgramResult> {
    return this.node.epilog({ id, user });
  }

  viewPath(user: TestUser, entry: string): string {
    return join(this.node.runtimePath, 'views', String(user.uid), entry);
  }

  entryPath(entry: string): string {
    return join(this.node.basePath, '.mounted', entry);
  }

  /** The names of the entries that the node knows. */
  known(): string[] {
    return readdirSync(join(this.node.basePath, '.mounted')).filter((name) => mountedName.test(name));
  }

  mounts(): string[] {
    return mountPointsBelow(this.node.runtimePath);
  }

  loops(): string[] {
    return loopDevicesOf(this.node.root);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const point of this.mounts().reverse())
      command('umount', '--lazy', join(this.node.runtimePath, point));
    await this.node[Symbol.asyncDispose]();
  }
}

const as = (user: TestUser, script: string): string =>
  command('setpriv', `--reuid=${user.uid}`, `--regid=${user.gid}`, '--clear-groups', 'sh', '-c', script);

const entries = suite('mounted entries', { skip });

entries('without trusted_images nothing is mounted', async () => {
  await using mounting = await MountingNode.start();
  mounting.node.configure({});
  const { line } = await mounting.prolog(alice, mounting.node.image());
  assert.match(line['entry'] ?? '', /^pyxis_cache_u59001_/);
  assert.equal([line['result'], line['not_mounted']], ['created', undefined]);
  assert.equal(mounting.mounts(), []);
  assert.not(existsSync(join(mounting.node.basePath, '.mounted')));
});

entries('the first job mounts an image, every later one of any user has it at once', async () => {
  await using mounting = await MountingNode.start();
  const image = mounting.node.image();
  const first = await mounting.prolog(alice, image);
  const entry = first.line['entry'] ?? '';
  assert.equal([first.exitCode, first.line['result'], first.line['not_mounted']], [0, 'created', undefined]);
  assert.match(entry, mountedName);
  assert.equal(mounting.node.entries(alice), []);
  assert.equal(mounting.loops().length, 1);

  const second = await mounting.prolog(bob, image);
  assert.equal([second.line['result'], second.line['entry']], ['reused', entry]);
  assert.equal(mounting.loops().length, 1);
  assert.equal(mounting.mounts(), [
    `images/${entry}`,
    `views/${alice.uid}/${entry}`,
    `views/${bob.uid}/${entry}`,
  ]);
  for (const user of [alice, bob]) {
    const file = join(mounting.viewPath(user, entry), 'etc/os-release');
    assert.is(as(user, `cat ${file}`), 'ID=test\n');
    assert.is(statSync(file).uid, user.uid);
  }
  for (const { id } of [first, second]) {
    assert.equal(mounting.node.lease(id)?.entries, [entry]);
    assert.ok(holds(mounting.node.lease(id)!.holder.pid, mounting.entryPath(entry)), `job ${id}`);
    assert.match(mounting.node.jobFile(id, 'images') ?? '', new RegExp(`\\t${entry}\\t`));
  }
});

entries('a user sees an image only through the own view', async () => {
  await using mounting = await MountingNode.start();
  const image = mounting.node.image();
  const { line } = await mounting.prolog(alice, image);
  const entry = line['entry'] ?? '';
  for (const path of [
    mounting.viewPath(alice, entry),
    join(mounting.node.runtimePath, 'images', entry),
    mounting.entryPath(entry),
  ])
    assert.throws(() => as(bob, `ls ${path}`), Error, /Permission denied/);
});

entries('who cannot read the image does not get it, although another has it mounted', async () => {
  await using mounting = await MountingNode.start();
  const image = mounting.node.image();
  chownSync(image, 0, alice.gid);
  chmodSync(image, 0o640);
  assert.match((await mounting.prolog(alice, image)).line['entry'] ?? '', mountedName);
  const { line } = await mounting.prolog(bob, image);
  assert.equal([line['result'], line['code']], ['bypassed', 'IMAGE_UNREADABLE']);
  assert.not(existsSync(join(mounting.node.runtimePath, 'views', String(bob.uid))));
});

entries('sixteen jobs at once make one copy, one mount and one view for each user', async () => {
  await using mounting = await MountingNode.start({ trusted_images_copy: 'copy' });
  const image = mounting.node.image();
  const results = await Promise.all(
    Array.from({ length: 16 }, (_, index) => mounting.prolog(index % 2 === 0 ? alice : bob, image)),
  );
  const [entry = ''] = results.map(({ line }) => line['entry']);
  assert.match(entry, mountedName);
  assert.ok(results.every(({ line }) => line['entry'] === entry));
  assert.is(results.filter(({ line }) => line['result'] === 'created').length, 1);
  assert.equal(mounting.mounts(), [
    `images/${entry}`,
    `views/${alice.uid}/${entry}`,
    `views/${bob.uid}/${entry}`,
  ]);
  assert.is(mounting.loops().length, 1);
  assert.equal(
    readdirSync(join(mounting.node.basePath, '.mounted')).filter((name) => name.endsWith('.aside')),
    [],
  );
});

entries('a view that is gone is made again, and one of another group is replaced', async () => {
  await using mounting = await MountingNode.start();
  const image = mounting.node.image();
  const { line } = await mounting.prolog(alice, image);
  const entry = line['entry'] ?? '';
  for (const point of mounting.mounts().reverse()) command('umount', join(mounting.node.runtimePath, point));
  assert.equal(mounting.loops(), []);
  const again = await mounting.prolog(alice, image);
  assert.equal([again.line['result'], again.line['entry']], ['reused', entry]);
  assert.is(statSync(mounting.viewPath(alice, entry)).gid, alice.gid);
  const other = await mounting.prolog({ ...alice, gid: bob.gid }, image);
  assert.is(other.line['entry'], entry);
  assert.is(statSync(mounting.viewPath(alice, entry)).gid, bob.gid);
  assert.equal(mounting.mounts(), [`images/${entry}`, `views/${alice.uid}/${entry}`]);
});

entries(
  'an image that is overwritten in place goes on as it was for those who have it, and is another entry',
  async () => {
    await using mounting = await MountingNode.start();
    const image = mounting.node.image();
    const { line } = await mounting.prolog(alice, image);
    const path = join(mounting.viewPath(alice, line['entry'] ?? ''), 'etc/os-release');
    const other = mounting.node.image({ ...smallTree, 'etc/os-release': 'ID=other\n' });
    writeFileSync(image, Buffer.alloc(4096, 'x'));
    command('sh', '-c', 'echo 3 >/proc/sys/vm/drop_caches');
    assert.is(as(alice, `cat ${path}`), 'ID=test\n');
    command('cp', other, image);
    const again = await mounting.prolog(alice, image);
    assert.is.not(again.line['entry'], line['entry']);
    assert.is(
      as(alice, `cat ${mounting.viewPath(alice, again.line['entry'] ?? '')}/etc/os-release`),
      'ID=other\n',
    );
  },
);

entries('with trusted_images_copy=never the image itself is mounted, and nothing is copied', async () => {
  await using mounting = await MountingNode.start({ trusted_images_copy: 'never' });
  const image = mounting.node.image();
  const { line, id } = await mounting.prolog(alice, image);
  const entry = line['entry'] ?? '';
  assert.match(entry, mountedName);
  assert.equal(
    mounting.loops().map((path) => path.trim()),
    [image],
  );
  assert.equal(readdirSync(mounting.entryPath(entry)).sort(), ['.pyxis_cache_lock', 'facts']);
  // Mounted again, it is the same entry: whoever holds it goes on to hold it.
  for (const point of mounting.mounts().reverse()) command('umount', join(mounting.node.runtimePath, point));
  const again = await mounting.prolog(alice, image);
  assert.is(again.line['entry'], entry);
  assert.ok(holds(mounting.node.lease(id)!.holder.pid, mounting.entryPath(entry)));
});

entries(
  'where the base shares no blocks, trusted_images_copy=reflink leaves the image to be unpacked',
  async () => {
    await using mounting = await MountingNode.start({ trusted_images_copy: 'reflink' });
    const { line } = await mounting.prolog(alice, mounting.node.image());
    assert.match(line['entry'] ?? '', /^pyxis_cache_u/);
    assert.match(line['not_mounted'] ?? '', /cannot share the image's blocks/);
    assert.equal([mounting.mounts(), mounting.loops()], [[], []]);
  },
);

entries('a copy that the disk had not taken before a power loss is made once more', async () => {
  await using mounting = await MountingNode.start();
  const image = mounting.node.image();
  const { line } = await mounting.prolog(alice, image);
  await mounting.node.settle();
  const entry = line['entry'] ?? '';
  for (const point of mounting.mounts().reverse()) command('umount', join(mounting.node.runtimePath, point));
  const factsPath = join(mounting.entryPath(entry), 'facts');
  writeFileSync(factsPath, readFileSync(factsPath, 'utf8').replace(/"bootId":"[^"]*"/, '"bootId":"before"'));
  // Settled: the mode says that the disk has it.
  assert.is((await mounting.prolog(alice, image)).line['result'], 'reused');
  chmodSync(join(mounting.entryPath(entry), '.pyxis_cache_lock'), 0o600);
  assert.is((await mounting.prolog(alice, image)).line['result'], 'created');
});

entries('with create_mode=background no job waits for a copy', async () => {
  await using mounting = await MountingNode.start({ create_mode: 'background' });
  const image = mounting.node.image();
  const first = await mounting.prolog(alice, image);
  assert.equal([first.line['result'], first.line['code']], ['bypassed', 'UNPACKING']);
  const isThere = (): boolean => mounting.mounts().length > 0;
  for (let tries = 0; tries < 200 && !isThere(); tries++) command('sleep', '0.05');
  const second = await mounting.prolog(alice, image);
  assert.match(second.line['entry'] ?? '', mountedName);
  assert.equal(mounting.node.entries(alice), []);
});

entries.run();

const refused = suite('what is not mounted', { skip });

/** What a Prolog says of an image after `change`; nothing of it may be mounted. */
async function whyNotMounted(
  change: (mounting: MountingNode, image: string) => string | undefined,
  settings?: Readonly<Record<string, string | number>>,
): Promise<string> {
  await using mounting = await MountingNode.start(settings);
  const image = mounting.node.image();
  const changed = change(mounting, image) ?? image;
  const { line, exitCode } = await mounting.prolog(alice, changed);
  assert.equal([exitCode, line['result']], [0, 'created'], JSON.stringify(line));
  assert.match(line['entry'] ?? '', /^pyxis_cache_u59001_/);
  assert.equal([mounting.mounts(), mounting.loops()], [[], []]);
  // The second job asks no child, and says the same.
  const again = await mounting.prolog(alice, changed);
  assert.equal([again.line['result'], again.line['not_mounted']], ['reused', line['not_mounted']]);
  return (line['not_mounted'] ?? '').replaceAll('\\"', '"');
}

refused('an image elsewhere, of which nothing is said', async () => {
  const reason = await whyNotMounted((mounting, image) => {
    const path = join(mounting.node.root, 'elsewhere.sqsh');
    renameSync(image, path);
    return path;
  });
  assert.is(reason, '');
});

refused('an image elsewhere to which a symlink below trusted_images leads', async () => {
  const reason = await whyNotMounted((mounting, image) => {
    const home = join(mounting.node.root, 'home');
    mkdirSync(home);
    renameSync(image, join(home, 'a.sqsh'));
    chownSync(home, alice.uid, alice.gid);
    symlinkSync(join(home, 'a.sqsh'), join(mounting.images, 'link.sqsh'));
    return join(mounting.images, 'link.sqsh');
  });
  assert.match(reason, /^it leads to ".*\/home\/a\.sqsh", which is in no directory of trusted_images$/);
});

refused('an image of a user, or one that a group can write', async () => {
  assert.match(
    await whyNotMounted((_, image) => {
      chownSync(image, alice.uid, alice.gid);
      return undefined;
    }),
    /owned by uid 59001, who is not in trusted_owners/,
  );
  assert.match(
    await whyNotMounted((_, image) => {
      chmodSync(image, 0o664);
      return undefined;
    }),
    /writable by its group, mode 0664/,
  );
});

refused('an image below a directory that a group can write', async () => {
  const reason = await whyNotMounted((mounting, image) => {
    const directory = join(mounting.images, 'team');
    mkdirSync(directory);
    chmodSync(directory, 0o775);
    renameSync(image, join(directory, 'a.sqsh'));
    return join(directory, 'a.sqsh');
  });
  assert.match(reason, /team" is writable by its group/);
});

refused('an image that a process has open for writing', async () => {
  const writer = spawn('sleep', ['infinity'], { stdio: ['ignore', 'ignore', 'ignore', 'pipe'] });
  const reason = await whyNotMounted((_, image) => {
    spawn('sh', ['-c', `exec 3>>${image}; kill ${writer.pid ?? 0}; exec sleep 60`], {
      stdio: 'ignore',
    }).unref();
    for (let tries = 0; tries < 200 && writer.exitCode === null; tries++) command('sleep', '0.01');
    return undefined;
  });
  assert.match(reason, /open for writing/);
});

refused('an image that enroot would have changed while it unpacks', async () => {
  const cases = [
    [{ ...smallTree, 'bin/su': { content: 'x', mode: 0o4755 } }, /"\/bin\/su" in it has mode 04755/],
    [{ ...smallTree, 'etc/shadow': { content: 'x', mode: 0o040 } }, /"\/etc\/shadow" in it has mode 040/],
    [
      { ...smallTree, 'root/closed': { directory: true, mode: 0o500 } },
      /"\/root\/closed" in it has mode 0500/,
    ],
    [{ ...smallTree, 'dev/null': { device: 'c 666 0 0 1 3' } }, /"\/dev\/null" in it is a device/],
  ] as const;
  for (const [tree, expected] of cases)
    assert.match(await whyNotMounted((mounting) => mounting.node.image(tree)), expected);
  const several = await whyNotMounted((mounting) =>
    mounting.node.image(smallTree, ['-action', 'uid(7)@name(tool)']),
  );
  assert.match(several, /"\/bin\/tool" in it belongs to 7:0/);
});

refused('an image whose superblock lies about its length, which is then what it is without us', async () => {
  await using mounting = await MountingNode.start();
  const image = mounting.node.image();
  const bytes = readFileSync(image);
  bytes.writeBigUInt64LE(BigInt(bytes.byteLength) * 1000n, 40);
  writeFileSync(image, bytes);
  const { line } = await mounting.prolog(alice, image);
  assert.equal([line['result'], line['code']], ['bypassed', 'NOT_SQUASHFS']);
  // Within its length, but not what it says: the kernel refuses it.
  const inodes = mounting.node.image();
  const damaged = readFileSync(inodes);
  damaged.fill(0xff, 64, 88);
  writeFileSync(inodes, damaged);
  const second = await mounting.prolog(alice, inodes);
  assert.equal([second.line['result'], second.line['code']], ['failed', 'UNPACK_FAILED']);
  assert.equal([mounting.mounts(), mounting.loops()], [[], []]);
});

refused('an image that is swapped between the look and the mount', async () => {
  await using mounting = await MountingNode.start();
  const image = mounting.node.image();
  const other = mounting.node.image({ ...smallTree, 'etc/os-release': 'ID=evil\n' });
  // The child looks at its own file: whatever was there when the user's look came is another entry.
  using _ = replaceProgram(
    'setpriv',
    `case "$*" in *ready-image*) mv ${other} ${image} ;; esac; exec /usr/bin/setpriv "$@"`,
  );
  const { line } = await mounting.prolog(alice, image);
  // For the unpack it changed, too.
  assert.equal([line['result'], line['code']], ['failed', 'IMAGE_CHANGED']);
  const [known = ''] = readdirSync(join(mounting.node.basePath, '.mounted')).filter((name) =>
    mountedName.test(name),
  );
  assert.match(readFileSync(join(mounting.entryPath(known), 'facts'), 'utf8'), /changed meanwhile/);
  assert.equal([mounting.mounts(), mounting.loops()], [[], []]);
});

refused.run();

const ends = suite('the end of mounts', { skip });

ends('a view goes when its user has no job, the mount with the last view, a copy stays', async () => {
  await using mounting = await MountingNode.start({ gc_min_age: 0 });
  const image = mounting.node.image();
  const first = await mounting.prolog(alice, image);
  const second = await mounting.prolog(bob, image);
  const entry = first.line['entry'] ?? '';
  await mounting.epilog(alice, first.id);
  assert.equal(mounting.mounts(), [`images/${entry}`, `views/${bob.uid}/${entry}`]);
  assert.is(as(bob, `cat ${mounting.viewPath(bob, entry)}/etc/os-release`), 'ID=test\n');
  await mounting.epilog(bob, second.id);
  assert.equal([mounting.mounts(), mounting.loops()], [[], []]);
  assert.ok(existsSync(join(mounting.entryPath(entry), 'image.squashfs')));
  assert.is((await mounting.prolog(alice, image)).line['result'], 'reused');
});

ends('within gc_min_age of the last job the view stays', async () => {
  await using mounting = await MountingNode.start({ gc_min_age: 1000 });
  const { line, id } = await mounting.prolog(alice, mounting.node.image());
  await mounting.epilog(alice, id);
  assert.ok(mounting.mounts().includes(`views/${alice.uid}/${line['entry'] ?? ''}`));
});

ends('a collection evicts the least recently used copy, and none that a job holds', async () => {
  await using mounting = await MountingNode.start({
    ...{ gc_min_age: 0, container_cache_gc_high: 2, container_cache_gc_low: 0 },
  });
  const held = await mounting.prolog(alice, mounting.node.image());
  const idle = await mounting.prolog(bob, mounting.node.image());
  await mounting.epilog(bob, idle.id);
  const names = [held, idle].map(({ line }) => line['entry'] ?? '');
  for (const name of names) setUsed(mounting.entryPath(name), 1000);
  await mounting.node.gc('--force');
  assert.equal(
    names.map((name) => existsSync(mounting.entryPath(name))),
    [true, false],
  );
  assert.is(mounting.loops().length, 1);
  assert.is(as(alice, `cat ${mounting.viewPath(alice, names[0] ?? '')}/etc/os-release`), 'ID=test\n');
  await mounting.epilog(alice, held.id);
  await mounting.node.gc('--force');
  assert.equal([mounting.mounts(), mounting.loops()], [[], []]);
  assert.equal(mounting.known(), []);
});

/** With `gc --force`: a collection empties the cache. */
const empty = { gc_min_age: 0, container_cache_gc_high: 2, container_cache_gc_low: 0 };

ends('warm without a user makes an image ready for everyone, and a pin keeps it', async () => {
  await using mounting = await MountingNode.start(empty);
  const image = mounting.node.image();
  const warm = (...words: string[]) => mounting.node.admin('warm', ...words).result;
  const made = await warm(image);
  assert.is(made.exitCode, 0, made.stderr);
  assert.match(made.stdout, /^made ready .* for everyone: pyxis_cache_mounted_/);
  assert.match((await warm(image)).stdout, /^warm .* was already there/);
  assert.is((await mounting.prolog(alice, image)).line['result'], 'reused');
  assert.is((await mounting.prolog(bob, image)).line['result'], 'reused');

  mounting.configure({ ...empty, pin: `* ${image}` });
  assert.is((await warm()).exitCode, 0);
  for (const [index, user] of [alice, bob].entries()) await mounting.epilog(user, index + 1);
  await mounting.node.gc('--force');
  assert.is(mounting.known().length, 1);
  mounting.configure(empty);
  assert.is((await warm()).exitCode, 0);
  await mounting.node.gc('--force');
  assert.equal(mounting.known(), []);
});

ends('warm without a user says which image is not for everyone, and makes none', async () => {
  await using mounting = await MountingNode.start({ gc_min_age: 0 });
  const owned = mounting.node.image({ ...smallTree, file: { content: 'x', mode: 0o4755 } });
  const elsewhere = join(mounting.node.root, 'elsewhere.sqsh');
  command('cp', owned, elsewhere);
  const warmed = await mounting.node.admin('warm', owned, elsewhere, 'nvcr.io#a/b:1').result;
  const { exitCode, stdout, lines } = warmed;
  assert.is(exitCode, 1);
  // Nothing of it is a fault of anybody's.
  assert.equal(
    lines.map(({ word, fields }) => [word, fields['result'], fields['code']]),
    Array(3).fill(['warm', 'failed', undefined]),
  );
  const [modes, place, registry] = stdout.split('\n');
  assert.match(modes ?? '', /^failed .*"\/file" in it has mode 04755/);
  assert.match(place ?? '', /^failed .*: it is in no directory of trusted_images/);
  assert.match(registry ?? '', /^failed .*only image files below a directory of trusted_images/);
  assert.equal([mounting.mounts(), mounting.node.entries(alice)], [[], []]);
});

ends('status, explain and rm know mounted entries', async () => {
  await using mounting = await MountingNode.start({ gc_min_age: 0 });
  const image = mounting.node.image({ ...smallTree, zeros: { content: Buffer.alloc(2 ** 20) } });
  const { line, id } = await mounting.prolog(alice, image);
  const entry = line['entry'] ?? '';
  const status = (await mounting.node.admin('status', '--json').result).stdout;
  const [shown] = (JSON.parse(status) as { entries: Record<string, unknown>[] }).entries;
  assert.equal(
    [shown?.['name'], shown?.['kind'], shown?.['viewers'], shown?.['jobs'], shown?.['image']],
    [entry, 'mounted', [alice.uid], [id], image],
  );
  const saved = Number(shown?.['savedBytes']);
  // What alice would have unpacked, but for the copy.
  assert.ok(saved > 2 ** 20 - 16_384 && saved < 2 ** 20 + 65_536, String(saved));
  assert.match(
    (await mounting.node.admin('status').result).stdout,
    /1 mounted image for all users \(saves 1/,
  );
  assert.match((await mounting.node.admin('explain', entry).result).stdout, /views +of uid 59001/);
  assert.match((await mounting.node.admin('metrics').result).stdout, /container_cache_mounted_entries 1/);
  const kept = await mounting.node.admin('rm', entry).result;
  assert.match(kept.stderr, /in use by job 1/);
  await mounting.epilog(alice, id);
  setUsed(mounting.entryPath(entry), 10);
  assert.match((await mounting.node.admin('rm', entry).result).stdout, /^deleted /);
  assert.equal([mounting.mounts(), mounting.loops()], [[], []]);
});

ends('warm mounts an image that root trusts, and pins it for everybody', async () => {
  await using mounting = await MountingNode.start({ gc_min_age: 0 });
  const image = mounting.node.image();
  const { stdout, exitCode } = await mounting.node.admin('warm', image, '--user', alice.name, '--pin').result;
  assert.is(exitCode, 0);
  const [entry = ''] = /pyxis_cache_mounted_[0-9a-f]{16}/.exec(stdout) ?? [];
  assert.equal(mounting.node.entries(alice), []);
  setUsed(mounting.entryPath(entry), 1000);
  await mounting.node.gc('--force');
  const { line } = await mounting.prolog(bob, image);
  assert.equal([line['result'], line['entry']], ['reused', entry]);
});

ends('explain and check say why an image is not mounted', async () => {
  await using mounting = await MountingNode.start();
  const image = mounting.node.image({ ...smallTree, 'bin/su': { content: 'x', mode: 0o4755 } });
  await mounting.prolog(alice, image);
  assert.match((await mounting.node.admin('explain', image).result).stdout, /not mounted.*"\/bin\/su"/);
  const open = mounting.node.image();
  chmodSync(open, 0o666);
  const { stdout } = await mounting.node.admin('check', 'mounted').result;
  assert.match(stdout, /warn +mounted +.*writable by everybody/);
  assert.match(stdout, /warn +mounted +.*"\/bin\/su" in it/);
});

ends('what a crash left mounted is unmounted by the next collection', async () => {
  await using mounting = await MountingNode.start({ gc_min_age: 0 });
  const { line, id } = await mounting.prolog(alice, mounting.node.image());
  const entry = line['entry'] ?? '';
  await mounting.epilog(alice, id);
  const again = await mounting.prolog(alice, mounting.node.image());
  // The entry is gone, its mounts are there: as when a maker is killed.
  rmSync(mounting.entryPath(again.line['entry'] ?? ''), { recursive: true });
  for (const { holder } of mounting.node.leases()) process.kill(holder.pid, 'SIGKILL');
  mkdirSync(join(mounting.node.basePath, '.mounted', `.${entry}.1-1-1.aside`));
  await mounting.node.gc('--force');
  assert.equal([mounting.mounts(), mounting.loops()], [[], []]);
  assert.not(readdirSync(join(mounting.node.basePath, '.mounted')).some((name) => name.endsWith('.aside')));
});

ends('a user cannot keep, hide or change a view by locks, mounts, names or times', async () => {
  await using mounting = await MountingNode.start({ gc_min_age: 0 });
  const image = mounting.node.image();
  const { line, id } = await mounting.prolog(alice, image);
  const entry = line['entry'] ?? '';
  const view = mounting.viewPath(alice, entry);
  for (const [script, complaint] of [
    [`flock --nonblock ${mounting.node.runtimePath}/views/${alice.uid} true`, /Permission denied/],
    [`mv ${view} ${view}.old`, /denied|busy|Read-only/],
    [`rmdir ${view}`, /denied|busy|Read-only/],
    [`touch ${view}/etc/os-release`, /Read-only/],
    [`umount ${view}`, /must be superuser|not permitted|denied/],
    [`cat ${mounting.node.basePath}/.mounted/${entry}/facts`, /Permission denied/],
  ] as const)
    assert.throws(() => as(alice, script), Error, complaint);
  // In namespaces of the user's own it is the user's own.
  as(alice, `unshare --user --map-root-user --mount sh -c 'mount -t tmpfs none ${view} && : >${view}/x'`);
  assert.is(as(alice, `cat ${view}/etc/os-release`), 'ID=test\n');
  const keeper = spawn(
    'setpriv',
    [
      `--reuid=${alice.uid}`,
      `--regid=${alice.gid}`,
      '--clear-groups',
      'sh',
      '-c',
      `exec 9<${view}/etc/os-release; flock 9; exec sleep 60`,
    ],
    { stdio: 'ignore' },
  );
  command('sleep', '0.3');
  await mounting.epilog(alice, id);
  assert.equal(mounting.mounts(), []);
  utimesSync(mounting.entryPath(entry), 1, 1);
  await mounting.node.gc('--force');
  keeper.kill('SIGKILL');
  for (let tries = 0; tries < 100 && mounting.loops().length > 0; tries++) command('sleep', '0.05');
  assert.equal(mounting.loops(), []);
});

ends.run();

const steps = suite('mounted images for the steps of a job', { skip });

/** A job that names no image itself. */
const begin = async (mounting: MountingNode, id: number): Promise<ProgramResult> =>
  mounting.node.prolog({ id, user: alice });

const viewsOf = (mounting: MountingNode): string[] =>
  mounting.mounts().filter((name) => name.startsWith('views/'));

steps('a step has at once what its user had before, by any path, and the job holds it', async () => {
  await using mounting = await MountingNode.start({ gc_min_age: 0 });
  const { node } = mounting;
  const image = node.image();
  const first = await mounting.prolog(alice, image);
  const entry = first.line['entry'] ?? '';
  await mounting.epilog(alice, first.id);
  assert.equal(mounting.mounts(), []);

  assert.is((await begin(mounting, 2)).line['result'], 'none');
  assert.equal(viewsOf(mounting), [`views/${alice.uid}/${entry}`]);
  assert.equal(
    node.leases().map(({ jobId, entries: names }) => [jobId, names]),
    [[2, [entry]]],
  );
  assert.match(
    readFileSync(join(node.runtimePath, 'jobs/2/images'), 'utf8'),
    new RegExp(`^${image}\t${entry}\t`),
  );
  const link = join(mounting.images, 'latest.sqsh');
  symlinkSync(image, link);
  const found = await acquire(node, [link], { jobId: 2 });
  assert.is(found.stdout, `${entry} - reused\n`, found.log?.fields['reason']);
  assert.equal(node.entries(alice), []);
  await node.gc('--force');
  assert.ok(existsSync(mounting.entryPath(entry)));

  // To be held was no use; what the wrapper notes of a start is one.
  setUsed(mounting.entryPath(entry), 5000);
  await mounting.epilog(alice, 2);
  const idleSeconds = (): number => Date.now() / 1000 - statSync(mounting.entryPath(entry)).mtimeMs / 1000;
  assert.ok(idleSeconds() > 4000);
  await begin(mounting, 3);
  const note = JSON.stringify({ kind: 'container', entry, result: 'reused' });
  as(alice, `echo '${note}' >${node.basePath}/${alice.uid}/.steps-3.events`);
  await mounting.epilog(alice, 3);
  assert.ok(idleSeconds() < 100);
  // Others see nothing of it.
  await node.prolog({ id: 4, user: bob });
  assert.equal(viewsOf(mounting), []);
});

steps('what a step had to unpack is mounted for the next job', async () => {
  await using mounting = await MountingNode.start({ gc_min_age: 0 });
  const { node } = mounting;
  const image = node.image();
  await begin(mounting, 1);
  const made = await acquire(node, [image], { jobId: 1 });
  assert.equal([made.exitCode, node.entries(alice).length], [0, 1]);
  const { line } = await mounting.epilog(alice, 1);
  assert.is(line['unpacking'], '1');
  await until('it is mounted', () => viewsOf(mounting).length === 1);
  await node.settle();
  await begin(mounting, 2);
  const found = await acquire(node, [image], { jobId: 2 });
  assert.match(found.stdout, /^pyxis_cache_mounted_[0-9a-f]{16} - reused\n$/);
});

steps('an image that its user may not read any more is taken away', async () => {
  await using mounting = await MountingNode.start({ gc_min_age: 1000 });
  const { node } = mounting;
  const image = node.image();
  const { id } = await mounting.prolog(alice, image);
  await mounting.epilog(alice, id);
  assert.is(viewsOf(mounting).length, 1);
  chmodSync(image, 0o600);
  await begin(mounting, 2);
  assert.equal([viewsOf(mounting), node.leases()], [[], []]);
});

steps('one that was replaced is made ready in the background, for a later job', async () => {
  await using mounting = await MountingNode.start({ gc_min_age: 1000 });
  const { node } = mounting;
  const image = node.image();
  const { id, line } = await mounting.prolog(alice, image);
  await mounting.epilog(alice, id);
  renameSync(node.image({ ...smallTree, 'etc/os-release': 'ID=new\n' }), image);
  await begin(mounting, 2);
  assert.equal(node.leases(), []);
  const others = (): string[] =>
    readdirSync(join(node.basePath, '.mounted')).filter(
      (name) => mountedName.test(name) && name !== line['entry'],
    );
  await until('the new one is there', () => others().length === 1);
  await mounting.epilog(alice, 2);
  await begin(mounting, 3);
  assert.equal(
    node.leases().flatMap(({ entries: names }) => names),
    others(),
  );
  assert.is(as(alice, `cat ${mounting.viewPath(alice, others()[0] ?? '')}/etc/os-release`), 'ID=new\n');
});

steps('prepare_images says how many, those that were used last', async () => {
  await using mounting = await MountingNode.start({ gc_min_age: 0, prepare_images: 1 });
  const { node } = mounting;
  const [older, newer] = [
    await mounting.prolog(alice, node.image()),
    await mounting.prolog(alice, node.image()),
  ];
  setUsed(join(node.basePath, '.mounted/.users', String(alice.uid), older.line['entry'] ?? ''), 1000);
  for (const { id } of [older, newer]) await mounting.epilog(alice, id);
  await begin(mounting, 3);
  // Of two at once the Epilog of each has told anew.
  assert.is(node.leases().flatMap(({ entries: names }) => names).length, 1);
  await mounting.epilog(alice, 3);
  mounting.configure({ gc_min_age: 0, prepare_images: 0 });
  await begin(mounting, 4);
  assert.equal(node.leases(), []);
});

steps('notes of a user lead to nothing but what a job of theirs could have', async () => {
  await using mounting = await MountingNode.start({ gc_min_age: 0 });
  const { node } = mounting;
  const secret = node.image();
  chmodSync(secret, 0o600);
  await begin(mounting, 1);
  const wanted = [
    secret,
    `${mounting.images}/../../etc/passwd`,
    '/etc/passwd',
    '-x',
    `${mounting.images}/none`,
  ];
  const notes = wanted.map((image) => JSON.stringify({ kind: 'mount', image }));
  as(
    alice,
    `printf '%s\\n' ${notes.map((note) => `'${note}'`).join(' ')} >${node.basePath}/${alice.uid}/.steps-1.events`,
  );
  await mounting.epilog(alice, 1);
  command('sleep', '2');
  await node.settle();
  await begin(mounting, 2);
  assert.equal([mounting.mounts(), node.entries(alice), node.leases()], [[], [], []]);
});

steps.run();
