/**
 * A real Slurm for one test: munged, rsyslogd, slurmctld and slurmd from the
 * distribution's packages, private down to its accounts.
 *
 *   await using cluster = await startCluster({ slurmConf: { Prolog: '/x/prolog' } });
 *   const jobId = await cluster.sbatch('usera', [], '#!/bin/sh\nid\n');
 *   const job = await cluster.waitForJob(jobId);
 *
 * What makes it private (supervise.sh and namespace.sh):
 *
 *   - a mount namespace with the cluster's own /etc (so its own users), /run, /dev (so its
 *     own /dev/log), /var/log and /var/spool. /tmp and all else is the machine's;
 *   - a PID namespace: when its process 1 ends, the kernel ends everything in it. Process 1
 *     reads a pipe that this process holds open, so a test that is killed leaves nothing;
 *   - a temporary directory, readable for the users, deleted last.
 *
 * PIDs that the cluster's programs write down are PIDs inside; files outside the temporary
 * directory are reached from here by `hostPath()`.
 */
import * as fs from 'node:fs';
import * as fsp from 'node:fs/promises';
import * as os from 'node:os';
import * as path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { ClusterError } from './cluster-error.ts';
import { RUN_TIMEOUT_MS, startCommand, succeeded, type Running, type RunResult } from './command.ts';
import { DEFAULT_USERS, NODE_NAME, type ClusterUser } from './configuration.ts';
import { slurmAvailable, slurmVersion, SYSTEM_PATH } from './machine.ts';
import {
  buildPyxisPlugin,
  makeDirectories,
  readIfPresent,
  writeEtc,
  writeSlurmConfiguration,
  type ClusterPaths,
} from './prepare.ts';
import {
  FINAL_JOB_STATES,
  jobState,
  nodeState,
  parseRecords,
  readProcesses,
  type ClusterProcess,
  type NodeState,
  type SlurmRecord,
} from './records.ts';
import { startSupervisor, stopSupervisor, type Supervisor } from './supervisor.ts';

export { ClusterError } from './cluster-error.ts';
export { slurmAvailable } from './machine.ts';
export type { ClusterPaths } from './prepare.ts';

const SLURM_CONF = '/etc/slurm/slurm.conf';
const DEFAULT_CPUS = 8;

const START_TIMEOUT_MS = 90_000;
const STOP_TIMEOUT_MS = 60_000;
const SYSLOG_TIMEOUT_MS = 60_000;
/**
 * A look may take from what is waited for: so the longer it takes, the less often.
 */
const POLL_INTERVAL_MS = { least: 100, most: 500, partOfElapsed: 0.3 } as const;
const LOG_POLL_MS = 20;
const LOOK_AGAIN_MS = 500;
/**
 * How long a requeued job must rest so that slurmd treats it as new. slurmd compares its credentials by
 * whole seconds: a job that comes back sooner is launched without a Prolog. Slurm itself waits 121 s.
 */
const REQUEUE_REST_MS = 2100;

type Daemon = 'munged' | 'rsyslogd' | 'slurmctld' | 'slurmd';

const PID_FILES: Readonly<Record<Daemon, string>> = {
  munged: '/run/munge/munged.pid',
  rsyslogd: '/run/rsyslogd.pid',
  slurmctld: '/run/slurmctld.pid',
  slurmd: '/run/slurmd.pid',
};

export interface ClusterOptions {
  /** Parameters for slurm.conf; they win over the harness's own. */
  readonly slurmConf?: Readonly<Record<string, string>>;
  /** Further lines for plugstack.conf. */
  readonly plugstack?: readonly string[];
  /** Whether the options of pyxis exist, by way of our own plugin. Default: true. */
  readonly pyxis?: boolean;
  /** C files to link into that plugin, besides spank_pyxis_options.c. */
  readonly pyxisSources?: readonly string[];
  /** Arguments of that plugin in plugstack.conf. */
  readonly pyxisArguments?: readonly string[];
  /** Added to slurmd's environment, which is otherwise only PATH and SLURM_CONF. */
  readonly slurmdEnvironment?: Readonly<Record<string, string>>;
  /** Directories that go first in slurmd's PATH. */
  readonly slurmdPath?: readonly string[];
  readonly users?: readonly ClusterUser[];
  /** Processors the node claims to have, so the number of jobs at once. Default: 8. */
  readonly cpus?: number;
}

