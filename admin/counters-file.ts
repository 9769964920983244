/**
 * The counters: all events so far, added up in `<state>/counters`, with where in each day's file the sum
 * ends.
 *
 *   1. flock `<state>/counters.lock`: one at a time adds.
 *   2. Read the sum, add what was appended since, write it aside with the new ends, rename.
 *
 * Sum and ends are one file: a crash leaves both as they were or both as they are to be, so that nothing is
 * counted twice or lost.
 */
import { closeSync, constants } from 'node:fs';
import { countersPath } from '../lib/core/layout.ts';
import { listDays, makeStateDirectory, readDay } from '../lib/store/event-files.ts';
import { writeFileAtomically } from '../lib/system/aside.ts';
import { openRegularFile, readSmallFile } from '../lib/system/files.ts';
import { flockWithin } from '../lib/system/flock.ts';
import { addEvent, emptyCounters, forgetOldEntries, type Counters, type EntryCounters } from './counters.ts';

const lockLimitMs = 10_000;
const longestCountersBytes = 16 * 1024 * 1024;

interface Stored {
  readonly counters: Counters;
  /** Bytes of each day's file that are in the sum. */
  readonly ends: ReadonlyMap<string, number>;
}

/**
 * Adds up what is new, as root.
 *
 * @throws a failed system call, or an Error if somebody holds the lock for too long
 */
export async function updateCounters(statePath: string, nowMs = Date.now()): Promise<Counters> {
  makeStateDirectory(statePath);
  const lock = openRegularFile(`${countersPath(statePath)}.lock`, constants.O_CREAT);
  try {
    if (!(await flockWithin(lock, 'exclusive', lockLimitMs)))
      throw new Error(
        `Cannot count: another process has held "${countersPath(statePath)}.lock" for ${lockLimitMs} ms`,
      );
    const { counters, ends } = recall(statePath, nowMs);
    const newEnds = listDays(statePath).map((day) => {
      const end = readDay(statePath, day, ends.get(day) ?? 0, (event) => {
        addEvent(counters, event);
      });
      return [day, end] as const;
    });
    forgetOldEntries(counters);
    const isNew = newEnds.some(([day, end]) => ends.get(day) !== end) || newEnds.length !== ends.size;
    if (isNew) remember(statePath, { counters, ends: new Map(newEnds) });
    return counters;
  } finally {
    closeSync(lock);
  }
}

/** Adds up the events since a moment, as far as they are kept. */
export function countSince(statePath: string, sinceMs: number): Counters {
  const before = emptyCounters(0);
  // What unpacking took before that moment is what a reuse saves after it.
  const counters = { ...emptyCounters(sinceMs), entries: before.entries };
  for (const day of listDays(statePath)) {
    readDay(statePath, day, 0, (event) => {
      addEvent(event.atMs < sinceMs ? before : counters, event);
    });
  }
  return counters;
}

const formatVersion = 1;

function remember(statePath: string, { counters, ends }: Stored): void {
  const text = JSON.stringify({
    version: formatVersion,
    ...counters,
    entries: Object.fromEntries(counters.entries),
    ends: Object.fromEntries(ends),
  });
  writeFileAtomically(countersPath(statePath), `${text}\n`, { mode: 0o600 });
}

/** What cannot be read is of another version or was damaged: then the kept days are counted anew. */
function recall(statePath: string, nowMs: number): Stored {
  try {
    const text = readSmallFile(countersPath(statePath), longestCountersBytes);
    if (text !== undefined) return parse(text);
  } catch {
    // See above.
  }
  return { counters: emptyCounters(nowMs), ends: new Map() };
}

/** Only root writes it, and renames it whole, so that only the version is looked at. */
function parse(text: string): Stored {
  const { version, entries, ends, ...counters } = JSON.parse(text) as Omit<Counters, 'entries'> & {
    readonly version: number;
    readonly entries: Readonly<Record<string, EntryCounters>>;
    readonly ends: Readonly<Record<string, number>>;
  };
  if (version !== formatVersion) throw new Error(`version ${version}`);
  return {
    counters: { ...emptyCounters(0), ...counters, entries: new Map(Object.entries(entries)) },
    ends: new Map(Object.entries(ends)),
  };
}
