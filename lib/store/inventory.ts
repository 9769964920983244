/** What is on the node, who holds it, and what the next collection would do about it. */
import type { KeepReason, Usage } from '../core/gc-plan.ts';
import type { LeaseRecord } from '../core/lease-record.ts';
import { forecastCollection, type ForecastRequest, type FoundEntry } from './collector.ts';
import { listHeldLeases } from './lease.ts';

export interface InventoryEntry extends FoundEntry {
  /** Why no collection takes it; undefined: one may. */
  readonly keptBecause: KeepReason | undefined;
  /** Its place among those that may go, from 1, the one not used for the longest time. */
  readonly place: number | undefined;
  /** Whether a collection that started now would take it, by what the entries say of their sizes. */
  readonly goesNext: boolean;
  /** The leases of jobs on it. A step of a job can hold it without one. */
  readonly leases: readonly LeaseRecord[];
}

export interface Inventory {
  readonly usage: Usage;
  /** Whether a collection is due. */
  readonly due: boolean;
  readonly entries: readonly InventoryEntry[];
  /** All that hold something here. */
  readonly leases: readonly LeaseRecord[];
}

/** Changes nothing. */
export function takeInventory(request: ForecastRequest, runtimePath: string): Inventory {
  const { usage, due, plan } = forecastCollection(request);
  const leases = listHeldLeases(runtimePath);
  const leasesOn = (entry: FoundEntry): LeaseRecord[] =>
    leases.filter(({ uid, entries }) => uid === entry.uid && entries.includes(entry.name));
  const candidates = [...plan.evict, ...plan.reserve].map((entry, index) => ({
    ...entry,
    keptBecause: undefined,
    place: index + 1,
    goesNext: due && index < plan.evict.length,
    leases: leasesOn(entry),
  }));
  const kept = plan.kept.map(({ entry, reason }) => ({
    ...entry,
    keptBecause: reason,
    place: undefined,
    goesNext: false,
    leases: leasesOn(entry),
  }));
  return { usage, due, entries: [...candidates, ...kept], leases };
}