interface RunOptions {
  /** Added to the environment of a fresh login. */
  readonly env?: Readonly<Record<string, string>>;
  readonly input?: string;
  readonly timeoutMs?: number;
  /** Default: the user's home. */
  readonly workingDirectory?: string;
}

export interface JobResult {
  /** Slurm's JobState, of an array the first that is not COMPLETED: COMPLETED, FAILED, CANCELLED, … */
  readonly state: string;
  /** The batch script's exit code; 0 where a signal ended it. */
  readonly exitCode: number;
  readonly signalNumber: number;
  /** What the job wrote to its standard output file, empty for srun and salloc. */
  readonly stdout: string;
  /** One record, or one per array task. */
  readonly records: readonly SlurmRecord[];
}

export interface Cluster extends AsyncDisposable, ClusterPaths {
  /** `[22, 5]` for Slurm 22.05.8. */
  readonly slurmVersion: readonly [number, number];
  readonly users: readonly ClusterUser[];

  /** The path by which a test outside reaches a file inside, e.g. of /run. */
  hostPath: (insidePath: string) => string;

  /** Starts a command as a user of the cluster or root, and returns at once. */
  start: (user: string, argv: readonly string[], options?: RunOptions) => Running;
  /** Runs a command as a user of the cluster or root; throws only if it exceeds its time. */
  run: (user: string, argv: readonly string[], options?: RunOptions) => Promise<RunResult>;
  /** Runs a command as root and returns its standard output; throws if it fails. */
  exec: (argv: readonly string[], options?: RunOptions) => Promise<string>;

  /** Submits a batch script and returns the job's ID; throws if Slurm refuses it. */
  sbatch: (user: string, args: readonly string[], script: string, options?: RunOptions) => Promise<string>;
  /** The job's records, of an array all; empty if there is no such job. */
  jobRecords: (jobId: string) => Promise<SlurmRecord[]>;
  /** Waits until the job has ended, its Epilog included. */
  waitForJob: (jobId: string, timeoutMs?: number) => Promise<JobResult>;
  /** Waits until the job (all of an array) is in one of the states; returns that of the first record. */
  waitForJobState: (jobId: string, states: readonly string[], timeoutMs?: number) => Promise<string>;
  /** Requeues a running job and lets it start again after 2 s, where Slurm would wait for two minutes. */
  requeue: (jobId: string) => Promise<void>;

  nodeState: () => Promise<NodeState>;
  /** Waits until no job is on the node; a drained node may be idle as well. */
  waitForNodeIdle: (timeoutMs?: number) => Promise<void>;
  /** Brings a drained or down node back and waits until it answers. */
  resumeNode: () => Promise<void>;

  /** Lines of the cluster's syslog, oldest first, as in /var/log/syslog. */
  syslog: () => Promise<string[]>;
  /** The same lines as `facility.severity tag message`. */
  syslogWithPriority: () => Promise<string[]>;
  /** Waits for a syslog line; returns the first that matches. */
  waitForSyslog: (pattern: RegExp, timeoutMs?: number) => Promise<string>;
  slurmdLog: () => Promise<string>;
  slurmctldLog: () => Promise<string>;

  /** Processes in the cluster besides its daemons and process 1. */
  leftovers: () => Promise<ClusterProcess[]>;
  /** Stops slurmd (jobs go on) and starts it again, with another environment if one is given. */
  restartSlurmd: (environment?: Readonly<Record<string, string>>) => Promise<void>;
  /** Ends every process, mount and file of the cluster. May be called twice. */
  stop: () => Promise<void>;
}

/**
 * Starts a cluster and waits until its node is idle.
 *
 * @param options what to configure, or a function that gets the cluster's paths, may write
 *   files there (scripts, container-cache.conf), and returns what to configure.
 * @throws ClusterError with the ends of the daemons' logs; nothing is left then.
 */
