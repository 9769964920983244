/**
 * The enroot that stands in for the real one does what the real one was seen to do: each fact here was
 * compared with enroot 4.1.2, output beside output. All is run as an ordinary user.
 */
// test: timeout 600 s
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';

import {
  credentials,
  startDockerRegistry,
  unlessDockerRegistry,
  type DockerRegistry,
} from '../../helpers/docker-registry.ts';
import { until } from '../../helpers/node.ts';
import {
  alice,
  command,
  enterPrivateMachine,
  homeOf,
  machineRoot,
  mount,
  unlessPrivateMachine,
} from '../../helpers/private-machine.ts';
import { makeImage, type Tree } from '../../helpers/squashfs-image.ts';
import { assert, suite } from '../../helpers/suite.ts';
import { installStandInEnroot, mountPointsTree, programsTree, standInUnavailable } from './stand-in.ts';

enterPrivateMachine();

const WITHOUT_NETWORK = [
  'unsquashfs',
  'mksquashfs',
  'flock',
  'findmnt',
  'lsns',
  'ps',
  'column',
  'setpriv',
  'gcc',
];
const unavailable = unlessPrivateMachine ?? standInUnavailable(WITHOUT_NETWORK);

const installed = join(machineRoot, 'installed');
const sysconf = join(machineRoot, 'enroot-sysconf');
const state = join(machineRoot, 'enroot-state');
const dataPath = join(state, 'data', String(alice.uid));
const runtimePath = join(state, 'runtime', String(alice.uid));
const cachePath = join(state, 'cache', String(alice.uid));
const image = join(machineRoot, 'image.sqsh');

const IMAGE_TREE: Tree = {
  'etc/passwd': 'root:x:0:0:root:/root:/bin/bash\nimageuser:x:7:7::/:/bin/sh\n',
  'etc/environment': 'OF_IMAGE=yes\nENROOT_HIDDEN=1\nQUOTED="two words"\nHOST=${HOME}\n',
  'etc/image': 'one\n',
  'dir/private': { content: 'p', mode: 0o000 },
  'dir/closed': { directory: true, mode: 0o555 },
  root: { directory: true },
  usr: { directory: true },
  var: { directory: true },
};

interface Result {
  readonly exitCode: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

interface RunOptions {
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  readonly input?: string;
}

function asUser(argv: readonly string[]): [string, string[]] {
  const ids = [`--reuid=${alice.uid}`, `--regid=${alice.gid}`, '--clear-groups', '--inh-caps=-all', '--'];
  return ['setpriv', [...ids, ...argv]];
}

function environment(added: Readonly<Record<string, string>> = {}): Record<string, string> {
  return { PATH: `${installed}:/usr/bin:/bin`, HOME: homeOf(alice), TERM: 'xterm', ...added };
}

function run(argv: readonly string[], { env, cwd = homeOf(alice), input = '' }: RunOptions = {}): Result {
  const [file, parameters] = asUser(argv);
  const { status, stdout, stderr } = spawnSync(file, parameters, {
    encoding: 'utf8',
    env: environment(env),
    cwd,
    input,
  });
  return { exitCode: status, stdout, stderr };
}

const enroot = (parameters: readonly string[], options?: RunOptions): Result =>
  run(['enroot', ...parameters], options);

/** Runs enroot, which must succeed, and returns its standard output. */
function succeed(parameters: readonly string[], options?: RunOptions): string {
  const { exitCode, stdout, stderr } = enroot(parameters, options);
  if (exitCode !== 0)
    throw new Error(`enroot ${parameters.join(' ')}: exit code ${String(exitCode)}: ${stderr}`);
  return stdout;
}

function assertFails(parameters: readonly string[], error: string, options?: RunOptions): void {
  const { exitCode, stderr } = enroot(parameters, options);
  assert.is(exitCode, 1, `enroot ${parameters.join(' ')}`);
  assert.ok(stderr.includes(`[ERROR] ${error}`), stderr);
}

/** Writes a file of the user's home and returns its path. */
function write(name: string, text: string): string {
  const path = join(homeOf(alice), name);
  mkdirSync(join(path, '..'), { recursive: true });
  writeFileSync(path, text);
  return path;
}

const rootfs = (name: string, ...parts: string[]): string => join(dataPath, name, ...parts);
const modeOf = (path: string): string => (statSync(path).mode & 0o7777).toString(8).padStart(3, '0');

/** A running `enroot start`. */
function launch(
  parameters: readonly string[],
  options: RunOptions = {},
): ChildProcess & { readonly pid: number } {
  const [file, argv] = asUser(['enroot', 'start', ...parameters]);
  const child = spawn(file, argv, { env: environment(options.env), cwd: homeOf(alice), stdio: 'ignore' });
  return child as ChildProcess & { readonly pid: number };
}

async function ended(child: ChildProcess): Promise<number | null> {
  await until('the container has ended', () => child.exitCode !== null || child.signalCode !== null);
  return child.exitCode;
}

async function stop(child: ChildProcess): Promise<void> {
  child.kill('SIGKILL');
  await ended(child);
}

const commandOf = (pid: number): string =>
  readFileSync(`/proc/${pid}/cmdline`, 'latin1').replaceAll('\0', ' ').trim();
const stateOf = (pid: number): string =>
  /^State:\s+(\w)/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))![1]!;

