/**
 * `container-cache warm`: entries ahead of time, for a user's images or for all pins of the configuration.
 */
import process from 'node:process';
import { describeError, faultCode } from '../lib/core/faults.ts';
import { formatBar, formatBytes, formatDuration, printable } from '../lib/core/readable.ts';
import { everyone, type Settings } from '../lib/core/settings.ts';
import type { CreateProgress } from '../lib/image/create.ts';
import { NotMounted } from '../lib/store/mounted-entry.ts';
import { changePins, readPins } from '../lib/store/pins.ts';
import type { UserIds } from '../lib/system/as-user.ts';
import { startInBackground } from '../lib/system/background.ts';
import type { Directory } from '../lib/system/directory.ts';
import { openLog } from '../lib/system/syslog.ts';
import { withBase } from './inventory.ts';
import { UsageError } from './usage-error.ts';
import { findAccount } from './user-names.ts';
import { warmEntry, type Warmed } from './warm-entry.ts';

interface WarmOptions {
  /** None: the pins of the configuration. */
  readonly images: readonly string[];
  readonly user: string | undefined;
  readonly group: number | undefined;
  readonly userName: string | undefined;
  readonly pin: boolean;
  readonly background: boolean;
  readonly json: boolean;
}

interface Task extends Pick<WarmOptions, 'group' | 'userName'> {
  /** A name, a uid, or `*`. */
  readonly user: string;
  readonly image: string;
}

interface Outcome extends Task {
  readonly warmed: Warmed | undefined;
  readonly error: unknown;
}

/** @returns the exit code: 1 if one of them could not be unpacked */
export async function runWarm(options: WarmOptions): Promise<number> {
  const { images, user, group, userName, pin, background, json } = options;
  if (images.length === 0 && (user !== undefined || pin))
    throw new UsageError(
      'warm without an IMAGE uses the pin lines of the configuration: --user and --pin need an IMAGE',
    );
  if (group !== undefined && !isId(group)) throw new UsageError('--group needs a number');
  if (background) {
    const flags = [
      ...(user === undefined ? [] : ['--user', user]),
      ...(group === undefined ? [] : ['--group', String(group)]),
      ...(userName === undefined ? [] : ['--user-name', userName]),
      ...(pin ? ['--pin'] : []),
    ];
    startInBackground(['warm', ...flags, ...images], process.env['CONTAINER_CACHE_CONF'], process.cwd());
    return 0;
  }
  return withBase('unpack for users', async (settings, base) => {
    if (images.length > 0 && user === undefined && settings.trustedImages.length === 0)
      throw new UsageError(
        'warm IMAGE… needs --user, since trusted_images is not set: each entry belongs to one user and is unpacked with their rights',
      );
    const isConfigured = images.length === 0;
    const tasks: readonly Task[] = isConfigured
      ? settings.pins.map((pinned) => ({ ...pinned, group: undefined, userName: undefined }))
      : images.map((image) => ({ image, user: user ?? everyone, group, userName }));
    const outcomes: Outcome[] = [];
    for (const task of tasks) {
      const outcome = await warm(task, settings, base, json);
      outcomes.push(outcome);
      process.stdout.write(json ? `${JSON.stringify(toJson(outcome))}\n` : describe(outcome));
    }
    if (isConfigured) await pinConfigured(settings, outcomes);
    else if (pin) await pinNamed(settings, outcomes);
    if (isConfigured && tasks.length === 0 && !json)
      process.stdout.write('The configuration has no pin line: nothing to do.\n');
    return outcomes.some(({ error }) => error !== undefined) ? 1 : 0;
  });
}

async function warm(task: Task, settings: Settings, base: Directory, json: boolean): Promise<Outcome> {
  const log = openLog(settings);
  const account = findUser(task);
  const progress = new Progress(task, !json && process.stdout.isTTY);
  let outcome: Outcome;
  try {
    if (account === undefined && task.user !== everyone)
      throw new UsageError(`this node does not know the user ${printable(task.user)}`);
    const warmed = await warmEntry({
      user: account,
      image: task.image,
      settings,
      base,
      log,
      configPath: process.env['CONTAINER_CACHE_CONF'],
      onProgress: progress.show,
      onSize: progress.setSize,
    });
    outcome = { ...task, warmed, error: undefined };
  } catch (error) {
    outcome = { ...task, warmed: undefined, error };
  } finally {
    progress.clear();
  }
  logOutcome(log, account, outcome);
  await log.flush();
  return outcome;
}

/** IDs on the command line come from Slurm: they are enough, also for a user whom passwd does not know. */
function findUser({ user, group, userName }: Task): UserIds | undefined {
  if (user === everyone) return undefined;
  if (group === undefined) return findAccount(user);
  const uid = /^\d{1,10}$/.test(user) ? Number(user) : findAccount(user)?.uid;
  return uid === undefined || !isId(uid)
    ? undefined
    : { uid, gid: group, ...(userName === undefined ? {} : { userName }) };
}

