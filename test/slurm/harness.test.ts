/** Tests of the harness itself: what a test on a real Slurm may rely on. */
// test: timeout 600 s

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import * as fsp from 'node:fs/promises';
import * as path from 'node:path';
import { pathToFileURL } from 'node:url';

import { assert, suite } from '../helpers/suite.ts';
import { ClusterError, slurmAvailable, startCluster, type Cluster, type ClusterPaths } from './cluster.ts';
import { readIfPresent } from './prepare.ts';

const unavailable = slurmAvailable();

/** Slurm holds a job whose Prolog failed for this reason. */
const HELD_REASON = /launch.failed.requeued.held/i;

/** Scripts that leave in `seen/` what Slurm gave them: `<context>.<job>`, one environment per run. */
async function observingScripts({ root }: ClusterPaths): Promise<{ slurmConf: Record<string, string> }> {
  const seen = path.join(root, 'seen');
  await fsp.mkdir(seen);
  const record = `{ echo "RUN=1"; /usr/bin/env; } >>"${seen}/$SLURM_SCRIPT_CONTEXT.$SLURM_JOB_ID"`;
  const scripts = {
    prolog: `${record}\n[ ! -e "${root}/prolog-fails" ]\n`,
    epilog: `${record}\n`,
    taskprolog: `echo "export FROM_TASK_PROLOG=task-$SLURM_PROCID"\n`,
  };
  for (const [name, body] of Object.entries(scripts)) {
    await fsp.writeFile(path.join(root, name), `#!/bin/sh\n${body}`, { mode: 0o755 });
  }
  return {
    slurmConf: {
      Prolog: path.join(root, 'prolog'),
      Epilog: path.join(root, 'epilog'),
      TaskProlog: path.join(root, 'taskprolog'),
      PrologFlags: 'Alloc',
    },
  };
}

/** What a script of observingScripts() saw of a job, one object per run of the script. */
async function runsOf(
  cluster: Cluster,
  context: 'prolog' | 'epilog',
  jobId: string,
): Promise<Record<string, string>[]> {
  const file = path.join(cluster.root, 'seen', `${context}_slurmd.${jobId}`);
  const runs = (await fsp.readFile(file, 'utf8')).split('RUN=1\n').slice(1);
  return runs.map((text) =>
    Object.fromEntries(
      text
        .split('\n')
        .filter((line) => line.includes('='))
        .map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]),
    ),
  );
}

/** The pyxis options among them, without their long prefix. */
function pyxisOptions(environment: Record<string, string> | undefined): Record<string, string> {
  const prefix = 'SPANK__SLURM_SPANK_OPTION_pyxis_';
  return Object.fromEntries(
    Object.entries(environment ?? {})
      .filter(([name]) => name.startsWith(prefix))
      .map(([name, value]) => [name.slice(prefix.length), value]),
  );
}

async function until(isTrue: () => boolean | Promise<boolean>, wanted: string): Promise<void> {
  for (let tries = 0; tries < 200; tries++) {
    if (await isTrue()) return;
    await new Promise((resolve) => {
      setTimeout(resolve, 50);
    });
  }
  throw new Error(`Waited 10 s for ${wanted}`);
}

// One cluster for all tests of a job's way.

const job = suite<{ cluster?: Cluster }>('a job on a test cluster', { skip: unavailable, state: {} });

job.before(async (state) => {
  state.cluster = await startCluster(observingScripts);
});
job.after(async ({ cluster }) => {
  await cluster?.stop();
});

job('runs as a user whom the machine does not know, with supplementary groups', async ({ cluster }) => {
  const first = await cluster!.run('usera', ['srun', 'sh', '-c', 'id; pwd']);
  const second = await cluster!.run('userb', ['srun', 'id', '--groups', '--name']);

  assert.is(
    first.stdout,
    `uid=59001(usera) gid=59001(usera) groups=59001(usera),59900(imagereaders)\n${cluster!.homes}/usera\n`,
  );
  assert.is(second.stdout, 'userb\n');
  assert.not.match(await fsp.readFile('/etc/passwd', 'utf8'), /usera|userb/);
});

