/**
 * The second part of the demo: a job's container starts from the entry. Two real Slurms, alike but for the
 * cache, run the same srun; each container tells what its root filesystem is.
 *
 * Where the environment does not name an installed pyxis (test/slurm/containers.ts), programs of ours play
 * pyxis and enroot: a SPANK plugin that calls enroot as pyxis does, and an enroot that unpacks, mounts and
 * switches as the real one does.
 */
import * as fs from 'node:fs';
import * as os from 'node:os';
import { join } from 'node:path';
import { distDirectory } from '../build/build.ts';
import { directoryName, isEntryNameOf } from '../lib/core/layout.ts';
import { renderTable } from '../lib/core/readable.ts';
import type { Defer } from '../test/helpers/clean-up.ts';
import { makeImage, treeOfFiles } from '../test/helpers/squashfs-image.ts';
import { interleave, summarise } from '../test/helpers/statistics.ts';
import { slurmAvailable } from '../test/slurm/cluster.ts';
import {
  changesOf,
  entryNamesIn,
  listEntries,
  namesIn,
  probeTree,
  programsUnderTest,
  remainsOf,
  startContainerCluster,
  USER,
  type ContainerCluster,
} from '../test/slurm/containers.ts';
import { programsTree, standInUnavailable } from '../test/slurm/enroot/stand-in.ts';
import { isOurLine } from './demo-node.ts';
import { check, command, facts, heading, lines, say, skipped, table } from './terminal.ts';

/**
 * So many that an unpack takes longer than all that differs from one job to the next, also where /tmp is in
 * memory.
 */
const fileCount = 20_000;
const fileContent = Buffer.alloc(4000, 'a file of the demo image ');

/** Of each kind of job whose times are compared. */
const timedRounds = 5;

/** Prints which image it is and the mount that is its root filesystem. */
const tell = "cat /etc/image; grep -E '^([^ ]+ ){4}/ ' /proc/self/mountinfo";
/** The same, after it has changed what it can. */
const change = `echo changed >/etc/image; rm -r /d0; echo new >/d1/new; ${tell}`;

/** Shows nothing but why, where containers cannot run. */
export async function showContainers(defer: Defer): Promise<void> {
  const programs = programsUnderTest();
  const isReal = programs.installEnroot === undefined;
  const obstacle = slurmAvailable() ?? (isReal ? undefined : standInUnavailable());
  if (obstacle !== undefined) {
    heading('Containers');
    skipped('jobs in containers', obstacle);
    return;
  }
  const { cached, stock } = await showNodes(isReal, defer);
  const images = makeImages(defer);
  const acts = new Acts(cached, stock);

  heading('Without the cache: every job unpacks');
  await acts.runWithout(images.one);
  await acts.runWithout(images.one);

  heading('With the cache: the first job with the image');
  await acts.runWith(images.one, 'created');
  heading('With the cache: the second one');
  await acts.runWith(images.one, 'reused');
  await acts.showWriting(images.one);
  await acts.showInnerStep(images.two);
  await acts.showEnd();

  heading('Figures of these containers');
  const medians = await acts.timeAlternately(images.one);
  const row = (what: string, ms: number): string[] => [
    what,
    `${Math.round(ms)} ms`,
    `${(ms / medians.empty).toFixed(1)}x`,
  ];
  table(
    renderTable([
      [`from sbatch until the job's program runs, median of ${timedRounds}`, '', 'of no container'],
      row('a container, image seen before, without the cache', medians.stock),
      row('a container, image seen before, with the cache', medians.cached),
      row('no container, with the cache', medians.empty),
    ]),
  );
  check('the program runs sooner with the cache than without', medians.cached < medians.stock);
}

interface Nodes {
  readonly cached: ContainerCluster;
  readonly stock: ContainerCluster;
}

