/**
 * `container-cache check`: is this node set up right? One line for each finding, with what to do about it.
 *
 * It changes nothing and may run beside jobs. A user may run it, too: it then says what only root can check.
 * Each check is a module in admin/checks/. The exit code is 1 after an error, or if something could not be
 * checked.
 */
import process from 'node:process';
import { describeError } from '../lib/core/faults.ts';
import type { Environment } from '../lib/core/job.ts';
import { isRoot } from '../lib/system/as-user.ts';
import { findSlurmd } from '../lib/system/slurmd.ts';
import { checkBase } from './checks/check-base.ts';
import { checkCleaners } from './checks/check-cleaners.ts';
import { checkConfig } from './checks/check-config.ts';
import { checkEnrootFiles } from './checks/check-enroot-files.ts';
import { checkClock, checkLeftovers } from './checks/check-leftovers.ts';
import { checkMounted } from './checks/check-mounted.ts';
import { checkNamespace } from './checks/check-namespace.ts';
import { checkNodeFacts } from './checks/check-node-facts.ts';
import { checkPrograms } from './checks/check-programs.ts';
import { checkPyxis } from './checks/check-pyxis.ts';
import { checkSlurm } from './checks/check-slurm.ts';
import { checkWrapper } from './checks/check-wrapper.ts';
import { findOwnExecutable, type Check, type CheckContext } from './checks/context.ts';
import { formatFindings, isWell, reporter, type Finding } from './checks/findings.ts';
import { findSlurmConf } from './checks/slurm-source.ts';
import { paint } from './paint.ts';

interface CheckOptions {
  /** Parts of the node; none: all. */
  readonly areas: readonly string[];
  readonly json: boolean;
}

/** In the order in which an admin would correct what they find. */
const checks: Readonly<Record<string, Check>> = {
  programs: checkPrograms,
  base: checkBase,
  mounted: checkMounted,
  slurm: checkSlurm,
  wrapper: checkWrapper,
  'mounts.d': checkEnrootFiles,
  pyxis: checkPyxis,
  namespace: checkNamespace,
  cleaners: checkCleaners,
  clock: checkClock,
  leftovers: checkLeftovers,
  node: checkNodeFacts,
};

export const checkAreas: readonly string[] = Object.keys(checks);

/** @returns the exit code: 0 without an error and with nothing left unchecked */
export async function runCheck({ areas, json }: CheckOptions): Promise<number> {
  const findings = await checkNode(process.env, areas.length > 0 ? areas : checkAreas);
  const well = isWell(findings);
  process.stdout.write(
    json ? `${JSON.stringify({ well, findings })}\n` : formatFindings(findings, paintStatus),
  );
  return well ? 0 : 1;
}

function paintStatus(status: Finding['status'], text: string): string {
  const colour = ({ ok: 'green', warn: 'yellow', bad: 'red', skip: 'dim' } as const)[status];
  return paint(colour, text);
}

async function checkNode(environment: Environment, areas: readonly string[]): Promise<Finding[]> {
  const { parsed, findings } = await checkConfig(environment);
  const settings = parsed?.settings;
  if (settings === undefined) {
    const remedy = 'correct the configuration, then run this command again';
    return [
      ...findings,
      reporter('others').skip('nothing else was checked: the configuration says where to look', remedy),
    ];
  }
  const slurmd = findSlurmd();
  const slurm = await findSlurmConf(environment, slurmd);
  const context: CheckContext = {
    environment,
    isRoot: isRoot(),
    settings,
    executable: findOwnExecutable(),
    slurmd,
    slurm: slurm.source,
  };
  for (const [area, check] of Object.entries(checks).filter(([name]) => areas.includes(name))) {
    if (area === 'slurm') findings.push(...slurm.findings);
    findings.push(...(await attempt(area, check, context)));
  }
  return findings;
}

/** A check that fails must not hide the findings of the others. */
async function attempt(area: string, check: Check, context: CheckContext): Promise<Finding[]> {
  try {
    return await check(context);
  } catch (error) {
    return [
      reporter(area).skip(
        `this check failed: ${describeError(error)}`,
        'run it again; if it fails again, report it',
      ),
    ];
  }
}
