/**
 * What the enroot wrapper must know of its node, `<runtime>/node`: found out by the Prolog once, read by a
 * shell at each container start. `key=value` lines; no value holds a newline.
 */
import { isAtLeast } from './version.ts';

/** What containers get on this node: `auto` is decided. */
export type EffectiveIsolation = 'overlay' | 'shared' | 'off';

export interface NodeFacts {
  /** What they were found out for; other settings or another enroot make them out of date. */
  readonly fingerprint: string;
  readonly basePath: string;
  /**
   * What the base was mounted below, `/raid`: while that is not mounted, its mount point must not be filled.
   */
  readonly baseMount: string | undefined;
  readonly enrootPath: string | undefined;
  readonly enrootVersion: string | undefined;
  readonly isolation: EffectiveIsolation;
  readonly reason: string | undefined;
  readonly imageFreshness: string;
  /** The container-cache executable; undefined where there is none (under the bare runtime). */
  readonly command: string | undefined;
  /** Without this file enroot would start an empty rootfs. */
  readonly mountsFile: string;
  /** Until when they hold, ms since the epoch; undefined: until the next boot. */
  readonly validUntilMs: number | undefined;
  /** The program that pyxis has for images of registries, `noImporter`, or undefined: nobody can say. */
  readonly importer: string | undefined;
  /** pyxis' `runtime_path`, and its version where its file tells. */
  readonly pyxisRuntimePath: string | undefined;
  readonly pyxisVersion: string | undefined;
  /**
   * The files and directories that tell the last three, with tabs between; and what they were like when they
   * were read.
   */
  readonly pyxisFiles: string | undefined;
  readonly pyxisStamp: string | undefined;
}

export const noImporter = 'none';

/** Whether images of registries are known to come from another program than enroot. */
export const hasImporter = (facts: NodeFacts | undefined): boolean =>
  facts?.importer !== undefined && facts.importer !== noImporter;

export const longestNodeFactsBytes = 16 * 1024;

const keys = {
  fingerprint: 'for',
  basePath: 'base_path',
  baseMount: 'base_mount',
  enrootPath: 'enroot_path',
  enrootVersion: 'enroot_version',
  isolation: 'isolation',
  reason: 'isolation_reason',
  imageFreshness: 'image_freshness',
  command: 'command',
  mountsFile: 'mounts_file',
  validUntilMs: 'valid_until_ms',
  importer: 'importer',
  pyxisRuntimePath: 'pyxis_runtime_path',
  pyxisVersion: 'pyxis_version',
  pyxisFiles: 'pyxis_files',
  pyxisStamp: 'pyxis_stamp',
} as const satisfies Record<keyof NodeFacts, string>;

export function formatNodeFacts(facts: NodeFacts): string {
  const lines = Object.entries(keys).map(([name, key]) => {
    const value = facts[name as keyof NodeFacts];
    return value === undefined ? '' : `${key}=${String(value).replaceAll(/[\r\n]+/g, ' ')}\n`;
  });
  return lines.join('');
}

/** @returns undefined unless all that must be there is */
export function parseNodeFacts(text: string): NodeFacts | undefined {
  const values = new Map(
    text.split('\n').flatMap((line) => {
      const separator = line.indexOf('=');
      return separator < 0 ? [] : [[line.slice(0, separator), line.slice(separator + 1)] as const];
    }),
  );
  const fingerprint = values.get(keys.fingerprint);
  const basePath = values.get(keys.basePath);
  const isolation = values.get(keys.isolation);
  const imageFreshness = values.get(keys.imageFreshness);
  const mountsFile = values.get(keys.mountsFile);
  if (fingerprint === undefined || basePath === undefined || imageFreshness === undefined) return undefined;
  if (mountsFile === undefined || (isolation !== 'overlay' && isolation !== 'shared' && isolation !== 'off'))
    return undefined;
  return {
    fingerprint,
    basePath,
    isolation,
    imageFreshness,
    mountsFile,
    baseMount: values.get(keys.baseMount),
    enrootPath: values.get(keys.enrootPath),
    enrootVersion: values.get(keys.enrootVersion),
    reason: values.get(keys.reason),
    command: values.get(keys.command),
    validUntilMs: parseTime(values.get(keys.validUntilMs)),
    importer: values.get(keys.importer),
    pyxisRuntimePath: values.get(keys.pyxisRuntimePath),
    pyxisVersion: values.get(keys.pyxisVersion),
    pyxisFiles: values.get(keys.pyxisFiles),
    pyxisStamp: values.get(keys.pyxisStamp),
  };
}

const parseTime = (text = ''): number | undefined => (/^\d{1,16}$/.test(text) ? Number(text) : undefined);

/**
 * For how long a node is taken for one that cannot do something because an attempt failed. On a busy node it
 * may have failed for want of time or processes; where it always does, an attempt now and then costs little.
 */
export const failureLimitMs = 5 * 60_000;

/** Whether facts are still to be believed. A clock that was set back ends them, too. */
export function areValid({ validUntilMs }: NodeFacts, nowMs: number): boolean {
  if (validUntilMs === undefined) return true;
  const restMs = validUntilMs - nowMs;
  return restMs > 0 && restMs <= failureLimitMs;
}

/**
 * Whether the wrapper knows how this enroot behaves: `digest` came with 4.0, what `start` and `mounts.d` do
 * is the same since 3.4.
 *
 * @param version as `enroot version` prints it, e.g. `4.1.2`
 */
export function isKnownEnroot(version: string): boolean {
  const numbers = version.split('.').map(Number);
  return isAtLeast(numbers, [3, 4]) && !isAtLeast(numbers, [5]);
}
