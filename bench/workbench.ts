/**
 * The tools of the measurements: starting Prolog and Epilog as slurmd does and taking the time, and proof
 * afterwards that each of them did what its sample is named for.
 *
 * Runs inside a private node (private-node.ts), as root. Its own process stays small: starting a program
 * costs more, the more memory the starter has.
 */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import { basename, join } from 'node:path';
import process from 'node:process';
import { setTimeout as delay } from 'node:timers/promises';
import { leasePath, userPath } from '../lib/core/layout.ts';
import { parseLeaseRecord, type LeaseRecord } from '../lib/core/lease-record.ts';
import { listProcesses, processCommandLine } from '../lib/system/processes.ts';
import { childEnvironment } from '../lib/system/run-command.ts';
import { slurmdEnvironment, type SampleJob } from '../test/helpers/slurmd-calls.ts';

/** What the benchmark hands to the process inside, as JSON. */
export interface Plan {
  /** On the disk to be measured; root's. */
  readonly directory: string;
  readonly syslogPath: string;
  readonly prologPath: string;
  readonly epilogPath: string;
  readonly user: SampleJob['user'];
  /** At least 20,000 files. */
  readonly bigImagePath: string;
  readonly tinyImagePath: string;
  /** Which measurements to make. */
  readonly ids: readonly string[];
}

/** A configuration file and what it says. */
export interface Node {
  readonly configPath: string;
  readonly basePath: string;
  readonly runtimePath: string;
}

type PrologResult = 'created' | 'reused';

interface PrologSample {
  readonly job: SampleJob;
  readonly durationMs: number;
  readonly lease: LeaseRecord;
}

interface JobSample extends PrologSample {
  readonly epilogMs: number;
}

const collectorTimeoutMs = 120_000;
const syslogTimeoutMs = 10_000;
const pollMs = 10;
/** More than a Prolog writes; unsquashfs draws a bar. */
const outputLimitBytes = 16 * 1024 * 1024;

export class Workbench {
  readonly plan: Plan;
  #lastJobId = 0;
  readonly #expected = new Map<number, PrologResult>();

  constructor(plan: Plan) {
    this.plan = plan;
  }

  /** @param settings beside paths; watermarks that no disk reaches unless it says others */
  configure(name: string, base: string, settings: Readonly<Record<string, number>> = {}): Node {
    const node = {
      configPath: join(this.plan.directory, `${name}.conf`),
      basePath: join(this.plan.directory, base),
      runtimePath: `/run/container-cache-${base}`,
      statePath: `/run/container-cache-state-${base}`,
    };
    const all = {
      container_cache_data_path: node.basePath,
      runtime_dir: node.runtimePath,
      state_dir: node.statePath,
      container_cache_gc_high: 100,
      container_cache_gc_low: 99,
      ...settings,
    };
    const lines = Object.entries(all).map(([key, value]) => `${key}=${value}\n`);
    fs.writeFileSync(node.configPath, lines.join(''));
    fs.mkdirSync(node.basePath, { recursive: true, mode: 0o755 });
    return node;
  }