job('shows the Prolog what srun was asked for, and who asked', async ({ cluster }) => {
  const argv = [
    'srun',
    '--container-image=/images/a b.sqsh',
    '--container-name=kept',
    '--container-writable',
  ];
  const result = await cluster!.run('usera', [...argv, 'printenv', 'SLURM_JOB_ID']);
  const jobId = result.stdout.trim();
  const [environment, ...others] = await runsOf(cluster!, 'prolog', jobId);

  assert.equal(others, []);
  assert.equal(pyxisOptions(environment), {
    container_image: '/images/a b.sqsh',
    container_name: 'kept',
    container_writable: '(null)',
  });
  assert.is(environment!['SLURM_JOB_UID'], '59001');
  assert.is(environment!['SLURM_JOB_GID'], '59001');
  assert.is(environment!['SLURM_JOB_USER'], 'usera');
  assert.is(environment!['SLURM_JOB_WORK_DIR'], `${cluster!.homes}/usera`);
  assert.is(environment!['PATH'], undefined);
  assert.is(environment!['HOME'], undefined);
});

job('shows the Prolog no variable that the user has set', async ({ cluster }) => {
  const set = [
    'CONTAINER_CACHE_CONF=/evil',
    'CONTAINER_CACHE_LEASE=1',
    'CONTAINER_CACHE_FSTAB=/etc',
    'NODE_OPTIONS=--require=/evil',
    'LD_PRELOAD_X=/evil',
  ];
  const result = await cluster!.run('usera', [
    'env',
    ...set,
    'srun',
    '--export=ALL',
    'printenv',
    'SLURM_JOB_ID',
    'CONTAINER_CACHE_CONF',
  ]);
  const [jobId = '', inTask] = result.stdout.trim().split('\n');
  assert.is(inTask, '/evil');
  const [environment = {}] = await runsOf(cluster!, 'prolog', jobId);
  const evil = Object.entries(environment).filter(
    ([name, value]) => /evil/.test(value) || /^(CONTAINER_CACHE|NODE_)/.test(name),
  );
  assert.equal(evil, []);
});

job(
  'shows the Prolog and the Epilog what an #SBATCH line asks for, not what an srun inside does',
  async ({ cluster }) => {
    const script = `#!/bin/sh
#SBATCH --container-image=/images/batch.sqsh
srun --container-image=/images/batch.sqsh --container-save=/tmp/never echo inner srun
`;
    const jobId = await cluster!.sbatch('usera', [], script);
    const result = await cluster!.waitForJob(jobId);
    const expected = { container_image: '/images/batch.sqsh' };

    assert.is(result.state, 'COMPLETED');
    assert.is(result.stdout, 'inner srun\n');
    assert.equal((await runsOf(cluster!, 'prolog', jobId)).map(pyxisOptions), [expected]);
    assert.equal((await runsOf(cluster!, 'epilog', jobId)).map(pyxisOptions), [expected]);
  },
);

job('shows the Prolog what salloc was asked for, and nothing of an srun inside', async ({ cluster }) => {
  const inner = ['sh', '-c', 'echo $SLURM_JOB_ID; srun --container-image=/images/inner.sqsh true'];
  const asked = await cluster!.run('usera', ['salloc', '--container-readonly', ...inner]);
  const askedNothing = await cluster!.run('usera', ['salloc', ...inner]);
  const options = async (jobId: string): Promise<unknown> =>
    (await runsOf(cluster!, 'prolog', jobId)).map(pyxisOptions);

  assert.is(asked.exitCode, 0);
  assert.is(askedNothing.exitCode, 0);
  assert.equal(await options(asked.stdout.trim()), [{ container_readonly: '(null)' }]);
  assert.equal(await options(askedNothing.stdout.trim()), [{}]);
});

