/**
 * pyxis' importers: what the Prolog makes of the files that they keep, and of those that are gone after use.
 */
// test: timeout 600 s
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { StandInRegistry } from '../helpers/directory-registry.ts';
import { TestNode } from '../helpers/node.ts';
import { alice, bob, enterPrivateMachine, unlessPrivateMachine } from '../helpers/private-machine.ts';
import { acquire } from '../helpers/run-acquire.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const test = suite('importers', { skip: unlessPrivateMachine });

const image = 'reg.example#app:1';
const uri = `docker://${image}`;

/**
 * A node whose pyxis has an importer: a script with `$1` get or release, `$kept`, `$own` and `$count` beside
 * it.
 */
class ImporterNode implements AsyncDisposable {
  readonly node: TestNode;
  readonly runtimePath: string;
  readonly #calls: string;
  readonly importerPath: string;

  private constructor(node: TestNode) {
    this.node = node;
    this.runtimePath = join(node.root, 'pyxis');
    this.importerPath = join(node.root, 'importer');
    this.#calls = join(node.root, 'calls');
    for (const name of ['pyxis', 'slurm', 'kept']) mkdirSync(join(node.root, name));
    chmodSync(join(node.root, 'kept'), 0o1777);
    writeFileSync(this.#calls, '');
    chmodSync(this.#calls, 0o666);
    writeFileSync(join(node.root, 'slurm/slurm.conf'), 'ClusterName=x\n');
    writeFileSync(
      join(node.root, 'slurm/plugstack.conf'),
      `required spank_pyxis.so runtime_path=${this.runtimePath} importer=${this.importerPath}\n`,
    );
  }

  static async start(body: string, settings: Readonly<Record<string, string>> = {}): Promise<ImporterNode> {
    const enroot = new StandInRegistry();
    const node = await TestNode.start({ settings: { enroot_path: enroot.enrootPath, ...settings } });
    const started = new ImporterNode(node);
    started.setImporter(body);
    return started;
  }

  setImporter(body: string): void {
    const { root } = this.node;
    const lines = [
      '#!/bin/sh',
      'set -eu',
      `root=${root} image=${this.node.image()}`,
      'own=$PYXIS_RUNTIME_PATH/$SLURM_JOB_UID/$SLURM_JOB_ID.$SLURM_STEP_ID.squashfs',
      'kept=$root/kept/$(id -u)-image.sqsh',
      `echo "$(id -u) $(id -G | tr ' ' ,) $*" >>${this.#calls}`,
      body,
    ];
    writeFileSync(this.importerPath, `${lines.join('\n')}\n`, { mode: 0o755 });
  }

  prolog(id: number, more: Readonly<Record<string, unknown>> = {}): ReturnType<TestNode['prolog']> {
    const environment = { SLURM_CONF: join(this.node.root, 'slurm/slurm.conf') };
    return this.node.prolog({ id, user: alice, image, environment, ...more });
  }

  /** Since the last question. */
  calls(): string[] {
    const lines = readFileSync(this.#calls, 'utf8').split('\n').filter(Boolean);
    writeFileSync(this.#calls, '');
    return lines.map((line) => line.split(' ').slice(2).join(' '));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.node[Symbol.asyncDispose]();
  }
}

/** One file for an image, for good. */
const keeping = '[ "$1" = release ] || { [ -e "$kept" ] || cp "$image" "$kept"; echo "$kept"; }';
/** A file for each step, where pyxis has its own. */
const oneTime = 'if [ "$1" = get ]; then cp "$image" "$own"; echo "$own"; else rm -f "$own"; fi';
/** A file for each step, elsewhere. */
const oneTimeElsewhere = 'if [ "$1" = get ]; then cp "$image" "$kept"; echo "$kept"; else rm -f "$kept"; fi';

test('the file that an importer keeps has one entry, for Prologs and for steps', async () => {
  await using node = await ImporterNode.start(keeping);
  const first = await node.prolog(1);
  assert.equal([first.line['result'], first.line['image']], ['created', image]);
  assert.equal(node.calls(), [`get ${uri}`, 'release']);
  const kept = join(node.node.root, `kept/${alice.uid}-image.sqsh`);
  // What pyxis hands to enroot is listed with its entry.
  assert.match(node.node.jobFile(1, 'images') ?? '', new RegExp(`^${kept}\\t${first.line['entry']!}\\t\\d`));
  const second = await node.prolog(2);
  assert.equal([second.line['result'], second.line['entry']], ['reused', first.line['entry']]);
  const { entry } = await acquire(node.node, [kept], { jobId: 3 });
  assert.is(entry, first.line['entry']);
  assert.is(node.node.entries(alice).length, 1);
});

test('it is called as the user, with what pyxis gives it as far as a Prolog has it', async () => {
  await using node = await ImporterNode.start('env >"$root/kept/environment"; echo "$image"');
  await node.prolog(7);
  const environment = readFileSync(join(node.node.root, 'kept/environment'), 'utf8');
  for (const line of [
    `PYXIS_RUNTIME_PATH=${node.runtimePath}`,
    'SLURM_JOB_ID=7',
    `SLURM_JOB_UID=${alice.uid}`,
    'SLURM_STEP_ID=4294967292',
  ])
    assert.ok(environment.split('\n').includes(line), line);
  assert.match(environment, /^HOME=/m);
  assert.not.match(environment, /^SPANK_/m);
});

test('no entry is made of a file of one use; the step gets what was fetched, later Prologs fetch nothing', async () => {
  await using node = await ImporterNode.start(oneTime);
  const { exitCode, line } = await node.prolog(1);
  assert.equal([exitCode, line['result'], line['code']], [0, 'bypassed', 'UNSUPPORTED_OPTION']);
  assert.equal([node.calls(), node.node.entries(alice)], [[`get ${uri}`], []]);
  const held = join(node.runtimePath, String(alice.uid), '1.4294967292.squashfs');
  assert.ok(existsSync(held));
  assert.is(node.node.jobFile(1, 'images'), `${uri}\t-\t=${held}\t-\n`);
  // A step that never came.
  await node.node.epilog({ id: 1, user: alice });
  assert.not(existsSync(held));
  const second = await node.prolog(2);
  assert.equal([second.line['result'], node.calls()], ['bypassed', []]);
  // Another user's jobs, and another importer, have not been seen.
  await node.prolog(3, { user: bob });
  assert.equal(node.calls(), [`get ${uri}`]);
  node.setImporter(`${keeping}\n# another`);
  assert.is((await node.prolog(4)).line['result'], 'created');
});

test('a file that is gone after its release is known the next time', async () => {
  await using node = await ImporterNode.start(oneTimeElsewhere);
  await node.prolog(1);
  assert.equal(node.calls(), [`get ${uri}`, 'release']);
  const second = await node.prolog(2);
  assert.equal([second.line['result'], node.calls()], ['bypassed', []]);
});

test('a failure is no answer: nothing is said to the step, and the next Prolog does not repeat it', async () => {
  await using node = await ImporterNode.start('echo "401 Unauthorized" >&2; exit 3');
  const { exitCode, line } = await node.prolog(1);
  assert.equal([exitCode, line['code']], [0, 'IMPORT_FAILED']);
  assert.match(line['reason']!, /401 Unauthorized/);
  assert.equal(node.calls(), [`get ${uri}`, 'release']);
  await node.prolog(2);
  assert.equal(node.calls(), []);
  await node.prolog(3, { image: 'reg.example#other:1' });
  assert.equal(node.calls(), ['get docker://reg.example#other:1', 'release']);
});

for (const [what, body] of [
  ['names nothing', ':'],
  ['names a relative path', 'echo image.sqsh'],
  ['names what is not there', 'echo /no/such/file'],
  ['names what is no image', 'echo /etc/passwd'],
] as const) {
  test(`an importer that ${what} fails no job`, async () => {
    await using node = await ImporterNode.start(body);
    const { exitCode, line } = await node.prolog(1);
    assert.equal([exitCode, node.node.entries(alice)], [0, []]);
    assert.ok(['failed', 'bypassed'].includes(line['result']!), line['result']);
  });
}

test('with create_mode=background no job waits for an importer', async () => {
  await using node = await ImporterNode.start(keeping, { create_mode: 'background' });
  const { line } = await node.prolog(1);
  assert.equal([line['result'], node.calls()], ['bypassed', []]);
});

test('a step makes no entry of what lies where pyxis and enroot have temporary files', async () => {
  await using node = await ImporterNode.start(oneTime);
  await node.prolog(1);
  const own = join(node.runtimePath, String(alice.uid));
  const directories = [own, join(node.node.root, 'enroot.Ab3dEf6hI9')];
  mkdirSync(directories[1]!);
  for (const directory of directories) {
    const file = join(directory, 'any-name.sqsh');
    copyFileSync(node.node.image({ 'etc/directory': directory }), file);
    const { exitCode, log } = await acquire(node.node, [file], { jobId: 1 });
    assert.equal([exitCode, log?.fields['code']], [1, 'NOT_CACHED'], directory);
  }
  assert.equal([node.node.entries(alice), node.node.partials(alice)], [[], []]);
});

test('a step that finds the importer\u2019s last file gone makes no entry of the next', async () => {
  await using node = await ImporterNode.start('exit 1');
  await node.prolog(1, { image: undefined });
  const made = async (name: string): Promise<string | undefined> => {
    // Younger than the process that stands for pyxis, which is this one.
    const file = node.node.image({ 'etc/name': name });
    const { log } = await acquire(node.node, [file], { jobId: 1 });
    rmSync(file);
    return log?.fields['result'];
  };
  assert.equal([await made('one'), await made('two'), await made('three')], ['created', 'failed', 'failed']);
  assert.is(node.node.entries(alice).length, 1);
  assert.ok(readdirSync(join(node.node.userPath(alice), '.images')).includes('importer'));
});

test.run();
