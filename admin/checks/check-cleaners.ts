/**
 * Does something else on this node delete what is ours: scripts of Slurm and cron, timers, systemd-tmpfiles?
 */
import { globSync, readdirSync, readFileSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { entryName, entryPath, leasePath, userPath } from '../../lib/core/layout.ts';
import { isGone, unlessErrno } from '../../lib/system/errno.ts';
import { isRegularFile } from '../../lib/system/programs.ts';
import { expand } from './check-slurm.ts';
import { answers, readText, type Check, type CheckContext } from './context.ts';
import { reporter, type Finding } from './findings.ts';
import { pathInScript, readScript } from './identify.ts';
import { assignmentsOf, findDeletions, type Values } from './shell-deletions.ts';
import { agingLine, parseTmpfiles, removingLine, type TmpfilesLine } from './tmpfiles.ts';

const report = reporter('cleaners');

export const checkCleaners: Check = async (context) => {
  if (!context.isRoot)
    return [
      report.skip(
        'only root can check whether scripts on this node delete entries',
        'run this command as root',
      ),
    ];
  const scripts = await findScripts(context);
  const findings = [...scriptFindings(scripts, context), ...tmpfilesFindings(context)];
  if (findings.length > 0) return findings;
  return [
    report.ok(
      `found nothing else that deletes entries: read ${scripts.size} scripts, crontabs and timers, and tmpfiles.d`,
    ),
  ];
};

/** What any user could have; the uid is that of most first users. */
const sampleUid = 1000;
const sampleUserVariables: Values = new Map([
  ['SLURM_JOB_UID', [String(sampleUid)]],
  ['SLURM_UID', [String(sampleUid)]],
  ['UID', [String(sampleUid)]],
  ['EUID', [String(sampleUid)]],
]);

function sampleEntryFile({ settings }: CheckContext): string {
  return `${entryPath(settings.basePath, sampleUid, entryName(sampleUid, '0123456789abcdef'))}/usr/bin/sh`;
}

/** More than these are not read. */
const mostScripts = 500;
const deepestCall = 3;

const slurmKeys = [
  ...['Prolog', 'Epilog', 'PrologSlurmctld', 'EpilogSlurmctld', 'TaskProlog', 'TaskEpilog'],
  ...['HealthCheckProgram', 'RebootProgram'],
];
const cronPatterns = [
  ...['/etc/crontab', '/etc/cron.d/*', '/etc/cron.hourly/*', '/etc/cron.daily/*', '/etc/cron.weekly/*'],
  ...['/etc/cron.monthly/*', '/var/spool/cron/*', '/var/spool/cron/crontabs/*'],
];
const unitDirectories = [
  '/etc/systemd/system',
  '/run/systemd/system',
  '/usr/local/lib/systemd/system',
  '/usr/lib/systemd/system',
];

/** @returns the texts by their paths, those that they run too */
async function findScripts(context: CheckContext): Promise<Map<string, string>> {
  const scripts = new Map<string, string>();
  const follow = async (path: string, text: string | undefined, depth: number): Promise<void> => {
    if (text === undefined || scripts.has(path) || scripts.size >= mostScripts) return;
    scripts.set(path, text);
    if (depth === 0) return;
    for (const [, named = ''] of text.matchAll(pathInScript))
      for (const one of filesAt(named)) await follow(one, readScript(one), depth - 1);
  };
  for (const key of slurmKeys)
    for (const value of context.slurm?.conf.all(key) ?? [])
      for (const path of await expand(context, value.split(' ')[0] ?? ''))
        if (await answers(path)) await follow(path, readScript(path), deepestCall);
  for (const pattern of cronPatterns)
    if (await answers(dirname(pattern)))
      for (const path of globSync(pattern)) await follow(path, await readText(path), deepestCall);
  for (const directory of unitDirectories)
    for (const timer of globSync(`${directory}/*.timer`)) {
      const path = unitDirectories
        .map((one) => `${one}/${basename(timer, '.timer')}.service`)
        .find(isRegularFile);
      if (path !== undefined) await follow(path, execLines(await readText(path)), deepestCall);
    }
  return scripts;
}

/** Of a unit only what it runs. The other lines are kept empty, for their numbers. */
const execLines = (unit: string | undefined): string | undefined =>
  unit
    ?.split('\n')
    .map((line) => (/^Exec\w+=/.test(line) ? line.replace(/^Exec\w+=[-@:+!]*/, '') : ''))
    .join('\n');

/** A script, or the parts in a directory such as epilog.d. */
function filesAt(path: string): string[] {
  if (/^\/(?:proc|sys|dev|tmp|run\/user|home)(?:\/|$)/.test(path) || path.lastIndexOf('/') === 0) return [];
  if (isRegularFile(path)) return [path];
  if (!/\.d\/?$|parts|prolog|epilog|scripts/.test(path)) return [];
  const names = unlessErrno([...isGone, 'EACCES'], () => readdirSync(path)) ?? [];
  return names.map((name) => `${path.replace(/\/+$/, '')}/${name}`).filter(isRegularFile);
}

function scriptFindings(scripts: ReadonlyMap<string, string>, context: CheckContext): Finding[] {
  const { basePath, runtimePath, statePath } = context.settings;
  const paths = [sampleEntryFile(context), leasePath(runtimePath, 1), `${statePath}/pins`];
  const dataPath = userPath(basePath, sampleUid);
  const known: Values = new Map([...sampleUserVariables, ['ENROOT_DATA_PATH', [dataPath]]]);
  return [...scripts].flatMap(([file, text]) => {
    if (text.includes('container-cache') && /\bgc\b|cache_data_path/.test(text)) return [];
    const sourced = [...text.matchAll(/(?:^|[;&\s])(?:\.|source)\s+(\/[\w./-]+)/g)].flatMap(
      ([, path = '']) => [...assignmentsOf(scripts.get(path) ?? readAdminFile(path))],
    );
    return findDeletions(text, paths, new Map([...known, ...sourced])).map((deletion) =>
      report.bad(
        `${file}:${deletion.line} would delete entries or leases: ${shorten(deletion.text)}`,
        `exclude ${basePath}, ${runtimePath} and ${statePath} there (find: -path ${basePath} -prune -o …): container-cache evicts ` +
          'entries itself, and container-cache gc --force deletes them safely',
      ),
    );
  });
}

const longestShown = 100;
const shorten = (text: string): string =>
  text.length > longestShown ? `${text.slice(0, longestShown)}…` : text;

/** The first that has a file of a name hides those of the same name in the others. */
const tmpfilesDirectories = [
  '/etc/tmpfiles.d',
  '/run/tmpfiles.d',
  '/usr/local/lib/tmpfiles.d',
  '/usr/lib/tmpfiles.d',
];

function readTmpfiles(): TmpfilesLine[] {
  const files = new Map<string, string>();
  for (const directory of tmpfilesDirectories)
    for (const path of globSync(`${directory}/*.conf`))
      if (!files.has(basename(path))) files.set(basename(path), path);
  return [...files.values()].flatMap((path) => parseTmpfiles(readAdminFile(path), path));
}

function tmpfilesFindings(context: CheckContext): Finding[] {
  const lines = readTmpfiles();
  const { basePath, runtimePath, statePath } = context.settings;
  return [
    [basePath, sampleEntryFile(context)] as const,
    [runtimePath, leasePath(runtimePath, 1)] as const,
    [statePath, `${statePath}/pins`] as const,
  ].flatMap(([path, inside]) => {
    const exclude = `echo 'x ${path}' > /etc/tmpfiles.d/container-cache-${basename(path)}.conf`;
    const aging = agingLine(lines, inside);
    if (aging !== undefined)
      return [
        report.bad(
          `${aging.file}:${aging.line} (${aging.type} ${aging.path}) makes systemd-tmpfiles delete files older than ${aging.age ?? ''} in ${path}`,
          exclude,
        ),
      ];
    const removing = path === runtimePath ? undefined : removingLine(lines, inside);
    if (removing === undefined) return [];
    return [
      report.warn(
        `${removing.file}:${removing.line} (${removing.type} ${removing.path}) makes systemd-tmpfiles delete ${path} at each boot`,
        'remove the line, or move the directory',
      ),
    ];
  });
}

function readAdminFile(path: string): string {
  return unlessErrno([...isGone, 'EACCES', 'EISDIR'], () => readFileSync(path, 'utf8')) ?? '';
}
