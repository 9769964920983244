/**
 * The cluster's directory as it is before any of its processes exists: /etc with its own users,
 * slurm.conf, the SPANK plugin, homes.
 */
import { randomBytes, randomInt } from 'node:crypto';
import * as dgram from 'node:dgram';
import * as fsp from 'node:fs/promises';
import * as net from 'node:net';
import * as path from 'node:path';

import { startCommand, succeeded } from './command.ts';
import {
  accountLines,
  cgroupConf,
  NODE_NAME,
  plugstackConf,
  rsyslogConf,
  slurmConf,
  type ClusterUser,
} from './configuration.ts';
import { SYSTEM_PATH } from './machine.ts';

/** Ports below Linux's ephemeral range, so that no outgoing connection of the machine takes one. */
const PORT_RANGE = { first: 20_000, end: 32_000 } as const;

export interface ClusterPaths {
  /** The cluster's temporary directory, mode 0755: the same path inside and outside. */
  readonly directory: string;
  /** For what a test needs: images, scripts, a data path. Empty, root's, readable for all. */
  readonly root: string;
  /** What is /etc inside: put /etc/slurm/container-cache.conf here. */
  readonly etc: string;
  /** Homes of the users, `<homes>/<name>`. */
  readonly homes: string;
}

interface SlurmSettings {
  readonly slurmVersion: readonly [number, number];
  readonly cpus: number;
  readonly parameters: Readonly<Record<string, string>>;
  readonly plugstack: readonly string[];
}

export async function makeDirectories(directory: string): Promise<ClusterPaths> {
  await fsp.chmod(directory, 0o755);
  const paths: ClusterPaths = {
    directory,
    root: path.join(directory, 'root'),
    etc: path.join(directory, 'etc'),
    homes: path.join(directory, 'home'),
  };
  const others = ['log', 'spool', 'spool/slurmctld', 'spool/slurmd', 'dev'].map((name) =>
    path.join(directory, name),
  );
  for (const made of [paths.root, paths.homes, ...others]) await fsp.mkdir(made, { mode: 0o755 });

  // The machine's /etc, less the configuration of the programs that the cluster runs itself.
  await runTool(['cp', '--archive', '/etc', paths.etc]);
  for (const name of ['slurm', 'munge', 'rsyslog.conf', 'rsyslog.d']) {
    await fsp.rm(path.join(paths.etc, name), { recursive: true, force: true });
  }
  await fsp.mkdir(path.join(paths.etc, 'slurm'), { mode: 0o755 });
  await fsp.mkdir(path.join(paths.etc, 'munge'), { mode: 0o700 });
  return paths;
}

export async function writeEtc(paths: ClusterPaths, users: readonly ClusterUser[]): Promise<void> {
  const accounts = accountLines(users, paths.homes);
  await fsp.appendFile(path.join(paths.etc, 'passwd'), accounts.passwd);
  await fsp.appendFile(path.join(paths.etc, 'group'), accounts.group);
  await fsp.appendFile(path.join(paths.etc, 'shadow'), accounts.shadow);
  for (const user of users) {
    const home = path.join(paths.homes, user.name);
    await fsp.mkdir(home, { mode: 0o700 });
    await fsp.chown(home, user.uid, user.gid);
  }

  const hosts = await readIfPresent('/etc/hosts');
  await replaceFile(path.join(paths.etc, 'hosts'), `127.0.0.1 ${NODE_NAME}\n127.0.0.1 localhost\n${hosts}`);
  // Often a link to a file in /run, which is not the machine's inside.
  await replaceFile(path.join(paths.etc, 'resolv.conf'), await readIfPresent('/etc/resolv.conf'));
  await replaceFile(path.join(paths.etc, 'rsyslog.conf'), rsyslogConf());
  await fsp.writeFile(path.join(paths.etc, 'munge/munge.key'), randomBytes(128), { mode: 0o600 });
}

export async function writeSlurmConfiguration(paths: ClusterPaths, settings: SlurmSettings): Promise<void> {
  const [slurmctldPort, slurmdPort] = [await reservePort(), await reservePort()];
  const files = {
    'slurm.conf': slurmConf({
      slurmctldPort,
      slurmdPort,
      cpus: settings.cpus,
      parameters: settings.parameters,
    }),
    'cgroup.conf': cgroupConf(settings.slurmVersion),
    'plugstack.conf': plugstackConf(settings.plugstack),
  };
  for (const [name, text] of Object.entries(files)) {
    // Slurm complains about a file that is empty.
    if (text !== '') await fsp.writeFile(path.join(paths.etc, 'slurm', name), text);
  }
}

/** Compiles our plugin with further C files linked in, and returns its path. */
export async function buildPyxisPlugin(paths: ClusterPaths, moreSources: readonly string[]): Promise<string> {
  const output = path.join(paths.directory, 'spank_pyxis.so');
  const sources = [path.join(import.meta.dirname, 'spank_pyxis_options.c'), ...moreSources];
  const include = `-I${import.meta.dirname}`;
  await runTool([
    'gcc',
    '-std=gnu11',
    '-Wall',
    '-Wextra',
    '-Werror',
    '-shared',
    '-fPIC',
    include,
    '-o',
    output,
    ...sources,
  ]);
  return output;
}

export async function readIfPresent(file: string): Promise<string> {
  try {
    return await fsp.readFile(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return '';
    throw error;
  }
}

/** Writes a file where there may be a link that leads elsewhere. */
async function replaceFile(file: string, text: string): Promise<void> {
  await fsp.rm(file, { force: true });
  await fsp.writeFile(file, text, { mode: 0o644 });
}

async function runTool(argv: readonly string[]): Promise<void> {
  succeeded(argv, await startCommand(argv, { env: { PATH: SYSTEM_PATH } }).result);
}

/**
 * A TCP port that nobody listens on, and that no cluster of another process is given as long as this one
 * lives: the UDP port of the same number, which Slurm has no use for, is the lock.
 */
async function reservePort(): Promise<number> {
  for (;;) {
    const port = randomInt(PORT_RANGE.first, PORT_RANGE.end);
    const lock = dgram.createSocket('udp4').unref();
    const isReserved = await new Promise<boolean>((resolve) => {
      lock.once('error', () => resolve(false));
      lock.bind({ port, exclusive: true }, () => resolve(true));
    });
    if (isReserved && (await isUnused(port))) return port;
    lock.close();
  }
}

function isUnused(port: number): Promise<boolean> {
  const server = net.createServer();
  return new Promise((resolve) => {
    server.once('error', () => resolve(false));
    server.listen(port, '0.0.0.0', () => server.close(() => resolve(true)));
  });
}
