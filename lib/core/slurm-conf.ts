/**
 * slurm.conf(5), as far as it concerns us, and what its values mean for us.
 *
 * Keys are case-insensitive; `#` starts a comment unless a backslash is before it; a backslash at the end
 * continues the line; a value with blanks is quoted; `Include FILE` is resolved from the directory of
 * slurm.conf, with `%c` for the cluster's name.
 */
import { dirname } from 'node:path';
import { isAtLeast, type Version } from './version.ts';

export interface SlurmConf {
  /** Each value given for a key, in order; a key that takes one value takes the last. */
  readonly all: (key: string) => readonly string[];
  readonly last: (key: string) => string | undefined;
  /** What could not be read, as sentences. */
  readonly problems: readonly string[];
}

/** @returns the text of a file, or undefined if there is none */
export type ReadText = (path: string) => Promise<string | undefined>;

/** Slurm has no limit; an Include of itself would have no end. */
const deepestInclude = 10;

/** Lines that describe a node or a partition: the keys in them are not the cluster's. */
const recordLine = /^\s*(?:NodeName|PartitionName|FrontendName|DownNodes|NodeSet)\s*=/i;
const pair = /^\s*([\w.]+)\s*[-*+/]?=\s*(?:"([^"]*)"|(\S+))(?=\s|$)/;

/** Reads slurm.conf and all that it includes. */
export async function readSlurmConf(path: string, read: ReadText): Promise<SlurmConf> {
  const values: [string, string][] = [];
  const problems: string[] = [];
  const visit = async (file: string, depth: number): Promise<void> => {
    if (depth > deepestInclude) {
      problems.push(`${file} is included by itself`);
      return;
    }
    const text = await read(file);
    if (text === undefined) {
      problems.push(`${file} cannot be read`);
      return;
    }
    for (const line of logicalLines(text)) {
      const included = /^include\s+(\S+)/i.exec(line)?.[1];
      if (included !== undefined) await visit(includePath(included, path, values), depth + 1);
      else if (!recordLine.test(line)) values.push(...pairsOf(line));
    }
  };
  await visit(path, 0);
  return { ...lookup(values), problems };
}

function includePath(name: string, mainPath: string, values: readonly [string, string][]): string {
  const cluster = values.findLast(([key]) => key === 'clustername')?.[1] ?? '';
  const file = name.replaceAll('%c', cluster.toLowerCase());
  return file.startsWith('/') ? file : `${dirname(mainPath)}/${file}`;
}

/** Lines without comments and escapes, continued ones joined. */
function logicalLines(text: string): string[] {
  const lines: string[] = [];
  let open = '';
  for (const raw of text.split('\n')) {
    const line = raw.replace(/^((?:[^\\#]|\\.)*)#.*$/, '$1');
    const text = line.trimEnd();
    let backslashes = 0;
    while (text.at(-1 - backslashes) === '\\') backslashes++;
    if (backslashes % 2 === 1) {
      open += text.slice(0, -1);
    } else {
      lines.push((open + line).replace(/\\(.)/g, '$1'));
      open = '';
    }
  }
  return open === '' ? lines : [...lines, open];
}

function pairsOf(line: string): [string, string][] {
  const pairs: [string, string][] = [];
  let rest = line;
  for (let match = pair.exec(rest); match !== null; match = pair.exec(rest)) {
    pairs.push([(match[1] ?? '').toLowerCase(), match[2] ?? match[3] ?? '']);
    rest = rest.slice(match[0].length);
  }
  return pairs;
}

/**
 * The same from the output of `scontrol show config`: `Prolog[0]   = /etc/slurm/prolog`, `(null)` for what is
 * not set.
 */
export function parseScontrolConfig(text: string): SlurmConf {
  const values = text.split('\n').flatMap((line): [string, string][] => {
    const [, key, value] = /^(\w+)(?:\[\d+\])?\s*=\s*(.*)$/.exec(line.trimEnd()) ?? [];
    return key === undefined || value === undefined || value === '' || value === '(null)'
      ? []
      : [[key.toLowerCase(), value]];
  });
  return { ...lookup(values), problems: [] };
}

function lookup(values: readonly [string, string][]): Pick<SlurmConf, 'all' | 'last'> {
  const all = (key: string): string[] =>
    values.filter(([name]) => name === key.toLowerCase()).map(([, value]) => value);
  return { all, last: (key) => all(key).at(-1) };
}

/** Flags that mean "at allocation": Alloc, and those that slurm.conf(5) says set it. */
const allocationFlags = ['alloc', 'contain', 'x11', 'runinjob', 'forcerequeueonfail'];

const flagsOf = (prologFlags: string | undefined): string[] =>
  (prologFlags ?? '').split(',').map((flag) => flag.trim().toLowerCase());

export function runsAtAllocation(prologFlags: string | undefined): boolean {
  return flagsOf(prologFlags).some((flag) => allocationFlags.includes(flag));
}

/** Whether one job's Prolog waits for another's. */
export function runsSerially(prologFlags: string | undefined): boolean {
  return flagsOf(prologFlags).includes('serial');
}

const defaultBatchStartTimeoutSeconds = 10;

/** `65534` and `INFINITE` are Slurm's words for no limit. */
const noLimitSeconds = 65_533;

/** How long slurmd lets a Prolog run, seconds; undefined: for ever. PrologTimeout came with Slurm 25.05. */
export function prologTimeoutSeconds(conf: Pick<SlurmConf, 'last'>): number | undefined {
  const value = conf.last('PrologTimeout') ?? conf.last('PrologEpilogTimeout');
  const seconds = Number.parseInt(value ?? '', 10);
  return Number.isNaN(seconds) || seconds > noLimitSeconds ? undefined : seconds;
}

/** Seconds a batch job may take to start before slurmctld takes it for missing. */
export function batchStartTimeoutSeconds(conf: Pick<SlurmConf, 'last'>): number {
  const seconds = Number.parseInt(conf.last('BatchStartTimeout') ?? '', 10);
  return Number.isNaN(seconds) ? defaultBatchStartTimeoutSeconds : seconds;
}

const defaultMessageTimeoutSeconds = 10;

/** Seconds after which, less two, slurmd has srun print "Prolog hung on node". */
export function messageTimeoutSeconds(conf: Pick<SlurmConf, 'last'>): number {
  const seconds = Number.parseInt(conf.last('MessageTimeout') ?? '', 10);
  return Number.isNaN(seconds) ? defaultMessageTimeoutSeconds : seconds;
}

/**
 * Whether srun, with Alloc, asks for its node 0.1 s after the allocation and then only after 1.1 and 2.6 s
 * (allocate.c of Slurm 23.02 and newer). Before, it asked every 0.1 s.
 */
export function asksSeldom(version: Version): boolean {
  return isAtLeast(version, [23, 2]);
}

/**
 * Whether a TaskProlog under pyxis needs slurmstepd's own libraries inside the container: from Slurm 24.11
 * until 25.05 slurmstepd executes itself again for it (NVIDIA/pyxis issue 163).
 */
export function taskPrologNeedsLibraries(version: Version): boolean {
  return isAtLeast(version, [24, 11]) && !isAtLeast(version, [25, 11]);
}
