/** Is pyxis loaded, and with which of its arguments? */
import { basename } from 'node:path';
import { reporter, type Finding } from './findings.ts';
import type { Plugin } from '../../lib/core/plugstack.ts';
import { plugstackPath, readPlugstack } from '../../lib/store/pyxis.ts';
import { isExecutable } from '../../lib/system/files.ts';
import { isRegularFile } from '../../lib/system/programs.ts';
import { answers, readText, type Check, type SlurmSource } from './context.ts';

const report = reporter('pyxis');

const pluginName = 'spank_pyxis.so';
export const checkPyxis: Check = async ({ slurm }) => {
  if (slurm === undefined) return [];
  const file = plugstackPath(slurm.conf.last('PlugStackConfig'), slurm.path);
  if (!(await answers(file))) return [report.bad(`${file} does not answer`, 'look after its file server')];
  const remedy = `in ${file}: required /usr/lib/slurm/${pluginName}, or where pyxis was installed`;
  if ((await readText(file)) === undefined)
    return [report.bad(`${file} is not there: --container-image is unknown to Slurm`, remedy)];
  const plugin = (await readPlugstack(file, readText)).plugins.find(
    ({ path }) => basename(path) === pluginName,
  );
  if (plugin === undefined)
    return [report.bad(`${file} does not load ${pluginName}: --container-image is unknown to Slurm`, remedy)];
  return pluginFindings(plugin, slurm);
};

async function pluginFindings({ path, parameters }: Plugin, { conf }: SlurmSource): Promise<Finding[]> {
  if (path.startsWith('/') && (await answers(path)) && !isRegularFile(path))
    return [report.bad(`${path} is not there`, 'install pyxis, or correct its line in plugstack.conf')];
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
    return report.bad(`${named} does not answer, and jobs wait for it`, 'look after its file server');
  if (!isRegularFile(path) || !isExecutable(path))
    return report.bad(
      `${named} is no program: each job with an image of a registry fails`,
      'install it on this node, or correct the line of pyxis in plugstack.conf',
    );
  return report.ok(
    `${named}: images of registries come from that program; an entry is made of each file that it keeps after release`,
  );
}
