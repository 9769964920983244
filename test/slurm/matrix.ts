/**
 * The matrix of jobs in containers: what an image can be, how pyxis can be set up, what a job can ask of its
 * container and in which ways it can be started. Each combination runs on two clusters, one with the cache
 * and one without, and must look the same from within; the entries must stay what they were, and nothing may
 * remain.
 *
 *   const pair = await startPair({ programs, registryImage });
 *   for (const combination of coveringCombinations()) problems.push(...(await compare(pair, combination, 3)))
 */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as fsp from 'node:fs/promises';
import * as path from 'node:path';

import type { Cluster, JobResult } from './cluster.ts';
import {
  changesOf,
  listEntries,
  makeProbeImage,
  namesIn,
  remainsOf,
  startContainerCluster,
  USER,
  type ContainerCluster,
  type Programs,
} from './containers.ts';

const DIMENSIONS = {
  image: ['path', 'registry'],
  pyxis: [
    ...(['stock', 'use_enroot_load=1', 'use_squashfuse=1', 'container_scope=job'] as const),
    ...(['container_scope=global', 'importer=simple', 'importer=caching'] as const),
    ...(['importer=simple use_squashfuse=1', 'importer=caching use_squashfuse=1'] as const),
  ],
  mode: [
    ...(['plain', 'writable', 'readonly', 'remap-root', 'mounts', 'workdir', 'entrypoint', 'save'] as const),
    ...(['name', 'mount-home'] as const),
  ],
  launch: [
    ...(['srun', 'sbatch', 'srun in sbatch', 'srun in salloc', 'two steps at once', 'array'] as const),
    // A step joins the running container of another one.
    'attach',
  ],
} as const;

type Dimensions = typeof DIMENSIONS;
type Combination = { readonly [Name in keyof Dimensions]: Dimensions[Name][number] };
type Mode = Combination['mode'];

export function describeCombination({ image, pyxis, mode, launch }: Combination): string {
  return `${image}, ${pyxis}, ${mode}, ${launch}`;
}

/** All combinations that there are, those with the same arguments of pyxis one after the other. */
export function allCombinations(): Combination[] {
  const combinations = DIMENSIONS.pyxis.flatMap((pyxis) =>
    DIMENSIONS.image.flatMap((image) =>
      DIMENSIONS.mode.flatMap((mode) => DIMENSIONS.launch.map((launch) => ({ image, pyxis, mode, launch }))),
    ),
  );
  // What squashfuse has mounted has no name to join it by, unless it was given one.
  return combinations.filter(({ launch, ...rest }) => launch !== 'attach' || !needsSquashfuse(rest));
}

/**
 * So few combinations that each kind of image meets every set-up of pyxis and half of the modes, and every
 * mode and start is met. That those meet each other is for the whole matrix to show.
 */
export function coveringCombinations(): Combination[] {
  const { image: images, mode: modes, launch } = DIMENSIONS;
  const isImporting = (text: Combination['pyxis']): boolean => text.startsWith('importer=');
  const pyxis = DIMENSIONS.pyxis.filter((text) => !isImporting(text));
  const importing = DIMENSIONS.pyxis.filter(isImporting);
  return [
    ...modes.map((mode, index) => ({
      image: at(images, index),
      mode,
      pyxis: at(pyxis, index),
      launch: at(launch, index + Math.floor(index / launch.length)),
    })),
    // An importer is for images of registries.
    ...importing.map((text, index) => ({
      image: 'registry' as const,
      mode: at(modes, index),
      pyxis: text,
      launch: at(launch, launch.length - 1 + 2 * index),
    })),
  ];
}

export const needsSquashfuse = ({ pyxis }: Pick<Combination, 'pyxis'>): boolean =>
  pyxis.includes('use_squashfuse=1');

/** Users must reach them: the checkout may be in root's home. */
const importersPath = ({ root }: Cluster): string => path.join(root, 'importers');

