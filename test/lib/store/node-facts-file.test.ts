/**
 * What the Prolog finds out of its node for the enroot wrapper: when, as whom, and what it makes of an enroot
 * it does not know.
 */
// test: timeout 600 s
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import {
  failureLimitMs,
  formatNodeFacts,
  parseNodeFacts,
  type NodeFacts,
} from '../../../lib/core/node-facts.ts';
import { nobody } from '../../../lib/system/as-user.ts';
import { probeOverlay } from '../../../lib/system/overlay.ts';
import { StandInRegistry } from '../../helpers/directory-registry.ts';
import { TestNode } from '../../helpers/node.ts';
import {
  alice,
  enterPrivateMachine,
  machineRoot,
  replaceProgram,
  unlessPrivateMachine,
} from '../../helpers/private-machine.ts';
import { assert, suite } from '../../helpers/suite.ts';

enterPrivateMachine();

const test = suite('node facts on a node', { skip: unlessPrivateMachine });

const factsOf = (node: TestNode): NodeFacts | undefined =>
  parseNodeFacts(readFileSync(join(node.runtimePath, 'node'), 'utf8'));

async function startNode(
  settings: Readonly<Record<string, string>> = {},
  version?: string,
): Promise<{ node: TestNode; enroot: StandInRegistry }> {
  const enroot = new StandInRegistry(version);
  return {
    node: await TestNode.start({ settings: { enroot_path: enroot.enrootPath, ...settings } }),
    enroot,
  };
}

test('are written by the first Prolog, of a job without a container, too, and not again', async () => {
  const { node, enroot } = await startNode({ isolation: 'overlay' });
  await using _ = node;
  const first = await node.prolog({ id: 1, user: alice });
  assert.equal(first.nodeLine?.fields, { isolation: 'overlay', enroot: enroot.enrootPath, version: '4.1.2' });
  const path = join(node.runtimePath, 'node');
  assert.equal([statSync(path).uid, statSync(path).mode & 0o777], [0, 0o644]);
  const facts = factsOf(node)!;
  assert.equal(
    [facts.basePath, facts.imageFreshness, facts.mountsFile],
    [node.basePath, 'always', '/etc/enroot/mounts.d/00-container-cache.fstab'],
  );
  assert.ok(facts.command?.endsWith('/dist/container-cache'));
  const written = statSync(path).mtimeMs;
  const second = await node.prolog({ id: 2, user: alice });
  assert.equal([second.nodeLine, statSync(path).mtimeMs, enroot.calls().length], [undefined, written, 1]);
});

test('say it once where Slurm hides the base from jobs, and no more once it does not', async () => {
  const { node, enroot } = await startNode({ isolation: 'overlay' });
  await using _ = node;
  const conf = join(node.root, 'slurm.conf');
  const environment = { SLURM_CONF: conf };
  writeFileSync(conf, 'JobContainerType=job_container/tmpfs\n');
  const dirs = (text: string): void => {
    writeFileSync(join(node.root, 'job_container.conf'), `AutoBasePath=true BasePath=/x Dirs=${text}\n`);
  };
  dirs(`/tmp,${node.root}`);
  const lines = [];
  for (const id of [1, 2, 3]) lines.push((await node.prolog({ id, user: alice, environment })).nodeLine);
  assert.equal(
    [lines[0]?.level, lines[0]?.fields['isolation'], ...lines.slice(1)],
    ['warning', 'off', undefined, undefined],
  );
  assert.match(
    lines[0]?.fields['reason'] ?? '',
    /^job_container\/tmpfs gives each job a \/.* of its own, where .* is not to be seen/,
  );
  dirs('/tmp,/dev/shm');
  node.configure({ enroot_path: enroot.enrootPath, isolation: 'overlay', image_freshness: 'if-not-present' });
  const after = await node.prolog({ id: 4, user: alice, environment });
  assert.is(after.nodeLine?.fields['isolation'], 'overlay');
});

test('are found out anew after a change of the configuration or of enroot', async () => {
  const { node, enroot } = await startNode({ isolation: 'overlay' });
  await using _ = node;
  await node.prolog({ id: 1, user: alice });
  node.configure({ enroot_path: enroot.enrootPath, isolation: 'shared' });
  await node.prolog({ id: 2, user: alice });
  assert.is(factsOf(node)?.isolation, 'shared');
  utimesSync(enroot.enrootPath, 1, 1);
  const { nodeLine } = await node.prolog({ id: 3, user: alice });
  assert.is(nodeLine?.fields['isolation'], 'shared');
  writeFileSync(join(node.runtimePath, 'node'), 'isolation=overlay\n');
  await node.prolog({ id: 4, user: alice });
  assert.is(factsOf(node)?.isolation, 'shared');
});

test("nobody is asked for them, not the job's user, who could lie; and nothing of it stays", async () => {
  const { node, enroot } = await startNode();
  await using _ = node;
  await node.prolog({ id: 1, user: alice });
  assert.equal(
    enroot.calls().map(({ uid, parameters }) => [uid, parameters]),
    [[nobody.uid, ['version']]],
  );
  assert.equal(
    readdirSync(node.runtimePath).filter((name) => !name.startsWith('room')),
    ['node'],
  );
  assert.equal(readdirSync(node.basePath), [String(alice.uid)]);
});

for (const [version, reason] of [
  ['2.2.0', /is version 2\.2\.0, want 3\.4 to 4\.x/],
  ['5.0.0', /is version 5\.0\.0/],
  ['none', /does not tell its version/],
] as const) {
  test(`an enroot of version ${version} is left alone`, async () => {
    const { node } = await startNode({ isolation: 'overlay' }, version);
    await using _ = node;
    const { nodeLine } = await node.prolog({ id: 1, user: alice });
    assert.is(factsOf(node)?.isolation, 'off');
    assert.is(nodeLine?.level, 'warning');
    assert.match(nodeLine?.fields['reason'] ?? '', reason);
  });
}

