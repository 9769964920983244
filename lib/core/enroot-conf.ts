/**
 * enroot's own configuration, `enroot.conf` and then `enroot.conf.d/*.conf`, and its mounts.d.
 *
 * The shell evaluates a value, so here it stays as it is written. Of several lines for a key the first with a
 * value counts.
 */
import { withoutLastSlashes } from './mountinfo.ts';

export interface EnrootSetting {
  readonly key: string;
  /** As written: `/raid/data/$(id -u)`. */
  readonly value: string;
}

const keyPattern = /^ENROOT_[A-Z_]+$/;

/**
 * Blanks, tabs or one `=` stand between key and value; all else than ENROOT_ keys is passed over, comments
 * too.
 */
export function parseEnrootConf(text: string): EnrootSetting[] {
  return text.split('\n').flatMap((line) => {
    const [, key = '', rest = ''] = /^([^\s=]+)(.*)$/.exec(line.trim()) ?? [];
    const value = rest.trimStart().replace(/^=/, '').trimStart();
    return keyPattern.test(key) && value !== '' ? [{ key, value }] : [];
  });
}

/**
 * Where containers of a user lie by the first ENROOT_DATA_PATH, if that can be told without a shell:
 * `/raid/data/$(id -u)`.
 *
 * @returns undefined: there is none, or only the shell can tell; a line that tests what it names is among
 *   those
 */
export function plainDataPath(settings: readonly EnrootSetting[], uid: number): string | undefined {
  const value = settings.find(({ key }) => key === 'ENROOT_DATA_PATH')?.value ?? '';
  const path = value
    .replace(/^(["'])(.*)\1$/, '$2')
    .replaceAll(/\$\(id -u\)|`id -u`|\$\{?E?UID\b\}?|\$\{?SLURM_JOB_UID\b\}?/g, String(uid));
  return /^(?:\/[\w.@%+=:,-]+)+\/?$/.test(path) ? withoutLastSlashes(path) : undefined;
}

/**
 * The line of enroot.conf that we recommend: the user's directory in the base if it is there and can be
 * written; else nothing, and of a value that is empty enroot takes the next one, or its own default (enroot's
 * config::export, 3.4 to 4.1).
 */
export const dataPathLine = (basePath: string): string =>
  `ENROOT_DATA_PATH $(d=${basePath}/$(id -u) && test -w $d && echo $d)`;

/** The only line of our file in mounts.d; enroot puts the variable's value in its place. */
const mountsLine = '${CONTAINER_CACHE_FSTAB}';

const fstabLines = (text: string): string[] =>
  text
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('#'));

/** Whether a file of mounts.d holds our line and nothing else. */
export function isOurMountsFile(text: string): boolean {
  const lines = fstabLines(text);
  return lines.length === 1 && lines[0] === mountsLine;
}

/**
 * Those names of mounts.d that enroot reads before ours, and that would be mounted below our overlay and so
 * be hidden.
 */
export function mountsBefore(ours: string, names: readonly string[]): string[] {
  return names.filter((name) => name.endsWith('.fstab') && !name.startsWith('.') && name < ours).sort();
}

/** Whether a file of mounts.d puts a path, or a directory above it, into every container. */
export function mountsPath(text: string, path: string): boolean {
  return fstabLines(text).some((line) => {
    const target = withoutLastSlashes(line.split(/\s+/)[1] ?? '');
    return target.startsWith('/') && (target === path || path.startsWith(`${target}/`));
  });
}
