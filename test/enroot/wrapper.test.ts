/**
 * The enroot wrapper, called as pyxis calls it, before an enroot that only notes how it was called: what goes
 * to the real enroot untouched, what becomes of stubs, and what a hostile or broken surrounding brings about
 * (nothing but the real enroot). test/slurm/container-starts.test.ts has the containers themselves.
 */
// test: timeout 600 s
import { spawn, spawnSync, type ChildProcessByStdio } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { directoryName, unsharedName } from '../../lib/core/layout.ts';
import { formatNodeFacts, type NodeFacts } from '../../lib/core/node-facts.ts';
import { readUsage } from '../../lib/system/disk-usage.ts';
import { TestNode, type NodeOptions, nameOf } from '../helpers/node.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  machineRoot,
  mount,
  umount,
  unlessPrivateMachine,
  type TestUser,
} from '../helpers/private-machine.ts';
import { assert, suite } from '../helpers/suite.ts';
import { installWrapper, stepEnvironment } from '../helpers/wrapper.ts';

enterPrivateMachine();

/** Notes its parameters and its environment, and does what `fails` and `leftover` beside it tell. */
const recorder = `#!/bin/sh
here=\${0%/*}
{ printf '%s\\0' "$@"; printf '\\1'; env -0; printf '\\2'; } >>"$here/calls"
case $1 in
  create) if [ -e "$here/leftover" ]; then echo '[ERROR] File already exists: x' >&2; exit 1; fi ;;
  remove) rm -f "$here/leftover" ;;
  import) [ -e "$here/fails" ] && { echo '[ERROR] no registry' >&2; exit 7; }; [ ! -d "\${3%/*}" ] || echo squashfs >"$3" ;;
esac
exit 0
`;

interface Call {
  readonly parameters: readonly string[];
  readonly environment: ReadonlyMap<string, string>;
}

interface Result {
  readonly exitCode: number | null;
  readonly output: string;
  readonly calls: readonly Call[];
}

const jobId = 42;
const image = '/images/a.sqsh';
const uri = 'docker://reg#app:1';
const container = `pyxis_${jobId}.0`;

/**
 * A node with the wrapper in `bin`, the recorder as the real enroot, one entry of alice's, leased by job 42.
 */
class WrapperNode implements AsyncDisposable {
  readonly node: TestNode;
  readonly wrapper: string;
  readonly real: string;
  readonly mountsFile: string;
  readonly entry: string;
  readonly userPath: string;
  readonly imagePath: string;
  readonly pyxisPath: string;
  readonly plugstackPath: string;
  readonly slurmstepd: string;

  private constructor(node: TestNode) {
    this.node = node;
    const installed = installWrapper(node, recorder);
    this.wrapper = installed.path;
    this.real = installed.enrootPath;
    this.mountsFile = installed.mountsFile;
    this.userPath = node.userPath(alice);
    this.pyxisPath = join(node.root, 'pyxis');
    this.plugstackPath = join(node.root, 'plugstack.conf');
    writeFileSync(this.plugstackPath, '');
    this.slurmstepd = join(node.root, 'slurmstepd');
    copyFileSync('/bin/dash', this.slurmstepd);
    for (const name of ['pyxis', `pyxis/${alice.uid}`]) mkdirSync(join(node.root, name));
    // Whoever runs the recorder writes beside it.
    chmodSync(join(node.root, 'real'), 0o777);
    chownSync(join(this.pyxisPath, String(alice.uid)), alice.uid, alice.gid);
    this.imagePath = node.image();
    this.entry = nameOf(node.plant(alice, { hash: '00deadbeef001122', usedSecondsAgo: 0 }));
    const etc = join(this.entryPath, 'etc');
    mkdirSync(etc);
    // As in an image: older than any job.
    utimesSync(etc, 1, 1);
    this.writeFacts();
    this.writeOwnImages();
  }

  static async start(options?: NodeOptions): Promise<WrapperNode> {
    return new WrapperNode(await TestNode.start(options));
  }

  writeFacts(changes: Partial<NodeFacts> = {}): void {
    const facts: NodeFacts = {
      fingerprint: 'x',
      basePath: this.node.basePath,
      baseMount: undefined,
      enrootPath: this.real,
      enrootVersion: '4.1.2',
      isolation: 'overlay',
      reason: undefined,
      imageFreshness: 'always',
      command: undefined,
      mountsFile: this.mountsFile,
      validUntilMs: undefined,
      importer: 'none',
      pyxisRuntimePath: this.pyxisPath,
      pyxisVersion: undefined,
      pyxisFiles: this.plugstackPath,
      pyxisStamp: undefined,
      ...changes,
    };
    mkdirSync(this.node.runtimePath, { recursive: true, mode: 0o711 });
    writeFileSync(join(this.node.runtimePath, 'node'), formatNodeFacts(facts), { mode: 0o644 });
  }

  /** After what a test puts into the entry, as a Prolog sees it whole. */
  writeOwnImages(): void {
    this.writeImages(
      `${this.imagePath}\t${this.entry}\t${stampOf(this.imagePath)}\n${uri}\t${this.entry}\t-\n`,
    );
  }

  writeImages(text: string): void {
    const directory = join(this.node.runtimePath, 'jobs', String(jobId));
    mkdirSync(directory, { recursive: true });
    writeFileSync(join(directory, 'images'), text, { mode: 0o644 });
  }

  /** As pyxis runs it: as the user, with the job's environment and slurmd's PATH. */
  run(parameters: readonly string[], options: RunOptions = {}): Result {
    const user = options.user ?? alice;
    const calls = join(this.node.root, 'real/calls');
    rmSync(calls, { force: true });
    const asUser = ['setpriv', `--reuid=${user.uid}`, `--regid=${user.gid}`, '--clear-groups', '--'];
    const callers = options.callers ?? this.pyxis();
    const [file, ...args] = [...callers.root, ...asUser, ...callers.user, this.wrapper, ...parameters];
    const { status, stdout, stderr } = spawnSync(file!, args, {
      cwd: '/',
      encoding: 'utf8',
      timeout: 20_000,
      env: {
        ...stepEnvironment(this.node, user, jobId),
        PYXIS_RUNTIME_PATH: this.pyxisPath,
        ...options.environment,
      },
    });
    return { exitCode: status, output: stdout + stderr, calls: existsSync(calls) ? readCalls(calls) : [] };
  }

  get entryPath(): string {
    return this.node.entryPath(alice, this.entry);
  }

