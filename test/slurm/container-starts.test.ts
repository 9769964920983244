/**
 * Container starts from the cache when something gets in their way, on a real Slurm with our own pyxis and
 * enroot.
 */
// test: timeout 1200 s

import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createLockName, directoryName, eventsPath } from '../../lib/core/layout.ts';
import { taskPrologNeedsLibraries } from '../../lib/core/slurm-conf.ts';
import {
  credentials,
  startDockerRegistry,
  unlessDockerRegistry,
  type DockerRegistry,
} from '../helpers/docker-registry.ts';
import { assert, suite } from '../helpers/suite.ts';
import { slurmAvailable, type JobResult } from './cluster.ts';
import {
  changesOf,
  entryNamesIn,
  INSTALLED_PYXIS_VARIABLE,
  listEntries,
  makeProbeImage,
  namesIn,
  PROBE_CONFIGURATION,
  probeTree,
  remainsOf,
  programsUnderTest,
  startContainerCluster,
  USER,
  type ContainerCluster,
} from './containers.ts';
import {
  FOR_ALL_CONTAINERS,
  FOR_IMAGE_FILES,
  FOR_REGISTRIES,
  standInUnavailable,
} from './enroot/stand-in.ts';
import { slurmVersion } from './machine.ts';

const skip = slurmAvailable() ?? standInUnavailable(FOR_ALL_CONTAINERS);

/**
 * Slurms whose slurmstepd lacks its own libraries in a container cannot run one there (slurm.conf.snippet).
 */
function unlessTaskPrologInContainers(): string | undefined {
  const version = slurmVersion();
  return taskPrologNeedsLibraries(version)
    ? `needs a Slurm that runs a TaskProlog inside containers; this is ${version.join('.')}`
    : undefined;
}

const WAIT_LIMIT_MS = 90_000;
const RUNTIME_PATH = '/run/container-cache';

interface State {
  containers?: ContainerCluster;
}

function requireContainers({ containers }: State): ContainerCluster {
  if (containers === undefined) throw new Error('no cluster');
  return containers;
}

async function until(isTrue: () => boolean | Promise<boolean>, wanted: string): Promise<void> {
  const deadlineMs = Date.now() + WAIT_LIMIT_MS;
  while (!(await isTrue())) {
    if (Date.now() > deadlineMs) throw new Error(`Waited ${WAIT_LIMIT_MS} ms for ${wanted}`);
    await new Promise((resolve) => setTimeout(resolve, 60));
  }
}

function image({ cluster }: ContainerCluster, name: string): string {
  return makeProbeImage(join(cluster.root, `${name}.sqsh`), name);
}

/** Prints what the image is and what its root filesystem is made of: `<content of /etc/image> overlay`. */
const TELL =
  `sh -c 'read -r image </etc/image; while read -r _ _ _ _ target _ rest; do ` +
  `[ "$target" != / ] || type=\${rest#*- }; done </proc/self/mountinfo; echo "$image \${type%% *}"'`;

function submit({ cluster, outputPath }: ContainerCluster, body: string, parameters: readonly string[] = []) {
  const files = [`--output=${outputPath}/%j.out`, `--error=${outputPath}/%j.err`];
  return cluster.sbatch(USER, [...files, ...parameters], `#!/bin/sh\n${body}\n`);
}

/** Waits for the job, which must succeed, and returns what it printed. */
async function outputOf({ cluster, outputPath }: ContainerCluster, jobId: string): Promise<string> {
  const { state, stdout } = await cluster.waitForJob(jobId);
  assert.is(state, 'COMPLETED', `${stdout}${readFileSync(`${outputPath}/${jobId}.err`, 'utf8')}`);
  return stdout;
}

const runJob = async (containers: ContainerCluster, body: string, parameters?: readonly string[]) =>
  outputOf(containers, await submit(containers, body, parameters));

async function assertClean(containers: ContainerCluster): Promise<void> {
  assert.equal(await remainsOf(containers), []);
}

