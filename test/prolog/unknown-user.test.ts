/** Users whom the node's passwd does not know (nss_slurm): what Slurm says of them is enough. */
// test: timeout 600 s
import { chmodSync, chownSync, readFileSync, statSync } from 'node:fs';
import { StandInRegistry } from '../helpers/directory-registry.ts';
import { isAlive, processes, TestNode, until } from '../helpers/node.ts';
import {
  alice,
  command,
  enterPrivateMachine,
  readersGid,
  replaceFile,
  umount,
  unlessPrivateMachine,
  type TestUser,
} from '../helpers/private-machine.ts';
import { startAcquire } from '../helpers/run-acquire.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const settings = { container_cache_gc_high: 100, container_cache_gc_low: 99, on_failure: 'fail' };
/** As Slurm calls a user whose name it does not know. */
const stranger: TestUser = { uid: 61_001, gid: 61_001, name: 'nobody' };
/** The group database knows the name. */
const member: TestUser = { uid: 61_002, gid: 61_002, name: 'member' };
/** Another user, with another uid, is called the same here. */
const namesake: TestUser = { uid: 61_003, gid: 61_003, name: alice.name };

const test = suite('users that passwd does not know', { skip: unlessPrivateMachine });

test.before(() => {
  if (unlessPrivateMachine !== undefined) return;
  for (const { uid } of [stranger, member, namesake])
    assert.not(readFileSync('/etc/passwd', 'utf8').includes(`:${uid}:`));
  replaceFile('/etc/group', (text) =>
    text.replace(/^(imagereaders:.*)$/m, (line) => `${line},${member.name}`),
  );
});

/** An image that only a group may read. */
function imageForReaders(node: TestNode): string {
  const image = node.image();
  chmodSync(image, 0o640);
  chownSync(image, 0, readersGid);
  return image;
}

test('their jobs have entries, which are theirs', async () => {
  await using node = await TestNode.start({ settings });
  const image = node.image();
  const first = await node.prolog({ id: 1, user: stranger, image });
  assert.equal([first.exitCode, first.line['result']], [0, 'created']);
  assert.equal((await node.prolog({ id: 2, user: stranger, image })).line['result'], 'reused');
  const { uid, gid } = statSync(node.entries(stranger)[0]!);
  assert.equal([uid, gid], [stranger.uid, stranger.gid]);
  const { line } = await node.epilog({ id: 1, user: stranger });
  assert.equal([line['result'], line['holders']], ['released', '1']);
});

test('they have the groups that can be found, and no namesake has', async () => {
  await using node = await TestNode.start({ settings });
  const image = imageForReaders(node);
  assert.is((await node.prolog({ id: 1, user: member, image })).line['result'], 'created');
  for (const user of [stranger, namesake]) {
    const { exitCode, line } = await node.prolog({ id: 2, user, image });
    assert.equal([exitCode, line['code']], [0, 'IMAGE_UNREADABLE'], user.name);
  }
});

test('a user whom passwd knew a moment ago goes on', async () => {
  await using node = await TestNode.start({ settings });
  const image = node.image();
  await node.prolog({ id: 1, user: alice, image });
  replaceFile('/etc/passwd', (text) => text.replace(new RegExp(`^${alice.name}:.*\n`, 'm'), ''));
  try {
    const { line } = await node.prolog({ id: 2, user: alice, image });
    assert.is(line['result'], 'reused');
  } finally {
    umount('/etc/passwd');
  }
});

const isWarming = (): boolean => processes().some(({ commandLine }) => / warm --user=/.test(commandLine));

async function untilUnpacked(node: TestNode, user: TestUser): Promise<void> {
  await until('the entry is there', () => node.entries(user).length === 1);
  await until('nothing is being unpacked', () => !isWarming());
}

test('create_mode=background unpacks for them, with their groups', async () => {
  await using node = await TestNode.start({ settings: { ...settings, create_mode: 'background' } });
  for (const [user, image] of [
    [stranger, node.image()],
    [member, imageForReaders(node)],
  ] as const) {
    assert.is((await node.prolog({ id: 1, user, image })).line['code'], 'UNPACKING');
    await untilUnpacked(node, user);
    assert.is(statSync(node.entries(user)[0]!).uid, user.uid);
  }
});

test('what their steps would not wait for is unpacked after the job', async () => {
  await using node = await TestNode.start({ settings: { ...settings, create_mode: 'background' } });
  const image = node.image();
  await node.prolog({ id: 1, user: stranger });
  await startAcquire(node, [image], { jobId: 1, user: stranger }).answer;
  const { line } = await node.epilog({ id: 1, user: stranger });
  assert.is(line['unpacking'], '1');
  await untilUnpacked(node, stranger);
});

test('what holds an entry for a step of theirs ends with the Epilog', async () => {
  await using node = await TestNode.start({ settings });
  await node.prolog({ id: 1, user: stranger });
  const { holder } = await startAcquire(node, [node.image()], { jobId: 1, user: stranger }).answer;
  assert.ok(holder !== undefined && isAlive(holder));
  const { exitCode, line } = await node.epilog({ id: 1, user: stranger });
  assert.equal([exitCode, line['steps'], isAlive(holder)], [0, '1', false]);
});

test('their images come from registries, with a home directory that leaves nothing large', async () => {
  const registry = new StandInRegistry();
  const reference = 'reg.example:5000/team/app:latest';
  registry.push(reference, 'a');
  await using node = await TestNode.start({ settings: { ...settings, enroot_path: registry.enrootPath } });
  const { exitCode, line, stderr } = await node.prolog({ id: 1, user: stranger, image: reference });
  assert.equal([exitCode, line['result']], [0, 'created'], stderr);
  for (const call of [...registry.calls('digest'), ...registry.calls('import')]) {
    assert.is(call.uid, stranger.uid);
    assert.ok(call.home.startsWith(`${node.userPath(stranger)}/`), call.home);
  }
  assert.match(registry.calls('import')[0]!.home, /\.partial\/tmp$/);
});

test('an admin warms an image for them, by their numbers', async () => {
  await using node = await TestNode.start({ settings });
  const image = node.image();
  const user = ['--user', String(stranger.uid)];
  assert.is((await node.admin('warm', image, ...user).result).exitCode, 1);
  assert.is((await node.admin('warm', image, ...user, '--group', 'x').result).exitCode, 2);
  const { exitCode } = await node.admin('warm', image, ...user, '--group', String(stranger.gid)).result;
  assert.equal([exitCode, node.entries(stranger).length], [0, 1]);
  assert.is(command('stat', '--format=%u:%g', node.entries(stranger)[0]!).trim(), '61001:61001');
});

test.run();