  /**
   * root's slurmstepd, and in its child, as the user, the same program, which has not become the task's yet.
   */
  pyxis(): Callers {
    return { root: [this.slurmstepd, ...waiting], user: [this.slurmstepd, ...waiting] };
  }

  stub(name = container): string {
    return join(this.userPath, directoryName(name));
  }

  createStub(name = container): void {
    const { exitCode, calls, output } = this.run(['create', '--name', name, this.imagePath]);
    assert.equal([exitCode, calls, output], [0, [], '']);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.node[Symbol.asyncDispose]();
  }
}

/** Commands that run the rest of their command line in a child. */
interface Callers {
  readonly root: readonly string[];
  readonly user: readonly string[];
}

/** For a shell, which is the parent until the command ends. */
const waiting = ['-c', '"$@"; exit $?', 'sh'];

interface RunOptions {
  readonly user?: TestUser;
  /** By default pyxis'. */
  readonly callers?: Callers;
  readonly environment?: Readonly<Record<string, string>>;
}

const stampOf = (path: string): string =>
  command('find', '-L', path, '-maxdepth', '0', '-printf', '%s %T@ %C@');

function readCalls(path: string): Call[] {
  return readFileSync(path, 'latin1')
    .split('\u0002')
    .filter(Boolean)
    .map((text) => {
      const [parameters = '', environment = ''] = text.split('\u0001');
      const variables = environment.split('\0').map((line) => {
        const separator = line.indexOf('=');
        return [line.slice(0, separator), line.slice(separator + 1)] as const;
      });
      return { parameters: parameters.split('\0').slice(0, -1), environment: new Map(variables) };
    });
}

const parametersOf = ({ calls }: Result): readonly (readonly string[])[] =>
  calls.map(({ parameters }) => parameters);

const pass = suite('wrapper: what is the real enroot’s', { skip: unlessPrivateMachine });

const untouched: readonly (readonly string[])[] = [
  ['version'],
  ['list', '-f'],
  ['exec', '1', 'sh', '-c', 'echo  "a b"'],
  ['help', ''],
  ['create', image],
  ['create', '--name', 'pyxis_mine', image],
  ['create', '--name', 'pyxis_43.0', image],
  ['create', '--name', 'pyxis_42.0.1', image],
  ['create', '--force', '--name', container, image],
  ['import', uri],
  ['import', '--output', '/home/a/x.squashfs', uri],
  ['load', '--name', 'pyxis_mine', uri],
  ['start', '--conf', '/tmp/c', 'pyxis_mine', 'sh', '-c', 'kill -STOP $$ ; exit 0'],
  ['start', '--unknown', container],
  ['start'],
  ['export', '-f', '-o', '/x y.sqsh', 'pyxis_mine'],
  ['remove', '-f', 'pyxis_mine'],
  ['remove', '-f', container],
];

for (const parameters of untouched) {
  pass(`is handed on as it is: ${parameters.join(' ')}`, async () => {
    await using node = await WrapperNode.start();
    const result = node.run(parameters, { environment: { cc_tab: 'x', key: 'y', MULTI: 'a\nb' } });
    assert.equal(parametersOf(result), [parameters]);
    assert.is(result.output, '');
    const { environment } = result.calls[0]!;
    assert.is(environment.get('MULTI'), 'a\nb');
    assert.is(environment.get('key'), 'y');
    assert.not(environment.has('CONTAINER_CACHE_FSTAB'));
    assert.not(environment.has('ENROOT_DATA_PATH'));
  });
}

pass(
  'a stub for which the disk has no inode left, whichever of its files is the first to find none',
  async () => {
    const disk = mkdtempSync(join(machineRoot, 'disk-'));
    chmodSync(disk, 0o755);
    mount('--types', 'tmpfs', '--options', 'mode=0755,nr_inodes=1000', 'tmpfs', disk);
    try {
      await using node = await WrapperNode.start({ basePath: join(disk, 'data') });
      const parameters = ['create', '--name', container, node.imagePath];
      let passed = 0;
      for (let free = 0; ; free++) {
        const { totalInodes, freeInodes } = readUsage(disk);
        mount('--options', `remount,nr_inodes=${totalInodes - freeInodes + free}`, disk);
        const result = node.run(parameters);
        assert.equal([result.exitCode, result.output], [0, ''], `${free} inodes`);
        if (result.calls.length === 0) break;
        assert.equal(parametersOf(result), [parameters], `${free} inodes`);
        assert.not(existsSync(node.stub()), `${free} inodes`);
        passed++;
        command('find', node.userPath, '-name', '.*.partial', '-prune', '-exec', 'rm', '-r', '{}', ';');
      }
      assert.ok(passed >= 4, `${passed} times`);
      assert.is(readFileSync(join(node.stub(), '.container-cache/entry'), 'utf8').split('\n')[0], node.entry);
    } finally {
      umount(disk);
    }
  },
);

pass('a start for which the disk has no block left says nothing, and starts from the entry', async () => {
  const disk = mkdtempSync(join(machineRoot, 'disk-'));
  chmodSync(disk, 0o755);
  mount('--types', 'tmpfs', '--options', 'mode=0755,size=1m', 'tmpfs', disk);
  try {
    await using node = await WrapperNode.start({ basePath: join(disk, 'data') });
    node.run(['create', '--name', container, node.imagePath]);
    assert.throws(
      () => {
        writeFileSync(join(disk, 'ballast'), Buffer.alloc(2 * 1024 * 1024));
      },
      Error,
      /ENOSPC/,
    );
    const result = node.run(['start', container]);
    assert.equal([result.exitCode, result.output], [0, '']);
    assert.equal(parametersOf(result), [['start', directoryName(container)]]);
  } finally {
    umount(disk);
  }
});