/** A container of `image`; one that is there is replaced. */
function create(name: string): void {
  succeed(['create', '--force', '--name', name, image]);
}

function setUp(): void {
  installStandInEnroot(installed, sysconf, {
    sysconfPath: sysconf,
    settings: {
      ENROOT_RUNTIME_PATH: join(state, 'runtime/$(id -u)'),
      ENROOT_CACHE_PATH: join(state, 'cache/$(id -u)'),
      ENROOT_DATA_PATH: join(state, 'data/$(id -u)'),
      ENROOT_ALLOW_HTTP: 'yes',
    },
  });
  for (const name of ['data', 'runtime', 'cache']) {
    mkdirSync(join(state, name), { recursive: true });
    chmodSync(join(state, name), 0o1777);
  }
  const programs = ['sh', 'cat', 'chown', 'echo', 'env', 'grep', 'id', 'ls', 'sleep', 'touch', 'true'];
  makeImage(image, { ...programsTree(programs), ...IMAGE_TREE });
}
if (unavailable === undefined) setUp();

const configuration = suite('stand-in enroot, configuration', { skip: unavailable });

configuration('a value is evaluated by the shell, and the environment wins over it', () => {
  assert.is(succeed(['version']), '4.1.2\n');
  assert.ok(existsSync(dataPath));
  const other = join(state, 'data/other');
  succeed(['list'], { env: { ENROOT_DATA_PATH: other } });
  assert.is(modeOf(other), '700');
});

configuration('a file of enroot.conf.d is read after enroot.conf, and a variable once set stays', () => {
  const dropin = join(sysconf, 'enroot.conf.d/10-test.conf');
  writeFileSync(
    dropin,
    `ENROOT_CACHE_PATH /nonexistent\nENROOT_TEST_PATH=${state}/made-by-dropin\nOTHER x\n`,
  );
  try {
    const seen = write(
      'seen.conf',
      'hooks() { env | grep -E "^(ENROOT_TEST_PATH|ENROOT_CACHE_PATH|OTHER)=" >&2; }\n',
    );
    create('conf');
    const { stderr } = enroot(['start', '--conf', seen, 'conf', 'true']);
    assert.equal(stderr.trim().split('\n').sort(), [
      `ENROOT_CACHE_PATH=${cachePath}`,
      `ENROOT_TEST_PATH=${state}/made-by-dropin`,
    ]);
  } finally {
    rmSync(dropin);
  }
});

configuration('its three directories are made at every call, and it fails where they cannot be', () => {
  rmSync(cachePath, { recursive: true });
  succeed(['version']);
  assert.is(modeOf(cachePath), '700');
  for (const name of ['DATA', 'CACHE', 'RUNTIME']) {
    const { exitCode } = enroot(['version'], { env: { [`ENROOT_${name}_PATH`]: '/proc/none' } });
    assert.is(exitCode, 1, name);
  }
});

configuration('a switch that says no is no switch', () => {
  create('switch');
  const touch = ['start', 'switch', 'touch', '/etc/touched'];
  for (const no of ['n', 'no', 'N', 'false']) {
    assert.is.not(enroot(touch, { env: { ENROOT_ROOTFS_WRITABLE: no } }).exitCode, 0, no);
  }
  for (const yes of ['y', 'nO', '0']) succeed(touch, { env: { ENROOT_ROOTFS_WRITABLE: yes } });
});

configuration('what it does not know it refuses', () => {
  for (const parameters of [[], ['nonsense'], ['create'], ['create', '--name'], ['start'], ['list', '-x']]) {
    const { exitCode, stdout } = enroot(parameters);
    assert.is(exitCode, 1);
    assert.match(stdout, /^Usage: enroot /);
  }
});

configuration.run();

const creating = suite('stand-in enroot, create', { skip: unavailable });

creating('an image becomes a directory in which the user can read and change everything', () => {
  create('whole');
  assert.is(readFileSync(rootfs('whole', 'etc/image'), 'utf8'), 'one\n');
  assert.is(modeOf(rootfs('whole', 'dir/private')), '400');
  assert.is(modeOf(rootfs('whole', 'dir/closed')), '755');
  assert.is(statSync(rootfs('whole', 'etc/image')).uid, alice.uid);
});

