/**
 * Joining a container that runs (`srun --overlap --container-name=JOB.STEP`): without us pyxis finds its
 * process in `enroot list -f` and joins its namespaces, or, with `:no_exec`, starts another container on the
 * same files.
 */
// test: timeout 600 s
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { directoryName } from '../../lib/core/layout.ts';
import { assert, suite } from '../helpers/suite.ts';
import { slurmAvailable } from './cluster.ts';
import {
  changesOf,
  listEntries,
  makeProbeImage,
  programsUnderTest,
  remainsOf,
  startContainerCluster,
  USER,
  type ContainerCluster,
} from './containers.ts';
import { ENROOT_PROGRAMS, standInUnavailable } from './enroot/stand-in.ts';

const notForThese = ['squashfuse', 'curl', 'jq'];
const test = suite<{ containers?: ContainerCluster }>('attaching to a running container', {
  skip: slurmAvailable() ?? standInUnavailable(ENROOT_PROGRAMS.filter((name) => !notForThese.includes(name))),
  state: {},
});

test.before(async (state) => {
  state.containers = await startContainerCluster({ programs: programsUnderTest(), isCached: true });
});
test.after(async ({ containers }) => {
  await containers?.[Symbol.asyncDispose]();
});

/** The first step writes and waits; the others look at it while it runs. */
const script = (image: string, output: string, name: string): string => `#!/bin/sh
srun --overlap --ntasks=1 --container-image=${image} --container-writable --container-mounts=${output} \\
  sh -c 'echo first >/tmp/own; echo first >/written; : >${output}/up; while [ -e ${output}/up ]; do sleep 0.1; done; cat /written' &
while [ ! -e ${output}/up ]; do sleep 0.1; done
for flag in '' :exec :no_exec; do
  echo "flag $flag"
  srun --overlap --ntasks=1 --container-writable --container-name=${name}$flag \\
    sh -c 'cat /tmp/own 2>/dev/null; cat /written; echo later >>/written; echo "$SLURM_STEP_ID"'
  # pyxis takes the first process that the list has: not one that is about to end.
  sleep 1
done
echo 'flag :create'
srun --overlap --ntasks=1 --container-image=${image} --container-name=${name}:create true && echo made
rm ${output}/up
wait
`;

for (const scope of ['global', 'job'] as const) {
  test(`container_scope=${scope}`, async ({ containers }) => {
    assert.ok(containers);
    const { cluster, outputPath, userPath } = containers;
    await containers.setPyxisArguments([`container_scope=${scope}`]);
    const image = makeProbeImage(join(cluster.root, `attach-${scope}.sqsh`), scope);
    rmSync(join(outputPath, 'up'), { force: true });
    const output = `${outputPath}/attach-${scope}`;
    const before = listEntries(containers);
    const jobId = await cluster.sbatch(
      USER,
      ['--ntasks=2', `--output=${output}.out`, `--error=${output}.err`],
      script(image, outputPath, '$SLURM_JOB_ID.0'),
    );
    await cluster.waitForJob(jobId, 120_000);
    const errors = readFileSync(`${output}.err`, 'utf8');
    assert.is(
      readFileSync(`${output}.out`, 'utf8'),
      [
        // They join: the same /tmp, the same files.
        ...['flag ', 'first', 'first', '1', 'flag :exec', 'first', 'first', 'later', '2'],
        // It starts from what there is: files, but not /tmp, which each container has for itself.
        ...['flag :no_exec', 'first', 'later', 'later', '3'],
        ...['flag :create'],
        // What the third did is its own; without us it would be here.
        ...['first', 'later', 'later', ''],
      ].join('\n'),
      errors,
    );
    assert.match(errors, /the container "pyxis_\S+" already exists/);
    assert.not(existsSync(join(userPath, directoryName(`pyxis_${jobId}.0`))));
    assert.equal(changesOf(before, listEntries(containers)), []);
    assert.equal(await remainsOf(containers), []);
  });
}

test.run();
