/** background.ts: a collector that goes on alone, and is in nobody's way. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
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
 * Starts a program of ours that starts the collector and ends. In place of nice(1) stands a script that writes down how it
 * was started, and waits at a FIFO before it goes on.
 *
 * @returns what the program printed, until the last writer was gone
 */
async function startedBy(parameter: string): Promise<string> {
  const module = join(import.meta.dirname, '../../../lib/system/background.ts');
  writeFileSync(
    join(root, 'program.ts'),
    `import { startBackgroundCollector } from ${JSON.stringify(module)};
     startBackgroundCollector(${parameter});
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

/** The script in the place of nice(1): it writes facts down, waits at the FIFO, and says that it is done. */
const record = (): string => `
  printf '%s\\n' "$@" >${root}/arguments
  env >${root}/environment
  echo "$(readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2)" >${root}/streams
  readlink /proc/$$/cwd >${root}/directory
  ionice --pid $$ >${root}/class
  ps -o sid=,pid= -p $$ >${root}/session
  cat ${root}/go >${root}/done.new
  mv ${root}/done.new ${root}/done`;

async function untilThere(name: string): Promise<void> {
  while (!existsSync(join(root, name))) await sleep(5);
}

async function start(parameter: string): Promise<void> {
  using _ = replaceProgram('nice', record());
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

test('it is a session of its own, at idle priority', async () => {
  await start('undefined');
  const [session, pid] = fact('session').split(/\s+/);
  assert.is(session, pid);
  assert.is(fact('class'), 'idle');
  assert.is(fact('arguments').split('\n')[0], '--adjustment=19');
});

test('it is this program, told to collect', async () => {
  await start('undefined');
  const { file, args } = selfCommand();
  assert.equal(fact('arguments').split('\n').slice(1), [file, ...args, 'gc', '--background']);
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
  using _ = replaceProgram('ionice', 'exit 1');
  assert.is(await startedBy('undefined'), 'started\n');
});

test.run();
