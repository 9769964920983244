/**
 * How the commands look at the node: what is on it, who holds it, and what the next collection would do about
 * it.
 */
import { closeSync } from 'node:fs';
import process from 'node:process';
import { NodeFault } from '../lib/core/faults.ts';
import type { KeepReason, Usage } from '../lib/core/gc-plan.ts';
import type { LeaseRecord } from '../lib/core/lease-record.ts';
import { formatLogLine } from '../lib/core/log-line.ts';
import { requireSettings, type LogLevel, type Settings } from '../lib/core/settings.ts';
import { openBase } from '../lib/store/base-directory.ts';
import { listHeldLeases } from '../lib/store/lease.ts';
import type { FoundEntry } from '../lib/store/listed-entries.ts';
import { readPins } from '../lib/store/pins.ts';
import { findImageMounts } from '../lib/store/views.ts';
import { isRoot } from '../lib/system/as-user.ts';
import type { Directory } from '../lib/system/directory.ts';
import { readSettings } from '../lib/system/settings-file.ts';
import type { LogFields } from '../lib/system/syslog.ts';
import { forecastCollection } from './forecast.ts';

/** The settings and the base, for a command that only root can run. */
export async function withBase<T>(
  purpose: string,
  action: (settings: Settings, base: Directory) => T | Promise<T>,
): Promise<T> {
  if (!isRoot())
    throw new NodeFault(
      'BASE_UNSAFE',
      `Cannot ${purpose}: only root may look into the directories of all users; run it as root`,
    );
  const settings = requireSettings(readSettings(process.env));
  const base = openBase(settings);
  try {
    return await action(settings, base);
  } finally {
    closeSync(base.fd);
  }
}

/** Users who cannot be looked at are no reason not to show the others. */
export function tellTrouble(_level: LogLevel, word: string, fields: LogFields): void {
  process.stderr.write(`${formatLogLine(word, fields)}\n`);
}

export interface InventoryEntry extends FoundEntry {
  /** Why no collection takes it; undefined: one may. */
  readonly keptBecause: KeepReason | undefined;
  /** Its place among those that may go, from 1, the one not used for the longest time. */
  readonly place: number | undefined;
  /** Whether a collection that started now would take it, by what the entries say of their sizes. */
  readonly goesNext: boolean;
  /** The leases of jobs on it. A step of a job can hold it without one. */
  readonly leases: readonly LeaseRecord[];
  /** Who has a view of a mounted one, uids. */
  readonly viewers: readonly number[];
}

/** What entries of their own would take for all who have a view of it, but for what its copy takes. */
export const savedBytes = ({ viewers, unpackedBytes = 0, bytes }: InventoryEntry): number =>
  Math.max(0, viewers.length * unpackedBytes - bytes);

export interface Inventory {
  readonly usage: Usage;
  /** Whether a collection is due. */
  readonly due: boolean;
  readonly entries: readonly InventoryEntry[];
  /** All that hold something here. */
  readonly leases: readonly LeaseRecord[];
}

/** Changes nothing. */
export function inventoryOf(settings: Settings, base: Directory): Inventory {
  const pinned = new Set(readPins(settings.statePath).keys());
  const { usage, due, plan } = forecastCollection({ base, policy: settings, pinned, log: tellTrouble });
  const leases = listHeldLeases(settings.runtimePath);
  const leasesOn = (entry: FoundEntry): LeaseRecord[] =>
    leases.filter(
      ({ uid, entries }) => (entry.kind === 'mounted' || uid === entry.uid) && entries.includes(entry.name),
    );
  const { views } = findImageMounts(settings.runtimePath);
  const viewersOf = ({ name }: FoundEntry): number[] =>
    [...new Set(views.filter((view) => view.name === name).map(({ uid }) => uid))].sort((a, b) => a - b);
  const candidates = [...plan.evict, ...plan.reserve].map((entry, index) => ({
    ...entry,
    keptBecause: undefined,
    place: index + 1,
    goesNext: due && index < plan.evict.length,
    leases: leasesOn(entry),
    viewers: viewersOf(entry),
  }));
  const kept = plan.kept.map(({ entry, reason }) => ({
    ...entry,
    keptBecause: reason,
    place: undefined,
    goesNext: false,
    leases: leasesOn(entry),
    viewers: viewersOf(entry),
  }));
  return { usage, due, entries: [...candidates, ...kept], leases };
}
