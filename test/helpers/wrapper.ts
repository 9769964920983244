/**
 * The enroot wrapper on a test node, before an enroot that stands in for the real one; and what pyxis calls
 * it with.
 */
import { copyFileSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { projectRoot } from '../../build/source-files.ts';
import type { TestNode } from './node.ts';
import type { TestUser } from './private-machine.ts';

export interface InstalledWrapper {
  readonly path: string;
  /** The stand-in. */
  readonly enrootPath: string;
  readonly mountsFile: string;
  /** For the Prolog of this node. */
  readonly settings: Readonly<Record<string, string>>;
}

/** @param enroot a script; the wrapper is alone in its directory, as an admin installs it */
export function installWrapper({ root }: TestNode, enroot: string): InstalledWrapper {
  for (const name of ['bin', 'real', 'etc', 'etc/mounts.d']) mkdirSync(join(root, name));
  const path = join(root, 'bin/enroot');
  const enrootPath = join(root, 'real/enroot');
  const mountsFile = join(root, 'etc/mounts.d/00-container-cache.fstab');
  copyFileSync(join(projectRoot, 'enroot/enroot'), path);
  writeFileSync(enrootPath, enroot, { mode: 0o755 });
  copyFileSync(join(projectRoot, 'enroot/00-container-cache.fstab'), mountsFile);
  const settings = {
    isolation: 'overlay',
    enroot_path: enrootPath,
    enroot_sysconf_path: join(root, 'etc'),
  };
  return { path, enrootPath, mountsFile, settings };
}

/** Of a job's step, with the PATH that slurmd has for the wrapper's sake. */
export function stepEnvironment(
  { root, configPath }: TestNode,
  user: TestUser,
  jobId: number,
  stepId = 0,
): Record<string, string> {
  return {
    PATH: `${join(root, 'bin')}:${join(root, 'real')}:/usr/sbin:/usr/bin:/sbin:/bin`,
    HOME: '/',
    CONTAINER_CACHE_CONF: configPath,
    SLURM_JOB_ID: String(jobId),
    SLURM_JOB_UID: String(user.uid),
    SLURM_STEP_ID: String(stepId),
  };
}
