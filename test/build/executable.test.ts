/**
 * The executable where it has nothing to lean on: no environment, no privilege, no Node, nowhere to
 * load an addon from. Each place is a mount namespace of its own; nothing is mounted on the machine.
 */
// test: timeout 600 s
import { spawnSync } from 'node:child_process';
import {
  closeSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import {
  build,
  BUILT_VARIABLE,
  bundleProgram,
  checkRuntime,
  distDirectory,
  executable,
  makeExecutable,
  runtimeOptions,
  wrapWithCodeCache,
} from '../../build/build.ts';
import { projectRoot } from '../../build/source-files.ts';
import { tryFlock } from '../../lib/system/flock.ts';
import { assert, suite, unlessRoot, unlessStrace } from '../helpers/suite.ts';

/** Any user without rights; it need not exist. */
const NOBODY = ['setpriv', '--reuid', '65534', '--regid', '65534', '--clear-groups', '--no-new-privs'];

let directory: string;
let probe: string;
let lockPath: string;

function run(command: readonly string[], env: NodeJS.ProcessEnv = {}): string {
  const [file = '', ...parameters] = command;
  const { status, stdout, stderr, error } = spawnSync(file, parameters, {
    encoding: 'utf8',
    // spawn looks the file up with this PATH; env(1) then takes it away.
    env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', ...env },
  });
  if (error) throw error;
  assert.is(status, 0, `${command.join(' ')}: ${stderr}`);
  return stdout;
}

/**
 * Runs the probe on its lock file, once free and once held by us, with an empty environment.
 *
 * @param wrapper what starts it, for example as another user
 * @param setUp shell commands that change the mounts first; the probe's directory is then at /mnt
 */
function probeLock(wrapper: readonly string[], setUp?: string): { free: string; held: string } {
  const place = setUp === undefined ? directory : '/mnt';
  const program = [...wrapper, 'env', '-i', join(place, 'probe'), join(place, 'lock')];
  const command =
    setUp === undefined
      ? program
      : // The bind mount comes first: what is mounted over /tmp may hide the directory.
        [
          'unshare',
          '--mount',
          'sh',
          '-euc',
          `mount --bind "$0" /mnt; ${setUp}; exec "$@"`,
          directory,
          ...program,
        ];
  const free = run(command).trim();
  const holder = openSync(lockPath, 'r');
  try {
    assert.ok(tryFlock(holder, 'shared'));
    return { free, held: run(command).trim() };
  } finally {
    closeSync(holder);
  }
}

const byAddon = { free: 'locked by addon', held: 'refused by addon' };
const byCommand = { free: 'locked by command', held: 'refused by command' };

function noexec(...mountPoints: string[]): string {
  return mountPoints.map((path) => `mount --types tmpfs --options noexec,mode=1777 tmpfs ${path}`).join('; ');
}

const EVERY_TEMPORARY_DIRECTORY = ['/dev/shm', '/run', '/tmp', '/var/tmp'];

const addon = suite("fs-ext's addon in an executable");

addon.before(async () => {
  directory = mkdtempSync(join(tmpdir(), 'executable-test-'));
  run(['chmod', '0755', directory]);
  probe = join(directory, 'probe');
  lockPath = join(directory, 'lock');
  writeFileSync(lockPath, '');
  await makeExecutable('test/build/addon-probe.ts', probe, { version: '0', commit: undefined });
});

addon.after(() => {
  rmSync(directory, { recursive: true });
});

addon('loads without an environment', () => {
  assert.equal(probeLock([]), byAddon);
});

addon.unless(unlessRoot, 'loads for a user without rights', () => {
  assert.equal(probeLock(NOBODY), byAddon);
});

for (const mountPoints of [
  ['/tmp'],
  ['/run'],
  ['/tmp', '/run', '/var/tmp'],
  ['/dev/shm', '/run', '/var/tmp'],
]) {
  addon.unless(unlessRoot, `loads for root and for a user where ${mountPoints.join(', ')} are noexec`, () => {
    assert.equal(probeLock([], noexec(...mountPoints)), byAddon);
    assert.equal(probeLock(NOBODY, noexec(...mountPoints)), byAddon);
  });
}

addon.unless(unlessRoot, "loads for root from the executable's directory where every other is noexec", () => {
  assert.equal(probeLock([], noexec(...EVERY_TEMPORARY_DIRECTORY)), byAddon);
});

addon.unless(unlessRoot, 'is done without for a user who can load it from nowhere', () => {
  assert.equal(probeLock(NOBODY, noexec(...EVERY_TEMPORARY_DIRECTORY)), byCommand);
});

addon.unless(unlessRoot, 'is done without for root where everything is noexec or read-only', () => {
  const readOnly = 'mount --options remount,bind,ro /mnt';
  assert.equal(probeLock([], `${noexec(...EVERY_TEMPORARY_DIRECTORY)}; ${readOnly}`), byCommand);
});

addon.run();

const dist = suite('dist/');

/** What a program logs that is given no job: it must end well, and say by its line who it is. */
function logLineOf(command: readonly string[], directory: string): string {
  const configPath = join(directory, 'container-cache.conf');
  writeFileSync(
    configPath,
    `container_cache_data_path=${directory}/data\nstate_dir=${directory}/state\nlog_target=stderr\n`,
  );
  const [file = '', ...parameters] = command;
  const { status, stderr } = spawnSync(file, parameters, {
    encoding: 'utf8',
    env: { CONTAINER_CACHE_CONF: configPath },
  });
  assert.is(status, 0, stderr);
  return stderr;
}

dist.before(async () => {
  // Here it is asked what build() does, not what the runner of the tests had it do.
  Reflect.deleteProperty(process.env, BUILT_VARIABLE);
  await build();
});

dist('has one executable under several names', () => {
  assert.is(readlinkSync(join(distDirectory, 'prolog')), 'container-cache');
  assert.is(readlinkSync(join(distDirectory, 'epilog')), 'container-cache');
});

dist('is not made again from the same sources', async () => {
  assert.not(await build());
});

dist('the admin command tells version and commit under any other name, and without an environment', () => {
  const { version } = JSON.parse(run(['cat', 'package.json'])) as { version: string };
  const text = run([executable, '--version']).trim();
  assert.ok(text.startsWith(version), text);
  const head = spawnSync('git', ['rev-parse', 'HEAD'], { cwd: projectRoot, encoding: 'utf8' });
  assert.match(text, head.status === 0 ? /^\S+ \(commit [0-9a-f]{12}\)$/ : / \(commit not known\)$/);
  const elsewhere = mkdtempSync(join(tmpdir(), 'executable-test-'));
  try {
    const link = join(elsewhere, 'another-name');
    symlinkSync(executable, link);
    assert.is(run(['env', '-i', link, '--version']).trim(), text);
    const copy = join(elsewhere, 'a-copy');
    copyFileSync(executable, copy);
    assert.is(run(['env', '-i', copy, '--version']).trim(), text);
  } finally {
    rmSync(elsewhere, { recursive: true });
  }
});

for (const program of ['prolog', 'epilog']) {
  dist(`runs as ${program} by that name: in dist/, through a link, as a copy, and as argv[0] says`, () => {
    const elsewhere = mkdtempSync(join(tmpdir(), 'executable-test-'));
    try {
      const [link, copy] = [join(elsewhere, 'link', program), join(elsewhere, 'copy', program)];
      for (const path of [link, copy]) mkdirSync(dirname(path));
      symlinkSync(join(distDirectory, program), link);
      copyFileSync(executable, copy);
      const renamed = ['bash', '-c', 'exec -a "$0" "$1"', `/etc/slurm/${program}`, executable];
      for (const command of [[join(distDirectory, program)], [link], [copy], renamed]) {
        assert.match(logLineOf(command, elsewhere), new RegExp(`: ${program} result=`));
      }
    } finally {
      rmSync(elsewhere, { recursive: true });
    }
  });
}

dist("a job's NODE_OPTIONS do not reach it", () => {
  run([executable, '--version'], { NODE_OPTIONS: '--require /nonexistent' });
});

dist.unless(unlessStrace, 'has one worker thread, and none that waits for a debugger', () => {
  const trace = ['strace', '-f', '-qq', '-e', 'trace=clone,clone3,prctl', '-o', '|cat'];
  const calls = run([...trace, executable, '--version']);
  assert.is(calls.match(/CLONE_THREAD/g)?.length, 2, calls);
  // The other is the one of V8's delayed tasks.
  assert.is(calls.match(/PR_SET_NAME, "V8Worker"/g)?.length, 1, calls);
});

dist('is made of the runtime that was pinned, and of no other', () => {
  checkRuntime();
  for (const [path, name] of [
    ['/bin/true', `${process.version} ${process.arch}`],
    [process.execPath, `v99.0.0 ${process.arch}`],
  ] as const)
    assert.throws(
      () => checkRuntime(path, name),
      Error,
      /is not the runtime that build\/runtime-checksums names: .* [0-9a-f]{64}/,
    );
});

dist('the code cache is good for the runtime, and has the functions in it', async () => {
  const elsewhere = mkdtempSync(join(tmpdir(), 'executable-test-'));
  try {
    const [main, cache] = [join(elsewhere, 'main.cjs'), join(elsewhere, 'main.cache')];
    await bundleProgram('main.ts', main);
    wrapWithCodeCache(main, cache);
    const program = `
      const { readFileSync } = require('node:fs');
      const { Script } = require('node:vm');
      const source = readFileSync(process.argv[1], 'latin1');
      const script = new Script(source, { filename: 'main.cjs', cachedData: readFileSync(process.argv[2]) });
      console.log(script.cachedDataRejected, new Script(source, { produceCachedData: true }).cachedData.length);`;
    const { stdout, stderr } = spawnSync(process.execPath, [...runtimeOptions, '-e', program, main, cache], {
      encoding: 'utf8',
    });
    const [isRejected, lazyBytes] = stdout.trim().split(' ');
    assert.is(isRejected, 'false', stderr);
    assert.ok(statSync(cache).size > 2 * Number(lazyBytes));
  } finally {
    rmSync(elsewhere, { recursive: true });
  }
});

dist('the Prolog and the Epilog carry nothing of the admin command', async () => {
  const elsewhere = mkdtempSync(join(tmpdir(), 'executable-test-'));
  try {
    const modules = await bundleProgram('main.ts', join(elsewhere, 'main.cjs'));
    assert.ok(modules.includes('prolog/prolog.ts') && modules.includes('epilog/epilog.ts'));
    assert.equal(
      modules.filter((path) => /^(?:admin|node_modules)\//.test(path)),
      [],
    );
  } finally {
    rmSync(elsewhere, { recursive: true });
  }
});

dist.run();
