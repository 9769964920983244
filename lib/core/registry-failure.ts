/**
 * What enroot says when a registry gives it no image, read as one cause in plain words.
 *
 * enroot prints its progress as `[INFO]`, the HTTP status of an answer as
 * `[ERROR] URL … returned error code: 401 Unauthorized`, and where there was no answer curl prints
 * `curl: (7) …` (enroot's src/common.sh, common::curl).
 */
import { JobFault } from './faults.ts';

/**
 * `silent`: nobody answered, or the answer was "not now". `late`: the question took too long, be it for the
 * registry or for a busy node. `refused`: an answer, or none that was believed; other credentials,
 * certificates or another proxy could change it. `other`: neither; enroot itself failed.
 */
type RegistryFailureKind = 'silent' | 'late' | 'refused' | 'other';

export interface RegistryFailure {
  readonly kind: RegistryFailureKind;
  readonly cause: string;
}

/** How an enroot that asked a registry ended. */
export interface EnrootEnd {
  readonly exitCode: number | undefined;
  /** The end of what it wrote to stderr. */
  readonly stderrTail: string;
  /** The limit that ended it, if one did. */
  readonly lateAfterMs?: number | undefined;
}

/** A registry that gave no image. Nobody but the user is concerned: what enroot printed, ran as the user. */
export class RegistryFault extends JobFault {
  readonly failure: RegistryFailure;
  /** Known from an earlier job; nobody was asked. */
  readonly isRemembered: boolean;
  /** Under which the image seen last is kept; its entry is there. */
  readonly lastHash: string | undefined;

  constructor(
    failure: RegistryFailure,
    details: { readonly isRemembered?: boolean; readonly lastHash?: string | undefined } = {},
  ) {
    super(codes[failure.kind], failure.cause);
    this.failure = failure;
    this.isRemembered = details.isRemembered ?? false;
    this.lastHash = details.lastHash;
  }
}

const codes = {
  silent: 'REGISTRY_SILENT',
  late: 'REGISTRY_SILENT',
  refused: 'REGISTRY_REFUSED',
  other: 'IMPORT_FAILED',
} as const;

/** The server has too much to do, or is ill: the same request may succeed later. */
const isTransient = (status: number): boolean => [408, 425, 429].includes(status) || status >= 500;

const statusTexts: Readonly<Record<number, string>> = {
  400: 'Bad Request',
  401: 'Unauthorized',
  403: 'Forbidden',
  404: 'Not Found',
  407: 'Proxy Authentication Required',
  408: 'Request Timeout',
  410: 'Gone',
  425: 'Too Early',
  429: 'Too Many Requests',
  500: 'Internal Server Error',
  502: 'Bad Gateway',
  503: 'Service Unavailable',
  504: 'Gateway Timeout',
};

/**
 * Exit codes of curl(1) by which no server of the registry, nor of a proxy, has said anything about the
 * image.
 */
const unreached: ReadonlySet<number> = new Set([5, 6, 7, 18, 28, 35, 52, 55, 56, 92, 97]);
/** CURLE_WRITE_ERROR: curl does not say why. */
const unwritten = 23;
const proxyStatus = 407;
const longestText = 200;

/** @param registry as the reference names it */
export function explainRegistryFailure(registry: string, end: EnrootEnd): RegistryFailure {
  if (end.lateAfterMs !== undefined)
    return {
      kind: 'late',
      cause: `registry ${registry} did not answer within ${end.lateAfterMs / 1000} s`,
    };
  const lines = end.stderrTail
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '');
  // The last error is the one that ended it.
  const explained = lines
    .toReversed()
    .map((line) => explainLine(registry, line))
    .find((failure) => failure !== undefined);
  return explained ?? explainEnd(registry, lines, end);
}

function explainLine(registry: string, line: string): RegistryFailure | undefined {
  const answer = /^\[ERROR\] URL (\S+) returned error code: (\d{3})\b/.exec(line);
  if (answer !== null) return explainStatus(registry, Number(answer[2]), hostOf(answer[1] ?? ''));
  const curl = /^curl: \((\d{1,3})\) (.*)$/.exec(line);
  if (curl === null) return undefined;
  const text = shorten(curl[2] ?? '');
  const tunnel = /(?:tunnel failed, response|HTTP code) (\d{3})\b/.exec(text)?.[1];
  if (tunnel !== undefined) return explainStatus(registry, Number(tunnel), 'the proxy');
  const status = /requested URL returned error: (\d{3})\b/.exec(text)?.[1];
  if (status !== undefined) return explainStatus(registry, Number(status), registry);
  if (Number(curl[1]) === unwritten)
    return {
      kind: 'other',
      cause: `cannot write what registry ${registry} sends: is the disk, or the quota, full where enroot keeps layers (ENROOT_CACHE_PATH)?`,
    };
  return unreached.has(Number(curl[1]))
    ? { kind: 'silent', cause: `cannot reach registry ${registry}: ${text}` }
    : { kind: 'refused', cause: `cannot ask registry ${registry}: ${text}` };
}

