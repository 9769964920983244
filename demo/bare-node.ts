/**
 * The demo's node without Slurm (test/helpers/private-node.ts): Prolog, TaskProlog and Epilog are called with
 * the environment that slurmd gives them, the job in between does nothing.
 *
 * As root the jobs are another user's. Otherwise the node is in a user namespace, where you are root and the
 * only user.
 */
import * as fs from 'node:fs';
import * as os from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { distDirectory, executable } from '../build/build.ts';
import { systemPath } from '../lib/system/run-command.ts';
import type { Defer } from '../test/helpers/clean-up.ts';
import { startPrivateNode, type PrivateNode } from '../test/helpers/private-node.ts';
import { slurmdEnvironment, type SampleJob } from '../test/helpers/slurmd-calls.ts';
import { startCommand, succeeded } from '../test/slurm/command.ts';
import {
  configurationText,
  isOurLine,
  type DemoJob,
  type DemoNode,
  type DemoNodeRequest,
} from './demo-node.ts';

const runtimePath = '/run/container-cache';
const commandTimeoutMs = 120_000;
const probeTimeoutMs = 2000;
const pollMs = 20;

export async function startBareNode(request: DemoNodeRequest, defer: Defer): Promise<DemoNode> {
  const directory = fs.mkdtempSync(join(os.tmpdir(), 'container-cache-node-'));
  defer(() => {
    fs.rmSync(directory, { recursive: true, force: true });
  });
  fs.chmodSync(directory, 0o755);
  const node = await startPrivateNode(directory);
  defer(node.stop);
  const demo = new BareNode(node, request.settings);
  await demo.mountDisk(request.diskBytes);
  await demo.probeSyslog();
  return demo;
}

class BareNode implements DemoNode {
  readonly description: string;
  readonly configuration: DemoNode['configuration'] = [];
  readonly users: DemoNode['users'];
  readonly startDescription = 'Prolog and TaskProlog, whole processes';
  readonly basePath: string;
  readonly runtimePath = runtimePath;
  noSyslogReason: string | undefined;
  readonly hostPath: DemoNode['hostPath'];
  readonly #node: PrivateNode;
  readonly #configPath: string;
  readonly #user: SampleJob['user'];
  /** Of programs that log to standard error, because there is no syslog. */
  readonly #log: string[] = [];
  readonly #settings: DemoNodeRequest['settings'];
  /** What was logged before the first job. */
  #probeLines = 0;
  #lastJobId = 0;

