/**
 * A node in a temporary root: a base, a runtime directory and a configuration of its own, on which the built
 * programs run as slurmd runs them: Slurm's variables and nothing else, a process group of their own, output
 * read until the last writer is gone.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { basename, join } from 'node:path';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { build, distDirectory } from '../../build/build.ts';
import { formatEntryMetadata } from '../../lib/core/entry-metadata.ts';
import {
  entryName,
  entryPath,
  holderVariable,
  isStepEventsName,
  lockFileName,
  parseCreateLockName,
  parseEntryDirectoryName,
  roomPath,
} from '../../lib/core/layout.ts';
import type { LeaseRecord } from '../../lib/core/lease-record.ts';
import { listLeases } from '../../lib/store/lease.ts';
import { roomAgentTitle } from '../../lib/store/room-agent.ts';
import { bootId } from '../../lib/system/boot.ts';
import { unlessErrno } from '../../lib/system/errno.ts';
import { command, machineRoot, mount, type TestUser } from './private-machine.ts';
import { makeImage, type Tree } from './squashfs-image.ts';

/** A job as slurmd tells it. */
export interface JobRequest {
  readonly id: number;
  readonly user: TestUser;
  /** `--container-image` at allocation. */
  readonly image?: string;
  readonly name?: string;
  readonly save?: string;
  readonly workPath?: string;
  /** A command that runs the program, for example strace. */
  readonly wrapper?: readonly string[];
  /** Beside Slurm's; undefined takes one of them away. */
  readonly environment?: Readonly<Record<string, string | undefined>>;
}

export interface LogLine {
  readonly level: string;
  readonly word: string;
  readonly fields: Readonly<Record<string, string>>;
}

export interface ProgramResult {
  readonly exitCode: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
  /** Without the one that the first Prolog of a node writes about the node itself. */
  readonly lines: readonly LogLine[];
  readonly nodeLine: LogLine | undefined;
  /** The one line that a Prolog or Epilog ends with, its fields as text. */
  readonly line: Readonly<Record<string, string>>;
}

export interface RunningProgram {
  readonly pid: number;
  /** Resolves when the program has ended and nobody has its output open any more. */
  readonly result: Promise<ProgramResult>;
  readonly kill: (signal: NodeJS.Signals) => void;
}

export interface NodeOptions {
  /** Where the base is made; default: in the node's root. */
  readonly basePath?: string;
  /** Lines of the configuration file beside the base, the runtime directory and the log's target. */
  readonly settings?: Readonly<Record<string, string | number>>;
  /** Longer than any program of this node runs; one that hangs is killed. Default: a minute. */
  readonly programLimitMs?: number;
}

interface PlantedEntry {
  /** 16 hex digits. */
  readonly hash: string;
  readonly usedSecondsAgo: number;
  /** Of its first file. */
  readonly bytes?: number;
  readonly files?: number;
  /** Text of the lock file in place of a true one; null: no lock file. */
  readonly metadata?: string | null;
}

/** Longer than anything a test waits for: a test that hangs fails by it, none passes by it. */
const hangLimitMs = 120_000;
/** Between two looks: what is looked at costs processor time, which the others on a busy machine need. */
const pollMs = { least: 5, most: 50, partOfElapsed: 0.05 } as const;

/**
 * Resolves when `condition` gives something other than undefined and false; it is for states, never for
 * durations.
 */
export async function until<T>(what: string, condition: () => T | undefined | false): Promise<T> {
  const startedMs = performance.now();
  for (;;) {
    const value = condition();
    if (value !== undefined && value !== false) return value;
    const elapsedMs = performance.now() - startedMs;
    if (elapsedMs > hangLimitMs) throw new Error(`Waited ${hangLimitMs} ms in vain until ${what}`);
    await sleep(Math.min(pollMs.most, Math.max(pollMs.least, elapsedMs * pollMs.partOfElapsed)));
  }
}

/** dist/, where users reach it: the checkout may be in root's home, which is closed to them. */
const openDistDirectory = join(machineRoot, 'dist');

/**
 * The path of a program of dist/ by which users, too, can execute it. A node must have been started before.
 */
export const programPath = (name: string): string => join(openDistDirectory, name);

/** After 1970, when the first image of a node says that it was made. */
const firstImageSeconds = 1_000_000_000;

export class TestNode implements AsyncDisposable {
  readonly root: string;
  readonly basePath: string;
  readonly runtimePath: string;
  readonly statePath: string;
  readonly configPath: string;
  readonly #running = new Set<ChildProcess>();
  readonly #programLimitMs: number;
  #images = 0;

