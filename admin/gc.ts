/**
 * `container-cache gc`: one collection by hand, or its plan. Prolog and Epilog start it with `--background`.
 */
import { closeSync, readdirSync } from 'node:fs';
import process from 'node:process';
import { NodeFault } from '../lib/core/faults.ts';
import { blocksUsedPercent, inodesUsedPercent, usedPercent } from '../lib/core/gc-plan.ts';
import type { SpaceNeed } from '../lib/core/image.ts';
import { trashName } from '../lib/core/layout.ts';
import type { LeaseRecord } from '../lib/core/lease-record.ts';
import { formatLogLine } from '../lib/core/log-line.ts';
import { formatBytes, formatCount } from '../lib/core/readable.ts';
import { requireSettings, type Settings } from '../lib/core/settings.ts';
import { openBase } from '../lib/store/base-directory.ts';
import { collect, type CollectRequest } from '../lib/store/collector.ts';
import { recordEvents } from '../lib/store/event-files.ts';
import { pinnedNames } from '../lib/store/pins.ts';
import { isRoot } from '../lib/system/as-user.ts';
import { inDirectory, type Directory } from '../lib/system/directory.ts';
import { isGone, unlessErrno } from '../lib/system/errno.ts';
import { makeKillable } from '../lib/system/inherited.ts';
import { readSettings } from '../lib/system/settings-file.ts';
import { openLog } from '../lib/system/syslog.ts';
import { forecastCollection, type Forecast } from './forecast.ts';
import { findOverdueLeases, releaseOverdueLeases } from './overdue.ts';

interface GcOptions {
  readonly dryRun: boolean;
  readonly force: boolean;
  readonly background: boolean;
  readonly json: boolean;
}

/** How long a collection by hand waits for one that is under way. */
const lockTimeoutMs = 60_000;

/** @returns the exit code: 0 if the goal is reached or nothing was due */
export async function runGc(options: GcOptions): Promise<number> {
  if (!isRoot())
    throw new NodeFault('BASE_UNSAFE', 'Cannot collect: only root may delete the entries of all users');
  if (options.background) makeKillable(process.pid);
  const settings = requireSettings(readSettings(process.env));
  const log = openLog(settings);
  const base = openBase(settings);
  try {
    const request: CollectRequest = {
      base,
      runtimePath: settings.runtimePath,
      policy: settings,
      pinned: pinnedNames(settings.statePath, log.write),
      force: options.force,
      lockTimeoutMs: options.background ? 0 : lockTimeoutMs,
      inBackground: options.background,
      log: (level, word, fields) => {
        log.write(level, word, fields);
        if (!options.background && !options.json) process.stdout.write(`${formatLogLine(word, fields)}\n`);
        // A long collection is followed while it goes on.
        void log.flush();
      },
      record: (event) => {
        recordEvents(settings.statePath, [event]);
      },
    };
    if (options.dryRun) {
      const forecast = forecastCollection(request);
      const overdue = await findOverdueLeases(settings.runtimePath);
      process.stdout.write(
        options.json
          ? `${JSON.stringify({ ...forecast, overdue })}\n`
          : describeForecast(forecast, overdue, countTrash(base), options, settings),
      );
      return 0;
    }
    await releaseOverdueLeases(settings.runtimePath, request.log);
    const result = await collect(request);
    if (options.json) process.stdout.write(`${JSON.stringify(result)}\n`);
    else if (!options.background && result.result === 'not-due')
      process.stdout.write('Nothing to do: usage is below the high watermark.\n');
    return result.result === 'goal-missed' && !options.background ? 1 : 0;
  } finally {
    closeSync(base.fd);
    await log.flush();
  }
}

/** Trees that were evicted or left behind: any collection deletes them first. */
function countTrash(base: Directory): number {
  const names = unlessErrno(isGone, () => readdirSync(inDirectory(base, trashName)));
  return names?.length ?? 0;
}

const describeRoom = ({ bytes, inodes }: SpaceNeed, isInVain: boolean): string =>
  `room   ${formatBytes(bytes)} and ${formatCount(inodes)} inodes must be freed` +
  (isInVain ? '; all candidates together are smaller, so only entries unused for a day are evicted' : '');

function describeForecast(
  { usage, due, isInVain, plan }: Forecast,
  overdue: readonly LeaseRecord[],
  trees: number,
  { force }: GcOptions,
  settings: Settings,
): string {
  const isForced = force && usedPercent(usage) < settings.gcHighPercent;
  const verdict = due
    ? isForced
      ? 'No collection is due; --force collects anyway.'
      : 'A collection is due.'
    : isForced
      ? 'No collection is due, and --force evicts nothing: usage is below the low watermark.'
      : 'No collection is due.';
  const lines = [
    `blocks ${blocksUsedPercent(usage).toFixed(1)} % used, inodes ${inodesUsedPercent(usage).toFixed(1)} % used; ` +
      `a collection starts at ${settings.gcHighPercent} % and ends below ${settings.gcLowPercent} %`,
    verdict,
    ...(due ? [describeRoom(plan.room, isInVain)] : []),
    ...(trees > 0 ? [`trash  deleted first: ${formatCount(trees)} in ${trashName}`] : []),
    ...overdue.map(
      ({ jobId, uid }) =>
        `lease  job=${jobId} uid=${uid}: slurmctld says that the job has ended, so this lease is released first`,
    ),
  ];
  const describe = (entry: (typeof plan.evict)[number]): string =>
    formatLogLine('', {
      uid: entry.uid,
      entry: entry.name,
      used: new Date(entry.usedAtMs).toISOString(),
      bytes: entry.bytes,
      inodes: entry.inodes,
      image: entry.image,
    });
  for (const entry of due ? plan.evict : []) lines.push(`evict  ${describe(entry)}`);
  for (const entry of [...(due ? [] : plan.evict), ...plan.reserve]) lines.push(`spare  ${describe(entry)}`);
  for (const { entry, reason } of plan.kept) lines.push(`keep   ${describe(entry)} because=${reason}`);
  return `${lines.join('\n')}\n`;
}
