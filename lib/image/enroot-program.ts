/**
 * The enroot program, for what only it can do: ask registries and import their images, with the user's own
 * credentials.
 */
import { dirname } from 'node:path';
import { JobFault, NodeFault } from '../core/faults.ts';
import { parseDigest, type RegistryImage } from '../core/image.ts';
import { homelessPath } from '../core/layout.ts';
import type { Environment } from '../core/job.ts';
import { explainRegistryFailure, RegistryFault, type EnrootEnd } from '../core/registry-failure.ts';
import { isAtLeast, parseVersion, type Version } from '../core/version.ts';
import type { UserIds } from '../system/as-user.ts';
import { readUsage } from '../system/disk-usage.ts';
import { isExecutable } from '../system/files.ts';
import { CommandFailed, endingWithUs, run, type CommandResult } from '../system/run-command.ts';
import { isNotExecuted } from '../system/tool.ts';
import { runForUser } from '../system/user-groups.ts';
import { ShortageWatch, unwrittenLine, shortageFault } from '../system/shortage.ts';
import { couldNotKeepLayers } from './enroot-layers.ts';

export interface Enroot {
  /** Where it reads its user's configuration and credentials, unless the environment says otherwise. */
  readonly home: string;
  /** @returns undefined if this version has no `digest` (before 4.0) @throws RegistryFault */
  readonly digest: (image: RegistryImage, limits: QuestionLimits) => Promise<string | undefined>;
  /**
   * Writes the image as a squashfs file, or with other functions what these make of it (enroot-layers.ts).
   *
   * @param uri of `image`, with the digest that is wanted if it is known
   * @param functions of bash in the place of programs of enroot, as env(1) takes them
   * @throws RegistryFault, JobFault CREATE_TIMEOUT, NO_SPACE, QUOTA_EXCEEDED, UNPACK_FAILED if it was for the
   *   functions
   */
  readonly importImage: (
    image: RegistryImage,
    uri: string,
    outputPath: string,
    temporaryPath: string,
    timeoutMs: number,
    functions: readonly string[],
  ) => Promise<void>;
}

const usualPaths = ['/usr/local/bin/enroot', '/usr/bin/enroot'] as const;
const firstWithDigest: Version = [4];
const versionTimeoutMs = 10_000;
const lookupTimeoutMs = 5_000;
/** After the first signal, what enroot started may clean up this long. */
const graceSeconds = 5;
const questionGraceSeconds = 1;
/** Of timeout(1), for a command that did not end in time, and for one that it had to kill. */
const timeoutExitCodes: readonly (number | undefined)[] = [124, 137];

/** How long a question may take, in seconds. */
export interface QuestionLimits {
  readonly connect: number;
  /** For each of its three or four requests. */
  readonly request: number;
  /** For all of it; longer than one request, so that curl says what it waited for. */
  readonly whole: number;
}

/**
 * Whatever is configured for imports. Nothing is repeated: a registry that says "too many requests" is not
 * waited for.
 */
const questionVariables = ({ connect, request }: QuestionLimits): Readonly<Record<string, string>> => ({
  ENROOT_CONNECT_TIMEOUT: String(connect),
  ENROOT_TRANSFER_TIMEOUT: String(request),
  ENROOT_TRANSFER_RETRIES: '0',
});

/** @throws NodeFault TOOL_MISSING */
export function findEnroot(enrootPath: string | undefined): string {
  const candidates = enrootPath === undefined ? usualPaths : [enrootPath];
  for (const path of candidates) {
    if (isExecutable(path)) return path;
  }
  throw new NodeFault('TOOL_MISSING', `Cannot find enroot at ${candidates.join(' or ')}; set enroot_path`);
}

/**
 * @param userPath the user's data directory; enroot makes sure at each start that it and a runtime directory
 *   are there
 * @param jobEnvironment of a job whose user we already are: proxies and settings of enroot come from there
 */