const broken: readonly (readonly [string, (node: WrapperNode) => void])[] = [
  ['there are no facts', (node) => rmSync(join(node.node.runtimePath, 'node'))],
  ['the facts cannot be read', (node) => chmodSync(join(node.node.runtimePath, 'node'), 0o600)],
  ['there is no runtime directory', (node) => rmSync(node.node.runtimePath, { recursive: true })],
  [
    'the facts are a directory',
    (node) => {
      rmSync(join(node.node.runtimePath, 'node'));
      mkdirSync(join(node.node.runtimePath, 'node'));
    },
  ],
  ['isolation is off', (node) => node.writeFacts({ isolation: 'off' })],
  ['mounts.d has not our file', (node) => rmSync(node.mountsFile)],
  ['there is no user directory', (node) => rmSync(node.userPath, { recursive: true })],
  ['the job has no files', (node) => rmSync(join(node.node.runtimePath, 'jobs'), { recursive: true })],
  ['the job has another image', (node) => node.writeImages(`/other\t${node.entry}\t1 1.0\n`)],
  ['the Prolog could not serve it', (node) => node.writeImages(`${node.imagePath}\t-\t-\n`)],
  ['the entry is gone', (node) => rmSync(node.entryPath, { recursive: true })],
  ['the entry has no lock file', (node) => rmSync(join(node.entryPath, '.pyxis_cache_lock'))],
  [
    'the entry is a symlink',
    (node) => {
      rmSync(node.entryPath, { recursive: true });
      symlinkSync('/etc', node.entryPath);
    },
  ],
  [
    'the entry named is another user’s',
    (node) =>
      node.writeImages(
        `${node.imagePath}\tpyxis_cache_u${bob.uid}_00deadbeef001122\t${stampOf(node.imagePath)}\n`,
      ),
  ],
  [
    'the entry named leads elsewhere',
    (node) =>
      node.writeImages(`${node.imagePath}\tpyxis_cache_u${alice.uid}_/../../x\t${stampOf(node.imagePath)}\n`),
  ],
  ['the entry lost all that it had', (node) => rmSync(join(node.entryPath, 'etc'), { recursive: true })],
  [
    'the entry lost a file in a directory that stays',
    (node) => {
      const directory = join(node.entryPath, 'usr/bin');
      mkdirSync(directory, { recursive: true });
      writeFileSync(join(directory, 'sh'), '');
      const images = join(node.node.runtimePath, 'jobs', String(jobId), 'images');
      const beforeSeconds = Date.now() / 1000 - 10;
      for (const path of [directory, join(node.entryPath, 'usr'), images])
        utimesSync(path, beforeSeconds, beforeSeconds);
      node.createStub();
      rmSync(node.stub(), { recursive: true });
      rmSync(join(directory, 'sh'));
    },
  ],
  ['the image file has changed', (node) => utimesSync(node.imagePath, 1, 1)],
  [
    'the image file was replaced by one of its size and time',
    (node) => {
      command('cp', '--preserve=timestamps', node.imagePath, `${node.imagePath}.new`);
      renameSync(`${node.imagePath}.new`, node.imagePath);
    },
  ],
  ['the image file is gone', (node) => rmSync(node.imagePath)],
];

for (const [what, spoil] of broken) {
  pass(`so is a step's container where ${what}`, async () => {
    await using node = await WrapperNode.start();
    spoil(node);
    const create = ['create', '--name', container, node.imagePath];
    assert.equal(parametersOf(node.run(create)), [create]);
    assert.not(existsSync(node.stub()));
  });
}

pass('finds the real one in PATH where nothing tells it, and no other copy of itself', async () => {
  await using node = await WrapperNode.start();
  rmSync(join(node.node.runtimePath, 'node'));
  mkdirSync(join(node.node.root, 'copy'));
  copyFileSync(node.wrapper, join(node.node.root, 'copy/enroot'));
  const path = ['bin', 'copy', 'real'].map((name) => join(node.node.root, name)).join(':');
  const result = node.run(['version'], { environment: { PATH: `${path}:/usr/bin:/bin` } });
  assert.equal(parametersOf(result), [['version']]);
  // The wrapper looks in these as well, whatever PATH is: this machine may have an enroot.
  for (const file of ['/usr/local/bin/enroot', '/usr/bin/enroot'].filter(existsSync))
    mount('--bind', '/dev/null', file);
  const none = node.run(['version'], {
    environment: { PATH: `${join(node.node.root, 'bin')}:/usr/bin:/bin` },
  });
  assert.equal([none.exitCode, none.calls], [127, []]);
  assert.match(none.output, /Cannot find the real enroot/);
});

pass("a job ID that is not the container's is no reason for anything", async () => {
  await using node = await WrapperNode.start();
  for (const id of ['', '43', '42;id', '../42', '*']) {
    const create = ['create', '--name', container, node.imagePath];
    assert.equal(parametersOf(node.run(create, { environment: { SLURM_JOB_ID: id } })), [create], id);
  }
});

pass("another user gets nothing of the job's, by whatever variable", async () => {
  await using node = await WrapperNode.start();
  const create = ['create', '--name', container, node.imagePath];
  const result = node.run(create, { user: bob, environment: { SLURM_JOB_UID: String(alice.uid) } });
  assert.equal(parametersOf(result), [create]);
  assert.equal(
    readdirSync(node.userPath).filter((name) => name.includes('pyxis_42')),
    [],
  );
});

pass.run();

const stubs = suite('wrapper: stubs', { skip: unlessPrivateMachine });

stubs('create makes one in place of an unpack, private to its user, and prints nothing', async () => {
  await using node = await WrapperNode.start();
  const entry = node.entryPath;
  writeFileSync(join(entry, 'etc/environment'), 'A=1\n');
  chmodSync(entry, 0o751);
  node.writeOwnImages();
  node.createStub();
  const upper = join(node.stub(), '.container-cache/upper');
  assert.equal(readdirSync(upper).sort(), ['.lock', '.pyxis_cache_lock']);
  // The container has the root directory's mode, and does not see our lock file: a whiteout, character device
  // 0:0.
  assert.is(statSync(upper).mode & 0o777, 0o751);
  const whiteout = lstatSync(join(upper, '.pyxis_cache_lock'));
  assert.equal([whiteout.isCharacterDevice(), whiteout.rdev], [true, 0]);
  assert.is(readFileSync(join(node.stub(), 'etc/environment'), 'utf8'), 'A=1\n');
  assert.not(existsSync(join(node.stub(), 'etc/fstab')));
  assert.is(lstatSync(node.stub()).uid, alice.uid);
});

stubs('with container_scope=job they are recognised, too', async () => {
  await using node = await WrapperNode.start();
  node.createStub('pyxis_42_42.7');
  assert.ok(existsSync(node.stub('pyxis_42_42.7')));
});

