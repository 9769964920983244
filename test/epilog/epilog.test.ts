/** The steps after a job: what the Epilog ends, removes and starts, and whom it leaves alone. */
// test: timeout 600 s
import { spawn, type ChildProcess } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  lchownSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { partialName } from '../../lib/core/layout.ts';
import { formatLeaseRecord } from '../../lib/core/lease-record.ts';
import { processStartTicks } from '../../lib/system/processes.ts';
import { holders, isAlive, setUsed, TestNode, until } from '../helpers/node.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  mount,
  umount,
  unlessPrivateMachine,
  type TestUser,
} from '../helpers/private-machine.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const release = suite('Epilog: release', { skip: unlessPrivateMachine });

release('stops the holder, removes record and job files, and marks the entry used', async () => {
  await using node = await TestNode.start();
  const { line: prolog } = await node.prolog({ id: 7, user: alice, image: node.image() });
  const [entry] = node.entries(alice);
  const { pid } = node.lease(7)!.holder;
  setUsed(entry!, 3600);
  const before = lstatSync(entry!).mtimeMs;

  const { exitCode, line, lines } = await node.epilog({ id: 7, user: alice });
  assert.is(exitCode, 0);
  assert.equal(lines.length, 1);
  assert.equal([line['job'], line['uid'], line['result']], ['7', String(alice.uid), 'released']);
  assert.equal([line['entries'], line['holders']], [prolog['entry'], '1']);
  await until('the holder has ended', () => !isAlive(pid));
  assert.equal(readdirSync(join(node.runtimePath, 'leases')), []);
  assert.equal(readdirSync(join(node.runtimePath, 'jobs')), []);
  assert.ok(lstatSync(entry!).mtimeMs > before + 3000_000);
});

release('twice does nothing the second time', async () => {
  await using node = await TestNode.start();
  await node.prolog({ id: 7, user: alice, image: node.image() });
  await node.epilog({ id: 7, user: alice });
  const { exitCode, line } = await node.epilog({ id: 7, user: alice });
  assert.equal([exitCode, line['result'], line['holders']], [0, 'none', '0']);
});

release(
  'without a Prolog before it, on a node that never had a job, makes nothing but the base',
  async () => {
    await using node = await TestNode.start();
    const { exitCode, line, lines } = await node.epilog({ id: 7, user: alice });
    assert.equal([exitCode, line['result'], lines[0]?.level], [0, 'none', 'debug']);
    assert.not(existsSync(node.runtimePath));
    assert.equal(readdirSync(node.basePath), []);
  },
);

release('of an unknown job leaves the leases of the others', async () => {
  await using node = await TestNode.start();
  await node.prolog({ id: 7, user: alice, image: node.image() });
  for (const id of [6, 70, 77]) await node.epilog({ id, user: alice });
  assert.is(holders(7).length, 1);
  assert.ok(node.lease(7));
});

release('does not mind a holder that is gone', async () => {
  await using node = await TestNode.start();
  await node.prolog({ id: 7, user: alice, image: node.image() });
  process.kill(node.lease(7)!.holder.pid, 'SIGKILL');
  await until('the holder has ended', () => holders().length === 0);
  const { exitCode, line } = await node.epilog({ id: 7, user: alice });
  assert.equal([exitCode, line['result'], line['holders']], [0, 'released', '0']);
  assert.is(node.lease(7), undefined);
});

release('does not mind an entry that is gone', async () => {
  await using node = await TestNode.start();
  await node.prolog({ id: 7, user: alice, image: node.image() });
  command('rm', '--recursive', node.userPath(alice));
  const { exitCode, line } = await node.epilog({ id: 7, user: alice });
  assert.equal([exitCode, line['result'], line['holders']], [0, 'released', '1']);
  assert.equal(holders(), []);
});

release('finds a holder whose record was never written, or is damaged', async () => {
  await using node = await TestNode.start();
  const image = node.image();
  const record = join(node.runtimePath, 'leases/7');
  for (const spoil of [
    () => {
      rmSync(record);
    },
    () => {
      writeFileSync(record, '{"version":1,');
    },
  ]) {
    await node.prolog({ id: 7, user: alice, image });
    spoil();
    const { exitCode, line } = await node.epilog({ id: 7, user: alice });
    assert.equal([exitCode, line['holders']], [0, '1']);
    assert.not(existsSync(record));
    await until('the holder has ended', () => holders().length === 0);
  }
});

