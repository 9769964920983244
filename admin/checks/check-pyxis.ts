/** Is pyxis loaded, and with which of its arguments? */
import { basename } from 'node:path';
import type { Plugin } from '../../lib/core/plugstack.ts';
import { plugstackPath, readPlugstack } from '../../lib/store/pyxis.ts';
import { isExecutable } from '../../lib/system/files.ts';
import { isRegularFile } from '../../lib/system/programs.ts';
import { answers, readText, type Check, type SlurmSource } from './context.ts';
import { reporter, type Finding } from './findings.ts';

const report = reporter('pyxis');

const pluginName = 'spank_pyxis.so';
export const checkPyxis: Check = async ({ slurm }) => {
  if (slurm === undefined) return [];
  const file = plugstackPath(slurm.conf.last('PlugStackConfig'), slurm.path);
  if (!(await answers(file))) return [report.bad(`${file} does not answer`, 'check its file server')];
  const remedy = `add to ${file}: required /usr/lib/slurm/${pluginName} (or the path where pyxis is installed)`;
  if ((await readText(file)) === undefined)
    return [report.bad(`${file} does not exist: Slurm does not know --container-image`, remedy)];
  const plugin = (await readPlugstack(file, readText)).plugins.find(
    ({ path }) => basename(path) === pluginName,
  );
  if (plugin === undefined)
    return [report.bad(`${file} does not load ${pluginName}: Slurm does not know --container-image`, remedy)];
  return pluginFindings(plugin, slurm);
};

async function pluginFindings({ path, parameters }: Plugin, { conf }: SlurmSource): Promise<Finding[]> {
  if (path.startsWith('/') && (await answers(path)) && !isRegularFile(path))
    return [report.bad(`${path} does not exist`, 'install pyxis, or correct its line in plugstack.conf')];
  const shown = parameters.length === 0 ? '' : ` with ${parameters.join(' ')}`;
  const findings = [report.ok(`${path}${shown}`)];
  const importer = parameters.find((one) => one.startsWith('importer='))?.slice('importer='.length);
  if (importer !== undefined) findings.push(await importerFinding(importer));
  if (!path.startsWith('/') && conf.last('PluginDir') === undefined)
    findings[0] = report.ok(`${path}${shown}, in the PluginDir that Slurm was built with`);
  return findings;
}

async function importerFinding(path: string): Promise<Finding> {
  const named = `importer=${path}`;
  if (!(await answers(path)))
    return report.bad(`${named} does not answer, and jobs wait for it`, 'check its file server');
  if (!isRegularFile(path) || !isExecutable(path))
    return report.bad(
      `${named} is not a program: each job with a registry image fails`,
      'install it on this node, or correct the line of pyxis in plugstack.conf',
    );
  return report.ok(
    `${named}: this program fetches registry images; each file that it keeps after release gets an entry`,
  );
}
