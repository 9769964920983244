/**
 * Whether Slurm gives each job other directories in the place of ours: then no container of a job starts from
 * the cache, and the Prolog, which sees the node's own, would not know.
 *
 * A module of its own: it is loaded once per boot.
 */
import { dirname } from 'node:path';
import { hiddenBy, isTmpfsPlugin, privateDirectories } from '../core/private-directories.ts';
import type { Settings } from '../core/settings.ts';
import { readSlurmConf } from '../core/slurm-conf.ts';
import { readSmallFile } from '../system/files.ts';

const longestFileBytes = 1024 * 1024;

/**
 * @param slurmConfPath as slurmd tells the Prolog
 * @returns what hides it, as a sentence; undefined: nothing that could be read
 */
export async function describeHiddenBase(
  { basePath, runtimePath }: Pick<Settings, 'basePath' | 'runtimePath'>,
  slurmConfPath: string | undefined,
): Promise<string | undefined> {
  const path = slurmConfPath ?? '/etc/slurm/slurm.conf';
  const conf = await readSlurmConf(path, (file) => Promise.resolve(readQuietly(file)));
  const type = conf.last('JobContainerType') ?? conf.last('NamespaceType');
  if (!isTmpfsPlugin(type)) return undefined;
  const name = type === 'namespace/linux' ? 'namespace.yaml' : 'job_container.conf';
  const directories = privateDirectories(readQuietly(`${dirname(path)}/${name}`), undefined);
  for (const hidden of [basePath, runtimePath]) {
    const directory = hiddenBy(hidden, directories);
    if (directory !== undefined)
      return `${type ?? ''} gives each job a ${directory} of its own, where ${hidden} is not to be seen: container-cache check; after a change remove ${runtimePath}/node`;
  }
  return undefined;
}

function readQuietly(path: string): string | undefined {
  try {
    return readSmallFile(path, longestFileBytes);
  } catch {
    return undefined;
  }
}