test('without an enroot, or with isolation=off, containers are left alone', async () => {
  await using node = await TestNode.start({ settings: { enroot_path: '/no/such/enroot' } });
  await node.prolog({ id: 1, user: alice });
  assert.equal([factsOf(node)?.isolation, factsOf(node)?.enrootPath], ['off', undefined]);
  const { node: other } = await startNode({ isolation: 'off' });
  await using _ = other;
  const { nodeLine } = await other.prolog({ id: 1, user: alice });
  assert.equal([factsOf(other)?.isolation, nodeLine?.level], ['off', 'info']);
});

test('isolation=auto means overlays where a user can mount one, else shared, and the reason is told', async () => {
  const probe = await probeOverlay(machineRoot, undefined);
  const { node } = await startNode();
  await using _ = node;
  await node.prolog({ id: 1, user: alice });
  assert.is(factsOf(node)?.isolation, probe.works ? 'overlay' : 'shared');
  using _noMounts = replaceProgram('mount', 'echo "mount: permission denied" >&2; exit 32');
  const { node: other } = await startNode();
  await using __ = other;
  const { nodeLine } = await other.prolog({ id: 1, user: alice });
  assert.equal([factsOf(other)?.isolation, nodeLine?.level], ['shared', 'warning']);
  assert.match(factsOf(other)!.reason!, /permission denied/);
});

test('an enroot that did not answer, as on a busy node, is asked again a few minutes later', async () => {
  const { node } = await startNode({ isolation: 'overlay' }, 'none');
  await using _ = node;
  await node.prolog({ id: 1, user: alice });
  const facts = factsOf(node)!;
  assert.equal([facts.isolation, facts.validUntilMs === undefined], ['off', false]);
  const enroot = new StandInRegistry();
  node.configure({ enroot_path: enroot.enrootPath, isolation: 'overlay' });
  await node.prolog({ id: 2, user: alice });
  const decided = factsOf(node)!;
  assert.equal([decided.isolation, decided.validUntilMs], ['overlay', undefined]);
  // As if it had failed, just now and five minutes ago.
  for (const [ageMs, isolation] of [
    [0, 'off'],
    [failureLimitMs, 'overlay'],
  ] as const) {
    const old = { ...decided, isolation: 'off', validUntilMs: Date.now() + failureLimitMs - ageMs } as const;
    writeFileSync(join(node.runtimePath, 'node'), formatNodeFacts(old));
    await node.prolog({ id: 3, user: alice });
    assert.is(factsOf(node)?.isolation, isolation);
  }
});

test("pyxis' importer is found as Slurm finds it, and anew after each change, by itself", async () => {
  const { node, enroot } = await startNode({ isolation: 'overlay' });
  await using _ = node;
  const etc = join(node.root, 'slurm');
  mkdirSync(join(etc, 'stack.d'), { recursive: true });
  const environment = { SLURM_CONF: join(etc, 'slurm.conf') };
  const importerAfter = async (change: () => void): Promise<string | undefined> => {
    change();
    await node.prolog({ id: 1, user: alice, environment });
    return factsOf(node)?.importer;
  };
  const write = (name: string, text: string) => (): void => {
    writeFileSync(join(etc, name), text);
  };
  assert.is(await importerAfter(() => undefined), undefined, 'there is no slurm.conf');
  assert.is(await importerAfter(write('slurm.conf', 'ClusterName=x\n')), 'none');
  assert.is(await importerAfter(write('plugstack.conf', 'required spank_pyxis.so importer=/a\n')), '/a');
  assert.is(await importerAfter(write('plugstack.conf', 'include stack.d/*.conf\n')), 'none');
  assert.is(
    await importerAfter(write('stack.d/p.conf', 'optional spank_pyxis.so importer=/b runtime_path=/r\n')),
    '/b',
  );
  assert.is(factsOf(node)?.pyxisRuntimePath, '/r');
  const { atime, mtime } = statSync(join(etc, 'stack.d/p.conf'));
  const replace = (): void => {
    write('stack.d/p.conf', 'optional spank_pyxis.so importer=/c runtime_path=/r\n')();
    utimesSync(join(etc, 'stack.d/p.conf'), atime, mtime);
  };
  assert.is(await importerAfter(replace), '/c', 'of the same size and time');
  assert.is(
    await importerAfter(write('stack.d/p.conf', 'optional spank_pyxis.so importer=here/d\n')),
    undefined,
  );
  assert.is(
    await importerAfter(write('slurm.conf', 'Include more.conf\n')),
    undefined,
    'an Include is missing',
  );
  assert.is(await importerAfter(write('more.conf', `PlugStackConfig=${etc}/other.conf\n`)), undefined);
  assert.is(await importerAfter(write('other.conf', 'required "/x/spank_pyxis.so"\n')), 'none');
  assert.is(await importerAfter(() => rmSync(join(etc, 'other.conf'))), undefined);
  assert.is(enroot.calls('version').length, 1);
});

test('a node that cannot keep them runs its jobs', async () => {
  await using node = await TestNode.start();
  writeFileSync(node.runtimePath, 'a file');
  const { exitCode, nodeLine, line } = await node.prolog({ id: 1, user: alice });
  assert.equal([exitCode, line['result'], nodeLine?.level], [0, 'none', 'warning']);
  assert.ok(existsSync(node.userPath(alice)));
});

test.run();