creating('a name that is there is refused, and replaced by force', () => {
  create('twice');
  assertFails(['create', '-n', 'twice', image], `File already exists: ${rootfs('twice')}`);
  writeFileSync(rootfs('twice', 'old'), '');
  succeed(['create', '-f', '-n', 'twice', image]);
  assert.not(existsSync(rootfs('twice', 'old')));
});

creating('what is no image, and a name that is a path, is refused', () => {
  assertFails(['create', '-n', 'x', '/etc/passwd'], 'Invalid image format: /etc/passwd');
  assertFails(['create', '-n', 'x', '/nonexistent/x'], 'No such file or directory');
  assertFails(['create', '-n', 'a/b', image], 'Invalid argument: a/b');
});

creating('a device node ends it with exit code 2, and what was unpacked stays', () => {
  const withDevice = makeImage(join(machineRoot, 'device.sqsh'), {
    a: 'a',
    null: { device: 'c 666 0 0 1 3' },
  });
  assert.is(enroot(['create', '-n', 'device', withDevice]).exitCode, 2);
  assert.equal(readdirSync(rootfs('device')), ['a']);
});

creating('killed half-way it leaves what looks like a container', async () => {
  const programs = join(machineRoot, 'dying');
  mkdirSync(programs);
  // Unpacks one file and takes enroot with it.
  const partial = rootfs('half');
  const dying = `case $* in *-s\\ *) exit 0 ;; esac; mkdir "${partial}"; >"${partial}/a"; kill -KILL $PPID`;
  writeFileSync(join(programs, 'unsquashfs'), `#!/bin/sh\n${dying}\n`, { mode: 0o755 });
  const env = { PATH: `${installed}:${programs}:/usr/bin:/bin` };
  assert.is(enroot(['create', '-n', 'half', image], { env }).exitCode, null);
  assert.equal(readdirSync(rootfs('half')), ['a']);
  assertFails(['create', '-n', 'half', image], 'File already exists');
});

creating.run();

const starting = suite('stand-in enroot, start', { skip: unavailable });

starting('the command runs under the same uid, in a rootfs it cannot change, without capabilities', () => {
  create('plain');
  const script = 'id -u; touch /etc/touched; cat /proc/self/uid_map; grep Cap /proc/self/status';
  const { stdout, stderr } = enroot(['start', 'plain', 'sh', '-c', script]);
  const [uid, map, ...capabilities] = stdout.trim().split('\n');
  assert.is(uid, String(alice.uid));
  assert.equal(map!.trim().split(/\s+/), [String(alice.uid), String(alice.uid), '1']);
  assert.equal([...new Set(capabilities.map((line) => line.split('\t')[1]))], ['0000000000000000']);
  assert.match(stderr, /Read-only file system/);
});

starting('the environment is what the environment file says, and of a login what is missing', () => {
  const variables = succeed(['start', '-e', 'ONE=1', '-e', 'TWO', 'plain', 'env'], {
    env: { TWO: 'two', JOB_VARIABLE: 'x', ENROOT_LOGIN_SHELL: 'y' },
  });
  assert.equal(variables.trim().split('\n').sort(), [
    `HOME=${homeOf(alice)}`,
    `HOST=${homeOf(alice)}`,
    `LOGNAME=${alice.name}`,
    'OF_IMAGE=yes',
    'ONE=1',
    'PATH=/usr/local/bin:/bin:/usr/bin',
    `PWD=${homeOf(alice)}`,
    'QUOTED=two words',
    'SHELL=/bin/sh',
    'TERM=xterm',
    'TWO=two',
    `USER=${alice.name}`,
  ]);
});

starting('it writes into the rootfs although that will be read-only', () => {
  create('written');
  const before = readdirSync(rootfs('written'));
  succeed(['start', 'written', 'true']);
  const added = readdirSync(rootfs('written')).filter((name) => !before.includes(name));
  for (const name of ['.lock', 'dev', 'proc', 'sys', 'tmp']) assert.ok(added.includes(name), name);
  const accounts = readFileSync(rootfs('written', 'etc/passwd'), 'utf8').split('\n');
  assert.match(
    accounts[2] ?? '',
    new RegExp(`^${alice.name}:x:${alice.uid}:${alice.gid}::${homeOf(alice)}:/bin/sh$`),
  );
  assert.ok(accounts.includes('imageuser:x:7:7::/:/bin/sh'));
  assert.is(modeOf(rootfs('written', 'tmp')), '000');
  assert.ok(existsSync(rootfs('written', homeOf(alice))));
});

starting('root it is by request, for files of the user only', () => {
  const script = 'id -u; id -g; touch /etc/as-root; cat /proc/self/uid_map';
  const stdout = succeed(['start', '--root', '--rw', 'plain', 'sh', '-c', script]);
  assert.equal(stdout.trim().split(/\s+/), ['0', '0', '0', String(alice.uid), '1']);
  assert.is(statSync(rootfs('plain', 'etc/as-root')).uid, alice.uid);
});

