/** What enroot reads: our file in mounts.d, and where it keeps its containers. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import {
  isOurMountsFile,
  mountsBefore,
  parseEnrootConf,
  type EnrootSetting,
} from '../../lib/core/enroot-conf.ts';
import { reporter, type Finding } from '../../lib/core/findings.ts';
import { userPath } from '../../lib/core/layout.ts';
import { mountsFileName } from '../../lib/store/node-facts.ts';
import { isRoot } from '../../lib/system/as-user.ts';
import { isGone, unlessErrno } from '../../lib/system/errno.ts';
import { nobody } from '../../lib/system/as-user.ts';
import { whoCannotReach, whoElseCanChange } from '../../lib/system/path-safety.ts';
import {
  answers,
  installDirectory,
  ownershipRemedy,
  readText,
  runAsAnybody,
  type Check,
  type CheckContext,
} from './context.ts';

const report = reporter('mounts.d');
const reportData = reporter('enroot');

export const checkEnrootFiles: Check = async (context) => {
  const { enrootSysconfPath, isolation } = context.settings;
  if (!(await answers(enrootSysconfPath)))
    return [report.bad(`${enrootSysconfPath} does not answer`, 'look after its file server')];
  const mounts =
    isolation === 'shared' || isolation === 'off'
      ? report.ok(`not needed: isolation=${isolation}`)
      : await mountsFinding(context);
  return [mounts, await dataPathFinding(context)];
};

async function mountsFinding(context: CheckContext): Promise<Finding> {
  const directory = `${context.settings.enrootSysconfPath}/mounts.d`;
  const path = `${directory}/${mountsFileName}`;
  const install = `install --mode=0644 ${installDirectory(context)}/${mountsFileName} ${path}`;
  const names = unlessErrno([...isGone, 'EACCES'], () => readdirSync(directory));
  if (names === undefined)
    return report.bad(
      `${directory} is not there, or closed to us`,
      "set enroot_sysconf_path to the directory that has enroot's mounts.d",
    );
  const text = names.includes(mountsFileName) ? await readText(path) : undefined;
  if (text === undefined)
    return report.bad(`${path} is not there: containers cannot start from the cache`, install);
  if (!isOurMountsFile(text)) return report.bad(`${path} holds something else than our line`, install);
  const others = whoElseCanChange(path);
  if (others !== undefined)
    return report.bad(
      `${path}: somebody else can change it: ${others.path} is ${others.found}`,
      ownershipRemedy(others),
    );
  const closed = whoCannotReach(path, 0o4);
  if (closed !== undefined)
    return report.bad(
      `${path}: users cannot read it: ${closed.path} is ${closed.found}`,
      `chmod o+rX ${closed.path}`,
    );
  const before = mountsBefore(mountsFileName, names);
  if (before.length > 0)
    return report.bad(
      `${before.join(', ')} in ${directory} comes before our file, and what it mounts is hidden`,
      'give it a name that sorts after ours, such as 10-NAME.fstab',
    );
  return report.ok(`${path} is the first there`);
}

/** Containers of users lie where enroot.conf says, the cache's where we say: it is best if that is one place. */
async function dataPathFinding({ settings }: CheckContext): Promise<Finding> {
  const lines = await readEnrootConf(settings.enrootSysconfPath);
  const uid = isRoot() ? nobody.uid : (process.getuid?.() ?? nobody.uid);
  const found = await evaluate(lines);
  const wanted = userPath(settings.basePath, uid);
  const remedy = `in ${settings.enrootSysconfPath}/enroot.conf: ENROOT_DATA_PATH ${settings.basePath}/$(id -u)`;
  if (found === undefined)
    return reportData.bad(
      `the shell cannot evaluate ${settings.enrootSysconfPath}/enroot.conf for uid ${uid}`,
      remedy,
    );
  if (found.replace(/\/+$/, '') === wanted) return reportData.ok(`its data path is ${wanted} for uid ${uid}`);
  return reportData.warn(
    `its data path is ${found} for uid ${uid}, the cache's ${wanted}: named containers and what a user sees by ` +
      '"enroot list" lie apart from the cache, and with container_scope=job the stubs are removed by our Epilog alone',
    `leave it, or ${remedy}`,
  );
}

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

/** As enroot does it: the first value of a key counts, and later ones may refer to it. */
const evaluationScript = `
while [ $# -ge 2 ]; do
  if [ -z "\${!1-}" ]; then
    value=$(eval "echo $2") || exit 1
    export "$1=$value"
  fi
  shift 2
done
printf '%s' "\${ENROOT_DATA_PATH:-\${XDG_DATA_HOME:-$HOME/.local/share}/enroot}"`;

/** @returns undefined if the shell fails */
function evaluate(settings: readonly EnrootSetting[]): Promise<string | undefined> {
  const pairs = settings.flatMap(({ key, value }) => [key, value]);
  const environment = { HOME: '/home/nobody', USER: 'nobody' };
  return runAsAnybody('bash', ['-c', evaluationScript, 'bash', ...pairs], environment);
}
