/**
 * Images from a registry: what identifies them, whom the Prolog asks, as whom, and what happens without an
 * answer.
 */
// test: timeout 600 s
import {
  chmodSync,
  chownSync,
  existsSync,
  lchownSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { parseImage } from '../../lib/core/image.ts';
import { digestsName, registriesPath, registryMemoryPath } from '../../lib/core/layout.ts';
import { hashReference, hashRegistry } from '../../lib/image/image-hash.ts';
import { digestOf, StandInRegistry } from '../helpers/directory-registry.ts';
import { holders, processes, TestNode, until, type NodeOptions } from '../helpers/node.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  homeOf,
  readersGid,
  unlessPrivateMachine,
} from '../helpers/private-machine.ts';
import { acquire } from '../helpers/run-acquire.ts';
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
  // Before an import it is asked how much room that will take.
  assert.is(registry.calls('digest').length, 4);
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

identity(
  'a reference with a digest is what it says: whether it is there is asked before it is unpacked',
  async () => {
    const { node, registry } = await startNode();
    await using _ = node;
    const pinned = `reg.example:5000/team/app@${digestOf('d')}`;
    registry.push(pinned, 'd');
    const tagged = 'reg.example:5000/team/app:other';
    registry.push(tagged, 'd');
    assert.is((await node.prolog({ id: 1, user: alice, image: pinned })).line['result'], 'created');
    assert.equal([registry.calls('digest').length, registry.calls('import').length], [2, 1]);
    registry.stop();
    assert.is((await node.prolog({ id: 2, user: alice, image: pinned })).line['result'], 'reused');
  },
);

identity('if-not-present asks nobody about what is there, and only once about what is not', async () => {
  const { node, registry } = await startNode({ image_freshness: 'if-not-present' });
  await using _ = node;
  registry.push(image, 'a');
  await node.prolog({ id: 1, user: alice, image });
  assert.is(registry.calls('digest').length, 2);
  registry.push(image, 'b');
  assert.is((await node.prolog({ id: 2, user: alice, image })).line['result'], 'reused');
  assert.is(registry.calls('digest').length, 2);
});

identity('what a tag resolved to is what is unpacked, though the tag moves meanwhile', async () => {
  const { node, registry } = await startNode();
  await using _ = node;
  registry.push(image, 'a');
  registry.pushAfterDigest(image, 'b');
  const first = await node.prolog({ id: 1, user: alice, image });
  const second = await node.prolog({ id: 2, user: alice, image });
  const pinned = image.replace(':latest', `@${digestOf('a')}`);
  const third = await node.prolog({ id: 3, user: alice, image: pinned });
  assert.equal(
    [first, second, third].map(({ line }) => `${line['result']!} ${markOf(node, line['entry'])}`),
    ['created a', 'created b', 'reused a'],
  );
});

identity('a digest that cannot be had is no entry, whatever its tag leads to', async () => {
  const { node, registry } = await startNode();
  await using _ = node;
  registry.push(image, 'a');
  registry.forget(image, 'a');
  const { exitCode, line } = await node.prolog({ id: 1, user: alice, image });
  assert.equal([exitCode, line['code']], [0, 'REGISTRY_REFUSED']);
  assert.equal([node.entries(alice), holders()], [[], []]);
});

identity(
  'if-not-present: what is not there any more is asked for anew, and kept as what it is now',
  async () => {
    const { node, registry } = await startNode({ image_freshness: 'if-not-present' });
    await using _ = node;
    registry.push(image, 'a');
    const first = await node.prolog({ id: 1, user: alice, image });
    await node.epilog({ id: 1, user: alice });
    command('rm', '--recursive', '--force', node.entryPath(alice, first.line['entry']!));
    registry.push(image, 'b');
    const { line } = await node.prolog({ id: 2, user: alice, image });
    assert.equal(
      [line['result'], markOf(node, line['entry']), line['entry'] === first.line['entry']],
      ['created', 'b', false],
    );
  },
);

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

