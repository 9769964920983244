/**
 * `build/run exec test/trust/volume-run.ts [--most 4] [--rounds 3] [--only NAME]…`: how bob is served beside
 * alice, who has 10, 100, … of each of the volumes (volume.ts): the time of a warm Prolog, of a Prolog that
 * needs room, and of a whole collection, by what they take without her.
 */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';
import { randomBytes } from 'node:crypto';
import { build } from '../../build/build.ts';
import { readUsage } from '../../lib/system/disk-usage.ts';
import { enterPrivateMachine, bob, command, unlessPrivateMachine } from '../helpers/private-machine.ts';

enterPrivateMachine();
if (unlessPrivateMachine !== undefined) throw new Error(`Cannot measure here: ${unlessPrivateMachine}`);
const { makeExt4 } = await import('../helpers/filesystem.ts');
const { TestNode } = await import('../helpers/node.ts');
const { fillBut, hashOf, makeVolume, removeVolume, startWithMounts, volumes } = await import('./volume.ts');

const { values } = parseArgs({
  options: {
    most: { type: 'string', default: '4' },
    rounds: { type: 'string', default: '3' },
    only: { type: 'string', multiple: true },
  },
});
const mebibyte = 1024 * 1024;
const rounds = Number(values.rounds);

await build();
using disk = makeExt4({ mebibytes: 384, inodes: 140_000 });
await using node = await TestNode.start({ basePath: disk.path });
const settings = { gc_min_age: 0, enroot_path: '/none/enroot', log_level: 'info' };
const warm = node.image({ file: { content: 'warm' } });
const large = node.image({ file: { content: randomBytes(16 * mebibyte) } });
let jobId = 0;

const median = (samples: readonly number[]): number =>
  samples.toSorted((one, other) => one - other)[Math.floor(samples.length / 2)] ?? Number.NaN;

async function timed(action: () => Promise<unknown>): Promise<number> {
  const startMs = performance.now();
  await action();
  return performance.now() - startMs;
}

function must(expected: string, found: string | undefined, what: string): void {
  if (expected !== found) throw new Error(`${what}: ${found ?? 'nothing'}, want ${expected}`);
}

async function warmProlog(): Promise<number> {
  node.configure({ ...settings, container_cache_gc_high: 100, container_cache_gc_low: 99 });
  const id = ++jobId;
  let result: string | undefined;
  const ms = await timed(async () => {
    ({ result } = (await node.prolog({ id, user: bob, image: warm })).line);
  });
  await node.epilog({ id, user: bob });
  must('reused', result, 'a warm Prolog');
  return ms;
}

/** What bob's old entry takes is what the image needs. */
async function prologInNeed(): Promise<number> {
  node.configure({ ...settings, container_cache_gc_high: 100, container_cache_gc_low: 99 });
  command('rm', '--recursive', '--force', node.userPath(bob), join(node.basePath, 'ballast'));
  for (const number of [1, 2])
    node.plant(bob, { hash: hashOf(number), usedSecondsAgo: 1000 - number, bytes: 16 * mebibyte });
  command('sync', '--file-system', node.basePath);
  fillBut(node, 8 * mebibyte, () => readUsage(node.basePath).availableBytes);
  const id = ++jobId;
  let line: Readonly<Record<string, string>> = {};
  const ms = await timed(async () => {
    ({ line } = await node.prolog({ id, user: bob, image: large }));
  });
  await node.epilog({ id, user: bob });
  rmSync(join(node.basePath, 'ballast'), { force: true });
  must('created', line['result'], `a Prolog that needs room: ${line['reason'] ?? ''}`);
  return ms;
}

async function collection(): Promise<number> {
  node.configure({ ...settings, container_cache_gc_high: 1, container_cache_gc_low: 0 });
  command('rm', '--recursive', '--force', node.userPath(bob));
  for (let number = 1; number <= 20; number++)
    node.plant(bob, { hash: hashOf(number), usedSecondsAgo: 1000 - number, files: 100 });
  let text = '';
  const ms = await timed(async () => {
    text = JSON.stringify((await node.gc('--force')).lines);
  });
  if (node.entries(bob).length > 0)
    throw new Error(`a collection left ${node.entries(bob).length} entries of bob: ${text}`);
  return ms;
}

const services = { warm: warmProlog, room: prologInNeed, collection } as const;
type Service = keyof typeof services;

/** @param prepare before each sample: some of them take away what alice has */
async function measure(prepare: () => void): Promise<Record<Service, number>> {
  const found: Record<Service, number> = { warm: 0, room: 0, collection: 0 };
  for (const service of Object.keys(services) as Service[]) {
    const samples: number[] = [];
    const count = service === 'warm' ? 3 * rounds : rounds;
    if (service === 'warm') {
      prepare();
      node.configure({ ...settings, container_cache_gc_high: 100, container_cache_gc_low: 99 });
      const id = ++jobId;
      await node.prolog({ id, user: bob, image: warm });
      await node.epilog({ id, user: bob });
      await node.settle();
    }
    for (let round = 0; round < count; round++) {
      if (service !== 'warm') prepare();
      samples.push(await services[service]());
      await node.settle();
    }
    found[service] = median(samples);
  }
  return found;
}

const show = (ms: number): string => `${Math.round(ms)} ms`.padStart(9);

async function report(what: string, prepare: () => void): Promise<void> {
  // Beside it each time: the machine may have become slower meanwhile.
  const without = await measure(() => {
    removeVolume(node);
  });
  const found = await measure(() => {
    removeVolume(node);
    prepare();
  });
  const texts = (Object.keys(services) as Service[]).map(
    (service) =>
      `${service} ${show(found[service])} /${show(without[service])} = ${(found[service] / without[service]).toFixed(2)}`,
  );
  process.stdout.write(`${what.padEnd(48)} ${texts.join('  ')}\n`);
}

const isWanted = (name: string): boolean => values.only?.includes(name) ?? true;

for (const [name, volume] of Object.entries(volumes).filter(([one]) => isWanted(one)))
  for (let power = values.only === undefined ? Number(values.most) : 1; power <= Number(values.most); power++)
    await report(`10^${power} ${name}`, () => {
      makeVolume(node, volume, 10 ** power);
    });
if (isWanted('mounts')) {
  using _ = await startWithMounts(node, 10 ** Math.min(4, Number(values.most)));
  await report(`10^${Math.min(4, Number(values.most))} mounts`, () => undefined);
}
