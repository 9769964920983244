/**
 * What of root our programs hand on: capabilities, descriptors, file modes, limits and environment of what
 * they start are set by us, whatever slurmd's are.
 */
// test: timeout 600 s
import { chmodSync, existsSync, mkdtempSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { leasePath, leasesPath } from '../../lib/core/layout.ts';
import { HeldProgram } from '../helpers/held-program.ts';
import { openFiles, TestNode } from '../helpers/node.ts';
import {
  alice,
  command,
  enterPrivateMachine,
  machineRoot,
  replaceProgram,
  unlessPrivateMachine,
} from '../helpers/private-machine.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const test = suite('privileges', { skip: unlessPrivateMachine });

/** Bits of capabilities(7), of which the header is linux/capability.h. */
const capabilityBits = {
  dac_override: 1,
  fowner: 3,
  kill: 5,
  setgid: 6,
  setuid: 7,
  setpcap: 8,
  sys_ptrace: 19,
};

function capabilitySet(...names: readonly (keyof typeof capabilityBits)[]): string {
  const set = names.reduce((bits, name) => bits | (1n << BigInt(capabilityBits[name])), 0n);
  return set.toString(16).padStart(16, '0');
}

/** Lines `Name: value` of a file of /proc. */
const readFields = (text: string): Map<string, string> =>
  new Map([...text.matchAll(/^(\w+):\s+(.*)$/gm)].map(([, name = '', value = '']) => [name, value]));

const capabilitiesOf = (pid: number): (string | undefined)[] => {
  const fields = readFields(readFileSync(`/proc/${pid}/status`, 'utf8'));
  return ['CapPrm', 'CapBnd', 'CapInh', 'CapAmb'].map((name) => fields.get(name));
};

const none = capabilitySet();
/** Above the high watermark of `collecting`, on the machine's 1 GiB. */
const bytes = 20 * 1024 ** 2;
const collecting = { container_cache_gc_high: 1, container_cache_gc_low: 0, gc_min_age: 0 };

test('the collector in the background and what deletes for it keep only the capabilities that they need', async () => {
  await using node = await TestNode.start({ settings: collecting });
  node.plant(alice, { hash: '00000000000000ff', usedSecondsAgo: 1000, bytes, files: 100 });
  using deletions = new HeldProgram('find', { where: '*-delete*' });
  await node.epilog({ id: 1, user: alice });
  await deletions.started();
  const [find = 0] = deletions.pids();
  const status = readFields(readFileSync(`/proc/${find}/status`, 'utf8'));
  const collector = Number(status.get('PPid'));
  const ofCollector = capabilitySet(
    'dac_override',
    'fowner',
    'kill',
    'setgid',
    'setuid',
    'setpcap',
    'sys_ptrace',
  );
  assert.equal(capabilitiesOf(collector), [ofCollector, ofCollector, none, none]);
  // It deletes as the tree's user.
  assert.equal(capabilitiesOf(find), [none, none, none, none]);
  assert.equal(status.get('Uid'), [59001, 59001, 59001, 59001].join('\t'));
  deletions.letGo();
  await node.settle();
  assert.equal([node.entries(alice), node.trash()], [[], []]);
});

test('with these capabilities it deletes what nobody may enter, and sees what others have mounted', async () => {
  await using node = await TestNode.start({ settings: collecting });
  const closed = node.plant(alice, { hash: '00000000000000f0', usedSecondsAgo: 1000, bytes });
  command(
    'setpriv',
    '--reuid=59001',
    '--regid=59001',
    '--clear-groups',
    'sh',
    '-c',
    `mkdir ${closed}/in && : >${closed}/in/file && chmod 0 ${closed}/in`,
  );
  const mounted = node.plant(alice, { hash: '00000000000000f1', usedSecondsAgo: 1000, bytes });
  // A process of the user, in namespaces of its own, as a container is.
  using container = new HeldProgram('true');
  const user = ['setpriv', '--reuid=59001', '--regid=59001', '--clear-groups', '--'];
  const script = `${user.join(' ')} unshare --user --map-root-user --mount sh -c 'mount --bind ${mounted} ${mounted} && exec /usr/local/sbin/true' &`;
  command('bash', '-c', `{ ${script} } >/dev/null 2>&1 </dev/null`);
  await container.started();
  await node.epilog({ id: 1, user: alice });
  await node.settle();
  assert.equal([closed, mounted].map(existsSync), [false, true]);
  assert.equal(node.trash(), []);
});

test('the holder of a lease has nothing open that slurmd left open', async () => {
  await using node = await TestNode.start();
  const leaked = ['exec 30</etc/passwd 40<>/dev/zero 300</etc/group', 'exec "$@"'].join('; ');
  const job = { id: 1, user: alice, image: node.image() };
  const { line } = await node.prolog({ ...job, wrapper: ['bash', '-c', leaked, 'bash'] });
  assert.is(line['result'], 'created');
  const { pid } = node.lease(1)!.holder;
  const open = openFiles(pid).map(({ path }) => path);
  assert.equal(open.filter((path) => path !== '/dev/null').length, 1, open.join(', '));
  assert.match(open.at(-1) ?? '', /\.pyxis_cache_lock$/);
});

test('nothing that a Prolog starts has the supplementary groups of slurmd', async () => {
  await using node = await TestNode.start();
  const job = { id: 1, user: alice, image: node.image() };
  const { line } = await node.prolog({ ...job, wrapper: ['setpriv', '--groups=4,59003', '--'] });
  assert.is(line['result'], 'created');
  const { pid } = node.lease(1)!.holder;
  assert.match(readFileSync(`/proc/${pid}/status`, 'utf8'), /^Groups:[ \t]*$/m);
});

// Without the owner's right to write, which an entry's lock file loses when the disk has it all.
test('file modes do not depend on the umask of slurmd', async () => {
  const modes = async (umask: string): Promise<string[]> => {
    await using node = await TestNode.start();
    const job = { id: 1, user: alice, image: node.image() };
    const { line } = await node.prolog({
      ...job,
      wrapper: ['bash', '-c', `umask ${umask}; exec "$@"`, 'bash'],
    });
    assert.is(line['result'], 'created');
    const [entry = ''] = node.entries(alice);
    const { runtimePath } = node;
    const lock = node.createLock(alice);
    const jobFiles = ['', '/env', '/images'].map((name) => join(runtimePath, 'jobs/1', name));
    const files = [node.userPath(alice), entry, join(entry, '.pyxis_cache_lock'), lock, runtimePath];
    return [
      ...files,
      leasesPath(runtimePath),
      leasePath(runtimePath, 1),
      ...jobFiles,
      join(runtimePath, 'node'),
    ].map((path) => `${path.slice(node.root.length)} ${(statSync(path).mode & 0o7577).toString(8)}`);
  };
  const usual = (await modes('022')).map((text) => text.replace(/.* /, ''));
  assert.equal(
    (await modes('000')).map((text) => text.replace(/.* /, '')),
    usual,
  );
  assert.equal(
    (await modes('777')).map((text) => text.replace(/.* /, '')),
    usual,
  );
});

test('what unpacks an image has no capability, no core file, few open files, and nothing of the environment of slurmd', async () => {
  await using node = await TestNode.start();
  const notes = mkdtempSync(join(machineRoot, 'notes-'));
  chmodSync(notes, 0o777);
  using _ = replaceProgram(
    'unsquashfs',
    `cat /proc/self/status >${notes}/status; cat /proc/self/limits >${notes}/limits; env >${notes}/environment; exec /usr/bin/unsquashfs "$@"`,
  );
  const environment = { LD_LIBRARY_PATH: '/tmp', BASH_ENV: '/tmp/x', SECRET: 'of slurmd' };
  const { line } = await node.prolog({ id: 1, user: alice, image: node.image(), environment });
  assert.is(line['result'], 'created');
  const read = (name: string): string => readFileSync(join(notes, name), 'utf8');
  const status = readFields(read('status'));
  assert.equal(
    ['CapPrm', 'CapEff', 'CapBnd', 'NoNewPrivs'].map((name) => status.get(name)),
    [none, none, none, '1'],
  );
  assert.equal(status.get('Uid'), [59001, 59001, 59001, 59001].join('\t'));
  assert.match(read('limits'), /^Max core file size +0 +0 /m);
  const openFilesMax = /^Max open files +(\d+)/m.exec(read('limits'))?.[1];
  assert.ok(Number(openFilesMax) <= 65_536, openFilesMax);
  const names = read('environment').match(/^\w+(?==)/gm) ?? [];
  // The shell of this test adds its own.
  assert.equal(names.filter((name) => !['PWD', 'SHLVL', '_', 'OLDPWD'].includes(name)).sort(), [
    'LC_ALL',
    'PATH',
  ]);
});

test.run();
