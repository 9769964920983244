/**
 * The measurements of containers, on two real Slurms alike but for the cache. pyxis and enroot are those of
 * the machine where the environment names them (test/slurm/containers.ts), else our stand-ins; the report
 * says which.
 *
 * Times are taken inside: a start from before srun until its end, a reading by the container itself.
 */
import { rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { describeError } from '../lib/core/faults.ts';
import { directoryName } from '../lib/core/layout.ts';
import type { Defer } from '../test/helpers/clean-up.ts';
import { describeImage, type imageMaker } from '../test/helpers/sample-image.ts';
import { slurmAvailable } from '../test/slurm/cluster.ts';
import {
  entryNamesIn,
  probeTree,
  programsUnderTest,
  startContainerCluster,
  USER,
  type ContainerCluster,
  type ContainerClusterOptions,
} from '../test/slurm/containers.ts';
import { programsTree, standInUnavailable } from '../test/slurm/enroot/stand-in.ts';
import { busyLoops, startBusyLoops } from './busy-loops.ts';
import { srun, timed, timeInside, type Pair } from './container-pair.ts';
import { measureRegistryImages } from './registry-images.ts';
import type { Finding, Measured } from './report.ts';
import { compare, Samples } from './samples.ts';
import { interleave } from '../test/helpers/statistics.ts';

interface ContainerPlan {
  /** Which measurements to make. */
  readonly ids: readonly string[];
  readonly directory: string;
  readonly makeImage: ReturnType<typeof imageMaker>;
  readonly say: (text: string) => void;
}

interface ContainersMeasured extends Measured {
  /** What started the containers, and of what image; undefined if nothing was measured. */
  readonly programs: string | undefined;
}

export const containerMeasurements = [
  {
    id: 'f',
    title: 'container starts from an entry, against unpacking and against srun true',
    measure: measureStarts,
  },
  { id: 'g', title: 'reading an image through', measure: measureReading },
  { id: 'h', title: 'many starts at once from one entry', measure: measureCrowd },
  { id: 'i', title: 'what PrologFlags=Alloc costs and gives', measure: measureAllocation },
  { id: 'j', title: 'the first job with an image of a registry', measure: measureRegistryImages },
] as const;

const imageFileCount = 20_000;
/** Half of the files are smaller: a mean of 50 KB, 1 GB in all. */
const imageMedianBytes = 8500;
const crowdSize = 40;
/**
 * A crowd on a few processors takes longer than the 10 s that Slurm waits for an answer, with us and without.
 */
const slurmConf = { MessageTimeout: '100' };

export async function measureContainerStarts(plan: ContainerPlan, defer: Defer): Promise<ContainersMeasured> {
  const wanted = containerMeasurements.filter(({ id }) => plan.ids.includes(id));
  if (wanted.length === 0) return { programs: undefined, findings: [], failures: [] };
  const programs = programsUnderTest();
  const isReal = programs.installEnroot === undefined;
  const obstacle = slurmAvailable() ?? (isReal ? undefined : standInUnavailable());
  if (obstacle !== undefined) {
    const failures = wanted.map(({ id }) => ({ id, reason: obstacle }));
    return { programs: undefined, findings: [], failures };
  }
  plan.say(`making an image of ${imageFileCount.toLocaleString('en')} files that runs as a container`);
  const image = await plan.makeImage({
    path: join(plan.directory, 'container.sqsh'),
    seed: 3,
    fileCount: imageFileCount,
    medianBytes: imageMedianBytes,
    programs: { ...probeTree('bench'), ...programsTree(['date', 'tar', 'true']) },
  });
  const tiny = await plan.makeImage({
    path: join(plan.directory, 'tiny-container.sqsh'),
    seed: 5,
    fileCount: 20,
    programs: { ...probeTree('tiny'), ...programsTree(['true']) },
  });
  plan.say('starting two Slurms that run containers, with the cache and without');
  const start = async (options: Omit<ContainerClusterOptions, 'programs'>): Promise<ContainerCluster> => {
    const starting = startContainerCluster({
      programs,
      ...options,
      cpus: crowdSize,
      slurmConf: { ...slurmConf, ...options.slurmConf },
    });
    // At once: a signal may come while it starts.
    defer(async () => {
      await (await starting.catch(() => undefined))?.cluster.stop();
    });
    return starting;
  };
  const cached = await start({ isCached: true });
  const stock = await start({ isCached: false });
  const startUnallocated = (): Promise<ContainerCluster> =>
    start({ isCached: true, slurmConf: { PrologFlags: '' } });
  const pair: Pair = {
    cached,
    stock,
    startUnallocated,
    imagePath: image.path,
    tinyImagePath: tiny.path,
    directory: plan.directory,
  };
  const findings: Finding[] = [];
  const failures: { id: string; reason: string }[] = [];
  for (const { id, title, measure } of wanted) {
    plan.say(`(${id}) ${title}`);
    try {
      findings.push(...(await measure(pair)));
    } catch (error) {
      failures.push({ id, reason: describeError(error) });
    }
  }
  return { programs: `${await nameOf(pair, isReal)}; ${describeImage(image)}`, findings, failures };
}

async function nameOf({ stock }: Pair, isReal: boolean): Promise<string> {
  if (!isReal) return 'stand-ins of ours in the place of pyxis and enroot';
  const pyxis = /pyxis: version (\S+)/.exec(await stock.cluster.slurmdLog())?.[1] ?? 'of an unknown version';
  return `pyxis ${pyxis}, enroot ${(await stock.enroot('version')).trim()}`;
}

/** What the starts are called in the report; the picture finds them by these names. */
export const startFigures = {
  warm: 'srun in a container, from an entry',
  cold: 'srun in a container, without us',
  named: 'srun in a named container, without us',
  empty: 'srun true, without us',
} as const;

const startGoal = 2;
const startRounds = 12;
const coldRounds = 3;

async function measureStarts({ cached, stock, imagePath }: Pair): Promise<Finding[]> {
  const samples = new Samples<'warm' | 'cold' | 'empty' | 'named'>();
  const run = {
    warm: () => timeInside(cached, timed(srun(imagePath, 'true'))),
    cold: () => timeInside(stock, timed(srun(imagePath, 'true'))),
    empty: () => timeInside(stock, timed('srun true')),
    named: () => timeInside(stock, timed('srun --container-name=bench true')),
  };
  // The first ones unpack.
  await run.warm();
  await timeInside(stock, timed(srun(imagePath, '--container-name=bench true')));
  await run.empty();
  await proveRoot(cached, imagePath);
  for (const kind of interleave(['warm', 'named', 'empty'] as const, startRounds))
    samples.add(kind, await run[kind]());
  for (const kind of interleave(['warm', 'cold'] as const, coldRounds)) samples.add(kind, await run[kind]());
  const warm = samples.figure('warm', startFigures.warm);
  const empty = samples.figure('empty', startFigures.empty);
  const named = samples.figure('named', startFigures.named);
  return [
    compare('f', warm, empty, { goal: startGoal }),
    compare('f', warm, named, {
      note: 'a container that is unpacked and has a name is the least that a start by this enroot can take',
    }),
    compare('f', named, empty),
    compare('f', samples.figure('cold', startFigures.cold), warm, {
      note: 'the last line: how many times longer the same srun takes where each job unpacks',
    }),
  ];
}

/** @throws {Error} unless a container's root filesystem is an entry */
async function proveRoot({ cluster }: ContainerCluster, imagePath: string): Promise<void> {
  const { stdout } = await cluster.run(USER, [
    'srun',
    `--container-image=${imagePath}`,
    ...['grep', '-E', '^([^ ]+ ){4}/ ', '/proc/self/mountinfo'],
  ]);
  if (!/ overlay .*lowerdir=\S*\/\.pyxis_cache_/.test(stdout))
    throw new Error(`The container does not start from an entry: its root is ${stdout}`);
  await cluster.waitForNodeIdle();
}

const readGoal = 1.5;
const readRounds = 5;
const squashfuseRounds = 2;
/** tar(1) reads nothing where its output is /dev/null. */
const readThrough = (path: string): string =>
  `tar --create --file=- --one-file-system --directory=${path} . | cat >/dev/null`;

async function measureReading(pair: Pair): Promise<Finding[]> {
  const { cached, stock, imagePath } = pair;
  const samples = new Samples<'overlay' | 'direct' | 'squashfuse'>();
  const inside = `sh -c 's=$(date +%s%N); ${readThrough('/')} && e=$(date +%s%N) && echo $(((e - s) / 1000))'`;
  await timeInside(cached, timed(srun(imagePath, 'true')));
  const entry = entryNamesIn(cached.userPath)[0];
  if (entry === undefined) throw new Error(`There is no entry in ${cached.userPath}`);
  const run = {
    overlay: () => timeInside(cached, srun(imagePath, inside)),
    direct: () => timeInside(cached, timed(readThrough(join(cached.userPath, directoryName(entry))))),
    squashfuse: () => timeInside(stock, srun(imagePath, inside)),
  };
  await run.direct();
  await run.overlay();
  for (const kind of interleave(['overlay', 'direct'] as const, readRounds))
    samples.add(kind, await run[kind]());
  const overlay = samples.figure('overlay', 'reading all in a container, overlay on the entry');
  const findings = [
    compare('g', overlay, samples.figure('direct', 'reading the entry itself'), {
      goal: readGoal,
      note: 'tar(1) of all files into a pipe, page cache warm',
    }),
  ];
  if (statSync('/dev/fuse', { throwIfNoEntry: false }) === undefined) return findings;
  await stock.setPyxisArguments(['use_squashfuse=1']);
  try {
    for (let round = 0; round < squashfuseRounds; round++) samples.add('squashfuse', await run.squashfuse());
  } finally {
    await stock.setPyxisArguments([]);
  }
  return [
    ...findings,
    compare('g', samples.figure('squashfuse', 'the same, use_squashfuse=1 without us'), overlay),
  ];
}

const crowdGoal = 5;
const crowdRounds = 2;

async function measureCrowd({ cached, stock, imagePath, tinyImagePath }: Pair): Promise<Finding[]> {
  const samples = new Samples<'crowd' | 'empty' | 'named'>();
  const atOnce = (command: string): string =>
    timed(
      `jobs=(); for ((i = 0; i < ${crowdSize}; i++)); do ${command} & jobs+=($!); done; for job in "\${jobs[@]}"; do wait "$job"; done`,
    );
  const run = {
    crowd: () => timeInside(cached, atOnce(srun(imagePath, 'true'))),
    empty: () => timeInside(stock, atOnce('srun true')),
    // One container cannot start twice at once: enroot waits for its lock, and gives up.
    named: () => timeInside(stock, atOnce('srun --container-name=crowd$i true')),
  };
  await timeInside(cached, timed(srun(imagePath, 'true')));
  await timeInside(stock, atOnce(srun(tinyImagePath, '--container-name=crowd$i true')));
  for (const kind of interleave(['crowd', 'named', 'empty'] as const, crowdRounds))
    samples.add(kind, await run[kind]());
  const crowd = samples.figure('crowd', `${crowdSize} jobs in containers at once, one entry`);
  return [
    compare('h', crowd, samples.figure('empty', `${crowdSize} srun true at once, without us`), {
      goal: crowdGoal,
      note: 'all of them succeeded; that no start waits for the lock of another is a test',
    }),
    compare(
      'h',
      crowd,
      samples.figure('named', `${crowdSize} named containers at once, each its own, without us`),
      { note: 'containers that are unpacked are the least that this many starts by this enroot can take' },
    ),
  ];
}

const allocationRounds = 7;
const coldAllocationRounds = 2;

/**
 * `srun` in a container with PrologFlags=Alloc and without, from an entry and to an unpack, on an idle node
 * and on a busy one.
 */
async function measureAllocation({ cached, startUnallocated, imagePath }: Pair): Promise<Finding[]> {
  const clusters = { with: cached, without: await startUnallocated() };
  const kinds = ['with', 'without'] as const;
  const version = cached.cluster.slurmVersion.join('.');
  const start = (kind: (typeof kinds)[number]): Promise<number> =>
    timeInside(clusters[kind], timed(srun(imagePath, 'true')));
  const startCold = (kind: (typeof kinds)[number]): Promise<number> => {
    const { userPath } = clusters[kind];
    for (const entry of entryNamesIn(userPath))
      rmSync(join(userPath, directoryName(entry)), { recursive: true });
    return start(kind);
  };
  const measure = async (how: string): Promise<Finding[]> => {
    const samples = new Samples<`${(typeof kinds)[number]} ${'warm' | 'cold'}`>();
    for (const kind of kinds) await start(kind);
    for (const kind of interleave(kinds, allocationRounds)) samples.add(`${kind} warm`, await start(kind));
    for (const kind of interleave(kinds, coldAllocationRounds))
      samples.add(`${kind} cold`, await startCold(kind));
    return (['warm', 'cold'] as const).map((what) =>
      compare(
        'i',
        samples.figure(`with ${what}`, `${what} srun in a container, ${how}, Alloc`),
        samples.figure(`without ${what}`, 'the same without Alloc'),
        { note: `Slurm ${version}` },
      ),
    );
  };
  const idle = await measure('idle node');
  using _ = startBusyLoops(busyLoops);
  return [...idle, ...(await measure(`${busyLoops} busy loops`))];
}