/** As in plugstack.conf. */
function pyxisArguments(cluster: Cluster, { pyxis }: Combination): string[] {
  return pyxis === 'stock'
    ? []
    : pyxis.split(' ').map((text) => text.replace(/^importer=/, `importer=${importersPath(cluster)}/`));
}

function at<T>(values: readonly T[], index: number): T {
  return values[index % values.length] as T;
}

/** Two clusters that differ only in the cache. */
export interface Pair extends AsyncDisposable {
  readonly cached: ContainerCluster;
  readonly stock: ContainerCluster;
  /** As a user names it on that cluster. */
  readonly imageOf: (containers: ContainerCluster, image: Combination['image']) => string;
}

interface PairOptions {
  readonly programs: Programs;
  /**
   * The probe image in a registry, as a user names it; undefined: there is none, and nothing of it is asked
   * for.
   */
  readonly registryImage: string | undefined;
  readonly settings?: readonly string[];
}

export async function startPair(options: PairOptions): Promise<Pair> {
  const { programs, registryImage, settings = [] } = options;
  const started = await Promise.allSettled([
    startContainerCluster({ programs, isCached: true, settings }),
    startContainerCluster({ programs, isCached: false }),
  ]);
  const running = started.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
  const stop = async (): Promise<void> => {
    await Promise.all(running.map((containers) => containers.cluster.stop()));
  };
  const [cached, stock] = running;
  if (cached === undefined || stock === undefined) {
    await stop();
    throw started.find((result) => result.status === 'rejected')?.reason;
  }
  const image = makeProbeImage(path.join(stock.cluster.root, IMAGE_NAME), 'a path');
  fs.copyFileSync(image, path.join(cached.cluster.root, IMAGE_NAME));
  for (const { cluster } of running) prepareFiles(cluster);
  return {
    cached,
    stock,
    imageOf: ({ cluster }, image) =>
      image === 'path' || registryImage === undefined ? path.join(cluster.root, IMAGE_NAME) : registryImage,
    [Symbol.asyncDispose]: stop,
  };
}

const IMAGE_NAME = 'probe.sqsh';

function prepareFiles(cluster: Cluster): void {
  const { root, homes } = cluster;
  fs.cpSync(path.join(import.meta.dirname, 'importers'), importersPath(cluster), { recursive: true });
  fs.mkdirSync(path.join(root, 'shared'));
  fs.writeFileSync(path.join(root, 'shared/file'), 'shared\n');
  fs.writeFileSync(path.join(homes, USER, 'in-home'), 'home\n');
}

/** What a combination looks like on one cluster: the same on both, or the cache can be noticed. */
interface Appearance {
  /** What each container printed. */
  readonly outputs: readonly string[];
  /** How each launch ended. */
  readonly ends: readonly string[];
  /** What was saved, as a listing. */
  readonly saved: readonly string[];
  /** The type of the root filesystem of each container. */
  readonly backings: readonly string[];
  readonly errors: string;
}

/**
 * Runs a combination on both clusters.
 *
 * @param arraySize how many tasks an array has
 * @returns what is wrong with it, for a message; empty if nothing is
 */
export async function compare(pair: Pair, combination: Combination, arraySize: number): Promise<string[]> {
  const { cached, stock } = pair;
  const before = listEntries(cached);
  const [ours, theirs] = await Promise.all([
    appearanceOf(pair, cached, combination, arraySize),
    appearanceOf(pair, stock, combination, arraySize),
  ]);
  const problems = [
    ...theirs.ends.filter((end) => !isSuccess(end)).map((end) => `without us it ends with ${end}`),
    ...differences('output', theirs.outputs, ours.outputs),
    ...differences('end', theirs.ends, ours.ends),
    ...differences('saved image', theirs.saved, ours.saved),
    ...changesOf(before, listEntries(cached)).map((change) => `entry changed: ${change}`),
    ...(await remainsOf(cached)).map((remain) => `left: ${remain}`),
    ...ours.backings
      .filter((backing) => (backing === 'overlay') !== isServed(combination))
      .map((backing) => `the root filesystem is of type ${backing}`),
  ];
  return problems.length === 0
    ? []
    : [...problems, `stderr: ${ours.errors}`, `stderr without us: ${theirs.errors}`];
}

