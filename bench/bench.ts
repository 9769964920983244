/**
 * `npm run bench [-- OPTION…]`: what the cache costs a job, against what could not be had for less.
 *
 *   --json             print the report as JSON
 *   --only a,c         make only these measurements
 *   --directory DIR    keep entries below DIR, on the disk to be measured; default /var/tmp
 *   --picture FILE     draw the container starts as an SVG: README.md shows docs/start-times.svg
 *
 * Everything is measured side by side in one run, on images made for it: Prologs in a private node
 * (private-node.ts) that log to a real rsyslogd, container starts on two Slurms alike but for the cache
 * (container-starts.ts). The exit code tells whether all could be measured, not whether the goals hold.
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import * as os from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { parseArgs } from 'node:util';
import { distDirectory } from '../build/build.ts';
import { projectRoot } from '../build/source-files.ts';
import { mountOf } from '../lib/core/mountinfo.ts';
import { readMounts } from '../lib/system/mounts.ts';
import { runAndCleanUp, type Defer } from '../test/helpers/clean-up.ts';
import { privateNodeUnavailable, startPrivateNode, type PrivateNode } from '../test/helpers/private-node.ts';
import { describeImage, imageMaker, type SampleImage } from '../test/helpers/sample-image.ts';
import type { SampleJob } from '../test/helpers/slurmd-calls.ts';
import { containerMeasurements, measureContainerStarts } from './container-starts.ts';
import { measurements } from './measurements.ts';
import { drawStartTimes } from './picture.ts';
import { renderReport, type Facts, type Measured, type Report } from './report.ts';
import type { Plan } from './workbench.ts';

const bigFileCount = 21_000;
const tinyFileCount = 20;
/** Images, entry, victim and the tree they are made from. */
const neededBytes = 4 * 1024 ** 3;
/** Accounts that own nothing, of which every Linux has one. */
const accounts = ['nobody', 'daemon'];

const say = (text: string): void => void process.stderr.write(`bench: ${text}\n`);

async function main(defer: Defer): Promise<number> {
  const startedAtMs = performance.now();
  const ids = [...measurements, ...containerMeasurements].map(({ id }) => id);
  const { values: options } = parseArgs({
    options: {
      json: { type: 'boolean', default: false },
      only: { type: 'string', default: ids.join(',') },
      directory: { type: 'string', default: '/var/tmp' },
      picture: { type: 'string' },
    },
  });
  const wanted = options.only.split(',');
  const unknown = wanted.filter((id) => !ids.includes(id));
  if (unknown.length > 0) throw new Error(`Cannot measure ${unknown.join(', ')}: want of ${ids.join(', ')}`);
  if (options.picture !== undefined && !wanted.includes('f'))
    throw new Error('Cannot draw the picture: it needs measurement f, which --only leaves out');
  if (process.getuid?.() !== 0) {
    throw new Error(
      'Cannot measure a Prolog without root: it acts for other users. Run the benchmark as root',
    );
  }
  const unavailable = privateNodeUnavailable();
  if (unavailable !== undefined) throw new Error(`Cannot make a private node: ${unavailable}`);
  const load = os.loadavg()[0] ?? 0;

  buildAside();
  const directory = makeDirectory(options.directory);
  defer(() => {
    fs.rmSync(directory, { recursive: true, force: true });
  });
  say('starting a private node with its own syslog');
  const node = await startPrivateNode(directory);
  defer(node.stop);
  if (!node.hasSyslog)
    throw new Error('Cannot log as in production: rsyslogd not found, apt-get install rsyslog');

  const makeImage = imageMaker(defer);
  say(`making an image of ${bigFileCount.toLocaleString('en')} files`);
  const big = await makeImage({
    path: join(directory, 'big.sqsh'),
    seed: 1,
    fileCount: bigFileCount,
  });
  const tiny = await makeImage({
    path: join(directory, 'tiny.sqsh'),
    seed: 2,
    fileCount: tinyFileCount,
  });
  const measured = await measureInside(node, {
    directory,
    syslogPath: node.syslogPath,
    prologPath: join(distDirectory, 'prolog'),
    epilogPath: join(distDirectory, 'epilog'),
    user: findAccount(),
    bigImagePath: big.path,
    tinyImagePath: tiny.path,
    ids: wanted,
  });
  const containers = await measureContainerStarts({ ids: wanted, directory, makeImage, say }, defer);
  const durationSeconds = Math.round((performance.now() - startedAtMs) / 1000);
  const report: Report = {
    facts: { ...gatherFacts(directory, big, load), containers: containers.programs },
    findings: [...measured.findings, ...containers.findings],
    failures: [...measured.failures, ...containers.failures],
    durationSeconds,
  };
  process.stdout.write(
    options.json ? `${JSON.stringify(report, undefined, 2)}\n` : `\n${renderReport(report)}`,
  );
  if (options.picture !== undefined) fs.writeFileSync(options.picture, drawStartTimes(report));
  return report.failures.length === 0 ? 0 : 1;
}

