/** Is pyxis loaded, and with which of its arguments? */
import { globSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { reporter, type Finding } from '../../lib/core/findings.ts';
import { parsePlugstack } from '../../lib/core/plugstack.ts';
import { isRegularFile } from '../../lib/system/programs.ts';
import { answers, readText, type Check, type SlurmSource } from './context.ts';

const report = reporter('pyxis');

const pluginName = 'spank_pyxis.so';
/** An include of itself would have no end. */
const deepestInclude = 10;

interface Plugin {
  readonly path: string;
  readonly parameters: readonly string[];
}

export const checkPyxis: Check = async ({ slurm }) => {
  if (slurm === undefined) return [];
  const file = plugstackPath(slurm);
  if (!(await answers(file))) return [report.bad(`${file} does not answer`, 'look after its file server')];
  const remedy = `in ${file}: required /usr/lib/slurm/${pluginName}, or where pyxis was installed`;
  if ((await readText(file)) === undefined)
    return [report.bad(`${file} is not there: --container-image is unknown to Slurm`, remedy)];
  const plugin = (await readPlugins(file, 0)).find(({ path }) => basename(path) === pluginName);
  if (plugin === undefined)
    return [report.bad(`${file} does not load ${pluginName}: --container-image is unknown to Slurm`, remedy)];
  return pluginFindings(plugin, slurm);
};

function plugstackPath({ conf, path }: SlurmSource): string {
  return conf.last('PlugStackConfig') ?? `${dirname(path ?? '/etc/slurm/slurm.conf')}/plugstack.conf`;
}

async function readPlugins(file: string, depth: number): Promise<Plugin[]> {
  if (depth > deepestInclude) return [];
  const plugins: Plugin[] = [];
  for (const line of parsePlugstack((await readText(file)) ?? '')) {
    if (line.kind === 'plugin') {
      plugins.push(line);
      continue;
    }
    const pattern = line.pattern.startsWith('/') ? line.pattern : `${dirname(file)}/${line.pattern}`;
    if (await answers(dirname(pattern)))
      for (const included of globSync(pattern).sort())
        plugins.push(...(await readPlugins(included, depth + 1)));
  }
  return plugins;
}

async function pluginFindings({ path, parameters }: Plugin, { conf }: SlurmSource): Promise<Finding[]> {
  if (path.startsWith('/') && (await answers(path)) && !isRegularFile(path))
    return [report.bad(`${path} is not there`, 'install pyxis, or correct its line in plugstack.conf')];
  const shown = parameters.length === 0 ? '' : ` with ${parameters.join(' ')}`;
  const findings = [report.ok(`${path}${shown}`)];
  const importer = parameters.find((parameter) => parameter.startsWith('importer='));
  if (importer !== undefined)
    findings.push(
      report.warn(
        `${importer}: images of a registry come from that program, and their containers are not served from the cache`,
        'take it out if the cache is to serve them',
      ),
    );
  if (!path.startsWith('/') && conf.last('PluginDir') === undefined)
    findings[0] = report.ok(`${path}${shown}, in the PluginDir that Slurm was built with`);
  return findings;
}
