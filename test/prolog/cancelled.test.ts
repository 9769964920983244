/**
 * A job that is over while its Prolog is at work: the node is free at once, and the Epilog finds all that was
 * begun.
 */
// test: timeout 600 s
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { StandInRegistry } from '../helpers/directory-registry.ts';
import { processes, TestNode, until, type RunningProgram } from '../helpers/node.ts';
import {
  alice,
  command,
  enterPrivateMachine,
  machineRoot,
  replaceProgram,
  unlessPrivateMachine,
} from '../helpers/private-machine.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const test = suite('a job that is over during its Prolog', { skip: unlessPrivateMachine });
const settings = { on_failure: 'fail' };

/** A slurmctld that knows one job: its squeue prints the state that the file has, and notes each question. */
const statePath = join(machineRoot, 'job-state');
const questionsPath = join(machineRoot, 'questions');
const spoolPath = join(machineRoot, 'spool');
const slurmConf = join(machineRoot, 'slurm.conf');

function playSlurm(spool: string): Disposable {
  writeFileSync(slurmConf, `ClusterName=test\nSlurmdSpoolDir=${spool}/%n\n`);
  setState('RUNNING');
  writeFileSync(questionsPath, '');
  return replaceProgram('squeue', `cat ${statePath}; echo "$SLURM_CONF $*" >>${questionsPath}`);
}

const setState = (state: string, jobId = 7): void => {
  writeFileSync(statePath, `${jobId + 1} CANCELLED\n${jobId} ${state}\n`);
};
const questions = (): string[] => readFileSync(questionsPath, 'utf8').split('\n').filter(Boolean);
const job = { id: 7, user: alice, environment: { SLURM_CONF: slurmConf } };

/** slurmd does so when slurmctld has it end a job. */
function writeCredentials(): void {
  mkdirSync(join(spoolPath, 'node0'), { recursive: true });
  writeFileSync(join(spoolPath, 'node0/cred_state.new'), 'x');
  command('mv', join(spoolPath, 'node0/cred_state.new'), join(spoolPath, 'node0/cred_state'));
}

/** An unpack that ends when it is told to. */
const slowUnpack = (): Disposable =>
  replaceProgram(
    'unsquashfs',
    '[ "$1" = -version ] && exec /usr/bin/unsquashfs "$@"; mkdir -p "$3"; echo x >"$3/file"; exec sleep 1000',
  );
const unpacking = (): number => processes().filter(({ commandLine }) => commandLine === 'sleep 1000').length;

async function untilAsked(): Promise<void> {
  await until('slurmctld was asked', () => questions().length > 0);
}

async function assertFreed(node: TestNode, prolog: RunningProgram): Promise<void> {
  const { exitCode, line } = await prolog.result;
  assert.equal([exitCode, line['result'], line['code']], [0, 'cancelled', 'CANCELLED']);
  assert.match(line['reason'] ?? '', /says that the job is/);
  await until('its children have ended', () => unpacking() === 0);
  const epilog = await node.epilog(job);
  assert.is(epilog.exitCode, 0);
  await node.settle();
  assert.equal([node.entries(alice), node.partials(alice), node.trash(), node.leases()], [[], [], [], []]);
}

test('cancelled during an unpack', async () => {
  using _slurm = playSlurm(spoolPath);
  writeCredentials();
  await using node = await TestNode.start({ settings });
  {
    using _unpack = slowUnpack();
    const prolog = node.startProlog({ ...job, image: node.image() });
    await untilAsked();
    assert.is(unpacking(), 1);
    setState('COMPLETING');
    writeCredentials();
    await assertFreed(node, prolog);
  }
  assert.equal(questions(), [
    `${slurmConf} --noheader --format=%A %T --jobs=7`,
    `${slurmConf} --noheader --format=%A %T --jobs=7`,
  ]);
});

test('cancelled during an import, where slurmd tells nothing', async () => {
  using _slurm = playSlurm('/nonexistent');
  const registry = new StandInRegistry();
  registry.push('reg.example/app:latest', 'a');
  registry.hold();
  await using node = await TestNode.start({ settings: { ...settings, enroot_path: registry.enrootPath } });
  const prolog = node.startProlog({ ...job, image: 'reg.example/app:latest' });
  await until('the image is being imported', () => registry.calls('import').length > 0);
  await untilAsked();
  setState('CANCELLED');
  await assertFreed(node, prolog);
});

test('cancelled while another job of the user makes the same entry, which goes on', async () => {
  using _slurm = playSlurm('/nonexistent');
  await using node = await TestNode.start({ settings });
  using _unpack = slowUnpack();
  const image = node.image();
  const other = node.startProlog({ ...job, id: 70, image });
  await until('the other unpacks', () => unpacking() === 1);
  setState('CANCELLED');
  const { exitCode, line } = await node.prolog({ ...job, image });
  assert.equal([exitCode, line['result']], [0, 'cancelled']);
  assert.is(unpacking(), 1);
  other.kill('SIGKILL');
  await other.result;
});

test('a slurmctld that does not answer, or knows no such job, cancels nothing', async () => {
  await using node = await TestNode.start({ settings });
  for (const [mark, answer] of [
    ['a', 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1'],
    ['b', 'exec sleep 1000'],
  ] as const) {
    using _squeue = replaceProgram('squeue', `echo asked >>${questionsPath}; ${answer}`);
    writeFileSync(questionsPath, '');
    const registry = new StandInRegistry();
    node.configure({ ...settings, enroot_path: registry.enrootPath });
    registry.push('reg.example/app:latest', mark);
    registry.hold();
    const prolog = node.startProlog({ ...job, image: 'reg.example/app:latest' });
    await untilAsked();
    registry.release();
    assert.is((await prolog.result).line['result'], 'created');
  }
});

test('a Prolog that is done soon asks nobody', async () => {
  using _slurm = playSlurm(spoolPath);
  await using node = await TestNode.start({ settings });
  const image = node.image();
  setState('CANCELLED');
  const { line } = await node.prolog({ ...job, image });
  // On a machine that is too busy for it, it may ask.
  if (Number(line['total_ms']) < 2000) assert.equal([line['result'], questions()], ['created', []]);
});

test.run();