starting('a configuration adds mounts, hooks and variables, as pyxis does it', () => {
  create('configured');
  const source = write('source/file', 'mounted\n');
  const file = write(
    'pyxis.conf',
    [
      `mounts() {\n\techo "${source} /inside/file x-create=file,bind,ro,nosuid,nodev,private"\n}`,
      'hooks() {\n\techo \'exec "$@"\' > ${ENROOT_ROOTFS}/etc/rc.local\n}',
      'environ() {\n\t[ -n "${JOB-}" ] && echo "JOB=${JOB}" || :\n}',
    ].join('\n'),
  );
  const output = succeed(['start', '--conf', file, 'configured', 'sh', '-c', 'cat /inside/file; echo $JOB'], {
    env: { JOB: '7' },
  });
  assert.is(output, 'mounted\n7\n');
  assert.is(readFileSync(rootfs('configured', 'etc/rc.local'), 'utf8'), 'exec "$@"\n');
  assert.is(modeOf(rootfs('configured', 'inside/file')), '000');
});

starting('lines of a configuration that set variables win over the environment', () => {
  const file = write('writable.conf', '#ENROOT_ROOTFS_WRITABLE yes\n');
  succeed(['start', '-c', file, 'plain', 'touch', '/etc/by-conf'], { env: { ENROOT_ROOTFS_WRITABLE: 'n' } });
});

starting('the script of the image gets the command, or what is put in its place', () => {
  create('script');
  writeFileSync(rootfs('script', 'etc/rc'), 'echo "rc: $*"\n. /etc/rc.local\nexec "$@"\n');
  writeFileSync(rootfs('script', 'etc/rc.local'), 'echo local\n');
  assert.is(succeed(['start', 'script', 'echo', 'x']), 'rc: echo x\nlocal\nx\n');
  const own = write('rc.sh', 'echo "own: $*"\n');
  assert.is(succeed(['start', '--rc', own, 'script', 'a', 'b']), 'own: a b\n');
});

starting(
  'the process stays the one that was started: a container that stops itself is seen to stop',
  async () => {
    const container = launch(['plain', 'sh', '-c', 'kill -STOP $$; exit 5']);
    await until('the container has stopped', () => stateOf(container.pid) === 'T');
    assert.match(commandOf(container.pid), /^sh -c kill -STOP/);
    assert.match(succeed(['list', '-f']), new RegExp(`^plain +${container.pid} +sh +T `, 'm'));
    container.kill('SIGCONT');
    assert.is(await ended(container), 5);
  },
);

starting('descriptors above the standard three are closed', () => {
  const script = 'exec 7</dev/null; exec enroot start plain ls /proc/self/fd';
  const { stdout } = run(['sh', '-c', script]);
  // The one of ls itself is the fourth.
  assert.equal(stdout.trim().split('\n'), ['0', '1', '2', '3']);
});

starting('files of mounts.d are taken in name order, variables put in, and an empty line is no mount', () => {
  create('mounts');
  const directory = join(homeOf(alice), '.config/enroot/mounts.d');
  write('.config/enroot/mounts.d/10.fstab', '${LATER} /inside none x-create=dir,bind,ro 0 -1\n');
  write(
    '.config/enroot/mounts.d/00.fstab',
    '${NOT_SET}\n$EARLY ${EARLY} ${NOT_SET:-x} none bind,nofail,silent 0 -1\n',
  );
  const later = join(homeOf(alice), 'later');
  mkdirSync(later);
  writeFileSync(join(later, 'file'), 'later\n');
  try {
    assert.is(succeed(['start', 'mounts', 'cat', '/inside/file'], { env: { LATER: later } }), 'later\n');
  } finally {
    rmSync(directory, { recursive: true });
  }
});

starting('an overlay from mounts.d becomes the root, and what is below it stays as it is', () => {
  create('entry');
  const entry = rootfs('entry');
  for (const name of ['etc', 'o/upper', 'o/work']) {
    mkdirSync(rootfs('stub', name), { recursive: true });
  }
  command('cp', join(entry, 'etc/environment'), rootfs('stub', 'etc/environment'));
  command('chown', '-R', `${alice.uid}:${alice.gid}`, rootfs('stub'));
  const line = join(sysconf, 'mounts.d/00-test.fstab');
  writeFileSync(line, '${TEST_FSTAB}\n');
  const layers = `lowerdir=${entry},upperdir=${rootfs('stub', 'o/upper')},workdir=${rootfs('stub', 'o/work')}`;
  const env = { TEST_FSTAB: `overlay / overlay ${layers},userxattr 0 -1` };
  const before = command('find', entry, '-printf', '%p %m %s %C@\n');
  try {
    const hook = write('hook.conf', 'hooks() { echo hooked > ${ENROOT_ROOTFS}/etc/rc.local; }\n');
    const script = 'cat /etc/image; touch /etc/new; grep " / / " /proc/self/mountinfo';
    const readOnly = enroot(['start', '-c', hook, 'stub', 'sh', '-c', script], { env });
    assert.match(readOnly.stdout, /^one\n.* ro,.* - overlay /, readOnly.stderr);
    assert.match(readOnly.stderr, /Read-only/);
    succeed(['start', '--rw', 'stub', 'touch', '/etc/new'], { env });
    assert.ok(existsSync(rootfs('stub', 'o/upper/etc/new')));
    assert.ok(existsSync(rootfs('stub', 'o/upper/etc/rc.local')));
    // The lock is taken where the container's directory is.
    assert.ok(existsSync(rootfs('stub', '.lock')));
    assert.is(command('find', entry, '-printf', '%p %m %s %C@\n'), before);
  } finally {
    rmSync(line);
  }
  succeed(['remove', '-f', 'stub']);
});