release('releases the holder with a configuration that is broken or gone, and exits 0', async () => {
  await using node = await TestNode.start();
  for (const text of ['container_cache_data_path=relative\nlog_target=stderr\n', undefined]) {
    node.configure({});
    await node.prolog({ id: 7, user: alice, image: node.image() });
    if (text === undefined) rmSync(node.configPath);
    else node.writeConfig(text);
    const { exitCode, line } = await node.epilog({ id: 7, user: alice });
    assert.is(exitCode, 0);
    // Without a file there is no log_target either: that line goes to syslog.
    if (text !== undefined)
      assert.equal([line['result'], line['code'], line['holders']], ['failed', 'BAD_CONFIG', '1']);
    await until('the holder has ended', () => holders().length === 0);
  }
});

release("exits 1 for a fault of the node with on_failure=fail, and never for the job's own", async () => {
  await using node = await TestNode.start();
  const broken = 'container_cache_data_path=relative\nlog_target=stderr\non_failure=';
  node.writeConfig(`${broken}fail\n`);
  assert.is((await node.epilog({ id: 7, user: alice })).exitCode, 1);
  node.writeConfig(`${broken}continue\n`);
  assert.is((await node.epilog({ id: 7, user: alice })).exitCode, 0);
  node.configure({ on_failure: 'fail' });
  const { exitCode, line } = await node.epilog({ id: 7, user: alice, environment: { SLURM_JOB_UID: 'x' } });
  assert.equal([exitCode, line['code']], [0, 'BAD_JOB']);
});

release.run();

const others = suite("Epilog: others' processes", { skip: unlessPrivateMachine });

const started: ChildProcess[] = [];

/** A process that calls itself a holder of job 7, by whatever right `wrapper` gives it. */
async function impostor(...wrapper: readonly string[]): Promise<number> {
  const [file, ...parameters] = [...wrapper, '/usr/bin/sleep', 'infinity'];
  const child = spawn(file, parameters, {
    argv0: wrapper.length === 0 ? 'container-cache-lease 7' : file,
    env: { PATH: '/usr/bin:/bin', CONTAINER_CACHE_LEASE: '7' },
    stdio: 'ignore',
  });
  started.push(child);
  await until('it sleeps', () => readFileSync(`/proc/${child.pid!}/comm`, 'utf8') === 'sleep\n');
  return child.pid!;
}

others.after.each(() => {
  for (const child of started.splice(0)) child.kill('SIGKILL');
});

others("another user's process that claims to be the job's holder is not killed", async () => {
  await using node = await TestNode.start();
  const ids = [`--reuid=${bob.uid}`, `--regid=${bob.gid}`, '--clear-groups'];
  const pid = await impostor('setpriv', ...ids);
  await node.prolog({ id: 7, user: alice, image: node.image() });
  const { line } = await node.epilog({ id: 7, user: alice });
  assert.equal([line['holders'], line['steps']], ['1', undefined]);
  assert.ok(isAlive(pid));
});

others("the user's own is ended like the holder of a step, by the user's rights", async () => {
  await using node = await TestNode.start();
  const ids = [`--reuid=${alice.uid}`, `--regid=${alice.gid}`, '--clear-groups'];
  const pids = [await impostor('setpriv', ...ids), await impostor('setpriv', ...ids)];
  const { line } = await node.epilog({ id: 7, user: alice });
  assert.equal([line['holders'], line['steps']], ['0', '2']);
  assert.not(pids.some(isAlive));
});

others('a record that names a process which is no holder kills nobody', async () => {
  await using node = await TestNode.start();
  const child = spawn('/usr/bin/sleep', ['infinity'], {
    stdio: 'ignore',
    env: { CONTAINER_CACHE_LEASE: '8' },
  });
  started.push(child);
  const victim = { pid: child.pid!, startTicks: processStartTicks(child.pid!)! };
  mkdirSync(join(node.runtimePath, 'leases'), { recursive: true });
  const forge = (jobId: number, holder: { pid: number; startTicks: string }): void => {
    const record = { jobId, uid: alice.uid, holder, sinceMs: 0, entries: [] };
    writeFileSync(join(node.runtimePath, 'leases', String(jobId)), formatLeaseRecord(record));
  };
  for (const holder of [victim, { pid: process.pid, startTicks: processStartTicks(process.pid)! }]) {
    forge(7, holder);
    const { exitCode, line } = await node.epilog({ id: 7, user: alice });
    assert.equal([exitCode, line['holders']], [0, '0']);
    assert.is(node.lease(7), undefined);
  }
  // The same from the side of a Prolog that replaces the lease.
  forge(7, victim);
  assert.is((await node.prolog({ id: 7, user: alice, image: node.image() })).line['result'], 'created');
  assert.ok(isAlive(victim.pid));
});

