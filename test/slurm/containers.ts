/**
 * Clusters whose jobs run in containers, by pyxis and enroot, the real ones or ours that stand in for them;
 * with the cache or without. An image whose program tells what it sees of its container (probe.sh). What a
 * job may not leave behind.
 *
 * A test starts two such clusters, alike but for the cache, runs the same job on both and compares
 * (matrix.ts).
 */
import { createHash } from 'node:crypto';
import * as fs from 'node:fs';
import * as fsp from 'node:fs/promises';
import * as path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

import { build, distDirectory } from '../../build/build.ts';
import { projectRoot } from '../../build/source-files.ts';
import { directoryName, parseEntryDirectoryName } from '../../lib/core/layout.ts';
import type { ImageConfiguration } from '../helpers/docker-registry.ts';
import { makeImage, type Tree } from '../helpers/squashfs-image.ts';
import { startCluster, type Cluster, type ClusterOptions, type ClusterPaths } from './cluster.ts';
import { installStandInEnroot, mountPointsTree, programsTree } from './enroot/stand-in.ts';

/** Who runs the jobs in containers. */
export const USER = 'usera';

/** Where pyxis' SPANK epilog looks first for enroot: the real one has to be there, the wrapper must not. */
const ENROOT_DIRECTORY = '/usr/local/bin';
const RUNTIME_PATH = '/run/container-cache';
const PYXIS_RUNTIME_PATH = '/run/pyxis';
const ENROOT_RUNTIME_PATH = '/run/enroot';

const PYXIS_SOURCES = ['spank_pyxis_containers.c', 'spank_pyxis_enroot.c'].map((name) =>
  path.join(import.meta.dirname, name),
);

/** The real programs, or our own in their place. */
export interface Programs {
  /** The SPANK plugin to load; undefined: ours, compiled for each cluster. */
  readonly pyxisPath: string | undefined;
  /**
   * Fills a directory with `enroot` and another with its configuration; undefined: both are where a package
   * has them.
   */
  readonly installEnroot: ((directory: string, sysconfPath: string) => void) | undefined;
}

/** Names the spank_pyxis.so of the machine: then tests run on that and on the enroot that is installed. */
export const INSTALLED_PYXIS_VARIABLE = 'CONTAINER_CACHE_TEST_PYXIS';

export function programsUnderTest(): Programs {
  const pyxisPath = process.env[INSTALLED_PYXIS_VARIABLE];
  return pyxisPath === undefined
    ? { pyxisPath, installEnroot: installStandInEnroot }
    : { pyxisPath, installEnroot: undefined };
}

export interface ContainerClusterOptions {
  readonly programs: Programs;
  /** Whether the Prolog, the Epilog and the wrapper are there. */
  readonly isCached: boolean;
  /** Lines for container-cache.conf besides the base; `$ROOT` is the cluster's root. */
  readonly settings?: readonly string[];
  /** Lines for slurm.conf. */
  readonly slurmConf?: Readonly<Record<string, string>>;
  /** How many jobs run at once, by the processors that the node claims. */
  readonly cpus?: number;
  /** Our TaskProlog, set up as slurm.conf.snippet says. */
  readonly withTaskProlog?: boolean;
}

export interface ContainerCluster extends AsyncDisposable {
  readonly cluster: Cluster;
  readonly isCached: boolean;
  /** `container_cache_data_path` and the user's directory in it. */
  readonly basePath: string;
  readonly statePath: string;
  readonly userPath: string;
  /** Where enroot.conf has the user's containers. */
  readonly enrootDataPath: string;
  /** Where enroot.conf has the layers of images of registries. */
  readonly enrootCachePath: string;
  /** Everybody may write here. */
  readonly outputPath: string;
  /** Replaces the arguments in plugstack.conf, which every later step reads. */
  readonly setPyxisArguments: (pyxisArguments: readonly string[]) => Promise<void>;
  /** Runs the real enroot (or its stand-in) as the user. */
  readonly enroot: (...parameters: string[]) => Promise<string>;
}

