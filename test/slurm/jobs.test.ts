/** Jobs on a real Slurm with our Prolog, TaskProlog and Epilog: what users and operators see of them. */
// test: timeout 400 s

import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { build, distDirectory } from '../../build/build.ts';
import { directoryName } from '../../lib/core/layout.ts';
import { makeImage, treeOfFiles } from '../helpers/squashfs-image.ts';
import { assert, suite } from '../helpers/suite.ts';
import { slurmAvailable, startCluster, type Cluster, type ClusterPaths } from './cluster.ts';
import { entryNamesIn } from './containers.ts';

const taskReport = 'echo "data=$ENROOT_DATA_PATH writable=$ENROOT_ROOTFS_WRITABLE"';

const test = suite<{ cluster?: Cluster }>('jobs with container images on a real Slurm', {
  skip: slurmAvailable(),
  state: {},
});

function writeConfig(etc: string, root: string, extra = ''): void {
  writeFileSync(
    `${etc}/slurm/container-cache.conf`,
    `container_cache_data_path=${root}/data\n${extra}state_dir=${root}/state\n`,
  );
}

async function prepare({ root, etc }: ClusterPaths): Promise<{ slurmConf: Record<string, string> }> {
  await build();
  // Users run the TaskProlog, and the checkout may be out of their reach.
  copyFileSync(join(distDirectory, 'taskprolog'), `${root}/taskprolog`);
  writeConfig(etc, root);
  mkdirSync(`${root}/data`, { mode: 0o755 });
  return {
    slurmConf: {
      Prolog: join(distDirectory, 'prolog'),
      Epilog: join(distDirectory, 'epilog'),
      TaskProlog: `${root}/taskprolog`,
      PrologFlags: 'Alloc',
    },
  };
}

test.before(async (state) => {
  state.cluster = await startCluster(prepare);
});
test.after(async ({ cluster }) => {
  await cluster?.stop();
});

function requireCluster({ cluster }: { cluster?: Cluster }): Cluster {
  if (cluster === undefined) throw new Error('no cluster');
  return cluster;
}

function image(cluster: Cluster, name: string): string {
  return makeImage(`${cluster.root}/${name}.sqsh`, treeOfFiles(50, name));
}

const namesIn = (path: string): string[] => (existsSync(path) ? readdirSync(path) : []);

/** What must hold when no job is left: no process, lease, job file, partial directory or drained node. */
async function assertClean(cluster: Cluster): Promise<void> {
  await cluster.waitForNodeIdle();
  const node = await cluster.nodeState();
  assert.is(node.drained, false, `node drained: ${node.reason}`);
  assert.equal(namesIn(cluster.hostPath('/run/container-cache/leases')), []);
  assert.equal(namesIn(cluster.hostPath('/run/container-cache/jobs')), []);
  assert.equal(
    (await cluster.leftovers()).map(({ command }) => command).filter((command) => !command.includes(' gc ')),
    [],
  );
  const partials = namesIn(`${cluster.root}/data`)
    .filter((name) => /^\d+$/.test(name))
    .flatMap((uid) => namesIn(`${cluster.root}/data/${uid}`))
    .filter((name) => name.endsWith('.partial'));
  assert.equal(partials, []);
}

/** The results our Prologs logged for an image, in order. */
async function prologResults(cluster: Cluster, path: string): Promise<string[]> {
  return (await cluster.syslog())
    .filter((line) => line.includes(': prolog ') && line.includes(`image=${path} `))
    .map((line) => / result=(\S+)/.exec(line)?.[1] ?? line);
}

const srun = ['srun', '--ntasks=1'];

async function runJob(cluster: Cluster, user: string, path: string): Promise<void> {
  const { exitCode, stderr } = await cluster.run(user, [...srun, `--container-image=${path}`, 'true']);
  assert.is(exitCode, 0, stderr);
}

const uidOf = (cluster: Cluster, name: string): number =>
  cluster.users.find((user) => user.name === name)?.uid ?? 0;

