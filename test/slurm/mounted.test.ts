/**
 * Jobs in containers that start from a mounted image (trusted_images): on a real Slurm, with our own pyxis
 * and enroot.
 */
// test: timeout 1200 s

import { readFileSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { assert, suite } from '../helpers/suite.ts';
import { slurmAvailable } from './cluster.ts';
import { entryNamesIn, makeProbeImage, programsUnderTest, remainsOf, USER } from './containers.ts';
import { FOR_ALL_CONTAINERS, FOR_IMAGE_FILES, standInUnavailable } from './enroot/stand-in.ts';
import {
  compare,
  coveringCombinations,
  describeCombination,
  needsSquashfuse,
  startPair,
  type Pair,
} from './matrix.ts';

const ARRAY_SIZE = 3;

const TELL = `sh -c 'read -r image </etc/image; echo "$image $(id -u)"'`;
const TELL_AND_WRITE = TELL.replace(/'$/, "; echo x >/written && rm -r /data'");

/** Whether the kernel knows idmapped mounts of squashfs. */
function unlessViews(): string | undefined {
  const [major = 0, minor = 0] = readFileSync('/proc/sys/kernel/osrelease', 'utf8').split('.').map(Number);
  return major > 6 || (major === 6 && minor >= 2) ? undefined : 'needs Linux 6.2';
}

interface State {
  pair?: Pair;
}

const matrix = suite<State>('a job with a mounted image', {
  skip: slurmAvailable() ?? standInUnavailable(FOR_ALL_CONTAINERS) ?? unlessViews(),
  state: {},
});

matrix.before(async (state) => {
  const settings = ['trusted_images=$ROOT', 'gc_min_age=0'];
  state.pair = await startPair({ programs: programsUnderTest(), registryImage: undefined, settings });
});
matrix.after(async ({ pair }) => {
  await pair?.[Symbol.asyncDispose]();
});

function requirePair({ pair }: State): Pair {
  if (pair === undefined) throw new Error('no clusters');
  return pair;
}

/** Lines of the log of one word. */
const linesOf = async ({ cached }: Pair, word: string): Promise<string[]> =>
  (await cached.cluster.syslog()).filter((line) => line.includes(`]: ${word} `));

for (const combination of coveringCombinations().filter(({ image }) => image === 'path')) {
  const reason = needsSquashfuse(combination) ? standInUnavailable(FOR_IMAGE_FILES) : undefined;
  matrix.unless(reason, `looks the same: ${describeCombination(combination)}`, async (state) => {
    const pair = requirePair(state);
    assert.equal(await compare(pair, combination, ARRAY_SIZE), []);
    assert.equal(await cachedMounts(pair), '');
  });
}

/** What is still mounted of images on an idle node. */
const cachedMounts = async ({ cached }: Pair): Promise<string> =>
  cached.cluster.exec([
    'sh',
    '-c',
    'grep -E " /run/container-cache/(images|views)/" /proc/self/mountinfo || :',
  ]);

/** A command in an allocation that was given the image. */
const salloc = ({ cached: { cluster } }: Pair, image: string, script: string) =>
  cluster.run(USER, ['salloc', '--quiet', `--container-image=${image}`, 'sh', '-c', script]);

matrix('the steps of an allocation that was given the image start from the mount', async (state) => {
  const pair = requirePair(state);
  const { cluster, userPath } = pair.cached;
  const image = makeProbeImage(join(cluster.root, 'mounted.sqsh'), 'mounted');
  const before = entryNamesIn(userPath);
  const step = `srun --container-image=${image} --container-writable ${TELL_AND_WRITE}`;
  const { exitCode, stdout, stderr } = await salloc(pair, image, `${step} && ${step}`);
  const uid = userPath.split('/').at(-1) ?? '';
  assert.equal([exitCode, stdout], [0, `mounted ${uid}\nmounted ${uid}\n`], stderr);
  const lines = (await linesOf(pair, 'prolog')).filter((line) => line.includes(image));
  assert.match(lines.at(-1) ?? '', /result=created entry=pyxis_cache_mounted_/);
  // Nothing was unpacked, by nobody.
  assert.equal(entryNamesIn(userPath), before);
  assert.equal(
    (await linesOf(pair, 'acquire')).filter((line) => line.includes(image)),
    [],
  );
  assert.equal([await remainsOf(pair.cached), await cachedMounts(pair)], [[], '']);
});

matrix('an inner srun starts from the mount, from the second job of its user on', async (state) => {
  const pair = requirePair(state);
  const { cluster, userPath } = pair.cached;
  const image = makeProbeImage(join(cluster.root, 'inner.sqsh'), 'inner');
  const uid = userPath.split('/').at(-1) ?? '';
  const run = async (): Promise<void> => {
    const steps = `srun --container-image=${image} ${TELL} && srun --container-writable --container-image=${image} ${TELL_AND_WRITE}`;
    const { exitCode, stdout, stderr } = await cluster.run(USER, ['salloc', '--quiet', 'sh', '-c', steps]);
    assert.equal([exitCode, stdout], [0, `inner ${uid}\ninner ${uid}\n`], stderr);
    await cluster.waitForNodeIdle();
  };
  const unpacked = async (): Promise<number> =>
    (await linesOf(pair, 'acquire')).filter((line) => line.includes(image)).length;
  await run();
  await cluster.waitForSyslog(new RegExp(`: warm .*image=${image} .*entry=pyxis_cache_mounted_`));
  const before = await unpacked();
  assert.ok(before > 0);
  await run();
  assert.is(await unpacked(), before);
  assert.equal([await remainsOf(pair.cached), await cachedMounts(pair)], [[], '']);
});

matrix('a step that does not see the view unpacks, and says why', async (state) => {
  const pair = requirePair(state);
  const { cluster, outputPath, userPath } = pair.cached;
  const image = makeProbeImage(join(cluster.root, 'hidden.sqsh'), 'hidden');
  const views = cluster.hostPath('/run/container-cache/views');
  const waits = `while [ ! -e ${outputPath}/go ]; do sleep 0.1; done`;
  const running = salloc(pair, image, `${waits}; srun --container-image=${image} ${TELL}`);
  const isReady = async (): Promise<boolean> =>
    (await linesOf(pair, 'prolog')).some((one) => one.includes(image) && one.includes(' result='));
  for (let tries = 0; tries < 600 && !(await isReady()); tries++) await cluster.exec(['sleep', '0.1']);
  renameSync(views, `${views}.hidden`);
  await cluster.exec(['touch', join(outputPath, 'go')]);
  const { exitCode, stdout, stderr } = await running;
  // The Epilog has the image mounted once more, for the next job.
  await cluster.waitForSyslog(new RegExp(`: warm .*image=${image} `));
  const undo = 'umount --lazy "$1"/*/* && rmdir "$1"/*/* "$1"/* "$1" && mv "$1.hidden" "$1"';
  await cluster.exec(['sh', '-c', undo, 'sh', '/run/container-cache/views']);
  assert.equal([exitCode, stdout], [0, `hidden ${userPath.split('/').at(-1) ?? ''}\n`], stderr);
  const [line = ''] = (await linesOf(pair, 'acquire')).filter((one) => one.includes(image));
  assert.match(line, /result=created .*reason="this job does not see \/run\/container-cache\/views\//);
});

matrix.run();
