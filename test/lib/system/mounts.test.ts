/**
 * mounts.ts: an entry in use is found in whatever process's view, and nobody can feign the use of another's.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { chownSync, mkdirSync, mkdtempSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { directoryName, entryName } from '../../../lib/core/layout.ts';
import { asUser } from '../../../lib/system/as-user.ts';
import { unlessErrno } from '../../../lib/system/errno.ts';
import {
  findMountedEntries,
  mountinfoLimits,
  MountScan,
  mountScanMs,
  readMounts,
} from '../../../lib/system/mounts.ts';
import { listProcesses, processUid } from '../../../lib/system/processes.ts';
import { childEnvironment } from '../../../lib/system/run-command.ts';
import {
  alice,
  bob,
  enterPrivateMachine,
  machineRoot,
  mount,
  umount,
  unlessPrivateMachine,
  type TestUser,
} from '../../helpers/private-machine.ts';
import { assert, suite } from '../../helpers/suite.ts';

enterPrivateMachine();

const used = directoryName(entryName(alice.uid, 'aaaaaaaaaaaaaaaa'));
const unused = directoryName(entryName(alice.uid, 'bbbbbbbbbbbbbbbb'));
const ofBob = directoryName(entryName(bob.uid, 'cccccccccccccccc'));

let root: string;
let base: string;
const entryPath = (user: TestUser, name: string): string => join(base, String(user.uid), name);
const viewers: ChildProcess[] = [];

/**
 * Runs a shell script in a mount namespace of its own, as root or, in a user namespace too, as a user, and
 * keeps that namespace alive until the test's end.
 */
