/**
 * Do jobs see the same base as the Prolog? Plugins of Slurm, PAM and systemd can give them other directories.
 */
import { globSync, statSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import {
  directoriesOfSpankPlugin,
  hiddenBy,
  isTmpfsPlugin,
  polyinstantiatedDirectories,
  privateDirectories,
} from '../../lib/core/private-directories.ts';
import { plugstackPath, readPlugstack } from '../../lib/store/pyxis.ts';
import { isGone, unlessErrno } from '../../lib/system/errno.ts';
import { findSlurmVersion } from './check-slurm.ts';
import { answers, readText, type Check, type CheckContext } from './context.ts';
import { reporter, type Finding } from './findings.ts';

const report = reporter('namespace');

interface Hiding {
  /** What hides: `job_container/tmpfs`. */
  readonly by: string;
  readonly directories: readonly string[];
  readonly remedy: string;
}

export const checkNamespace: Check = async (context) => {
  const hidings = [
    ...(await tmpfsPlugin(context)),
    ...(await spankPlugins(context)),
    ...(await pamNamespace(context)),
  ];
  const { basePath, runtimePath } = context.settings;
  const findings = hidings.flatMap((hiding) =>
    [basePath, runtimePath].flatMap((path) => {
      const again = `; then delete ${runtimePath}/node`;
      const directory = hiddenBy(path, hiding.directories);
      if (directory === undefined) return [];
      return [
        report.bad(
          `${hiding.by} gives each job a private ${directory}: jobs do not see ${path}, and their containers never start from the cache`,
          hiding.remedy + again,
        ),
      ];
    }),
  );
  findings.push(...(await slurmdFindings(context)));
  if (findings.length > 0) return findings;
  const shown = hidings.map(({ by, directories }) => `${by}: ${directories.join(', ')}`).join('; ');
  return [
    report.ok(
      shown === ''
        ? `jobs see ${basePath} as the Prolog does`
        : `jobs see ${basePath}; only a step finds images in private directories (${shown})`,
    ),
  ];
};

async function tmpfsPlugin({ slurm, slurmd }: CheckContext): Promise<Hiding[]> {
  const type = slurm?.conf.last('JobContainerType') ?? slurm?.conf.last('NamespaceType');
  if (slurm === undefined || !isTmpfsPlugin(type)) return [];
  const directory = dirname(slurm.path ?? '/etc/slurm/slurm.conf');
  const file = `${directory}/${type === 'namespace/linux' ? 'namespace.yaml' : 'job_container.conf'}`;
  const directories = privateDirectories(await readText(file), await findSlurmVersion({ slurmd }));
  return [
    {
      by: type ?? '',
      directories,
      remedy: `move container_cache_data_path elsewhere, or (Slurm 23.02 and newer) remove its directory from Dirs= in ${file}`,
    },
  ];
}

async function spankPlugins({ slurm }: CheckContext): Promise<Hiding[]> {
  if (slurm === undefined) return [];
  const file = plugstackPath(slurm.conf.last('PlugStackConfig'), slurm.path);
  if (!(await answers(file))) return [];
  return (await readPlugstack(file, readText)).plugins.flatMap(({ path, parameters }) => {
    const directories = directoriesOfSpankPlugin(basename(path), parameters);
    if (directories.length === 0) return [];
    const remedy = `move container_cache_data_path elsewhere, or configure ${basename(path)} to leave that directory alone (${file})`;
    return [{ by: basename(path), directories, remedy }];
  });
}

/** With UsePAM a step opens a session of the service "slurm". */
async function pamNamespace({ slurm }: CheckContext): Promise<Hiding[]> {
  if (!/^(?:1|yes)$/i.test(slurm?.conf.last('UsePAM') ?? '')) return [];
  const services = await Promise.all(['/etc/pam.d/slurm', '/etc/pam.d/slurm.so'].map(readText));
  if (!services.some((text) => /^[^#\n]*pam_namespace/m.test(text ?? ''))) return [];
  const files = ['/etc/security/namespace.conf', ...globSync('/etc/security/namespace.d/*.conf').sort()];
  const texts = await Promise.all(files.map(readText));
  const directories = texts.flatMap((text) => polyinstantiatedDirectories(text ?? ''));
  return [
    {
      by: 'pam_namespace',
      directories,
      remedy: `move container_cache_data_path elsewhere, or change ${files[0] ?? ''}`,
    },
  ];
}

/**
 * A unit with PrivateTmp=yes, ProtectHome= or TemporaryFileSystem=, or a slurmd in a container: its Prolog
 * sees what it sees.
 */
async function slurmdFindings({ slurmd, isRoot, settings }: CheckContext): Promise<Finding[]> {
  if (slurmd === undefined || !isRoot) return [];
  const findings: Finding[] = [];
  for (const path of [settings.basePath, settings.runtimePath]) {
    const both = [path, `/proc/${slurmd.pid}/root${path}`] as const;
    // A disk that does not answer is the finding of another check.
    if (!(await answers(both[0])) || !(await answers(both[1]))) continue;
    const [ours, theirs] = both.map((one) =>
      unlessErrno([...isGone, 'EACCES', 'ESRCH'], () => statSync(one)),
    );
    if (ours === undefined || (ours.dev === theirs?.dev && ours.ino === theirs.ino)) continue;
    findings.push(
      report.bad(
        `slurmd (${slurmd.pid}) ${theirs === undefined ? `does not see ${path}` : `sees another directory at ${path}`}: it has private mounts`,
        'run container-cache where slurmd runs; or remove PrivateTmp=, ProtectHome= and the like from its unit: systemctl cat slurmd',
      ),
    );
  }
  return findings;
}