/** How often an image was unpacked, by Prologs and by steps. */
async function unpacks({ cluster }: ContainerCluster, path: string): Promise<number> {
  const lines = await cluster.syslog();
  return lines.filter((line) => line.includes(`image=${path} `) && line.includes(' result=created')).length;
}

/** How many containers are counted as started from an entry that was there. */
function hits({ statePath }: ContainerCluster): number {
  const days = readdirSync(eventsPath(statePath)).map((day) => `${eventsPath(statePath)}/${day}`);
  return days.flatMap((day) => readFileSync(day, 'utf8').match(/"result":"reused"/g) ?? []).length;
}

function readIfThere(file: string): string {
  return existsSync(file) ? readFileSync(file, 'utf8') : '';
}

const entriesOf = ({ userPath }: ContainerCluster): string[] => entryNamesIn(userPath);

/**
 * Lets who unpacks this image next wait until release(): its entry is made, so that its name is known, and
 * removed, and its create lock is held.
 */
async function blockCreation(
  containers: ContainerCluster,
  path: string,
): Promise<{ release: () => Promise<void>; waitForWaiting: (count: number) => Promise<void> }> {
  const { cluster, userPath } = containers;
  const before = entriesOf(containers);
  await runJob(containers, `srun --container-image=${path} ${TELL}`);
  await cluster.waitForNodeIdle();
  const entry = entriesOf(containers).find((name) => !before.includes(name));
  assert.ok(entry);
  rmSync(join(userPath, directoryName(entry)), { recursive: true });
  const lock = join(userPath, createLockName(entry));
  const blocker = cluster.start(USER, ['flock', lock, 'sh', '-c', 'echo locked; exec sleep 60']);
  await until(() => blocker.output().stdout.includes('locked'), `the lock ${lock}`);
  return {
    release: async () => {
      blocker.kill('SIGKILL');
      await blocker.result;
    },
    waitForWaiting: (count) =>
      until(async () => {
        const commands = (await cluster.leftovers()).map(({ command }) => command);
        return commands.filter((command) => / acquire \//.test(command)).length === count;
      }, `${count} steps that wait for the entry`),
  };
}

/** Writes container-cache.conf anew; undoing it is up to the caller. */
function configure({ cluster, basePath, statePath }: ContainerCluster, ...lines: readonly string[]): void {
  const text = [`container_cache_data_path=${basePath}`, `state_dir=${statePath}`, ...lines].join('\n');
  writeFileSync(join(cluster.etc, 'slurm/container-cache.conf'), `${text}\n`);
}

const starts = suite<State>('a container start from the cache', { skip, state: {} });

starts.before(async (state) => {
  state.containers = await startContainerCluster({ programs: programsUnderTest(), isCached: true });
});
starts.after(async ({ containers }) => {
  await containers?.[Symbol.asyncDispose]();
});

starts('two steps of one job at once make one unpack', async (state) => {
  const containers = requireContainers(state);
  const path = image(containers, 'two-steps');
  const creation = await blockCreation(containers, path);
  const before = await unpacks(containers, path);
  const step = `srun --ntasks=1 --exact --container-image=${path} ${TELL} &`;
  const jobId = await submit(containers, `${step}\nfirst=$!\n${step}\nwait $first && wait $!`, [
    '--ntasks=2',
  ]);
  await creation.waitForWaiting(2);
  await creation.release();
  assert.is(await outputOf(containers, jobId), 'two-steps overlay\ntwo-steps overlay\n');
  await assertClean(containers);
  assert.is((await unpacks(containers, path)) - before, 1);
});

starts('steps of two jobs at once make one unpack', async (state) => {
  const containers = requireContainers(state);
  const path = image(containers, 'two-jobs');
  const creation = await blockCreation(containers, path);
  const before = await unpacks(containers, path);
  const body = `srun --container-image=${path} ${TELL}`;
  const jobIds = [await submit(containers, body), await submit(containers, body)];
  await creation.waitForWaiting(2);
  await creation.release();
  for (const jobId of jobIds) assert.is(await outputOf(containers, jobId), 'two-jobs overlay\n');
  await assertClean(containers);
  assert.is((await unpacks(containers, path)) - before, 1);
});

starts('the steps of a job may have several images', async (state) => {
  const containers = requireContainers(state);
  const paths = ['first', 'second'].map((name) => image(containers, name));
  const steps = [...paths, ...paths].map((path) => `srun --container-image=${path} ${TELL}`);
  const before = hits(containers);
  const output = await runJob(containers, steps.join('\n'));
  assert.is(output, 'first overlay\nsecond overlay\nfirst overlay\nsecond overlay\n');
  await assertClean(containers);
  assert.is(hits(containers) - before, 2);
});

starts('several tasks share one container', async (state) => {
  const containers = requireContainers(state);
  const path = image(containers, 'tasks');
  const command = `sh -c 'echo >/written-$SLURM_PROCID; until [ -e /written-0 ] && [ -e /written-2 ]; do sleep .05; done; echo met'`;
  const options = `--ntasks=3 --container-writable --container-image=${path}`;
  assert.is(await runJob(containers, `srun ${options} ${command}`, ['--ntasks=3']), 'met\nmet\nmet\n');
  await assertClean(containers);
});

starts("writes of a writable container end with its step, and another step's are its own", async (state) => {
  const containers = requireContainers(state);
  const path = image(containers, 'writes');
  const before = listEntries(containers);
  const options = `--container-writable --container-image=${path}`;
  const step = `srun ${options} sh -c 'ls /; echo >/new; rm /data/doomed; ls /data/doomed'`;
  const output = await runJob(containers, `${step}; ${step}; true`);
  assert.is(output.includes('new'), false);
  assert.is(output.slice(0, output.length / 2), output.slice(output.length / 2));
  await assertClean(containers);
  assert.equal(changesOf(before, listEntries(containers)), []);
});

starts(
  'a container that is being made ready keeps no other from starting from the same entry',
  async (state) => {
    const containers = requireContainers(state);
    const { cluster, outputPath } = containers;
    const path = image(containers, 'locks');
    await runJob(containers, TELL, [`--container-image=${path}`]);
    // A hook of enroot runs under the lock that enroot has for a root filesystem.
    const [waiting, go] = ['waiting', 'go'].map((name) => join(outputPath, name));
    const hook = join(cluster.etc, 'enroot/hooks.d/50-wait.sh');
    const wait = `touch ${waiting ?? ''}\nuntil [ -e ${go ?? ''} ]; do sleep 0.05; done`;
    writeFileSync(hook, `#!/bin/sh\n[ "$SLURM_JOB_NAME" = waits ] || exit 0\n${wait}\n`, { mode: 0o755 });
    try {
      const waits = await submit(containers, TELL, [`--container-image=${path}`, '--job-name=waits']);
      await until(() => existsSync(waiting ?? ''), 'the start of the first container');
      assert.is(await runJob(containers, TELL, [`--container-image=${path}`]), 'locks overlay\n');
      writeFileSync(go ?? '', '');
      assert.is(await outputOf(containers, waits), 'locks overlay\n');
    } finally {
      rmSync(hook);
      for (const name of namesIn(outputPath)) rmSync(join(outputPath, name));
    }
    await assertClean(containers);
  },
);

starts("what an earlier run of the job left behind is in nobody's way", async (state) => {
  const containers = requireContainers(state);
  const path = image(containers, 'leftovers');
  const { userPath, enrootDataPath } = containers;
  const leave = [`${userPath}/.pyxis_$SLURM_JOB_ID.0`, `${enrootDataPath}/pyxis_$SLURM_JOB_ID.0`].map(
    (leftover) => `mkdir -p ${leftover}/etc && echo half >${leftover}/etc/image`,
  );
  const output = await runJob(containers, `${leave.join('\n')}\nsrun --container-image=${path} ${TELL}`);
  assert.is(output, 'leftovers overlay\n');
  // What was never the cache's it does not remove, but for what is in the way.
  rmSync(enrootDataPath, { recursive: true });
  await assertClean(containers);
});

starts('a requeued job starts again, whatever its first run left', async (state) => {
  const containers = requireContainers(state);
  const path = image(containers, 'requeue');
  const { cluster, userPath, outputPath } = containers;
  const parameters = ['--requeue', '--open-mode=append', `--container-image=${path}`];
  const jobId = await submit(containers, `${TELL}\nsleep 60`, parameters);
  const output = (): string => readIfThere(`${outputPath}/${jobId}.out`);
  await until(() => output() === 'requeue overlay\n', 'the first run');
  await cluster.exec(['scontrol', 'requeuehold', jobId]);
  await cluster.waitForJobState(jobId, ['PENDING', 'REQUEUE_HOLD', 'SPECIAL_EXIT']);
  await cluster.waitForNodeIdle();
  const leftover = join(userPath, directoryName(`pyxis_${jobId}.4294967291`));
  assert.not(existsSync(leftover));
  mkdirSync(join(leftover, 'etc'), { recursive: true });
  await cluster.exec(['chown', '-R', USER, leftover]);
  // Slurm takes a job that comes back within the same second or the next for the one that it knows.
  await new Promise((resolve) => setTimeout(resolve, 2100));
  await cluster.exec(['scontrol', 'release', jobId]);
  await cluster.exec(['scontrol', 'update', `JobId=${jobId}`, 'StartTime=now']);
  await until(() => output() === 'requeue overlay\nrequeue overlay\n', 'the second run');
  await cluster.run(USER, ['scancel', jobId]);
  await cluster.waitForJob(jobId);
  await assertClean(containers);
});

starts('a job cancelled while its step waits for the entry leaves nothing', async (state) => {
  const containers = requireContainers(state);
  const { cluster } = containers;
  const creation = await blockCreation(containers, image(containers, 'cancelled-early'));
  const path = join(cluster.root, 'cancelled-early.sqsh');
  const jobId = await submit(containers, `srun --container-image=${path} ${TELL}`);
  await creation.waitForWaiting(1);
  await cluster.run(USER, ['scancel', jobId]);
  assert.is((await cluster.waitForJob(jobId)).state, 'CANCELLED');
  await creation.release();
  await assertClean(containers);
});

starts('a job cancelled while its container runs leaves nothing', async (state) => {
  const containers = requireContainers(state);
  const { cluster, outputPath } = containers;
  const path = image(containers, 'cancelled-late');
  const ends: Promise<JobResult>[] = [];
  for (const scope of [[], ['container_scope=job']]) {
    await containers.setPyxisArguments(scope);
    const jobId = await submit(containers, `srun --container-image=${path} sh -c 'echo up; sleep 60'`);
    const file = `${outputPath}/${jobId}.out`;
    await until(() => readIfThere(file) === 'up\n', 'the container');
    await cluster.run(USER, ['scancel', jobId]);
    ends.push(cluster.waitForJob(jobId));
    await ends.at(-1);
  }
  await containers.setPyxisArguments([]);
  assert.equal(
    (await Promise.all(ends)).map((end) => end.state),
    ['CANCELLED', 'CANCELLED'],
  );
  await assertClean(containers);
});

/** A change to the node while a job is there whose Prolog saw it whole; returns how to undo it. */
type Change = (containers: ContainerCluster) => () => void;

function movedAway(path: string): () => void {
  renameSync(path, `${path}.away`);
  return () => renameSync(`${path}.away`, path);
}

const changes: Readonly<Record<string, Change>> = {
  'the runtime directory': ({ cluster }) => movedAway(cluster.hostPath(RUNTIME_PATH)),
  "the node's facts": ({ cluster }) => movedAway(cluster.hostPath(`${RUNTIME_PATH}/node`)),
  'the configuration': ({ cluster }) => movedAway(join(cluster.etc, 'slurm/container-cache.conf')),
  'the line in mounts.d': ({ cluster }) =>
    movedAway(join(cluster.etc, 'enroot/mounts.d/00-container-cache.fstab')),
  "the user's directory": ({ userPath }) => movedAway(userPath),
  'the base': ({ basePath }) => movedAway(basePath),
};

/** The wrapper's own tests have each: here a sample, unless on real programs. */
const sample = ['the runtime directory', 'the base'];
const isSampled =
  process.env[INSTALLED_PYXIS_VARIABLE] === undefined &&
  process.env['CONTAINER_CACHE_TEST_ALL'] === undefined;

for (const [what, change] of Object.entries(changes)) {
  if (isSampled && !sample.includes(what)) continue;
  starts(`without ${what} a step runs as without the cache`, async (state) => {
    const containers = requireContainers(state);
    const path = image(containers, 'degraded');
    const { outputPath, enrootDataPath } = containers;
    const [ready, go, end] = ['ready', 'go', 'end'].map((name) => join(outputPath, name));
    const wait = (flag = ''): string => `until [ -e ${flag} ]; do sleep 0.05; done`;
    const step = `srun --container-image=${path} ${TELL}`;
    const jobId = await submit(
      containers,
      `touch ${ready ?? ''}\n${wait(go)}\n${step}\ntouch ${outputPath}/ran\n${wait(end)}`,
    );
    await until(() => existsSync(ready ?? ''), 'the job');
    const undo = change(containers);
    try {
      writeFileSync(go ?? '', '');
      await until(() => existsSync(`${outputPath}/ran`), 'the step');
    } finally {
      undo();
      writeFileSync(end ?? '', '');
    }
    const output = await outputOf(containers, jobId);
    assert.match(output, /^degraded /);
    assert.is(output.includes('overlay'), false);
    await assertClean(containers);
    assert.equal(namesIn(enrootDataPath), []);
    for (const name of namesIn(outputPath)) rmSync(join(outputPath, name));
  });
}

starts('with isolation=off jobs run as without the cache', async (state) => {
  const containers = requireContainers(state);
  const path = image(containers, 'off');
  configure(containers, 'isolation=off');
  try {
    const step = `srun --container-image=${path} ${TELL}`;
    assert.is((await runJob(containers, step)).includes('overlay'), false);
    const direct = await runJob(containers, TELL, [`--container-image=${path}`]);
    assert.match(direct, /^off /);
    assert.is(direct.includes('overlay'), false);
  } finally {
    configure(containers);
  }
  await assertClean(containers);
});

starts(
  'with isolation=shared containers start on the entry itself, and writable ones are real',
  async (state) => {
    const containers = requireContainers(state);
    const path = image(containers, 'shared');
    configure(containers, 'isolation=shared');
    try {
      await runJob(containers, `srun --container-image=${path} ${TELL}`);
      const before = listEntries(containers);
      const modes = [
        '',
        '--container-remap-root',
        '--container-readonly',
        '--container-entrypoint',
        '--container-mount-home',
      ];
      for (const option of modes) {
        const tell = `sh -c 'read -r image </etc/image; touch /written 2>/dev/null || echo "$image read-only"'`;
        const step = `srun --container-image=${path} ${option} ${tell}`;
        assert.is(await runJob(containers, step), 'shared read-only\n', option);
      }
      assert.equal(
        entriesOf(containers).filter((name) =>
          existsSync(join(containers.userPath, directoryName(name), 'written')),
        ),
        [],
      );
      const leave = `mkdir -p ${containers.enrootDataPath}/pyxis_$SLURM_JOB_ID.0/etc`;
      const write = `srun --container-image=${path} --container-writable sh -c 'echo >/written && ls /written'`;
      assert.is(await runJob(containers, `${leave}\n${write}`), '/written\n');
      assert.equal(changesOf(before, listEntries(containers)), []);
    } finally {
      configure(containers);
    }
    await assertClean(containers);
  },
);

starts(
  'an image that no option names, and one by a relative path, come from the cache as well',
  async (state) => {
    const containers = requireContainers(state);
    const { cluster } = containers;
    const byVariable = { env: { PYXIS_CONTAINER_IMAGE: image(containers, 'variable') } };
    const { stdout, stderr } = await cluster.run(USER, ['sh', '-c', `srun ${TELL}`], byVariable);
    assert.is(stdout, 'variable overlay\n', stderr);
    image(containers, 'relative');
    const output = await runJob(
      containers,
      `cd ${cluster.root}\nsrun --container-image=./relative.sqsh ${TELL}`,
    );
    assert.is(output, 'relative overlay\n');
    await assertClean(containers);
  },
);

starts('an image that is replaced while the job runs is another image to its next step', async (state) => {
  const containers = requireContainers(state);
  const { cluster, outputPath } = containers;
  const path = image(containers, 'replaced');
  const wait = `touch ${outputPath}/ready; until [ -e ${outputPath}/go ]; do sleep 0.05; done`;
  const salloc = ['salloc', '--ntasks=1', `--container-image=${path}`, 'sh', '-c'];
  const running = cluster.start(USER, [...salloc, `srun ${TELL}; ${wait}; srun ${TELL}`]);
  await until(() => existsSync(`${outputPath}/ready`), 'the first step');
  renameSync(makeProbeImage(join(cluster.root, 'replacement.sqsh'), 'replacement'), path);
  writeFileSync(`${outputPath}/go`, '');
  const { stdout, stderr } = await running.result;
  assert.is(stdout, 'replaced overlay\nreplacement overlay\n', stderr);
  await assertClean(containers);
  for (const name of ['ready', 'go']) rmSync(join(outputPath, name));
});

starts.unless(
  standInUnavailable(FOR_IMAGE_FILES),
  'with create_mode=background and use_squashfuse=1 the first job starts from the image, the next from its entry',
  async (state) => {
    const containers = requireContainers(state);
    const { cluster } = containers;
    const path = image(containers, 'background');
    const run = (): Promise<string> => runJob(containers, TELL, [`--container-image=${path}`]);
    const bypasses = async (): Promise<unknown> => {
      const command = join(cluster.root, 'container-cache/container-cache');
      const stats: unknown = JSON.parse(await cluster.exec([command, 'stats', '--json']));
      return (stats as { jobs: { bypasses: unknown } }).jobs.bypasses;
    };
    configure(containers, 'create_mode=background');
    await containers.setPyxisArguments(['use_squashfuse=1']);
    try {
      assert.match(await run(), /^background /);
      assert.equal(await bypasses(), { UNPACKING: 1 });
      await cluster.waitForSyslog(new RegExp(`: warm .*image=${path} result=created`));
      assert.is(await run(), 'background overlay\n');
      await cluster.waitForSyslog(new RegExp(`: prolog .*image=${path} result=reused`));
      assert.equal(await bypasses(), { UNPACKING: 1 });
    } finally {
      await containers.setPyxisArguments([]);
      configure(containers);
    }
    await assertClean(containers);
  },
);

starts('the collector leaves the entry of a running step alone, and takes it afterwards', async (state) => {
  const containers = requireContainers(state);
  const { cluster, outputPath } = containers;
  const path = image(containers, 'collected');
  const command = join(cluster.root, 'container-cache/container-cache');
  const before = entriesOf(containers);
  const jobId = await submit(containers, `srun --container-image=${path} sh -c 'echo up; sleep 60'`);
  await until(() => readIfThere(`${outputPath}/${jobId}.out`) === 'up\n', 'the container');
  const used = entriesOf(containers).filter((name) => !before.includes(name));
  assert.is(used.length, 1);
  configure(containers, 'container_cache_gc_high=1', 'container_cache_gc_low=0', 'gc_min_age=0');
  try {
    // It evicts what it may; the goal is out of its reach.
    await cluster.run('root', [command, 'gc']);
    assert.equal(entriesOf(containers), used);
    await cluster.run(USER, ['scancel', jobId]);
    await cluster.waitForJob(jobId);
    await cluster.waitForNodeIdle();
    await cluster.run('root', [command, 'gc']);
    assert.equal(entriesOf(containers), []);
  } finally {
    configure(containers);
  }
  await assertClean(containers);
});

starts('an image that does not exist, or is none, fails as without the cache', async (state) => {
  const containers = requireContainers(state);
  const { cluster } = containers;
  writeFileSync(join(cluster.root, 'text.sqsh'), 'no image');
  for (const path of ['/no/such.sqsh', join(cluster.root, 'text.sqsh')]) {
    const { exitCode, stderr } = await cluster.run(USER, ['srun', `--container-image=${path}`, 'true']);
    assert.is(exitCode, 1);
    assert.match(stderr, /failed to create container filesystem/);
  }
  await assertClean(containers);
});

starts.run();

interface RegistryState extends State {
  registry?: DockerRegistry;
}

const registries = suite<RegistryState>('a container start from a registry', {
  skip: skip ?? unlessDockerRegistry ?? standInUnavailable(FOR_REGISTRIES),
  state: {},
});

registries.before(async (state) => {
  state.registry = await startDockerRegistry();
  state.containers = await startContainerCluster({ programs: programsUnderTest(), isCached: true });
});
registries.after(async ({ containers, registry }) => {
  await containers?.[Symbol.asyncDispose]();
  await registry?.[Symbol.asyncDispose]();
});

function requireRegistry({ registry }: RegistryState): DockerRegistry {
  if (registry === undefined) throw new Error('no registry');
  return registry;
}

async function push(registry: DockerRegistry, tag: string, version: string): Promise<void> {
  await registry.push('moving', tag, [probeTree(version)], { configuration: PROBE_CONFIGURATION });
}

registries('a tag that has moved is another image, in the next job and in the next step', async (state) => {
  const containers = requireContainers(state);
  const registry = requireRegistry(state);
  const { outputPath } = containers;
  const option = `--container-image="${registry.address}#moving:latest"`;
  await push(registry, 'latest', 'one');
  assert.is(await runJob(containers, TELL, [option.replaceAll('"', '')]), 'one overlay\n');
  const wait = `touch ${outputPath}/ready; until [ -e ${outputPath}/go ]; do sleep 0.05; done`;
  const step = `srun ${option} ${TELL}`;
  const jobId = await submit(containers, `${step}\n${wait}\n${step}`);
  await until(() => existsSync(`${outputPath}/ready`), 'the first step');
  await push(registry, 'latest', 'two');
  writeFileSync(`${outputPath}/go`, '');
  assert.is(await outputOf(containers, jobId), 'one overlay\ntwo overlay\n');
  assert.is(await runJob(containers, TELL, [option.replaceAll('"', '')]), 'two overlay\n');
  await assertClean(containers);
});

registries('with image_freshness=if-not-present the image that is there stays', async (state) => {
  const containers = requireContainers(state);
  const registry = requireRegistry(state);
  configure(containers, 'image_freshness=if-not-present');
  try {
    const option = `--container-image="${registry.address}#moving:kept"`;
    await push(registry, 'kept', 'one');
    assert.is(await runJob(containers, `srun ${option} ${TELL}`), 'one overlay\n');
    await push(registry, 'kept', 'two');
    assert.is(await runJob(containers, `srun ${option} ${TELL}`), 'one overlay\n');
    assert.is(await runJob(containers, TELL, [option.replaceAll('"', '')]), 'one overlay\n');
  } finally {
    configure(containers);
  }
  await assertClean(containers);
});

registries(
  'a registry that is down does not stop an image that is there, and the log says so',
  async (state) => {
    const containers = requireContainers(state);
    const registry = requireRegistry(state);
    const { cluster } = containers;
    const option = `--container-image="${registry.address}#moving:down"`;
    await push(registry, 'down', 'up');
    assert.is(await runJob(containers, `srun ${option} ${TELL}`), 'up overlay\n');
    await registry.stop();
    try {
      assert.is(await runJob(containers, `srun ${option} ${TELL}`), 'up overlay\n');
      assert.is(await runJob(containers, TELL, [option.replaceAll('"', '')]), 'up overlay\n');
      await cluster.waitForSyslog(/: acquire .*result=reused .*reason="cannot reach registry .*seen last/);
      await cluster.waitForSyslog(
        /: prolog .*code=REGISTRY_SILENT reason="cannot reach registry .*the step asks/,
      );
      const unknown = `--container-image=${registry.address}#moving:never-seen`;
      const { exitCode } = await cluster.run(USER, ['srun', unknown, 'true']);
      assert.is(exitCode, 1);
    } finally {
      await registry.start();
    }
    await assertClean(containers);
  },
);

registries("a private registry's image is for who has its credentials", async (state) => {
  const containers = requireContainers(state);
  const { cluster } = containers;
  await using registry = await startDockerRegistry({ isProtected: true });
  await registry.push('private', 'v1', [probeTree('private')], { configuration: PROBE_CONFIGURATION });
  const step = ['srun', `--container-image=${registry.address}#private:v1`];
  const tell = ['sh', '-c', `srun --container-image="${registry.address}#private:v1" ${TELL}`];
  const home = join(cluster.homes, USER);
  const write = async (password: string): Promise<void> => {
    mkdirSync(join(home, '.config/enroot'), { recursive: true });
    writeFileSync(
      join(home, '.config/enroot/.credentials'),
      `machine localhost login ${credentials.user} password ${password}\n`,
    );
    await cluster.exec(['chown', '-R', USER, join(home, '.config')]);
  };
  for (const prepare of [async () => Promise.resolve(), () => write('wrong')]) {
    await prepare();
    assert.is((await cluster.run(USER, [...step, 'true'])).exitCode, 1);
    await assertClean(containers);
  }
  await write(credentials.password);
  const { stdout, stderr } = await cluster.run(USER, tell);
  assert.is(stdout, 'private overlay\n', stderr);
  await assertClean(containers);
  assert.is((await cluster.run('userb', [...step, 'true'])).exitCode, 1);
});

registries('with a password that only the job knows, an image that was pushed anew is got', async (state) => {
  const containers = requireContainers(state);
  const { cluster } = containers;
  await using registry = await startDockerRegistry({ isProtected: true });
  const directory = join(cluster.homes, USER, '.config/enroot');
  mkdirSync(directory, { recursive: true });
  const line = `machine localhost login ${credentials.user} password $REG_PW\n`;
  writeFileSync(join(directory, '.credentials'), line);
  await cluster.exec(['chown', '-R', USER, join(directory, '..')]);
  const run = `srun --container-image="${registry.address}#private:v1" ${TELL}`;
  for (const version of ['one', 'two']) {
    await registry.push('private', 'v1', [probeTree(version)], { configuration: PROBE_CONFIGURATION });
    const tell = ['sh', '-c', `REG_PW=${credentials.password} ${run}`];
    const { stdout, stderr } = await cluster.run(USER, tell);
    assert.is(stdout, `${version} overlay\n`, stderr);
  }
  await cluster.waitForSyslog(
    /: prolog .*code=REGISTRY_REFUSED entry=\S+ .*refused user reader .*the step asks|: prolog .*entry=\S+ code=REGISTRY_REFUSED reason="registry \S+ refused user reader .*the step asks/,
  );
  await assertClean(containers);
});

registries.run();

const taskProlog = suite<State>('the TaskProlog', {
  skip: skip ?? unlessTaskPrologInContainers(),
  state: {},
});

taskProlog.before(async (state) => {
  state.containers = await startContainerCluster({
    programs: programsUnderTest(),
    isCached: true,
    withTaskProlog: true,
  });
});
taskProlog.after(async ({ containers }) => {
  await containers?.[Symbol.asyncDispose]();
});

taskProlog('tells tasks inside a container where the entries are', async (state) => {
  const containers = requireContainers(state);
  const { cluster, userPath } = containers;
  const print = ['sh', '-c', 'echo "$ENROOT_DATA_PATH $ENROOT_ROOTFS_WRITABLE"'];
  const container = `--container-image=${image(containers, 'told')}`;
  const { stdout, stderr } = await cluster.run(USER, ['srun', '--ntasks=2', container, ...print]);
  assert.is(stdout, `${userPath} n\n`.repeat(2), stderr);
  await assertClean(containers);
});

taskProlog.run();