others('a record with the right number and another start time kills nobody', async () => {
  await using node = await TestNode.start();
  const image = node.image();
  await node.prolog({ id: 7, user: alice, image });
  const record = node.lease(7)!;
  const pid = await impostor();
  // Root's, and named like the holder of job 7: only its number and start time tell it from the recorded one.
  writeFileSync(
    join(node.runtimePath, 'leases/7'),
    formatLeaseRecord({ ...record, holder: { pid, startTicks: '1' } }),
  );
  await node.prolog({ id: 7, user: alice, image });
  assert.ok(isAlive(pid));
});

others.run();

const sweep = suite('Epilog: leftovers', { skip: unlessPrivateMachine });

const hash = '00deadbeef001122';

/** Makes a partial directory as a killed Prolog leaves it. */
function leavePartial(node: TestNode, user: TestUser, jobId: number): string {
  const name = partialName(`pyxis_cache_u${user.uid}_${hash}`, jobId, 'abcd');
  const path = join(node.userPath(user), name);
  mkdirSync(join(path, 'rootfs/etc'), { recursive: true });
  writeFileSync(join(path, 'rootfs/etc/half'), 'x');
  command('chown', '--recursive', `${user.uid}:${user.gid}`, node.userPath(user));
  command('chmod', '0700', node.userPath(user));
  return name;
}

sweep("removes this job's partial directories, and no other job's or user's", async () => {
  await using node = await TestNode.start();
  await node.prolog({ id: 1, user: alice });
  leavePartial(node, alice, 7);
  const kept = leavePartial(node, alice, 77);
  const keptOfBob = leavePartial(node, bob, 7);
  // Keeps the background collector from taking the rest, which by now is nobody's.
  const { exitCode, line } = await withCollectorLocked(node, () => node.epilog({ id: 7, user: alice }));
  assert.equal([exitCode, line['partials'], line['gc']], [0, '1', 'started']);
  assert.equal(node.partials(alice), [kept]);
  assert.equal(node.partials(bob), [keptOfBob]);
});

async function withCollectorLocked<T>(node: TestNode, action: () => Promise<T>): Promise<T> {
  const lock = join(node.basePath, 'pyxis-container-cache-gc.lock');
  writeFileSync(lock, '');
  const holder = spawn('flock', ['--exclusive', '--no-fork', lock, 'sleep', 'infinity'], { stdio: 'ignore' });
  await until('flock(1) has the lock', () => readFileSync(`/proc/${holder.pid!}/comm`, 'utf8') === 'sleep\n');
  try {
    const result = await action();
    await node.settle();
    return result;
  } finally {
    holder.kill('SIGKILL');
  }
}

sweep('what goes into the trash is deleted by the collector that it starts', async () => {
  await using node = await TestNode.start();
  await node.prolog({ id: 1, user: alice });
  leavePartial(node, alice, 7);
  await node.epilog({ id: 7, user: alice });
  await node.settle();
  assert.equal([node.partials(alice), node.trash()], [[], []]);
});

sweep(
  'a symlink or a file in the place of a partial directory goes itself, and nothing that it points to',
  async () => {
    await using node = await TestNode.start();
    await node.prolog({ id: 1, user: alice });
    const precious = join(node.root, 'precious');
    mkdirSync(precious);
    writeFileSync(join(precious, 'file'), 'x');
    const at = (nonce: string): string =>
      join(node.userPath(alice), partialName(`pyxis_cache_u${alice.uid}_${hash}`, 7, nonce));
    symlinkSync(precious, at('aa'));
    lchownSync(at('aa'), alice.uid, alice.gid);
    writeFileSync(at('bb'), 'x');
    const { line } = await node.epilog({ id: 7, user: alice });
    assert.is(line['partials'], '2');
    await node.settle();
    assert.equal([node.partials(alice), node.trash()], [[], []]);
    assert.is(readFileSync(join(precious, 'file'), 'utf8'), 'x');
  },
);

