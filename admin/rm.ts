/** `container-cache rm ENTRY…`: deletes entries by name. */
import process from 'node:process';
import type { CacheEvent } from '../lib/core/events.ts';
import { printable } from '../lib/core/readable.ts';
import { evictEntries } from '../lib/store/collector.ts';
import { recordEvents } from '../lib/store/event-files.ts';
import { listHeldLeases } from '../lib/store/lease.ts';
import { readPins } from '../lib/store/pins.ts';
import { openLog } from '../lib/system/syslog.ts';
import { withBase } from './inventory.ts';

/** How long it waits for a collection that is under way. */
const lockTimeoutMs = 60_000;

const reasons: Readonly<Record<string, string>> = {
  unknown: 'there is no such entry; `container-cache status` lists the entries',
  locked: 'another collection has been running for a minute; try again',
  pinned: 'it is pinned; run `container-cache unpin` first',
  mounted: 'a process has it mounted',
  leased: 'a step of a job uses it',
  used: 'a job has just used it; run rm again to delete it anyway',
  replaced: 'its lock file was replaced meanwhile; try again',
  gone: 'somebody else deleted it meanwhile',
  failed: 'the deletion failed; see the log',
};

/** @returns the exit code: 1 if one of them is still there, or never was */
export async function runRm({ names }: { readonly names: readonly string[] }): Promise<number> {
  return withBase('delete entries', async (settings, base) => {
    const log = openLog(settings);
    const { runtimePath, statePath } = settings;
    const request = {
      base,
      runtimePath,
      policy: settings,
      pinned: new Set(readPins(statePath).keys()),
      lockTimeoutMs,
      log: log.write,
      record: (event: CacheEvent) => {
        recordEvents(statePath, [event]);
      },
    };
    const outcomes = await evictEntries(request, [...new Set(names)]);
    await log.flush();
    const leases = listHeldLeases(runtimePath);
    let exitCode = 0;
    for (const [name, reason] of outcomes) {
      if (reason === undefined) {
        process.stdout.write(`deleted ${name}\n`);
        continue;
      }
      exitCode = 1;
      const jobs = leases.filter(({ entries }) => entries.includes(name)).map(({ jobId }) => jobId);
      const text = jobs.length > 0 ? `in use by job ${jobs.join(', ')}` : (reasons[reason] ?? reason);
      process.stderr.write(`container-cache: kept ${printable(name)}: ${text}\n`);
    }
    return exitCode;
  });
}
