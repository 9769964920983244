/**
 * The first job with an image of a registry: with the cache, and in each way that pyxis and enroot have
 * without it. Beside them the least that it could take: the same layers fetched by curl(1) and unpacked by
 * tar(1), all at once, to where they stay.
 */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { directoryName } from '../lib/core/layout.ts';
import {
  digestOf,
  startDockerRegistry,
  unlessDockerRegistry,
  type DockerRegistry,
} from '../test/helpers/docker-registry.ts';
import { entryNamesIn, probeTree, type ContainerCluster } from '../test/slurm/containers.ts';
import { programsTree } from '../test/slurm/enroot/stand-in.ts';
import { srun, timed, timeInside, type Pair } from './container-pair.ts';
import type { Finding } from './report.ts';
import { makeTree } from '../test/helpers/sample-image.ts';
import { compare, Samples } from './samples.ts';
import { interleave } from '../test/helpers/statistics.ts';
import { removeAndSettle } from './workbench.ts';

const goal = 1;
const rounds = 3;
const fileCount = 20_000;
const layerCounts = [1, 10] as const;
const largestOutputBytes = 4 * 1024 ** 3;

export async function measureRegistryImages(pair: Pair): Promise<Finding[]> {
  if (unlessDockerRegistry !== undefined) throw new Error(unlessDockerRegistry);
  await using registry = await startDockerRegistry();
  const tree = join(pair.directory, 'registry-tree');
  const programs = { ...probeTree('registry'), ...programsTree(['true']) };
  const { unpackedBytes } = makeTree(tree, { seed: 4, fileCount, programs });
  const findings: Finding[] = [];
  try {
    for (const count of layerCounts) {
      const image = await pushLayers(registry, tree, count);
      findings.push(...(await measureImage(pair, registry, image, unpackedBytes)));
    }
  } finally {
    await pair.stock.setPyxisArguments([]);
    fs.rmSync(tree, { recursive: true });
  }
  return findings;
}

interface RegistryImage {
  readonly repository: string;
  readonly layers: readonly string[];
  readonly compressedBytes: number;
}

/** Each layer has the files of its number, and all directories. */
async function pushLayers(registry: DockerRegistry, tree: string, count: number): Promise<RegistryImage> {
  const repository = `bench/layers${count}`;
  const list = (...condition: string[]): string[] =>
    run('find', ['.', ...condition, '-print0'], tree)
      .toString('latin1')
      .split('\0')
      .slice(0, -1)
      .sort();
  const directories = list('-type', 'd');
  const files = list('!', '-type', 'd');
  const layers = Array.from({ length: count }, (_, layer) =>
    pack(tree, [...directories, ...files.filter((_name, index) => index % count === layer)]),
  );
  await registry.pushArchives(repository, 'v1', layers);
  const sizes = layers.map(({ archive }) => archive.byteLength);
  return {
    repository,
    layers: layers.map(({ archive }) => digestOf(archive)),
    compressedBytes: sizes.reduce((sum, bytes) => sum + bytes),
  };
}

function pack(tree: string, names: readonly string[]): { archive: Buffer; contentDigest: string } {
  const options = ['--null', '--no-recursion', '--numeric-owner', '--owner=0', '--group=0', '--files-from=-'];
  const input = names.map((name) => `${name}\0`).join('');
  const content = run('tar', ['--create', ...options], tree, Buffer.from(input, 'latin1'));
  return { archive: gzipSync(content), contentDigest: digestOf(content) };
}

function run(file: string, args: readonly string[], cwd: string, input = Buffer.alloc(0)): Buffer {
  const { status, stdout, stderr } = spawnSync(file, args, { cwd, input, maxBuffer: largestOutputBytes });
  if (status !== 0) throw new Error(`Cannot make a layer: ${file}: ${String(stderr)}`);
  return stdout;
}

async function measureImage(
  { cached, stock }: Pair,
  registry: DockerRegistry,
  { repository, layers, compressedBytes }: RegistryImage,
  unpackedBytes: number,
): Promise<Finding[]> {
  const samples = new Samples<'ours' | 'load' | 'create' | 'prolog' | 'curl'>();
  const job = timed(srun(`${registry.address}#${repository}:v1`, 'true'));
  const firstJob = async (
    cluster: ContainerCluster,
    pyxisArguments: readonly string[] = [],
  ): Promise<number> => {
    await cluster.setPyxisArguments(pyxisArguments);
    const durationMs = await timeInside(cluster, job);
    await forget(cluster);
    return durationMs;
  };
  const target = join(stock.outputPath, 'curl');
  const fetchAll = layers.map(
    (layer) =>
      `curl --silent --show-error --fail http://${registry.address}/v2/${repository}/blobs/${layer} | ` +
      `tar --directory=${target} -xzpf - & jobs+=($!)`,
  );
  const measure = {
    ours: async () => {
      samples.add('ours', await firstJob(cached));
      samples.add('prolog', await lastUnpackMs(cached));
    },
    load: async () => samples.add('load', await firstJob(stock, ['use_enroot_load=1'])),
    create: async () => samples.add('create', await firstJob(stock)),
    curl: async () => {
      const script = `set -o pipefail; jobs=(); ${fetchAll.join('\n')}\nfor job in "\${jobs[@]}"; do wait "$job"; done`;
      samples.add('curl', await timeInside(stock, `mkdir ${target}; ${timed(script)}`));
      removeAndSettle(target);
    },
  };
  await forget(cached);
  await forget(stock);
  for (const kind of interleave(['ours', 'load', 'create', 'curl'] as const, rounds)) await measure[kind]();
  const count = layers.length === 1 ? 'one layer' : `${layers.length} layers`;
  const ours = samples.figure('ours', `first job, registry image of ${count}`);
  const load = samples.figure('load', 'without us, use_enroot_load=1');
  const create = samples.figure('create', 'without us, import and create');
  const isLoadFaster = load.value.median < create.value.median;
  const mib = (bytes: number): number => Math.round(bytes / 1024 ** 2);
  return [
    compare('j', ours, load, isLoadFaster ? { goal } : {}),
    compare('j', ours, create, isLoadFaster ? {} : { goal }),
    compare(
      'j',
      samples.figure('prolog', `the Prolog's import of it`),
      samples.figure('curl', 'curl and tar, all layers at once'),
      {
        note: `${count}: ${fileCount} files, ${mib(compressedBytes)} MiB compressed, ${mib(unpackedBytes)} MiB unpacked; the registry is on loopback`,
      },
    ),
  ];
}

/** Nothing of the image is left: no entry, no layer. */
async function forget({ cluster, userPath, enrootCachePath }: ContainerCluster): Promise<void> {
  await cluster.waitForNodeIdle();
  const entries = entryNamesIn(userPath).map((name) => join(userPath, directoryName(name)));
  removeAndSettle(enrootCachePath, ...entries);
}

/** @throws {Error} unless the last Prolog made an entry */
async function lastUnpackMs({ cluster }: ContainerCluster): Promise<number> {
  const line = (await cluster.syslog()).findLast((one) => / prolog job=/.test(one)) ?? 'no line';
  const milliseconds = / result=created .*\bunpack_ms=(\d+)/.exec(line)?.[1];
  if (milliseconds === undefined) throw new Error(`The first job found an entry, or made none: ${line}`);
  return Number(milliseconds);
}