function isSuccess(end: string): boolean {
  return end.split(', ').every((one) => one === 'exit code 0' || one === 'COMPLETED 0:0');
}

/** Whether the container is to come from the cache. */
function isServed(combination: Combination): boolean {
  const { image, mode, pyxis } = combination;
  if (mode === 'name') return false;
  const isOfOneUse = image === 'registry' && pyxis.startsWith('importer=simple');
  // What enroot starts as it is has an overlay, too.
  return !isOfOneUse || (needsSquashfuse(combination) && mode !== 'save');
}

async function appearanceOf(
  pair: Pair,
  containers: ContainerCluster,
  combination: Combination,
  arraySize: number,
): Promise<Appearance> {
  const { cluster, outputPath } = containers;
  await containers.setPyxisArguments(pyxisArguments(cluster, combination));
  const image = pair.imageOf(containers, combination.image);
  const run = (): Promise<End> => launch(containers, combination, image, arraySize);
  const ends = [await run()];
  if (combination.mode === 'name') {
    // The second time the container is there, with what the first one wrote.
    ends.push(await run());
    await removeNamed(containers);
  }
  const isAttached = combination.launch === 'attach';
  const lookOf = (text: string): string => (isAttached ? withoutSecondStart(text) : text);
  const anonymous = (text: string): string => lookOf(text).replaceAll(cluster.directory, '<cluster>');
  const parts = ends.flatMap(({ outputs }) => outputs.map((output) => output.split('\n== backing\n')));
  const saved = namesIn(outputPath)
    .filter((name) => name.endsWith('.sqsh'))
    .sort()
    .flatMap((name) => [`${name}:`, ...listImage(path.join(outputPath, name))]);
  await emptyDirectory(outputPath);
  return {
    outputs: parts.map(([visible = '']) => anonymous(visible)),
    ends: ends.map(({ end }) => end),
    saved: lookOf(saved.join('\n')).split('\n').map(anonymous),
    backings: parts.map(([, backing = 'unknown']) => backing.trim()),
    errors: ends.map(({ errors }) => errors).join('\n'),
  };
}

/**
 * pyxis has enroot start a container once more that a step joins. The hooks of that start write accounts and
 * rc.local anew into the files of the container that runs; with us into another layer
 * (docs/compatibility.md).
 */
function withoutSecondStart(text: string): string {
  const lines = text
    .replace(/^(f \d+ \S+ \d+) \d+ (\/etc\/(?:passwd|rc\.local)) /gm, '$1 some $2 ')
    .split('\n');
  return [...new Set(lines)].sort().join('\n');
}

async function removeNamed({ cluster, enroot, enrootDataPath }: ContainerCluster): Promise<void> {
  await cluster.waitForNodeIdle();
  const names = namesIn(enrootDataPath).filter((name) => name.startsWith('pyxis_named'));
  if (names.length > 0) await enroot('remove', '-f', ...names);
}

async function emptyDirectory(directory: string): Promise<void> {
  for (const name of await fsp.readdir(directory))
    await fsp.rm(path.join(directory, name), { recursive: true });
}

/**
 * Prints what is below the working directory, but for times; of the accounts, which tell the user's home, the
 * text itself.
 */
const LIST_TREE = `
find . -type d -printf '%y %m %U:%G %p\\n' -o -name passwd -printf '%y %m %U:%G %p\\n' \\
  -o -printf '%y %m %U:%G %n %s %p %l\\n'
find . -type f ! -name passwd -exec cksum {} +
cat etc/passwd`;

