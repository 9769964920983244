/**
 * `npm run test:pyxis [-- WORD…]`: the whole matrix of test/slurm/matrix.ts on the pyxis and enroot that are
 * installed on this machine, then the tests of container starts. With words only the combinations that have
 * all of them; the word `mounted` has the image mounted (trusted_images). Says what is missing if it cannot
 * run; exits with 1 then, and if anything differs.
 *
 * PYXIS_PLUGIN names spank_pyxis.so where it is in none of the usual places.
 */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { projectRoot } from '../../build/source-files.ts';
import { startDockerRegistry, unlessDockerRegistry } from '../helpers/docker-registry.ts';
import { slurmAvailable } from '../slurm/cluster.ts';
import {
  INSTALLED_PYXIS_VARIABLE,
  PROBE_CONFIGURATION,
  probeLayers,
  programsUnderTest,
  USER,
} from '../slurm/containers.ts';
import { SYSTEM_PATH } from '../slurm/machine.ts';
import {
  allCombinations,
  compare,
  describeCombination,
  needsSquashfuse,
  startPair,
} from '../slurm/matrix.ts';

const ARRAY_SIZE = 20;

const PLUGIN_DIRECTORIES: readonly string[] = [
  ...['/usr/local/lib/slurm', '/usr/lib/slurm', '/usr/lib64/slurm', '/usr/lib/slurm-wlm'],
  ...['x86_64', 'aarch64'].flatMap((architecture) =>
    ['slurm', 'slurm-wlm'].map((name) => `/usr/lib/${architecture}-linux-gnu/${name}`),
  ),
];

const mountedWord = 'mounted';

function findPlugin(): string | undefined {
  const wanted = process.env['PYXIS_PLUGIN'];
  const candidates =
    wanted === undefined
      ? PLUGIN_DIRECTORIES.map((directory) => join(directory, 'spank_pyxis.so'))
      : [wanted];
  return candidates.find((file) => existsSync(file));
}

function isInstalled(program: string): boolean {
  return SYSTEM_PATH.split(':').some((directory) => existsSync(join(directory, program)));
}

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

async function run(pluginPath: string, given: readonly string[]): Promise<boolean> {
  const settings = given.includes(mountedWord) ? ['trusted_images=$ROOT'] : [];
  const words = given.filter((word) => word !== mountedWord);
  process.env[INSTALLED_PYXIS_VARIABLE] = pluginPath;
  await using registry = unlessDockerRegistry === undefined ? await startDockerRegistry() : undefined;
  await registry?.push('probe', 'v1', probeLayers('a registry'), { configuration: PROBE_CONFIGURATION });
  const registryImage = registry && `${registry.address}#probe:v1`;
  await using pair = await startPair({ programs: programsUnderTest(), registryImage, settings });
  const { cluster, enroot } = pair.stock;
  const pyxisVersion = /pyxis: version (\S+)/.exec(await cluster.slurmdLog())?.[1] ?? 'of an unknown version';
  const enrootVersion = (await enroot('version')).trim();
  print(`Slurm ${cluster.slurmVersion.join('.')}, pyxis ${pyxisVersion}, enroot ${enrootVersion}`);

  const hasSquashfuse = isInstalled('squashfuse');
  const combinations = allCombinations()
    .filter((combination) => words.every((word) => describeCombination(combination).includes(word)))
    .filter(({ image }) => image === 'path' || registry !== undefined)
    .filter((combination) => !needsSquashfuse(combination) || hasSquashfuse);
  if (registry === undefined) print(`Without registries: ${unlessDockerRegistry ?? ''}`);
  if (!hasSquashfuse) print('Without use_squashfuse=1: needs squashfuse');
  // What the node is like is found out once: by the first array's twenty Prologs at once it would take longer
  // than it may. On both, so that their jobs have the same numbers.
  for (const { cluster } of [pair.cached, pair.stock]) await cluster.run(USER, ['srun', 'true']);
  const different: string[] = [];
  for (const combination of combinations) {
    const startedMs = performance.now();
    const problems = await compare(pair, combination, ARRAY_SIZE);
    const seconds = ((performance.now() - startedMs) / 1000).toFixed(1);
    const description = describeCombination(combination);
    print(`${problems.length === 0 ? 'same' : 'DIFFERENT'}  ${description} (${seconds} s)`);
    for (const problem of problems) print(`    ${problem.replaceAll('\n', '\n    ')}`);
    if (problems.length > 0) different.push(description);
  }
  print(`${combinations.length - different.length} of ${combinations.length} combinations are the same`);
  for (const description of different) print(`DIFFERENT  ${description}`);
  return different.length === 0;
}

const pluginPath = findPlugin();
const missing = [
  slurmAvailable(),
  isInstalled('enroot') ? undefined : 'enroot is not installed',
  pluginPath === undefined ? 'spank_pyxis.so is not installed; PYXIS_PLUGIN may name it' : undefined,
].filter((reason) => reason !== undefined);

if (pluginPath === undefined || missing.length > 0) {
  for (const reason of missing) print(`Cannot run on real programs: ${reason}`);
  process.exitCode = 1;
} else {
  const words = process.argv.slice(2);
  const isSame = await run(pluginPath, words);
  const starts = join(projectRoot, 'test/slurm/container-starts.test.ts');
  const status = words.length > 0 ? 0 : spawnSync(process.execPath, [starts], { stdio: 'inherit' }).status;
  process.exitCode = isSame && status === 0 ? 0 : 1;
}
