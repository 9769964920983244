/**
 * The configuration file, `/etc/slurm/container-cache.conf`: `key=value` lines, `#` starts a comment line.
 *
 * Each setting is declared once, in `settingReaders`: its default, its unit, what its extremes mean. Every
 * problem in the file is reported, not only the first, so that an admin mends it in one go.
 */
import { isFaultOfNode, NodeFault } from './faults.ts';
import { escapeControls } from './log-line.ts';
import { nearestWord } from './nearest-word.ts';

export const defaultConfigPath = '/etc/slurm/container-cache.conf';

export const defaultRuntimePath = '/run/container-cache';

/** Whether a job waits for its entry, or runs without it while it is made for the next one. */
type CreateMode = 'wait' | 'background';
type ImageFreshness = 'always' | 'if-not-present';
/**
 * How a container is kept from writing into its entry; `auto`: an overlay where the kernel lets a user mount
 * one.
 */
type Isolation = 'auto' | 'overlay' | 'shared' | 'off';
type OnFailure = 'continue' | 'fail';
export type LogTarget = 'syslog' | 'stderr';
/**
 * What of a trusted image is mounted: `auto`: a file that shares its blocks, else a copy; `reflink`: such a
 * file or nothing; `copy`; `never`: the image itself.
 */
type ImageCopying = 'auto' | 'reflink' | 'copy' | 'never';

/** From most to least severe, as in syslog(3). */
export const logLevels = ['error', 'warning', 'info', 'debug'] as const;
export type LogLevel = (typeof logLevels)[number];

/** The facilities an admin may route our lines to, as logger(1) spells them. */
export const syslogFacilities = [
  'auth',
  'authpriv',
  'cron',
  'daemon',
  'local0',
  'local1',
  'local2',
  'local3',
  'local4',
  'local5',
  'local6',
  'local7',
  'syslog',
  'user',
] as const;
export type SyslogFacility = (typeof syslogFacilities)[number];

export interface Settings {
  /** `container_cache_data_path`: the base, absolute and normalised, never `/`. */
  readonly basePath: string;
  /** `container_cache_gc_high`, percent of blocks or inodes in use at which the collector starts. */
  readonly gcHighPercent: number;
  /** `container_cache_gc_low`, percent below which it stops. */
  readonly gcLowPercent: number;
  /** `gc_min_age`, seconds since its last use during which an entry is kept. 0: no such protection. */
  readonly gcMinAgeSeconds: number;
  /**
   * `container_cache_max_size`, what all entries together may take on disk; undefined: as much as the
   * watermarks leave them.
   */
  readonly maxSize: SizeLimit | undefined;
  /**
   * `create_timeout`, seconds a job may wait for its entry. 0: a limit that grows with the image
   * (createLimitMs).
   */
  readonly createTimeoutSeconds: number;
  /** `create_processors`, threads of an unpack. 0: as many as the node has. */
  readonly createProcessors: number;
  /** `create_mode` */
  readonly createMode: CreateMode;
  /** `image_freshness`: ask the registry at each job, or take what is there. */
  readonly imageFreshness: ImageFreshness;
  /** `on_failure`: `fail` makes a failure of the node (not of the job) exit 1, which drains the node. */
  readonly onFailure: OnFailure;
  /**
   * `isolation`: `overlay` gives each container a layer of its own over the entry; `shared` starts read-only
   * containers on the entry itself; `off` leaves containers to enroot, and the cache is of no use to them;
   * `auto` tries overlays once per boot.
   */
  readonly isolation: Isolation;
  /** `enroot_sysconf_path`, where the real enroot has its mounts.d. */
  readonly enrootSysconfPath: string;
  /** `enroot_path`, the real enroot; undefined: the first of /usr/local/bin/enroot and /usr/bin/enroot. */
  readonly enrootPath: string | undefined;
  /** `runtime_dir`, for leases and job files; should be on a tmpfs, so that a reboot forgets them. */
  readonly runtimePath: string;
  /** `state_dir`, for what is counted and pinned; should outlive a reboot. */
  readonly statePath: string;
  /**
   * `pin`, a line for each: images that `container-cache warm` unpacks ahead of time, and no collection
   * takes.
   */
  readonly pins: readonly ConfiguredPin[];
  /**
   * `trusted_images`: directories whose images the kernel may mount, because only root and the trusted owners
   * can change them. None: no image is mounted.
   */
  readonly trustedImages: readonly string[];
  /** `trusted_owners`, uids beside root's that may own such images and directories. */
  readonly trustedOwners: readonly number[];
  /** `trusted_images_copy` */
  readonly imageCopying: ImageCopying;
  /**
   * `prepare_images`: of how many of the mounted images that a user used last a Prolog makes views for the
   * steps of the job.
   */
  readonly prepareImages: number;
  readonly logTarget: LogTarget;
  readonly logLevel: LogLevel;
  readonly syslogFacility: SyslogFacility;
}