/** In a process of its own, because it reports on standard output, which is the report's. */
function buildAside(): void {
  const { status } = spawnSync(process.execPath, [join(projectRoot, 'build/build.ts')], {
    stdio: ['ignore', process.stderr.fd, process.stderr.fd],
  });
  if (status !== 0) throw new Error(`Cannot build dist/: exit code ${String(status)}`);
}

/** Every directory above must be root's: the Prolog looks. */
function makeDirectory(parent: string): string {
  const { bavail, bsize } = fs.statfsSync(parent);
  if (bavail * bsize < neededBytes) {
    throw new Error(`Cannot measure in "${parent}": ${bavail * bsize} bytes free, want ${neededBytes}`);
  }
  const directory = fs.mkdtempSync(join(fs.realpathSync(parent), 'container-cache-bench-'));
  fs.chmodSync(directory, 0o755);
  return directory;
}

function findAccount(): SampleJob['user'] {
  const passwd = fs.readFileSync('/etc/passwd', 'utf8').split('\n');
  for (const name of accounts) {
    const [, , uid, gid] = passwd.find((line) => line.startsWith(`${name}:`))?.split(':') ?? [];
    if (uid !== undefined && gid !== undefined) return { name, uid: Number(uid), gid: Number(gid) };
  }
  throw new Error(`Cannot find a user for the jobs: /etc/passwd has none of ${accounts.join(', ')}`);
}

/** In a process of its own: this one has read whole images, and a big process starts others slowly. */
async function measureInside(node: PrivateNode, plan: Plan): Promise<Measured> {
  const [program = '', ...args] = node.entering;
  const script = join(import.meta.dirname, 'measure.ts');
  const child = spawn(program, [...args, process.execPath, script, JSON.stringify(plan)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let printed = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (printed += text));
  const [exitCode, signal] = (await once(child, 'close')) as [number | null, string | null];
  if (exitCode !== 0) throw new Error(`The measuring process ended with ${signal ?? String(exitCode)}`);
  return JSON.parse(printed) as Measured;
}

function gatherFacts(directory: string, image: SampleImage, loadBefore: number): Omit<Facts, 'containers'> {
  const version = (command: string, args: readonly string[], pattern: RegExp): string =>
    pattern.exec(spawnSync(command, args, { encoding: 'utf8' }).stdout)?.[0] ??
    `${command} of unknown version`;
  return {
    processor: os.cpus()[0]?.model ?? 'unknown processor',
    cores: os.availableParallelism(),
    memoryGiB: Math.round(os.totalmem() / 1024 ** 3),
    kernel: os.release(),
    filesystem: mountOf(directory, readMounts())?.filesystem ?? 'unknown filesystem',
    runtime: process.version,
    unsquashfs: version('unsquashfs', ['-version'], /unsquashfs version [\d.]+/),
    loadBefore,
    image: `${describeImage(image)}; page cache warm`,
    log: `syslog, to ${version('rsyslogd', ['-v'], /rsyslogd +[\d.]+/)} on a private /dev/log`,
  };
}

await runAndCleanUp(main);