export async function startContainerCluster(options: ContainerClusterOptions): Promise<ContainerCluster> {
  if (options.isCached) await build();
  let layout: Layout | undefined;
  const cluster = await startCluster(async (paths) => {
    layout = layoutOf(paths);
    return prepare(paths, layout, options);
  });
  if (layout === undefined) throw new Error('startCluster() did not ask for its options');
  try {
    return await openCluster(cluster, layout, options);
  } catch (error) {
    await cluster.stop();
    throw error;
  }
}

interface Layout {
  readonly basePath: string;
  readonly statePath: string;
  readonly enrootDataBasePath: string;
  readonly enrootCachePath: string;
  readonly outputPath: string;
  readonly enrootPath: string;
  readonly cachePath: string;
}

function layoutOf({ root }: ClusterPaths): Layout {
  return {
    basePath: path.join(root, 'base'),
    statePath: path.join(root, 'state'),
    enrootDataBasePath: path.join(root, 'enroot-data'),
    enrootCachePath: path.join(root, 'enroot-cache'),
    outputPath: path.join(root, 'output'),
    enrootPath: path.join(root, 'enroot'),
    cachePath: path.join(root, 'container-cache'),
  };
}

async function prepare(
  paths: ClusterPaths,
  layout: Layout,
  {
    programs,
    isCached,
    settings = [],
    slurmConf = {},
    cpus,
    withTaskProlog = false,
  }: ContainerClusterOptions,
): Promise<ClusterOptions> {
  for (const directory of [layout.outputPath, layout.enrootCachePath, layout.enrootDataBasePath]) {
    await fsp.mkdir(directory);
    await fsp.chmod(directory, 0o1777);
  }
  const sysconfPath = path.join(paths.etc, 'enroot');
  await fsp.mkdir(layout.enrootPath);
  if (programs.installEnroot !== undefined) {
    // The machine may have an enroot; its hooks are not for ours.
    await fsp.rm(sysconfPath, { recursive: true, force: true });
    programs.installEnroot(layout.enrootPath, sysconfPath);
  }
  await configureEnroot(sysconfPath, layout);
  const pyxis: ClusterOptions =
    programs.pyxisPath === undefined
      ? { pyxisSources: PYXIS_SOURCES }
      : { pyxis: false, plugstack: [`required ${programs.pyxisPath}`] };
  const common = { ...pyxis, ...(cpus === undefined ? {} : { cpus }) };
  const parameters = { PrologFlags: 'Alloc', ...slurmConf };
  if (!isCached) return { ...common, slurmConf: parameters };

  await fsp.mkdir(layout.basePath, { mode: 0o755 });
  const directories = [`container_cache_data_path=${layout.basePath}`, `state_dir=${layout.statePath}`];
  const lines = [...directories, ...settings.map((line) => line.replaceAll('$ROOT', paths.root))];
  await fsp.writeFile(path.join(paths.etc, 'slurm/container-cache.conf'), `${lines.join('\n')}\n`);
  await installCache(layout, sysconfPath);
  return {
    ...common,
    slurmdPath: [path.join(layout.cachePath, 'bin')],
    slurmConf: {
      Prolog: path.join(layout.cachePath, 'prolog'),
      Epilog: path.join(layout.cachePath, 'epilog'),
      ...(withTaskProlog ? { TaskProlog: await installTaskProlog(layout, sysconfPath) } : {}),
      ...parameters,
    },
  };
}

/** The first line that names a variable decides: ours go before those of a package. */
async function configureEnroot(sysconfPath: string, layout: Layout): Promise<void> {
  const file = path.join(sysconfPath, 'enroot.conf');
  const packaged = fs.existsSync(file) ? await fsp.readFile(file, 'utf8') : '';
  const lines = [
    `ENROOT_RUNTIME_PATH ${ENROOT_RUNTIME_PATH}/user-$(id -u)`,
    `ENROOT_CACHE_PATH ${layout.enrootCachePath}/user-$(id -u)`,
    `ENROOT_DATA_PATH ${layout.enrootDataBasePath}/$(id -u)`,
    'ENROOT_ALLOW_HTTP yes',
  ];
  await fsp.mkdir(sysconfPath, { recursive: true });
  await fsp.writeFile(file, `${lines.join('\n')}\n${packaged}`);
}

