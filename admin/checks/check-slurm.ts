/** Does Slurm run our programs, early enough and long enough? */
import { globSync, statSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { mountsPath } from '../../lib/core/enroot-conf.ts';
import { defaultRuntimePath, longestPrologSeconds } from '../../lib/core/settings.ts';
import {
  asksSeldom,
  batchStartTimeoutSeconds,
  messageTimeoutSeconds,
  prologTimeoutSeconds,
  runsAtAllocation,
  runsSerially,
  taskPrologNeedsLibraries,
  type SlurmConf,
} from '../../lib/core/slurm-conf.ts';
import { parseVersion, type Version } from '../../lib/core/version.ts';
import { isGone, unlessErrno } from '../../lib/system/errno.ts';
import { whoElseCanChange } from '../../lib/system/path-safety.ts';
import { CommandFailed, run } from '../../lib/system/run-command.ts';
import { findSlurmProgram } from '../../lib/system/slurmd.ts';
import { answers, installDirectory, readText, type Check, type CheckContext } from './context.ts';
import { reporter, type Finding } from './findings.ts';
import { identify } from './identify.ts';

const report = reporter('slurm');

export const checkSlurm: Check = async (context) => {
  if (context.slurm === undefined) return [];
  const { conf } = context.slurm;
  const version = await findSlurmVersion(context);
  return [
    ...(await programFindings(context, conf, 'Prolog')),
    ...(await programFindings(context, conf, 'Epilog')),
    ...flagFindings(conf, version),
    ...timeoutFindings(context, conf),
    await taskPrologFinding(context, conf, version),
  ];
};

async function programFindings(
  context: CheckContext,
  conf: SlurmConf,
  key: 'Prolog' | 'Epilog',
): Promise<Finding[]> {
  const values = conf.all(key);
  const line = `in slurm.conf: ${key}=${installDirectory(context)}/${key.toLowerCase()}, then scontrol reconfigure`;
  if (values.length === 0) return [report.bad(`${key} is not set`, line)];
  const looks: ProgramLook[] = [];
  for (const value of values)
    for (const path of await expand(context, value)) looks.push(await lookAt(context, key, value, path));
  const findings = looks.flatMap(({ finding }) => finding ?? []);
  const ours = looks.filter(({ isOurs }) => isOurs);
  if (ours.length === 0)
    return [...findings, report.bad(`${key} does not run container-cache: ${values.join(', ')}`, line)];
  if (ours.some(({ value }) => value === values.at(-1))) return findings;
  return [
    ...findings,
    report.warn(
      `${key} is set ${values.length} times, and the last one is not container-cache: older versions of Slurm use only the last`,
      'use one pattern for all of them, such as DIRECTORY/*, or put container-cache last',
    ),
  ];
}

/** What slurmd would run for a value: the file, or what matches the pattern (glob(7)). */
export async function expand({ slurm }: Pick<CheckContext, 'slurm'>, value: string): Promise<string[]> {
  // A name without a slash is looked for beside slurm.conf.
  const path = value.startsWith('/') ? value : join(dirname(slurm?.path ?? '/etc/slurm/slurm.conf'), value);
  if (!/[*?[]/.test(path)) return [path];
  return (await answers(dirname(path))) ? globSync(path).sort() : [dirname(path)];
}

interface ProgramLook {
  readonly value: string;
  readonly isOurs: boolean;
  /** undefined: another program, which is not checked. */
  readonly finding?: Finding;
}

async function lookAt(
  context: CheckContext,
  key: 'Prolog' | 'Epilog',
  value: string,
  path: string,
): Promise<ProgramLook> {
  const program = key.toLowerCase();
  const bad = (isOurs: boolean, text: string, remedy: string): ProgramLook => ({
    value,
    isOurs,
    finding: report.bad(`${key}: ${text}`, remedy),
  });
  if (!(await answers(path)))
    return bad(false, `${path} does not answer, and every job waits for it`, 'check its file server');
  const stats = unlessErrno([...isGone, 'EACCES', 'ELOOP'], () => statSync(path));
  if (stats === undefined)
    return bad(
      false,
      `${path} does not exist: each job drains the node`,
      `install it, or correct ${key} in slurm.conf`,
    );
  if (!stats.isFile())
    return bad(false, `${path} is not a file: Slurm needs a program or a pattern`, `${key}=${path}/*`);
  const identity = identify(context.executable, path, program);
  if (identity.kind === 'foreign') return { value, isOurs: false };
  if (identity.kind === 'other-build') {
    return bad(
      true,
      `${path} is another build than this command`,
      `install one build everywhere; this one is in ${installDirectory(context)}`,
    );
  }
  if ((stats.mode & 0o111) === 0)
    return bad(true, `${path} cannot be executed: each job drains the node`, `chmod 0755 ${path}`);
  const fault = whoElseCanChange(path);
  if (fault !== undefined)
    return bad(
      true,
      `${path} runs as root, and somebody else can change it: ${fault.path} is ${fault.found}`,
      fault.cure,
    );
  const by = identity.by === undefined ? '' : `, which runs ${identity.by}`;
  const copy = identity.isCopy ? ', a copy of this build: copy it again with each upgrade' : '';
  return { value, isOurs: true, finding: report.ok(`${key}: ${path}${by}${copy}`) };
}

/** With Alloc or without is a choice: jobs are right either way. */
function flagFindings(conf: SlurmConf, version: Version | undefined): Finding[] {
  const flags = conf.last('PrologFlags');
  if (!runsAtAllocation(flags)) {
    const found = flags === undefined ? 'is not set' : `is ${flags}, without Alloc`;
    return [
      report.warn(
        `PrologFlags ${found}: the Prolog runs when the job's first step starts, and an unpack uses the job's time`,
        'add Alloc to PrologFlags in slurm.conf; omit it only where nearly all jobs are short and start from entries',
      ),
    ];
  }
  if (runsSerially(flags)) {
    return [
      report.warn(
        `PrologFlags=${flags ?? ''}: with Serial a job waits for the unpack of another`,
        'remove Serial, unless something else needs it',
      ),
    ];
  }
  const implied = /\balloc\b/i.test(flags ?? '') ? '' : ' implies Alloc';
  const polls =
    version === undefined
      ? ''
      : asksSeldom(version)
        ? `; srun of Slurm ${version.join('.')} asks whether the node is ready after 0.1, 1.1 and 2.6 s, so a Prolog of more than 0.1 s costs a second`
        : `; srun of Slurm ${version.join('.')} asks whether the node is ready every 0.1 s`;
  return [
    report.ok(
      `PrologFlags=${flags ?? ''}${implied}: images are unpacked while the job is CONFIGURING${polls}`,
    ),
  ];
}

function timeoutFindings({ settings }: CheckContext, conf: SlurmConf): Finding[] {
  const limitSeconds = longestPrologSeconds(settings);
  const limit =
    settings.createTimeoutSeconds > 0
      ? `${limitSeconds} s (create_timeout=${settings.createTimeoutSeconds})`
      : `${limitSeconds} s with the largest images (create_timeout=0)`;
  const start = batchStartTimeoutSeconds(conf);
  const prolog = prologTimeoutSeconds(conf);
  return [
    start > limitSeconds
      ? report.ok(`BatchStartTimeout=${start}`)
      : report.warn(
          `BatchStartTimeout is ${start} s; the first job with an image may take ${limit} to start`,
          `in slurm.conf: BatchStartTimeout=${limitSeconds + 60}; or set a shorter create_timeout`,
        ),
    messageFinding(conf, limitSeconds),
    prolog === undefined
      ? report.ok('slurmd has no time limit for the Prolog')
      : prolog > limitSeconds
        ? report.ok(`slurmd's time limit for the Prolog is ${prolog} s`)
        : report.bad(
            `slurmd kills a Prolog after ${prolog} s and drains the node; the Prolog of container-cache may take ${limit}`,
            `in slurm.conf: set PrologEpilogTimeout (PrologTimeout since 25.05) to ${limitSeconds + 60} or more, or remove it; ` +
              'or set a shorter create_timeout',
          ),
  ];
}

/** slurmd tells srun when its Prolog takes about as long as MessageTimeout. This has no other effect. */
function messageFinding(conf: SlurmConf, limitSeconds: number): Finding {
  const seconds = messageTimeoutSeconds(conf);
  if (seconds > limitSeconds) return report.ok(`MessageTimeout=${seconds}`);
  return report.ok(
    `MessageTimeout is ${seconds} s: while a Prolog unpacks for longer, srun prints "Prolog hung on node", which is harmless; ` +
      'with create_mode=background no Prolog takes that long',
  );
}

/** A TaskProlog with a fault fails every task: the remedy is to remove it. */
async function taskPrologFinding(
  context: CheckContext,
  conf: SlurmConf,
  version: Version | undefined,
): Promise<Finding> {
  const path = conf.last('TaskProlog');
  if (path === undefined) return report.ok('TaskProlog is not set; it is optional');
  const without = 'remove TaskProlog from slurm.conf: it is optional';
  const text = await readText(path);
  if (text === undefined) return report.bad(`TaskProlog: ${path} cannot be read: every task fails`, without);
  if (!text.includes('container-cache'))
    return report.ok(`TaskProlog: ${path} does not belong to container-cache`);
  if (version !== undefined && taskPrologNeedsLibraries(version)) {
    return report.bad(
      `TaskProlog: it runs inside the container, where slurmstepd ${version.join('.')} does not find its libraries ` +
        '(pyxis issue 163)',
      without,
    );
  }
  if (!(await isMountedInContainers(context, path))) {
    return report.bad(
      `TaskProlog: it runs inside the container, but ${path} is not mounted there: every task of a container fails`,
      `${without}; or add the line of slurm.conf.snippet to ${context.settings.enrootSysconfPath}/mounts.d`,
    );
  }
  const jobsInContainers = `${defaultRuntimePath}/jobs`;
  if (!(await isMountedInContainers(context, jobsInContainers))) {
    return report.warn(
      `TaskProlog: ${path} prints nothing inside containers: ${jobsInContainers} is not mounted there`,
      `add the second line of slurm.conf.snippet to ${context.settings.enrootSysconfPath}/mounts.d; or ${without}`,
    );
  }
  const ours = await readText(`${installDirectory(context)}/${basename(path)}`);
  if (ours !== undefined && ours !== text)
    return report.bad(`TaskProlog: ${path} belongs to another build than this command`, without);
  if (version === undefined) {
    return report.warn(
      `TaskProlog: ${path}; the version of Slurm is not known, and 24.11 to 25.05 cannot run it in containers`,
      without,
    );
  }
  return report.ok(`TaskProlog: ${path}, mounted into containers, on Slurm ${version.join('.')}`);
}

async function isMountedInContainers({ settings }: CheckContext, path: string): Promise<boolean> {
  const directory = `${settings.enrootSysconfPath}/mounts.d`;
  if (!(await answers(directory))) return false;
  for (const file of globSync(`${directory}/*.fstab`))
    if (mountsPath((await readText(file)) ?? '', path)) return true;
  return false;
}

const versionLimitMs = 10_000;

export async function findSlurmVersion({
  slurmd,
}: Pick<CheckContext, 'slurmd'>): Promise<Version | undefined> {
  const names = ['slurmd', 'scontrol'];
  for (const file of [...names.flatMap((name) => findSlurmProgram(name, slurmd) ?? []), ...names]) {
    try {
      const { stdout } = await run({ file, args: ['-V'], timeoutMs: versionLimitMs });
      const version = parseVersion(stdout.toString('utf8'));
      if (version !== undefined) return version;
    } catch (error) {
      if (!(error instanceof CommandFailed)) throw error;
    }
  }
  return undefined;
}