async function showNodes(isReal: boolean, defer: Defer): Promise<Nodes> {
  heading('Two nodes that run containers, with the cache and without');
  const start = async (isCached: boolean): Promise<ContainerCluster> => {
    const starting = startContainerCluster({ programs: programsUnderTest(), isCached });
    // At once: a signal may come while it starts.
    defer(async () => {
      const containers = await starting.catch(() => undefined);
      await containers?.cluster.stop();
    });
    return starting;
  };
  const [cached, stock] = await Promise.all([start(true), start(false)]);
  say('Both are a real Slurm. What is first in the PATH of slurmd tells them apart, and Prolog and Epilog.');
  if (isReal) {
    say('pyxis and enroot are those that are installed on this machine.');
  } else {
    say('pyxis and enroot are NOT real here. In the place of pyxis is a plugin of ours that calls enroot');
    say('as pyxis does; in the place of enroot a stand-in, which unpacks with unsquashfs and starts');
    say('containers in namespaces. The wrapper, Prolog and Epilog are those of dist/.');
  }
  facts([
    ['slurmd of the cached node', `PATH=${join(cached.cluster.root, 'container-cache/bin')}:…`],
    ['holds only', namesIn(join(cached.cluster.root, 'container-cache/bin')).join(', ')],
    [
      "enroot's mounts.d has",
      fs.readFileSync(join(distDirectory, '00-container-cache.fstab'), 'utf8').trim(),
    ],
  ]);
  return { cached, stock };
}

function makeImages(defer: Defer): { one: string; two: string } {
  const directory = fs.mkdtempSync(join(os.tmpdir(), 'container-cache-demo-'));
  defer(() => {
    fs.rmSync(directory, { recursive: true, force: true });
  });
  fs.chmodSync(directory, 0o755);
  const files = treeOfFiles(fileCount, fileContent);
  const make = (name: string): string =>
    makeImage(join(directory, `${name}.sqsh`), {
      ...probeTree(`image ${name}`),
      ...programsTree(['date']),
      ...files,
    });
  return { one: make('one'), two: make('two') };
}

/** What a container printed. */
interface Told {
  readonly image: string;
  readonly root: string;
}

class Acts {
  readonly #cached: ContainerCluster;
  readonly #stock: ContainerCluster;
  #shownLines = 0;
  /** The entry of the first image. */
  #entry = '';

  constructor(cached: ContainerCluster, stock: ContainerCluster) {
    this.#cached = cached;
    this.#stock = stock;
  }

