/** `container-cache check`: a node that is right, and what is said when one thing of it is not. */
// test: timeout 900 s
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Finding, FindingStatus } from '../../admin/checks/findings.ts';
import { build, distDirectory } from '../../build/build.ts';
import { dataPathLine } from '../../lib/core/enroot-conf.ts';
import { createLockName, entryName, leasePath, partialName, stubMarkPath } from '../../lib/core/layout.ts';
import { formatLeaseRecord } from '../../lib/core/lease-record.ts';
import { formatNodeFacts, type NodeFacts } from '../../lib/core/node-facts.ts';
import { processStartTicks } from '../../lib/system/processes.ts';
import { makeExt4, mountSilentFuse, unlessExt4, unlessFuse } from '../helpers/filesystem.ts';
import { processes, TestNode, until } from '../helpers/node.ts';
import {
  alice,
  command,
  enterPrivateMachine,
  machineRoot,
  mount,
  replaceFile,
  replaceProgram,
  umount,
  unlessPrivateMachine,
} from '../helpers/private-machine.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

/** As an admin installs dist/, on a path that only root can change. */
const libexec = join(machineRoot, 'libexec');
const executable = join(libexec, 'container-cache');
const wrapper = join(libexec, 'bin/enroot');
const mountsName = '00-container-cache.fstab';

async function install(): Promise<void> {
  if (existsSync(libexec)) return;
  await build();
  mkdirSync(join(libexec, 'bin'), { recursive: true });
  for (const name of ['container-cache', 'taskprolog', mountsName])
    copyFileSync(join(distDirectory, name), join(libexec, name));
  copyFileSync(join(distDirectory, 'enroot'), wrapper);
  for (const name of ['prolog', 'epilog']) symlinkSync('container-cache', join(libexec, name));
}

interface CheckResult {
  readonly exitCode: number | null;
  readonly well: boolean;
  readonly findings: readonly Finding[];
}

/** Slurm says of itself and of its jobs what a test wants. */
const slurmVersionFile = join(machineRoot, 'slurm-version');
const controllerFile = join(machineRoot, 'controller');
const activeJobsFile = join(machineRoot, 'active-jobs');

/**
 * A node where nothing is wrong: our build, Slurm, pyxis and enroot as far as files go, and a slurmd that
 * only sleeps.
 */
class RightNode implements AsyncDisposable {
  readonly node: TestNode;
  readonly root: string;
  /** What check() is asked to look at; none: everything. */
  readonly areas: readonly string[];
  readonly #children: ChildProcess[] = [];
  #slurmd: ChildProcess | undefined;

  private constructor(node: TestNode, areas: readonly string[]) {
    this.node = node;
    this.areas = areas;
    this.root = node.root;
  }

  static async start(areas: readonly string[] = [], basePath?: string): Promise<RightNode> {
    await install();
    const node = await TestNode.start(basePath === undefined ? {} : { basePath });
    const right = new RightNode(node, areas);
    writeFileSync(slurmVersionFile, 'slurm 23.11.10\n');
    writeFileSync(activeJobsFile, '');
    for (const directory of ['slurm', 'real', 'enroot/mounts.d', 'data', 'run'])
      mkdirSync(join(right.root, directory), { recursive: true });
    right.configure({});
    right.write('real/enroot', '#!/bin/sh\n# A real one.\necho 4.1.2\n', 0o755);
    right.write('enroot/enroot.conf', `${dataPathLine(node.basePath)}\n`);
    copyFileSync(join(libexec, mountsName), right.path('enroot/mounts.d', mountsName));
    right.write('enroot/mounts.d/10-system.fstab', '/proc /proc none rbind\n');
    right.slurmConf({});
    right.write('slurm/plugstack.conf', `required ${right.path('slurm/spank_pyxis.so')}\n`);
    right.write('slurm/spank_pyxis.so', '');
    await right.startSlurmd(`${join(libexec, 'bin')}:${right.path('real')}:/usr/bin`);
    return right;
  }

  path(...parts: readonly string[]): string {
    return join(this.root, ...parts);
  }

  write(name: string, text: string | Buffer, mode = 0o644): void {
    writeFileSync(this.path(name), text);
    chmodSync(this.path(name), mode);
  }

  configure(settings: Readonly<Record<string, string | number>>): void {
    this.node.configure({
      enroot_path: this.path('real/enroot'),
      enroot_sysconf_path: this.path('enroot'),
      ...settings,
    });
  }

  /** Other values than the right ones; null: the line is missing. */
  slurmConf(values: Readonly<Record<string, string | null>>): void {
    const all: Record<string, string | null> = {
      ClusterName: 'test',
      Prolog: join(libexec, 'prolog'),
      Epilog: join(libexec, 'epilog'),
      PrologFlags: 'Alloc',
      BatchStartTimeout: '3780',
      ...values,
    };
    const lines = Object.entries(all).flatMap(([key, value]) => (value === null ? [] : `${key}=${value}\n`));
    this.write('slurm/slurm.conf', lines.join(''));
  }

  async startSlurmd(searchPath: string): Promise<void> {
    const file = this.path('slurmd');
    if (!existsSync(file)) copyFileSync('/usr/bin/sleep', file);
    this.stopSlurmd();
    const child = this.run(file, ['infinity'], { PATH: searchPath });
    this.#slurmd = child;
    await until('slurmd runs', () => processStartTicks(child.pid!) !== undefined);
  }

  stopSlurmd(): void {
    this.#slurmd?.kill('SIGKILL');
  }

  run(file: string, parameters: readonly string[], environment: Record<string, string>): ChildProcess {
    const child = spawn(file, parameters, { stdio: 'ignore', env: environment });
    this.#children.push(child);
    return child;
  }

  check(environment: Readonly<Record<string, string>> = {}, prefix: readonly string[] = []): CheckResult {
    const { status, stdout, stderr } = this.program(['check', '--json', ...this.areas], environment, prefix);
    assert.is(stderr, '');
    const { well, findings } = JSON.parse(stdout) as Omit<CheckResult, 'exitCode'>;
    assert.is(status, well ? 0 : 1);
    return { exitCode: status, well, findings };
  }