/**
 * Lets usera's next Prolog with this image wait: its entry is made, so that its name is known, and removed,
 * and its create lock is held.
 *
 * @returns what resolves when the lock is free again; not the promise itself, which awaiting this would await
 */
async function blockCreation(
  cluster: Cluster,
  path: string,
  seconds: number,
): Promise<{ readonly released: Promise<unknown> }> {
  const directory = `${cluster.root}/data/${uidOf(cluster, 'usera')}`;
  const before = new Set(entryNamesIn(directory));
  await runJob(cluster, 'usera', path);
  const entry = entryNamesIn(directory).find((name) => !before.has(name));
  assert.ok(entry);
  rmSync(`${directory}/${directoryName(entry)}`, { recursive: true });
  const hold = ['sh', '-c', 'echo locked; sleep "$1"', 'sh', String(seconds)];
  const blocker = cluster.start('usera', ['flock', `${directory}/.${entry}.create.lock`, ...hold]);
  while (!blocker.output().stdout.includes('locked')) await new Promise((resolve) => setTimeout(resolve, 20));
  return { released: blocker.result };
}

test('the first job creates the entry and the second reuses it, and both see it in their environment', async (state) => {
  const cluster = requireCluster(state);
  const path = image(cluster, 'twice');
  const uid = uidOf(cluster, 'usera');
  for (const result of ['created', 'reused']) {
    const { stdout, stderr, exitCode } = await cluster.run('usera', [
      ...srun,
      `--container-image=${path}`,
      'sh',
      '-c',
      taskReport,
    ]);
    assert.is(exitCode, 0, stderr);
    assert.is(stdout, `data=${cluster.root}/data/${uid} writable=n\n`);
    await cluster.waitForNodeIdle();
    assert.is((await prologResults(cluster, path)).at(-1), result);
  }
  const directory = `${cluster.root}/data/${uid}`;
  const [entry = ''] = entryNamesIn(directory);
  assert.is(readdirSync(`${directory}/${directoryName(entry)}/d0`).length, 50);
  await assertClean(cluster);
});

test('another user gets an entry of their own', async (state) => {
  const cluster = requireCluster(state);
  const path = image(cluster, 'shared');
  for (const user of ['usera', 'userb']) await runJob(cluster, user, path);
  await assertClean(cluster);
  assert.equal(await prologResults(cluster, path), ['created', 'created']);
});

test('an image that only a supplementary group may read is cached for its member and bypassed for others', async (state) => {
  const cluster = requireCluster(state);
  const path = image(cluster, 'grouped');
  await cluster.exec(['chown', 'root:imagereaders', path]);
  await cluster.exec(['chmod', '0640', path]);
  for (const user of ['usera', 'userb']) await runJob(cluster, user, path);
  await assertClean(cluster);
  assert.equal(await prologResults(cluster, path), ['created', 'bypassed']);
});

test('a relative image path starts at the working directory of the job', async (state) => {
  const cluster = requireCluster(state);
  image(cluster, 'relative');
  const options = { workingDirectory: cluster.root };
  const { exitCode, stderr } = await cluster.run(
    'usera',
    [...srun, '--container-image=./relative.sqsh', 'true'],
    options,
  );
  assert.is(exitCode, 0, stderr);
  await assertClean(cluster);
  assert.equal(await prologResults(cluster, './relative.sqsh'), ['created']);
});

test('sbatch with #SBATCH --container-image is served, and its lease lives as long as the job', async (state) => {
  const cluster = requireCluster(state);
  const path = image(cluster, 'batch');
  const script = `#!/bin/sh\n#SBATCH --container-image=${path}\n${taskReport}\nsleep 60\n`;
  const jobId = await cluster.sbatch('usera', [], script);
  await cluster.waitForSyslog(new RegExp(`prolog job=${jobId} .*result=created`));
  assert.equal(namesIn(cluster.hostPath('/run/container-cache/leases')), [jobId]);
  const holders = (await cluster.leftovers()).filter(
    ({ command }) => command === `container-cache-lease ${jobId} infinity`,
  );
  assert.is(holders.length, 1);
  await cluster.run('usera', ['scancel', jobId]);
  await cluster.waitForJob(jobId, 30_000);
  await assertClean(cluster);
  assert.equal(await prologResults(cluster, path), ['created']);
});