stubs('start has the entry mounted over the stub, and keeps its own parameters', async () => {
  await using node = await WrapperNode.start();
  node.createStub();
  const start = (name: string): string[] => ['start', '--conf', '/tmp/a b', name, 'sh', '-c', 'exit 0 # *'];
  const result = node.run(start(container));
  assert.equal(parametersOf(result), [start(directoryName(container))]);
  const { environment } = result.calls[0]!;
  const own = join(node.stub(), '.container-cache');
  assert.is(
    environment.get('CONTAINER_CACHE_FSTAB'),
    `overlay / overlay lowerdir=${node.entryPath},upperdir=${own}/upper,workdir=${own}/work,userxattr,nosuid,nodev 0 -1`,
  );
  assert.is(environment.get('ENROOT_DATA_PATH'), node.userPath);
  assert.not(environment.has('ENROOT_ROOTFS_WRITABLE'));
});

stubs(
  'start with options of a later enroot: the stub is found behind them, and what is none is left alone',
  async () => {
    await using node = await WrapperNode.start();
    node.createStub();
    const start = (name: string, ...options: string[]): string[] => [
      'start',
      ...options,
      name,
      'sh',
      container,
    ];
    for (const options of [['--pid'], ['--net=none', '--uts', 'host'], ['-x', 'pyxis_none', '--rw']]) {
      const result = node.run(start(container, ...options));
      assert.equal(parametersOf(result), [start(directoryName(container), ...options)]);
      assert.ok(result.calls[0]!.environment.has('CONTAINER_CACHE_FSTAB'));
    }
    for (const name of ['mine', '/images/a.sqsh']) {
      const foreign = ['start', '--pid', '--uts', 'host', name, 'sh'];
      assert.equal(parametersOf(node.run(foreign)), [foreign]);
    }
  },
);

stubs('a variable the user has set does not choose what is mounted', async () => {
  await using node = await WrapperNode.start();
  node.createStub();
  const environment = {
    CONTAINER_CACHE_FSTAB: '/etc / none bind 0 -1',
    cc_entry: 'x',
    cc_isolation: 'shared',
  };
  const { calls } = node.run(['start', container], { environment });
  assert.match(calls[0]!.environment.get('CONTAINER_CACHE_FSTAB')!, /^overlay \/ overlay lowerdir=\/mnt/);
});

stubs('an entry that is gone when the container starts is unpacked by enroot itself', async () => {
  await using node = await WrapperNode.start();
  node.createStub();
  rmSync(node.entryPath, { recursive: true });
  const result = node.run(['start', container, 'true']);
  assert.equal(parametersOf(result), [
    ['create', '--name', container, node.imagePath],
    ['start', container, 'true'],
  ]);
  assert.not(existsSync(node.stub()));
});

stubs("use_squashfuse=1: a path that has an entry starts from it, under the step's name", async () => {
  await using node = await WrapperNode.start();
  const result = node.run(['start', '--conf', '/c', node.imagePath, 'sh', '-c', node.imagePath]);
  assert.equal(parametersOf(result), [
    ['start', '--conf', '/c', directoryName(container), 'sh', '-c', node.imagePath],
  ]);
  const other = ['start', '--conf', '/c', '/images/other.sqsh', 'sh'];
  assert.equal(parametersOf(node.run(other)), [other]);
});

const ownLayers = (node: WrapperNode): string[] =>
  readdirSync(join(node.stub(), '.container-cache')).filter((name) => name.startsWith('upper.'));

stubs('a second start does not mount a layer that is in use: it begins with a copy', async () => {
  await using node = await WrapperNode.start();
  node.createStub();
  const upper = join(node.stub(), '.container-cache/upper');
  const layerOf = ({ calls }: Result): string =>
    /upperdir=([^,]*)/.exec(calls[0]!.environment.get('CONTAINER_CACHE_FSTAB') ?? '')?.[1] ?? '';
  assert.is(layerOf(node.run(['start', container])), upper);
  // It has ended, and nothing has the layer mounted: the next goes on with what the first left.
  assert.is(layerOf(node.run(['start', container])), upper);

  mkdirSync(join(upper, 'etc'));
  writeFileSync(join(upper, 'etc/environment'), 'NEW=1\n');
  mkdirSync(join(upper, 'point'), { mode: 0o000 });
  writeFileSync(join(upper, 'etc/hosts'), '', { mode: 0o000 });
  command('chown', '--recursive', `${alice.uid}:${alice.gid}`, upper);
  const running = mountLayer(node, upper);
  try {
    await once(running.stdout, 'data');
    const second = node.run(['start', container]);
    assert.match(layerOf(second), new RegExp(`^${upper}\\.\\d+$`));
    assert.is(readFileSync(join(layerOf(second), 'etc/environment'), 'utf8'), 'NEW=1\n');
    assert.ok(lstatSync(join(layerOf(second), '.pyxis_cache_lock')).isCharacterDevice());
    assert.is(readFileSync(join(node.stub(), 'etc/environment'), 'utf8'), 'NEW=1\n');
    assert.equal(ownLayers(node).length, 1);
    // What is saved meanwhile is read, and mounted without an upper directory.
    writeFileSync(join(node.node.root, 'real/enroot-nsenter'), '#!/bin/sh\nshift 2; exec "$@"\n', {
      mode: 0o755,
    });
    writeFileSync(join(node.node.root, 'real/enroot-mount'), '#!/bin/sh\ncat >/dev/null\n', { mode: 0o755 });
    const { calls } = node.run(['export', '-f', '-o', '/x.sqsh', container]);
    assert.equal(calls[0]!.parameters, ['export', '-f', '-o', '/x.sqsh', directoryName(container)]);
    assert.is(
      calls[0]!.environment.get('CONTAINER_CACHE_FSTAB'),
      `overlay / overlay lowerdir=${upper}:${node.entryPath},userxattr,nosuid,nodev 0 -1`,
    );
  } finally {
    const ended = once(running, 'exit');
    running.stdin.end();
    await ended;
  }
  assert.is(layerOf(node.run(['start', container])), upper);
});

/**
 * A container of alice's that has the layer mounted, until its standard input ends. It prints a line when it
 * has.
 */
function mountLayer(node: WrapperNode, upper: string): ChildProcessByStdio<Writable, Readable, null> {
  const ids = [`--reuid=${alice.uid}`, `--regid=${alice.gid}`, '--clear-groups'];
  const layers = `lowerdir=${node.entryPath},upperdir=${upper},workdir=${upper.replace('upper', 'work')},userxattr`;
  return spawn(
    'setpriv',
    [
      ...[...ids, 'unshare', '--user', '--map-root-user', '--mount', 'sh', '-c'],
      `mount -t overlay -o ${layers} x /mnt && echo up && exec cat`,
    ],
    { stdio: ['pipe', 'pipe', 'inherit'] },
  );
}