export async function startCluster(
  options: ClusterOptions | ((paths: ClusterPaths) => ClusterOptions | Promise<ClusterOptions>) = {},
): Promise<Cluster> {
  const unavailable = slurmAvailable();
  if (unavailable !== undefined) throw new ClusterError(`Cannot start a cluster: ${unavailable}`);

  const directory = await fsp.mkdtemp(path.join(os.tmpdir(), 'slurm-cluster-'));
  let supervisor: Supervisor | undefined;
  try {
    const paths = await makeDirectories(directory);
    const wanted = typeof options === 'function' ? await options(paths) : options;
    const users = wanted.users ?? DEFAULT_USERS;
    const version = slurmVersion();
    const plugstack = [...(wanted.plugstack ?? [])];
    if (wanted.pyxis ?? true) {
      const plugin = await buildPyxisPlugin(paths, wanted.pyxisSources ?? []);
      plugstack.unshift(['required', plugin, ...(wanted.pyxisArguments ?? [])].join(' '));
    }
    await writeEtc(paths, users);
    await writeSlurmConfiguration(paths, {
      slurmVersion: version,
      cpus: wanted.cpus ?? DEFAULT_CPUS,
      parameters: wanted.slurmConf ?? {},
      plugstack,
    });

    supervisor = await startSupervisor(directory);
    const cluster = new RunningCluster(paths, users, version, wanted, supervisor);
    await cluster.startDaemons();
    return cluster;
  } catch (cause) {
    const logs = await logTails(directory);
    if (supervisor === undefined) await fsp.rm(directory, { recursive: true, force: true });
    else await stopSupervisor(supervisor);
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new ClusterError(`Cannot start a cluster in "${directory}": ${reason}\n${logs}`, { cause });
  }
}

class RunningCluster implements Cluster {
  readonly directory: string;
  readonly root: string;
  readonly etc: string;
  readonly homes: string;
  readonly slurmVersion: readonly [number, number];
  readonly users: readonly ClusterUser[];
  readonly #options: ClusterOptions;
  readonly #supervisor: Supervisor;

  constructor(
    paths: ClusterPaths,
    users: readonly ClusterUser[],
    version: readonly [number, number],
    options: ClusterOptions,
    supervisor: Supervisor,
  ) {
    this.directory = paths.directory;
    this.root = paths.root;
    this.etc = paths.etc;
    this.homes = paths.homes;
    this.users = users;
    this.slurmVersion = version;
    this.#options = options;
    this.#supervisor = supervisor;
  }

