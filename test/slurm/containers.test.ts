/** Jobs in containers that start from the cache: on a real Slurm, with our own pyxis and enroot. */
// test: timeout 1200 s

import {
  startDockerRegistry,
  unlessDockerRegistry,
  type DockerRegistry,
} from '../helpers/docker-registry.ts';
import { assert, suite } from '../helpers/suite.ts';
import { slurmAvailable } from './cluster.ts';
import { PROBE_CONFIGURATION, probeLayers, programsUnderTest } from './containers.ts';
import {
  FOR_ALL_CONTAINERS,
  FOR_IMAGE_FILES,
  FOR_REGISTRIES,
  standInUnavailable,
} from './enroot/stand-in.ts';
import {
  compare,
  coveringCombinations,
  describeCombination,
  needsSquashfuse,
  startPair,
  type Pair,
} from './matrix.ts';

const ARRAY_SIZE = 3;

const unlessRegistry = unlessDockerRegistry ?? standInUnavailable(FOR_REGISTRIES);

interface State {
  pair?: Pair;
  registry?: DockerRegistry;
}

const matrix = suite<State>('a job in a container, with the cache and without', {
  skip: slurmAvailable() ?? standInUnavailable(FOR_ALL_CONTAINERS),
  state: {},
});

matrix.before(async (state) => {
  if (unlessRegistry === undefined) {
    state.registry = await startDockerRegistry();
    await state.registry.push('probe', 'v1', probeLayers('a registry'), {
      configuration: PROBE_CONFIGURATION,
    });
  }
  const registryImage = state.registry && `${state.registry.address}#probe:v1`;
  state.pair = await startPair({ programs: programsUnderTest(), registryImage });
});
matrix.after(async ({ pair, registry }) => {
  await pair?.[Symbol.asyncDispose]();
  await registry?.[Symbol.asyncDispose]();
});

function requirePair({ pair }: State): Pair {
  if (pair === undefined) throw new Error('no clusters');
  return pair;
}

for (const combination of coveringCombinations()) {
  const { image } = combination;
  const reason =
    (image === 'registry' ? unlessRegistry : undefined) ??
    (needsSquashfuse(combination) ? standInUnavailable(FOR_IMAGE_FILES) : undefined);
  matrix.unless(reason, `looks the same: ${describeCombination(combination)}`, async (state) => {
    assert.equal(await compare(requirePair(state), combination, ARRAY_SIZE), []);
  });
}

matrix.run();
