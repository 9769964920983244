/** background.ts: a collector that goes on alone, and is in nobody's way. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { getPriority } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { backgroundCollectorPath } from '../../../lib/core/layout.ts';
import { selfCommand } from '../../../lib/system/self.ts';
import {
  command,
  enterPrivateMachine,
  machineRoot,
  replaceProgram,
  unlessPrivateMachine,
} from '../../helpers/private-machine.ts';
import { assert, suite } from '../../helpers/suite.ts';

enterPrivateMachine();
const test = suite('startBackgroundCollector()', { skip: unlessPrivateMachine });

let root: string;
test.before.each(() => {
  root = mkdtempSync(join(machineRoot, 'background-'));
});

/**
 * Starts a program of ours that starts the collector and ends. In place of setpriv(1) stands a script that
 * writes down how it was started, and waits at a FIFO before it goes on.
 *
 * @returns what the program printed, until the last writer was gone
 */
async function startedBy(parameter: string): Promise<string> {
  const module = join(import.meta.dirname, '../../../lib/system/background.ts');
  writeFileSync(
    join(root, 'program.ts'),
    `import { startBackgroundCollector } from ${JSON.stringify(module)};
     startBackgroundCollector(${JSON.stringify(root)}, ${parameter});
     console.log('started');`,
  );
  const starter = spawn(process.execPath, [join(root, 'program.ts')], {
    detached: true,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let output = '';
  starter.stdout.on('data', (chunk: Buffer) => (output += String(chunk)));
  await once(starter, 'close');
  // As slurmd does when the Prolog has ended.
  try {
    process.kill(-starter.pid!, 'SIGKILL');
  } catch (error) {
    assert.is((error as NodeJS.ErrnoException).code, 'ESRCH');
  }
  return output;
}

const fact = (name: string): string => readFileSync(join(root, name), 'utf8').trim();

/**
 * The script in the place of setpriv(1): it writes facts down, waits at the FIFO, and says that it is done.
 */
const record = (): string => `
  printf '%s\\n' "$@" >${root}/arguments
  env >${root}/environment
  echo "$(readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2)" >${root}/streams
  readlink /proc/$$/cwd >${root}/directory
  ps -o sid=,pid=,ni= -p $$ >${root}/session
  echo started >>${root}/starts
  cat ${root}/go >${root}/done.new
  mv ${root}/done.new ${root}/done`;

/** Whether the collector's lock is nobody's. */
async function isFree(): Promise<boolean> {
  const child = spawn('flock', ['--nonblock', backgroundCollectorPath(root), 'true']);
  const [exitCode] = (await once(child, 'close')) as [number];
  return exitCode === 0;
}

async function untilThere(name: string): Promise<void> {
  while (!existsSync(join(root, name))) await sleep(5);
}

async function start(parameter: string): Promise<void> {
  using _ = replaceProgram('setpriv', record());
  command('mkfifo', join(root, 'go'));
  assert.is(await startedBy(parameter), 'started\n');
  // The program and its group are gone, and nobody waited: only now the collector goes on.
  writeFileSync(join(root, 'go'), 'go');
  await untilThere('done');
}

test('it outlives the program that started it, and keeps nothing of it open', async () => {
  await start('undefined');
  assert.equal(fact('streams').split('\n'), ['/dev/null', '/dev/null', '/dev/null']);
  assert.is(fact('directory'), '/');
});

// At a lower priority it would keep a Prolog waiting for locks that it holds for a moment.
test('it is a session of its own, at the priority of who started it', async () => {
  await start('undefined');
  const [session, pid, nice] = fact('session').split(/\s+/);
  assert.is(session, pid);
  assert.is(nice, String(getPriority()));
});

test('no other is started until it has ended, however it ends', async () => {
  using _ = replaceProgram('setpriv', record());
  command('mkfifo', join(root, 'go'));
  await startedBy('undefined');
  await untilThere('starts');
  await startedBy('undefined');
  await startedBy('undefined');
  assert.is(fact('starts'), 'started');
  // Its group: a shell hands the lock on to what it runs, the collector does not.
  process.kill(-Number(fact('session').split(/\s+/)[1]), 'SIGKILL');
  while (!(await isFree())) await sleep(5);
  await startedBy('undefined');
  while (fact('starts') !== 'started\nstarted') await sleep(5);
  writeFileSync(join(root, 'go'), 'go');
  await untilThere('done');
});

test('it is started without the lock where that cannot be had', async () => {
  command('mkdir', backgroundCollectorPath(root));
  await start('undefined');
});

test('it is this program, told to collect', async () => {
  await start('undefined');
  const { file, args } = selfCommand();
  assert.equal(fact('arguments').split('\n').slice(2), [file, ...args, 'gc', '--background']);
});

test('it has the fixed environment, and the configuration we were started with', async () => {
  await start('"/x/y.conf"');
  const variables = fact('environment')
    .split('\n')
    .filter((line) => !/^(?:PWD|OLDPWD|SHLVL|_)=/.test(line));
  assert.equal(variables.sort(), [
    'CONTAINER_CACHE_CONF=/x/y.conf',
    'LC_ALL=C',
    'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
  ]);
});

test('it is no failure that it cannot be started', async () => {
  using _ = replaceProgram('setpriv', 'exit 1');
  assert.is(await startedBy('undefined'), 'started\n');
});

test.run();
