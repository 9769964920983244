/**
 * Where events are written: `<state>/events/2026-11-24`, a file for each day (UTC), a line for each event.
 *
 * An event is one write(2) to a file opened with O_APPEND, so that any number of programs may write at once.
 * A line that a crash cut is no JSON, and is left out by whoever reads. Nothing here ever fails a job: what
 * cannot be written is not counted.
 */
import {
  closeSync,
  constants,
  mkdirSync,
  openSync,
  readdirSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs';
import {
  formatEvent,
  formatMountEvent,
  parseContainerEvent,
  parseEvent,
  parseMountEvent,
  type CacheEvent,
  type StartEvent,
  type StartSource,
} from '../core/events.ts';
import { faultCode, isBypassCode } from '../core/faults.ts';
import { eventsPath, isEntryNameFor, stepEventsName } from '../core/layout.ts';
import { withUserIds, type UserIds } from '../system/as-user.ts';
import {
  inDirectoryOf,
  openOrCreateFileBeneath,
  readSmallFileBeneath,
  removeFileBeneath,
} from '../system/beneath.ts';
import type { Directory } from '../system/directory.ts';
import { isGone, unlessErrno } from '../system/errno.ts';
import { openRegularFile, readLines } from '../system/files.ts';
import type { Acquired } from './entry.ts';

const append = constants.O_WRONLY | constants.O_APPEND | constants.O_NOFOLLOW | constants.O_NONBLOCK;

const dayOf = (atMs: number): string => new Date(atMs).toISOString().slice(0, 10);
const dayPattern = /^\d{4}-\d\d-\d\d$/;

/** What a start came to, by its entry or its error. */
export function startEvent(source: StartSource, acquired: Acquired | undefined, error: unknown): StartEvent {
  const start = { kind: 'start', atMs: Date.now(), source } as const;
  if (acquired !== undefined)
    return { ...start, result: acquired.result, entry: acquired.entry.name, unpackMs: acquired.unpackMs };
  const code = faultCode(error);
  return { ...start, result: isBypassCode(code) ? 'bypassed' : 'failed', code };
}

/** @returns whether all of them are counted */
export function recordEvents(statePath: string, events: readonly CacheEvent[], nowMs = Date.now()): boolean {
  return (
    events.length === 0 || writeText(() => openDay(statePath, dayOf(nowMs)), events.map(formatEvent).join(''))
  );
}

function writeText(open: () => number, text: string): boolean {
  try {
    const fd = open();
    try {
      writeSync(fd, text);
    } finally {
      closeSync(fd);
    }
    return true;
  } catch {
    return false;
  }
}

function openDay(statePath: string, day: string): number {
  const directory = eventsPath(statePath);
  const path = `${directory}/${day}`;
  const fd = unlessErrno(isGone, () => openSync(path, append));
  if (fd !== undefined) return fd;
  // Once a day.
  makeStateDirectory(statePath);
  unlessErrno(['EEXIST'], () => {
    mkdirSync(directory, { mode: 0o700 });
  });
  const created = openSync(path, append | constants.O_CREAT, 0o600);
  try {
    forgetOldDays(statePath);
  } catch {
    // The next day tries again.
  }
  return created;
}

/**
 * Not `recursive`: where a filesystem answers ENOENT for a directory that cannot be made, as /proc does, Node
 * would try for ever.
 */
export function makeStateDirectory(statePath: string): void {
  unlessErrno(['EEXIST'], () => {
    mkdirSync(statePath, { mode: 0o755 });
  });
}

export const keptDays = 31;
const keptBytes = 256 * 1024 * 1024;

/** Keeps the last days, fewer of them if they are large. */
function forgetOldDays(statePath: string): void {
  let bytes = 0;
  for (const [age, day] of listDays(statePath).toReversed().entries()) {
    const path = `${eventsPath(statePath)}/${day}`;
    bytes += unlessErrno(isGone, () => statSync(path).size) ?? 0;
    if (age >= keptDays || (age > 0 && bytes > keptBytes))
      unlessErrno(isGone, () => {
        unlinkSync(path);
      });
  }
}

/** @returns days like `2026-11-24`, the oldest first */
export function listDays(statePath: string): string[] {
  const names = unlessErrno(isGone, () => readdirSync(eventsPath(statePath))) ?? [];
  return names.filter((name) => dayPattern.test(name)).toSorted();
}

/**
 * Reads the whole lines of a day.
 *
 * @param fromBytes where an earlier reading ended
 * @returns where this one ended: what is behind it is a line that is being written
 */
export function readDay(
  statePath: string,
  day: string,
  fromBytes: number,
  onEvent: (event: CacheEvent) => void,
): number {
  const fd = unlessErrno(isGone, () => openRegularFile(`${eventsPath(statePath)}/${day}`));
  if (fd === undefined) return fromBytes;
  try {
    return readLines(fd, fromBytes, (line) => {
      const event = parseEvent(line);
      if (event !== undefined) onEvent(event);
    });
  } finally {
    closeSync(fd);
  }
}

/**
 * Notes a start for the Epilog to count, as the user, in their directory. What cannot be written is not
 * counted.
 */
export function noteStepStart(user: UserIds, userPath: string, jobId: number, event: StartEvent): void {
  writeText(() => openStepEvents(user, userPath, jobId), formatEvent(event));
}

/** Notes that an image could be mounted; without the note the next step unpacks as well. */
export function noteMountable(user: UserIds, userPath: string, jobId: number, image: string): void {
  writeText(() => openStepEvents(user, userPath, jobId), formatMountEvent(image));
}

const openStepEvents = (user: UserIds, userPath: string, jobId: number): number =>
  inDirectoryOf(user, userPath, (userDirectory) =>
    openOrCreateFileBeneath(userDirectory, stepEventsName(jobId), 0o600, append),
  );

/** More steps with images of their own than a job has; who claims more gains a number. */
const mostStepStarts = 1000;
const longestStepEventsBytes = 256 * 1024;

interface StepNotes {
  readonly starts: StartEvent[];
  /** Paths of images that could be mounted, as the user says. */
  readonly mountable: string[];
}

/**
 * Takes what the steps of a job have noted. The file is the user's: only well-formed starts of entries that
 * are for that user are handed on, and their time is now.
 *
 * @param jobEntries what the Prolog had leased for the job: starts from these are the job's, all others its
 *   steps'
 */
export function takeStepNotes(
  userDirectory: Directory,
  user: UserIds,
  jobId: number,
  jobEntries: readonly string[],
): StepNotes {
  const name = stepEventsName(jobId);
  const text = withUserIds(user, () => {
    // Whatever lies there instead, and whatever it does, costs no more than these numbers.
    try {
      const found = readSmallFileBeneath(userDirectory, name, longestStepEventsBytes);
      if (found !== undefined) removeFileBeneath(userDirectory, name);
      return found ?? '';
    } catch {
      return '';
    }
  });
  const atMs = Date.now();
  const lines = text.split('\n');
  const starts = lines.flatMap((line): StartEvent[] => {
    const event = parseEvent(line);
    return event?.kind === 'start' ? [{ ...event, source: 'step', atMs }] : [];
  });
  const counted = new Set<string>();
  const hits = lines.flatMap((line): StartEvent[] => {
    const { entry, result } = parseContainerEvent(line) ?? {};
    if (entry === undefined) return [];
    const isCounted = result === 'reused' || counted.has(entry);
    counted.add(entry);
    const source = jobEntries.includes(entry) ? 'job' : 'step';
    return isCounted ? [{ kind: 'start', source, result: 'reused', entry, atMs }] : [];
  });
  return {
    starts: [...starts, ...hits]
      .filter(({ entry }) => entry === undefined || isEntryNameFor(user.uid, entry))
      .slice(0, mostStepStarts),
    mountable: lines.flatMap((line) => parseMountEvent(line)?.image ?? []),
  };
}
