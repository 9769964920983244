/**
 * A machine of its own for one test file: own processes, own mounts, own users, on this kernel.
 *
 * The Epilog looks for holders, and the collector for mounts, among all processes of the node; job IDs are
 * small numbers. So two test files on one machine would meet. `enterPrivateMachine()` runs the file again as
 * a child of process 1 of new PID and mount namespaces:
 *
 *   /mnt              a tmpfs for all that the tests make: they alone fill it, whatever the machine's disk
 *   /etc/passwd, …    the machine's, and two users more; no line in /etc/fstab
 *   /usr/local/sbin   first in the fixed PATH of our programs, and empty but for `logger`: here a test puts a
 *                     program in the place of another
 *
 * When the file's process ends, however it ends, the kernel ends all that it started and unmounts all that it
 * mounted.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { projectRoot } from '../../build/source-files.ts';

/** In the environment of the second run of a test file. */
const insideVariable = 'CONTAINER_CACHE_TEST_MACHINE';
const path = '/usr/sbin:/usr/bin:/sbin:/bin';
const namespaces = ['--mount', '--propagation', 'private', '--pid', '--fork', '--kill-child', '--mount-proc'];

export interface TestUser {
  readonly uid: number;
  readonly gid: number;
  readonly name: string;
}

/** Is also in the group `readersGid`; bob is not. */
export const alice: TestUser = { uid: 59001, gid: 59001, name: 'usera' };
export const bob: TestUser = { uid: 59002, gid: 59002, name: 'userb' };
export const readersGid = 59900;

const isInside = process.env[insideVariable] !== undefined;

/** Where everything of the tests is; the checkout must not vanish under the tmpfs. */
export const machineRoot = ['/mnt', '/media', '/srv'].find(
  (top) => !`${projectRoot}/`.startsWith(`${top}/`),
)!;
const programsPath = '/usr/local/sbin';
/** What our programs handed to logger(1). */
export const syslogPath = join(machineRoot, 'syslog');

/** For SuiteOptions.skip: why this machine cannot be divided. */
export const unlessPrivateMachine = isInside ? undefined : reasonAgainst();

function reasonAgainst(): string | undefined {
  if (process.getuid?.() !== 0) return 'needs root';
  const probe = spawnSync('unshare', [...namespaces, 'true'], { encoding: 'utf8', env: { PATH: path } });
  if (probe.status !== 0) return `needs namespaces: ${probe.error?.message ?? probe.stderr.trim()}`;
  const missing = ['mksquashfs', 'unsquashfs', 'setpriv', 'flock'].filter(
    (program) => !['/usr/bin', '/bin'].some((directory) => existsSync(join(directory, program))),
  );
  return missing.length > 0 ? `needs ${missing.join(', ')}` : undefined;
}

/** To be called before the first suite: returns inside the new machine, or where none can be had. */
export function enterPrivateMachine(): void {
  if (isInside) setUp();
  else if (unlessPrivateMachine === undefined) runAgainInside();
}

function runAgainInside(): never {
  // The shell stays as process 1 and reaps orphans: to a program that looks for it, a zombie is a process.
  // Like slurmd it hands on nothing but the standard streams.
  const script =
    'for fd in /proc/self/fd/*; do fd=${fd##*/}; if ((fd > 2)); then eval "exec $fd>&-"; fi; done; "$@"; exit $?';
  const init = ['bash', '-c', script, 'bash'];
  const self = [process.execPath, ...process.execArgv, ...process.argv.slice(1)];
  process.execve!('/usr/bin/unshare', ['unshare', ...namespaces, ...init, ...self], {
    ...(process.env as Record<string, string>),
    [insideVariable]: '1',
  });
  throw new Error('execve returned');
}

function setUp(): void {
  mount('--types', 'tmpfs', '--options', 'mode=0755,size=1g', 'tmpfs', machineRoot);
  const programs = join(machineRoot, 'programs');
  mkdirSync(programs);
  mount('--bind', programs, programsPath);
  const users = [alice, bob];
  replaceFile('/etc/passwd', (text) =>
    [
      text,
      ...users.map(({ name, uid, gid }) => `${name}:x:${uid}:${gid}::${homeOf({ name })}:/bin/sh\n`),
    ].join(''),
  );
  replaceFile('/etc/group', (text) =>
    [
      text,
      ...users.map(({ name, gid }) => `${name}:x:${gid}:\n`),
      `imagereaders:x:${readersGid}:${alice.name}\n`,
    ].join(''),
  );
  if (existsSync('/etc/fstab')) replaceFile('/etc/fstab', () => '');
  for (const user of users) {
    mkdirSync(homeOf(user), { recursive: true, mode: 0o755 });
    command('chown', `${user.uid}:${user.gid}`, homeOf(user));
  }
  // Nothing of the tests may reach the machine's own log: it comes by logger.
  if (existsSync('/dev/log')) {
    const noSocket = join(machineRoot, 'no-socket');
    writeFileSync(noSocket, '');
    mount('--bind', noSocket, '/dev/log');
  }
  replaceProgram('logger', `cat >>${syslogPath}`);
}

/** Makes that many users more, without homes. Their ids are 60001 and up. */
export function addUsers(count: number): TestUser[] {
  const users = Array.from({ length: count }, (_, index) => ({
    uid: 60_001 + index,
    gid: 60_001 + index,
    name: `user${index + 1}`,
  }));
  const lines = (form: (user: TestUser) => string): string => users.map(form).join('');
  replaceFile(
    '/etc/passwd',
    (text) => text + lines(({ name, uid, gid }) => `${name}:x:${uid}:${gid}::/:/bin/sh\n`),
  );
  replaceFile('/etc/group', (text) => text + lines(({ name, gid }) => `${name}:x:${gid}:\n`));
  return users;
}

export const homeOf = (user: { readonly name: string }): string => join(machineRoot, 'home', user.name);

/** Puts a copy, changed by `edit`, in the place of a file of the machine, for this namespace only. */
export function replaceFile(file: string, edit: (text: string) => string): void {
  const copy = join(machineRoot, `replaced-${file.replaceAll('/', '-')}`);
  writeFileSync(copy, edit(existsSync(file) ? readFileSync(file, 'utf8') : ''), { mode: 0o644 });
  mount('--bind', copy, file);
}

/**
 * Puts a shell script before a program of the machine, for all that look programs up in our fixed PATH.
 *
 * @param body goes on with `exec /usr/bin/NAME "$@"` where the real one is to do its work
 * @returns what takes it away again
 */
export function replaceProgram(name: string, body: string): Disposable {
  const file = join(programsPath, name);
  writeFileSync(`${file}.new`, `#!/bin/sh\n${body}\n`, { mode: 0o755 });
  command('mv', `${file}.new`, file);
  return {
    [Symbol.dispose]: () => {
      rmSync(file);
    },
  };
}

/** Mounts in this namespace; `umount` undoes it, or the end of the test file. */
export function mount(...parameters: readonly string[]): void {
  command('mount', ...parameters);
}

export function umount(point: string): void {
  command('umount', point);
}

/** Runs a program of the machine and returns its stdout; throws unless it exits with 0. */
export function command(file: string, ...parameters: readonly string[]): string {
  const { status, stdout, stderr, error } = spawnSync(file, parameters, {
    encoding: 'utf8',
    env: { PATH: path, LC_ALL: 'C' },
    maxBuffer: 64 * 1024 * 1024,
  });
  if (error) throw error;
  if (status !== 0)
    throw new Error(`${file} ${parameters.join(' ')}: exit code ${String(status)}: ${stderr}`);
  return stdout;
}