/** A squashfs file as lines. */
function listImage(file: string): string[] {
  const directory = fs.mkdtempSync(path.join(path.dirname(file), 'unpacked-'));
  const target = path.join(directory, 'root');
  try {
    const { status, stderr } = spawnSync('unsquashfs', ['-quiet', '-no-progress', '-dest', target, file], {
      encoding: 'utf8',
    });
    if (status !== 0) return [`unsquashfs: exit code ${String(status)}: ${stderr}`];
    const listing = spawnSync('sh', ['-c', LIST_TREE], { cwd: target, encoding: 'utf8' });
    return listing.stdout.trim().split('\n').sort();
  } finally {
    fs.rmSync(directory, { recursive: true });
  }
}

/** How a launch ended. */
interface End {
  /** What each container printed. */
  readonly outputs: readonly string[];
  readonly errors: string;
  /** Exit codes and states. */
  readonly end: string;
}

/** @param token tells containers that run at the same time apart; shell text */
function containerOptions(
  { cluster, outputPath }: ContainerCluster,
  mode: Mode,
  image: string,
  token: string,
): string[] {
  const options: Record<Mode, readonly string[]> = {
    plain: [],
    writable: ['--container-writable'],
    readonly: ['--container-readonly'],
    'remap-root': ['--container-remap-root'],
    mounts: [`--container-mounts=${cluster.root}/shared:/mnt/shared:ro,${cluster.root}/shared`],
    workdir: ['--container-workdir=/data/empty'],
    entrypoint: ['--container-entrypoint'],
    save: [`--container-save=${outputPath}/saved${token}.sqsh`, '--container-writable'],
    name: [`--container-name=named${token}`, '--container-writable'],
    'mount-home': ['--container-mount-home'],
  };
  return [`--container-image=${image}`, ...options[mode]];
}

/** Whether containers that run at the same time need a name or a file of their own. */
function needsToken(mode: Mode): boolean {
  return mode === 'save' || mode === 'name';
}

/**
 * Over squashfuse enroot has an overlay that can neither remove nor rename a directory of the image, in which
 * an entry is better than what it stands for: there the probe leaves directories alone.
 */
function probeCommand(combination: Combination): string {
  const { image, pyxis, mode } = combination;
  const isStarted = needsSquashfuse(combination) && (image === 'path' || pyxis.startsWith('importer='));
  return isStarted && mode === 'writable' ? '/probe files' : '/probe';
}

async function launch(
  containers: ContainerCluster,
  combination: Combination,
  image: string,
  arraySize: number,
): Promise<End> {
  const { mode, launch: way } = combination;
  const probe = probeCommand(combination);
  const options = containerOptions(containers, mode, image, '');
  const quoted = (token: string): string =>
    containerOptions(containers, mode, image, token)
      .map((option) => `"${option}"`)
      .join(' ');
  switch (way) {
    case 'srun':
      return runDirectly(containers, ['srun', '--ntasks=1', ...options, ...probe.split(' ')]);
    case 'srun in salloc':
      return runDirectly(containers, ['salloc', '--ntasks=1', 'srun', ...options, ...probe.split(' ')]);
    case 'sbatch':
      return submit(containers, [], `${directives(options)}${probe}\n`);
    case 'srun in sbatch':
      return submit(containers, [], `srun ${quoted('')} ${probe}\n`);
    case 'two steps at once':
      return submit(
        containers,
        ['--ntasks=2'],
        twoSteps(containers, (token) => `${quoted(token)} ${probe}`),
      );
    case 'attach':
      return submit(containers, ['--ntasks=2'], attach(containers, quoted(''), mode, probe));
    case 'array':
      return submit(
        containers,
        [`--array=1-${arraySize}`],
        needsToken(mode)
          ? `srun ${quoted('$SLURM_ARRAY_TASK_ID')} ${probe}\n`
          : `${directives(options)}${probe}\n`,
      );
  }
}

function directives(options: readonly string[]): string {
  return options.map((option) => `#SBATCH ${option.replace(/=(.*#.*)/, '="$1"')}\n`).join('');
}

