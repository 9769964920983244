/** The TaskProlog: a shell script that may find nothing in a container but its shell. */
import { spawnSync } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { jobEnvName, jobPath } from '../../lib/core/layout.ts';
import { taskEnvironment } from '../../lib/core/task-env.ts';
import { assert, suite } from '../helpers/suite.ts';

const script = new URL('../../taskprolog/taskprolog', import.meta.url).pathname;
const environmentText = taskEnvironment('/raid/data', 1000);

const test = suite<{ root: string }>('taskprolog', { state: { root: '' } });

test.before.each((state) => {
  state.root = mkdtempSync(join(tmpdir(), 'taskprolog-'));
  mkdirSync(jobPath(`${state.root}/run`, 42), { recursive: true });
  writeFileSync(
    `${state.root}/conf`,
    `# a comment\ncontainer_cache_data_path=/raid/data\nruntime_dir=${state.root}/run\n`,
  );
});
test.after.each(({ root }) => {
  rmSync(root, { recursive: true });
});

/** Runs it as slurmstepd does, with a PATH that leads nowhere. */
function run(root: string, jobId: string | undefined, shell = '/bin/sh') {
  const { status, stdout, stderr } = spawnSync(shell, [script], {
    encoding: 'utf8',
    env: {
      PATH: '/nonexistent',
      CONTAINER_CACHE_CONF: `${root}/conf`,
      ...(jobId === undefined ? {} : { SLURM_JOB_ID: jobId }),
    },
  });
  return { status, stdout, stderr };
}

const silent = { status: 0, stdout: '', stderr: '' };

test("prints the job's lines, with nothing but its shell", ({ root }) => {
  writeFileSync(`${jobPath(`${root}/run`, 42)}/${jobEnvName}`, environmentText);
  for (const shell of ['/bin/sh', '/bin/bash']) {
    assert.equal(run(root, '42', shell), { status: 0, stdout: environmentText, stderr: '' });
  }
});

test('is silent for a job without a file, and without a job', ({ root }) => {
  assert.equal(run(root, '43'), silent);
  assert.equal(run(root, undefined), silent);
});

test('is silent where neither the configuration nor the runtime directory can be seen', ({ root }) => {
  rmSync(`${root}/conf`);
  rmSync(`${root}/run`, { recursive: true });
  assert.equal(run(root, '42'), silent);
});

test('is silent for what is no file', ({ root }) => {
  const path = `${jobPath(`${root}/run`, 42)}/${jobEnvName}`;
  mkdirSync(path);
  assert.equal(run(root, '42'), silent);
  rmSync(path, { recursive: true });
  symlinkSync('/nonexistent', path);
  assert.equal(run(root, '42'), silent);
});

test('does not fail on a configuration without an end of line, and on an unreadable one', ({ root }) => {
  writeFileSync(`${jobPath(`${root}/run`, 42)}/${jobEnvName}`, environmentText);
  writeFileSync(`${root}/conf`, `runtime_dir=${root}/run`);
  assert.is(run(root, '42').stdout, environmentText);
  chmodSync(`${root}/conf`, 0);
  assert.is(run(root, '42').status, 0);
});

test.run();
