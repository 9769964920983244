/** `container-cache pin` and `unpin`: entries that no collection evicts, however old. */
import process from 'node:process';
import { entryNamePattern } from '../lib/core/layout.ts';
import { formatAgo, printable, renderTable } from '../lib/core/readable.ts';
import { changePins, readPins, type Pin } from '../lib/store/pins.ts';
import { inventoryOf, withBase } from './inventory.ts';

interface PinOptions {
  /** Names of entries; none: show what is pinned. */
  readonly entries: readonly string[];
  readonly json: boolean;
}

/** @returns the exit code: 1 if one of them is no entry here */
export function runPin({ entries, json }: PinOptions): Promise<number> {
  return withBase('pin entries', async (settings, base) => {
    const { statePath } = settings;
    const present = new Map(inventoryOf(settings, base).entries.map((entry) => [entry.name, entry]));
    if (entries.length === 0) {
      const pins = readPins(statePath);
      process.stdout.write(json ? `${JSON.stringify(Object.fromEntries(pins))}\n` : list(pins, present));
      return 0;
    }
    const missing = entries.filter((name) => !present.has(name));
    await changePins(statePath, (pins) => {
      for (const name of entries) {
        const entry = present.get(name);
        if (entry !== undefined)
          pins.set(name, { label: entry.image, sinceMs: Date.now(), isConfigured: false });
      }
    });
    for (const name of missing)
      process.stderr.write(
        `container-cache: there is no entry ${printable(name)}; \`container-cache status\` lists the entries\n`,
      );
    return missing.length > 0 ? 1 : 0;
  });
}

function list(pins: ReadonlyMap<string, Pin>, present: ReadonlyMap<string, unknown>): string {
  if (pins.size === 0) return 'Nothing is pinned.\n';
  const rows = [...pins].map(([name, { label, sinceMs, isConfigured }]) => [
    name,
    isConfigured ? 'configuration' : 'by hand',
    formatAgo(sinceMs, Date.now()),
    present.has(name) ? 'yes' : 'no',
    printable(label ?? '?'),
  ]);
  return `${renderTable([['ENTRY', 'PINNED', 'SINCE', 'HERE', 'FOR'], ...rows]).join('\n')}\n`;
}

/** @returns the exit code: 1 if one of them was not pinned */
export function runUnpin({ entries }: Pick<PinOptions, 'entries'>): Promise<number> {
  return withBase('unpin entries', async ({ statePath }) => {
    const unknown: string[] = [];
    await changePins(statePath, (pins) => {
      for (const name of entries) if (!pins.delete(name)) unknown.push(name);
    });
    for (const name of unknown) {
      const what = entryNamePattern.test(name) ? 'is not pinned' : 'is not the name of an entry';
      process.stderr.write(
        `container-cache: ${printable(name)} ${what}; \`container-cache pin\` lists the pins\n`,
      );
    }
    return unknown.length > 0 ? 1 : 0;
  });
}