sweep("a user directory that is a symlink, or another user's, is not entered", async () => {
  await using node = await TestNode.start();
  await node.prolog({ id: 1, user: alice });
  const elsewhere = join(node.root, 'elsewhere');
  for (const replace of [
    () => {
      symlinkSync(elsewhere, node.userPath(alice));
    },
    () => {
      command('mv', elsewhere, node.userPath(alice));
      command('chown', '--recursive', `${bob.uid}:${bob.gid}`, node.userPath(alice));
    },
  ]) {
    leavePartial(node, alice, 7);
    command('rm', '--recursive', '--force', elsewhere);
    command('mv', node.userPath(alice), elsewhere);
    replace();
    const { exitCode, line } = await node.epilog({ id: 7, user: alice });
    assert.equal([exitCode, line['partials']], [0, undefined]);
    assert.is(node.partials(alice).length, 1);
    command('rm', '--recursive', node.userPath(alice));
  }
});

sweep('a user directory that is closed, or a leftover that is mounted, fails nothing', async () => {
  await using node = await TestNode.start({ settings: { on_failure: 'fail' } });
  await node.prolog({ id: 7, user: alice, image: node.image() });
  const partial = join(node.userPath(alice), leavePartial(node, alice, 7));
  mount('--types', 'tmpfs', 'tmpfs', partial);
  try {
    const mounted = await node.epilog({ id: 7, user: alice });
    assert.equal([mounted.exitCode, mounted.line['holders']], [0, '1'], mounted.line['reason']);
  } finally {
    umount(partial);
  }
  await node.prolog({ id: 7, user: alice, image: node.image() });
  for (const mode of [0o000, 0o500, 0o300]) {
    chmodSync(node.userPath(alice), mode);
    const { exitCode, line } = await node.epilog({ id: 7, user: alice });
    assert.equal([exitCode, line['code']], [0, undefined], line['reason']);
    assert.equal(holders(), []);
  }
});

sweep('starts the collector at the high watermark, and not below it', async () => {
  await using node = await TestNode.start();
  mkdirSync(node.basePath, { mode: 0o755 });
  mount('--types', 'tmpfs', '--options', 'mode=0755,size=16m', 'tmpfs', node.basePath);
  try {
    // About 4 of 16 MiB are the entry's.
    const image = node.image({ file: { content: Buffer.alloc(4 * 1024 * 1024, 1) } });
    const used = (high: number): void => {
      node.configure({ container_cache_gc_high: high, container_cache_gc_low: 5, gc_min_age: 0 });
    };
    used(50);
    await node.prolog({ id: 7, user: alice, image });
    const below = await node.epilog({ id: 7, user: alice });
    assert.is(below.line['gc'], undefined);
    assert.ok(Number(below.line['used_percent']) >= 20 && Number(below.line['used_percent']) < 50);
    await node.settle();
    assert.is(node.entries(alice).length, 1);

    used(20);
    await node.prolog({ id: 8, user: alice, image });
    const above = await node.epilog({ id: 8, user: alice });
    assert.is(above.line['gc'], 'started');
    await node.settle();
    assert.equal([node.entries(alice), node.trash()], [[], []]);
  } finally {
    umount(node.basePath);
  }
});

sweep('a stub whose making was killed goes like one that was finished', async () => {
  await using node = await TestNode.start();
  const user = node.makeUserDirectory(alice);
  // After each of the wrapper's steps; then what is none: a container of enroot's, one whose image has a
  // directory like ours.
  const steps = ['', '.container-cache', '.container-cache/entry', '.container-cache/upper'];
  const containers = ['etc', '.container-cache/upper'];
  for (const [index, step] of steps.entries()) {
    const stub = join(user, `.pyxis_7.${index}`);
    mkdirSync(join(stub, index > 0 ? '.container-cache' : ''), { recursive: true });
    if (index > 1) writeFileSync(join(stub, '.container-cache/entry'), '');
    if (index > 2) mkdirSync(join(stub, step));
  }
  for (const [index, path] of containers.entries())
    mkdirSync(join(user, `.pyxis_7.${10 + index}`, path), { recursive: true });
  command('chown', '--recursive', `${alice.uid}:${alice.gid}`, user);
  const { exitCode, line } = await node.epilog({ id: 7, user: alice });
  assert.equal([exitCode, line['stubs']], [0, '4']);
  assert.equal(node.others(alice), ['.pyxis_7.10', '.pyxis_7.11']);
  await node.settle();
});

sweep.run();
