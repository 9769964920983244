/**
 * `npm run demo`: two jobs with one image, a third that fills the disk, and what an operator sees of it; then
 * containers that start from an entry (container-demo.ts).
 *
 * As root with Slurm's packages the jobs are real ones, submitted with srun. Without Slurm, or without root,
 * Prolog and Epilog are called as slurmd would call them, and there are no containers. Either way the
 * executables of dist/ unpack a real squashfs image and log to a real rsyslogd, in namespaces that are gone
 * afterwards. Each step checks itself: the exit code is 0 only if everything did what the demo says.
 */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { setTimeout as delay } from 'node:timers/promises';
import { executable } from '../build/build.ts';
import { projectRoot } from '../build/source-files.ts';
import { usedPercent } from '../lib/core/gc-plan.ts';
import { entryPath, jobPath, jobsPath, leasePath, leasesPath, trashPath } from '../lib/core/layout.ts';
import { parseLeaseRecord, type LeaseRecord } from '../lib/core/lease-record.ts';
import { renderTable } from '../lib/core/readable.ts';
import { readUsage } from '../lib/system/disk-usage.ts';
import { systemPath } from '../lib/system/run-command.ts';
import { runAndCleanUp, type Defer } from '../test/helpers/clean-up.ts';
import { privateNodeUnavailable } from '../test/helpers/private-node.ts';
import { imageMaker, type SampleImage } from '../test/helpers/sample-image.ts';
import { slurmAvailable } from '../test/slurm/cluster.ts';
import { startBareNode } from './bare-node.ts';
import { showContainers } from './container-demo.ts';
import type { DemoJob, DemoNode, DemoUser } from './demo-node.ts';
import { startSlurmNode } from './slurm-node.ts';
import {
  check,
  command,
  facts,
  failedChecks,
  heading,
  lines,
  say,
  skipped,
  table,
  title,
} from './terminal.ts';

const isRoot = process.getuid?.() === 0;

const filesPerImage = 8000;
/**
 * The two images together take this share of the disk, above the high watermark; one alone is below the low
 * one.
 */
const bothImagesPercent = 80;
const settings = { container_cache_gc_high: 70, container_cache_gc_low: 60, gc_min_age: 0 } as const;

const logTimeoutMs = 60_000;
const pollMs = 20;

async function main(defer: Defer): Promise<number> {
  title('container-cache: the second job with an image finds it unpacked');
  showBuild();

  const obstacle = findObstacle();
  if (obstacle !== undefined) {
    skipped('the way of a job', obstacle);
    return failedChecks() === 0 ? 0 : 1;
  }
  const images = await showImages(defer);
  const node = await showNode(images, defer);
  const stage = new Stage(node);

  const cold = await stage.showColdJob(images.one);
  const warm = await stage.showWarmJob(images.one, cold);
  await stage.showFullDisk(images.two, warm);
  await stage.showEnd(warm);
  await stage.showLog();
  showFigures(node, cold, warm);
  await showContainers(defer);

  const failures = failedChecks();
  say('');
  say(failures === 0 ? 'Everything did what it should.' : `${failures} checks FAILED.`);
  return failures === 0 ? 0 : 1;
}

function showBuild(): void {
  heading('Build');
  command('$', 'npm run build');
  const { status, stdout, stderr } = spawnSync(process.execPath, [join(projectRoot, 'build/build.ts')], {
    encoding: 'utf8',
  });
  if (status !== 0) throw new Error(`Cannot build dist/: exit code ${String(status)}\n${stdout}${stderr}`);
  lines([stdout.trimEnd().split('\n').at(-1) ?? '']);
  const { size } = fs.statSync(executable);
  say(
    `dist/container-cache, prolog and epilog are one file of ${mib(size)}; it needs no Node on the machine.`,
  );
  const version = spawnSync(executable, ['--version'], { encoding: 'utf8', env: {} });
  check(`dist/container-cache runs: version ${version.stdout.trim()}`, version.status === 0, version.stderr);
}

