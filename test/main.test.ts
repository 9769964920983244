/** However one installs the executable (as links, copies, under other names), all of its programs run. */
// test: timeout 600 s
import {
  chmodSync,
  copyFileSync,
  existsSync,
  linkSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  symlinkSync,
} from 'node:fs';
import { join } from 'node:path';
import { executable } from '../build/build.ts';
import { processes, TestNode, until } from './helpers/node.ts';
import {
  alice,
  command,
  enterPrivateMachine,
  machineRoot,
  unlessPrivateMachine,
} from './helpers/private-machine.ts';
import { startAcquire } from './helpers/run-acquire.ts';
import { assert, suite } from './helpers/suite.ts';

enterPrivateMachine();

const test = suite('an installation', { skip: unlessPrivateMachine });

/**
 * Runs a file in the place of the built program of the same role; its own name and no parameter, as slurmd
 * does.
 */
const as = (file: string): readonly string[] => ['bash', '-c', 'exec "$0"', file];

/** A directory of programs that are copies of the executable, not links to it. */
function copies(...names: readonly string[]): string {
  const path = mkdtempSync(join(machineRoot, 'copies-'));
  chmodSync(path, 0o755);
  const [first = '', ...others] = names.map((name) => join(path, name));
  copyFileSync(executable, first);
  for (const other of others) linkSync(first, other);
  return path;
}

test('a file of any name is a Prolog, and an Epilog, for Slurm', async () => {
  const directory = copies('50-container-cache', 'epilog', 'x.y');
  symlinkSync(executable, join(directory, '99-link'));
  await using node = await TestNode.start();
  const image = node.image();
  for (const [index, name] of readdirSync(directory).sort().entries()) {
    const job = { id: index + 1, user: alice, wrapper: as(join(directory, name)) };
    const prolog = await node.prolog({ ...job, image });
    assert.equal([prolog.exitCode, prolog.line['result']], [0, index === 0 ? 'created' : 'reused'], name);
    const { exitCode, line } = await node.epilog(job);
    assert.equal([exitCode, line['result'], line['holders']], [0, 'released', '1'], name);
  }
});

test('a copy collects, called as the Epilog that it is', async () => {
  const directory = copies('epilog');
  await using node = await TestNode.start({
    settings: { container_cache_gc_high: 1, container_cache_gc_low: 0, gc_min_age: 0 },
  });
  const entry = node.plant(alice, { hash: '0000000000000001', usedSecondsAgo: 1000 });
  const { line } = await node.epilog({ id: 1, user: alice, wrapper: as(join(directory, 'epilog')) });
  assert.is(line['gc'], 'started');
  await node.settle();
  assert.not(existsSync(entry));
});

test('a copy unpacks in the background, and serves the steps of its jobs', async () => {
  const directory = copies('prolog');
  await using node = await TestNode.start({ settings: { create_mode: 'background' } });
  const image = node.image();
  const wrapper = as(join(directory, 'prolog'));
  const { line } = await node.prolog({ id: 1, user: alice, image, wrapper });
  assert.is(line['code'], 'UNPACKING');
  await until('the image is unpacked', () => node.entries(alice).length === 1);
  await until('nothing is being unpacked', () =>
    processes().every(({ commandLine }) => !commandLine.includes(' warm ')),
  );
  assert.is(commandOf(node), join(directory, 'prolog'));
  // As the wrapper does, by the name that the Prolog tells it.
  const { exitCode } = await startAcquire(node, [image], {
    jobId: 1,
    wrapper: ['bash', '-c', `shift; exec ${commandOf(node)!} "$@"`, 'bash'],
  }).answer;
  assert.is(exitCode, 0);
});

const commandOf = (node: TestNode): string | undefined =>
  /^command=(.*)$/m.exec(readFileSync(join(node.runtimePath, 'node'), 'utf8'))?.[1];

test('users start a file that they can reach, and no other', async () => {
  const directory = copies('50-container-cache');
  const job = { id: 1, user: alice, wrapper: as(join(directory, '50-container-cache')) };
  await using node = await TestNode.start();
  chmodSync(directory, 0o700);
  const { exitCode, nodeLine } = await node.prolog(job);
  assert.is(exitCode, 0);
  assert.not(existsSync('/usr/libexec/container-cache'), 'a package of ours would be found there');
  assert.equal([commandOf(node), nodeLine?.level], [undefined, 'warning']);
  assert.match(nodeLine?.fields['reason'] ?? '', /steps are not served/);
});

test('Slurm can run it where it has nothing to do', async () => {
  for (const context of ['prolog_slurmctld', 'epilog_slurmctld', 'prolog_task', 'epilog_task', 'prolog_srun'])
    assert.is(command('env', '-i', `SLURM_SCRIPT_CONTEXT=${context}`, executable), '');
});

test.run();
