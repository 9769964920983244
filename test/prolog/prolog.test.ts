/**
 * The way of a job through the Prolog: what is made, what is used again, what a job is told, what the log
 * says.
 */
// test: timeout 900 s
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  statSync,
  symlinkSync,
} from 'node:fs';
import { join } from 'node:path';
import { parseEntryMetadata } from '../../lib/core/entry-metadata.ts';
import { hasRoomAgent } from '../../lib/store/room-presence.ts';
import { holders, holds, lockFileOf, setUsed, TestNode, until } from '../helpers/node.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  readersGid,
  syslogPath,
  unlessPrivateMachine,
} from '../helpers/private-machine.ts';
import { makeImage, setModifiedAt, smallTree } from '../helpers/squashfs-image.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const entries = suite('Prolog: entries', { skip: unlessPrivateMachine });

entries('the first job with an image creates the entry, the second reuses it', async () => {
  await using node = await TestNode.start();
  const image = node.image();

  const first = await node.prolog({ id: 1, user: alice, image });
  const [entry] = node.entries(alice);
  assert.is(first.exitCode, 0);
  assert.is(first.line['result'], 'created');
  assert.is(node.entryPath(alice, first.line['entry']!), entry);
  assert.is(readFileSync(join(entry!, 'etc/os-release'), 'utf8'), 'ID=test\n');
  const unpackedInode = lstatSync(entry!).ino;

  const second = await node.prolog({ id: 2, user: alice, image });
  assert.is(second.exitCode, 0);
  assert.is(second.line['result'], 'reused');
  assert.is(second.line['entry'], first.line['entry']);
  assert.is(second.line['unpack_ms'], undefined);
  assert.equal(node.entries(alice), [entry]);
  assert.is(lstatSync(entry!).ino, unpackedInode);
  for (const jobId of [1, 2]) assert.ok(holds(node.lease(jobId)!.holder.pid, entry!), `job ${jobId}`);
});

entries('an entry belongs to its user, and is complete before it has its name', async () => {
  await using node = await TestNode.start();
  const image = node.image();
  await node.prolog({ id: 1, user: alice, image });
  const [entry] = node.entries(alice);
  assert.equal(command('find', entry!, '!', '-uid', String(alice.uid)), '');
  assert.equal(command('find', entry!, '!', '-gid', String(alice.gid)), '');
  const metadata = parseEntryMetadata(readFileSync(lockFileOf(entry!), 'utf8'));
  assert.ok(metadata);
  assert.is(metadata.image, image);
  // The root, etc, bin, and two files; the lock file is not the image's.
  assert.is(metadata.inodes, 5);
  assert.is(
    metadata.bytes,
    Number(
      command('du', '--summarize', '--block-size=1', '--exclude=.pyxis_cache_lock', entry!).split('\t')[0],
    ),
  );
  assert.equal(node.partials(alice), []);
  assert.equal(node.trash(), []);
});

entries("two users' jobs with one image have an entry each, in their own directories", async () => {
  await using node = await TestNode.start();
  const image = node.image();
  const results = [
    await node.prolog({ id: 1, user: alice, image }),
    await node.prolog({ id: 2, user: bob, image }),
  ];
  assert.equal(
    results.map(({ line }) => line['result']),
    ['created', 'created'],
  );
  assert.is(node.entries(alice).length, 1);
  assert.is(node.entries(bob).length, 1);
});

entries("root's own job is served like any other", async () => {
  await using node = await TestNode.start();
  const root = { uid: 0, gid: 0, name: 'root' };
  const image = node.image();
  assert.is((await node.prolog({ id: 1, user: root, image })).line['result'], 'created');
  assert.is((await node.prolog({ id: 2, user: root, image })).line['result'], 'reused');
});

/** What the second of two Prologs says when `change` has happened to the image between them. */
async function resultAfter(change: (image: string, node: TestNode) => string): Promise<string | undefined> {
  await using node = await TestNode.start();
  const image = node.image();
  setModifiedAt(image, 1_000_000_000);
  assert.is((await node.prolog({ id: 1, user: alice, image })).line['result'], 'created');
  const changed = change(image, node);
  const { line } = await node.prolog({ id: 2, user: alice, image: changed });
  assert.is(node.entries(alice).length, line['result'] === 'created' ? 2 : 1);
  assert.ok(holds(node.lease(2)!.holder.pid, node.entryPath(alice, line['entry']!)));
  return line['result'];
}

entries('an image rebuilt with other content is another entry, at the same path and time', async () => {
  const result = await resultAfter((image) => {
    makeImage(image, { ...smallTree, 'etc/added': 'new\n' });
    setModifiedAt(image, 1_000_000_000);
    return image;
  });
  assert.is(result, 'created');
});

