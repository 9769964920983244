/** Is the configuration file right, and nobody's but root's? */
import { readFileSync } from 'node:fs';
import type { Environment } from '../../lib/core/job.ts';
import { defaultConfigPath, type ParsedSettings } from '../../lib/core/settings.ts';
import { unlessErrno } from '../../lib/system/errno.ts';
import { readSettings } from '../../lib/system/settings-file.ts';
import { accessFault, answers } from './context.ts';
import { reporter, type Finding } from './findings.ts';

const report = reporter('config');

/** Reads the file as the Prolog does; each problem is a finding of its own. */
export async function checkConfig(
  environment: Environment,
): Promise<{ parsed: ParsedSettings | undefined; findings: Finding[] }> {
  const path = environment['CONTAINER_CACHE_CONF'] ?? defaultConfigPath;
  if (!(await answers(path))) {
    const hung = report.bad(
      `${path} does not answer`,
      'check its file server, or move the file to a disk of the node',
    );
    return { parsed: undefined, findings: [hung] };
  }
  const parsed = readSettings(environment);
  const isThere = unlessErrno(['ENOENT', 'ENOTDIR', 'EACCES'], () => readFileSync(path)) !== undefined;
  const remedy = isThere
    ? 'correct it; the next job reads the file again'
    : 'create it with the line container_cache_data_path=DIRECTORY, a directory on a disk of the node';
  const findings: Finding[] = parsed.problems.map((problem) => report.bad(problem, remedy));
  const fault = isThere ? accessFault(report, path) : undefined;
  if (fault !== undefined) findings.push(fault);
  if (path !== defaultConfigPath) {
    findings.push(
      report.warn(
        `CONTAINER_CACHE_CONF names ${path}; slurmd's Prolog has no such variable and reads ${defaultConfigPath}`,
        'unset CONTAINER_CACHE_CONF to check what jobs use',
      ),
    );
  }
  if (findings.every(({ status }) => status !== 'bad')) findings.unshift(report.ok(`${path}: no problem`));
  return { parsed, findings };
}
