/**
 * The job as slurmd describes it to Prolog and Epilog, by environment variables (slurm.conf(5), "PROLOG AND
 * EPILOG SCRIPTS"). SLURM_JOB_ID, _UID and _GID come from slurmd; SPANK_* values come from the user and are
 * hostile.
 */
import { JobFault } from './faults.ts';

export type Environment = Readonly<Record<string, string | undefined>>;

export interface Job {
  readonly jobId: number;
  readonly uid: number;
  readonly gid: number;
  /** Empty if slurmd gave none. */
  readonly userName: string;
  /** Where a relative image path starts; undefined if slurmd gave none or none that is absolute. */
  readonly workPath: string | undefined;
  readonly container: ContainerOptions | undefined;
}

/** What pyxis' options at allocation ask for. */
export interface ContainerOptions {
  readonly image: string;
  readonly hasName: boolean;
}

/**
 * Slurm gives the options of a SPANK plugin to the Prolog under these names, `_` for what is not
 * alphanumeric.
 */
const optionPrefix = 'SPANK__SLURM_SPANK_OPTION_pyxis_';

/** uid_t and job IDs are 32 bits wide, the highest value means "none" in both. */
const highestId = 0xffff_fffe;

/** @throws JobFault BAD_JOB if slurmd's own variables are missing or malformed */
export function readJob(environment: Environment): Job {
  const workPath = environment['SLURM_JOB_WORK_DIR'];
  return {
    jobId: readJobId(environment),
    uid: requiredId(environment, 'SLURM_JOB_UID', 0),
    gid: requiredId(environment, 'SLURM_JOB_GID', 0),
    userName: environment['SLURM_JOB_USER'] ?? '',
    workPath: workPath?.startsWith('/') === true ? workPath : undefined,
    container: readContainerOptions(environment),
  };
}

/** @throws JobFault BAD_JOB */
export const readJobId = (environment: Environment): number => requiredId(environment, 'SLURM_JOB_ID', 1);

function readContainerOptions(environment: Environment): ContainerOptions | undefined {
  const image = option(environment, 'container_image');
  if (image === undefined) return undefined;
  return {
    image,
    hasName: option(environment, 'container_name') !== undefined,
  };
}

function option(environment: Environment, name: string): string | undefined {
  const value = environment[optionPrefix + name];
  // An option that was not given is absent; one without a value is empty or the text "(null)".
  return value === undefined || value === '' || value === '(null)' ? undefined : value;
}

function requiredId(environment: Environment, name: string, lowest: number): number {
  const value = environment[name];
  const id = value !== undefined && /^\d{1,10}$/.test(value) ? Number(value) : Number.NaN;
  if (!(id >= lowest && id <= highestId)) {
    throw new JobFault(
      'BAD_JOB',
      `Cannot read the job: ${name} is ${value === undefined ? 'not set' : JSON.stringify(value.slice(0, 40))}, ` +
        `want a number from ${lowest} to ${highestId}; slurmd sets it for Prolog and Epilog`,
    );
  }
  return id;
}