  hostPath(insidePath: string): string {
    return path.join('/proc', String(this.#supervisor.initPid), 'root', insidePath);
  }

  start(user: string, argv: readonly string[], options: RunOptions = {}): Running {
    const home = user === 'root' ? '/root' : path.join(this.homes, user);
    const become = user === 'root' ? [] : ['setpriv', ...this.#identity(user), '--'];
    // env changes the directory inside: nsenter's own option would take the directory outside.
    const command = [...become, 'env', `--chdir=${options.workingDirectory ?? home}`, '--', ...argv];
    const env = {
      PATH: SYSTEM_PATH,
      HOME: home,
      USER: user,
      LOGNAME: user,
      SHELL: '/bin/sh',
      LANG: 'C.UTF-8',
      SLURM_CONF,
      ...options.env,
    };
    return startCommand(this.#entering(command), { env, input: options.input, timeoutMs: options.timeoutMs });
  }

  run(user: string, argv: readonly string[], options?: RunOptions): Promise<RunResult> {
    return this.start(user, argv, options).result;
  }

  async exec(argv: readonly string[], options?: RunOptions): Promise<string> {
    return succeeded(argv, await this.run('root', argv, options));
  }

  async sbatch(user: string, args: readonly string[], script: string, options?: RunOptions): Promise<string> {
    const argv = ['sbatch', '--parsable', ...args];
    const output = succeeded(argv, await this.run(user, argv, { ...options, input: script }));
    const jobId = output.trim().split(';')[0] ?? '';
    if (!/^\d+$/.test(jobId)) {
      throw new ClusterError(`Cannot read a job ID from sbatch: found "${output}", wanted a number`);
    }
    return jobId;
  }

  async jobRecords(jobId: string): Promise<SlurmRecord[]> {
    const result = await this.run('root', ['scontrol', 'show', 'job', '--oneliner', jobId]);
    return result.exitCode === 0 ? parseRecords(result.stdout) : [];
  }

  async waitForJob(jobId: string, timeoutMs = RUN_TIMEOUT_MS): Promise<JobResult> {
    const records = await this.#waitForRecords(jobId, FINAL_JOB_STATES, timeoutMs);
    const telling = records.find((record) => jobState(record) !== 'COMPLETED') ?? records[0] ?? {};
    const [exitCode = 0, signalNumber = 0] = (telling['ExitCode'] ?? '0:0').split(':').map(Number);
    const outputs = await Promise.all(
      records.map((record) => readIfPresent(record['StdOut'] ?? '/dev/null')),
    );
    return { state: jobState(telling), exitCode, signalNumber, stdout: outputs.join(''), records };
  }

  async waitForJobState(
    jobId: string,
    states: readonly string[],
    timeoutMs = RUN_TIMEOUT_MS,
  ): Promise<string> {
    const records = await this.#waitForRecords(jobId, states, timeoutMs);
    return jobState(records[0] ?? {});
  }

  async requeue(jobId: string): Promise<void> {
    await this.exec(['scontrol', 'requeue', jobId]);
    // First COMPLETING (its Epilog runs), then PENDING with a start time in the future.
    await this.waitForJobState(jobId, ['PENDING']);
    await sleep(REQUEUE_REST_MS);
    await this.exec(['scontrol', 'update', `JobId=${jobId}`, 'StartTime=now']);
  }

  async nodeState(): Promise<NodeState> {
    const output = await this.exec(['scontrol', 'show', 'node', '--oneliner', NODE_NAME]);
    return nodeState(parseRecords(output)[0] ?? {});
  }

  async waitForNodeIdle(timeoutMs = RUN_TIMEOUT_MS): Promise<void> {
    await this.#waitForNode('idle', timeoutMs, (node) => {
      return node.base === 'IDLE' && !node.flags.includes('COMPLETING') && isAnswering(node);
    });
  }

  async resumeNode(): Promise<void> {
    await this.exec(['scontrol', 'update', `NodeName=${NODE_NAME}`, 'State=RESUME']);
    await this.#waitForNode('answering', START_TIMEOUT_MS, isAnswering);
  }

  syslog(): Promise<string[]> {
    return this.#logLines('syslog');
  }

  syslogWithPriority(): Promise<string[]> {
    return this.#logLines('syslog-priority');
  }

  async waitForSyslog(pattern: RegExp, timeoutMs = SYSLOG_TIMEOUT_MS): Promise<string> {
    const lines = await pollFor(
      `a syslog line like ${String(pattern)}`,
      timeoutMs,
      () => this.syslog(),
      (all) => all.some((line) => pattern.test(line)),
      (all) => `${all.length} lines, the last ones:\n${all.slice(-10).join('\n')}`,
    );
    return lines.find((line) => pattern.test(line)) ?? '';
  }

  slurmdLog(): Promise<string> {
    return readIfPresent(path.join(this.directory, 'log/slurmd.log'));
  }

  slurmctldLog(): Promise<string> {
    return readIfPresent(path.join(this.directory, 'log/slurmctld.log'));
  }

  async leftovers(): Promise<ClusterProcess[]> {
    const processes = await readProcesses(this.hostPath('/proc'));
    return processes
      .filter(
        ({ pid, program, command }) =>
          pid !== 1 && !isDaemon(program) && !command.includes(' container-cache-room '),
      )
      .map(({ pid, uid, command }) => ({ pid, uid, command }));
  }

  async startDaemons(): Promise<void> {
    await this.#startDaemon(['rsyslogd', '-f', '/etc/rsyslog.conf', '-i', PID_FILES.rsyslogd]);
    await this.#startDaemon([
      'munged',
      '--key-file=/etc/munge/munge.key',
      '--socket=/run/munge/munge.socket.2',
      '--log-file=/var/log/munged.log',
      '--seed-file=/var/spool/munged.seed',
      `--pid-file=${PID_FILES.munged}`,
    ]);
    await this.#startDaemon(['slurmctld', '-f', SLURM_CONF]);
    await pollFor(
      'slurmctld to answer',
      START_TIMEOUT_MS,
      async () => {
        await this.#mustRun('slurmctld');
        return this.run('root', ['scontrol', 'ping']);
      },
      (result) => result.stdout.includes('UP'),
      (result) => result.stdout + result.stderr,
    );
    await this.#startSlurmd(this.#options.slurmdEnvironment);
    await this.waitForNodeIdle(START_TIMEOUT_MS);
  }