export async function openEnroot(
  enrootPath: string | undefined,
  user: UserIds,
  userPath: string,
  jobEnvironment?: Environment,
): Promise<Enroot> {
  const file = findEnroot(enrootPath);
  const knownHome = jobEnvironment?.['HOME'] ?? (await lookUpHome(user));
  const environment = {
    ...withoutSearchPath(jobEnvironment),
    HOME: knownHome ?? homelessPath(userPath),
    // Whatever the job's: what is printed is looked at (shortage.ts).
    LC_ALL: 'C',
    ENROOT_DATA_PATH: userPath,
    ENROOT_RUNTIME_PATH: userPath,
  };

  // timeout(1) makes a process group of enroot and all it starts, and signals the group when the time is up,
  // or when we die: enroot is a shell script with children of its own, which the death signal alone would
  // miss.
  const runBounded = (
    args: readonly string[],
    timeoutMs: number,
    { variables = {}, grace = graceSeconds, functions = [], onStderr }: BoundedOptions = {},
  ): Promise<CommandResult> => {
    const seconds = Math.ceil(timeoutMs / 1000);
    const defining = functions.length === 0 ? [] : ['env', ...functions];
    const command = {
      file: 'timeout',
      args: [`--kill-after=${grace}s`, `${seconds}s`, ...defining, file, ...args],
      environment: { ...environment, ...variables },
      timeoutMs: timeoutMs + 2 * grace * 1000,
      ...(onStderr && { onStderr }),
    };
    return runForUser(user, command, { canGain: true, deathSignal: 'TERM' });
  };

  return {
    home: environment.HOME,
    digest: async (image, limits) => {
      const limitMs = limits.whole * 1000;
      const question = ['digest', image.uri];
      try {
        const { stdout } = await runBounded(question, limitMs, {
          variables: questionVariables(limits),
          grace: questionGraceSeconds,
        });
        const digest = parseDigest(stdout.toString('latin1'));
        if (digest !== undefined) return digest;
        throw new RegistryFault({ kind: 'other', cause: 'enroot printed no digest' });
      } catch (error) {
        if (!(error instanceof CommandFailed)) throw error;
        // An enroot that does not know the command prints its usage, to stdout.
        if (error.stderrTail === '' && !(await hasDigest())) return undefined;
        throw registryFault(image, error, limitMs);
      }
    },
    importImage: async (image, uri, outputPath, temporaryPath, timeoutMs, functions) => {
      const watch = new ShortageWatch();
      try {
        await runBounded(['import', '--output', outputPath, uri], timeoutMs, {
          variables: {
            ENROOT_TEMP_PATH: temporaryPath,
            // Layers that nobody would ever delete.
            ...(knownHome === undefined ? { HOME: temporaryPath } : {}),
          },
          functions,
          onStderr: watch.add,
        });
      } catch (cause) {
        if (!(cause instanceof CommandFailed)) throw cause;
        const shortage = watch.found;
        if (shortage !== undefined)
          throw shortageFault(shortage.code, `Cannot import "${uri}"`, shortage.line);
        if (isLate(cause)) throw new JobFault('CREATE_TIMEOUT', `Cannot import "${uri}"`, { cause });
        const unwritten = unwrittenLine(cause.stderrTail, readUsage(dirname(temporaryPath)).availableBytes);
        if (unwritten !== undefined) throw shortageFault('NO_SPACE', `Cannot import "${uri}"`, unwritten);
        if (couldNotKeepLayers(cause))
          throw new JobFault('UNPACK_FAILED', `Cannot import "${uri}"`, { cause });
        throw registryFault(image, cause);
      }
    },
  };

  async function hasDigest(): Promise<boolean> {
    const { stdout } = await runBounded(['version'], versionTimeoutMs);
    const version = parseVersion(stdout.toString('latin1'));
    return version !== undefined && isAtLeast(version, firstWithDigest);
  }
}

interface BoundedOptions {
  readonly variables?: Readonly<Record<string, string>>;
  /** Seconds from the first signal to the last. */
  readonly grace?: number;
  /** Of bash, as env(1) takes them. */
  readonly functions?: readonly string[];
  readonly onStderr?: (chunk: Buffer) => void;
}

const isLate = (end: CommandFailed): boolean => end.timedOut || timeoutExitCodes.includes(end.exitCode);

function registryFault(image: RegistryImage, end: CommandFailed, limitMs?: number): RegistryFault {
  const { exitCode, stderrTail } = end;
  const enrootEnd: EnrootEnd = {
    exitCode,
    stderrTail,
    lateAfterMs: limitMs !== undefined && isLate(end) ? limitMs : undefined,
  };
  return new RegistryFault(explainRegistryFailure(image.registry, enrootEnd));
}

/** What is executed comes from our own PATH. */
function withoutSearchPath(environment: Environment = {}): Record<string, string> {
  return Object.fromEntries(
    Object.entries(environment).flatMap(([name, value]) =>
      value === undefined || name === 'PATH' ? [] : [[name, value]],
    ),
  );
}

/** What getent(1) exits with for a key that is not in the database. */
const notFoundExitCode = 2;

/**
 * The home directory has the credentials (`~/.config/enroot/.credentials`) and, by default, the layer cache.
 *
 * @returns undefined: passwd does not know the user
 */
export async function lookUpHome(user: UserIds): Promise<string | undefined> {
  try {
    const { stdout } = await run(
      endingWithUs({ file: 'getent', args: ['passwd', String(user.uid)], timeoutMs: lookupTimeoutMs }),
    );
    return stdout.toString('utf8').split(':')[5] ?? '/';
  } catch (cause) {
    if (cause instanceof CommandFailed && cause.exitCode === notFoundExitCode) return undefined;
    const message = `Cannot look up the home directory of uid ${user.uid}`;
    // A directory service that is slow is nothing that would have to drain a node.
    if (cause instanceof CommandFailed && isNotExecuted(cause))
      throw new NodeFault('TOOL_MISSING', message, { cause });
    throw new JobFault('USER_UNKNOWN', message, { cause });
  }
}