/** As an admin would: the wrapper alone in its directory, which goes first in slurmd's PATH. */
async function installCache(layout: Layout, sysconfPath: string): Promise<void> {
  const binPath = path.join(layout.cachePath, 'bin');
  await fsp.mkdir(binPath, { recursive: true });
  await fsp.cp(distDirectory, layout.cachePath, { recursive: true, verbatimSymlinks: true });
  await fsp.rename(path.join(layout.cachePath, 'enroot'), path.join(binPath, 'enroot'));
  await fsp.mkdir(path.join(sysconfPath, 'mounts.d'), { recursive: true });
  await fsp.copyFile(
    path.join(distDirectory, '00-container-cache.fstab'),
    path.join(sysconfPath, 'mounts.d/00-container-cache.fstab'),
  );
}

/** Both lines of slurm.conf.snippet, for where the TaskProlog is here. @returns its path */
async function installTaskProlog(layout: Layout, sysconfPath: string): Promise<string> {
  const snippet = await fsp.readFile(path.join(projectRoot, 'slurm.conf.snippet'), 'utf8');
  const lines = [...snippet.matchAll(/^#\s+(\/\S+ \/\S+ none x-create=.*)$/gm)].map(([, line = '']) =>
    line.replaceAll('/usr/libexec/container-cache', layout.cachePath),
  );
  const [, file = ''] = /\/etc\/enroot\/(mounts\.d\/\S+\.fstab) with these two lines/.exec(snippet) ?? [];
  if (lines.length !== 2 || file === '') throw new Error('slurm.conf.snippet says nothing of the TaskProlog');
  await fsp.writeFile(path.join(sysconfPath, file), `${lines.join('\n')}\n`);
  return path.join(layout.cachePath, 'taskprolog');
}

async function openCluster(
  cluster: Cluster,
  layout: Layout,
  { programs, isCached }: ContainerClusterOptions,
): Promise<ContainerCluster> {
  const uid = String(cluster.users.find(({ name }) => name === USER)?.uid);
  await cluster.exec(['mkdir', '--mode=1777', ENROOT_RUNTIME_PATH]);
  // As udev makes it: squashfuse is the user's.
  await cluster.exec(['sh', '-c', '[ -e /dev/fuse ] || mknod /dev/fuse c 10 229; chmod 0666 /dev/fuse']);
  if (programs.installEnroot !== undefined) {
    await cluster.exec(['mount', '--bind', layout.enrootPath, ENROOT_DIRECTORY]);
  }
  const plugstack = path.join(cluster.etc, 'slurm/plugstack.conf');
  const plugin = (await fsp.readFile(plugstack, 'utf8')).trim();
  return {
    cluster,
    isCached,
    basePath: layout.basePath,
    statePath: layout.statePath,
    userPath: path.join(layout.basePath, uid),
    enrootDataPath: path.join(layout.enrootDataBasePath, uid),
    enrootCachePath: path.join(layout.enrootCachePath, `user-${uid}`),
    outputPath: layout.outputPath,
    setPyxisArguments: (pyxisArguments) =>
      fsp.writeFile(plugstack, `${[plugin, ...pyxisArguments].join(' ')}\n`),
    enroot: async (...parameters) => {
      const { exitCode, stdout, stderr } = await cluster.run(USER, ['enroot', ...parameters]);
      if (exitCode !== 0) throw new Error(`enroot ${parameters.join(' ')}: ${stderr}`);
      return stdout;
    },
    [Symbol.asyncDispose]: () => cluster.stop(),
  };
}

/** What the probe and the start of a container need in the image. */
const IMAGE_PROGRAMS: readonly string[] = [
  ...['sh', 'cat', 'chmod', 'cksum', 'env', 'find', 'grep', 'id', 'ls', 'mkdir', 'mv', 'rm', 'sed'],
  ...['sleep', 'sort', 'touch'],
];

/**
 * An image of the machine's own programs that runs containers, with the probe, files of all kinds below /data
 * and what enroot looks for in an image: variables, a volume, a script that is its entrypoint.
 *
 * @param version content of /etc/image
 */
export function probeTree(version: string): Tree {
  return {
    ...programsTree(IMAGE_PROGRAMS),
    ...mountPointsTree,
    probe: { content: fs.readFileSync(path.join(import.meta.dirname, 'probe.sh')), mode: 0o755 },
    'etc/image': `${version}\n`,
    'etc/passwd': 'root:x:0:0:root:/root:/bin/sh\nimageuser:x:7:7::/:/bin/sh\n',
    'etc/group': 'root:x:0:\nimagegroup:x:7:\n',
    'etc/environment': 'PATH=/bin:/usr/bin\nIMAGE_VARIABLE=of the image\n',
    entrypoint: { content: '#!/bin/sh\nexport FROM_ENTRYPOINT=yes\nexec "$@"\n', mode: 0o755 },
    'etc/fstab': '${ENROOT_ROOTFS}/volume /volume none x-create=dir,bind,rw,nosuid,nodev\n',
    // What enroot makes of an image of a registry, whose configuration says the same (PROBE_CONFIGURATION).
    'etc/rc': 'cd /data/directory\n. /etc/rc.local\nexport FROM_ENTRYPOINT=yes\nexec "$@"\n',
    'etc/rc.local': 'export FROM_RC_LOCAL=yes\n',
    root: { directory: true },
    'volume/file': 'in the volume\n',
    'data/small': 'small\n',
    'data/hard link': { link: 'data/small' },
    'data/symbolic link': { symlink: 'small' },
    'data/large': { content: Buffer.alloc(200_000, 'large ') },
    'data/private': { content: 'private\n', mode: 0o600 },
    'data/program': { content: '#!/bin/sh\n', mode: 0o755 },
    'data/appended': 'begun\n',
    'data/doomed': 'doomed\n',
    'data/doomed-directory/file': 'doomed\n',
    'data/directory/nested/file': 'nested\n',
    'data/empty': { directory: true, mode: 0o750 },
  };
}

/**
 * The same image of two layers, the lowest first. No whiteouts: stock gives their directories the time of the
 * import.
 */
export const probeLayers = (version: string): Tree[] => [
  { ...probeTree(version), 'data/small': 'hidden by the layer above\n' },
  { 'data/small': 'small\n' },
];

/** What goes with probeTree() in a registry. */
export const PROBE_CONFIGURATION: ImageConfiguration = {
  Env: ['PATH=/bin:/usr/bin', 'IMAGE_VARIABLE=of the image'],
  Entrypoint: ['/entrypoint'],
  WorkingDir: '/data/directory',
  Volumes: { '/volume': {} },
};

/** Of every file in the image: earlier than anything a job writes. */
const IMAGE_TIME_SECONDS = '1700000000';

/** Not compressed: that took longer than all else about it. */
export function makeProbeImage(file: string, version: string): string {
  return makeImage(file, probeTree(version), ['-all-time', IMAGE_TIME_SECONDS, '-noD', '-noF']);
}

/**
 * Every file of the cache's entries, each as one line with all that could change: `<entry>/<path>` to the
 * line.
 */
export function listEntries({ userPath }: ContainerCluster): Map<string, string> {
  const lines = new Map<string, string>();
  for (const name of entryNamesIn(userPath)) addTree(lines, userPath, directoryName(name));
  return lines;
}

function addTree(lines: Map<string, string>, root: string, name: string): void {
  const file = path.join(root, name);
  const stat = fs.lstatSync(file, { bigint: true });
  const isEntry = !name.includes('/');
  lines.set(
    name,
    [
      stat.mode.toString(8),
      `${stat.uid}:${stat.gid}`,
      stat.nlink,
      stat.isDirectory() ? '-' : stat.size,
      // Of the entry itself it is the time of its last use.
      isEntry ? '-' : stat.mtimeNs,
      isEntry ? '-' : stat.ctimeNs,
      stat.isSymbolicLink() ? fs.readlinkSync(file) : '',
      stat.isFile() ? createHash('sha256').update(fs.readFileSync(file)).digest('hex') : '',
    ].join(' '),
  );
  if (stat.isDirectory()) for (const child of fs.readdirSync(file)) addTree(lines, root, `${name}/${child}`);
}

/**
 * What has changed in entries that were there before, as lines for a message; an entry may be new, but not
 * gone.
 */
export function changesOf(before: ReadonlyMap<string, string>, after: ReadonlyMap<string, string>): string[] {
  const known = new Set([...before.keys()].filter((name) => !name.includes('/')));
  const ofKnown = (name: string): boolean => known.has(name.split('/')[0] ?? '');
  const changed = [...before].filter(([name, line]) => after.get(name) !== line);
  const added = [...after].filter(([name]) => ofKnown(name) && !before.has(name));
  return [
    ...changed.map(([name, line]) => `${name}: was ${line}, is ${after.get(name) ?? 'gone'}`),
    ...added.map(([name, line]) => `${name}: new: ${line}`),
  ];
}

/**
 * What is there although no job is: waits until the node is idle. Files in /tmp are the machine's, not the
 * cluster's.
 */
export async function remainsOf({
  cluster,
  basePath,
  enrootDataPath,
  userPath,
}: ContainerCluster): Promise<string[]> {
  await cluster.waitForNodeIdle();
  const { drained, reason } = await cluster.nodeState();
  const uid = path.basename(userPath);
  const inCluster = (directory: string): string[] =>
    namesIn(cluster.hostPath(directory)).map((name) => `${directory}/${name}`);
  const isExpected = (name: string): boolean =>
    /^\.pyxis_cache_u\d+_[0-9a-f]{16}$|\.create\.lock$|\.unshared$|^\.digests$|^\.images$/.test(name);
  return [
    ...(drained ? [`node drained: ${reason ?? ''}`] : []),
    ...inCluster(`${RUNTIME_PATH}/leases`),
    ...inCluster(`${RUNTIME_PATH}/jobs`),
    ...inCluster(`${PYXIS_RUNTIME_PATH}/${uid}`),
    ...namesIn(userPath).filter((name) => !isExpected(name)),
    ...namesIn(enrootDataPath).filter((name) => !isExpected(name)),
    ...namesIn(basePath).filter((name) => !/^\d+$|^\.trash$|^\.mounted$|gc\.lock$/.test(name)),
    ...(await lingeringProcesses(cluster)),
  ];
}

/** What the Epilog leaves to a deletion in the background may still run for a moment. */
const LINGER_LIMIT_MS = 20_000;

async function lingeringProcesses(cluster: Cluster): Promise<string[]> {
  const deadlineMs = Date.now() + LINGER_LIMIT_MS;
  for (;;) {
    const processes = (await cluster.leftovers()).filter(({ command }) => !command.includes(' gc '));
    if (processes.length === 0 || Date.now() > deadlineMs) {
      return processes.map(({ pid, command }) => `process ${pid}: ${command}`);
    }
    await sleep(50);
  }
}

/** The names of entries in a user directory. */
export const entryNamesIn = (userPath: string): string[] =>
  namesIn(userPath).flatMap((name) => parseEntryDirectoryName(Number(path.basename(userPath)), name) ?? []);

export function namesIn(directory: string): string[] {
  return fs.existsSync(directory) ? fs.readdirSync(directory) : [];
}