stubs('list shows containers as the real one would without us', async () => {
  await using node = await WrapperNode.start();
  assert.equal(parametersOf(node.run(['list', '-f'])), [['list', '-f']]);
  node.createStub();
  node.createStub('pyxis_42_42.7');
  node.createStub('pyxis_42.5');
  writeFileSync(join(node.stub('pyxis_42.5'), '.container-cache/unlisted'), '');
  const real = readFileSync(node.real, 'utf8');
  const list = join(node.node.root, 'real/list');
  const print = (text: string): void => {
    writeFileSync(list, text);
    writeFileSync(node.real, `${real.replace('exit 0', '')}\n[ "$1" != list ] || cat ${list}\n`);
  };
  print('other\npyxis_mine\n');
  const plain = node.run(['list']);
  assert.equal(plain.output, 'other\npyxis_42.0\npyxis_42_42.7\npyxis_mine\n');
  assert.equal([plain.exitCode, parametersOf(plain)], [0, [['list']]]);

  const upper = join(node.stub(), '.container-cache/upper');
  const running = mountLayer(node, upper);
  try {
    await once(running.stdout, 'data');
    const rows = (pid: number): string =>
      [
        'NAME       PID      COMM        STATE  STARTED  TIME   MNTNS  USERNS  COMMAND',
        `<unknown>  ${String(process.pid).padEnd(9)}a b  c      S      12:00    00:01  1      2       some  thing`,
        `           ${String(pid).padEnd(9)}cat         S      12:00    00:02  3      4       cat -x  y`,
        'other',
        '',
      ].join('\n');
    print(rows(running.pid!));
    const { output, exitCode } = node.run(['list', '-f']);
    const words = output
      .trimEnd()
      .split('\n')
      .map((line) => line.trim().split(/ {2,}/));
    assert.is(exitCode, 0);
    assert.equal(words, [
      ['NAME', 'PID', 'COMM', 'STATE', 'STARTED', 'TIME', 'MNTNS', 'USERNS', 'COMMAND'],
      ['<unknown>', String(process.pid), 'a b', 'c', 'S', '12:00', '00:01', '1', '2', 'some', 'thing'],
      ['other'],
      ['pyxis_42.0', String(running.pid), 'cat', 'S', '12:00', '00:02', '3', '4', 'cat -x', 'y'],
      ['pyxis_42_42.7'],
    ]);
  } finally {
    const ended = once(running, 'exit');
    running.stdin.end();
    await ended;
  }
});

stubs('remove of several takes each from where it is', async () => {
  await using node = await WrapperNode.start();
  node.createStub();
  const { calls, exitCode } = node.run(['remove', '-f', 'pyxis_mine', container]);
  assert.is(exitCode, 0);
  assert.equal(
    calls.map(({ parameters, environment }) => [...parameters, environment.get('ENROOT_DATA_PATH')]),
    [['remove', '-f', 'pyxis_mine', undefined]],
  );
  assert.not(existsSync(node.stub()));
});

stubs('remove without -f asks by the real enroot, in the directory where the stub is', async () => {
  await using node = await WrapperNode.start();
  node.createStub();
  const result = node.run(['remove', container], { environment: { SLURM_JOB_ID: '' } });
  assert.equal(parametersOf(result), [['remove', directoryName(container)]]);
  assert.is(result.calls[0]!.environment.get('ENROOT_DATA_PATH'), node.userPath);
});

stubs('remove -f starts no enroot, and takes what enroot would take', async () => {
  await using node = await WrapperNode.start();
  for (const option of ['-f', '--force']) {
    node.createStub();
    // What an overlay leaves, a directory that its owner closed, and what a symlink leads to.
    const upper = join(node.stub(), '.container-cache/upper');
    const kept = join(node.userPath, 'kept');
    mkdirSync(join(upper, 'closed/inside'), { recursive: true });
    mkdirSync(kept, { recursive: true });
    writeFileSync(join(kept, 'file'), '');
    symlinkSync(kept, join(upper, 'link'));
    mkdirSync(join(node.stub(), '.container-cache/work/work'), { mode: 0 });
    command('chown', '-hR', `${alice.uid}:${alice.gid}`, node.stub());
    chmodSync(join(upper, 'closed'), 0);
    const { calls, exitCode, output } = node.run(['remove', option, container]);
    assert.equal([exitCode, calls, output], [0, [], '']);
    assert.not(existsSync(node.stub()));
    assert.ok(existsSync(join(kept, 'file')));
    assert.ok(existsSync(node.entryPath));
  }
});

stubs('a container that starts from an entry is noted, one that does not is not', async () => {
  await using node = await WrapperNode.start();
  const notes = join(node.userPath, `.steps-${jobId}.events`);
  const lineOf = (result: string): string =>
    `{"kind":"container","entry":"${node.entry}","result":"${result}"}\n`;
  const stamp = stampOf(node.imagePath);
  const start = ['start', container, 'true'];
  // As a Prolog of the former version has left it.
  node.createStub();
  node.run(start);
  assert.not(existsSync(notes));
  node.run(['remove', '-f', container]);
  for (const result of ['reused', 'waited', 'created']) {
    node.writeImages(`${node.imagePath}\t${node.entry}\t${stamp}\t${result}\n`);
    node.createStub();
    node.run(start);
  }
  const noted = ['reused', 'waited', 'created'].map(lineOf).join('');
  assert.is(readFileSync(notes, 'utf8'), noted);
  rmSync(node.entryPath, { recursive: true });
  assert.equal(parametersOf(node.run(start)).at(-1), start);
  assert.is(readFileSync(notes, 'utf8'), noted);
});

stubs('what is in the place of the notes keeps no container from its start', async () => {
  await using node = await WrapperNode.start();
  node.writeImages(`${node.imagePath}\t${node.entry}\t${stampOf(node.imagePath)}\treused\n`);
  const notes = join(node.userPath, `.steps-${jobId}.events`);
  for (const put of [
    () => command('mkfifo', '--mode=0666', notes),
    () => mkdirSync(notes),
    () => symlinkSync('/nowhere/at/all', notes),
    () => writeFileSync(notes, '', { mode: 0o400 }),
  ]) {
    put();
    node.createStub();
    const result = node.run(['start', container, 'true']);
    assert.equal([result.exitCode, result.output, parametersOf(result).length], [0, '', 1]);
    rmSync(notes, { recursive: true });
  }
});

