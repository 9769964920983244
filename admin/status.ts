/** `container-cache status`: how full the node is, and every entry on it. */
import process from 'node:process';
import { setTimeout as delay } from 'node:timers/promises';
import { blocksUsedPercent, inodesUsedPercent, type Usage } from '../lib/core/gc-plan.ts';
import {
  formatAgo,
  formatBar,
  formatBytes,
  formatCount,
  printable,
  renderTable,
} from '../lib/core/readable.ts';
import type { Settings } from '../lib/core/settings.ts';
import { updateCounters } from './counters-file.ts';
import type { Counters } from './counters.ts';
import { inventoryOf, savedBytes, withBase, type Inventory, type InventoryEntry } from './inventory.ts';
import { paint } from './paint.ts';
import { UsageError } from './usage-error.ts';
import { findUserId, findUserNames } from './user-names.ts';

export const sortKeys = ['used', 'created', 'hits', 'size', 'files', 'user', 'image'] as const;
type SortKey = (typeof sortKeys)[number];

interface StatusOptions {
  readonly json: boolean;
  /** Only the entries of this user: a name or a uid. */
  readonly user: string | undefined;
  /** Only those whose image has this in it. */
  readonly image: string | undefined;
  readonly sort: SortKey;
  readonly reverse: boolean;
  /** Seconds between two looks; undefined: one look. */
  readonly watch: number | undefined;
}

type Names = ReadonlyMap<number, string>;

interface StatusEntry extends InventoryEntry {
  /** Containers that started from it since it was unpacked; undefined: the counters cannot be read. */
  readonly hits: number | undefined;
}

/** Without them the rest is shown all the same. */
async function countHits({ statePath }: Settings): Promise<Counters['entries'] | undefined> {
  try {
    return (await updateCounters(statePath)).entries;
  } catch {
    return undefined;
  }
}

const clearScreen = '\u001b[H\u001b[2J\u001b[3J';

/** @returns the exit code, 0 */
export async function runStatus(options: StatusOptions): Promise<number> {
  const { watch } = options;
  if (watch !== undefined && (options.json || !process.stdout.isTTY))
    throw new UsageError('--watch needs a terminal, and cannot be used with --json');
  const uid = options.user === undefined ? undefined : requireUserId(options.user);
  for (;;) {
    const text = await withBase('show the cache', async (settings, base) => {
      const inventory = inventoryOf(settings, base);
      const hits = await countHits(settings);
      const all = inventory.entries.map((entry) => ({
        ...entry,
        hits: hits?.get(entry.name)?.hits ?? (hits && 0),
      }));
      const entries = choose(all, options, uid);
      const names = findUserNames(entries.map((entry) => entry.uid));
      return options.json
        ? `${JSON.stringify(toJson(inventory, entries, settings, names))}\n`
        : describe(inventory, entries, settings, names);
    });
    if (watch === undefined) {
      process.stdout.write(text);
      return 0;
    }
    process.stdout.write(`${clearScreen}${new Date().toISOString()}\n\n${text}`);
    await delay(watch * 1000);
  }
}

function requireUserId(user: string): number {
  const uid = findUserId(user);
  if (uid === undefined) throw new UsageError(`--user ${printable(user)}: there is no such user`);
  return uid;
}

const compare = (a: number | string, b: number | string): number => (a < b ? -1 : a > b ? 1 : 0);

/** The largest, the last used and the newest first; names in their order. */
const orders: Readonly<Record<SortKey, (a: StatusEntry, b: StatusEntry) => number>> = {
  used: (a, b) => b.usedAtMs - a.usedAtMs,
  created: (a, b) => (b.createdAtMs ?? 0) - (a.createdAtMs ?? 0),
  hits: (a, b) => (b.hits ?? 0) - (a.hits ?? 0),
  size: (a, b) => b.bytes - a.bytes,
  files: (a, b) => b.inodes - a.inodes,
  user: (a, b) => a.uid - b.uid,
  image: (a, b) => compare(a.image ?? '', b.image ?? ''),
};

function choose(
  entries: readonly StatusEntry[],
  { image, sort, reverse }: StatusOptions,
  uid: number | undefined,
): StatusEntry[] {
  const sorted = entries
    .filter((entry) => uid === undefined || entry.uid === uid)
    .filter((entry) => image === undefined || (entry.image ?? '').includes(image))
    .toSorted((a, b) => orders[sort](a, b) || b.usedAtMs - a.usedAtMs || compare(a.name, b.name));
  return reverse ? sorted.reverse() : sorted;
}

/** Why it stays, or where it stands in the line of those that may go. */
function describeState({ keptBecause, place, goesNext }: InventoryEntry): string {
  if (keptBecause === 'leased') return 'in use';
  return keptBecause ?? `${goesNext ? 'evict' : 'idle'} #${place ?? 0}`;
}