/** Why nothing but the build can be shown here; undefined if there is no obstacle. */
function findObstacle(): string | undefined {
  const missing = ['mksquashfs', 'unsquashfs', 'setpriv', 'unshare', 'nsenter', 'logger', 'bash'].filter(
    (program) => !systemPath.split(':').some((bin) => fs.existsSync(join(bin, program))),
  );
  if (missing.length > 0)
    return `${missing.join(', ')} not found: apt-get install squashfs-tools util-linux bsdutils`;
  return privateNodeUnavailable();
}

interface Images {
  readonly one: SampleImage;
  readonly two: SampleImage;
}

async function showImages(defer: Defer): Promise<Images> {
  heading('Two images');
  const directory = fs.mkdtempSync(join(os.tmpdir(), 'container-cache-demo-'));
  fs.chmodSync(directory, 0o755);
  defer(() => {
    fs.rmSync(directory, { recursive: true, force: true });
  });
  const makeImage = imageMaker(defer);
  const make = (name: string, seed: number): Promise<SampleImage> =>
    makeImage({ path: join(directory, name), seed, fileCount: filesPerImage });
  const images = { one: await make('one.sqsh', 1), two: await make('two.sqsh', 2) };
  facts(
    Object.values(images).map(({ path, inodes, unpackedBytes, imageBytes }) => [
      path,
      `${mib(imageBytes)}; unpacked ${mib(unpackedBytes)} in ${count(inodes)} files and directories`,
    ]),
  );
  return images;
}

async function showNode({ one, two }: Images, defer: Defer): Promise<DemoNode> {
  heading('A node');
  const diskBytes = Math.ceil(((one.unpackedBytes + two.unpackedBytes) * 100) / bothImagesPercent);
  const noSlurm = slurmAvailable();
  if (!isRoot) {
    skipped('Slurm, and unpacking for other users', 'slurmd runs the Prolog as root, and you are not root');
  } else if (noSlurm !== undefined) {
    skipped('Slurm', noSlurm);
  }
  const start = noSlurm === undefined ? startSlurmNode : startBareNode;
  const node = await start({ diskBytes, settings }, defer);
  say(`It is ${node.description}.`);
  say(
    'pyxis and enroot are not in it, so these tasks run outside a container; all that Prolog and Epilog do is real.',
  );
  if (node.noSyslogReason !== undefined)
    skipped('syslog', `${node.noSyslogReason}; the programs log to standard error`);
  facts([
    ...node.configuration,
    ['container-cache.conf', `container_cache_data_path=${node.basePath}`],
    ...Object.entries(settings).map(([key, value]) => ['', `${key}=${value}`] as const),
    ['disk for entries', `${mib(diskBytes)} (tmpfs), ${percent(node)} full`],
  ]);
  return node;
}

/** A job of the story, and what its Prolog said. */
interface Shown {
  readonly job: DemoJob;
  readonly user: DemoUser;
  readonly lease: LeaseRecord;
  /** Of the entry, inside. */
  readonly path: string;
  readonly prologMs: number;
}

class Stage {
  readonly #node: DemoNode;
  #shownLines = 0;

  constructor(node: DemoNode) {
    this.#node = node;
  }

