/**
 * A compute node without Slurm: what slurmd would run is run by us, in a mount and PID namespace of its own
 * with a real rsyslogd behind /dev/log (private-namespaces.sh). The machine's own /dev, /run and processes
 * are never touched.
 *
 * Root gets a node with the machine's accounts. Any other user gets one in a user namespace, if the kernel
 * grants that: there the user is root, and the only one.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import type { Readable, Writable } from 'node:stream';
import { systemPath } from '../../lib/system/run-command.ts';
import { signalIfAlive } from '../slurm/command.ts';

const logDirectoryName = 'log';
const logFileName = 'syslog';

/** Patience with the end of the processes before process 1 is killed. */
const stopTimeoutMs = 10_000;

export interface PrivateNode {
  /** Made by us, deleted with the node; root's or the user's own. */
  readonly directory: string;
  /** The same directory inside, where every directory above it belongs to root. */
  readonly insideDirectory: string;
  readonly hasSyslog: boolean;
  /** From here; inside, too, unless it lives in a user namespace. */
  readonly syslogPath: string;
  /** Whether it lives in a user namespace, so that uid 0 is the only one. */
  readonly isUserNamespace: boolean;
  /** The words to put before a command so that it runs inside, as root there, in `/`. */
  readonly entering: readonly string[];
  /** The path by which a file inside is reached from here, e.g. of /run. */
  readonly hostPath: (insidePath: string) => string;
  /** Lines of the node's syslog, oldest first. */
  readonly syslog: () => string[];
  /** Ends every process, mount and file of the node. May be called twice. */
  readonly stop: () => Promise<void>;
}

/** Why there can be no such node here, with the remedy; undefined if there can. */
export function privateNodeUnavailable(): string | undefined {
  const options = ['--mount', '--pid', '--fork', ...(isRoot ? [] : ['--user', '--map-root-user'])];
  const probe = 'mount -t proc proc /proc';
  const unshare = spawnSync('unshare', [...options, 'bash', '-c', probe], { encoding: 'utf8', env });
  if (unshare.status === 0) return undefined;
  const complaint = (unshare.error?.message ?? unshare.stderr).trim();
  return isRoot
    ? `root may not make namespaces here (${complaint}): grant CAP_SYS_ADMIN`
    : `this user may not make namespaces here (${complaint}): run it as root`;
}

const isRoot = process.getuid?.() === 0;
const env = { PATH: systemPath, LC_ALL: 'C' };

/**
 * @param directory an empty directory of ours; the node deletes it, also if it cannot be started
 * @throws {Error} with what the node's script complained about
 */
export async function startPrivateNode(directory: string): Promise<PrivateNode> {
  const hasSyslog = systemPath.split(':').some((bin) => fs.existsSync(join(bin, 'rsyslogd')));
  const logPath = join(directory, logDirectoryName, logFileName);
  fs.mkdirSync(join(directory, logDirectoryName));
  if (hasSyslog) fs.writeFileSync(join(directory, 'rsyslog.conf'), rsyslogConfiguration(directory, logPath));

  const child = spawn(
    join(import.meta.dirname, 'private-namespaces.sh'),
    [directory, isRoot ? 'root' : 'user'],
    {
      // Its own session: Ctrl-C must end us, and by us the node, not the clean-up.
      detached: true,
      stdio: ['pipe', 'pipe', 'pipe'],
      env,
    },
  );
  const initPid = await readInitPid(child);
  // If we forget stop(), or are killed, the pipe closes and the node goes.
  child.unref();
  for (const stream of [child.stdin, child.stdout, child.stderr]) (stream as unknown as Unreferable).unref();

  const user = isRoot ? [] : ['--user', '--preserve-credentials'];
  return {
    directory,
    insideDirectory: isRoot ? directory : '/node',
    hasSyslog,
    syslogPath: logPath,
    isUserNamespace: !isRoot,
    entering: ['nsenter', `--target=${initPid}`, ...user, '--mount', '--pid', '--', 'env', '--chdir=/', '--'],
    hostPath: (insidePath) => join('/proc', String(initPid), 'root', insidePath),
    syslog: () =>
      fs.existsSync(logPath) ? fs.readFileSync(logPath, 'utf8').split('\n').filter(Boolean) : [],
    stop: () => stop(child, initPid, directory),
  };
}

interface Unreferable {
  unref: () => void;
}

/**
 * rsyslog.conf(5): what is written to /dev/log, as an operator sees it, each line at once and none left out.
 */
function rsyslogConfiguration(directory: string, logPath: string): string {
  return `global(workDirectory="${directory}/${logDirectoryName}")
module(load="imuxsock" SysSock.Name="/dev/log" SysSock.RateLimit.Interval="0")
action(type="omfile" file="${logPath}" template="RSYSLOG_TraditionalFileFormat")
`;
}

async function readInitPid(child: ChildProcess): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  const { stdin, stdout, stderr } = child as ChildProcess & {
    stdin: Writable;
    stdout: Readable;
    stderr: Readable;
  };
  let printed = '';
  let complaint = '';
  stdin.on('error', () => undefined);
  stderr.setEncoding('utf8').on('data', (text: string) => (complaint += text));
  stdout.setEncoding('utf8').on('data', (text: string) => {
    printed += text;
    const pid = /^ready (\d+)$/m.exec(printed)?.[1];
    if (pid !== undefined) resolve(Number(pid));
  });
  child.once('error', reject);
  child.once('close', (exitCode) => {
    reject(new Error(`Cannot start a private node: exit code ${String(exitCode)}, ${complaint.trim()}`));
  });
  return promise;
}

async function stop(child: ChildProcess, initPid: number, directory: string): Promise<void> {
  if (child.exitCode === null && child.signalCode === null) {
    child.ref();
    const exited = once(child, 'exit');
    child.stdin?.end();
    const timer = setTimeout(() => {
      // It may have ended: to delete a big directory takes longer than that.
      signalIfAlive(initPid, 'SIGKILL');
    }, stopTimeoutMs);
    await exited;
    clearTimeout(timer);
  }
  if (fs.existsSync(directory)) throw new Error(`Cannot delete "${directory}": it is still there`);
}