  program(
    parameters: readonly string[],
    environment: Readonly<Record<string, string>> = {},
    prefix: readonly string[] = [],
  ): { status: number | null; stdout: string; stderr: string } {
    const [file = '', ...rest] = [...prefix, executable, ...parameters];
    return spawnSync(file, rest, {
      encoding: 'utf8',
      timeout: 60_000,
      env: {
        PATH: '/usr/bin:/bin',
        CONTAINER_CACHE_CONF: this.node.configPath,
        SLURM_CONF: this.path('slurm/slurm.conf'),
        ...environment,
      },
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const child of this.#children) child.kill('SIGKILL');
    await until('the children have ended', () =>
      this.#children.every(({ exitCode, signalCode }) => exitCode !== null || signalCode !== null),
    );
    await this.node[Symbol.asyncDispose]();
  }
}

/** True of every test: the configuration is not where jobs look, and the base is on a tmpfs. */
const always = [/^CONTAINER_CACHE_CONF names /, / is on tmpfs: /];

function problems({ findings }: CheckResult): Finding[] {
  return findings.filter(({ status, text }) => status !== 'ok' && !always.some((known) => known.test(text)));
}

type Expected = readonly [FindingStatus, string, RegExp];

/** Just these problems are found, in this order, and each has a remedy. */
function assertProblems(result: CheckResult, ...expected: readonly Expected[]): void {
  const found = problems(result);
  assert.equal(
    found.map(({ status, area }) => [status, area]),
    expected.map(([status, area]) => [status, area]),
    JSON.stringify(found, undefined, 1),
  );
  for (const [index, [, , text]] of expected.entries()) assert.match(found[index]!.text, text);
  for (const { remedy } of found) assert.ok(remedy !== undefined && remedy !== '');
}

function textsOf({ findings }: CheckResult, area: string): string[] {
  return findings.filter((one) => one.area === area && one.status === 'ok').map(({ text }) => text);
}

if (unlessPrivateMachine === undefined) {
  replaceProgram('slurmd', `cat ${slurmVersionFile}`);
  replaceProgram(
    'squeue',
    `[ -f ${activeJobsFile} ] || { echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1; }; cat ${activeJobsFile}`,
  );
  replaceProgram('scontrol', `cat ${controllerFile} || { echo 'fatal: no controller' >&2; exit 1; }`);
}

const whole = suite('check', { skip: unlessPrivateMachine });

whole('a node that is right is well, and nothing of it is changed', async () => {
  await using right = await RightNode.start();
  const { node } = right;
  node.plant(alice, { hash: 'a'.repeat(16), usedSecondsAgo: 10 });
  // Of the base itself the times change: an overlay was tried in it.
  const listing = (): string =>
    command('find', right.root, '!', '-path', node.basePath, '-printf', '%p %i %u:%g %m %s %T@ %C@ %l\n');
  const before = listing();
  const result = right.check();
  assertProblems(result);
  assert.is(listing(), before);
  const areas = new Set(result.findings.map(({ area }) => area));
  assert.equal(
    [...areas],
    [
      'config',
      'programs',
      'base',
      'slurm',
      'wrapper',
      'enroot',
      'mounts.d',
      'pyxis',
      'namespace',
      'cleaners',
      'clock',
      'leftovers',
      'node',
    ],
  );
});

whole('says it for people, too, with the remedy below', async () => {
  await using right = await RightNode.start();
  const good = right.program(['check']);
  assert.is(good.status, 0);
  assert.match(good.stdout, /^ok {4}base {7}\/mnt\/.*: tmpfs, owned by root, mode 0755$/m);
  assert.match(good.stdout, /\nOK: 2 warnings\.\n$/);
  right.slurmConf({ PrologFlags: null });
  const fair = right.program(['check']);
  assert.is(fair.status, 0);
  assert.match(
    fair.stdout,
    /^warn {2}slurm {6}PrologFlags is not set.*\n {17}add Alloc to PrologFlags in slurm\.conf; omit it only .*$/m,
  );
  assert.match(fair.stdout, /\nOK: 3 warnings\.\n$/);
  right.slurmConf({ Epilog: null });
  const poor = right.program(['check']);
  assert.is(poor.status, 1);
  assert.match(poor.stdout, /^bad {3}slurm {6}Epilog is not set\n {17}in slurm\.conf: Epilog=.*$/m);
  assert.match(poor.stdout, /\nFAILED: 1 error, 2 warnings\.\n$/);
});

whole('a user is told what only root can look at', async () => {
  await using right = await RightNode.start();
  const result = right.check({}, [
    'setpriv',
    `--reuid=${alice.uid}`,
    `--regid=${alice.gid}`,
    '--clear-groups',
  ]);
  assertProblems(
    result,
    ['skip', 'base', /only root/],
    ['skip', 'wrapper', /only root/],
    ['skip', 'cleaners', /only root/],
    ['skip', 'leftovers', /only root/],
  );
});

whole('an area is looked at alone, and an unknown one is wrong usage', async () => {
  await using right = await RightNode.start(['clock', 'pyxis']);
  const areas = new Set(right.check().findings.map(({ area }) => area));
  assert.equal([...areas].sort(), ['clock', 'config', 'pyxis']);
  const { status, stderr } = right.program(['check', 'moon']);
  assert.is(status, 2);
  assert.match(stderr, /moon/);
});

whole.run();

const config = suite('check: configuration and programs', { skip: unlessPrivateMachine });

config('each problem of the file is a line of its own, with its place', async () => {
  await using right = await RightNode.start();
  right.node.writeConfig('container_cache_data_path=/x\ngc_min_age=soon\nno_such_key=1\n');
  assertProblems(
    right.check(),
    ['bad', 'config', /container-cache\.conf:2: gc_min_age: found "soon"/],
    ['bad', 'config', /container-cache\.conf:3: unknown key "no_such_key"/],
    ['skip', 'others', /nothing else was checked/],
  );
});

config('a file that is missing, or that others can write', async () => {
  await using right = await RightNode.start();
  chmodSync(right.node.configPath, 0o666);
  assertProblems(right.check(), ['bad', 'config', /somebody else can change it: .* mode 0666/]);
  chmodSync(right.node.configPath, 0o644);
  chownSync(right.root, alice.uid, 0);
  const owned = problems(right.check());
  assert.match(owned[0]?.text ?? '', new RegExp(`${right.root} is owned by uid ${alice.uid}`));
  chownSync(right.root, 0, 0);
  rmSync(right.node.configPath);
  assertProblems(
    right.check(),
    ['bad', 'config', /no such file/],
    ['skip', 'others', /nothing else was checked/],
  );
});

config('a program that is missing is named with its package', async () => {
  await using right = await RightNode.start();
  replaceFile('/usr/bin/unsquashfs', () => '');
  try {
    const result = right.check();
    assertProblems(result, ['bad', 'programs', /unsquashfs/]);
    assert.match(problems(result)[0]!.remedy!, /squashfs-tools/);
  } finally {
    umount('/usr/bin/unsquashfs');
  }
});

config.run();

const base = suite('check: base', { skip: unlessPrivateMachine });

base('that is missing, open to others, another’s, or a symlink', async () => {
  await using right = await RightNode.start();
  const { basePath } = right.node;
  chmodSync(basePath, 0o777);
  assertProblems(
    right.check(),
    ['bad', 'base', /mode 0777/],
    ['skip', 'leftovers', /the base cannot be used/],
  );
  chmodSync(basePath, 0o755);
  chownSync(basePath, alice.uid, 0);
  assertProblems(right.check(), ['bad', 'base', /owned by uid/], ['skip', 'leftovers', /./]);
  rmSync(basePath, { recursive: true });
  assertProblems(right.check(), ['bad', 'base', /does not exist/], ['skip', 'leftovers', /./]);
  assert.not(existsSync(basePath));
  symlinkSync('/etc', basePath);
  assertProblems(right.check(), ['bad', 'base', /symlink/], ['skip', 'leftovers', /./]);
  rmSync(basePath);
});

base('whose disk is not mounted', async () => {
  await using right = await RightNode.start();
  replaceFile('/etc/fstab', () => `/dev/sdz ${right.node.basePath} ext4 defaults 0 0\n`);
  try {
    assertProblems(
      right.check(),
      ['bad', 'base', /in \/etc\/fstab but not mounted/],
      ['skip', 'leftovers', /./],
    );
  } finally {
    umount('/etc/fstab');
  }
});

base('that is fuller than the high watermark', async () => {
  await using right = await RightNode.start();
  right.configure({ container_cache_gc_high: 1, container_cache_gc_low: 0 });
  assertProblems(right.check(), ['warn', 'base', /it is due now/]);
});

base('whose entries may take more than the disk has, or less than an image', async () => {
  await using right = await RightNode.start(['base']);
  right.configure({ container_cache_max_size: '500' });
  assertProblems(right.check(), ['warn', 'base', /max_size is 500 B, too small for almost any image/]);
  right.configure({ container_cache_max_size: '900T' });
  assertProblems(right.check(), [
    'warn',
    'base',
    /max_size is .*, more than the disk's .*: it has no effect/,
  ]);
  right.configure({ container_cache_max_size: '50%' });
  const result = right.check();
  assertProblems(result);
  assert.match(textsOf(result, 'base').join('\n'), /^container_cache_max_size is \S+ \S+ of the disk's/m);
});

base('where no user can mount an overlay: the reason, and how bad it is by isolation=', async () => {
  await using right = await RightNode.start();
  const { basePath } = right.node;
  for (const name of ['lower', 'upper', 'work']) mkdirSync(right.path(name));
  const layers = `lowerdir=${right.path('lower')},upperdir=${right.path('upper')},workdir=${right.path('work')}`;
  mount('--types', 'overlay', '--options', layers, 'overlay', basePath);
  try {
    assertProblems(
      right.check(),
      ['warn', 'base', /is on overlay/],
      ['warn', 'base', /cannot mount an overlay there: the base is on an overlay/],
    );
    right.configure({ isolation: 'overlay' });
    assertProblems(
      right.check(),
      ['warn', 'base', /is on overlay/],
      ['bad', 'base', /cannot mount an overlay there.*isolation=overlay needs it/],
    );
    right.configure({ isolation: 'shared' });
    assertProblems(right.check(), ['warn', 'base', /is on overlay/]);
  } finally {
    umount(basePath);
  }
});

base('that is mounted noexec does for overlays, not for shared entries', async () => {
  await using right = await RightNode.start();
  const { basePath } = right.node;
  mount('--types', 'tmpfs', '--options', 'noexec,mode=0755', 'tmpfs', basePath);
  try {
    assertProblems(right.check());
    right.configure({ isolation: 'shared' });
    assertProblems(right.check(), ['bad', 'base', /mounted noexec/]);
  } finally {
    umount(basePath);
  }
});

base.unless(unlessExt4(), 'on a disk of the node is what it should be', async () => {
  using disk = makeExt4({ mebibytes: 16, inodes: 256 });
  await using right = await RightNode.start([], disk.path);
  const result = right.check();
  assertProblems(result);
  assert.ok(textsOf(result, 'base').includes(`${disk.path}: ext4, owned by root, mode 0755`));
  assert.not(result.findings.some(({ text }) => text.includes('tmpfs')));
});

base.unless(unlessFuse, 'served by a program that never answers is refused without a look', async () => {
  await using right = await RightNode.start();
  await using _ = await mountSilentFuse(right.node.basePath, alice, { forOthers: true });
  assertProblems(
    right.check(),
    ['bad', 'base', /is on fuse/],
    // Its line looks whether the user can write there.
    ['bad', 'enroot', /cannot evaluate/],
    ['skip', 'leftovers', /./],
  );
});

base.run();

const slurm = suite('check: slurm.conf', { skip: unlessPrivateMachine });

slurm('that is not there, and no slurmctld answers', async () => {
  await using right = await RightNode.start(['slurm']);
  rmSync(right.path('slurm/slurm.conf'));
  assertProblems(right.check(), ['bad', 'slurm', /no slurm\.conf.*fatal: no controller/]);
});

slurm('that is not there, but slurmctld answers', async () => {
  await using right = await RightNode.start(['slurm']);
  rmSync(right.path('slurm/slurm.conf'));
  const lines = [
    `Prolog[0]   = ${libexec}/prolog`,
    `Epilog[0]   = ${libexec}/epilog`,
    'PrologFlags = Alloc,Contain',
    'BatchStartTimeout = 3780 sec',
    'PrologEpilogTimeout = 65534',
    `PlugStackConfig = ${right.path('slurm/plugstack.conf')}`,
    'TaskProlog = (null)',
  ];
  writeFileSync(controllerFile, lines.join('\n'));
  assertProblems(right.check(), ['warn', 'slurm', /scontrol show config told the configuration/]);
  rmSync(controllerFile);
});

slurm('includes are read; one that is missing is told', async () => {
  await using right = await RightNode.start(['slurm']);
  right.write('slurm/ours.conf', `Prolog=${libexec}/prolog\nEpilog=${libexec}/epilog\n`);
  right.write(
    'slurm/slurm.conf',
    'INCLUDE ours.conf\nprologflags=contain # and Alloc\nBatchStartTimeout=\\\n3780\nInclude none.conf\n',
  );
  assertProblems(right.check(), ['bad', 'slurm', /none\.conf cannot be read/]);
});

slurm('without Prolog, Epilog or flags', async () => {
  await using right = await RightNode.start(['slurm']);
  right.slurmConf({ Prolog: null, Epilog: '/bin/true', PrologFlags: 'NoHold' });
  assertProblems(
    right.check(),
    ['bad', 'slurm', /^Prolog is not set/],
    ['bad', 'slurm', /^Epilog does not run container-cache: \/bin\/true/],
    ['warn', 'slurm', /^PrologFlags is NoHold, without Alloc/],
  );
});

slurm('says what Alloc brings on this version of Slurm, and that Contain is Alloc', async () => {
  await using right = await RightNode.start(['slurm']);
  for (const [version, flags, said] of [
    [
      '22.05.8',
      'Alloc',
      /^PrologFlags=Alloc: images are .* CONFIGURING; srun of Slurm 22\.5\.8 asks .* every 0\.1 s$/,
    ],
    [
      '23.02.0',
      'Contain',
      /^PrologFlags=Contain implies Alloc: .* asks whether the node is ready after 0\.1, 1\.1 and 2\.6 s/,
    ],
    ['26.05.3', 'NoHold,X11', /^PrologFlags=NoHold,X11 implies Alloc: .* costs a second$/],
  ] as const) {
    writeFileSync(slurmVersionFile, `slurm ${version}\n`);
    right.slurmConf({ PrologFlags: flags });
    const result = right.check();
    assertProblems(result);
    assert.ok(
      textsOf(result, 'slurm').some((text) => said.test(text)),
      textsOf(result, 'slurm').join('\n'),
    );
  }
});

slurm('a pattern, a script and several Prologs may lead to ours', async () => {
  await using right = await RightNode.start(['slurm']);
  mkdirSync(right.path('prolog.d'));
  right.write('prolog.d/10-other', '#!/bin/sh\n', 0o755);
  symlinkSync(join(libexec, 'prolog'), right.path('prolog.d/prolog'));
  right.write('slurm/site-epilog', `#!/bin/sh\n"${libexec}/epilog" || exit\n`, 0o755);
  right.slurmConf({ Prolog: right.path('prolog.d/*'), Epilog: 'site-epilog' });
  const result = right.check();
  assertProblems(result);
  const shown = textsOf(result, 'slurm');
  assert.ok(shown.includes(`Prolog: ${right.path('prolog.d/prolog')}`), shown.join('\n'));
  assert.ok(shown.includes(`Epilog: ${right.path('slurm/site-epilog')}, which runs ${libexec}/epilog`));

  right.slurmConf({});
  const conf = `Prolog=${libexec}/prolog\nProlog=/bin/true\nEpilog=/bin/true\nEpilog=${libexec}/epilog\n`;
  right.write('slurm/slurm.conf', `${conf}PrologFlags=Alloc\nBatchStartTimeout=3780\n`);
  assertProblems(right.check(), [
    'warn',
    'slurm',
    /^Prolog is set 2 times, and the last one is not container-cache/,
  ]);
});

slurm('copies and links of any name are ours', async () => {
  await using right = await RightNode.start(['slurm']);
  copyFileSync(executable, right.path('50-container-cache'));
  symlinkSync(executable, right.path('99-cleanup'));
  right.slurmConf({ Prolog: right.path('50-container-cache'), Epilog: right.path('99-cleanup') });
  const result = right.check();
  assertProblems(result);
  const shown = textsOf(result, 'slurm');
  const copy = `Prolog: ${right.path('50-container-cache')}, a copy of this build: copy it again with each upgrade`;
  assert.ok(shown.includes(copy), shown.join('\n'));
  assert.ok(shown.includes(`Epilog: ${right.path('99-cleanup')}`), shown.join('\n'));
});

slurm('a script is ours if it starts the program that Slurm wants', async () => {
  await using right = await RightNode.start(['slurm']);
  right.write('slurm/site-prolog', `#!/bin/sh\nexec ${executable} prolog\n`, 0o755);
  right.write('slurm/site-epilog', `#!/bin/sh\n${executable} gc --background\n`, 0o755);
  right.slurmConf({ Prolog: 'site-prolog', Epilog: 'site-epilog' });
  assertProblems(right.check(), ['bad', 'slurm', /^Epilog does not run container-cache/]);
});

slurm('programs that would drain the node, or that somebody else could change', async () => {
  await using right = await RightNode.start(['slurm']);
  right.slurmConf({ Epilog: '/no/such/epilog' });
  assertProblems(
    right.check(),
    ['bad', 'slurm', /\/no\/such\/epilog does not exist/],
    ['bad', 'slurm', /^Epilog does not run container-cache/],
  );
  mkdirSync(right.path('open'));
  symlinkSync(join(libexec, 'prolog'), right.path('open/prolog'));
  chmodSync(right.path('open'), 0o777);
  mkdirSync(right.path('other'));
  right.write('other/epilog', Buffer.from('\u007fELF\0container-cache\0'), 0o755);
  right.slurmConf({ Prolog: right.path('open/prolog'), Epilog: right.path('other/epilog') });
  assertProblems(
    right.check(),
    ['bad', 'slurm', /somebody else can change it: .*open is owned by uid 0, mode 0777/],
    ['bad', 'slurm', /other\/epilog is another build/],
  );
  right.slurmConf({ Prolog: right.path('open') });
  assertProblems(
    right.check(),
    ['bad', 'slurm', /open is not a file/],
    ['bad', 'slurm', /^Prolog does not run container-cache/],
  );
});

slurm('time limits that an unpack would reach', async () => {
  await using right = await RightNode.start(['slurm']);
  right.slurmConf({ BatchStartTimeout: null, PrologEpilogTimeout: '120', PrologFlags: 'Alloc,Serial' });
  assertProblems(
    right.check(),
    ['warn', 'slurm', /with Serial/],
    ['warn', 'slurm', /^BatchStartTimeout is 10 s; .* 3720 s with the largest images/],
    ['bad', 'slurm', /kills a Prolog after 120 s/],
  );
  right.configure({ create_timeout: 100 });
  right.slurmConf({ BatchStartTimeout: '221', PrologEpilogTimeout: '221' });
  assertProblems(right.check());
  // What is beside the unpack takes its time, too.
  right.slurmConf({ BatchStartTimeout: '221', PrologEpilogTimeout: '200' });
  assertProblems(right.check(), ['bad', 'slurm', /kills a Prolog after 200 s/]);
});

slurm('a TaskProlog that containers do not have, or that this Slurm cannot run there', async () => {
  await using right = await RightNode.start(['slurm']);
  const taskProlog = join(libexec, 'taskprolog');
  right.slurmConf({ TaskProlog: taskProlog });
  assertProblems(right.check(), ['bad', 'slurm', /taskprolog is not mounted there/]);
  right.write(
    'enroot/mounts.d/20-taskprolog.fstab',
    `${taskProlog} ${taskProlog} none x-create=file,bind,ro,nosuid,nodev,nofail,silent\n`,
  );
  assertProblems(right.check(), [
    'warn',
    'slurm',
    /prints nothing inside containers: \/run\/container-cache\/jobs is not mounted/,
  ]);
  right.write(
    'enroot/mounts.d/90-jobs.fstab',
    '/run/x/jobs /run/container-cache/jobs none x-create=dir,bind,ro,nosuid,nodev,nofail,silent\n',
  );
  assertProblems(right.check());
  writeFileSync(slurmVersionFile, 'slurm 24.11.3\n');
  assertProblems(right.check(), ['bad', 'slurm', /slurmstepd 24\.11\.3 does not find its libraries/]);
  right.write('slurm/site-task', '#!/bin/sh\n');
  right.slurmConf({ TaskProlog: right.path('slurm/site-task') });
  assertProblems(right.check());
});

slurm.unless(unlessFuse, 'on a file server that never answers is given up', async () => {
  await using right = await RightNode.start(['slurm']);
  mkdirSync(right.path('server'));
  await using _ = await mountSilentFuse(right.path('server'), alice, { forOthers: true });
  const startedAtMs = performance.now();
  const result = right.check({ SLURM_CONF: right.path('server/slurm.conf') });
  assert.ok(performance.now() - startedAtMs < 30_000);
  assertProblems(result, ['bad', 'slurm', /server\/slurm\.conf does not answer/]);
});

slurm.run();

const wrapping = suite('check: wrapper and enroot', { skip: unlessPrivateMachine });

wrapping('slurmd that does not run cannot be asked', async () => {
  await using right = await RightNode.start(['wrapper', 'mounts.d', 'pyxis']);
  right.stopSlurmd();
  await until('slurmd has ended', () => problems(right.check()).length > 0);
  assertProblems(right.check(), ['skip', 'wrapper', /no slurmd runs/]);
});

wrapping.unless(
  existsSync('/etc/systemd/system') ? undefined : 'needs /etc/systemd/system',
  'a drop-in that leads to the wrapper: slurmd is to be restarted, or something else is stronger',
  async () => {
    mount('--types', 'tmpfs', 'tmpfs', '/etc/systemd/system');
    try {
      await using right = await RightNode.start(['wrapper', 'mounts.d', 'pyxis']);
      const searchPath = `${right.path('real')}:/usr/bin`;
      await right.startSlurmd(searchPath);
      await sleep(50);
      const directory = '/etc/systemd/system/slurmd.service.d';
      mkdirSync(directory);
      const dropIn = join(directory, 'container-cache.conf');
      writeFileSync(dropIn, `[Service]\nEnvironment=PATH=${join(libexec, 'bin')}:/usr/bin\n`);
      assertProblems(right.check(), [
        'bad',
        'wrapper',
        /was not restarted after .*container-cache\.conf was installed/,
      ]);
      await right.startSlurmd(searchPath);
      assertProblems(right.check(), ['bad', 'wrapper', /although .*container-cache\.conf sets it/]);
    } finally {
      umount('/etc/systemd/system');
    }
  },
);

wrapping('the wrapper is not first, or not at all, in the PATH of slurmd', async () => {
  await using right = await RightNode.start(['wrapper', 'mounts.d', 'pyxis']);
  await right.startSlurmd(`${right.path('real')}:${join(libexec, 'bin')}`);
  const result = right.check();
  assertProblems(result, ['bad', 'wrapper', /the first enroot in the PATH of slurmd is .*real\/enroot/]);
  assert.match(problems(result)[0]!.remedy!, new RegExp(`PATH=${join(libexec, 'bin')}:`));
  await right.startSlurmd('/sbin:relative');
  assertProblems(right.check(), ['bad', 'wrapper', /no enroot in its PATH/]);
});

wrapping('a wrapper of another build, closed to users, or open to others', async () => {
  await using right = await RightNode.start(['wrapper', 'mounts.d', 'pyxis']);
  mkdirSync(right.path('bin'));
  right.write('bin/enroot', '#!/bin/sh\n# An older one of container-cache.\n', 0o755);
  await right.startSlurmd(right.path('bin'));
  assertProblems(right.check(), ['bad', 'wrapper', /another build/]);
  chmodSync(right.path('bin/enroot'), 0o700);
  assertProblems(right.check(), ['bad', 'wrapper', /users cannot execute it/]);
  chmodSync(right.path('bin/enroot'), 0o757);
  assertProblems(right.check(), ['bad', 'wrapper', /somebody else can change it/]);
});

wrapping('the real enroot is missing, unknown, silent, or is the wrapper', async () => {
  await using right = await RightNode.start(['wrapper', 'mounts.d', 'pyxis']);
  right.configure({ enroot_path: '/no/such/enroot' });
  assertProblems(right.check(), ['bad', 'enroot', /Cannot find enroot/]);
  right.configure({ enroot_path: wrapper });
  assertProblems(right.check(), ['bad', 'enroot', /is the wrapper/]);
  right.configure({});
  for (const [script, text] of [
    ['echo 3.3.1', /is version 3\.3\.1, which the wrapper does not serve/],
    ['echo 5.0.0', /is version 5\.0\.0/],
    ['exit 1', /does not print its version/],
  ] as const) {
    right.write('real/enroot', `#!/bin/sh\n#\n${script}\n`, 0o755);
    assertProblems(right.check(), ['bad', 'enroot', text]);
  }
  right.write('real/enroot', '#!/bin/sh\n#\necho 3.5.0\n', 0o755);
  const result = right.check();
  assertProblems(result);
  assert.ok(textsOf(result, 'enroot').some((text) => text.endsWith('is version 3.5.0 (4.1 is tested)')));
});

wrapping('the file in mounts.d is missing, wrong, changeable, or not the first', async () => {
  await using right = await RightNode.start(['wrapper', 'mounts.d', 'pyxis']);
  const file = `enroot/mounts.d/${mountsName}`;
  chmodSync(right.path(file), 0o664);
  assertProblems(right.check(), ['bad', 'mounts.d', /somebody else can change it/]);
  chmodSync(right.path(file), 0o600);
  assertProblems(right.check(), ['bad', 'mounts.d', /users cannot read it/]);
  right.write(file, '/a /a none bind\n');
  assertProblems(right.check(), ['bad', 'mounts.d', /does not have the line of container-cache/]);
  rmSync(right.path(file));
  const result = right.check();
  assertProblems(result, ['bad', 'mounts.d', /does not exist: containers cannot start/]);
  assert.match(problems(result)[0]!.remedy!, new RegExp(`^install .*${libexec}/${mountsName} `));
  right.configure({ isolation: 'shared' });
  assertProblems(right.check());
  right.configure({});
  copyFileSync(join(libexec, mountsName), right.path(file));
  right.write('enroot/mounts.d/00-a.fstab', '/a /a none bind\n');
  assertProblems(right.check(), ['bad', 'mounts.d', /00-a\.fstab .* sorts before 00-container-cache/]);
  rmSync(right.path('enroot/mounts.d'), { recursive: true });
  assertProblems(right.check(), ['bad', 'mounts.d', /mounts\.d does not exist/]);
});

wrapping(
  'the data path of enroot.conf, drop-ins and variables included, is tried for a user who is new here',
  async () => {
    await using right = await RightNode.start(['wrapper', 'mounts.d', 'pyxis']);
    const { basePath } = right.node;
    const conf = (line: string): void => {
      right.write('enroot/enroot.conf', `# first\n${line}\n`);
    };
    const nothing = textsOf(right.check(), 'enroot').find((text) => text.startsWith("enroot's data path"));
    assert.match(nothing ?? '', /\/\.local\/share\/enroot for uid 65534/);
    // What our Prolog alone can make.
    const onlyOurs = /only the Prolog of container-cache creates it/;
    for (const line of [
      `ENROOT_DATA_PATH ${basePath}/$(id -u)`,
      `ENROOT_DATA_PATH="${basePath}/\${UID}/x"`,
    ]) {
      conf(line);
      const result = right.check();
      assertProblems(result, ['warn', 'enroot', onlyOurs]);
      assert.ok(problems(result)[0]!.remedy!.includes(`${basePath}/$(id -u) && test -w $d && echo $d)`));
    }
    mkdirSync(right.path('enroot/enroot.conf.d'));
    conf(`ENROOT_RUNTIME_PATH ${basePath}`);
    right.write('enroot/enroot.conf.d/a.conf', 'ENROOT_DATA_PATH "${ENROOT_RUNTIME_PATH}/${UID}"\n');
    right.write('enroot/enroot.conf.d/b.conf', 'ENROOT_DATA_PATH /other\n');
    assertProblems(right.check(), ['warn', 'enroot', onlyOurs]);
    // An empty value gives way to the next.
    right.write('enroot/enroot.conf.d/a.conf', `${dataPathLine(basePath)}\n`);
    assertProblems(right.check(), [
      'warn',
      'enroot',
      /is \/other for uid 65534, which cannot be created: \/ is not writable/,
    ]);
    right.write('enroot/enroot.conf.d/b.conf', 'ENROOT_DATA_PATH /tmp/of/$(id -u)\n');
    assertProblems(right.check());
    rmSync(right.path('enroot/enroot.conf.d'), { recursive: true });
    conf('ENROOT_DATA_PATH ${HOME}/containers');
    assertProblems(right.check(), ['warn', 'enroot', /in the epilog of pyxis, which has no HOME/]);
    conf('ENROOT_DATA_PATH "$(');
    assertProblems(right.check(), ['bad', 'enroot', /the shell cannot evaluate/]);
    conf('ENROOT_DATA_PATH $(sleep 1000)');
    assertProblems(right.check(), ['bad', 'enroot', /the shell cannot evaluate/]);
    assert.equal(
      processes().filter(({ commandLine }) => commandLine.includes('sleep 1000')),
      [],
    );
  },
);

wrapping('pyxis is not loaded, is missing, or has an importer that is no program', async () => {
  await using right = await RightNode.start(['wrapper', 'mounts.d', 'pyxis']);
  mkdirSync(right.path('slurm/plugstack.conf.d'));
  right.write('slurm/plugstack.conf', 'include plugstack.conf.d/*.conf\noptional /lib/other.so\n');
  assertProblems(right.check(), ['bad', 'pyxis', /does not load spank_pyxis\.so/]);
  const plugin = right.path('slurm/spank_pyxis.so');
  right.write(
    'slurm/plugstack.conf.d/pyxis.conf',
    `required ${plugin} container_scope=job importer=${right.path('import')}\n`,
  );
  right.write('import', '#!/bin/sh\n', 0o644);
  assertProblems(right.check(), ['bad', 'pyxis', /\/import is not a program: each job/]);
  chmodSync(right.path('import'), 0o755);
  const result = right.check();
  assertProblems(result);
  assert.match(textsOf(result, 'pyxis').join(), /importer=\S*\/import: this program fetches registry images/);
  rmSync(plugin);
  assertProblems(right.check(), ['bad', 'pyxis', /spank_pyxis\.so does not exist/]);
  rmSync(right.path('slurm/plugstack.conf'));
  assertProblems(right.check(), ['bad', 'pyxis', /plugstack\.conf does not exist/]);
});

wrapping.run();

const harm = suite('check: what others do to the base', { skip: unlessPrivateMachine });

harm('scripts of Slurm that delete entries, and those that they run, are named with the line', async () => {
  await using right = await RightNode.start(['cleaners']);
  const { basePath } = right.node;
  mkdirSync(right.path('epilog.d'));
  const scripts = (main: string, part = ''): void => {
    right.write('epilog.sh', `#!/bin/bash\n${main}\n${join(libexec, 'epilog')}\n`, 0o755);
    right.write('epilog.d/50-part', `#!/bin/bash\nset -e\n${part}\n`, 0o755);
  };
  right.slurmConf({ Epilog: right.path('epilog.sh'), HealthCheckProgram: right.path('health') });
  scripts(`run-parts ${right.path('epilog.d')}`, 'rm -rf /tmp/job.$SLURM_JOB_ID');
  right.write('health', '#!/bin/sh\ntrue\n', 0o755);
  assertProblems(right.check());
  scripts(
    `run-parts ${right.path('epilog.d')}`,
    `data="$(sudo -u x sh -c 'echo "${basePath}/$(id -u)"')"\nrm -rf "$data"`,
  );
  assertProblems(right.check(), ['bad', 'cleaners', /epilog\.d\/50-part:4 would delete entries/]);
  scripts(`find ${basePath} -mtime +30 -delete`);
  right.write('health', `#!/bin/sh\n/usr/sbin/tmpwatch 240 ${basePath}/.\n`, 0o755);
  assertProblems(
    right.check(),
    ['bad', 'cleaners', /epilog\.sh:2 would delete entries/],
    ['bad', 'cleaners', /health:2 would delete entries/],
  );
});

harm('lines of tmpfiles.d and crontabs that delete entries are named, and the line that helps', async () => {
  await using right = await RightNode.start(['cleaners']);
  const { basePath } = right.node;
  mkdirSync('/run/tmpfiles.d', { recursive: true });
  const file = '/run/tmpfiles.d/zz-site.conf';
  const cron = '/etc/cron.d/zz-site';
  mkdirSync('/etc/cron.d', { recursive: true });
  try {
    writeFileSync(file, `d ${right.root} 0755 root root 10d\n`);
    const result = right.check();
    const aged = problems(result).filter(({ text }) => text.includes(basePath));
    assert.match(aged[0]?.text ?? '', /zz-site\.conf:1 .* older than 10d/);
    const line = /echo '(.*)' >/.exec(aged[0]?.remedy ?? '')?.[1] ?? '';
    writeFileSync(
      file,
      `d ${right.root} 0755 root root 10d\n${line}\nx ${right.node.runtimePath}\nx ${right.node.statePath}\n`,
    );
    assertProblems(right.check());
    rmSync(file);
    writeFileSync(cron, `0 3 * * 0 root find ${basePath} -mtime +7 -exec rm -rf {} +\n`);
    assertProblems(right.check(), ['bad', 'cleaners', /cron\.d\/zz-site:1 would delete entries/]);
    writeFileSync(cron, `0 3 * * 0 root find ${basePath} -mtime +7 -name 'pyxis_*' -exec rm -rf {} +\n`);
    assertProblems(right.check());
  } finally {
    for (const one of [file, cron]) rmSync(one, { force: true });
  }
});

harm('directories that each job has for itself hide the base', async () => {
  await using right = await RightNode.start(['namespace']);
  const { basePath } = right.node;
  assertProblems(right.check());
  right.slurmConf({ JobContainerType: 'job_container/tmpfs', PrologFlags: 'Contain' });
  right.write('slurm/job_container.conf', `AutoBasePath=true\nBasePath=/x Dirs=/tmp,${right.root}\n`);
  const hidden = /job_container\/tmpfs gives each job a private .*: jobs do not see/;
  const result = right.check();
  assert.ok(problems(result).every(({ status, text }) => status === 'bad' && hidden.test(text)));
  assert.ok(problems(result).some(({ text }) => text.includes(`do not see ${basePath}`)));
  right.write('slurm/job_container.conf', 'AutoBasePath=true BasePath=/x Dirs=/tmp,/var/tmp\n');
  assertProblems(right.check());
  assert.match(textsOf(right.check(), 'namespace')[0] ?? '', /job_container\/tmpfs: \/tmp, \/var\/tmp/);
  right.slurmConf({});
  right.write('slurm/plugstack.conf', `optional /opt/private-tmpdir.so base=/scratch mount=${right.root}\n`);
  assert.ok(problems(right.check()).some(({ text }) => text.startsWith('private-tmpdir.so gives each job')));
});

harm('a slurmd with mounts of its own sees another base', async () => {
  await using right = await RightNode.start(['namespace']);
  const script = `mount -t tmpfs none ${right.node.basePath} && exec ${right.path('slurmd')} infinity`;
  right.stopSlurmd();
  right.run('unshare', ['--mount', 'sh', '-c', script], { PATH: '/usr/bin:/bin' });
  await until('slurmd runs there', () => problems(right.check()).length > 0);
  assertProblems(right.check(), [
    'bad',
    'namespace',
    /slurmd \(\d+\) sees another directory at .*: it has private mounts/,
  ]);
});

harm.run();

const leftovers = suite('check: clock, leftovers, node', { skip: unlessPrivateMachine });

leftovers('a clock before the build, and entries used in the future', async () => {
  await using right = await RightNode.start(['clock', 'leftovers', 'node']);
  right.node.plant(alice, { hash: 'b'.repeat(16), usedSecondsAgo: -3600 });
  assertProblems(right.check(), ['warn', 'clock', /last use is in the future: 1, such as pyxis_cache_/]);
  const tomorrow = Date.now() / 1000 + 86_400;
  utimesSync(executable, tomorrow, tomorrow);
  try {
    assert.match(problems(right.check())[0]!.text, /but this command was installed/);
  } finally {
    utimesSync(executable, tomorrow - 2 * 86_400, tomorrow - 2 * 86_400);
  }
});

const isFree = (lock: string): boolean => spawnSync('flock', ['--nonblock', lock, 'true']).status === 0;

leftovers('an unpack without its creator is told, one under way is not', async () => {
  await using right = await RightNode.start(['clock', 'leftovers', 'node']);
  const userPath = right.node.makeUserDirectory(alice);
  const entry = entryName(alice.uid, 'c'.repeat(16));
  mkdirSync(join(userPath, partialName(entry, 7, 'ab')));
  const lock = join(userPath, createLockName(entry));
  writeFileSync(lock, '');
  chownSync(lock, alice.uid, alice.gid);
  const creator = right.run('/usr/bin/flock', ['--no-fork', lock, 'sleep', 'infinity'], { PATH: '/usr/bin' });
  await until('the lock is held', () => !isFree(lock));
  assertProblems(right.check());
  creator.kill('SIGKILL');
  await until('the lock is free', () => isFree(lock));
  assertProblems(right.check(), ['warn', 'leftovers', /an abandoned unpack/]);
});

leftovers('a stub is told when nothing of its job is on the node', async () => {
  await using right = await RightNode.start(['clock', 'leftovers', 'node']);
  const stub = join(right.node.makeUserDirectory(alice), '.pyxis_42.0');
  mkdirSync(join(stub, '.container-cache'), { recursive: true });
  writeFileSync(stubMarkPath(stub), '');
  command('chown', '--recursive', `${alice.uid}:${alice.gid}`, stub);
  const step = right.run('/usr/bin/sleep', ['infinity'], { SLURM_JOB_ID: '42' });
  await until('the step runs', () => processStartTicks(step.pid!) !== undefined);
  assertProblems(right.check());
  step.kill('SIGKILL');
  await until('the step has ended', () => step.signalCode !== null);
  assertProblems(right.check(), ['warn', 'leftovers', /pyxis_42\.0: the stub of a job that has ended/]);
  // A container of the user's that is only called so is none of ours.
  rmSync(stubMarkPath(stub));
  mkdirSync(join(stub, 'etc'));
  assertProblems(right.check());
});

leftovers(
  'leases without holders, holders without leases, leases and files of jobs that are over',
  async () => {
    await using right = await RightNode.start(['clock', 'leftovers', 'node']);
    const { runtimePath } = right.node;
    const holder = right.run('/usr/bin/sleep', ['infinity'], { CONTAINER_CACHE_LEASE: '7' });
    const startTicks = await until('the holder runs', () => processStartTicks(holder.pid!));
    assertProblems(right.check(), ['warn', 'leftovers', /holds an entry for job 7, which has ended/]);

    mkdirSync(join(runtimePath, 'leases'), { recursive: true });
    mkdirSync(join(runtimePath, 'jobs/7'), { recursive: true });
    const record = {
      jobId: 7,
      uid: alice.uid,
      holder: { pid: holder.pid!, startTicks },
      sinceMs: 1,
      entries: [],
    };
    writeFileSync(leasePath(runtimePath, 7), formatLeaseRecord(record));
    writeFileSync(activeJobsFile, '7\n');
    assertProblems(right.check());
    writeFileSync(activeJobsFile, '8\n');
    assertProblems(
      right.check(),
      ['warn', 'leftovers', /lease of job 7 is still held, but the job has ended/],
      ['warn', 'leftovers', /job 7 has ended, but its files/],
    );
    // Nobody knows: nothing is claimed, and that is said.
    const unknown = ['skip', 'leftovers', /slurmctld does not answer squeue/] as const;
    renameSync(activeJobsFile, `${activeJobsFile}.away`);
    assertProblems(right.check(), unknown);
    holder.kill('SIGKILL');
    await until('the holder has ended', () => holder.signalCode !== null);
    assertProblems(right.check(), ['warn', 'leftovers', /lease of job 7 has lost its holder/], unknown);
  },
);

const facts = (right: RightNode): NodeFacts => ({
  fingerprint: 'x',
  basePath: right.node.basePath,
  baseMount: undefined,
  enrootPath: right.path('real/enroot'),
  enrootVersion: '4.1.2',
  isolation: 'overlay',
  reason: undefined,
  imageFreshness: 'always',
  command: executable,
  mountsFile: right.path('enroot/mounts.d', mountsName),
  validUntilMs: undefined,
  importer: 'none',
  pyxisRuntimePath: '/run/pyxis',
  pyxisVersion: '0.24.0',
  pyxisFiles: '/etc/slurm/slurm.conf\t/etc/slurm/plugstack.conf',
  pyxisStamp: '1-2-3:none',
});

leftovers('node facts that do not agree, are damaged, or tell why nothing is served', async () => {
  await using right = await RightNode.start(['clock', 'leftovers', 'node']);
  const tell = (change: Partial<NodeFacts>): void =>
    right.write('run/node', formatNodeFacts({ ...facts(right), ...change }));
  tell({});
  assertProblems(right.check());
  tell({ basePath: '/old' });
  assertProblems(right.check(), ['warn', 'node', /says base_path=\/old, but the configuration /]);
  tell({ command: '/old/container-cache' });
  assertProblems(right.check(), ['bad', 'node', /names \/old\/container-cache, which does not exist/]);
  tell({ command: '/bin/true' });
  assertProblems(right.check(), ['warn', 'node', /jobs start \/bin\/true, which is another build/]);
  tell({ command: undefined });
  assertProblems(right.check(), ['bad', 'node', /found no executable that users can start/]);
  tell({ isolation: 'shared', reason: 'a user cannot mount an overlay: no' });
  assertProblems(right.check(), ['warn', 'node', /isolation=shared: a user cannot mount/]);
  tell({ isolation: 'off', reason: 'there is no enroot' });
  assertProblems(right.check(), ['bad', 'node', /isolation is off: there is no enroot/]);
  tell({});
  right.configure({ isolation: 'off' });
  assertProblems(right.check(), ['warn', 'node', /the cache serves none/]);
  right.configure({ isolation: 'shared' });
  assertProblems(right.check(), [
    'warn',
    'node',
    /isolation=overlay is in effect, but isolation=shared is configured/,
  ]);
  right.configure({});
  chmodSync(right.path('run/node'), 0o646);
  assertProblems(right.check(), ['bad', 'node', /somebody else can change it/]);
  right.write('run/node', 'x');
  assertProblems(right.check(), ['bad', 'node', /damaged/]);
});

leftovers.run();