  async restartSlurmd(environment = this.#options.slurmdEnvironment): Promise<void> {
    const pid = (await fsp.readFile(this.hostPath(PID_FILES.slurmd), 'utf8')).trim();
    await this.exec(['kill', pid]);
    await pollFor(
      `slurmd (PID ${pid}) to end`,
      STOP_TIMEOUT_MS,
      () => fs.existsSync(this.hostPath(`/proc/${pid}`)),
      (exists) => !exists,
      () => 'it still exists',
    );
    await this.#startSlurmd(environment);
    await this.#waitForNode('answering', START_TIMEOUT_MS, isAnswering);
  }

  stop(): Promise<void> {
    return stopSupervisor(this.#supervisor);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  #identity(user: string): string[] {
    const account = this.users.find((candidate) => candidate.name === user);
    if (account === undefined) {
      const known = this.users.map((candidate) => candidate.name).join(', ');
      throw new ClusterError(`Cannot become user "${user}": unknown to the cluster, wanted root, ${known}`);
    }
    return [`--reuid=${account.uid}`, `--regid=${account.gid}`, '--init-groups'];
  }

  #entering(argv: readonly string[]): string[] {
    const target = `--target=${this.#supervisor.initPid}`;
    // --root, because tests may themselves run in a chroot: a mount namespace has its own idea of "/".
    return ['nsenter', target, '--mount', '--root', '--pid', '--uts', '--ipc', '--', ...argv];
  }

  /** Starts a program that goes to the background by itself, in the environment a service has. */
  async #startDaemon(argv: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<void> {
    const running = startCommand(this.#entering(argv), { env: { PATH: SYSTEM_PATH, SLURM_CONF, ...env } });
    succeeded(argv, await running.result);
  }

  async #startSlurmd(environment: Readonly<Record<string, string>> = {}): Promise<void> {
    const searchPath = [...(this.#options.slurmdPath ?? []), SYSTEM_PATH].join(':');
    await this.#startDaemon(['slurmd', '-f', SLURM_CONF], { PATH: searchPath, ...environment });
    // Ask slurmd itself: slurmctld may take another's answer at its port for its own, and may not have
    // noticed yet that it was gone.
    await pollFor(
      'slurmd to answer',
      START_TIMEOUT_MS,
      async () => {
        await this.#mustRun('slurmd');
        return this.run('root', ['scontrol', 'show', 'slurmd', NODE_NAME]);
      },
      (result) => result.exitCode === 0 && fs.existsSync(this.hostPath(PID_FILES.slurmd)),
      (result) => result.stdout + result.stderr,
    );
  }

  #waitForRecords(jobId: string, states: readonly string[], timeoutMs: number): Promise<SlurmRecord[]> {
    return pollFor(
      `job ${jobId} to be ${states.join(' or ')}`,
      timeoutMs,
      this.#whenSlurmHasLogged(() => this.jobRecords(jobId)),
      (records) => records.length > 0 && records.every((record) => states.includes(jobState(record))),
      async (records) => {
        const jobs = records.map((record) => `${jobState(record)} (${record['Reason'] ?? ''})`);
        return `${jobs.join(', ')}, node ${JSON.stringify(await this.nodeState())}\n${await this.#whatItIsAt()}`;
      },
    );
  }

