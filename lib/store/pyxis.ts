/**
 * How pyxis is set up on this node: plugstack.conf and all that it includes, found as Slurm finds it.
 *
 *   slurm.conf ─ PlugStackConfig, else plugstack.conf beside it ─ include PATTERN …
 */
import { globSync, readFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { noImporter, type NodeFacts } from '../core/node-facts.ts';
import { parsePlugstack, pyxisOptions, type Plugin } from '../core/plugstack.ts';
import { readSlurmConf, type ReadText } from '../core/slurm-conf.ts';
import { answersWithin } from '../system/answers.ts';
import { unlessErrno } from '../system/errno.ts';
import { joinPaths, stampOf } from './pyxis-stamp.ts';

/** An include of itself would have no end. */
const deepestInclude = 10;
/** Of plugins and files: a glob may match anything. */
const mostFiles = 50;
const answerLimitMs = 5000;
const longestTextBytes = 1024 * 1024;

interface Plugstack {
  readonly plugins: readonly Plugin[];
  /** All that was read or looked for, and the directories of patterns. */
  readonly files: readonly string[];
}

/** @param read gives undefined for a file that is not there, or does not answer */
export async function readPlugstack(path: string, read: ReadText): Promise<Plugstack> {
  const plugins: Plugin[] = [];
  const files: string[] = [];
  const visit = async (file: string, depth: number): Promise<void> => {
    if (depth > deepestInclude || files.length > mostFiles) return;
    files.push(file);
    for (const line of parsePlugstack((await read(file)) ?? '')) {
      if (line.kind === 'plugin') {
        plugins.push(line);
        continue;
      }
      const pattern = line.pattern.startsWith('/') ? line.pattern : `${dirname(file)}/${line.pattern}`;
      files.push(dirname(pattern));
      if (!(await answersWithin(dirname(pattern), answerLimitMs))) continue;
      for (const included of globSync(pattern).sort()) await visit(included, depth + 1);
    }
  };
  await visit(path, 0);
  return { plugins, files };
}

/** @param slurmConfPath undefined: Slurm has none that we know of */
export function plugstackPath(configured: string | undefined, slurmConfPath: string | undefined): string {
  const directory = dirname(slurmConfPath ?? '/etc/slurm/slurm.conf');
  if (configured === undefined) return `${directory}/plugstack.conf`;
  return configured.startsWith('/') ? configured : `${directory}/${configured}`;
}

type PyxisFacts = Pick<
  NodeFacts,
  'importer' | 'pyxisRuntimePath' | 'pyxisVersion' | 'pyxisFiles' | 'pyxisStamp'
>;

/** What of it concerns us. Whatever could not be read makes the importer unknown. */
export async function findPyxis(slurmConfPath = '/etc/slurm/slurm.conf'): Promise<PyxisFacts> {
  const files: string[] = [];
  const missing: string[] = [];
  const read = async (path: string): Promise<string | undefined> => {
    const text = await readText(path);
    if (text === undefined) missing.push(path);
    return text;
  };
  const conf = await readSlurmConf(slurmConfPath, (path) => {
    files.push(path);
    return read(path);
  });
  const path = plugstackPath(conf.last('PlugStackConfig'), slurmConfPath);
  // Slurm does without the default one, if it is not there.
  const isAbsent = conf.last('PlugStackConfig') === undefined && (await readText(path)) === undefined;
  const { plugins, files: ofPlugstack } = isAbsent
    ? { plugins: [], files: [path] }
    : await readPlugstack(path, read);
  files.push(...ofPlugstack);
  const options = pyxisOptions(plugins);
  const isKnown =
    missing.length === 0 &&
    files.length <= mostFiles &&
    isWritable(files) &&
    options !== undefined &&
    (options.importer?.startsWith('/') ?? true);
  const watched = joinPaths([...new Set(files)].slice(0, mostFiles));
  return {
    importer: isKnown ? (options.importer ?? noImporter) : undefined,
    pyxisRuntimePath: options?.runtimePath,
    pyxisVersion: await findVersion(plugins),
    pyxisFiles: watched,
    pyxisStamp: stampOf(watched),
  };
}

/** Whether they can be written into a line of the facts. */
const isWritable = (files: readonly string[]): boolean => files.every((file) => !/[\t\r\n]/.test(file));

async function readText(path: string): Promise<string | undefined> {
  if (!(await answersWithin(path, answerLimitMs))) return undefined;
  return unlessErrno(['ENOENT', 'ENOTDIR', 'EACCES', 'EISDIR', 'ELOOP'], () =>
    readFileSync(path).subarray(0, longestTextBytes).toString('utf8'),
  );
}

/** pyxis logs its version when slurmd loads it, so the text is in its file. */
async function findVersion(plugins: readonly Plugin[]): Promise<string | undefined> {
  const path = plugins.find((plugin) => /pyxis[^/]*\.so$/.test(plugin.path))?.path;
  if (path?.startsWith('/') !== true || !(await answersWithin(path, answerLimitMs))) return undefined;
  const content = unlessErrno(['ENOENT', 'ENOTDIR', 'EACCES', 'EISDIR', 'ELOOP'], () => readFileSync(path));
  return /pyxis: version v?(\d[\w.-]{0,30})/.exec(content?.toString('latin1') ?? '')?.[1];
}