/** An amount of bytes, or a share of the base's filesystem. */
export type SizeLimit = { readonly bytes: number } | { readonly percent: number };

/** In place of a user, in `pin` lines. */
export const everyone = '*';

interface ConfiguredPin {
  /** A name, a uid, or `everyone`. */
  readonly user: string;
  /** As a job names it; a path is absolute. */
  readonly image: string;
}

const oneDayInSeconds = 86_400;

class Wanted extends Error {}

function integer(from: number, to: number, unit: string): (value: string) => number {
  return (value) => {
    const number = /^\d{1,9}$/.test(value) ? Number(value) : Number.NaN;
    if (!(number >= from && number <= to)) throw new Wanted(`a whole number from ${from} to ${to} (${unit})`);
    return number;
  };
}

function oneOf<const T extends string>(choices: readonly T[]): (value: string) => T {
  return (value) => {
    const found = choices.find((choice) => choice === value);
    if (found === undefined) throw new Wanted(`one of ${choices.join(', ')}`);
    return found;
  };
}

function absolutePath(value: string): string {
  // Only plain names between the slashes: the path is printed to TaskProlog and into an fstab line of enroot,
  // where a blank, a quote, a comma or a colon would mean something.
  if (!/^(\/[A-Za-z0-9_.+@%=-]+)+\/?$/.test(value) || /\/\.{1,2}(\/|$)/.test(value)) {
    throw new Wanted('an absolute path of letters, digits and _.+@%=- without "." or ".." in it');
  }
  return value.replace(/\/$/, '');
}

function absolutePaths(value: string): readonly string[] {
  return value.split(':').map(absolutePath);
}

function userIds(value: string): readonly number[] {
  const names = value.split(',').map((name) => name.trim());
  return names.map((name) => {
    const uid = name === 'root' ? 0 : /^\d{1,10}$/.test(name) ? Number(name) : Number.NaN;
    if (!(uid <= largestUid)) throw new Wanted('uids with commas between, such as "0,1500"');
    return uid;
  });
}

/** Each is looked at by the Prolog, and held by the job. */
const mostPreparedImages = 64;

/** The one above means "none". */
const largestUid = 2 ** 32 - 2;

const unitBytes = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 } as const;

function sizeLimit(value: string): SizeLimit {
  const [, amount, unit = ''] = /^(\d{1,15}(?:\.\d{1,3})?) ?(%|[KMGT]?(?:i?B)?)$/i.exec(value) ?? [];
  const number = Number(amount ?? Number.NaN);
  if (unit === '%' && number > 0 && number <= 100) return { percent: number };
  const factor = unitBytes[unit.toUpperCase().replace(/I?B$/, '') as keyof typeof unitBytes] as
    number | undefined;
  const bytes = Math.floor(number * (factor ?? Number.NaN));
  if (!(bytes > 0 && bytes <= Number.MAX_SAFE_INTEGER))
    throw new Wanted(
      'bytes with K, M, G or T behind them, such as 500G, or percent of the disk, such as 40%',
    );
  return { bytes };
}

function pinOf(value: string): ConfiguredPin {
  const [, user, image] = /^([A-Za-z0-9_][A-Za-z0-9_.@\\-]*|\*)[ \t]+([^\s.-].*)$/.exec(value) ?? [];
  if (user === undefined || image === undefined)
    throw new Wanted(
      'a user and an image, such as "alice /images/x.sqsh" or "alice nvcr.io#nvidia/pytorch:25.10"; "*" is everyone',
    );
  return { user, image };
}