test('salloc with an image is served', async (state) => {
  const cluster = requireCluster(state);
  const path = image(cluster, 'alloc');
  const { exitCode, stderr } = await cluster.run('usera', [
    'salloc',
    '--ntasks=1',
    `--container-image=${path}`,
    'true',
  ]);
  assert.is(exitCode, 0, stderr);
  await assertClean(cluster);
  assert.equal(await prologResults(cluster, path), ['created']);
});

test('of a job array that starts at once exactly one task unpacks', async (state) => {
  const cluster = requireCluster(state);
  const path = image(cluster, 'array');
  const jobId = await cluster.sbatch(
    'usera',
    ['--array=1-6', `--container-image=${path}`],
    '#!/bin/sh\ntrue\n',
  );
  const { state: end } = await cluster.waitForJob(jobId, 60_000);
  assert.is(end, 'COMPLETED');
  await assertClean(cluster);
  const results = await prologResults(cluster, path);
  assert.is(results.length, 6);
  assert.is(results.filter((result) => result === 'created').length, 1);
  assert.is(results.filter((result) => ['created', 'waited', 'reused'].includes(result)).length, 6);
});

test('a requeued job gets a lease again, and only one', async (state) => {
  const cluster = requireCluster(state);
  const path = image(cluster, 'requeue');
  const jobId = await cluster.sbatch(
    'usera',
    ['--requeue', `--container-image=${path}`],
    '#!/bin/sh\nsleep 60\n',
  );
  await cluster.waitForSyslog(new RegExp(`prolog job=${jobId} .*result=created`));
  await cluster.waitForJobState(jobId, ['RUNNING']);
  await cluster.requeue(jobId);
  await cluster.waitForSyslog(new RegExp(`prolog job=${jobId} .*result=reused`), 60_000);
  await cluster.waitForJobState(jobId, ['RUNNING']);
  const holders = (await cluster.leftovers()).filter(({ command }) =>
    command.startsWith('container-cache-lease'),
  );
  assert.is(holders.length, 1);
  await cluster.run('usera', ['scancel', jobId]);
  await cluster.waitForJob(jobId, 30_000);
  await assertClean(cluster);
});

test('a Prolog that waits longer than BatchStartTimeout does not lose its job', async (state) => {
  const cluster = requireCluster(state);
  const path = image(cluster, 'slow');
  // Shorter than slurm.conf.snippet has it; nothing else may run into it on a busy machine.
  const shortSeconds = 3;
  const setStartTimeout = async (seconds: number): Promise<void> => {
    const file = `${cluster.etc}/slurm/slurm.conf`;
    const text = readFileSync(file, 'utf8');
    writeFileSync(file, text.replace(/^BatchStartTimeout=.*$/m, `BatchStartTimeout=${seconds}`));
    await cluster.exec(['scontrol', 'reconfigure']);
    const shown = await cluster.exec(['scontrol', 'show', 'config']);
    assert.match(shown, new RegExp(`^BatchStartTimeout +=\\s*${seconds} sec$`, 'm'));
  };
  await setStartTimeout(shortSeconds);
  const blocker = await blockCreation(cluster, path, 2 * shortSeconds);
  const jobId = await cluster.sbatch('usera', [`--container-image=${path}`], '#!/bin/sh\ntrue\n');
  const { state: end, exitCode } = await cluster.waitForJob(jobId, 60_000);
  await blocker.released;
  assert.equal([end, exitCode], ['COMPLETED', 0]);
  await setStartTimeout(600);
  await assertClean(cluster);
  assert.equal(await prologResults(cluster, path), ['created', 'created']);
});