starting('the rootfs is locked while it is configured, and no longer', async () => {
  create('locked');
  const hook = write('slow.conf', `hooks() { while [ ! -e ${homeOf(alice)}/go ]; do sleep .01; done; }\n`);
  const first = launch(['-c', hook, 'locked', 'sleep', '100']);
  const lock = rootfs('locked', '.lock');
  const isLocked = (): boolean => spawnSync('flock', ['--nonblock', lock, 'true']).status === 1;
  await until('the first start has the lock', () => existsSync(lock) && isLocked());
  const second = launch(['locked', 'sleep', '100']);
  await until('the second waits for it', () => {
    const children = command('ps', '-A', '-o', 'ppid=,args=').split('\n');
    return children.some((line) => line.trim().startsWith(`${second.pid} `) && line.includes('inside.bash'));
  });
  assert.not(commandOf(second.pid).startsWith('sleep'));
  write('go', '');
  for (const { pid } of [first, second]) {
    await until('it runs', () => commandOf(pid) === 'sleep 100');
  }
  assert.not(isLocked());
  await stop(first);
  await stop(second);
});

starting('a hook or a mount that fails ends the start, unless the mount may fail', () => {
  const conf = (text: string): string => write('failing.conf', text);
  assert.is(enroot(['start', '-c', conf('hooks() { false; }\n'), 'plain', 'true']).exitCode, 1);
  const line = '/nonexistent /inside/x x-create=dir,bind';
  assert.is(enroot(['start', '-c', conf(`mounts() { echo "${line}"; }\n`), 'plain', 'true']).exitCode, 1);
  const mayFail = enroot(['start', '-c', conf(`mounts() { echo "${line},nofail"; }\n`), 'plain', 'true']);
  assert.is(mayFail.exitCode, 0);
  assert.match(
    mayFail.stderr,
    /^enroot-mount: failed to mount: \/nonexistent at .*: No such file or directory$/m,
  );
  assertFails(['start', '-c', conf('hooks() {\n'), 'plain', 'true'], 'Invalid argument');
});

starting('it ends as its command ends, and refuses what is not there', () => {
  assert.is(enroot(['start', 'plain', 'sh', '-c', 'exit 7']).exitCode, 7);
  assert.is(enroot(['start', 'plain', 'nonexistent-program']).exitCode, 127);
  assertFails(['start', 'none', 'true'], `No such file or directory: ${rootfs('none')}`);
  assertFails(['start', '/etc/passwd', 'true'], 'Invalid argument: /etc/passwd');
});

starting('a home that is not in the container ends the start', () => {
  const { exitCode, stderr } = enroot(['start', '-e', 'HOME=/nowhere', 'plain', 'true']);
  assert.is(exitCode, 1);
  assert.match(stderr, /failed to change directory: \/nowhere/);
});

starting('the home is mounted by request', () => {
  write('at-home', 'here\n');
  const env = { ENROOT_MOUNT_HOME: 'y' };
  assert.is(succeed(['start', 'plain', 'cat', 'at-home'], { env }), 'here\n');
});

starting('changes of owner seem to succeed', () => {
  succeed(['start', '--root', '--rw', 'plain', 'sh', '-c', 'touch /etc/mine && chown 5:5 /etc/mine']);
  assert.is(statSync(rootfs('plain', 'etc/mine')).uid, alice.uid);
});

starting.run();

/** /dev/fuse as on a node: for everybody. */
function offerFuse(): string | undefined {
  if (unavailable !== undefined) return unavailable;
  if (!existsSync('/usr/bin/squashfuse')) return 'needs squashfuse';
  if (!existsSync('/dev/fuse')) return 'needs /dev/fuse';
  const device = join(machineRoot, 'fuse');
  command('mknod', '--mode=666', device, 'c', '10', '229');
  mount('--bind', device, '/dev/fuse');
  return undefined;
}

