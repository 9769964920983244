/**
 * enroot's own configuration, `enroot.conf` and `enroot.conf.d/*.conf` (platform.md 15), and its mounts.d.
 *
 * A value is evaluated by the shell, so here it stays as it is written. Of several lines for a key the first with a
 * value counts.
 */
import { withoutLastSlashes } from './mountinfo.ts';

export interface EnrootSetting {
  readonly key: string;
  /** As written: `/raid/data/$(id -u)`. */
  readonly value: string;
}

const keyPattern = /^ENROOT_[A-Z_]+$/;

/** Blanks, tabs or one `=` stand between key and value; all else than ENROOT_ keys is passed over, comments too. */
export function parseEnrootConf(text: string): EnrootSetting[] {
  return text.split('\n').flatMap((line) => {
    const [, key = '', rest = ''] = /^([^\s=]+)(.*)$/.exec(line.trim()) ?? [];
    const value = rest.trimStart().replace(/^=/, '').trimStart();
    return keyPattern.test(key) && value !== '' ? [{ key, value }] : [];
  });
}

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

/** Those names of mounts.d that enroot reads before ours, and that would be mounted below our overlay and so be hidden. */
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