entries('an image is the same by another way to it: a symlink, a detour, a new owner or mode', async () => {
  assert.is(
    await resultAfter((image) => {
      symlinkSync(image, `${image}.link`);
      return `${image}.link`;
    }),
    'reused',
  );
  assert.is(await resultAfter((image) => image.replace('/images/', '/images/../images//./')), 'reused');
  assert.is(
    await resultAfter((image) => {
      chownSync(image, alice.uid, alice.gid);
      chmodSync(image, 0o600);
      return image;
    }),
    'reused',
  );
});

entries('a symlink that leads to another image now is that image', async () => {
  const result = await resultAfter((image, node) => {
    symlinkSync(image, `${image}.link`);
    const other = node.image({ 'etc/os-release': 'ID=other\n' });
    renameSync(other, `${image}.other`);
    symlinkSync(`${image}.other`, `${image}.new`);
    renameSync(`${image}.new`, `${image}.link`);
    return `${image}.link`;
  });
  assert.is(result, 'created');
});

entries("a relative image is looked for in the job's working directory", async () => {
  await using node = await TestNode.start();
  const image = node.image();
  mkdirSync(join(node.root, 'work'));
  const job = { user: alice, workPath: join(node.root, 'work') };
  const relative = await node.prolog({ ...job, id: 1, image: '../images/image-1.sqsh' });
  assert.is(relative.line['result'], 'created');
  assert.is((await node.prolog({ ...job, id: 2, image })).line['entry'], relative.line['entry']);
});

entries(
  'an image that only a supplementary group may read is read with it, and by nobody without it',
  async () => {
    await using node = await TestNode.start();
    const image = node.image();
    chownSync(image, 0, readersGid);
    chmodSync(image, 0o640);
    assert.is((await node.prolog({ id: 1, user: alice, image })).line['result'], 'created');
    const refused = await node.prolog({ id: 2, user: bob, image });
    assert.is(refused.exitCode, 0);
    assert.equal([refused.line['result'], refused.line['code']], ['bypassed', 'IMAGE_UNREADABLE']);
    assert.equal(node.entries(bob), []);
  },
);

entries("a user's entry is no help with an image that the user may no longer read", async () => {
  await using node = await TestNode.start();
  const image = node.image();
  await node.prolog({ id: 1, user: alice, image });
  chmodSync(image, 0o600);
  const { line } = await node.prolog({ id: 2, user: alice, image });
  assert.is(line['code'], 'IMAGE_UNREADABLE');
  assert.is(node.lease(2), undefined);
});

entries('acquiring an entry marks it used', async () => {
  await using node = await TestNode.start();
  const image = node.image();
  await node.prolog({ id: 1, user: alice, image });
  const [entry] = node.entries(alice);
  setUsed(entry!, 3600);
  const before = lstatSync(entry!).mtimeMs;
  await node.prolog({ id: 2, user: alice, image });
  assert.ok(lstatSync(entry!).mtimeMs > before + 3000_000);
});

entries('an entry whose lock file is gone is made anew', async () => {
  await using node = await TestNode.start();
  const image = node.image();
  await node.prolog({ id: 1, user: alice, image });
  const [entry] = node.entries(alice);
  const damaged = lstatSync(entry!).ino;
  command('rm', lockFileOf(entry!), join(entry!, 'etc/os-release'));
  const { line } = await node.prolog({ id: 2, user: alice, image });
  assert.is(line['result'], 'created');
  assert.is.not(lstatSync(entry!).ino, damaged);
  assert.ok(existsSync(join(entry!, 'etc/os-release')));
  assert.ok(holds(node.lease(2)!.holder.pid, entry!));
  await node.settle();
  assert.equal(node.trash(), []);
});

entries.run();

const job = suite('Prolog: what a job receives', { skip: unlessPrivateMachine });

job('a job without an image leaves its user directory and the room agent, and nothing else', async () => {
  await using node = await TestNode.start();
  const result = await node.prolog({ id: 1, user: alice });
  assert.is(result.exitCode, 0);
  assert.is(result.line['result'], 'none');
  assert.equal(
    result.lines.map(({ level }) => level),
    ['debug'],
  );
  assert.equal(readdirSync(node.basePath), [String(alice.uid)]);
  assert.equal(readdirSync(node.userPath(alice)), []);
  await until('the room agent waits', () => hasRoomAgent(node.runtimePath));
  assert.equal(readdirSync(node.runtimePath).sort(), ['node', 'room', 'room.lock']);
  assert.equal(holders(), []);
});

job('an option without a value is an option that was not given', async () => {
  await using node = await TestNode.start();
  for (const value of ['', '(null)']) {
    const { line } = await node.prolog({ id: 1, user: alice, image: value });
    assert.is(line['result'], 'none');
  }
  const { line } = await node.prolog({ id: 2, user: alice, image: node.image(), name: '(null)', save: '' });
  assert.is(line['result'], 'created');
});

