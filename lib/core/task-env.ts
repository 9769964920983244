/**
 * What the tasks of a job with a cached image receive by way of the TaskProlog (slurm.conf(5): a line
 * `export NAME=value` of its output sets a variable of the task).
 */
import { userPath } from './layout.ts';

/** @returns the text of the job's env file; basePath has no blank or quote (settings.ts sees to it) */
export function taskEnvironment(basePath: string, uid: number): string {
  return `export ENROOT_DATA_PATH=${userPath(basePath, uid)}\nexport ENROOT_ROOTFS_WRITABLE=n\n`;
}
