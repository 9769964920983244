/**
 * `container-cache acquire`, as the enroot wrapper calls it: the protocol of the Prolog in the hands of a
 * user, and a holder that the Epilog finds.
 */
// test: timeout 600 s
import { chmodSync, existsSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { digestsName, imagesName, parseCreateLockName } from '../../lib/core/layout.ts';
import { processCommandLine, processUid } from '../../lib/system/processes.ts';
import { StandInRegistry } from '../helpers/directory-registry.ts';
import { isAlive, kill, nameOf, TestNode, until } from '../helpers/node.ts';
import {
  alice,
  bob,
  enterPrivateMachine,
  machineRoot,
  replaceProgram,
  unlessPrivateMachine,
} from '../helpers/private-machine.ts';
import { acquire, startAcquire } from '../helpers/run-acquire.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

/** A node on which job 7 of alice has no image of its own. */
async function startNode(settings: Readonly<Record<string, string | number>> = {}): Promise<TestNode> {
  const node = await TestNode.start({ settings });
  await node.prolog({ id: 7, user: alice });
  return node;
}

const test = suite('container-cache acquire', { skip: unlessPrivateMachine });

test('makes the entry that the job did not have, holds it as the user, and the Epilog ends that', async () => {
  await using node = await startNode();
  const image = node.image();
  const made = await acquire(node, [image]);
  assert.equal([made.exitCode, made.log?.fields['result']], [0, 'created']);
  assert.equal([made.entry], node.entries(alice).map(nameOf));
  assert.is(statSync(node.entries(alice)[0]!).uid, alice.uid);
  assert.equal(
    [processUid(made.holder!), processCommandLine(made.holder!)],
    [alice.uid, 'container-cache-lease 7 infinity'],
  );
  // In use: the collector keeps it, however full the node.
  node.configure({ container_cache_gc_high: 1, container_cache_gc_low: 0, gc_min_age: 0 });
  writeFileSync(join(machineRoot, 'ballast'), Buffer.alloc(16 * 1024 * 1024));
  await node.gc('--force');
  assert.is(node.entries(alice).length, 1);
  const { line } = await node.epilog({ id: 7, user: alice });
  assert.equal([line['steps'], isAlive(made.holder!)], ['1', false]);
  await node.settle();
  await node.gc('--force');
  assert.is(node.entries(alice).length, 0);
  rmSync(join(machineRoot, 'ballast'));
});

test('reuses the entry of another job, and one that the Prolog has leased needs no other holder', async () => {
  await using node = await startNode();
  const image = node.image();
  await node.prolog({ id: 8, user: alice, image });
  const other = await acquire(node, [image]);
  assert.equal([other.log?.fields['result'], other.holder === undefined], ['reused', false]);
  const own = await acquire(node, [image], { jobId: 8 });
  assert.equal([own.log?.fields['result'], own.holder], ['reused', undefined]);
});

test('of steps at once, of one job and of two, one unpacks', async () => {
  await using node = await startNode();
  const image = node.image();
  const answers = await Promise.all([7, 7, 8, 8, 9, 9].map((jobId) => acquire(node, [image], { jobId })));
  const results = answers.map(({ log }) => log?.fields['result']);
  assert.is(results.filter((result) => result === 'created').length, 1, results.join());
  assert.is(new Set(answers.map(({ entry }) => entry)).size, 1);
  assert.is(new Set(answers.map(({ holder }) => holder)).size, 6);
});

test('--existing takes what is there and unpacks nothing', async () => {
  await using node = await startNode();
  const image = node.image();
  // What was written a moment before it is read is not known by its times (content.ts).
  await sleep(200);
  const missing = await acquire(node, ['--existing', image]);
  assert.equal([missing.exitCode, missing.stdout, missing.log?.level], [1, '', 'debug']);
  assert.equal([node.entries(alice), node.partials(alice)], [[], []]);
  const { entry } = await acquire(node, [image]);
  assert.is((await acquire(node, ['--existing', image])).entry, entry);
});

test('leaves the unpack to enroot where the filesystem is full up to the high watermark, and nobody makes room', async () => {
  await using node = await startNode();
  for (const pid of node.roomAgents()) kill(pid);
  writeFileSync(join(machineRoot, 'ballast'), Buffer.alloc(32 * 1024 * 1024));
  node.configure({ container_cache_gc_high: 2, container_cache_gc_low: 1 });
  const { exitCode, log } = await acquire(node, [node.image()]);
  assert.equal([exitCode, log?.fields['code']], [1, 'NO_SPACE']);
  assert.equal([node.entries(alice), node.partials(alice)], [[], []]);
  rmSync(join(machineRoot, 'ballast'));
});

test('a user whom no Prolog has made a directory gets none', async () => {
  await using node = await startNode();
  const { exitCode, log } = await acquire(node, [node.image()], { user: bob });
  assert.equal([exitCode, log?.fields['code']], [1, 'USER_DIRECTORY']);
  assert.not(existsSync(node.userPath(bob)));
});

test('what it cannot serve it says, and leaves nothing', async () => {
  await using node = await startNode();
  const secret = node.image();
  chmodSync(secret, 0o600);
  const text = join(node.root, 'text');
  writeFileSync(text, 'no image');
  for (const [image, code] of [
    [secret, 'IMAGE_UNREADABLE'],
    ['/no/such', 'IMAGE_UNREADABLE'],
    [text, 'NOT_SQUASHFS'],
    ['dockerd://x', 'UNSUPPORTED_OPTION'],
    ['docker://Upper', 'BAD_REFERENCE'],
  ] as const) {
    const { exitCode, stdout, log } = await acquire(node, [image]);
    assert.equal([exitCode, stdout, log?.fields['code']], [1, '', code]);
  }
  assert.equal([node.entries(alice), node.others(alice)], [[], []]);
});

test('wrong usage, a job ID that is none and a broken configuration are told apart by the exit code', async () => {
  await using node = await startNode();
  const image = node.image();
  for (const parameters of [[], ['--existing'], ['-x', image], [image, image]])
    assert.is((await acquire(node, parameters)).exitCode, 2, parameters.join(' '));
  for (const id of ['', '0', '7;id', '../7']) {
    const { exitCode, log } = await acquire(node, [image], { environment: { SLURM_JOB_ID: id } });
    assert.equal([exitCode, log?.fields['code']], [1, 'BAD_JOB'], id);
  }
  node.writeConfig('log_target=stderr\n');
  const { exitCode, log } = await acquire(node, [image]);
  assert.equal([exitCode, log?.fields['code']], [1, 'BAD_CONFIG']);
});

test('a failed unpack leaves its room free at once', async () => {
  await using node = await startNode();
  using _ = replaceProgram('unsquashfs', '/usr/bin/unsquashfs "$@"; exit 1');
  const { exitCode, log } = await acquire(node, [node.image()]);
  assert.equal([exitCode, log?.fields['code']], [1, 'UNPACK_FAILED']);
  assert.equal([node.entries(alice), node.partials(alice)], [[], []]);
});

test('killed while it unpacks it leaves no process, and the Epilog takes the rest', async () => {
  await using node = await startNode();
  using _ = replaceProgram('unsquashfs', `exec sleep 1000`);
  const { child, answer } = startAcquire(node, [node.image()]);
  await until('it unpacks', () => node.partials(alice).length === 1);
  await until('unsquashfs runs', () => findProcess('sleep 1000') !== undefined);
  child.kill('SIGKILL');
  await answer;
  await until('its unpack is gone', () => findProcess('sleep 1000') === undefined);
  assert.is(node.partials(alice).length, 1);
  const { line } = await node.epilog({ id: 7, user: alice });
  assert.equal([line['partials'], node.partials(alice)], ['1', []]);
  await node.settle();
});

function findProcess(commandLine: string): number | undefined {
  return readdirSync('/proc')
    .map(Number)
    .find((pid) => Number.isInteger(pid) && processCommandLine(pid) === commandLine);
}

test.run();

const registry = suite('container-cache acquire: from a registry', { skip: unlessPrivateMachine });

registry('resolves the tag at each start, and says so where the registry does not answer', async () => {
  const stand = new StandInRegistry();
  await using node = await startNode({ enroot_path: stand.enrootPath });
  const uri = 'docker://reg.example:5000/app:1';
  stand.push('reg.example:5000/app:1', 'a');
  const first = await acquire(node, [uri]);
  assert.equal([first.exitCode, first.log?.fields['result']], [0, 'created']);
  stand.push('reg.example:5000/app:1', 'b');
  const moved = await acquire(node, [uri]);
  assert.equal([moved.log?.fields['result'], moved.entry === first.entry], ['created', false]);
  stand.stop();
  const alone = await acquire(node, [uri]);
  assert.equal([alone.entry, alone.log?.level], [moved.entry, 'warning']);
  assert.match(
    alone.log!.fields['reason']!,
    /^cannot reach registry reg\.example:5000: .*; using the image seen last$/,
  );
  for (const { uid, parameters } of stand.calls()) if (parameters[0] !== 'version') assert.is(uid, alice.uid);
  assert.ok(readdirSync(node.userPath(alice)).includes(digestsName));
});

registry("enroot gets the job's environment, less what would choose other programs", async () => {
  const stand = new StandInRegistry();
  const seen = join(machineRoot, 'seen');
  writeFileSync(seen, '', { mode: 0o666 });
  chmodSync(seen, 0o666);
  const spy = join(machineRoot, 'spy');
  writeFileSync(spy, `#!/bin/sh\nenv >>${seen}\nexec ${stand.enrootPath} "$@"\n`, { mode: 0o755 });
  await using node = await startNode({ enroot_path: spy });
  stand.push('app:1', 'a');
  writeFileSync(seen, '');
  const environment = { https_proxy: 'http://proxy:1', ENROOT_CONFIG_PATH: '/my/enroot', HOME: '/my/home' };
  await acquire(node, ['docker://app:1'], { environment: { ...environment, PATH: '/evil' } });
  const text = readFileSync(seen, 'utf8');
  assert.match(text, /^https_proxy=http:\/\/proxy:1$/m);
  assert.match(text, /^ENROOT_CONFIG_PATH=\/my\/enroot$/m);
  assert.match(text, /^HOME=\/my\/home$/m);
  assert.not.match(text, /^PATH=.*evil/m);
});

registry.run();

const hostile = suite('container-cache acquire: a user against the own directory', {
  skip: unlessPrivateMachine,
});

hostile('a damaged entry is made anew, and nobody else’s is touched', async () => {
  await using node = await startNode();
  const image = node.image();
  const { entry } = await acquire(node, [image]);
  await node.epilog({ id: 7, user: alice });
  rmSync(join(node.entryPath(alice, entry!), '.pyxis_cache_lock'));
  const again = await acquire(node, [image]);
  assert.equal([again.log?.fields['result'], again.entry], ['created', entry]);
  assert.ok(existsSync(join(node.entryPath(alice, entry!), '.pyxis_cache_lock')));
  const others = node.others(alice).filter((name) => name !== imagesName);
  assert.equal([others.length, parseCreateLockName(others[0]!) === undefined], [1, false]);
});

hostile.run();