for (const [what, content] of [
  ['fails', undefined],
  ['gives no image', 'no squashfs'],
] as const) {
  trouble(`an import that ${what} makes no entry and leaves nothing behind`, async () => {
    const { node, registry } = await startNode();
    await using _ = node;
    registry.push(image, 'a');
    registry.spoilImage(image, 'a', content);
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

/** A Prolog that got no answer has asked once; nothing of that must keep the next test from asking. */
const forgetFailures = (node: TestNode): void => {
  rmSync(registriesPath(node.runtimePath), { recursive: true, force: true });
};

// All that enroot and curl say: test/lib/core/registry-failure.test.ts.
const silent: readonly [answer: string, cause: RegExp][] = [
  ['curl 28 Connection timed out', /^cannot reach registry reg\.example:5000: Connection timed out;/],
  ['http 429 Too Many Requests', /^registry reg\.example:5000 is not available: 429 Too Many Requests;/],
];

const refused: readonly [answer: string, cause: RegExp][] = [
  ['http 403 Forbidden', /^registry reg\.example:5000 refused: 403 Forbidden;/],
  ['curl 60 SSL certificate problem', /^cannot ask registry reg\.example:5000: SSL certificate problem;/],
];

const questions = suite('registry images: what the Prolog is not told, the step asks', {
  skip: unlessPrivateMachine,
});

for (const [answers, code, result] of [
  [silent, 'REGISTRY_SILENT', 'failed'],
  [refused, 'REGISTRY_REFUSED', 'bypassed'],
] as const) {
  questions(
    `${code}: one line with the cause; the image seen last is the step's only without an answer`,
    async () => {
      const { node, registry } = await startNode();
      await using _ = node;
      registry.push(image, 'a');
      const first = await node.prolog({ id: 1, user: alice, image });
      await node.epilog({ id: 1, user: alice });
      registry.push(image, 'b');
      // As with the retries that a site configures: a question does not wait for them.
      registry.set('conf', 'ENROOT_TRANSFER_RETRIES 5');
      for (const [answer, cause] of answers) {
        forgetFailures(node);
        registry.set('answer', answer);
        const { exitCode, line, lines } = await node.prolog({ id: 2, user: alice, image });
        assert.equal([exitCode, lines.length, line['result'], line['code']], [0, 1, result, code], answer);
        assert.match(line['reason']!, cause);
        assert.not.match(line['reason']!, /INFO|exited|setpriv/);
        // It stays for the step, which does not take it untold.
        assert.equal([line['entry'], holders().length], [first.line['entry'], 1]);

        const step = await acquire(node, [`docker://${image}`], { jobId: 2 });
        if (code === 'REGISTRY_SILENT') {
          assert.equal([step.exitCode, step.entry, step.holder], [0, first.line['entry'], undefined], answer);
          assert.is(step.log?.level, 'warning');
          assert.match(step.log!.fields['reason']!, /using the image seen last/);
        } else {
          assert.equal([step.exitCode, step.entry, step.log?.fields['code']], [1, undefined, code], answer);
        }
        assert.match(step.log!.fields['reason']!, cause);
      }
      registry.set('answer', undefined);
      const step = await acquire(node, [`docker://${image}`], { jobId: 2 });
      assert.equal([step.log?.fields['result'], markOf(node, step.entry)], ['created', 'b']);
      await node.epilog({ id: 2, user: alice });
      assert.equal(holders(), []);
    },
  );
}

questions(
  'without an answer and without an image seen before there is nothing, and no job waits',
  async () => {
    const { node, registry } = await startNode();
    await using _ = node;
    registry.stop();
    const { exitCode, line } = await node.prolog({ id: 1, user: alice, image });
    assert.equal([exitCode, line['result'], line['code']], [0, 'failed', 'REGISTRY_SILENT']);
    assert.equal([node.entries(alice), holders()], [[], []]);
    const step = await acquire(node, [`docker://${image}`], { jobId: 1 });
    assert.equal([step.exitCode, step.log?.fields['code']], [1, 'REGISTRY_SILENT']);
    assert.is(registry.calls('import').length, 0);
  },
);

/** What a job's environment can hold that a Prolog's cannot. */
const ownEnvironments: readonly [string, (registry: StandInRegistry) => Readonly<Record<string, string>>][] =
  [
    [
      'a password',
      (registry) => {
        registry.set('password', 'sesame');
        writeCredentials(join(homeOf(alice), '.config'), '$REG_PW');
        return { HOME: homeOf(alice), REG_PW: 'sesame' };
      },
    ],
    [
      'a command that gives the password',
      (registry) => {
        registry.set('password', 'sesame');
        writeCredentials(join(homeOf(alice), '.config'), '$(printf %s "$TOKEN" | rev)');
        return { HOME: homeOf(alice), TOKEN: 'emases' };
      },
    ],
    [
      'XDG_CONFIG_HOME',
      (registry) => {
        registry.set('password', 'sesame');
        writeCredentials(join(homeOf(alice), 'elsewhere'), 'sesame');
        return { HOME: homeOf(alice), XDG_CONFIG_HOME: join(homeOf(alice), 'elsewhere') };
      },
    ],
    [
      'a proxy',
      (registry) => {
        registry.set('proxy', 'http://proxy.example:3128');
        return { HOME: homeOf(alice), https_proxy: 'http://proxy.example:3128' };
      },
    ],
  ];

function writeCredentials(configPath: string, password: string): void {
  mkdirSync(join(configPath, 'enroot'), { recursive: true });
  const path = join(configPath, 'enroot/.credentials');
  writeFileSync(path, `machine reg.example login alice password ${password}\n`);
  makeOwn(path);
}

for (const [what, give] of ownEnvironments) {
  questions(`with ${what} that only the job has, each step gets the image of now`, async () => {
    const { node, registry } = await startNode();
    await using _ = node;
    rmSync(join(homeOf(alice), '.config'), { recursive: true, force: true });
    const environment = give(registry);
    const marks: string[] = [];
    for (const [id, mark] of [
      [1, 'a'],
      [2, 'b'],
    ] as const) {
      registry.push(image, mark);
      const { line } = await node.prolog({ id, user: alice, image });
      assert.match(line['code']!, /^REGISTRY_/, line['reason']);
      const step = await acquire(node, [`docker://${image}`], { jobId: id, environment });
      marks.push(`${step.log!.fields['result']!} ${markOf(node, step.entry)}`);
    }
    assert.equal(marks, ['created a', 'created b']);
    rmSync(join(homeOf(alice), '.config'), { recursive: true, force: true });
  });
}

questions('an image by its digest that only the job may have is unpacked by the step', async () => {
  const { node, registry } = await startNode();
  await using _ = node;
  const pinned = `reg.example:5000/team/app@${digestOf('a')}`;
  registry.push(pinned, 'a');
  registry.set('proxy', 'http://proxy.example:3128');
  const { line } = await node.prolog({ id: 1, user: alice, image: pinned });
  assert.equal([line['code'], registry.calls('import').length], ['REGISTRY_SILENT', 0]);
  const environment = { https_proxy: 'http://proxy.example:3128' };
  const step = await acquire(node, [`docker://${pinned}`], { jobId: 1, environment });
  assert.equal([step.log?.fields['result'], markOf(node, step.entry)], ['created', 'a']);
  assert.is((await node.prolog({ id: 2, user: alice, image: pinned })).line['result'], 'reused');
});

questions('nothing that the credentials file starts outlives the Prolog', async () => {
  const { node, registry } = await startNode();
  await using _ = node;
  registry.push(image, 'a');
  registry.set('password', 'sesame');
  const start = 'setsid sh -c "exec sleep 31337" >/dev/null 2>&1 & echo >>"$HOME/started"; echo sesame';
  writeCredentials(join(homeOf(alice), '.config'), `$(${start})`);
  const { line } = await node.prolog({ id: 1, user: alice, image });
  assert.is(line['result'], 'created');
  assert.match(readFileSync(join(homeOf(alice), 'started'), 'utf8'), /^\n+$/);
  const left = processes().filter(({ commandLine }) => commandLine === 'sleep 31337');
  assert.equal(left, []);
  rmSync(join(homeOf(alice), '.config'), { recursive: true });
  rmSync(join(homeOf(alice), 'started'));
});

questions('a question that hangs is ended with all that it started', async () => {
  const { node, registry } = await startNode();
  await using _ = node;
  registry.push(image, 'a');
  registry.set('answer', 'hang');
  const { exitCode, line } = await node.prolog({ id: 1, user: alice, image });
  assert.equal([exitCode, line['code']], [0, 'REGISTRY_SILENT']);
  assert.match(line['reason']!, /^registry reg\.example:5000 did not answer within 5 s;/);
  await until('enroot has ended', () => enrootProcesses(registry).length === 0);
});

questions.run();

const pauses = suite('registry images: after a failure', { skip: unlessPrivateMachine });

pauses('the next Prologs of that user do not ask, those of others do, until some time is over', async () => {
  const { node, registry } = await startNode();
  await using _ = node;
  registry.push(image, 'a');
  registry.stop();
  const asked = (): number => registry.calls('digest').length;
  const together = await Promise.all([1, 2, 3, 4].map((id) => node.prolog({ id, user: alice, image })));
  assert.equal(
    together.map(({ exitCode, line }) => `${exitCode!} ${line['code']!}`),
    new Array(4).fill('0 REGISTRY_SILENT'),
  );
  const after = asked();
  assert.ok(after >= 1 && after <= 4);

  // Of the same registry, whatever the image.
  const other = await node.prolog({ id: 5, user: alice, image: 'reg.example:5000/other:1' });
  assert.match(other.line['reason']!, /cannot reach registry .*\(\d+ s ago; not asked again for \d+ s\)/);
  assert.is(asked(), after);
  await node.prolog({ id: 6, user: bob, image });
  assert.is(asked(), after + 1);
  await node.prolog({ id: 7, user: alice, image: 'elsewhere.example/other:1' });
  assert.is(asked(), after + 2);

  // A clock that was set back ends a pause, too.
  const memory = registryMemoryPath(node.runtimePath, alice.uid);
  for (const [fields, pause] of [
    [[1, 0, 1], 120],
    [[4, 0, 1], 600],
    [[1, Date.now() + 3_600_000, Date.now() + 7_200_000], 120],
  ] as const) {
    const key = hashRegistry('reg.example:5000');
    writeFileSync(memory, `${key}\t${fields.join('\t')}\tsilent\tsome cause\n`);
    const before = asked();
    await node.prolog({ id: 8, user: alice, image });
    assert.is(asked(), before + 1);
    const [, failures, atMs, untilMs] = readFileSync(memory, 'utf8').split('\t').map(Number);
    assert.equal([failures, untilMs! - atMs!], [fields[0] + 1, pause * 1000]);
  }

  registry.start();
  forgetFailures(node);
  assert.is((await node.prolog({ id: 9, user: alice, image })).line['result'], 'created');
  assert.not(existsSync(memory));
});

pauses('an answer ends the pause, and a memory that is no such file is as good as none', async () => {
  const { node, registry } = await startNode();
  await using _ = node;
  registry.push(image, 'a');
  registry.set('answer', 'http 401 Unauthorized');
  await node.prolog({ id: 1, user: alice, image });
  const memory = registryMemoryPath(node.runtimePath, alice.uid);
  assert.equal([statSync(memory).uid, statSync(memory).mode & 0o777], [0, 0o600]);
  // A refusal is about one image.
  registry.set('answer', undefined);
  registry.push('reg.example:5000/other:1', 'b');
  const other = await node.prolog({ id: 2, user: alice, image: 'reg.example:5000/other:1' });
  assert.is(other.line['result'], 'created');
  assert.is((await node.prolog({ id: 3, user: alice, image })).line['code'], 'REGISTRY_REFUSED');
  for (const spoil of ['nonsense\n', 'x'.repeat(100_000)]) {
    writeFileSync(memory, spoil);
    assert.ok(
      ['created', 'reused'].includes((await node.prolog({ id: 4, user: alice, image })).line['result']!),
    );
  }
});

pauses.run();

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
    assert.equal([without.exitCode, without.line['code']], [0, 'REGISTRY_SILENT']);
  });
}

remembered.run();