  private constructor(options: NodeOptions) {
    this.root = mkdtempSync(join(machineRoot, 'node-'));
    chmodSync(this.root, 0o755);
    mkdirSync(join(this.root, 'images'), { mode: 0o755 });
    this.basePath = options.basePath ?? join(this.root, 'data');
    this.runtimePath = join(this.root, 'run');
    // Beside the rest: what is counted is no trace of what a test is about.
    this.statePath = `${this.root}.state`;
    this.configPath = join(this.root, 'container-cache.conf');
    this.#programLimitMs = options.programLimitMs ?? hangLimitMs;
    this.configure(options.settings ?? {});
  }

  static async start(options: NodeOptions = {}): Promise<TestNode> {
    await build();
    if (!existsSync(openDistDirectory)) {
      mkdirSync(openDistDirectory);
      mount('--bind', distDirectory, openDistDirectory);
    }
    return new TestNode(options);
  }

  /** Writes the configuration anew. */
  configure(settings: Readonly<Record<string, string | number>>): void {
    const all = {
      container_cache_data_path: this.basePath,
      runtime_dir: this.runtimePath,
      state_dir: this.statePath,
      log_target: 'stderr',
      log_level: 'debug',
      ...settings,
    };
    this.writeConfig(
      Object.entries(all)
        .map(([key, value]) => `${key}=${value}\n`)
        .join(''),
    );
  }

  writeConfig(text: string): void {
    writeFileSync(this.configPath, text);
  }

  /**
   * Makes another image file of the node: of another content, too, since no two are of the same second by
   * what they say.
   */
  image(tree?: Tree, options: readonly string[] = []): string {
    const number = ++this.#images;
    const ofOwnSecond = ['-mkfs-time', String(firstImageSeconds + number)];
    return makeImage(join(this.root, 'images', `image-${number}.sqsh`), tree, [...ofOwnSecond, ...options]);
  }

  prolog(job: JobRequest): Promise<ProgramResult> {
    return this.startProlog(job).result;
  }

  startProlog(job: JobRequest): RunningProgram {
    return this.#start('prolog', [], jobEnvironment(job, 'prolog_slurmd'), job.wrapper);
  }

  epilog(job: JobRequest): Promise<ProgramResult> {
    return this.startEpilog(job).result;
  }

  startEpilog(job: JobRequest): RunningProgram {
    return this.#start('epilog', [], jobEnvironment(job, 'epilog_slurmd'), job.wrapper);
  }

  /** `container-cache gc OPTION…` */
  gc(...options: readonly string[]): Promise<ProgramResult> {
    return this.startGc(...options).result;
  }

  startGc(...options: readonly string[]): RunningProgram {
    return this.admin('gc', ...options);
  }

  admin(...parameters: readonly string[]): RunningProgram {
    return this.adminBy([], ...parameters);
  }

  /** The same, run by a command. */
  adminBy(wrapper: readonly string[], ...parameters: readonly string[]): RunningProgram {
    return this.#start('container-cache', parameters, {}, wrapper);
  }

