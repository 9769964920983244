/**
 * Our own enroot, for tests on machines that have no real one: installs it, and says whether it can run here.
 *
 *   installStandInEnroot('/x/bin', '/x/etc/enroot');     // as <cluster's /etc>/enroot
 *
 * It is written to be no kinder than enroot 4.1.2; enroot.test.ts says what was compared. It runs as an
 * ordinary user who may make user namespaces. What it leaves out is at the head of commands.bash.
 */
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  cpSync,
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';

import type { TreeItem } from '../../helpers/squashfs-image.ts';
import { SYSTEM_PATH } from '../machine.ts';

/** squashfuse serves starts of an image file, curl and jq what asks a registry. */
export const ENROOT_PROGRAMS: readonly string[] = [
  ...['unsquashfs', 'mksquashfs', 'flock', 'findmnt', 'mountpoint', 'lsns', 'ps', 'column', 'setpriv', 'gcc'],
  ...['squashfuse', 'curl', 'jq'],
];

const TOOLS = ['enroot-nsenter', 'enroot-mount', 'enroot-switchroot'] as const;

interface StandInOptions {
  /** Where the program will look for its configuration: as it sees the machine. Default: /etc/enroot. */
  readonly sysconfPath?: string;
  /** What `enroot version` says. */
  readonly version?: string;
  /** Lines of enroot.conf. */
  readonly settings?: Readonly<Record<string, string>>;
}

/**
 * Fills `directory` with enroot and what it needs; it may be mounted or moved elsewhere later. Fills
 * `sysconfDirectory` with mounts.d, hooks.d and environ.d, as a package of enroot does; other files there
 * stay.
 *
 * @param sysconfDirectory where the configuration is written now, for example `<etc of a cluster>/enroot`
 * @throws Error if namespace-tools.c cannot be compiled
 */
export function installStandInEnroot(
  directory: string,
  sysconfDirectory: string,
  { sysconfPath = '/etc/enroot', version = '4.1.2', settings = {} }: StandInOptions = {},
): void {
  mkdirSync(directory, { recursive: true });
  for (const name of readdirSync(import.meta.dirname).filter((file) => file.endsWith('.bash'))) {
    copyFileSync(
      join(import.meta.dirname, name),
      join(directory, name.replace(/^commands\.bash$/, 'enroot')),
    );
  }
  chmodSync(join(directory, 'enroot'), 0o755);
  writeFileSync(join(directory, 'installation'), `${sysconfPath}\n${version}\n`);
  compileTools(directory);

  cpSync(join(import.meta.dirname, 'sysconf'), sysconfDirectory, { recursive: true });
  mkdirSync(join(sysconfDirectory, 'enroot.conf.d'), { recursive: true });
  const lines = Object.entries(settings).map(([name, value]) => `${name} ${value}\n`);
  if (lines.length > 0) writeFileSync(join(sysconfDirectory, 'enroot.conf'), lines.join(''));
}

function compileTools(directory: string): void {
  const [first, ...others] = TOOLS.map((name) => join(directory, name));
  if (first === undefined) return;
  const source = join(import.meta.dirname, 'namespace-tools.c');
  const parameters = ['-std=gnu11', '-O1', '-Wall', '-Wextra', '-Werror', '-o', first, source];
  const { status, stderr } = spawnSync('gcc', parameters, { encoding: 'utf8', env: { PATH: SYSTEM_PATH } });
  if (status !== 0) throw new Error(`Cannot compile "${source}": exit code ${String(status)}: ${stderr}`);
  for (const other of others) {
    rmSync(other, { force: true });
    linkSync(first, other);
  }
}

/** Of ENROOT_PROGRAMS, those that only some containers need. */
export const FOR_IMAGE_FILES = ['squashfuse'];
export const FOR_REGISTRIES = ['curl', 'jq'];
export const FOR_ALL_CONTAINERS = ENROOT_PROGRAMS.filter(
  (name) => ![...FOR_IMAGE_FILES, ...FOR_REGISTRIES].includes(name),
);

/**
 * For SuiteOptions.skip: why it cannot run here.
 *
 * @param programs those that the tests use, of ENROOT_PROGRAMS
 */
export function standInUnavailable(programs = ENROOT_PROGRAMS): string | undefined {
  if (process.getuid?.() !== 0) return 'needs root';
  const missing = programs.filter(
    (name) => !SYSTEM_PATH.split(':').some((directory) => existsSync(join(directory, name))),
  );
  if (missing.length > 0) return `needs ${missing.join(', ')}`;
  const user = ['--reuid', '59001', '--regid', '59001', '--clear-groups', '--'];
  const parameters = [...user, 'unshare', '--user', '--map-root-user', '--mount', 'true'];
  const probe = spawnSync('setpriv', parameters, { encoding: 'utf8', env: { PATH: SYSTEM_PATH } });
  return probe.status === 0 ? undefined : `users may not make namespaces here: ${probe.stderr.trim()}`;
}

/**
 * The directories on which enroot mounts. Where an image lacks one, enroot makes it with mode 000, and
 * `find -empty` of findutils 4.10 fails on it, and with that `enroot export`, the real one, too.
 */
export const mountPointsTree: Readonly<Record<string, TreeItem>> = Object.fromEntries(
  ['proc', 'sys', 'dev', 'tmp', 'var/run', 'var/lock'].map((name) => [name, { directory: true }]),
);

/** Programs of this machine with their libraries, as `bin/NAME`: what a container needs to run them. */
export const programsTree = (names: readonly string[]): Record<string, TreeItem> =>
  Object.assign({}, ...names.map(programTree)) as Record<string, TreeItem>;

/** By name: a file of tests makes dozens of images of the same programs. */
const programTrees = new Map<string, Readonly<Record<string, TreeItem>>>();

function programTree(name: string): Readonly<Record<string, TreeItem>> {
  const known = programTrees.get(name);
  if (known !== undefined) return known;
  const program = ['/usr/bin', '/bin'].map((directory) => join(directory, name)).find(existsSync);
  if (program === undefined) throw new Error(`Cannot make a tree: there is no "${name}" on this machine`);
  const { stdout } = spawnSync('ldd', [program], { encoding: 'utf8', env: { PATH: SYSTEM_PATH } });
  const libraries = [...stdout.matchAll(/\/\S+/g)].map(([file]) => file);
  const tree = Object.fromEntries([
    [`bin/${name}`, { content: readFileSync(program), mode: 0o755 }],
    ...libraries.map((file) => [file.slice(1), { content: readFileSync(file), mode: 0o755 }] as const),
  ]);
  programTrees.set(name, tree);
  return tree;
}