job('is refused where pyxis refuses its options', async ({ cluster }) => {
  const twice = await cluster!.run('usera', ['srun', '--container-image=/a', '--container-image=/b', 'true']);
  const both = await cluster!.run('usera', ['srun', '--container-writable', '--container-readonly', 'true']);

  assert.is.not(twice.exitCode, 0);
  assert.match(twice.stderr, /pyxis: --container-image/);
  assert.is.not(both.exitCode, 0);
  assert.match(both.stderr, /pyxis: --container-readonly/);
  for (const option of ['name=a:b', 'name=:exec', 'save=/a/', 'unshare=net,pid', 'env=A,,B']) {
    const { exitCode, stderr } = await cluster!.run('usera', ['srun', `--container-${option}`, 'true']);
    assert.is.not(exitCode, 0, option);
    assert.match(stderr, new RegExp(`pyxis: --container-${option.split('=')[0]!}`));
  }
  for (const option of ['name=a:', 'name=a:no_exec', 'unshare=net,ipc', 'env=A,B']) {
    const { exitCode } = await cluster!.run('usera', ['srun', `--container-${option}`, 'true']);
    assert.is(exitCode, 0, option);
  }
});

job('receives what the TaskProlog exports, each task its own', async ({ cluster }) => {
  const result = await cluster!.run('userb', [
    'srun',
    '--ntasks=2',
    '--label',
    'printenv',
    'FROM_TASK_PROLOG',
  ]);

  assert.equal(result.stdout.trim().split('\n').sort(), ['0: task-0', '1: task-1']);
});

job('array: has a Prolog, an Epilog and a record for each task', async ({ cluster }) => {
  const script = '#!/bin/sh\necho "task $SLURM_ARRAY_TASK_ID"\n[ "$SLURM_ARRAY_TASK_ID" != 2 ] || exit 3\n';
  const result = await cluster!.waitForJob(await cluster!.sbatch('usera', ['--array=1-4'], script));

  assert.is(result.state, 'FAILED');
  assert.is(result.exitCode, 3);
  assert.is(result.records.length, 4);
  assert.equal(result.stdout.trim().split('\n').sort(), ['task 1', 'task 2', 'task 3', 'task 4']);
  for (const record of result.records) {
    assert.is((await runsOf(cluster!, 'prolog', record['JobId']!)).length, 1);
    assert.is((await runsOf(cluster!, 'epilog', record['JobId']!)).length, 1);
  }
});

job('requeued: runs again soon, with a Prolog and an Epilog of each run', async ({ cluster }) => {
  const script =
    '#!/bin/sh\necho "run ${SLURM_RESTART_COUNT:-0}"\n[ -n "$SLURM_RESTART_COUNT" ] || sleep 300\n';
  const jobId = await cluster!.sbatch('usera', [], script);
  await cluster!.waitForJobState(jobId, ['RUNNING']);
  await cluster!.requeue(jobId);
  const result = await cluster!.waitForJob(jobId);

  assert.is(result.state, 'COMPLETED');
  assert.match(result.stdout, /run 1\n$/);
  const restarts = (await runsOf(cluster!, 'prolog', jobId)).map((run) => run['SLURM_JOB_RESTART_COUNT']);
  assert.equal(restarts, ['0', '1']);
  assert.is((await runsOf(cluster!, 'epilog', jobId)).length, 2);
});

job('cancelled: ends with its Epilog', async ({ cluster }) => {
  const jobId = await cluster!.sbatch('usera', [], '#!/bin/sh\nsleep 300\n');
  await cluster!.waitForJobState(jobId, ['RUNNING']);
  await cluster!.run('usera', ['scancel', jobId]);

  assert.is((await cluster!.waitForJob(jobId)).state, 'CANCELLED');
  assert.is((await runsOf(cluster!, 'epilog', jobId)).length, 1);
});

job('whose Prolog fails: is held, drains the node, and runs after both are mended', async ({ cluster }) => {
  const failure = path.join(cluster!.root, 'prolog-fails');
  await fsp.writeFile(failure, '');
  const jobId = await cluster!.sbatch('usera', [], '#!/bin/sh\necho mended\n');
  await until(async () => (await cluster!.nodeState()).drained, 'the node to be drained');
  await until(
    async () => HELD_REASON.test((await cluster!.jobRecords(jobId))[0]!['Reason']!),
    'the job to be held',
  );
  assert.match((await cluster!.nodeState()).reason!, /^Prolog error/);

  await fsp.rm(failure);
  await cluster!.resumeNode();
  assert.equal((await cluster!.nodeState()).drained, false);
  await cluster!.exec(['scontrol', 'release', jobId]);
  await cluster!.exec(['scontrol', 'update', `JobId=${jobId}`, 'StartTime=now']);
  const result = await cluster!.waitForJob(jobId);

  assert.is(result.state, 'COMPLETED');
  assert.is(result.stdout, 'mended\n');
});