function toJson(
  { usage, due }: Inventory,
  entries: readonly StatusEntry[],
  settings: Settings,
  names: Names,
): unknown {
  return {
    base: settings.basePath,
    usage: { ...usage, blocksPercent: blocksUsedPercent(usage), inodesPercent: inodesUsedPercent(usage) },
    watermarks: { high: settings.gcHighPercent, low: settings.gcLowPercent },
    collectionDue: due,
    entries: entries.map((entry) => ({
      name: entry.name,
      kind: entry.kind,
      uid: entry.uid,
      user: entry.kind === 'mounted' ? null : (names.get(entry.uid) ?? null),
      viewers: entry.viewers,
      savedBytes: savedBytes(entry),
      image: entry.image ?? null,
      bytes: entry.bytes,
      inodes: entry.inodes,
      createdAtMs: entry.createdAtMs ?? null,
      unpackMs: entry.unpackMs ?? null,
      usedAtMs: Math.round(entry.usedAtMs),
      hits: entry.hits ?? null,
      keptBecause: entry.keptBecause ?? null,
      place: entry.place ?? null,
      goesNext: entry.goesNext,
      jobs: entry.leases.map(({ jobId }) => jobId),
    })),
  };
}

function describe(
  { usage, due }: Inventory,
  entries: readonly StatusEntry[],
  settings: Settings,
  names: Names,
): string {
  const bytes = entries.reduce((sum, entry) => sum + entry.bytes, 0);
  const used = entries.filter(({ keptBecause }) => keptBecause === 'leased').length;
  const mounted = entries.filter(({ kind }) => kind === 'mounted');
  const users = new Set(entries.filter(({ kind }) => kind === 'private').map(({ uid }) => uid)).size;
  const lines = [
    ...describeUsage(usage, settings),
    due
      ? 'A collection is due.'
      : `A collection starts at ${settings.gcHighPercent} % and ends below ${settings.gcLowPercent} %.`,
    '',
    ...(entries.length === 0 ? [] : [...describeEntries(entries, names), '']),
    `${count(entries.length - mounted.length, 'entry', 'entries')} of ${count(users, 'user', 'users')}${describeMounted(mounted)}, ${formatBytes(bytes)}; ${used} in use`,
  ];
  return `${lines.join('\n')}\n`;
}

function describeMounted(mounted: readonly StatusEntry[]): string {
  if (mounted.length === 0) return '';
  const saved = formatBytes(mounted.reduce((sum, entry) => sum + savedBytes(entry), 0));
  return `, ${count(mounted.length, 'mounted image', 'mounted images')} for all users (saves ${saved})`;
}

const count = (number: number, one: string, many: string): string =>
  `${formatCount(number)} ${number === 1 ? one : many}`;

function describeUsage(usage: Usage, { gcHighPercent, gcLowPercent, basePath }: Settings): string[] {
  const row = (what: string, percent: number, rest: string): string => {
    const text = `${what} ${formatBar(percent, [gcLowPercent, gcHighPercent])} ${percent.toFixed(1).padStart(5)} %  ${rest}`;
    if (percent >= gcHighPercent) return paint('red', text);
    return percent >= gcLowPercent ? paint('yellow', text) : text;
  };
  const { totalBytes, freeBytes, availableBytes, totalInodes, freeInodes } = usage;
  return [
    basePath,
    row(
      'blocks',
      blocksUsedPercent(usage),
      `${formatBytes(totalBytes - freeBytes)} used, ${formatBytes(availableBytes)} free`,
    ),
    totalInodes === 0
      ? 'inodes have no fixed number here'
      : row(
          'inodes',
          inodesUsedPercent(usage),
          `${formatCount(totalInodes - freeInodes)} used, ${formatCount(freeInodes)} free`,
        ),
  ];
}

const heading = ['USER', 'IMAGE', 'SIZE', 'FILES', 'HITS', 'UNPACKED', 'USED', 'STATE', 'JOBS', 'ENTRY'];
/** In place of the user of a mounted entry. */
const everybody = '(all)';
const numericColumns = [2, 3, 4];
const stateColumn = 7;

function describeEntries(entries: readonly StatusEntry[], names: Names): string[] {
  const nowMs = Date.now();
  const known = (entry: InventoryEntry, text: string): string =>
    entry.createdAtMs === undefined ? '?' : text;
  const rows = entries.map((entry) => [
    entry.kind === 'mounted' ? everybody : (names.get(entry.uid) ?? String(entry.uid)),
    printable(entry.image ?? '?'),
    known(entry, formatBytes(entry.bytes)),
    known(entry, formatCount(entry.inodes)),
    entry.hits === undefined ? '?' : formatCount(entry.hits),
    known(entry, formatAgo(entry.createdAtMs ?? 0, nowMs)),
    formatAgo(entry.usedAtMs, nowMs),
    describeState(entry),
    entry.leases.map(({ jobId }) => jobId).join(',') || '-',
    entry.name,
  ]);
  const [top = '', ...lines] = renderTable([heading, ...rows], numericColumns);
  return [
    paint('dim', top),
    ...lines.map((line, index) => (rows[index]?.[stateColumn] === 'in use' ? paint('green', line) : line)),
  ];
}
