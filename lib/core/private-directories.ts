/**
 * Directories of which each job sees others than the node: Slurm's job_container/tmpfs, SPANK plugins,
 * pam_namespace.
 */
import { isAtLeast, type Version } from './version.ts';

/** slurm.conf's plugins that give a job a /tmp of its own; the second is its name from Slurm 25.11 on. */
const tmpfsPlugins = ['job_container/tmpfs', 'namespace/tmpfs', 'namespace/linux'];

export const isTmpfsPlugin = (type: string | undefined): boolean => tmpfsPlugins.includes(type ?? '');

const defaultDirectories = ['/tmp', '/dev/shm'];
/** Older than this know no Dirs=. */
const firstWithDirs: Version = [23, 2];

/**
 * Reads job_container.conf(5) or namespace.yaml. Which line is for which node only Slurm can tell, so all
 * count.
 *
 * @param text undefined: there is no such file
 * @param version of Slurm; undefined: not known
 */
export function privateDirectories(text: string | undefined, version: Version | undefined): string[] {
  if (version !== undefined && !isAtLeast(version, firstWithDirs)) return defaultDirectories;
  const lines = (text ?? '').split('\n').map((line) => line.replace(/#.*$/, ''));
  const named = lines.flatMap((line) => {
    const value = /\bdirs\s*[=:]\s*"?([^\s"]+)/i.exec(line)?.[1];
    return value === undefined ? [] : value.split(',').filter((one) => one.startsWith('/'));
  });
  const hasLineWithout = lines.some((line) => /\bbasepath\s*=/i.test(line) && !/\bdirs\s*=/i.test(line));
  return [...new Set(named.length === 0 || hasLineWithout ? [...named, ...defaultDirectories] : named)];
}

/** pam_namespace(8), namespace.conf(5): `/tmp /tmp-inst/ level root,adm`. */
export function polyinstantiatedDirectories(text: string): string[] {
  return text.split('\n').flatMap((line) => {
    const [directory = '', instances] = line.replace(/#.*$/, '').trim().split(/\s+/);
    return directory.startsWith('/') && instances !== undefined ? [directory] : [];
  });
}

/** SPANK plugins that are known to give jobs directories of their own, by their file's name. */
const spankPlugins = /(?:private|auto|job|tmp)[-_]?(?:tmp|shm|mount|unshare)|tmpdir|unshare/i;

/** What such a plugin mounts for a job, by its parameters: `base=/scratch mount=/tmp`. */
export function directoriesOfSpankPlugin(fileName: string, parameters: readonly string[]): string[] {
  if (!spankPlugins.test(fileName)) return [];
  const mounted = parameters.flatMap((parameter) => {
    const value = /^(?:mount|mounts|dirs?|tmpdir)=(.*)$/i.exec(parameter)?.[1];
    return value === undefined ? [] : value.split(/[,:]/).filter((one) => one.startsWith('/'));
  });
  return mounted.length > 0 ? mounted : defaultDirectories;
}

/** The directory that hides a path. */
export function hiddenBy(path: string, directories: readonly string[]): string | undefined {
  return directories.find((directory) => `${path}/`.startsWith(`${directory.replace(/\/+$/, '')}/`));
}
