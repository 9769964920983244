/**
 * Pinned entries, `<state>/pins`: an admin said that they stay.
 *
 * By the entry's name, which says whose it is and of which image: what an entry says of itself is its user's
 * to write. Changed under a flock of `<state>/pins.lock`, and replaced as a whole.
 */
import { closeSync, constants } from 'node:fs';
import { describeError } from '../core/faults.ts';
import { isEntryName, pinsPath } from '../core/layout.ts';
import { writeFileAtomically } from '../system/aside.ts';
import { openRegularFile, readSmallFile } from '../system/files.ts';
import { flockWithin } from '../system/flock.ts';
import type { Log } from '../system/syslog.ts';
import { makeStateDirectory } from './event-files.ts';

export interface Pin {
  /** What it is for, for people; of the configuration user and image, by which its pin is found again. */
  readonly label: string | undefined;
  readonly sinceMs: number;
  /** By the list in the configuration: it ends when the list does not lead to it any more. */
  readonly isConfigured: boolean;
}

const lockLimitMs = 10_000;
const longestPinsBytes = 4 * 1024 * 1024;
const formatVersion = 1;

/** @throws an Error for what cannot be read: nobody knows then what is to stay */
export function readPins(statePath: string): Map<string, Pin> {
  const path = pinsPath(statePath);
  const text = readSmallFile(path, longestPinsBytes);
  if (text === undefined) return new Map();
  try {
    const { version, pins } = JSON.parse(text) as { version: number; pins: Readonly<Record<string, Pin>> };
    if (version !== formatVersion) throw new Error(`version ${version}, want ${formatVersion}`);
    return new Map(Object.entries(pins).filter(([name]) => isEntryName(name)));
  } catch (cause) {
    throw new Error(`Cannot read pins "${path}": remove it and pin anew`, { cause });
  }
}

/**
 * The names for a collector, which must not stop for them: without a list that can be read, nothing is
 * pinned.
 */
export function pinnedNames(statePath: string, log: Log['write']): ReadonlySet<string> {
  try {
    return new Set(readPins(statePath).keys());
  } catch (error) {
    log('warning', 'gc-pins', { reason: `${describeError(error)}; nothing is pinned until then` });
    return new Set();
  }
}

/** @throws as readPins, or a failed system call */
export async function changePins(statePath: string, change: (pins: Map<string, Pin>) => void): Promise<void> {
  makeStateDirectory(statePath);
  const lockPath = `${pinsPath(statePath)}.lock`;
  const lock = openRegularFile(lockPath, constants.O_CREAT);
  try {
    if (!(await flockWithin(lock, 'exclusive', lockLimitMs)))
      throw new Error(`Cannot change pins: somebody has held "${lockPath}" for ${lockLimitMs} ms`);
    const pins = readPins(statePath);
    change(pins);
    const text = JSON.stringify({ version: formatVersion, pins: Object.fromEntries(pins) });
    writeFileAtomically(pinsPath(statePath), `${text}\n`, { mode: 0o600 });
  } finally {
    closeSync(lock);
  }
}