stubs('an upgrade from version 0.1 does not keep a running step from its end', async () => {
  await using node = await WrapperNode.start();
  node.createStub();
  // Without a dot each, as that version made them.
  renameSync(node.stub(), join(node.userPath, container));
  renameSync(node.entryPath, join(node.userPath, node.entry));
  const start = node.run(['start', container, 'true']);
  assert.equal(parametersOf(start), [['start', container, 'true']]);
  assert.match(
    start.calls[0]!.environment.get('CONTAINER_CACHE_FSTAB')!,
    new RegExp(`lowerdir=${node.userPath}/${node.entry},upperdir=${node.userPath}/${container}/`),
  );
  const { exitCode } = node.run(['remove', '-f', container]);
  assert.is(exitCode, 0);
  assert.not(existsSync(join(node.userPath, container)));
});

for (const [what, leave] of [
  ['a stub', (node: WrapperNode) => node.createStub()],
  [
    'a directory',
    (node: WrapperNode) => {
      mkdirSync(join(node.stub(), 'usr'), { recursive: true });
      command('chown', '--recursive', `${alice.uid}:${alice.gid}`, node.stub());
    },
  ],
  ['a dangling symlink', (node: WrapperNode) => symlinkSync('/nowhere', node.stub())],
  ['a file', (node: WrapperNode) => writeFileSync(node.stub(), '')],
] as const) {
  stubs(`${what} that an earlier run of the job step left is set aside for the Epilog`, async () => {
    await using node = await WrapperNode.start();
    leave(node);
    node.createStub();
    assert.ok(existsSync(join(node.stub(), '.container-cache/entry')));
    assert.is(node.node.partials(alice).length, 1);
    await node.node.epilog({ id: jobId, user: alice });
    assert.equal(
      [node.node.partials(alice), existsSync(node.stub()), existsSync('/nowhere')],
      [[], false, false],
    );
    await node.node.settle();
  });
}

stubs(
  'an unpack whose name an earlier run of the step left is done anew; a named container is not',
  async () => {
    await using node = await WrapperNode.start();
    rmSync(join(node.node.runtimePath, 'jobs'), { recursive: true });
    const leftover = join(node.node.root, 'real/leftover');
    writeFileSync(leftover, '');
    const create = ['create', '--name', container, node.imagePath];
    const result = node.run(create);
    assert.equal(parametersOf(result), [create, ['remove', '-f', container], create]);
    assert.is(result.exitCode, 0);
    writeFileSync(leftover, '');
    const named = ['create', '--name', 'pyxis_mine', node.imagePath];
    const refused = node.run(named);
    assert.equal([refused.exitCode, parametersOf(refused)], [1, [named]]);
  },
);

stubs.run();

const registry = suite('wrapper: images from a registry', { skip: unlessPrivateMachine });

const squashfsOf = (node: WrapperNode): string => join(node.pyxisPath, `${alice.uid}/${jobId}.0.squashfs`);

/** A command that stands in for `container-cache acquire`. */
function setAcquire(node: WrapperNode, body: string): void {
  const file = join(node.node.root, 'acquire');
  writeFileSync(file, `#!/bin/sh\n${body}\n`, { mode: 0o755 });
  node.writeFacts({ command: file });
}

registry('import fetches nothing, and the create that follows makes the stub', async () => {
  await using node = await WrapperNode.start();
  setAcquire(node, 'exit 1');
  const imported = node.run(['import', '--output', squashfsOf(node), uri]);
  assert.equal([imported.exitCode, imported.calls, imported.output], [0, [], '']);
  const created = node.run(['create', '--name', container, squashfsOf(node)]);
  assert.equal([created.exitCode, created.calls, created.output], [0, [], '']);
  assert.ok(existsSync(node.stub()));
});

const otherCallers: readonly (readonly [string, (node: WrapperNode) => Partial<Callers>])[] = [
  ['an importer, or a script of the job', () => ({ user: ['/bin/dash', ...waiting] })],
  ['a script below a script', () => ({ user: ['/bin/dash', ...waiting, '/bin/bash', ...waiting] })],
  ['a task that is enroot itself, or what slurmstepd adopted', () => ({ user: [] })],
  ['what init adopted', () => ({ root: [], user: [] })],
  [
    'a program of the user below another of root',
    ({ slurmstepd }) => ({ root: [], user: [slurmstepd, ...waiting] }),
  ],
  [
    'a program that only calls itself slurmstepd',
    () => ({ user: ['perl', '-e', '$0 = "slurmstepd"; exit(system(@ARGV) >> 8)'] }),
  ],
];

for (const [who, callersOf] of otherCallers) {
  registry(`import by ${who} gets an image, not a placeholder`, async () => {
    await using node = await WrapperNode.start();
    setAcquire(node, 'exit 1');
    const parameters = ['import', '--output', squashfsOf(node), uri];
    const callers = { ...node.pyxis(), ...callersOf(node) };
    assert.equal(parametersOf(node.run(parameters, { callers })), [parameters]);
    assert.is(readFileSync(squashfsOf(node), 'utf8'), 'squashfs\n');
  });
}

for (const [what, change] of [
  ['pyxis has an importer', (node: WrapperNode) => node.writeFacts({ importer: '/opt/importer' })],
  ['nobody can say whether it has one', (node: WrapperNode) => node.writeFacts({ importer: undefined })],
  [
    'plugstack.conf changed since it was read, with its old times',
    (node: WrapperNode) => {
      const { atime, mtime } = statSync(node.plugstackPath);
      const facts = join(node.node.runtimePath, 'node');
      utimesSync(facts, atime, new Date(Date.now() - 10_000));
      writeFileSync(node.plugstackPath, 'required spank_pyxis.so importer=/opt/importer\n');
      utimesSync(node.plugstackPath, atime, mtime);
    },
  ],
] as const) {
  registry(`import gets an image, too, where ${what}`, async () => {
    await using node = await WrapperNode.start();
    setAcquire(node, 'exit 1');
    change(node);
    const parameters = ['import', '--output', squashfsOf(node), uri];
    assert.equal(parametersOf(node.run(parameters)), [parameters]);
  });
}

