/** How `status` and `explain` look at the node. */
import { closeSync } from 'node:fs';
import process from 'node:process';
import { NodeFault } from '../lib/core/faults.ts';
import { formatLogLine } from '../lib/core/log-line.ts';
import { requireSettings, type LogLevel, type Settings } from '../lib/core/settings.ts';
import { takeInventory, type Inventory } from '../lib/store/inventory.ts';
import { readPins } from '../lib/store/pins.ts';
import { openBase } from '../lib/store/user-directory.ts';
import type { Directory } from '../lib/system/directory.ts';
import { isRoot } from '../lib/system/as-user.ts';
import { readSettings } from '../lib/system/settings-file.ts';
import type { LogFields } from '../lib/system/syslog.ts';

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

export const inventoryOf = (settings: Settings, base: Directory): Inventory =>
  takeInventory(
    { base, policy: settings, pinned: new Set(readPins(settings.statePath).keys()), log: tellTrouble },
    settings.runtimePath,
  );