  async runWithout(imagePath: string): Promise<void> {
    const told = await this.#srun(this.#stock, [`--container-image=${imagePath}`], tell);
    check('the container is of this image', told.image === 'image one', told.image);
    check('its root filesystem is no entry of ours', !told.root.includes('pyxis_cache_'), told.root);
    await this.#stock.cluster.waitForNodeIdle();
    const left = namesIn(this.#stock.enrootDataPath);
    check('what was unpacked went away with the job', left.length === 0, left.join(', '));
  }

  async runWith(imagePath: string, expected: 'created' | 'reused'): Promise<void> {
    const before = listEntries(this.#cached);
    const told = await this.#srun(this.#cached, [`--container-image=${imagePath}`], tell);
    await this.#cached.cluster.waitForNodeIdle();
    const log = await this.#showNewLines();
    const prolog = log.find((line) => / prolog job=/.test(line)) ?? '';
    check(`the Prolog says result=${expected}`, prolog.includes(` result=${expected} `), prolog);
    this.#entry = / entry=(\S+)/.exec(prolog)?.[1] ?? '';
    check('the container is of this image', told.image === 'image one', told.image);
    const isEntry = isEntryNameOf(Number(this.#cached.userPath.split('/').at(-1)), this.#entry);
    check('its root filesystem is the entry', isEntry && told.root.includes(this.#entry), told.root);
    if (expected === 'reused') this.#checkUnchanged(before);
  }

  async showWriting(imagePath: string): Promise<void> {
    heading('A container that writes, and the next one');
    const before = listEntries(this.#cached);
    const options = ['--container-writable', `--container-image=${imagePath}`];
    const writer = await this.#srun(this.#cached, options, change);
    check('it sees what it wrote', writer.image === 'changed', writer.image);
    const next = await this.#srun(this.#cached, [`--container-image=${imagePath}`], tell);
    check('the next container sees the image', next.image === 'image one', next.image);
    await this.#cached.cluster.waitForNodeIdle();
    await this.#showNewLines();
    this.#checkUnchanged(before);
  }

  async showInnerStep(imagePath: string): Promise<void> {
    heading('An srun inside a job: an image that no Prolog was told of');
    const first = await this.#salloc(imagePath);
    check('the container is of this image', first.image === 'image two', first.image);
    const second = await this.#salloc(imagePath);
    check('and so is the next', second.image === 'image two', second.image);
    await this.#cached.cluster.waitForNodeIdle();
    const results = (await this.#showNewLines()).flatMap(
      (line) => / acquire job=.* result=(\w+)/.exec(line)?.[1] ?? [],
    );
    check('one unpack, then reuse', results.join(', ') === 'created, reused', results.join(', '));
  }

  async showEnd(): Promise<void> {
    heading('After the jobs');
    const { userPath } = this.#cached;
    const entries = entryNamesIn(userPath).map(directoryName);
    facts(entries.map((name, index) => [index === 0 ? 'entries' : '', join(userPath, name)]));
    const remains = await remainsOf(this.#cached);
    check('no stub, lease, process or job file is left', remains.length === 0, remains.join('; '));
  }

  /**
   * Runs each kind of job in turn, on idle nodes. Batch jobs: from Slurm 23.02 on srun waits for its node by
   * polls a second apart.
   *
   * @returns milliseconds from the submission until the job's script runs, the median of each kind
   */
  async timeAlternately(imagePath: string): Promise<Record<'stock' | 'cached' | 'empty', number>> {
    const options = [`--container-image=${imagePath}`];
    const kinds = {
      stock: { on: this.#stock, options },
      cached: { on: this.#cached, options },
      empty: { on: this.#cached, options: [] },
    };
    const elapsedMs = { stock: [] as number[], cached: [] as number[], empty: [] as number[] };
    for (const kind of interleave(['stock', 'cached', 'empty'] as const, timedRounds)) {
      for (const { cluster } of [this.#stock, this.#cached]) await cluster.waitForNodeIdle();
      elapsedMs[kind].push(await this.#timeBatchJob(kinds[kind].on, kinds[kind].options));
    }
    const median = (kind: keyof typeof elapsedMs): number => summarise(elapsedMs[kind]).median;
    return { stock: median('stock'), cached: median('cached'), empty: median('empty') };
  }

  async #timeBatchJob({ cluster }: ContainerCluster, options: readonly string[]): Promise<number> {
    const submittedAtMs = Date.now();
    const jobId = await cluster.sbatch(USER, options, '#!/bin/sh\ndate +%s%N\n');
    const { state, stdout } = await cluster.waitForJob(jobId);
    const startedAtMs = Number(stdout) / 1e6;
    if (state !== 'COMPLETED' || !(startedAtMs > submittedAtMs))
      throw new Error(`Job ${jobId} is ${state}, want COMPLETED; it printed "${stdout}"`);
    return startedAtMs - submittedAtMs;
  }

  async #srun(containers: ContainerCluster, options: readonly string[], script: string): Promise<Told> {
    return this.#container(containers, ['srun', ...options, 'sh', '-c', script]);
  }

  async #salloc(imagePath: string): Promise<Told> {
    const step = ['srun', `--container-image=${imagePath}`, 'sh', '-c', tell];
    return this.#container(this.#cached, ['salloc', '--quiet', '--ntasks=1', ...step]);
  }

  async #container(containers: ContainerCluster, argv: readonly string[]): Promise<Told> {
    command(`${USER}$`, argv.map((word) => (/[ ;]/.test(word) ? `"${word}"` : word)).join(' '));
    const stdout = await this.#run(containers, argv);
    const printed = stdout.trimEnd().split('\n');
    lines(printed);
    const [image = '', root = ''] = printed;
    return { image, root };
  }

  async #run({ cluster }: ContainerCluster, argv: readonly string[]): Promise<string> {
    const { exitCode, stdout, stderr } = await cluster.run(USER, argv);
    if (exitCode !== 0) throw new Error(`${argv.join(' ')}: exit code ${String(exitCode)}: ${stderr}`);
    return stdout;
  }

  #checkUnchanged(before: ReadonlyMap<string, string>): void {
    const changes = changesOf(before, listEntries(this.#cached));
    const shown = changes.slice(0, 3).join('; ');
    check(
      `the entry is unchanged: ${before.size} files, their times and checksums`,
      changes.length === 0,
      shown,
    );
  }

  /** Prints our log lines that came since the last time. @returns them */
  async #showNewLines(): Promise<string[]> {
    const log = (await this.#cached.cluster.syslog()).filter(isOurLine);
    const fresh = log.slice(this.#shownLines);
    this.#shownLines = log.length;
    lines(fresh);
    return fresh;
  }
}