function explainStatus(registry: string, status: number, from: string): RegistryFailure {
  const text = statusTexts[status];
  const origin = status === proxyStatus || from === registry ? '' : ` (from ${shorten(from)})`;
  const told = `${status}${text === undefined ? '' : ` ${text}`}${origin}`;
  if (status === proxyStatus)
    return { kind: 'refused', cause: `the proxy before registry ${registry} refused: ${told}` };
  return isTransient(status)
    ? { kind: 'silent', cause: `registry ${registry} is not available: ${told}` }
    : { kind: 'refused', cause: `registry ${registry} refused: ${told}` };
}

/**
 * Where a registry wants a password (Basic), enroot drops the answer that refuses it: nothing follows on this
 * line.
 */
const authenticating = /^\[INFO\] (?:Authenticating with user: (\S+)|Using credentials from file:)/;

function explainEnd(registry: string, lines: readonly string[], { exitCode }: EnrootEnd): RegistryFailure {
  const last = lines.at(-1) ?? '';
  if (authenticating.test(last)) {
    const user = lines.map((line) => authenticating.exec(line)?.[1]).findLast((found) => found !== undefined);
    return {
      kind: 'refused',
      cause: `registry ${registry} refused user ${shorten(user ?? 'unknown')} (enroot does not tell the answer)`,
    };
  }
  const complaint = lines.findLast((line) => !line.startsWith('[INFO]'));
  return {
    kind: 'other',
    cause:
      complaint === undefined
        ? `enroot ended with exit code ${exitCode ?? 'none'}`
        : `enroot: ${shorten(complaint)}`,
  };
}

const hostOf = (url: string): string => /^[a-z]+:\/\/([^/?#]+)/.exec(url)?.[1] ?? url;

const shorten = (text: string): string =>
  text.length > longestText ? `${text.slice(0, longestText)}…` : text;

/** One failure of the past. */
export interface RememberedFailure extends RegistryFailure {
  /** The registry of a silent one, the reference of another; hashed. */
  readonly key: string;
  /** Without a success between them. */
  readonly failures: number;
  readonly atMs: number;
  /** Until then nobody asks again. */
  readonly untilMs: number;
}

const firstPauseMs = 60_000;
const longestPauseMs = 600_000;
/** Registries and references of one user. */
const mostRemembered = 16;

/**
 * The memory with one more failure: each in a row doubles the pause, from one minute to ten.
 *
 * One that is noted while the pause lasts changes nothing: it is from a Prolog that asked at the same time.
 */
export function noteFailure(
  memory: readonly RememberedFailure[],
  key: string,
  { kind, cause }: RegistryFailure,
  nowMs: number,
): readonly RememberedFailure[] {
  const known = memory.find((one) => one.key === key);
  if (known !== undefined && isPaused(known, nowMs)) return memory;
  const failures = (known?.failures ?? 0) + 1;
  const pauseMs = Math.min(longestPauseMs, firstPauseMs * 2 ** Math.min(failures - 1, 10));
  const noted = { key, failures, atMs: nowMs, untilMs: nowMs + pauseMs, kind, cause: shorten(cause) };
  return [...memory.filter((one) => one.key !== key), noted].slice(-mostRemembered);
}

/** Of a clock that was set back the pause is over at once. */
export const isPaused = ({ atMs, untilMs }: RememberedFailure, nowMs: number): boolean =>
  atMs <= nowMs && nowMs < untilMs;

export function formatFailures(memory: readonly RememberedFailure[]): string {
  return memory
    .map(({ key, failures, atMs, untilMs, kind, cause }) =>
      [key, failures, atMs, untilMs, kind, cause.replaceAll(/[\t\n]/g, ' ')].join('\t'),
    )
    .map((line) => `${line}\n`)
    .join('');
}

const linePattern =
  /^([0-9a-f]{16})\t(\d{1,6})\t(\d{1,15})\t(\d{1,15})\t(silent|late|refused|other)\t([^\t]*)$/;

export function parseFailures(text: string): readonly RememberedFailure[] {
  return text.split('\n').flatMap((line) => {
    const [, key, failures, atMs, untilMs, kind, cause] = linePattern.exec(line) ?? [];
    return key === undefined || cause === undefined
      ? []
      : [
          {
            key,
            failures: Number(failures),
            atMs: Number(atMs),
            untilMs: Number(untilMs),
            kind: kind as RegistryFailureKind,
            cause,
          },
        ];
  });
}