  async showColdJob(image: SampleImage): Promise<Shown> {
    const node = this.#node;
    heading('The first job with an image: cold');
    const cold = await this.#startJob(node.users[0], image, 'created');
    const { job, lease, path } = cold;
    say('While the job runs there are');
    this.#showOnDisk(cold);
    const found = countInodes(node.hostPath(path));
    // The lock file is ours.
    check(
      'the entry has all that is in the image',
      found === image.inodes + 1,
      `${found}, want ${image.inodes + 1}`,
    );
    check(
      'a task is told where its entries are',
      job.taskEnvironment.includes(`ENROOT_DATA_PATH=${parentOf(path)}`),
    );

    await job.finish();
    await this.#waitForLine(new RegExp(` epilog job=${job.jobId} .*result=released`));
    say('The job ends. Its Epilog stopped the holder and removed lease and job files; the entry stays.');
    await this.#showNewLines();
    check('no holder is left', !this.#isHolderAlive(lease));
    check('no lease is left', !this.#exists(leasePath(node.runtimePath, job.jobId)));
    check('the entry is left', this.#exists(path));
    return cold;
  }

  async showWarmJob(image: SampleImage, cold: Shown): Promise<Shown> {
    heading('The second job with it: warm');
    const warm = await this.#startJob(this.#node.users[0], image, 'reused');
    check('it has the entry of the first job', warm.path === cold.path, warm.path);
    say('This job goes on running.');
    return warm;
  }

  async showFullDisk(image: SampleImage, running: Shown): Promise<void> {
    const node = this.#node;
    heading('The disk fills, and the collector makes room');
    say(`The disk is ${percent(node)} full. Another job with another image:`);
    const other = await this.#startJob(node.users[1], image, 'created');
    say(
      `The disk is ${percent(node)} full, above container_cache_gc_high: the Epilog will start the collector.`,
    );
    await other.job.finish();
    const { basePath, hostPath } = node;
    await this.#waitFor(
      'the eviction',
      () => !this.#exists(other.path) && fs.readdirSync(hostPath(trashPath(basePath))).length === 0,
    );
    await this.#waitForLine(/ gc result=/);
    await this.#showNewLines();
    check('the entry that nobody uses is gone', !this.#exists(other.path));
    check('the entry of the running job was used less recently, and is kept', this.#exists(running.path));
    say(`The disk is ${percent(node)} full. What the collector would do now:`);
    command('root#', 'container-cache gc --dry-run');
    const plan = await node.admin(['gc', '--dry-run']);
    lines(plan.trimEnd().split('\n'));
    check('it would keep the entry because of its lease', /^keep .* because=leased$/m.test(plan));
  }

  async showEnd({ job, path, lease }: Shown): Promise<void> {
    const { runtimePath, hostPath } = this.#node;
    heading('The second job ends');
    await job.finish();
    await this.#waitForLine(new RegExp(` epilog job=${job.jobId} .*result=released`));
    await this.#showNewLines();
    const left = [leasesPath(runtimePath), jobsPath(runtimePath)].flatMap((directory) =>
      fs.readdirSync(hostPath(directory)),
    );
    check('no lease and no job file is left', left.length === 0, left.join(', '));
    check('no holder is left', !this.#isHolderAlive(lease));
    check('the entry waits for the next job', this.#exists(path));
  }

  async showLog(): Promise<void> {
    const { noSyslogReason } = this.#node;
    heading(noSyslogReason === undefined ? 'What an operator saw in syslog' : 'What was logged');
    lines(await this.#node.log());
  }

  async #startJob(user: DemoUser, image: SampleImage, expected: string): Promise<Shown> {
    const node = this.#node;
    const job = await node.startJob(user, image.path);
    command(...job.command);
    const line = await this.#waitForLine(new RegExp(` prolog job=${job.jobId} `));
    await this.#showNewLines();
    const result = field(line, 'result');
    check(`job ${job.jobId}: result=${expected}`, result === expected, result);
    const record = fs.readFileSync(node.hostPath(leasePath(node.runtimePath, job.jobId)), 'utf8');
    const lease = parseLeaseRecord(record);
    const [entry] = lease?.entries ?? [];
    if (lease === undefined || entry === undefined)
      throw new Error(`Job ${job.jobId} has no lease: ${record}`);
    check('a holder keeps its entry', this.#isHolderAlive(lease));
    const prologMs = Number(field(line, 'total_ms'));
    return { job, user, lease, path: entryPath(node.basePath, user.uid, entry), prologMs };
  }

  #showOnDisk({ job, lease, path }: Shown): void {
    const { runtimePath, hostPath } = this.#node;
    const files = jobPath(runtimePath, job.jobId);
    const { pid } = lease.holder;
    const status = fs.readFileSync(hostPath(`/proc/${pid}/status`), 'latin1');
    const residentKib = Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1]);
    const title = fs.readFileSync(hostPath(`/proc/${pid}/cmdline`), 'latin1').split('\0')[0] ?? '';
    facts([
      ['entry', path],
      ['lease', leasePath(runtimePath, job.jobId)],
      ['holder', `process ${pid} "${title}", ${(residentKib / 1024).toFixed(1)} MiB`],
      ...fs.readdirSync(hostPath(files)).map((name) => [`job's ${name}`, join(files, name)] as const),
      ...job.taskEnvironment.map((variable, index) => [index === 0 ? 'a task has' : '', variable] as const),
    ]);
  }

  #exists(insidePath: string): boolean {
    return fs.existsSync(this.#node.hostPath(insidePath));
  }

  #isHolderAlive({ jobId, holder }: LeaseRecord): boolean {
    try {
      const environment = fs.readFileSync(this.#node.hostPath(`/proc/${holder.pid}/environ`), 'latin1');
      return environment.split('\0').includes(`CONTAINER_CACHE_LEASE=${jobId}`);
    } catch {
      // ENOENT or ESRCH: it has ended.
      return false;
    }
  }

  async #waitFor(what: string, isTrue: () => boolean): Promise<void> {
    const deadlineMs = performance.now() + logTimeoutMs;
    while (!isTrue()) {
      if (performance.now() > deadlineMs) throw new Error(`Waited ${logTimeoutMs} ms for ${what}`);
      await delay(pollMs);
    }
  }

  /** @returns the line; empty for a line of a background program where there is no syslog */
  async #waitForLine(pattern: RegExp): Promise<string> {
    const deadlineMs = performance.now() + logTimeoutMs;
    for (;;) {
      const log = await this.#node.log();
      const line = log.find((text) => pattern.test(text));
      if (line !== undefined) return line;
      if (this.#node.noSyslogReason !== undefined) return '';
      if (performance.now() > deadlineMs) {
        const end = log.slice(-5).join('\n');
        throw new Error(`Waited ${logTimeoutMs} ms for a log line like ${String(pattern)}, found\n${end}`);
      }
      await delay(pollMs);
    }
  }

  /** Prints the log lines that came since the last time. */
  async #showNewLines(): Promise<void> {
    const log = await this.#node.log();
    lines(log.slice(this.#shownLines));
    this.#shownLines = log.length;
  }
}

function showFigures(node: DemoNode, cold: Shown, warm: Shown): void {
  heading('Figures of this run');
  const row = (what: string, coldMs: number, warmMs: number): string[] => [
    what,
    `${Math.round(coldMs)} ms`,
    `${Math.round(warmMs)} ms`,
    `${(coldMs / warmMs).toFixed(1)}x`,
  ];
  table(
    renderTable([
      ['', 'cold', 'warm', 'ratio'],
      row('Prolog, by its own log line', cold.prologMs, warm.prologMs),
      row(node.startDescription, cold.job.startMs, warm.job.startMs),
    ]),
  );
}

const mib = (bytes: number): string => `${Math.round(bytes / 1024 ** 2)} MiB`;

const count = (number: number): string => number.toLocaleString('en');

const percent = (node: DemoNode): string =>
  `${usedPercent(readUsage(node.hostPath(node.basePath))).toFixed(0)} %`;

const parentOf = (path: string): string => join(path, '..');

function field(line: string, key: string): string | undefined {
  return new RegExp(` ${key}=(\\S+)`).exec(line)?.[1];
}

/** Files, directories and links of a tree, the tree itself included, hard links counted once. */
function countInodes(path: string): number {
  const names = fs.readdirSync(path, { recursive: true, encoding: 'utf8' });
  return new Set(['', ...names].map((name) => fs.lstatSync(join(path, name)).ino)).size;
}

await runAndCleanUp(main);