  newJob(image: string): SampleJob {
    this.#lastJobId++;
    return { jobId: this.#lastJobId, user: this.plan.user, image };
  }

  /**
   * Runs a whole Prolog and takes its time: from the start to the end of its process and of its output, for
   * which slurmd waits as well.
   *
   * @param expected what its log line must say; proved by `proveResults`
   */
  prolog(node: Node, image: string, expected: PrologResult): PrologSample {
    const job = this.newJob(image);
    this.#expected.set(job.jobId, expected);
    const environment = slurmdEnvironment('prolog', job, node.configPath);
    const durationMs = timeProgram(this.plan.prologPath, [], { environment });
    const text = fs.readFileSync(leasePath(node.runtimePath, job.jobId), 'utf8');
    const lease = parseLeaseRecord(text);
    if (lease === undefined) throw new Error(`Cannot read the lease of job ${job.jobId}: ${text}`);
    return { job, durationMs, lease };
  }

  /**
   * A sample that leaves nothing but the entry: its Epilog follows, outside the time.
   *
   * @param epilogNode the same paths, perhaps with watermarks that keep the Epilog from starting a collector
   */
  prologAndEpilog(node: Node, image: string, expected: PrologResult, epilogNode = node): JobSample {
    const sample = this.prolog(node, image, expected);
    return { ...sample, epilogMs: this.epilog(epilogNode, sample.job) };
  }

  /** @returns how long it took, ms */
  epilog(node: Node, job: SampleJob): number {
    return timeProgram(this.plan.epilogPath, [], {
      environment: slurmdEnvironment('epilog', job, node.configPath),
    });
  }

  /** Where the job's user has entries. */
  userPath(node: Node): string {
    return userPath(node.basePath, this.plan.user.uid);
  }

  syslog(): string {
    return fs.readFileSync(this.plan.syslogPath, 'utf8');
  }

  async waitForSyslog(pattern: RegExp): Promise<void> {
    const deadlineMs = performance.now() + syslogTimeoutMs;
    while (!pattern.test(this.syslog())) {
      if (performance.now() > deadlineMs)
        throw new Error(`Waited ${syslogTimeoutMs} ms for a syslog line like ${String(pattern)}`);
      await delay(pollMs);
    }
  }

  /**
   * Looks up in syslog what every Prolog so far says it did.
   *
   * @throws {Error} if one did something else than its sample is named for
   */
  async proveResults(): Promise<void> {
    const expectations = [...this.#expected];
    this.#expected.clear();
    const lastJobId = expectations.at(-1)?.[0];
    if (lastJobId === undefined) return;
    await this.waitForSyslog(new RegExp(` prolog job=${lastJobId} `));
    const lines = this.syslog().split('\n');
    const found = new Map<number, string>();
    for (const line of lines) {
      const [, jobId, result] = /: prolog job=(\d+) .*?\bresult=(\w+)/.exec(line) ?? [];
      if (jobId !== undefined && result !== undefined) found.set(Number(jobId), result);
    }
    for (const [jobId, expected] of expectations) {
      const result = found.get(jobId);
      if (result === expected) continue;
      const line = lines.findLast((text) => text.includes(` prolog job=${jobId} `)) ?? 'no line';
      throw new Error(`Job ${jobId} was to be ${expected}, found ${result ?? 'nothing'}: ${line}`);
    }
  }
}

interface ProgramOptions {
  readonly environment?: Readonly<Record<string, string>>;
  readonly user?: SampleJob['user'];
}

/** @returns milliseconds @throws {Error} unless it exits with 0 */
export function timeProgram(file: string, args: readonly string[], options: ProgramOptions = {}): number {
  const { user, environment = childEnvironment } = options;
  const startedAt = process.hrtime.bigint();
  const { status, signal, stderr, error } = spawnSync(file, args, {
    cwd: '/',
    env: { ...environment },
    stdio: ['ignore', 'pipe', 'pipe'],
    maxBuffer: outputLimitBytes,
    ...(user === undefined ? {} : { uid: user.uid, gid: user.gid }),
  });
  const durationMs = Number(process.hrtime.bigint() - startedAt) / 1e6;
  if (status !== 0) {
    const end = error?.message ?? signal ?? `exit code ${String(status)}`;
    throw new Error(`Cannot run ${basename(file)}: ${end} ${stderr.toString('utf8').trim()}`);
  }
  return durationMs;
}

/** Deletes a tree and waits until the disk has it all, so that the next sample finds the disk at rest. */
export function removeAndSettle(...paths: readonly string[]): void {
  timeProgram('rm', ['--recursive', '--force', '--', ...paths]);
  settleDisk();
}

export function settleDisk(): void {
  timeProgram('sync', []);
}

export const isCollectorRunning = (): boolean =>
  listProcesses().some((pid) => processCommandLine(pid)?.endsWith(' gc --background'));

/** Waits until no collector is at work. */
export async function waitForCollectors(): Promise<void> {
  const deadlineMs = performance.now() + collectorTimeoutMs;
  while (isCollectorRunning()) {
    if (performance.now() > deadlineMs)
      throw new Error(`A collector still runs after ${collectorTimeoutMs} ms`);
    await delay(pollMs);
  }
}