  #start(
    program: string,
    parameters: readonly string[],
    environment: Readonly<Record<string, string | undefined>>,
    wrapper: readonly string[] = [],
  ): RunningProgram {
    const [file = '', ...rest] = [...wrapper, programPath(program), ...parameters];
    const child = spawn(file, rest, {
      cwd: '/',
      detached: true,
      env: { CONTAINER_CACHE_CONF: this.configPath, ...environment },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.#running.add(child);
    const limit = setTimeout(() => child.kill('SIGKILL'), this.#programLimitMs);
    const { promise, resolve, reject } = Promise.withResolvers<ProgramResult>();
    const output = { stdout: '', stderr: '' };
    for (const name of ['stdout', 'stderr'] as const)
      child[name].setEncoding('utf8').on('data', (text: string) => (output[name] += text));
    child.on('error', reject);
    child.on('close', (exitCode, signal) => {
      this.#running.delete(child);
      clearTimeout(limit);
      const allLines = parseLog(output.stderr);
      const lines = allLines.filter(({ word }) => word !== 'node');
      const nodeLine = allLines.find(({ word }) => word === 'node');
      const line = lines.findLast(({ word }) => word === program)?.fields ?? {};
      resolve({ exitCode, signal, ...output, lines, nodeLine, line });
    });
    const { pid } = child;
    if (pid === undefined) throw new Error(`Cannot start ${program}`);
    return {
      pid,
      result: promise,
      kill: (signal) => {
        process.kill(pid, signal);
      },
    };
  }

  userPath(user: TestUser): string {
    return join(this.basePath, String(user.uid));
  }

  entryPath(user: TestUser, name: string): string {
    return entryPath(this.basePath, user.uid, name);
  }

  /** Paths of the user's entries: whatever is called like one. */
  entries(user: TestUser): string[] {
    return this.#names(user)
      .filter((name) => parseEntryDirectoryName(user.uid, name) !== undefined)
      .map((name) => join(this.userPath(user), name));
  }

  /** Names in the user directory that are no entry's, nor notes of steps. */
  others(user: TestUser): string[] {
    return this.#names(user).filter(
      (name) => parseEntryDirectoryName(user.uid, name) === undefined && !isStepEventsName(name),
    );
  }

  /**
   * The create lock of the only image that the user has had unpacked: it is named by what images have in
   * common, not by its entry.
   */
  createLock(user: TestUser): string {
    const name = this.others(user).find((one) => parseCreateLockName(one) !== undefined);
    return join(this.userPath(user), name ?? 'no create lock');
  }

  /** What steps of the user have noted for their Epilog. */
  stepEvents(user: TestUser): string[] {
    return this.#names(user).filter(isStepEventsName);
  }

  partials(user: TestUser): string[] {
    return this.others(user).filter((name) => name.endsWith('.partial'));
  }

  #names(user: TestUser): string[] {
    return existsSync(this.userPath(user)) ? readdirSync(this.userPath(user)).sort() : [];
  }

  /**
   * Puts an entry on the node as a Prolog would have, unpacked that long ago and not used since.
   *
   * @returns its path
   */
  plant(user: TestUser, entry: PlantedEntry): string {
    const path = entryPath(this.basePath, user.uid, entryName(user.uid, entry.hash));
    this.makeUserDirectory(user);
    mkdirSync(path);
    for (let index = 0; index < (entry.files ?? 1); index++)
      writeFileSync(join(path, `f${index}`), index === 0 ? Buffer.alloc(entry.bytes ?? 0, 1) : '');
    const metadata = { image: `/images/${entry.hash}.sqsh`, createdAtMs: 0, unpackMs: 1, bootId: bootId() };
    const space = { bytes: entry.bytes ?? 0, inodes: (entry.files ?? 1) + 1 };
    if (entry.metadata !== null)
      writeFileSync(
        join(path, lockFileName),
        entry.metadata ?? formatEntryMetadata({ ...metadata, ...space }),
      );
    for (const one of [path, ...readdirSync(path).map((name) => join(path, name))])
      chownSync(one, user.uid, user.gid);
    setUsed(path, entry.usedSecondsAgo);
    return path;
  }

  makeUserDirectory(user: TestUser): string {
    if (existsSync(this.userPath(user))) return this.userPath(user);
    mkdirSync(this.basePath, { recursive: true, mode: 0o755 });
    mkdirSync(this.userPath(user), { mode: 0o700 });
    chownSync(this.userPath(user), user.uid, user.gid);
    return this.userPath(user);
  }

  trash(): string[] {
    const path = join(this.basePath, '.trash');
    return existsSync(path) ? readdirSync(path) : [];
  }

  leases(): LeaseRecord[] {
    return listLeases(this.runtimePath);
  }

  lease(jobId: number): LeaseRecord | undefined {
    return this.leases().find((record) => record.jobId === jobId);
  }

  jobFile(jobId: number, name: 'env' | 'images'): string | undefined {
    const path = join(this.runtimePath, 'jobs', String(jobId), name);
    return existsSync(path) ? readFileSync(path, 'utf8') : undefined;
  }

  /** The sleeping processes that make room for steps. */
  roomAgents(): number[] {
    return processes()
      .filter(
        ({ commandLine }) =>
          commandLine.includes(roomAgentTitle) && commandLine.includes(` ${roomPath(this.runtimePath)} `),
      )
      .map(({ pid }) => pid);
  }

  /**
   * Resolves when nothing that was started in the background runs any more: a collector, or what marks an
   * entry settled.
   */
  async settle(): Promise<void> {
    // While one program of such a chain executes the next, its command line is empty for a moment.
    let looksWithout = 0;
    await until('what runs in the background has ended', () => {
      looksWithout = inBackground().length === 0 ? looksWithout + 1 : 0;
      return looksWithout === 5;
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const child of this.#running) child.kill('SIGKILL');
    for (const { pid } of holders()) kill(pid);
    for (const pid of [...this.roomAgents(), ...inBackground()]) kill(pid);
    await until(
      'nothing of the node runs',
      () => [...holders(), ...this.roomAgents(), ...inBackground()].length === 0,
    );
    command('rm', '--recursive', '--force', '--one-file-system', this.root, this.statePath);
  }
}

export async function stopProcess(pid: number): Promise<void> {
  process.kill(pid, 'SIGSTOP');
  await untilStopped(pid);
}

/**
 * Resolves when no thread of the process runs any more: the others go on until one of them has taken the
 * signal.
 */
export async function untilStopped(pid: number): Promise<void> {
  await until(`process ${pid} has stopped`, () =>
    readdirSync(`/proc/${pid}/task`).every((id) => /^State:\s+T/m.test(threadStatus(pid, id))),
  );
}

/** Of a thread that has ended since it was listed: nothing, so that one looks again. */
function threadStatus(pid: number, id: string): string {
  return unlessErrno(['ENOENT', 'ESRCH'], () => readFileSync(`/proc/${pid}/task/${id}/status`, 'utf8')) ?? '';
}

/** SIGKILL to a process, or to a group by its negative ID; one that has ended is none the worse. */
export function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

function jobEnvironment(job: JobRequest, context: string): Record<string, string | undefined> {
  const option = (name: string, value: string | undefined): Record<string, string> =>
    value === undefined ? {} : { [`SPANK__SLURM_SPANK_OPTION_pyxis_${name}`]: value };
  return {
    SLURM_JOB_ID: String(job.id),
    SLURM_JOB_UID: String(job.user.uid),
    SLURM_JOB_GID: String(job.user.gid),
    SLURM_JOB_USER: job.user.name,
    SLURM_JOB_WORK_DIR: job.workPath ?? '/',
    SLURM_JOB_PARTITION: 'main',
    SLURMD_NODENAME: 'node0',
    SLURM_CONF: '/etc/slurm/slurm.conf',
    SLURM_SCRIPT_CONTEXT: context,
    ...option('container_image', job.image),
    ...option('container_name', job.name),
    ...option('container_save', job.save),
    ...job.environment,
  };
}

/** Lines of log_target=stderr: `container-cache[7]: info: prolog job=1 image="a b"`. */
export function parseLog(text: string): LogLine[] {
  return text.split('\n').flatMap((line) => {
    const match = /^container-cache\[\d+\]: (?<level>\w+): (?<word>[\w-]+)(?<rest>.*)$/.exec(line)?.groups;
    if (match === undefined) return [];
    const fields: Record<string, string> = {};
    for (const [, key = '', quoted, plain] of match['rest']!.matchAll(
      / (\w+)=(?:"((?:[^"\\]|\\.)*)"|(\S+))/g,
    ))
      fields[key] = quoted ?? plain ?? '';
    return [{ level: match['level']!, word: match['word']!, fields }];
  });
}

