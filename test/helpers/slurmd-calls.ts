/** Prolog and Epilog, called as slurmd calls them (slurm.conf(5), "PROLOG AND EPILOG SCRIPTS"). */

export interface SampleJob {
  readonly jobId: number;
  readonly user: { readonly name: string; readonly uid: number; readonly gid: number };
  /** The value of pyxis' option --container-image. */
  readonly image: string;
}

/**
 * The whole environment: no PATH, no HOME.
 *
 * @param configPath for a configuration that is not in /etc/slurm; costs what SLURM_CONF costs
 */
export function slurmdEnvironment(
  context: 'prolog' | 'epilog',
  { jobId, user, image }: SampleJob,
  configPath: string,
): Record<string, string> {
  return {
    CONTAINER_CACHE_CONF: configPath,
    SLURMD_NODENAME: 'node0',
    SLURM_CLUSTER_NAME: 'test',
    SLURM_CONF: '/etc/slurm/slurm.conf',
    SLURM_JOBID: String(jobId),
    SLURM_JOB_GID: String(user.gid),
    SLURM_JOB_ID: String(jobId),
    SLURM_JOB_PARTITION: 'main',
    SLURM_JOB_UID: String(user.uid),
    SLURM_JOB_USER: user.name,
    SLURM_JOB_WORK_DIR: '/',
    SLURM_SCRIPT_CONTEXT: `${context}_slurmd`,
    SLURM_UID: String(user.uid),
    SPANK__SLURM_SPANK_OPTION_pyxis_container_image: image,
  };
}
