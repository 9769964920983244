/** What enroot reads: our file in mounts.d, and where it keeps its containers. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import {
  dataPathLine,
  isOurMountsFile,
  mountsBefore,
  parseEnrootConf,
  type EnrootSetting,
} from '../../lib/core/enroot-conf.ts';
import { mountsFileName } from '../../lib/store/node-facts-file.ts';
import { isRoot } from '../../lib/system/as-user.ts';
import { nobody } from '../../lib/system/as-user.ts';
import { isGone, unlessErrno } from '../../lib/system/errno.ts';
import {
  answers,
  installDirectory,
  accessFault,
  readText,
  runAsAnybody,
  type Check,
  type CheckContext,
} from './context.ts';
import { reporter, type Finding } from './findings.ts';

const report = reporter('mounts.d');
const reportData = reporter('enroot');

export const checkEnrootFiles: Check = async (context) => {
  const { enrootSysconfPath, isolation } = context.settings;
  if (!(await answers(enrootSysconfPath)))
    return [report.bad(`${enrootSysconfPath} does not answer`, 'check its file server')];
  const mounts =
    isolation === 'shared' || isolation === 'off'
      ? report.ok(`not needed: isolation=${isolation}`)
      : await mountsFinding(context);
  return [mounts, ...(await dataPathFindings(context))];
};

async function mountsFinding(context: CheckContext): Promise<Finding> {
  const directory = `${context.settings.enrootSysconfPath}/mounts.d`;
  const path = `${directory}/${mountsFileName}`;
  const install = `install --mode=0644 ${installDirectory(context)}/${mountsFileName} ${path}`;
  const names = unlessErrno([...isGone, 'EACCES'], () => readdirSync(directory));
  if (names === undefined)
    return report.bad(
      `${directory} does not exist or cannot be read`,
      "set enroot_sysconf_path to the directory that contains enroot's mounts.d",
    );
  const text = names.includes(mountsFileName) ? await readText(path) : undefined;
  if (text === undefined)
    return report.bad(`${path} does not exist: containers cannot start from the cache`, install);
  if (!isOurMountsFile(text)) return report.bad(`${path} does not have the line of container-cache`, install);
  const fault = accessFault(report, path, 'read');
  if (fault !== undefined) return fault;
  const before = mountsBefore(mountsFileName, names);
  if (before.length > 0)
    return report.bad(
      `${before.join(', ')} in ${directory} sorts before ${mountsFileName}: its mounts are hidden`,
      'rename it so that it sorts later, such as 10-NAME.fstab',
    );
  return report.ok(`${path} is the first file there`);
}

/**
 * Where containers lie that are not from the cache: asked for a user who is new to this node, in a job and in
 * the epilog of pyxis, which has no HOME. Both must work while we do not.
 */
async function dataPathFindings({ settings }: CheckContext): Promise<Finding[]> {
  const { basePath, enrootSysconfPath } = settings;
  const conf = `${enrootSysconfPath}/enroot.conf`;
  const uid = isRoot() ? nobody.uid : (process.getuid?.() ?? nobody.uid);
  const remedy = `in ${conf}, before other lines for ENROOT_DATA_PATH: ${dataPathLine(basePath)}`;
  const found = await evaluate(await readEnrootConf(enrootSysconfPath));
  if (found === undefined)
    return [reportData.bad(`the shell cannot evaluate ${conf} for uid ${uid}`, remedy)];
  const { inJob, inEpilog, problem } = found;
  const findings: Finding[] = [];
  if (inJob !== inEpilog)
    findings.push(
      reportData.warn(
        `enroot's data path is ${inJob} in a job and ${inEpilog} in the epilog of pyxis, which has no HOME: the epilog does not find the job's containers`,
        `use neither HOME nor variables of the job in ${conf}; or ${remedy}`,
      ),
    );
  if (problem !== '')
    findings.push(
      reportData.warn(
        isBelow(basePath, inJob)
          ? `enroot's data path is ${inJob} for uid ${uid}, and only the Prolog of container-cache creates it: when that Prolog fails (a typo in ` +
              'the configuration, a disk that is not mounted, a removal), enroot fails for new users, and with container_scope=job the ' +
              'epilog of pyxis drains the node'
          : `enroot's data path is ${inJob} for uid ${uid}, which cannot be created: ${problem}`,
        isBelow(basePath, inJob) ? remedy : `nothing, if your own Prolog creates it; else ${remedy}`,
      ),
    );
  if (findings.length === 0)
    findings.push(reportData.ok(`enroot's data path is ${inJob} for uid ${uid}, who is new on this node`));
  return findings;
}

const isBelow = (directory: string, path: string): boolean => `${path}/`.startsWith(`${directory}/`);

/** enroot.conf first, then enroot.conf.d/*.conf in the order of their names. */
async function readEnrootConf(sysconfPath: string): Promise<EnrootSetting[]> {
  const directory = join(sysconfPath, 'enroot.conf.d');
  const names = unlessErrno([...isGone, 'EACCES'], () => readdirSync(directory)) ?? [];
  const dropIns = names
    .filter((name) => name.endsWith('.conf') && !name.startsWith('.'))
    .sort()
    .map((name) => join(directory, name));
  const settings: EnrootSetting[] = [];
  for (const file of [join(sysconfPath, 'enroot.conf'), ...dropIns])
    settings.push(...parseEnrootConf((await readText(file)) ?? ''));
  return settings;
}

/**
 * As enroot does it, with the options of its shell: of a key the first value counts that is not empty, and
 * later lines may refer to it. Once for the epilog, without HOME, and once for a job. Nothing is made:
 * `mkdir -p` fails where the nearest directory cannot be written.
 */
const evaluationScript = `
set -euo pipefail
printf '%s %s\\n' "$@" | bash -n
data_path() (
  while [ $# -ge 2 ]; do
    value=$(eval "echo $2" 2>/dev/null) || true
    [ -n "\${!1-}" ] || export "$1=$value"
    shift 2
  done
  printf '%s\\n' "\${ENROOT_DATA_PATH:-\${XDG_DATA_HOME:-\${HOME:-$(echo ~)}/.local/share}/enroot}"
)
home=$(unset HOME; echo ~)
job=$(export HOME="$home"; data_path "$@")
unset HOME
epilog=$(data_path "$@")
problem=
nearest=$job
while [ ! -e "$nearest" ] && [ ! -L "$nearest" ]; do nearest=$(dirname "$nearest"); done
if [ "\${job#"$home"/}" != "$job" ]; then :
elif [ ! -d "$nearest" ]; then problem="$nearest is not a directory"
elif [ "$nearest" != "$job" ] && { [ ! -w "$nearest" ] || [ ! -x "$nearest" ]; }; then problem="$nearest is not writable"
fi
printf '%s\\n%s\\n%s\\n' "$job" "$epilog" "$problem"`;

interface DataPath {
  readonly inJob: string;
  readonly inEpilog: string;
  /** Why it could not be made; empty: it could, or it is in the user's home directory. */
  readonly problem: string;
}

/** @returns undefined if the shell fails */
async function evaluate(settings: readonly EnrootSetting[]): Promise<DataPath | undefined> {
  const pairs = settings.flatMap(({ key, value }) => [key, value]);
  const output = await runAsAnybody('bash', ['-c', evaluationScript, 'bash', ...pairs], { USER: 'nobody' });
  const [inJob, inEpilog, problem = ''] = output?.split('\n') ?? [];
  return inJob === undefined || inEpilog === undefined || inJob === ''
    ? undefined
    : { inJob, inEpilog, problem };
}