const settingReaders = {
  container_cache_data_path: absolutePath,
  container_cache_gc_high: integer(1, 100, 'percent'),
  container_cache_gc_low: integer(0, 99, 'percent'),
  container_cache_max_size: sizeLimit,
  gc_min_age: integer(0, 365 * oneDayInSeconds, 'seconds'),
  create_timeout: integer(0, oneDayInSeconds, 'seconds, 0 for a limit by size'),
  create_processors: integer(0, 1024, 'threads, 0 for all'),
  create_mode: oneOf(['wait', 'background']),
  image_freshness: oneOf(['always', 'if-not-present']),
  on_failure: oneOf(['continue', 'fail']),
  isolation: oneOf(['auto', 'overlay', 'shared', 'off']),
  enroot_sysconf_path: absolutePath,
  enroot_path: absolutePath,
  runtime_dir: absolutePath,
  state_dir: absolutePath,
  pin: pinOf,
  trusted_images: absolutePaths,
  trusted_owners: userIds,
  trusted_images_copy: oneOf(['auto', 'reflink', 'copy', 'never']),
  prepare_images: integer(0, mostPreparedImages, 'images'),
  log_target: oneOf(['syslog', 'stderr']),
  log_level: oneOf(logLevels),
  syslog_facility: oneOf(syslogFacilities),
} as const;

type Key = keyof typeof settingReaders;
type Values = { [K in Key]?: ReturnType<(typeof settingReaders)[K]> };

/** May be there more than once: each line adds one. */
const listKey = 'pin';

export const settingKeys = Object.keys(settingReaders) as readonly Key[];

function isKey(key: string): key is Key {
  return Object.hasOwn(settingReaders, key);
}

/** What could be understood of a file, and everything that is wrong with it. */
export interface ParsedSettings {
  readonly settings: Settings | undefined;
  /** Valid even if the rest is not: the failure policy must be known to report a failure. */
  readonly onFailure: OnFailure;
  readonly logTarget: LogTarget;
  readonly enrootSysconfPath: string;
  readonly problems: readonly string[];
}

/**
 * Reads the text of a configuration file.
 *
 * @param file where the text is from, for messages like
 *   `/etc/slurm/x.conf:3: gc_min_age: found "soon", want …`
 */
export function parseSettings(text: string, file: string): ParsedSettings {
  const values: Values = {};
  const pins: ConfiguredPin[] = [];
  const lineOf = new Map<Key, number>();
  const problems: string[] = [];
  text.split('\n').forEach((rawLine, index) => {
    const line = rawLine.trim();
    if (line === '' || line.startsWith('#')) return;
    const where = `${file}:${index + 1}`;
    const separator = line.indexOf('=');
    if (separator < 0) {
      problems.push(`${where}: found ${quoted(line)}, want key=value`);
      return;
    }
    const key = line.slice(0, separator).trim();
    const value = line.slice(separator + 1).trim();
    if (!isKey(key)) {
      const nearest = nearestWord(key, settingKeys);
      const hint = nearest === undefined ? 'container-cache.conf(5) has all of them' : `is it ${nearest}?`;
      problems.push(`${where}: unknown key ${quoted(key)}; ${hint}`);
      return;
    }
    const earlier = lineOf.get(key);
    if (earlier !== undefined && key !== listKey) {
      problems.push(`${where}: ${key}: found a second time, want it once (line ${earlier} has it)`);
      return;
    }
    lineOf.set(key, index + 1);
    try {
      if (key === listKey) pins.push(pinOf(value));
      else Object.assign(values, { [key]: settingReaders[key](value) });
    } catch (error) {
      if (!(error instanceof Wanted)) throw error;
      problems.push(`${where}: ${key}: found ${quoted(value)}, want ${error.message}`);
    }
  });

  const gcHighPercent = values.container_cache_gc_high ?? 85;
  const gcLowPercent = values.container_cache_gc_low ?? 80;
  // Against the default of a value that was not understood the comparison would only confuse.
  const isUnderstood = (key: Key): boolean => !lineOf.has(key) || values[key] !== undefined;
  if (
    gcLowPercent >= gcHighPercent &&
    isUnderstood('container_cache_gc_low') &&
    isUnderstood('container_cache_gc_high')
  ) {
    const key = lineOf.has('container_cache_gc_low') ? 'container_cache_gc_low' : 'container_cache_gc_high';
    problems.push(
      `${file}:${lineOf.get(key) ?? 1}: ${key}: found low ${gcLowPercent} and high ${gcHighPercent}, want low below high`,
    );
  }
  const basePath = values.container_cache_data_path;
  if (basePath === undefined && !lineOf.has('container_cache_data_path')) {
    problems.push(
      `${file}: container_cache_data_path: not set, want the absolute path of a node-local directory`,
    );
  }
  const onFailure = values.on_failure ?? 'continue';
  const logTarget = values.log_target ?? 'syslog';
  const enrootSysconfPath = values.enroot_sysconf_path ?? '/etc/enroot';
  if (basePath === undefined || problems.length > 0)
    return { settings: undefined, onFailure, logTarget, enrootSysconfPath, problems };
  return {
    settings: {
      basePath,
      gcHighPercent,
      gcLowPercent,
      gcMinAgeSeconds: values.gc_min_age ?? 120,
      maxSize: values.container_cache_max_size,
      createTimeoutSeconds: values.create_timeout ?? 0,
      createProcessors: values.create_processors ?? 0,
      createMode: values.create_mode ?? 'wait',
      imageFreshness: values.image_freshness ?? 'always',
      onFailure,
      isolation: values.isolation ?? 'auto',
      enrootSysconfPath,
      enrootPath: values.enroot_path,
      runtimePath: values.runtime_dir ?? defaultRuntimePath,
      statePath: values.state_dir ?? '/var/lib/container-cache',
      pins,
      trustedImages: values.trusted_images ?? [],
      trustedOwners: values.trusted_owners ?? [],
      imageCopying: values.trusted_images_copy ?? 'auto',
      prepareImages: values.prepare_images ?? 16,
      logTarget,
      logLevel: values.log_level ?? 'info',
      syslogFacility: values.syslog_facility ?? 'daemon',
    },
    onFailure,
    logTarget,
    enrootSysconfPath,
    problems,
  };
}

