/** Does slurmd find our enroot first, and our enroot the real one? */
import { globSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { describeError, NodeFault } from '../../lib/core/faults.ts';
import { isKnownEnroot } from '../../lib/core/node-facts.ts';
import { findEnroot } from '../../lib/image/enroot-program.ts';
import { askEnrootVersion } from '../../lib/store/node-facts-file.ts';
import { isRoot } from '../../lib/system/as-user.ts';
import { processStartedMs, processVariable } from '../../lib/system/processes.ts';
import { findProgram, isRegularFile } from '../../lib/system/programs.ts';
import {
  accessFault,
  answers,
  installDirectory,
  readText,
  type Check,
  type CheckContext,
} from './context.ts';
import { reporter, type Finding } from './findings.ts';

const report = reporter('wrapper');
const reportEnroot = reporter('enroot');

export const checkWrapper: Check = async (context) => [
  await slurmdFinding(context),
  ...commandFindings(context),
  ...(await enrootFindings(context)),
];

/** By the comment below its first line. */
async function isWrapper(path: string): Promise<boolean> {
  const comment = (await readText(path))?.split('\n', 2)[1];
  return comment?.startsWith('#') === true && comment.includes('container-cache');
}

/** What a build has, and where it was installed. */
async function shippedWrapper(context: CheckContext): Promise<string | undefined> {
  const directory = installDirectory(context);
  for (const path of [`${directory}/bin/enroot`, `${directory}/enroot`])
    if (isRegularFile(path) && (await isWrapper(path))) return path;
  return undefined;
}

async function slurmdFinding(context: CheckContext): Promise<Finding> {
  const { slurmd } = context;
  const shipped = await shippedWrapper(context);
  const directory = dirname(shipped ?? '/usr/libexec/container-cache/bin/enroot');
  const usual = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
  const remedy =
    `systemctl edit slurmd: [Service], Environment=PATH=${directory}:${usual}; ` +
    'then systemctl restart slurmd: running jobs continue';
  if (slurmd === undefined)
    return report.skip(
      'no slurmd runs on this node: it is not known which enroot it finds',
      'start slurmd and run this command again',
    );
  if (!isRoot())
    return report.skip(
      `only root can see which enroot slurmd (${slurmd.pid}) finds`,
      'run this command as root',
    );
  const searchPath = processVariable(slurmd.pid, 'PATH') ?? '';
  for (const one of searchPath.split(':').filter((part) => part.startsWith('/')))
    if (!(await answers(one)))
      return report.bad(
        `${one}, in the PATH of slurmd, does not answer`,
        'check its file server, or remove it from the PATH',
      );
  const first = findProgram('enroot', searchPath);
  if (first === undefined || !(await isWrapper(first))) {
    const found =
      first === undefined
        ? `slurmd has no enroot in its PATH ("${searchPath}")`
        : `the first enroot in the PATH of slurmd is ${first}, not the wrapper`;
    return (await dropInFinding(slurmd.pid, found)) ?? report.bad(found, remedy);
  }
  return (
    (await wrapperFault(first, shipped)) ??
    report.ok(`${first} is the first enroot in the PATH of slurmd (${slurmd.pid})`)
  );
}

/** Of systemd's directories, the strongest first. */
const dropIns = ['/etc', '/run', '/usr/local/lib', '/usr/lib', '/lib'].map(
  (top) => `${top}/systemd/system/slurmd.service.d/*.conf`,
);

/**
 * A drop-in of slurmd's unit sets the wrapper's PATH: slurmd was not restarted since, or something overrides
 * it.
 */
async function dropInFinding(pid: number, found: string): Promise<Finding | undefined> {
  for (const file of dropIns.flatMap((pattern) => globSync(pattern))) {
    const path = /^\s*Environment=.*?\bPATH=([^\s"']+)/m.exec((await readText(file)) ?? '')?.[1] ?? '';
    const enroot = findProgram('enroot', path);
    if (enroot === undefined || !(await isWrapper(enroot))) continue;
    // Not its other time, which a package brings along.
    const isNewer = statSync(file).ctimeMs > (processStartedMs(pid) ?? 0);
    return isNewer
      ? report.bad(
          `${found}: slurmd was not restarted after ${file} was installed`,
          'systemctl daemon-reload && systemctl restart slurmd: running jobs continue',
        )
      : report.bad(
          `${found}, although ${file} sets it`,
          'look for a PATH in an EnvironmentFile of slurmd.service (Debian: /etc/default/slurmd), which overrides it; ' +
            'or somebody started slurmd without systemd',
        );
  }
  return undefined;
}

async function wrapperFault(path: string, shipped: string | undefined): Promise<Finding | undefined> {
  const fault = accessFault(report, path, 'execute');
  if (fault !== undefined) return fault;
  if (shipped !== undefined && (await readText(shipped)) !== (await readText(path)))
    return report.bad(
      `${path} belongs to another build than this command`,
      `install --mode=0755 ${shipped} ${path}`,
    );
  return undefined;
}

/** The wrapper runs `container-cache acquire` as the job's user. */
function commandFindings({ executable }: CheckContext): Finding[] {
  if (executable === undefined) return [];
  const fault = accessFault(report, executable, 'execute');
  return fault === undefined ? [] : [fault];
}

async function enrootFindings({ settings }: CheckContext): Promise<Finding[]> {
  const setPath = 'set enroot_path to the real enroot, and keep the wrapper alone in its directory';
  let path;
  try {
    path = findEnroot(settings.enrootPath);
  } catch (error) {
    if (!(error instanceof NodeFault)) throw error;
    return [reportEnroot.bad(describeError(error), 'install enroot, or set enroot_path')];
  }
  if (!(await answers(path))) return [reportEnroot.bad(`${path} does not answer`, 'check its file server')];
  if (await isWrapper(path))
    return [reportEnroot.bad(`${path} is the wrapper, not the real enroot`, setPath)];
  // Directories that are there: nothing is made.
  const version = await askEnrootVersion(path, '/tmp');
  if (version === undefined)
    return [
      reportEnroot.bad(
        `${path} does not print its version: the wrapper serves no container`,
        `try it as a user: ${path} version`,
      ),
    ];
  if (!isKnownEnroot(version))
    return [
      reportEnroot.bad(
        `${path} is version ${version}, which the wrapper does not serve`,
        'install enroot 3.4 to 4.x; 4.1 is tested',
      ),
    ];
  const tested = /^4\.1(?:\.|$)/.test(version) ? '' : ' (4.1 is tested)';
  return [reportEnroot.ok(`${path} is version ${version}${tested}`)];
}