job('writes to a syslog of the cluster', async ({ cluster }) => {
  await cluster!.run('usera', [
    'srun',
    'logger',
    '--tag',
    'from-a-job',
    '--priority',
    'local3.warning',
    'a line',
  ]);
  const line = await cluster!.waitForSyslog(/from-a-job/);

  assert.match(line, /^\w{3} [ \d]\d \d\d:\d\d:\d\d node0 from-a-job: a line$/);
  await until(
    async () => (await cluster!.syslogWithPriority()).includes('local3.warning from-a-job: a line'),
    'the line with its priority',
  );
});

job('goes on while slurmd is restarted', async ({ cluster }) => {
  const script = '#!/bin/sh\nwhile [ ! -e go-on ]; do sleep 0.1; done\necho went on\n';
  const jobId = await cluster!.sbatch('usera', [], script);
  await cluster!.waitForJobState(jobId, ['RUNNING']);
  await cluster!.restartSlurmd({ ADDED_BY_TEST: 'yes' });
  const pid = (await fsp.readFile(cluster!.hostPath('/run/slurmd.pid'), 'utf8')).trim();
  assert.match(await fsp.readFile(cluster!.hostPath(`/proc/${pid}/environ`), 'utf8'), /ADDED_BY_TEST=yes/);
  await fsp.writeFile(path.join(cluster!.homes, 'usera/go-on'), '');

  assert.is((await cluster!.waitForJob(jobId)).stdout, 'went on\n');
  await cluster!.waitForNodeIdle();
});

job('is told apart from what it leaves behind', async ({ cluster }) => {
  await cluster!.waitForNodeIdle();
  await until(async () => (await cluster!.leftovers()).length === 0, 'no process but the daemons');

  const escape = ['sh', '-c', 'setsid --fork sleep 4321 >/dev/null 2>&1'];
  await cluster!.run('userb', escape);
  // setsid --fork returns before its child has become `sleep`.
  await until(
    async () => (await cluster!.leftovers()).every(({ command }) => !command.startsWith('setsid')),
    'the escaped process to be itself',
  );
  const leftovers = await cluster!.leftovers();
  assert.equal(
    leftovers.map(({ uid, command }) => ({ uid, command })),
    [{ uid: 59002, command: 'sleep 4321' }],
  );

  await cluster!.exec(['kill', String(leftovers[0]!.pid)]);
  await until(async () => (await cluster!.leftovers()).length === 0, 'the escaped process to end');
});

job.run();

// Clusters that come and go.

const lifetime = suite('a test cluster', { skip: unavailable });

/** What must be on the machine after a cluster as it was before: accounts, sockets, configuration. */
async function machineState(): Promise<unknown> {
  const files = ['/etc/passwd', '/etc/group', '/etc/shadow', '/etc/hosts'];
  return {
    texts: await Promise.all(files.map(readIfPresent)),
    slurm: fs.existsSync('/etc/slurm') ? await fsp.readdir('/etc/slurm') : undefined,
    log: fs.existsSync('/dev/log'),
    munge: fs.existsSync('/run/munge/munge.socket.2'),
    pidFiles: ['/run/slurmd.pid', '/run/slurmctld.pid'].filter((file) => fs.existsSync(file)),
  };
}

function pidNamespace(pid: number | string): string | undefined {
  try {
    return fs.readlinkSync(`/proc/${pid}/ns/pid`);
  } catch {
    return undefined;
  }
}

