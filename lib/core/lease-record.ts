/**
 * The record of a lease, `<runtime>/leases/<jobid>`: which process holds which entries. Root writes and reads
 * it; it is parsed strictly all the same, since a record names a process to be killed.
 */
import { isAmount, parseJsonObject } from './json.ts';
import { isEntryNameFor } from './layout.ts';

export interface LeaseRecord {
  readonly jobId: number;
  readonly uid: number;
  /**
   * Who holds the flocks. The start time, clock ticks after boot, tells a process from a later one with its
   * number.
   */
  readonly holder: { readonly pid: number; readonly startTicks: string };
  readonly sinceMs: number;
  /** Names of entries below the user's directory, and of mounted ones. */
  readonly entries: readonly string[];
  /** Those of them that are there in case a step wants them: to be held is no use. */
  readonly prepared?: readonly string[] | undefined;
}

export const longestLeaseRecordBytes = 64 * 1024;

export function formatLeaseRecord(record: LeaseRecord): string {
  return `${JSON.stringify({ version: 1, ...record })}\n`;
}

/** @returns undefined for anything but a well-formed record of version 1 */
export function parseLeaseRecord(text: string): LeaseRecord | undefined {
  const value = parseJsonObject(text);
  if (value?.['version'] !== 1) return undefined;
  const { jobId, uid, holder, sinceMs, entries, prepared = [] } = value;
  if (
    !isAmount(jobId) ||
    !isAmount(uid) ||
    !isAmount(sinceMs) ||
    !isRecord(holder) ||
    !Array.isArray(entries) ||
    !Array.isArray(prepared)
  ) {
    return undefined;
  }
  const { pid, startTicks } = holder;
  if (!isAmount(pid) || pid < 2 || typeof startTicks !== 'string' || !/^\d{1,20}$/.test(startTicks))
    return undefined;
  const names = entries.filter(
    (name): name is string => typeof name === 'string' && isEntryNameFor(uid, name),
  );
  if (names.length !== entries.length) return undefined;
  const known = { jobId, uid, holder: { pid, startTicks }, sinceMs, entries: names };
  const only = names.filter((name) => prepared.includes(name));
  return only.length === 0 ? known : { ...known, prepared: only };
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