const images = suite('stand-in enroot, start of an image', { skip: offerFuse() });

images('an image runs without being unpacked, and nothing is left of it', async () => {
  const before = readdirSync(dataPath);
  const container = launch([image, 'sleep', '100']);
  const server = await until('squashfuse runs', () =>
    command('ps', '-A', '-o', 'pid=,ppid=,args=')
      .split('\n')
      .map((line) => line.trim().split(/\s+/))
      .find(([, parent, file]) => parent === String(container.pid) && file === 'squashfuse'),
  );
  await until('the container runs', () => commandOf(container.pid) === 'sleep 100');
  assert.match(succeed(['list', '-f']), new RegExp(`^<unknown> +${container.pid} `, 'm'));
  await stop(container);
  const isGone = (): boolean => {
    const status = `/proc/${server[0]!}/status`;
    return !existsSync(status) || readFileSync(status, 'latin1').includes('State:\tZ');
  };
  await until('squashfuse has ended with it', isGone);
  assert.equal(readdirSync(dataPath), before);
  assert.equal(readdirSync(runtimePath), []);
});

images('an image in the working directory wins over a container of its name', () => {
  create('both');
  writeFileSync(rootfs('both', 'etc/image'), 'the container\n');
  command('cp', image, join(homeOf(alice), 'both'));
  try {
    assert.is(succeed(['start', 'both', 'cat', '/etc/image']), 'one\n');
  } finally {
    rmSync(join(homeOf(alice), 'both'));
  }
  assert.is(succeed(['start', 'both', 'cat', '/etc/image']), 'the container\n');
});

images('writes go to memory', () => {
  assert.is(succeed(['start', '--rw', image, 'sh', '-c', 'touch /etc/new && ls /etc/new']), '/etc/new\n');
  assert.is.not(enroot(['start', image, 'touch', '/etc/new']).exitCode, 0);
});

images.run();

const keeping = suite('stand-in enroot, list, remove and export', { skip: unavailable });

keeping('list shows every name, and by request the processes', async () => {
  create('idle');
  create('busy');
  const container = launch(['busy', 'sleep', '100']);
  await until('the container runs', () => commandOf(container.pid) === 'sleep 100');
  assert.ok(succeed(['list']).split('\n').includes('busy'));
  const [header = '', ...lines] = succeed(['list', '--fancy']).trimEnd().split('\n');
  assert.match(header, /^NAME +PID +COMM +STATE +STARTED +TIME +MNTNS +USERNS +COMMAND$/);
  assert.ok(lines.some((line) => /^idle\s*$/.test(line)));
  assert.ok(lines.some((line) => new RegExp(`^busy +${container.pid} +sleep +S .* sleep 100$`).test(line)));
  await stop(container);
});

keeping('remove asks first, and takes what a link points to', () => {
  create('removed');
  assert.is(enroot(['remove', 'removed'], { input: 'n\n' }).exitCode, 0);
  assert.ok(existsSync(rootfs('removed')));
  command('ln', '-s', 'removed', rootfs('link'));
  chmodSync(rootfs('removed', 'etc'), 0o000);
  succeed(['remove', '-f', 'link']);
  assert.not(existsSync(rootfs('removed')));
  assertFails(['remove', '-f', 'link'], 'No such file or directory');
  rmSync(rootfs('link'));
  assertFails(['remove', '-f', 'a/b'], 'Invalid argument: a/b');
});

keeping('export leaves devices and the lock out of a container whose image has the mount points', () => {
  const whole = makeImage(join(machineRoot, 'whole.sqsh'), {
    ...programsTree(['sh', 'true']),
    ...IMAGE_TREE,
    ...mountPointsTree,
    'dev/thing': '',
  });
  succeed(['create', '--force', '--name', 'whole', whole]);
  succeed(['start', 'whole', 'true']);
  const file = join(homeOf(alice), 'whole.sqsh');
  succeed(['export', '-o', file, 'whole']);
  const listing = command('unsquashfs', '-ls', '-d', '', file).split('\n');
  for (const name of ['/proc', '/dev', '/etc/image']) assert.ok(listing.includes(name), name);
  for (const name of ['/.lock', '/dev/thing', '/dev/null']) assert.not(listing.includes(name), name);
});

keeping('export replaces a file by force, and never a directory', () => {
  const directory = join(homeOf(alice), 'in-the-way');
  mkdirSync(directory);
  chownSync(directory, alice.uid, alice.gid);
  assert.is(enroot(['export', '--force', '--output', directory, 'whole']).exitCode, 1);
  assert.ok(existsSync(directory));
});

