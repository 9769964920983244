/** Images from a registry: what identifies them, whom the Prolog asks, as whom, and what happens without an answer. */
// test: timeout 300 s
import {
  chmodSync,
  chownSync,
  existsSync,
  lchownSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { parseImage } from '../../lib/core/image.ts';
import { hashReference } from '../../lib/core/image-hash.ts';
import { digestsName } from '../../lib/core/layout.ts';
import { holders, processes, TestNode, until, type NodeOptions } from '../helpers/node.ts';
import {
  alice,
  command,
  enterPrivateMachine,
  homeOf,
  readersGid,
  unlessPrivateMachine,
} from '../helpers/private-machine.ts';
import { digestOf, StandInRegistry } from '../helpers/registry.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const image = 'reg.example:5000/team/app:latest';

async function startNode(
  settings: NodeOptions['settings'] = {},
  version?: string,
): Promise<{ node: TestNode; registry: StandInRegistry }> {
  const registry = new StandInRegistry(version);
  const node = await TestNode.start({
    settings: { enroot_path: registry.enrootPath, on_failure: 'fail', ...settings },
  });
  return { node, registry };
}

const markOf = (node: TestNode, entry: string | undefined): string =>
  readFileSync(join(node.entryPath(alice, entry!), 'etc/mark'), 'utf8');

const identity = suite('registry images: identity', { skip: unlessPrivateMachine });

identity('an image is imported and unpacked once, and nothing but the entry is left of it', async () => {
  const { node, registry } = await startNode();
  await using _ = node;
  registry.push(image, 'a');
  const results = [];
  for (const id of [1, 2, 3]) results.push((await node.prolog({ id, user: alice, image })).line['result']);
  assert.equal(results, ['created', 'reused', 'reused']);
  assert.is(registry.calls('import').length, 1);
  assert.is(registry.calls('digest').length, 3);
  await node.settle();
  assert.equal([node.partials(alice), node.trash()], [[], []]);
  assert.equal(command('find', node.userPath(alice), '-name', '*squashfs*'), '');
});

identity('a tag that moves is another entry, and one that moves back is the first again', async () => {
  const { node, registry } = await startNode();
  await using _ = node;
  const seen: string[] = [];
  for (const [id, mark] of [
    [1, 'a'],
    [2, 'b'],
    [3, 'a'],
  ] as const) {
    registry.push(image, mark);
    const { line } = await node.prolog({ id, user: alice, image });
    seen.push(`${line['result']!} ${markOf(node, line['entry'])}`);
  }
  assert.equal(seen, ['created a', 'created b', 'reused a']);
});

identity('two tags of one digest are one entry, and all spellings of a reference are one', async () => {
  const { node, registry } = await startNode();
  await using _ = node;
  const spellings = [
    'ubuntu',
    'docker://ubuntu',
    'library/ubuntu',
    'docker.io/library/ubuntu:latest',
    'ubuntu:24.04',
  ];
  for (const spelling of spellings) registry.push(spelling.replace('docker://', ''), 'c');
  const results = [];
  for (const [id, spelling] of spellings.entries())
    results.push((await node.prolog({ id: id + 1, user: alice, image: spelling })).line['result']);
  assert.equal(results, ['created', 'reused', 'reused', 'reused', 'reused']);
});

identity('a reference with a digest is what it says: the registry is asked for the image alone', async () => {
  const { node, registry } = await startNode();
  await using _ = node;
  const pinned = `reg.example:5000/team/app@${digestOf('d')}`;
  registry.push(pinned, 'd');
  const tagged = 'reg.example:5000/team/app:other';
  registry.push(tagged, 'd');
  assert.is((await node.prolog({ id: 1, user: alice, image: pinned })).line['result'], 'created');
  assert.equal([registry.calls('digest').length, registry.calls('import').length], [0, 1]);
  registry.stop();
  assert.is((await node.prolog({ id: 2, user: alice, image: pinned })).line['result'], 'reused');
});

identity('if-not-present asks nobody about what is there, and only once about what is not', async () => {
  const { node, registry } = await startNode({ image_freshness: 'if-not-present' });
  await using _ = node;
  registry.push(image, 'a');
  await node.prolog({ id: 1, user: alice, image });
  assert.is(registry.calls('digest').length, 1);
  registry.push(image, 'b');
  assert.is((await node.prolog({ id: 2, user: alice, image })).line['result'], 'reused');
  assert.is(registry.calls('digest').length, 1);
});

identity('an enroot that tells no digests still serves, by the reference, with a warning', async () => {
  const { node, registry } = await startNode({}, '3.5.0');
  await using _ = node;
  registry.push(image, 'a');
  assert.is((await node.prolog({ id: 1, user: alice, image })).line['result'], 'created');
  registry.push(image, 'b');
  const { line, lines } = await node.prolog({ id: 2, user: alice, image });
  assert.is(line['result'], 'reused');
  assert.match(line['reason']!, /cannot tell digests/);
  assert.is(lines.at(-1)?.level, 'warning');
});

identity.run();

const asUser = suite('registry images: as the user', { skip: unlessPrivateMachine });

asUser("enroot runs as the user, with all groups and the user's home", async () => {
  const { node, registry } = await startNode();
  await using _ = node;
  registry.push(image, 'a');
  await node.prolog({ id: 1, user: alice, image });
  for (const { uid, groups, home } of [...registry.calls('digest'), ...registry.calls('import')]) {
    assert.equal(
      [uid, [...groups].sort((a, b) => a - b), home],
      [alice.uid, [alice.gid, readersGid], homeOf(alice)],
    );
  }
  assert.ok(registry.calls('import').length > 0);
});

asUser('a reference is one parameter, whatever is in it, or none at all', async () => {
  const { node, registry } = await startNode();
  await using _ = node;
  for (const hostile of [
    '$(id)',
    'a b',
    '--output',
    '-x',
    'x;id',
    '`id`',
    'a\nb',
    '../../etc/passwd\u0000'.slice(0, -1),
  ]) {
    const { exitCode } = await node.prolog({ id: 1, user: alice, image: `docker://${hostile}` });
    assert.is(exitCode, 0, hostile);
  }
  for (const { parameters } of registry.calls()) {
    assert.ok(['digest', 'version'].includes(parameters[0]!), parameters.join(' '));
    if (parameters[0] === 'digest') assert.match(parameters[1]!, /^docker:\/\//);
  }
});

asUser.run();

const trouble = suite('registry images: without an answer', { skip: unlessPrivateMachine });

trouble('the digest seen last is used, with a warning', async () => {
  const { node, registry } = await startNode();
  await using _ = node;
  registry.push(image, 'a');
  const first = await node.prolog({ id: 1, user: alice, image });
  registry.stop();
  const { exitCode, line, lines } = await node.prolog({ id: 2, user: alice, image });
  assert.equal([exitCode, line['result'], line['entry']], [0, 'reused', first.line['entry']]);
  assert.match(line['reason']!, /registry did not answer/);
  assert.is(lines.at(-1)?.level, 'warning');
});

trouble('an image never seen is not served: the job runs without the cache', async () => {
  const { node, registry } = await startNode();
  await using _ = node;
  registry.stop();
  const { exitCode, line } = await node.prolog({ id: 1, user: alice, image });
  assert.equal([exitCode, line['result'], line['code']], [0, 'failed', 'IMPORT_FAILED']);
  assert.equal([node.entries(alice), holders()], [[], []]);
});

for (const [what, content] of [
  ['fails', undefined],
  ['gives no image', 'no squashfs'],
] as const) {
  trouble(`an import that ${what} makes no entry and leaves nothing behind`, async () => {
    const { node, registry } = await startNode();
    await using _ = node;
    registry.push(image, 'a');
    registry.spoilImage(image, content);
    const { exitCode, line } = await node.prolog({ id: 1, user: alice, image });
    assert.is(exitCode, 0);
    assert.ok(['IMPORT_FAILED', 'NOT_SQUASHFS'].includes(line['code']!), line['reason']);
    await node.settle();
    assert.equal([node.entries(alice), node.partials(alice), node.trash(), holders()], [[], [], [], []]);
  });
}

/** Everything that enroot started: by the script's name, or as its child that waits. */
const enrootProcesses = (registry: StandInRegistry): string[] =>
  processes()
    .map(({ commandLine }) => commandLine)
    .filter((line) => line.includes(registry.enrootPath));

trouble('an import that takes longer than create_timeout is ended with all that it started', async () => {
  const { node, registry } = await startNode({ create_timeout: 1 });
  await using _ = node;
  registry.push(image, 'a');
  registry.hold();
  const { exitCode, line } = await node.prolog({ id: 1, user: alice, image });
  assert.is(exitCode, 0);
  assert.is(line['code'], 'CREATE_TIMEOUT', line['reason']);
  await until('enroot has ended', () => enrootProcesses(registry).length === 0);
  await node.settle();
  assert.equal([node.entries(alice), node.partials(alice), node.trash()], [[], [], []]);
});

trouble(
  'a Prolog killed in an import takes enroot with it, and the Epilog removes what is left',
  async () => {
    const { node, registry } = await startNode();
    await using _ = node;
    registry.push(image, 'a');
    registry.hold();
    const prolog = node.startProlog({ id: 1, user: alice, image });
    await until('the import is at work', () => {
      const [partial] = node.partials(alice);
      const temporary = join(node.userPath(alice), partial ?? 'none', 'tmp');
      return existsSync(temporary) && readdirSync(temporary).length > 0;
    });
    prolog.kill('SIGKILL');
    await prolog.result;
    await until('enroot has ended', () => enrootProcesses(registry).length === 0);
    await node.epilog({ id: 1, user: alice });
    await node.settle();
    assert.equal([node.partials(alice), node.trash()], [[], []]);
    registry.release();
    assert.is((await node.prolog({ id: 2, user: alice, image })).line['result'], 'created');
  },
);

trouble('a node without enroot says so; that is a fault of the node', async () => {
  await using node = await TestNode.start({ settings: { enroot_path: '/no/such/enroot' } });
  for (const [policy, expected] of [
    ['continue', 0],
    ['fail', 1],
  ] as const) {
    node.configure({ enroot_path: '/no/such/enroot', on_failure: policy });
    const { exitCode, line } = await node.prolog({ id: 1, user: alice, image });
    assert.equal([exitCode, line['result'], line['code']], [expected, 'failed', 'TOOL_MISSING']);
  }
});

trouble.run();

const remembered = suite('registry images: the remembered digest', {
  skip: unlessPrivateMachine,
});

/** The file that remembers the digest of `image`. */
function digestFile(node: TestNode): string {
  const request = parseImage(image, undefined);
  if (request.kind !== 'registry') throw new Error('not a reference');
  return join(node.userPath(alice), digestsName, hashReference(request.canonical));
}

const makeOwn = (path: string): void => {
  chownSync(path, alice.uid, alice.gid);
};

const spoilers: readonly [string, (file: string, directory: string, node: TestNode) => void][] = [
  [
    'nonsense',
    (file) => {
      writeFileSync(file, `sha256:${'x'.repeat(64)}\n`);
    },
  ],
  [
    'too long',
    (file) => {
      writeFileSync(file, `${digestOf('a')}${' '.repeat(1024 * 1024)}`);
    },
  ],
  [
    'a FIFO',
    (file) => {
      command('rm', '--recursive', '--force', file);
      command('mkfifo', file);
      makeOwn(file);
    },
  ],
  [
    'a directory',
    (file) => {
      command('rm', '--recursive', '--force', file);
      mkdirSync(join(file, 'x'), { recursive: true });
      command('chown', '--recursive', `${alice.uid}`, file);
    },
  ],
  [
    'in a directory that is a symlink to one of root',
    (_, directory, node) => {
      command('rm', '--recursive', '--force', directory);
      mkdirSync(join(node.root, 'precious'));
      symlinkSync(join(node.root, 'precious'), directory);
      lchownSync(directory, alice.uid, alice.gid);
    },
  ],
  [
    'in a directory that is a file',
    (_, directory) => {
      command('rm', '--recursive', '--force', directory);
      writeFileSync(directory, '');
    },
  ],
  [
    'in a directory that is closed',
    (_, directory) => {
      chmodSync(directory, 0o000);
    },
  ],
];

for (const [what, spoil] of spoilers) {
  remembered(`one that is ${what} disturbs nothing, with an answer and without one`, async () => {
    const { node, registry } = await startNode();
    await using _ = node;
    registry.push(image, 'a');
    const first = await node.prolog({ id: 1, user: alice, image });
    const file = digestFile(node);
    assert.is(readFileSync(file, 'utf8'), `${digestOf('a')}\n`);
    spoil(file, join(node.userPath(alice), digestsName), node);

    registry.push(image, 'b');
    const again = await node.prolog({ id: 2, user: alice, image });
    assert.equal([first.line['result'], again.exitCode, again.line['result']], ['created', 0, 'created']);
    if (existsSync(join(node.root, 'precious'))) assert.equal(readdirSync(join(node.root, 'precious')), []);

    command('rm', '--recursive', '--force', join(node.root, 'precious'));
    spoil(file, join(node.userPath(alice), digestsName), node);
    registry.stop();
    const without = await node.prolog({ id: 3, user: alice, image });
    assert.equal([without.exitCode, without.line['code']], [0, 'IMPORT_FAILED']);
  });
}

remembered.run();
