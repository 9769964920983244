/**
 * What the machine must have so that a cluster can be started on it.
 */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';

import { ClusterError } from './cluster-error.ts';

/** Debian and Ubuntu packages without which no cluster can start. Installing them must start no daemon. */
const CLUSTER_PACKAGES: readonly string[] = [
  'slurmctld',
  'slurmd',
  'slurm-client',
  'libslurm-dev',
  'munge',
  'rsyslog',
  'gcc',
  'libc6-dev',
];

export const SYSTEM_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

const PROGRAMS: readonly string[] = [
  ...['munged', 'rsyslogd', 'slurmctld', 'slurmd', 'srun', 'sbatch', 'salloc', 'scancel', 'scontrol'],
  ...['gcc', 'unshare', 'nsenter', 'setpriv', 'bash'],
];
const SPANK_HEADER = '/usr/include/slurm/spank.h';

/** Why no cluster can be started here, with the remedy; undefined if one can. */
export function slurmAvailable(): string | undefined {
  if (process.getuid?.() !== 0) return 'a test cluster needs root: run the tests as root';

  const missing = PROGRAMS.filter((program) => !isInstalled(program));
  if (!fs.existsSync(SPANK_HEADER)) missing.push(SPANK_HEADER);
  if (missing.length > 0) {
    return `${missing.join(', ')} not found: apt-get install ${CLUSTER_PACKAGES.join(' ')}`;
  }

  const namespaces = ['--mount', '--pid', '--uts', '--ipc', '--fork', 'true'];
  const unshare = spawnSync('unshare', namespaces, { encoding: 'utf8' });
  if (unshare.status !== 0) {
    return `root may not make namespaces here (${unshare.stderr.trim()}): grant CAP_SYS_ADMIN`;
  }
  return undefined;
}

/** `[22, 5]` for Slurm 22.05.8. */
export function slurmVersion(): readonly [number, number] {
  const output = spawnSync('slurmd', ['-V'], { encoding: 'utf8' }).stdout;
  const match = /(\d+)\.(\d+)\.\d+/.exec(output);
  if (match === null) throw new ClusterError(`Cannot read slurmd's version: found "${output}", wanted X.Y.Z`);
  return [Number(match[1]), Number(match[2])];
}

function isInstalled(program: string): boolean {
  return SYSTEM_PATH.split(':').some((directory) => fs.existsSync(path.join(directory, program)));
}