registry('what was being unpacked when the job began is asked for, and not waited for', async () => {
  await using node = await WrapperNode.start();
  const asked = join(node.node.root, 'real/asked');
  node.writeImages(`${node.imagePath}\t-\tlater\n`);
  const create = ['create', '--name', container, node.imagePath];

  setAcquire(node, `echo "$*" >${asked}; exit 1`);
  assert.equal(parametersOf(node.run(create)), [create]);
  assert.is(readFileSync(asked, 'utf8'), `acquire --existing ${node.imagePath}\n`);

  setAcquire(node, `echo ${node.entry} -`);
  assert.equal(parametersOf(node.run(create)), []);
  assert.ok(existsSync(node.stub()));
});

registry('a named container is imported and unpacked for real', async () => {
  await using node = await WrapperNode.start();
  setAcquire(node, 'exit 1');
  node.run(['import', '--output', squashfsOf(node), uri]);
  const create = ['create', '--name', 'pyxis_mine', squashfsOf(node)];
  const result = node.run(create);
  assert.equal(parametersOf(result), [['import', '--output', squashfsOf(node), uri], create]);
  assert.is(readFileSync(squashfsOf(node), 'utf8'), 'squashfs\n');
});

registry(
  'where the entry cannot be had, the image is imported after all; a failure is the real one',
  async () => {
    await using node = await WrapperNode.start();
    node.writeImages('');
    setAcquire(node, 'exit 1');
    node.run(['import', '--output', squashfsOf(node), uri]);
    const create = ['create', '--name', container, squashfsOf(node)];
    assert.equal(parametersOf(node.run(create)), [['import', '--output', squashfsOf(node), uri], create]);
    writeFileSync(join(node.node.root, 'real/fails'), '');
    rmSync(squashfsOf(node));
    node.run(['import', '--output', squashfsOf(node), uri]);
    const failed = node.run(create);
    assert.equal([failed.exitCode, failed.output], [7, '[ERROR] no registry\n']);
  },
);

registry('an answer that names no entry of the user is not believed', async () => {
  await using node = await WrapperNode.start();
  node.writeImages('');
  for (const answer of ['', 'x y', `pyxis_cache_u${alice.uid}_ffffffffffffffff -`, `../${node.entry} -`]) {
    setAcquire(node, `echo '${answer}'`);
    const load = ['load', '--name', container, uri];
    assert.equal(parametersOf(node.run(load)), [load], answer);
  }
  setAcquire(node, `echo '${node.entry} -'`);
  assert.equal(parametersOf(node.run(['load', '--name', container, uri])), []);
});

registry(
  'a tag the Prolog resolved more than a minute ago is asked for again, with if-not-present it is not',
  async () => {
    await using node = await WrapperNode.start();
    const images = join(node.node.runtimePath, 'jobs', String(jobId), 'images');
    utimesSync(images, Date.now() / 1000 - 90, Date.now() / 1000 - 90);
    const asked = join(node.node.root, 'real/asked');
    setAcquire(node, `echo "$@" >${asked}; exit 1`);
    node.run(['load', '--name', container, uri]);
    assert.is(readFileSync(asked, 'utf8'), `acquire ${uri}\n`);
    rmSync(asked);
    node.writeFacts({ imageFreshness: 'if-not-present', command: join(node.node.root, 'acquire') });
    assert.equal(parametersOf(node.run(['load', '--name', container, uri])), []);
    assert.not(existsSync(asked));
  },
);

registry('what a registry told the Prolog holds for a step that would ask alike, for no other', async () => {
  await using node = await WrapperNode.start();
  const asked = join(node.node.root, 'real/asked');
  setAcquire(node, `echo "$@" >${asked}; exit 1`);
  const isAsked = (stamp: string, environment: Readonly<Record<string, string>>): boolean => {
    node.writeImages(`${uri}\t${node.entry}\t${stamp}\n`);
    rmSync(asked, { force: true });
    node.run(['load', '--name', container, uri], { environment });
    return existsSync(asked);
  };
  assert.not(isAsked('/home/alice', { HOME: '/home/alice', http_proxy: '', NO_SUCH: 'x' }));
  assert.not(isAsked('-', { https_proxy: 'http://proxy:1' }));
  assert.ok(isAsked('ask', { HOME: 'ask' }));
  for (const different of [
    { HOME: '/home/alice/other' },
    ...[
      ...['ENROOT_CONFIG_PATH', 'XDG_CONFIG_HOME', 'CURL_HOME', 'SSL_CERT_FILE', 'SSL_CERT_DIR'],
      ...['CURL_CA_BUNDLE', 'http_proxy', 'https_proxy', 'HTTPS_PROXY', 'all_proxy', 'ALL_PROXY'],
      ...['no_proxy', 'NO_PROXY'],
    ].map((name) => ({ [name]: 'x' })),
  ])
    assert.ok(isAsked('/home/alice', { HOME: '/home/alice', ...different }), JSON.stringify(different));
});

registry('an import that an earlier run of the step left does not stop the next', async () => {
  await using node = await WrapperNode.start();
  writeFileSync(squashfsOf(node), 'half', { mode: 0o644 });
  chownSync(squashfsOf(node), alice.uid, alice.gid);
  node.writeFacts({ isolation: 'overlay', command: undefined });
  const result = node.run(['import', '--output', squashfsOf(node), uri]);
  assert.equal([result.exitCode, parametersOf(result).length], [0, 1]);
  assert.is(readFileSync(squashfsOf(node), 'utf8'), 'squashfs\n');
});

registry.run();

const shared = suite('wrapper: isolation=shared', { skip: unlessPrivateMachine });

/**
 * Beside the recorder, the programs that enroot has for namespaces and mounts: they do without either, and
 * note the mounts.
 */
function setShared(node: WrapperNode): void {
  const real = join(node.node.root, 'real');
  const write = (name: string, text: string): void =>
    writeFileSync(join(real, name), `#!/bin/sh\n${text}\n`, { mode: 0o755 });
  write('enroot-nsenter', 'shift 2; exec "$@"');
  write('enroot-mount', `cat >>${real}/mounted`);
  node.writeFacts({ isolation: 'shared' });
}

const mountsIn = (node: WrapperNode): string[] =>
  readFileSync(join(node.stub(), '.container-cache/mounts'), 'utf8').trim().split('\n');