/** Processes of a PID namespace, and mounts that lead into a directory. */
function remains(namespace: string, directory: string): string[] {
  const pids = fs.readdirSync('/proc').filter((entry) => /^\d+$/.test(entry));
  const processes = pids.filter((pid) => pidNamespace(pid) === namespace).map((pid) => `process ${pid}`);
  const mounts = fs
    .readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .filter((line) => line.includes(directory));
  return [...processes, ...mounts, ...(fs.existsSync(directory) ? [directory] : [])];
}

/** The host's PID of a cluster's process 1. */
function initPid(cluster: Cluster): string {
  return cluster.hostPath('/').split('/')[2]!;
}

lifetime('leaves no process, mount, file or account, whatever its jobs were doing', async () => {
  const before = await machineState();
  const cluster = await startCluster();
  const namespace = pidNamespace(initPid(cluster))!;
  const { directory } = cluster;
  try {
    const jobId = await cluster.sbatch('usera', [], '#!/bin/sh\nsleep 300\n');
    await cluster.waitForJobState(jobId, ['RUNNING']);
    await cluster.run('userb', ['sh', '-c', 'setsid --fork sleep 4321 >/dev/null 2>&1']);
    await cluster.exec(['mount', '--types', 'tmpfs', 'tmpfs', cluster.root]);
    await fsp.writeFile(cluster.hostPath('/run/a-file'), '');
    assert.is.not(remains(namespace, directory).length, 0);
  } finally {
    await cluster.stop();
  }

  assert.equal(remains(namespace, directory), []);
  assert.equal(await machineState(), before);
  assert.not.ok(fs.existsSync('/run/a-file'));
  await cluster.stop();
});

lifetime('ends with the test process, even by SIGKILL', async () => {
  const program = `
    const { startCluster } = await import(${JSON.stringify(pathToFileURL(path.join(import.meta.dirname, 'cluster.ts')))});
    const cluster = await startCluster({ pyxis: false });
    console.log(JSON.stringify({ directory: cluster.directory, root: cluster.hostPath('/') }));
    setInterval(() => undefined, 1000);`;
  const child = spawn(process.execPath, ['--input-type=module', '--eval', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [line] = (await once(child.stdout, 'data')) as [Buffer];
  const { directory, root } = JSON.parse(line.toString()) as { directory: string; root: string };
  const namespace = pidNamespace(root.split('/')[2]!)!;
  assert.is.not(remains(namespace, directory).length, 0);

  child.kill('SIGKILL');
  await until(() => remains(namespace, directory).length === 0, `nothing of ${directory} to remain`);
});

lifetime('runs beside another one', async () => {
  await using first = await startCluster();
  await using second = await startCluster();
  const submit = (cluster: Cluster): Promise<string> =>
    cluster.sbatch(
      'usera',
      [],
      '#!/bin/sh\necho "$HOME"; ls /var/spool/slurmctld | grep --count clustername\n',
    );
  const [firstJob, secondJob] = await Promise.all([submit(first), submit(second)]);
  const [firstResult, secondResult] = await Promise.all([
    first.waitForJob(firstJob),
    second.waitForJob(secondJob),
  ]);

  assert.is(firstJob, secondJob);
  assert.is(firstResult.stdout, `${first.homes}/usera\n1\n`);
  assert.is(secondResult.stdout, `${second.homes}/usera\n1\n`);
});

lifetime('does not start with a node that only seems to be idle', async () => {
  // Asked in slurmd's place, slurmctld answers itself.
  const slurmConf = { SlurmctldPort: '19999', SlurmdPort: '19999' };
  await assert.rejects(
    () => startCluster({ pyxis: false, slurmConf }),
    ClusterError,
    /start slurmd: it ended/,
  );
});

lifetime('says what its daemons said when it cannot start, and leaves nothing', async () => {
  let directory = '';
  await assert.rejects(
    () =>
      startCluster((paths) => {
        directory = paths.directory;
        return { slurmConf: { SelectType: 'select/no_such_plugin' } };
      }),
    ClusterError,
    /no_such_plugin/,
  );
  assert.match(directory, /slurm-cluster-/);
  assert.not.ok(fs.existsSync(directory));
});

lifetime.run();