keeping(
  'export leaves mount points that enroot made out, or fails with the find(1) that fails on them',
  () => {
    create('exported');
    succeed(['start', 'exported', 'true']);
    mkdirSync(rootfs('exported', 'empty'));
    chownSync(rootfs('exported', 'empty'), alice.uid, alice.gid);
    const file = join(homeOf(alice), 'exported.sqsh');
    // Since findutils 4.10, which no longer asks for the type first.
    const madeByEnroot = ['-perm', '0000', '-prune', '(', '-empty', '-o', '-type', 'd', ')'];
    if (run(['find', rootfs('exported'), ...madeByEnroot]).exitCode !== 0) {
      assert.is(enroot(['export', '-o', file, 'exported']).exitCode, 1);
      return;
    }
    succeed(['export', '-o', file, 'exported']);
    assertFails(['export', '-o', file, 'exported'], `File already exists: ${file}`);
    succeed(['export', '--force', '--output', file, 'exported']);
    const top = command('unsquashfs', '-lls', '-d', '', file).matchAll(/^(\S+) (\S+) .* \/([^/\n]+)$/gm);
    const names = [...top].map(([, , , name]) => name);
    for (const name of ['bin', 'etc', 'empty']) assert.ok(names.includes(name), name);
    for (const name of ['.lock', 'dev', 'proc', 'sys', 'tmp']) assert.not(names.includes(name), name);
    assert.match(command('unsquashfs', '-lls', file), /root\/root .*squashfs-root\/etc\/image/);
    assertFails(['export', 'none'], 'No such file or directory');
  },
);

keeping.run();

const remote = suite('stand-in enroot, registries', {
  skip: unavailable ?? standInUnavailable(['curl', 'jq']) ?? unlessDockerRegistry,
});

const LOWER: Tree = {
  'etc/a': 'a\n',
  'etc/b': 'b\n',
  'opaque/old': '1',
  'was-directory/file': '1',
  'was-file': '1',
  'dev/thing': '1',
};
const UPPER: Tree = {
  'etc/.wh.a': '',
  'opaque/.wh..wh..opq': '',
  'opaque/new': '2',
  'was-directory': '2',
  'was-file/file': '2',
};
const CONFIGURATION = {
  Env: ['COLOR=blue', 'PATH=/bin'],
  Entrypoint: ['/bin/sh', '-c', 'echo "$0 $*; $COLOR; $PWD"'],
  Cmd: ["it's", 'default'],
  WorkingDir: '/srv/app',
  Volumes: { '/volume': {} },
};

function filesOf(name: string): string[] {
  return command('find', rootfs(name), '-type', 'f', '-printf', '%P\n').trim().split('\n').sort();
}

let registry: DockerRegistry;
remote.before(async () => {
  registry = await startDockerRegistry();
});
remote.after(() => registry[Symbol.asyncDispose]());

remote('digest prints that of the manifest, of a list that of the own architecture', async () => {
  const digest = await registry.push('team/image', 'v1', [LOWER]);
  assert.is(succeed(['digest', registry.uri('team/image', 'v1')]), `${digest}\n`);
  assert.is(succeed(['digest', `docker://${registry.address}#team/image:v1`]), `${digest}\n`);
  assert.is(succeed(['digest', registry.uri('team/image', digest)]), `${digest}\n`);
  const inList = await registry.push('team/image', 'list', [LOWER, UPPER], { asList: true });
  assert.is(succeed(['digest', registry.uri('team/image', 'list')]), `${inList}\n`);
});

remote('import lays the layers over each other and turns the configuration into files', async () => {
  await registry.push('app', 'latest', [{ ...programsTree(['sh', 'mkdir']), ...LOWER }, UPPER], {
    configuration: CONFIGURATION,
  });
  const file = join(homeOf(alice), 'app.sqsh');
  succeed(['import', '--output', file, `docker://${registry.address}/app`]);
  assertFails(['import', '-o', file, `docker://${registry.address}/app`], `File already exists: ${file}`);
  succeed(['create', '-n', 'app', file]);
  const own = filesOf('app').filter((name) => !/^(?:bin|lib|usr)/.test(name));
  const generated = ['etc/environment', 'etc/fstab', 'etc/rc', 'etc/rc.local'];
  const kept = ['etc/b', 'opaque/new', 'was-directory', 'was-file/file'];
  assert.equal(own, [...generated, ...kept].sort());
  assert.is(readFileSync(rootfs('app', 'etc/environment'), 'utf8'), 'COLOR=blue\nPATH=/bin\n');
  assert.is(
    readFileSync(rootfs('app', 'etc/fstab'), 'utf8'),
    '${ENROOT_ROOTFS}/volume /volume none x-create=dir,bind,rw,nosuid,nodev\n',
  );
  mkdirSync(rootfs('app', 'volume'));
  assert.is(succeed(['start', 'app']), "it's default; blue; /srv/app\n");
  assert.is(succeed(['start', 'app', 'a', 'b']), 'a b; blue; /srv/app\n');
  rmSync(file);
});

