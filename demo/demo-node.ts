/**
 * The node that the demo runs its jobs on, whoever runs Prolog and Epilog there: a real Slurm
 * (slurm-node.ts), or, where there is none, we, as slurmd would (bare-node.ts).
 */
import { dirname, join } from 'node:path';

export interface DemoUser {
  readonly name: string;
  readonly uid: number;
}

export interface DemoNode {
  /** What it is, for the reader. */
  readonly description: string;
  /** The configuration that matters, name and value. */
  readonly configuration: readonly (readonly [string, string])[];
  /** Of the first and the second user's jobs; the same where there is only one. */
  readonly users: readonly [DemoUser, DemoUser];
  /** Paths inside. */
  readonly basePath: string;
  readonly runtimePath: string;
  /** What the time of a job's start is made of. */
  readonly startDescription: string;
  /** Why no syslog can be shown; undefined if there is one. */
  readonly noSyslogReason: string | undefined;
  /** The path by which a file inside is reached from here. */
  readonly hostPath: (insidePath: string) => string;
  /** Starts a job with `--container-image` and returns when its task runs. */
  readonly startJob: (user: DemoUser, imagePath: string) => Promise<DemoJob>;
  /** Runs the `container-cache` command as root. @returns what it prints */
  readonly admin: (args: readonly string[]) => Promise<string>;
  /** Our lines of the syslog, oldest first. */
  readonly log: () => Promise<string[]>;
}

export interface DemoJob {
  readonly jobId: number;
  /** What was run, prompt and command. */
  readonly command: readonly [prompt: string, text: string];
  /** From the submission until the task ran. */
  readonly startMs: number;
  /** What the task's environment has of enroot's variables, `NAME=value`. */
  readonly taskEnvironment: readonly string[];
  /** Lets the job end, and returns when its Epilog has. */
  readonly finish: () => Promise<void>;
}

/** What the demo wants of a node. */
export interface DemoNodeRequest {
  /** Size of the disk that entries are kept on. */
  readonly diskBytes: number;
  /** Settings beside paths. */
  readonly settings: Readonly<Record<string, number>>;
}

/** The configuration file's text. */
export function configurationText(
  paths: { basePath: string; runtimePath: string },
  settings: DemoNodeRequest['settings'],
): string {
  const all = {
    container_cache_data_path: paths.basePath,
    runtime_dir: paths.runtimePath,
    state_dir: join(dirname(paths.basePath), 'state'),
    ...settings,
  };
  return Object.entries(all)
    .map(([key, value]) => `${key}=${value}\n`)
    .join('');
}

/** Of all lines in syslog, ours. */
export const isOurLine = (line: string): boolean => / container-cache\[\d+\]: /.test(line);