job("the job's files tell its tasks where the entries are, to its own group only", async () => {
  await using node = await TestNode.start();
  const image = node.image();
  const { line } = await node.prolog({ id: 7, user: alice, image });
  assert.is(
    node.jobFile(7, 'env'),
    `export ENROOT_DATA_PATH=${node.userPath(alice)}\nexport ENROOT_ROOTFS_WRITABLE=n\n`,
  );
  assert.is(
    node.jobFile(7, 'images'),
    `${image}\t${line['entry']!}\t${command('find', image, '-printf', '%s %T@ %C@')}\tcreated\n`,
  );
  const envPath = join(node.runtimePath, 'jobs/7/env');
  const cat = (uid: number, gid: number): string[] => [
    ...[`--reuid=${uid}`, `--regid=${gid}`, '--clear-groups', '--inh-caps=-all', '--'],
    ...['cat', envPath],
  ];
  assert.ok(command('setpriv', ...cat(alice.uid, alice.gid)).startsWith('export '));
  assert.throws(() => command('setpriv', ...cat(bob.uid, bob.gid)), Error, /Permission denied/);
  // Root's, or its user could fill the tmpfs.
  for (const path of [envPath, join(node.runtimePath, 'jobs/7')]) {
    assert.equal([statSync(path).uid, statSync(path).gid], [0, alice.gid]);
    assert.is(statSync(path).mode & 0o027, 0);
  }
});

job('the lease and its directory are closed to everybody but root', async () => {
  await using node = await TestNode.start();
  await node.prolog({ id: 7, user: alice, image: node.image() });
  assert.is(statSync(join(node.runtimePath, 'leases')).mode & 0o7777, 0o700);
  const lease = statSync(join(node.runtimePath, 'leases/7'));
  assert.equal([lease.uid, lease.mode & 0o7777], [0, 0o600]);
});

job('an image whose name has a tab is served, but makes no line in the list of images', async () => {
  await using node = await TestNode.start();
  const image = node.image();
  renameSync(image, `${image}\tx`);
  assert.is((await node.prolog({ id: 7, user: alice, image: `${image}\tx` })).line['result'], 'created');
  assert.is(node.jobFile(7, 'images'), '');
});

job.run();

const log = suite('Prolog: the log', { skip: unlessPrivateMachine });

log('has one line for a job, with what happened and how long it took', async () => {
  await using node = await TestNode.start();
  const image = node.image();
  const { lines, line, stdout } = await node.prolog({ id: 7, user: alice, image });
  assert.equal(
    lines.map(({ level, word }) => `${level} ${word}`),
    ['info prolog-progress', 'info prolog'],
  );
  assert.equal(Object.keys(line), ['job', 'uid', 'image', 'result', 'entry', 'unpack_ms', 'total_ms']);
  assert.equal([line['job'], line['uid'], line['image']], ['7', String(alice.uid), image]);
  assert.match(line['unpack_ms']!, /^\d+$/);
  assert.match(line['total_ms']!, /^\d+$/);
  assert.is(stdout, '');
  const again = await node.prolog({ id: 8, user: alice, image });
  assert.equal(
    again.lines.map(({ level, word }) => `${level} ${word}`),
    ['info prolog'],
  );
});

/** One whose first Prolog has come by, so that the next has nothing to say of the node. */
async function startKnownNode(): Promise<TestNode> {
  const node = await TestNode.start();
  await node.prolog({ id: 1, user: alice });
  return node;
}

log('an image name cannot forge a line, a field or a terminal command', async () => {
  await using node = await startKnownNode();
  const image = '/x" result=created\ncontainer-cache[1]: info: prolog job=1 result=created \u001b[2J\u202e';
  const { stderr, lines, line } = await node.prolog({ id: 7, user: alice, image });
  assert.is(lines.length, 1);
  assert.is(stderr.trimEnd().split('\n').length, 1);
  assert.is(line['job'], '7');
  assert.is(line['result'], 'bypassed');
  assert.not.match(stderr.trimEnd(), /[\u0000-\u001f\u007f\u202e]/);
});

log('a line has a limit, whatever the length of the image name', async () => {
  await using node = await startKnownNode();
  const { stderr, exitCode } = await node.prolog({ id: 7, user: alice, image: `/${'x'.repeat(100_000)}` });
  assert.is(exitCode, 0);
  assert.is(stderr.trimEnd().split('\n').length, 1);
  assert.ok(stderr.length < 4096, `${stderr.length} characters`);
});

log('goes to syslog with facility and severity, and the job runs where logger fails', async () => {
  await using node = await TestNode.start({ settings: { log_target: 'syslog', syslog_facility: 'local3' } });
  const image = node.image();
  const { stderr, exitCode } = await node.prolog({ id: 7, user: alice, image });
  assert.equal([stderr, exitCode], ['', 0]);
  // local3 is 19, info 6: 19 * 8 + 6.
  assert.match(readFileSync(syslogPath, 'utf8'), /^<158>prolog job=7 .*result=created /m);
});

log.run();