/** Where and what to log, also if the rest of the file is broken. */
export function logSettingsOf(
  parsed: ParsedSettings,
): Pick<Settings, 'logTarget' | 'logLevel' | 'syslogFacility'> {
  return parsed.settings ?? { logTarget: parsed.logTarget, logLevel: 'info', syslogFacility: 'daemon' };
}

/**
 * The exit code of Prolog and Epilog after these errors: only a fault of the node, or a bug, may drain it.
 */
export function exitCodeOf(errors: readonly unknown[], onFailure: OnFailure): 0 | 1 {
  return onFailure === 'fail' && errors.some(isFaultOfNode) ? 1 : 0;
}

/** @throws NodeFault BAD_CONFIG naming the first problem of the file; `container-cache check` names all */
export function requireSettings(parsed: ParsedSettings): Settings {
  if (parsed.settings !== undefined) return parsed.settings;
  const [first = 'it cannot be read', ...others] = parsed.problems;
  const more = others.length === 0 ? '' : ` (and ${others.length} more: container-cache check)`;
  throw new NodeFault('BAD_CONFIG', `${first}${more}`);
}

const longestQuote = 80;

function quoted(text: string): string {
  return `"${escapeControls(text.length > longestQuote ? `${text.slice(0, longestQuote)}…` : text)}"`;
}

const createFloorMs = 5 * 60_000;
const slowestUnpackBytesPerMs = 4 * 1024;
const longestLimitMs = 60 * 60_000;

/** Of an image file, bytes. */
export interface ImageSizes {
  /** Of its filesystem, by what it says of itself: a file without content may say anything. */
  readonly claimedBytes: number;
  /** That are on its disk, as stat(2) counts blocks; some filesystems count none. */
  readonly writtenBytes: number;
}

/**
 * How long a job may wait for its entry, milliseconds. Without `create_timeout`: five minutes and a second
 * for each 4 MiB that an image file has on its disk, so slow that only a hung disk reaches it, and an hour at
 * most, as for an image whose size only the registry knows.
 *
 * @param image undefined for an image from a registry
 */
export function createLimitMs(settings: Settings, image: ImageSizes | undefined): number {
  if (settings.createTimeoutSeconds > 0) return settings.createTimeoutSeconds * 1000;
  if (image === undefined) return longestLimitMs;
  const { claimedBytes, writtenBytes } = image;
  const bytes = writtenBytes > 0 ? Math.min(writtenBytes, claimedBytes) : claimedBytes;
  return Math.min(createFloorMs + Math.ceil(bytes / slowestUnpackBytesPerMs), longestLimitMs);
}

/** What a Prolog does beside the unpack has limits of its own, of seconds. */
const besideUnpackMs = 120_000;

/** How long a Prolog may take at most, seconds: longer than slurmd's limits should be. */
export function longestPrologSeconds({ createTimeoutSeconds }: Settings): number {
  const longestMs = createTimeoutSeconds > 0 ? createTimeoutSeconds * 1000 : longestLimitMs;
  return Math.ceil((longestMs + besideUnpackMs) / 1000);
}
