/** `container-cache verify`: whether entries still are what was unpacked. */
import process from 'node:process';
import { describeError } from '../lib/core/faults.ts';
import { formatCount, printable } from '../lib/core/readable.ts';
import type { Settings } from '../lib/core/settings.ts';
import type { Directory } from '../lib/system/directory.ts';
import { openLog } from '../lib/system/syslog.ts';
import { inventoryOf, withBase } from './inventory.ts';
import { countEntry, verifyEntry, type Verification } from './verify-entry.ts';

interface VerifyOptions {
  /** None: all. */
  readonly entries: readonly string[];
  readonly json: boolean;
  /** For the Epilog: only counts, and logs what is missing. */
  readonly background: boolean;
}

const shownDifferences = 10;

/** @returns the exit code: 0 if all are the same; 1 if one is not, or cannot be compared, or is not there */
export function runVerify({ entries: wanted, json, background }: VerifyOptions): Promise<number> {
  return withBase('verify entries', async (settings, base) => {
    if (background) return countInBackground(settings, base, wanted);
    // The kernel refuses every write to a mounted one.
    const entries = inventoryOf(settings, base).entries.filter(({ kind }) => kind === 'private');
    const names = wanted.length > 0 ? wanted : entries.map(({ name }) => name);
    let exitCode = 0;
    for (const name of names) {
      const entry = entries.find((one) => one.name === name);
      const verification: Verification =
        entry === undefined
          ? {
              result: 'unknown',
              reason: 'there is no such entry; `container-cache status` lists the entries',
            }
          : await verifyEntry(base.path, entry, name, entry.image);
      if (verification.result !== 'same') exitCode = 1;
      process.stdout.write(
        json ? `${JSON.stringify({ name, ...verification })}\n` : describe(name, verification),
      );
    }
    if (names.length === 0 && !json) process.stdout.write('There are no entries.\n');
    return exitCode;
  });
}

async function countInBackground(
  settings: Settings,
  base: Directory,
  names: readonly string[],
): Promise<number> {
  const log = openLog(settings);
  for (const name of names) {
    const entry = inventoryOf(settings, base).entries.find((one) => one.name === name);
    if (entry === undefined) continue;
    try {
      const missing = await countEntry(base.path, entry, name);
      log.write(missing === undefined ? 'debug' : 'warning', 'verify', {
        uid: entry.uid,
        entry: name,
        result: missing === undefined ? 'whole' : 'damaged',
        reason:
          missing === undefined
            ? undefined
            : `${missing}: something deletes files there (container-cache check cleaners looks for it); the next job unpacks the image again`,
      });
    } catch (error) {
      log.write('warning', 'verify', {
        uid: entry.uid,
        entry: name,
        result: 'failed',
        reason: describeError(error),
      });
    }
  }
  await log.flush();
  return 0;
}

function describe(name: string, verification: Verification): string {
  const title = `${verification.result.padEnd(9)}  ${printable(name)}`;
  switch (verification.result) {
    case 'same':
      return `${title}: ${formatCount(verification.files)} files and directories\n`;
    case 'unknown':
      return `${title}: ${printable(verification.reason)}\n`;
    case 'different': {
      const { missing, extra } = verification;
      const show = (sign: string, lines: readonly string[]): string[] => [
        ...lines.slice(0, shownDifferences).map((line) => `    ${sign} ${printable(line)}`),
        ...(lines.length > shownDifferences
          ? [`    ${sign} and ${formatCount(lines.length - shownDifferences)} more`]
          : []),
      ];
      const counts = `${formatCount(missing.length)} lines only in the listing of the image, ${formatCount(extra.length)} only in that of the entry`;
      return `${[`${title}: ${counts}`, ...show('-', missing), ...show('+', extra)].join('\n')}\n`;
    }
  }
}