test('a job cancelled while its Prolog waits leaves nothing behind', async (state) => {
  const cluster = requireCluster(state);
  const path = image(cluster, 'cancelled');
  const blocker = await blockCreation(cluster, path, 4);
  const jobId = await cluster.sbatch('usera', [`--container-image=${path}`], '#!/bin/sh\nsleep 60\n');
  await cluster.waitForJobState(jobId, ['CONFIGURING', 'RUNNING']);
  await cluster.run('usera', ['scancel', jobId]);
  const { state: end } = await cluster.waitForJob(jobId, 60_000);
  await blocker.released;
  assert.is(end, 'CANCELLED');
  await assertClean(cluster);
});

test('a job without an image runs and has nothing of ours', async (state) => {
  const cluster = requireCluster(state);
  const { stdout, exitCode } = await cluster.run('usera', [...srun, 'sh', '-c', taskReport]);
  assert.equal([stdout, exitCode], ['data= writable=\n', 0]);
  await assertClean(cluster);
});

test('options we do not serve, and images that cannot be used, do not touch the job', async (state) => {
  const cluster = requireCluster(state);
  const path = image(cluster, 'bypass');
  writeFileSync(`${cluster.root}/text.sqsh`, 'not a squashfs file', { mode: 0o644 });
  const cases = [
    [`--container-image=${path}`, '--container-name=mine'],
    [`--container-image=${path}`, `--container-save=${cluster.root}/saved.sqsh`],
    [`--container-image=${cluster.root}/text.sqsh`],
    ['--container-image=dockerd://x'],
    ['--container-image=/no/such/file'],
  ];
  for (const options of cases) {
    const { exitCode, stderr } = await cluster.run('usera', [...srun, ...options, 'true']);
    assert.is(exitCode, 0, stderr);
  }
  await assertClean(cluster);
  // --container-save is served (DESIGN.md, decision 9).
  assert.equal(await prologResults(cluster, path), ['bypassed', 'created']);
  assert.equal(await prologResults(cluster, '/no/such/file'), ['bypassed']);
});

test('with a broken configuration jobs run and the line says where; with on_failure=fail the node is drained', async (state) => {
  const cluster = requireCluster(state);
  const path = image(cluster, 'config');
  try {
    writeConfig(cluster.etc, cluster.root, 'gc_min_age=soon\n');
    const { exitCode } = await cluster.run('usera', [...srun, `--container-image=${path}`, 'true']);
    assert.is(exitCode, 0);
    await cluster.waitForSyslog(
      /result=failed code=BAD_CONFIG.*container-cache\.conf:2: gc_min_age: found \\"soon\\"/,
    );
    await assertClean(cluster);

    writeConfig(cluster.etc, cluster.root, 'gc_min_age=soon\non_failure=fail\n');
    const jobId = await cluster.sbatch('usera', [`--container-image=${path}`], '#!/bin/sh\ntrue\n');
    while (!(await cluster.nodeState()).drained) await new Promise((resolve) => setTimeout(resolve, 100));
    await cluster.run('usera', ['scancel', jobId]);
    // Its Epilog drains the node once more: not after we have resumed it.
    await cluster.waitForJob(jobId, 30_000);
  } finally {
    writeConfig(cluster.etc, cluster.root);
    await cluster.resumeNode();
  }
  await assertClean(cluster);
});

test('a restart of slurmd does not end the lease of a running job', async (state) => {
  const cluster = requireCluster(state);
  const path = image(cluster, 'restart');
  const running = cluster.start('usera', [...srun, `--container-image=${path}`, 'sleep', '60']);
  await cluster.waitForSyslog(new RegExp(`image=${path} result=created`));
  const [jobId = ''] = namesIn(cluster.hostPath('/run/container-cache/leases'));
  await cluster.restartSlurmd();
  const holders = (await cluster.leftovers()).filter(({ command }) =>
    command.startsWith('container-cache-lease'),
  );
  assert.is(holders.length, 1);
  await cluster.run('usera', ['scancel', jobId]);
  await running.result;
  await assertClean(cluster);
});

test.run();