/** Each writes to a file of its own, and both are there at the same time. */
function twoSteps({ outputPath }: ContainerCluster, parameters: (token: string) => string): string {
  const step = (token: string): string =>
    `srun --ntasks=1 --exact ${parameters(token)} >"${outputPath}/step-${token}" &`;
  return `${step('a')}\nfirst=$!\n${step('b')}\nsecond=$!\nwait $first && wait $second\n`;
}

/** /tmp is the container's own, so that who joins it can tell it to end. */
function attach({ outputPath }: ContainerCluster, options: string, mode: Mode, probe: string): string {
  const name = mode === 'name' ? 'named' : '$SLURM_JOB_ID.0';
  const wait = (condition: string): string =>
    `rounds=0; while ${condition} && [ $rounds -lt 600 ]; do sleep 0.1; rounds=$((rounds + 1)); done`;
  return `rm -f "${outputPath}/up"
srun --overlap --ntasks=1 ${options} sh -c 'echo up; ${wait('[ ! -e /tmp/stop ]')}' >"${outputPath}/up" &
first=$!
${wait(`[ ! -s "${outputPath}/up" ] && kill -0 $first`)}
srun --overlap --ntasks=1 --container-name=${name} sh -c '${probe}; status=$?; : >/tmp/stop; exit $status'
status=$?
wait $first && exit $status
`;
}

async function runDirectly({ cluster }: ContainerCluster, argv: readonly string[]): Promise<End> {
  const { exitCode, stdout, stderr } = await cluster.run(USER, argv);
  return { outputs: [stdout], errors: stderr, end: `exit code ${String(exitCode)}` };
}

const JOB_TIMEOUT_MS = 400_000;

async function submit(
  { cluster, outputPath }: ContainerCluster,
  parameters: readonly string[],
  body: string,
): Promise<End> {
  const files = [`--output=${outputPath}/job-%A-%a.out`, `--error=${outputPath}/job-%A-%a.err`];
  const jobId = await cluster.sbatch(USER, [...files, ...parameters], `#!/bin/sh\n${body}`);
  const result = await cluster.waitForJob(jobId, JOB_TIMEOUT_MS);
  const steps = namesIn(outputPath).filter((name) => name.startsWith('step-'));
  const outputs = steps.length > 0 ? steps.map((name) => path.join(outputPath, name)) : stdoutFiles(result);
  return {
    outputs: outputs.map((file) => fs.readFileSync(file, 'utf8')),
    errors: result.records.map(({ StdErr = '' }) => fs.readFileSync(StdErr, 'utf8')).join(''),
    end: result.records.map(({ JobState = '', ExitCode = '' }) => `${JobState} ${ExitCode}`).join(', '),
  };
}

function stdoutFiles({ records }: JobResult): string[] {
  return records
    .toSorted((one, other) => Number(one['ArrayTaskId'] ?? 0) - Number(other['ArrayTaskId'] ?? 0))
    .map(({ StdOut = '' }) => StdOut);
}

const SHOWN_DIFFERENCES = 12;

/** Where two lists of texts differ: the lines that only one of them has, of each text the first few. */
function differences(what: string, wanted: readonly string[], found: readonly string[]): string[] {
  if (wanted.length !== found.length) {
    return [`${what}: ${found.length} instead of ${wanted.length}`];
  }
  return wanted.flatMap((text, index) => {
    const other = found[index] ?? '';
    if (text === other) return [];
    const [theirs, ours] = [text.split('\n'), other.split('\n')];
    const lines = [
      ...theirs.filter((line) => !ours.includes(line)).map((line) => `- ${line}`),
      ...ours.filter((line) => !theirs.includes(line)).map((line) => `+ ${line}`),
    ];
    const shown = lines.length > 0 ? lines.slice(0, SHOWN_DIFFERENCES) : ['the order of the lines'];
    return [`${what} ${index + 1} is not the same:\n  ${shown.join('\n  ')}`];
  });
}