async function view(user: TestUser | 'root', script: string): Promise<number> {
  const namespaces =
    user === 'root' ? ['--mount', '--propagation', 'private'] : ['--user', '--map-root-user', '--mount'];
  const args = [...namespaces, 'sh', '-e', '-c', `${script}\necho ready\nexec sleep infinity`];
  const command = { file: 'unshare', args, timeoutMs: 0 };
  const whole = user === 'root' ? command : asUser(user, command, { canGain: true });
  const child = spawn(whole.file, whole.args, {
    cwd: '/',
    env: childEnvironment,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  viewers.push(child);
  const [text] = (await Promise.race([once(child.stdout, 'data'), once(child, 'exit')])) as [unknown];
  assert.is(String(text), 'ready\n', 'the script failed');
  return child.pid!;
}

async function endViews(): Promise<void> {
  for (const child of viewers.splice(0)) {
    if (child.exitCode !== null || child.signalCode !== null) continue;
    const end = once(child, 'exit');
    child.kill('SIGKILL');
    await end;
  }
}

/** Whether unprivileged users may have user namespaces here, with an overlay in them. */
const unlessUserNamespaces =
  unlessPrivateMachine ??
  (spawnSync('setpriv', [
    ...[
      `--reuid=${alice.uid}`,
      `--regid=${alice.gid}`,
      '--clear-groups',
      'unshare',
      '--user',
      '--map-root-user',
      '--mount',
    ],
    ...['mount', '-t', 'overlay', '-o', 'lowerdir=/usr/bin:/usr/lib', 'overlay', '/usr/bin'],
  ]).status === 0
    ? undefined
    : 'needs overlays in unprivileged user namespaces');

const test = suite('findMountedEntries()', { skip: unlessPrivateMachine });

test.before.each(() => {
  root = mkdtempSync(join(machineRoot, 'mounts-'));
  base = join(root, 'data');
  for (const directory of [root, base, join(root, 'point'), join(root, 'other')])
    mkdirSync(directory, { recursive: true });
  spawnSync('chmod', ['0755', root]);
  for (const user of [alice, bob]) {
    mkdirSync(join(base, String(user.uid)), { mode: 0o700 });
    chownSync(join(base, String(user.uid)), user.uid, user.gid);
  }
  for (const [user, name] of [
    [alice, used],
    [alice, unused],
    [bob, ofBob],
  ] as const) {
    mkdirSync(join(entryPath(user, name), 'usr'), { recursive: true });
    spawnSync('chown', ['--recursive', `${user.uid}:${user.gid}`, entryPath(user, name)]);
  }
});

test.after.each(async () => {
  await endViews();
  rmSync(root, { recursive: true });
});

/** What is mounted of the three entries. */
function mounted(): string[] {
  const isMounted = findMountedEntries(base);
  return [
    ...[used, unused].filter((name) => isMounted(alice.uid, name)),
    ...[ofBob].filter((name) => isMounted(bob.uid, name)),
  ];
}

test('on a quiet node nothing is', () => {
  assert.equal(mounted(), []);
});

test('sees a bind mount in our own view', () => {
  mount('--bind', entryPath(alice, used), join(root, 'point'));
  try {
    assert.equal(mounted(), [used]);
  } finally {
    umount(join(root, 'point'));
  }
  assert.equal(mounted(), []);
});

test('sees a bind mount that another mount namespace has, until it is gone', async () => {
  await view('root', `mount --bind ${entryPath(alice, used)} ${root}/point`);
  assert.equal(mounted(), [used]);
  await endViews();
  assert.equal(mounted(), []);
});

test('sees that a part of an entry is mounted', async () => {
  await view('root', `mount --bind ${entryPath(alice, used)}/usr ${root}/point`);
  assert.equal(mounted(), [used]);
});

test('sees an overlay on an entry in another mount namespace, wherever the entry is among its layers', async () => {
  const layers = [`${entryPath(alice, used)}:${root}/other`, `${root}/other:${entryPath(bob, ofBob)}`];
  for (const lowerdir of layers) {
    await view('root', `mount -t overlay -o lowerdir=${lowerdir} overlay ${root}/point`);
  }
  assert.equal(mounted(), [used, ofBob]);
});

test('sees an entry that is the root of a process', async () => {
  await view(
    'root',
    `mount --rbind / ${root}/point; mount --bind ${entryPath(alice, used)} ${root}/point${root}/other
     mount --rbind ${root}/point ${root}/point; cd ${root}/point; pivot_root . mnt; umount -l /mnt || true`,
  );
  assert.equal(mounted(), [used]);
});

test.unless(
  unlessUserNamespaces,
  'sees the overlay of a container, in a user namespace of the entry’s user',
  async () => {
    const point = `${base}/${alice.uid}/point`;
    await view(
      alice,
      `mkdir ${point}; mount -t overlay -o lowerdir=${entryPath(alice, used)}:${root}/other overlay ${point}`,
    );
    assert.equal(mounted(), [used]);
  },
);

test.unless(
  unlessUserNamespaces,
  'sees an overlay with an upper directory, as a writable container has it',
  async () => {
    const stub = `${base}/${alice.uid}/.pyxis_42.0`;
    await view(
      alice,
      `mkdir -p ${stub}/upper ${stub}/work ${stub}/root
     mount -t overlay -o lowerdir=${entryPath(alice, used)},upperdir=${stub}/upper,workdir=${stub}/work,userxattr overlay ${stub}/root`,
    );
    assert.equal(mounted(), [used]);
  },
);

test.unless(unlessUserNamespaces, 'another user who shows the entry’s path does not keep it', async () => {
  // In a namespace of their own everybody may put anything at any path.
  const pid = await view(
    bob,
    `mount -t tmpfs none ${base}; mkdir -p ${entryPath(alice, used)} ${base}/x ${base}/point
     mount -t overlay -o lowerdir=${entryPath(alice, used)}:${base}/x overlay ${base}/point
     mount --bind ${entryPath(alice, used)} ${base}/x`,
  );
  const seen = readFileSync(`/proc/${pid}/mountinfo`, 'latin1');
  assert.ok(
    seen.includes(`lowerdir=${entryPath(alice, used)}`) ||
      seen.includes(`lowerdir+=${entryPath(alice, used)}`),
  );
  assert.equal(mounted(), []);
});

test.unless(
  unlessUserNamespaces,
  'another user does not keep it beside its own user who is done with it',
  async () => {
    const fake = `mount -t tmpfs none ${base}; mkdir -p ${entryPath(alice, used)} ${base}/x ${base}/point
     mount -t overlay -o lowerdir=${entryPath(alice, used)}:${base}/x overlay ${base}/point`;
    await view(bob, fake);
    await view(alice, fake);
    assert.equal(mounted(), [used]);
  },
);

test('of several users who share a view, each counts', async () => {
  const sleepAs = ({ uid, gid }: TestUser): string =>
    `setpriv --reuid=${uid} --regid=${gid} --clear-groups sleep infinity`;
  // Of root nobody is left in it: whoever is met first, the other must be met as well.
  const pid = await view(
    'root',
    `mount --bind ${entryPath(alice, used)} ${root}/point; mount --bind ${entryPath(bob, ofBob)} ${root}/other
     ${sleepAs(alice)} & echo ready; exec ${sleepAs(bob)}`,
  );
  const sharing = (): number[] =>
    listProcesses().filter((one) => mountNamespace(one) === mountNamespace(pid));
  try {
    while (sharing().some((one) => processUid(one) === 0)) await sleep(5);
    assert.equal(sharing().map(processUid).sort(), [alice.uid, bob.uid]);
    assert.equal(mounted(), [used, ofBob]);
  } finally {
    for (const one of sharing()) process.kill(one, 'SIGKILL');
  }
});

function mountNamespace(pid: number): string | undefined {
  return unlessErrno(['ENOENT', 'ESRCH'], () => readlinkSync(`/proc/${pid}/ns/mnt`));
}

test('a name is asked for with its user: the same name below another is not meant', async () => {
  await view('root', `mount --bind ${entryPath(alice, used)} ${root}/point`);
  const isMounted = findMountedEntries(base);
  assert.ok(isMounted(alice.uid, used));
  assert.not.ok(isMounted(bob.uid, used));
});

test('a base that is a bind mount is known under both of its paths', async () => {
  const bound = join(root, 'bound');
  mkdirSync(bound);
  mount('--bind', base, bound);
  try {
    await view('root', `mount --bind ${entryPath(alice, used)} ${root}/point`);
    assert.ok(findMountedEntries(bound)(alice.uid, used));
    assert.ok(findMountedEntries(base)(alice.uid, used));
  } finally {
    umount(bound);
  }
});

test.unless(
  unlessUserNamespaces,
  'who has more mounts than are read keeps all that they have, and is named; others are looked at as before',
  async () => {
    await view(alice, 'true');
    await view('root', `mount --bind ${entryPath(bob, ofBob)} ${root}/point`);
    for (const limits of [
      { bytes: mountinfoLimits.bytes, processorMs: 0.001 },
      { bytes: 10, processorMs: mountinfoLimits.processorMs },
    ]) {
      const before = mountScanMs();
      const scan = new MountScan(base, limits);
      assert.ok(scan.isMounted(alice.uid, unused));
      assert.ok(scan.isMounted(bob.uid, ofBob));
      assert.not.ok(scan.isMounted(bob.uid, used));
      assert.equal(scan.tooManyOf(), [alice.uid]);
      assert.ok(mountScanMs() > before);
    }
    const scan = new MountScan(base);
    assert.not.ok(scan.isMounted(alice.uid, unused));
    assert.equal(scan.tooManyOf(), []);
  },
);

test('processes that end meanwhile do not disturb', async () => {
  const noise = spawn('sh', ['-c', 'while :; do unshare --mount true; done'], { stdio: 'ignore' });
  viewers.push(noise);
  await view('root', `mount --bind ${entryPath(alice, used)} ${root}/point`);
  for (let turn = 0; turn < 200; turn++) assert.ok(findMountedEntries(base)(alice.uid, used));
});

test.run();

const own = suite('readMounts()');

own('has the root, and every mount point that the kernel lists', () => {
  const points = readMounts().map((one) => one.mountPoint);
  assert.ok(points.includes('/'));
  assert.is(points.length, readFileSync('/proc/self/mountinfo', 'latin1').trimEnd().split('\n').length);
});

own.unless(unlessPrivateMachine, 'sees what is mounted now', () => {
  const point = mkdtempSync(join(machineRoot, 'point with blank-'));
  const isThere = (): boolean =>
    readMounts().some((one) => one.mountPoint === point && one.filesystem === 'tmpfs');
  assert.not.ok(isThere());
  mount('--types', 'tmpfs', 'tmpfs', point);
  assert.ok(isThere());
  umount(point);
  assert.not.ok(isThere());
});

own.run();