  async #whatItIsAt(): Promise<string> {
    const processes = (await this.leftovers()).map(
      ({ pid, uid, command }) => `process ${pid} of ${uid}: ${command}`,
    );
    const logged = [await this.syslog(), (await this.slurmdLog()).split('\n')].flatMap((lines) =>
      lines.slice(-10),
    );
    return [...processes, ...logged].join('\n');
  }

  /** Some mistakes in slurm.conf are found only after a daemon has gone to the background. */
  async #mustRun(daemon: Daemon): Promise<void> {
    const processes = await readProcesses(this.hostPath('/proc'));
    if (!processes.some(({ program }) => isProgramOf(daemon, program))) {
      throw new ClusterError(`Cannot start ${daemon}: it ended, wanted it to run`);
    }
  }

  /**
   * Puts off each look until a daemon of Slurm has logged something, as it does at every change, or half
   * a second: a look starts several programs, which take from what is waited for.
   */
  #whenSlurmHasLogged<T>(look: () => Promise<T>): () => Promise<T> {
    const logged = (): string =>
      ['slurmctld.log', 'slurmd.log']
        .map((name) => fs.statSync(path.join(this.directory, 'log', name), { throwIfNoEntry: false })?.size)
        .join();
    let seen: string | undefined;
    return async () => {
      const deadlineMs = performance.now() + LOOK_AGAIN_MS;
      while (logged() === seen && performance.now() < deadlineMs) await sleep(LOG_POLL_MS);
      seen = logged();
      return look();
    };
  }

  async #waitForNode(name: string, timeoutMs: number, isWanted: (node: NodeState) => boolean): Promise<void> {
    const wanted = `the node to be ${name}`;
    await pollFor(
      wanted,
      timeoutMs,
      this.#whenSlurmHasLogged(() => this.nodeState()),
      isWanted,
      (node) => JSON.stringify(node),
    );
  }

  async #logLines(file: string): Promise<string[]> {
    const text = await readIfPresent(path.join(this.directory, 'log', file));
    return text.split('\n').filter((line) => line !== '');
  }
}

/** Looks again and again until what it sees is wanted; throws with what it saw last when time is up. */
async function pollFor<T>(
  wanted: string,
  timeoutMs: number,
  look: () => T | Promise<T>,
  isWanted: (value: T) => boolean,
  describe: (value: T) => string | Promise<string>,
): Promise<T> {
  const startedMs = performance.now();
  for (;;) {
    const value = await look();
    if (isWanted(value)) return value;
    const elapsedMs = performance.now() - startedMs;
    if (elapsedMs > timeoutMs) {
      throw new ClusterError(`Waited ${timeoutMs} ms for ${wanted}, found ${await describe(value)}`);
    }
    const { least, most, partOfElapsed } = POLL_INTERVAL_MS;
    await sleep(Math.min(most, Math.max(least, elapsedMs * partOfElapsed)));
  }
}

function isAnswering(node: NodeState): boolean {
  return !node.flags.includes('NOT_RESPONDING') && !['DOWN', 'UNKNOWN'].includes(node.base);
}

function isDaemon(program: string): boolean {
  return Object.keys(PID_FILES).some((daemon) => isProgramOf(daemon as Daemon, program));
}

/** Debian calls the real program slurmd-wlm. */
function isProgramOf(daemon: Daemon, program: string): boolean {
  return program === daemon || program === `${daemon}-wlm`;
}

/** The ends of all logs, for the message of a failure. */
async function logTails(directory: string): Promise<string> {
  const files = ['munged.log', 'syslog', 'slurmctld.log', 'slurmd.log'];
  const tails = await Promise.all(
    files.map(async (file) => {
      const text = await readIfPresent(path.join(directory, 'log', file));
      return `--- ${file}\n${text.split('\n').slice(-15).join('\n')}`;
    }),
  );
  return tails.join('\n');
}