  constructor(node: PrivateNode, settings: DemoNodeRequest['settings']) {
    this.#node = node;
    this.hostPath = node.hostPath;
    this.#settings = settings;
    this.basePath = join(node.insideDirectory, 'data');
    this.#configPath = join(node.insideDirectory, 'container-cache.conf');
    this.description = node.isUserNamespace
      ? 'a set of namespaces without Slurm, in which you are root; Prolog and Epilog are called as slurmd would'
      : 'a set of namespaces without Slurm; Prolog and Epilog are called as slurmd would';
    this.#user = node.isUserNamespace ? { name: 'root', uid: 0, gid: 0 } : findAccount();
    this.users = [this.#user, this.#user];
    fs.mkdirSync(join(node.directory, 'data'), { mode: 0o755 });
    // The user must reach it.
    fs.copyFileSync(join(distDirectory, 'taskprolog'), join(node.directory, 'taskprolog'));
  }

  async mountDisk(diskBytes: number): Promise<void> {
    const options = `size=${diskBytes},mode=0755`;
    await this.#run({ PATH: systemPath }, [
      'mount',
      '--types',
      'tmpfs',
      '-o',
      options,
      'tmpfs',
      this.basePath,
    ]);
  }

  /**
   * Has a Prolog complain that it has no job, and looks for the line: in a user namespace logger(1) may lose
   * lines, as it names a sender that does not exist there.
   */
  async probeSyslog(): Promise<void> {
    this.#writeConfiguration('syslog');
    if (!this.#node.hasSyslog) {
      this.noSyslogReason = 'rsyslogd not found';
    } else {
      await this.#run({ CONTAINER_CACHE_CONF: this.#configPath }, [join(distDirectory, 'prolog')]);
      const deadlineMs = performance.now() + probeTimeoutMs;
      while ((await this.log()).length === 0 && performance.now() < deadlineMs) await delay(pollMs);
      this.#probeLines = (await this.log()).length;
      if (this.#probeLines === 0)
        this.noSyslogReason = 'logger(1) cannot reach rsyslogd in this user namespace';
    }
    if (this.noSyslogReason !== undefined) this.#writeConfiguration('stderr');
  }

  #writeConfiguration(logTarget: 'syslog' | 'stderr'): void {
    const text = `${configurationText(this, this.#settings)}log_target=${logTarget}\n`;
    fs.writeFileSync(join(this.#node.directory, 'container-cache.conf'), text);
  }

  async startJob(_: unknown, imagePath: string): Promise<DemoJob> {
    this.#lastJobId++;
    const job = { jobId: this.#lastJobId, user: this.#user, image: imagePath };
    const startedAtMs = performance.now();
    await this.#run(slurmdEnvironment('prolog', job, this.#configPath), [join(distDirectory, 'prolog')]);
    const become =
      this.#user.uid === 0
        ? []
        : ['/usr/bin/setpriv', `--reuid=${job.user.uid}`, `--regid=${job.user.gid}`, '--init-groups', '--'];
    const taskProlog = [...become, join(this.#node.insideDirectory, 'taskprolog')];
    const task = { SLURM_JOB_ID: String(job.jobId), CONTAINER_CACHE_CONF: this.#configPath };
    const exported = await this.#run(task, taskProlog);
    return {
      jobId: job.jobId,
      command: [
        'root#',
        `SLURM_JOB_ID=${job.jobId} SLURM_JOB_UID=${job.user.uid} … ${join('dist', 'prolog')}`,
      ],
      startMs: performance.now() - startedAtMs,
      taskEnvironment: exported.split('\n').flatMap((line) => /^export (ENROOT_.*)$/.exec(line)?.[1] ?? []),
      finish: async () => {
        await this.#run(slurmdEnvironment('epilog', job, this.#configPath), [join(distDirectory, 'epilog')]);
      },
    };
  }

  async admin(args: readonly string[]): Promise<string> {
    return this.#run({ PATH: systemPath, CONTAINER_CACHE_CONF: this.#configPath }, [executable, ...args]);
  }

  // eslint-disable-next-line @typescript-eslint/require-await -- a node with Slurm reads its log asynchronously
  async log(): Promise<string[]> {
    return this.noSyslogReason === undefined
      ? this.#node.syslog().filter(isOurLine).slice(this.#probeLines)
      : this.#log;
  }

  /** Runs a command inside with this environment and nothing else. @returns its standard output */
  async #run(environment: Readonly<Record<string, string>>, argv: readonly string[]): Promise<string> {
    const variables = Object.entries(environment).map(([name, value]) => `${name}=${value}`);
    const command = [...this.#node.entering, 'env', '--ignore-environment', ...variables, ...argv];
    const { result } = startCommand(command, { env: { PATH: systemPath }, timeoutMs: commandTimeoutMs });
    const end = await result;
    this.#log.push(...end.stderr.split('\n').filter(Boolean));
    return succeeded(argv, end);
  }
}

/** Somebody who is not root and owns nothing. */
function findAccount(): SampleJob['user'] {
  const passwd = fs.readFileSync('/etc/passwd', 'utf8');
  const [, uid, gid] = /^nobody:[^:]*:(\d+):(\d+):/m.exec(passwd) ?? [];
  if (uid === undefined || gid === undefined)
    throw new Error('Cannot find a user for the jobs: no "nobody" in /etc/passwd');
  return { name: 'nobody', uid: Number(uid), gid: Number(gid) };
}