const isId = (value: number): boolean => Number.isInteger(value) && value >= 0 && value <= 0xffff_fffe;

function logOutcome(log: ReturnType<typeof openLog>, account: UserIds | undefined, outcome: Outcome): void {
  const { image, warmed, error } = outcome;
  const isWorthNoting = error !== undefined || warmed?.warning !== undefined;
  log.write(isWorthNoting ? 'warning' : 'info', 'warm', {
    uid: account?.uid,
    image,
    result: warmed?.result ?? 'failed',
    entry: warmed?.entry,
    code: error === undefined || isNoFault(error) ? undefined : faultCode(error),
    reason: error === undefined ? warmed?.warning : describeError(error),
    unpack_ms: warmed?.unpackMs,
  });
}

const isNoFault = (error: unknown): boolean => error instanceof UsageError || error instanceof NotMounted;

/** A line that is drawn anew while an image is unpacked. */
class Progress {
  readonly #task: Task;
  readonly #isShown: boolean;
  #bytes: number | undefined;
  #startedAtMs: number | undefined;

  constructor(task: Task, isShown: boolean) {
    this.#task = task;
    this.#isShown = isShown;
  }

  readonly setSize = (bytes: number): void => {
    this.#bytes = bytes;
  };

  readonly show = ({ phase, percent }: CreateProgress): void => {
    if (!this.#isShown) return;
    this.#startedAtMs ??= performance.now();
    const bar = percent === undefined ? phase : this.#bar(percent, performance.now() - this.#startedAtMs);
    process.stdout.write(`${clearLine}${printable(this.#task.image)}  ${bar}`);
  };

  readonly clear = (): void => {
    if (this.#startedAtMs !== undefined) process.stdout.write(clearLine);
  };

  #bar(percent: number, elapsedMs: number): string {
    const parts = [formatBar(percent, [], barWidth), `${String(percent).padStart(3)} %`];
    if (percent > 0 && elapsedMs > 0) {
      if (this.#bytes !== undefined)
        parts.push(`${formatBytes(((this.#bytes * percent) / 100 / elapsedMs) * 1000)}/s`);
      if (percent < 100)
        parts.push(`${formatDuration(Math.max(1000, (elapsedMs / percent) * (100 - percent)))} left`);
    }
    return parts.join('  ');
  }
}

const barWidth = 30;
const clearLine = '\r\u001b[K';

function toJson({ user, image, warmed, error }: Outcome): unknown {
  return {
    user,
    image,
    result: warmed?.result ?? 'failed',
    entry: warmed?.entry ?? null,
    unpackMs: warmed?.unpackMs ?? null,
    reason: error === undefined ? (warmed?.warning ?? null) : describeError(error),
  };
}

function describe({ user, image, warmed, error }: Outcome): string {
  const what = `${printable(image)} for ${user === everyone ? 'everyone' : printable(user)}`;
  if (warmed === undefined) return `failed    ${what}: ${printable(describeError(error))}\n`;
  const { result, entry, unpackMs, warning } = warmed;
  const made = user === everyone ? 'made ready' : 'unpacked';
  const how = result === 'created' ? `${made} in ${formatDuration(unpackMs ?? 0)}` : 'was already there';
  const doubt = warning === undefined ? '' : ` (${printable(warning)})`;
  return `${(result === 'created' ? made : 'warm').padEnd(9)} ${what}: ${entry}, ${how}${doubt}\n`;
}

/**
 * What the list leads to now is pinned, and what it led to before no more; one that failed keeps what it had.
 */
async function pinConfigured({ statePath }: Settings, outcomes: readonly Outcome[]): Promise<void> {
  if (outcomes.length === 0 && readPins(statePath).size === 0) return;
  await changePins(statePath, (pins) => {
    const failed = new Set(outcomes.filter(({ error }) => error !== undefined).map(pinLabel));
    for (const [name, pin] of pins) if (pin.isConfigured && !failed.has(pin.label ?? '')) pins.delete(name);
    for (const outcome of outcomes) {
      if (outcome.warmed === undefined || pins.has(outcome.warmed.entry)) continue;
      pins.set(outcome.warmed.entry, { label: pinLabel(outcome), sinceMs: Date.now(), isConfigured: true });
    }
  });
}

async function pinNamed({ statePath }: Settings, outcomes: readonly Outcome[]): Promise<void> {
  await changePins(statePath, (pins) => {
    for (const outcome of outcomes)
      if (outcome.warmed !== undefined)
        pins.set(outcome.warmed.entry, {
          label: pinLabel(outcome),
          sinceMs: Date.now(),
          isConfigured: false,
        });
  });
}

const pinLabel = ({ user, image }: Task): string => `${user} ${image}`;