interface Process {
  readonly pid: number;
  readonly commandLine: string;
  readonly environment: readonly string[];
}

/** The processes of this machine that have not ended. */
export function processes(): Process[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => {
      try {
        if (/^State:\t[ZX]/m.test(readFileSync(`/proc/${name}/status`, 'utf8'))) return [];
        return {
          pid: Number(name),
          commandLine: readFileSync(`/proc/${name}/cmdline`, 'utf8').replaceAll('\0', ' ').trim(),
          environment: readFileSync(`/proc/${name}/environ`, 'utf8').split('\0'),
        };
      } catch {
        return [];
      }
    });
}

export function isAlive(pid: number): boolean {
  const status = unlessErrno(['ENOENT', 'ESRCH'], () => readFileSync(`/proc/${pid}/status`, 'utf8'));
  return status !== undefined && !/^State:\t[ZX]/m.test(status);
}

/** Processes that by their environment are a lease's holder, genuine or not. */
export function holders(jobId?: number): Process[] {
  return processes().filter(({ environment }) =>
    environment.some((text) =>
      jobId === undefined ? text.startsWith(`${holderVariable}=`) : text === `${holderVariable}=${jobId}`,
    ),
  );
}

/** A collector, what the room agent starts, or what marks an entry settled (startSettling). */
function inBackground(): number[] {
  return processes()
    .filter(
      ({ commandLine }) =>
        commandLine.endsWith('gc --background') ||
        (commandLine.endsWith('room serve') && !commandLine.includes(roomAgentTitle)) ||
        commandLine.includes('sync --file-system -- '),
    )
    .map(({ pid }) => pid);
}

interface OpenFile {
  readonly fd: number;
  readonly path: string;
  readonly inode: number;
}

/** What a process has open; a path that is gone ends in " (deleted)". */
export function openFiles(pid: number): OpenFile[] {
  return readdirSync(`/proc/${pid}/fd`).flatMap((name) => {
    const link = `/proc/${pid}/fd/${name}`;
    try {
      return [{ fd: Number(name), path: readlinkSync(link), inode: statSync(link).ino }];
    } catch (error) {
      // A program that is just starting has its libraries open for a moment.
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
      throw error;
    }
  });
}

/** The name of an entry, or of a stub's container, by its path. */
export const nameOf = (path: string): string => basename(path).slice(1);

export const lockFileOf = (entry: string): string => join(entry, lockFileName);

/** Whether the process has the lock file open that the entry's path leads to now. */
export function holds(pid: number, entry: string): boolean {
  const inode = lstatSync(lockFileOf(entry)).ino;
  return openFiles(pid).some((file) => file.inode === inode && file.path === lockFileOf(entry));
}

/** Makes an entry look unused for that long. */
export function setUsed(entry: string, secondsAgo: number): void {
  const at = Date.now() / 1000 - secondsAgo;
  utimesSync(entry, at, at);
}