shared('what is of the entry is read-only; what enroot may write to is the container’s own', async () => {
  await using node = await WrapperNode.start();
  const make = (path: string, mode: number): string =>
    mkdirSync(join(node.entryPath, path), { recursive: true, mode }) ?? '';
  for (const path of ['etc/sub', 'var/spool/cron', 'usr/bin', 'data', 'proc']) make(path, 0o755);
  writeFileSync(join(node.entryPath, 'etc/passwd'), 'x\n');
  writeFileSync(join(node.entryPath, 'var/spool/cron/file'), '');
  writeFileSync(join(node.entryPath, 'usr/one'), '');
  for (let index = 0; index < 60; index++) writeFileSync(join(node.entryPath, `usr/bin/p${index}`), '');
  symlinkSync('usr/bin', join(node.entryPath, 'bin'));
  command('chown', '--recursive', `${alice.uid}:${alice.gid}`, node.entryPath);
  node.writeOwnImages();
  setShared(node);
  node.createStub();
  const own = join(node.stub(), '.container-cache/root');
  const part = (path: string): string =>
    `${node.entryPath}/${path} ${node.node.runtimePath}/${path} none bind,ro,nosuid,nodev`;
  assert.equal(
    mountsIn(node).sort(),
    [
      `${own} ${node.node.runtimePath} none bind,nosuid,nodev`,
      ...['f0', 'usr/bin', 'usr/one', 'var/spool/cron'].map(part),
    ].sort(),
  );
  assert.equal(readdirSync(own).sort(), ['.lock', 'bin', 'data', 'etc', 'f0', 'proc', 'usr', 'var']);
  assert.is(readFileSync(join(own, 'etc/passwd'), 'utf8'), 'x\n');
  const { calls } = node.run(['start', '--conf', '/c', container, 'sh', '-c', 'x']);
  assert.equal(
    calls.map(({ parameters }) => parameters.filter((word) => !word.endsWith('.partial'))),
    [
      ['start', '--conf', '/c', '--rc', directoryName(container), 'true'],
      ['start', '--conf', '/c', directoryName(container), 'sh', '-c', 'x'],
    ],
  );
  for (const { environment } of calls) {
    assert.is(
      environment.get('CONTAINER_CACHE_FSTAB'),
      `${node.node.runtimePath} / none rbind,nosuid,nodev 0 -1`,
    );
    assert.is(environment.get('ENROOT_ROOTFS_WRITABLE'), 'n');
  }
  assert.equal(node.node.partials(alice), []);
});

shared('a container that does not come up so is unpacked, and the next Prolog says that', async () => {
  await using node = await WrapperNode.start();
  setShared(node);
  node.createStub();
  const real = readFileSync(node.real, 'utf8');
  // The trial runs `true`.
  writeFileSync(
    node.real,
    real.replace(
      'case $1 in',
      'case "$*" in *" true") echo "mkdir: Read-only file system" >&2; exit 1 ;; esac\ncase $1 in',
    ),
  );
  const start = ['start', '--conf', '/c', container, 'sh'];
  const result = node.run(start);
  assert.equal(parametersOf(result).slice(1), [['create', '--name', container, node.imagePath], start]);
  assert.not(result.calls.at(-1)!.environment.has('ENROOT_ROOTFS_WRITABLE'));
  assert.not(existsSync(node.stub()));
  const note = join(node.userPath, unsharedName(node.entry));
  assert.is(readFileSync(note, 'utf8'), 'mkdir: Read-only file system\n');

  writeFileSync(node.real, real);
  node.createStub();
  node.run(start);
  assert.not(existsSync(note));
});

shared(
  'a Prolog says why an entry is of no use, and a collector removes the note with the entry',
  async () => {
    await using node = await WrapperNode.start();
    const job = { user: alice, image: node.imagePath };
    const { line } = await node.node.prolog({ ...job, id: 7 });
    const note = join(node.userPath, unsharedName(line['entry']!));
    writeFileSync(note, 'mkdir: Read-only file system\n');
    chownSync(note, alice.uid, alice.gid);
    for (const isolation of ['shared', 'overlay'] as const) {
      node.writeFacts({ isolation });
      const again = await node.node.prolog({ ...job, id: 8 });
      assert.is(again.line['result'], 'reused');
      const reason = /isolation=shared.*: mkdir: Read-only file system$/;
      if (isolation === 'shared') assert.match(again.line['reason']!, reason);
      else assert.is(again.line['reason'], undefined);
    }
    for (const id of [7, 8]) await node.node.epilog({ id, user: alice });
    await node.node.gc();
    assert.ok(existsSync(note));
    rmSync(node.node.entryPath(alice, line['entry']!), { recursive: true });
    await node.node.gc();
    assert.not(existsSync(note));
  },
);

shared(
  'a writable container is unpacked; whether it is one, enroot.conf says as it says to enroot',
  async () => {
    await using node = await WrapperNode.start();
    setShared(node);
    const etc = join(node.node.root, 'etc');
    mkdirSync(join(etc, 'enroot.conf.d'));
    const variable = 'ENROOT_ROOTFS_WRITABLE';
    const cases: readonly (readonly [boolean, string, string, string, string?])[] = [
      [true, `${variable} y\n`, '', ''],
      [true, `${variable}=$(echo yes)\n`, '', ''],
      [true, `ENROOT_OWN on\n${variable} $ENROOT_OWN\n`, '', ''],
      [false, `${variable} False\n`, '', ''],
      [false, `#${variable} yes\n`, '', ''],
      [false, `${variable} yes\n`, '', '', 'n'],
      [true, '', `${variable} true\n`, ''],
      [false, '', `${variable} no\n`, `${variable} yes\n`],
      [true, `${variable}\n`, '', `${variable} yes\n`],
    ];
    for (const [isWritable, main, first, second, value] of cases) {
      for (const [name, text] of Object.entries({ '': main, '.d/10.conf': first, '.d/50.conf': second }))
        writeFileSync(join(etc, `enroot.conf${name}`), text);
      const create = ['create', '--name', container, node.imagePath];
      const result = node.run(create, { environment: value === undefined ? {} : { [variable]: value } });
      const what = JSON.stringify([main, first, second, value]);
      assert.equal(
        [parametersOf(result), existsSync(node.stub())],
        isWritable ? [[create], false] : [[], true],
        what,
      );
      rmSync(node.stub(), { recursive: true, force: true });
    }
  },
);

shared('a writable container gets a rootfs of its own', async () => {
  await using node = await WrapperNode.start();
  node.writeFacts({ isolation: 'shared' });
  const create = ['create', '--name', container, node.imagePath];
  const result = node.run(create, { environment: { ENROOT_ROOTFS_WRITABLE: 'y' } });
  assert.equal(parametersOf(result), [create]);
  assert.not(existsSync(node.stub()));
});

shared.run();
