/** What a package installs, and where. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { projectRoot } from './source-files.ts';

interface PackagedFile {
  /** Relative to the project, or to the directory of what is made for the package. */
  readonly source: string;
  readonly made?: boolean;
  /** Absolute, on the node. */
  readonly target: string;
  readonly mode: number;
  /** An upgrade keeps what an admin has changed. */
  readonly isConfiguration?: boolean;
  readonly isDocumentation?: boolean;
}

interface PackagedLink {
  readonly target: string;
  readonly leadsTo: string;
}

const program = '/usr/libexec/container-cache';
const units = '/usr/lib/systemd/system';
const documents = '/usr/share/doc/container-cache';

const file = (source: string, target: string, mode = 0o644): PackagedFile => ({ source, target, mode });
const configuration = (source: string, target: string): PackagedFile => ({
  ...file(source, target),
  isConfiguration: true,
});
const documentation = (
  source: string,
  // Below docs/ as in the source: so links between the texts lead somewhere.
  target = `${documents}/${source}`,
): PackagedFile => ({
  ...file(source, target),
  isDocumentation: true,
});

export const packagedLinks: readonly PackagedLink[] = [
  { target: `${program}/prolog`, leadsTo: 'container-cache' },
  { target: `${program}/epilog`, leadsTo: 'container-cache' },
  { target: '/usr/sbin/container-cache', leadsTo: '../libexec/container-cache/container-cache' },
];

/** Directories that are nobody else's, the innermost first. */
export const packagedDirectories: readonly string[] = [
  `${program}/bin`,
  program,
  `${documents}/monitoring`,
  `${documents}/docs`,
  documents,
];

/** Names of man pages as `container-cache.8`. */
export const manPages: readonly string[] = readdirSync(join(projectRoot, 'man'));

export const packagedFiles: readonly PackagedFile[] = [
  { ...file('container-cache', `${program}/container-cache`, 0o755), made: true },
  file('taskprolog/taskprolog', `${program}/taskprolog`, 0o755),
  file('enroot/enroot', `${program}/bin/enroot`, 0o755),
  configuration('packaging/container-cache.conf', '/etc/slurm/container-cache.conf'),
  configuration('enroot/00-container-cache.fstab', '/etc/enroot/mounts.d/00-container-cache.fstab'),
  file('systemd/slurmd-container-cache.conf', `${units}/slurmd.service.d/container-cache.conf`),
  ...['metrics', 'warm'].flatMap((name) =>
    ['service', 'timer'].map((kind) =>
      file(`systemd/container-cache-${name}.${kind}`, `${units}/container-cache-${name}.${kind}`),
    ),
  ),
  file('systemd/container-cache.tmpfiles.conf', '/usr/lib/tmpfiles.d/container-cache.conf'),
  {
    ...file('completion', '/usr/share/bash-completion/completions/container-cache'),
    made: true,
  },
  ...manPages.map((page) => ({
    ...documentation(`${page}.gz`, `/usr/share/man/man${page.slice(-1)}/${page}.gz`),
    made: true,
  })),
  documentation('packaging/copyright', `${documents}/copyright`),
  { ...documentation('third-party-licenses'), made: true },
  // All texts of the top directory, so that links between them lead somewhere.
  ...readdirSync(projectRoot)
    .filter((name) => name.endsWith('.md') || ['LICENSE', 'slurm.conf.snippet'].includes(name))
    .map((name) => documentation(name)),
  ...readdirSync(join(projectRoot, 'docs'))
    .filter((name) => /\.(?:md|svg)$/.test(name))
    .map((name) => documentation(`docs/${name}`)),
  ...readdirSync(join(projectRoot, 'monitoring')).map((name) =>
    documentation(`monitoring/${name}`, `${documents}/monitoring/${name}`),
  ),
];