remote(
  'load makes the container at once; a directory that hides those below does not, as with the real one',
  async () => {
    await registry.push('loaded', 'v1', [LOWER, UPPER]);
    succeed(['load', '--name', 'loaded', registry.uri('loaded', 'v1')]);
    const files = filesOf('loaded');
    assert.ok(files.includes('etc/rc'));
    assert.not(files.includes('etc/a'));
    assert.ok(files.includes('opaque/old'));
    assertFails(['load', '--name', 'loaded', registry.uri('loaded', 'v1')], 'File already exists');
  },
);

remote('import hands its layers to functions that have the names of its programs', async () => {
  await registry.push('handed', 'v1', [LOWER, UPPER]);
  const file = join(homeOf(alice), 'handed');
  const functions = {
    'BASH_FUNC_enroot-aufs2ovlfs%%': '() { find "$1" -type f | sort >>"$HOME/seen"; }',
    'BASH_FUNC_enroot-mksquashovlfs%%': '() { echo "$1 $2 $3"; ls; } >>"$HOME/seen"',
  };
  succeed(['import', '--output', file, registry.uri('handed', 'v1')], { env: functions });
  const upper = ['etc/.wh.a', 'opaque/.wh..wh..opq', 'opaque/new', 'was-directory', 'was-file/file'];
  const lower = ['etc/a', 'etc/b', 'opaque/old', 'was-directory/file', 'was-file'];
  assert.equal(
    readFileSync(join(homeOf(alice), 'seen'), 'utf8')
      .trim()
      .split('\n'),
    [
      ...upper.map((name) => `1/${name}`),
      ...lower.map((name) => `2/${name}`),
      `0:1:2 ${file} -all-root`,
      ...['0', '1', '2', 'config', 'rootfs'],
    ],
  );
  assert.not(existsSync(file));
});

remote('layers come once, and later from the cache', async () => {
  const uri = registry.uri('cached', 'v1');
  await registry.push('cached', 'v1', [{ only: 'here' }]);
  const downloads = (): number =>
    registry.requests().filter((line) => /^GET .*\/cached\/blobs\//.test(line)).length;
  for (const name of ['one', 'two']) {
    succeed(['import', '-o', join(homeOf(alice), `${name}.sqsh`), uri]);
    assert.is(downloads(), 2);
  }
});

remote('what the registry does not have is an error, and nothing is left', () => {
  const file = join(homeOf(alice), 'none.sqsh');
  const uri = registry.uri('none', 'v1');
  const url = `http://${registry.address}/v2/none/manifests/v1`;
  assertFails(['digest', uri], `URL ${url} returned error code: 404 Not Found`);
  const temporary = mkdtempSync(join(machineRoot, 'temporary-'));
  chmodSync(temporary, 0o777);
  assertFails(['import', '-o', file, uri], 'URL', { env: { ENROOT_TEMP_PATH: temporary } });
  assert.equal(readdirSync(temporary), []);
  assert.not(existsSync(file));
  assertFails(['digest', 'ftp://x'], 'Invalid argument: ftp://x');
  assertFails(['digest', 'docker://UPPER'], 'Invalid image reference: docker://UPPER');
});

remote('a manifest of OCI is refused by such a registry, since nobody said it would be taken', async () => {
  await registry.push('oci', 'v1', [LOWER], { format: 'oci' });
  assertFails(['digest', registry.uri('oci', 'v1')], 'URL');
});

remote("a registry that is not there ends it with curl's exit code", async () => {
  await registry.push('gone', 'v1', [LOWER]);
  await registry.stop();
  const { exitCode, stderr } = enroot(['digest', registry.uri('gone', 'v1')]);
  await registry.start();
  assert.is(exitCode, 7);
  assert.match(stderr, /^curl: \(7\) Failed to connect/m);
});

remote('credentials come from the file of the user, and http only by request', async () => {
  await using closed = await startDockerRegistry({ isProtected: true });
  const digest = await closed.push('secret', 'v1', [LOWER]);
  const uri = closed.uri('secret', 'v1');
  assert.is(enroot(['digest', uri]).exitCode, 1);
  const line = (password: string): string =>
    `machine localhost login ${credentials.user} password ${password}\n`;
  write('.config/enroot/.credentials', line('wrong'));
  assert.is(enroot(['digest', uri]).exitCode, 1);
  for (const password of [credentials.password, `$(echo ${credentials.password})`]) {
    write('.config/enroot/.credentials', line(password));
    assert.is(succeed(['digest', uri]), `${digest}\n`);
  }
  succeed(['import', '-o', join(homeOf(alice), 'secret.sqsh'), uri]);
  assert.is(enroot(['digest', uri], { env: { ENROOT_ALLOW_HTTP: 'no' } }).exitCode, 35);
  assert.equal(readdirSync(join(cachePath, `.tokens.${alice.uid}`)), []);
});

remote.run();
