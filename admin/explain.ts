/**
 * `container-cache explain ENTRY|IMAGE|JOB`: who holds an entry, why it is kept, when it would be evicted.
 */
import process from 'node:process';
import { entryNamePattern, parseIdName } from '../lib/core/layout.ts';
import { formatAgo, formatBytes, formatCount, formatDuration, printable } from '../lib/core/readable.ts';
import type { Settings } from '../lib/core/settings.ts';
import { readJobImages, type JobImage } from '../lib/store/job-files.ts';
import { listMounted } from '../lib/store/mounted-store.ts';
import { inventoryOf, withBase, type Inventory, type InventoryEntry } from './inventory.ts';
import { findUserNames } from './user-names.ts';

interface ExplainOptions {
  readonly what: string;
  readonly json: boolean;
}

interface Answer {
  readonly entries: readonly InventoryEntry[];
  /** What the job's Prolog noted of its images, if a job was asked for. */
  readonly images: readonly JobImage[] | undefined;
}

/** @returns the exit code: 1 if nothing is known of it here */
export function runExplain({ what, json }: ExplainOptions): Promise<number> {
  return withBase('explain', (settings, base) => {
    const inventory = inventoryOf(settings, base);
    const answer = find(what, inventory, settings);
    const paragraphs = json ? [] : describe(what, answer, inventory, settings);
    process.stdout.write(
      json
        ? `${JSON.stringify({ what, ...answer, collectionDue: inventory.due })}\n`
        : `${paragraphs.join('\n\n')}\n`,
    );
    return answer.entries.length > 0 || answer.images !== undefined ? 0 : 1;
  });
}

function find(what: string, { entries }: Inventory, { runtimePath }: Settings): Answer {
  const jobId = parseIdName(what);
  if (jobId !== undefined) {
    const images = readJobImages(runtimePath, jobId);
    const isOfJob = ({ name, leases }: InventoryEntry): boolean =>
      leases.some((lease) => lease.jobId === jobId) || images?.some(({ entry }) => entry === name) === true;
    return { entries: entries.filter(isOfJob), images };
  }
  if (entryNamePattern.test(what))
    return { entries: entries.filter(({ name }) => name === what), images: undefined };
  const same = entries.filter(({ image }) => image === what);
  const alike = entries.filter(({ image }) => image?.includes(what) === true);
  return { entries: same.length > 0 ? same : alike, images: undefined };
}

function describe(what: string, answer: Answer, inventory: Inventory, settings: Settings): string[] {
  const names = findUserNames(answer.entries.map(({ uid }) => uid));
  const entries = answer.entries.map((entry) =>
    describeEntry(entry, names.get(entry.uid) ?? `uid ${entry.uid}`, inventory, settings).join('\n'),
  );
  const bypassed = (answer.images ?? [])
    .filter(({ entry }) => entry === '-')
    .map(
      ({ image }) =>
        `${printable(image)}: not served by the cache; the Prolog's log line for job ${what} says why`,
    );
  const refused = describeRefusals(what, settings);
  if (entries.length > 0 || bypassed.length > 0 || refused.length > 0)
    return [...bypassed, ...refused, ...entries];
  if (answer.images !== undefined) return [`Job ${what} is on this node, but its entries no longer exist.`];
  return [
    parseIdName(what) === undefined
      ? `This node has no entry with this name or image: ${printable(what)}`
      : `Job ${what} holds no entry on this node: it has ended, has no container, or runs elsewhere.`,
  ];
}

function describeEntry(
  entry: InventoryEntry,
  user: string,
  inventory: Inventory,
  settings: Settings,
): string[] {
  const nowMs = Date.now();
  const { createdAtMs, unpackMs } = entry;
  const unpacked =
    createdAtMs === undefined || unpackMs === undefined
      ? 'unknown: its lock file has no valid metadata'
      : `${formatAgo(createdAtMs, nowMs)}, in ${formatDuration(unpackMs)}: ${formatBytes(entry.bytes)}, ${formatCount(entry.inodes)} files`;
  if (entry.kind === 'mounted') return describeMounted(entry, inventory, settings, nowMs);
  return [
    entry.name,
    `  user      ${user}`,
    `  image     ${printable(entry.image ?? 'unknown')}`,
    `  unpacked  ${unpacked}`,
    `  used      ${formatAgo(entry.usedAtMs, nowMs)}`,
    `  held by   ${describeHolders(entry, nowMs)}`,
    `  evicted   ${describeFate(entry, inventory, settings, nowMs)}`,
  ];
}

function describeMounted(
  entry: InventoryEntry,
  inventory: Inventory,
  settings: Settings,
  nowMs: number,
): string[] {
  const where = entry.takesRoom ? `from its copy of ${formatBytes(entry.bytes)}` : 'in place';
  const ready = `${formatAgo(entry.createdAtMs ?? nowMs, nowMs)}, in ${formatDuration(entry.unpackMs ?? 0)}`;
  return [
    entry.name,
    '  user      all who may read the image (a mounted entry)',
    `  image     ${printable(entry.image ?? 'unknown')}`,
    `  mounted   ${where}; made ready ${ready}`,
    `  views     ${entry.viewers.length === 0 ? 'none' : `of uid ${entry.viewers.join(', ')}`}`,
    `  used      ${formatAgo(entry.usedAtMs, nowMs)}`,
    `  held by   ${describeHolders(entry, nowMs)}`,
    `  evicted   ${describeFate(entry, inventory, settings, nowMs)}`,
  ];
}

/** Why an image of `trusted_images` is unpacked for each user instead. */
function describeRefusals(what: string, { basePath }: Settings): string[] {
  return listMounted(basePath).flatMap(({ name, facts }) =>
    facts.refusal !== undefined && (facts.image === what || name === what)
      ? [
          `${printable(facts.image)}: not mounted, but unpacked for each user: ${printable(facts.refusal.reason)}`,
        ]
      : [],
  );
}

function describeHolders({ keptBecause, leases }: InventoryEntry, nowMs: number): string {
  const jobs = leases.map(
    ({ jobId, sinceMs, holder }) =>
      `job ${jobId} (since ${formatDuration(nowMs - sinceMs)}, process ${holder.pid})`,
  );
  if (jobs.length > 0) return jobs.join(', ');
  if (keptBecause === 'leased')
    return 'a process without a lease: a step of a job, or another process of the user';
  return keptBecause === 'mounted' ? 'a process that has it mounted' : 'nobody';
}

function describeFate(
  { keptBecause, place, goesNext, usedAtMs }: InventoryEntry,
  { due, entries }: Inventory,
  { gcMinAgeSeconds, gcHighPercent }: Settings,
  nowMs: number,
): string {
  if (keptBecause === 'leased') return 'not while it is held';
  if (keptBecause === 'mounted') return 'not while it is mounted';
  if (keptBecause === 'pinned') return 'not while it is pinned; `container-cache unpin` removes the pin';
  if (keptBecause === 'in-place') return 'never: its image is mounted in place, which takes no room';
  if (keptBecause === 'young') {
    const restMs = usedAtMs + gcMinAgeSeconds * 1000 - nowMs;
    return `not within the next ${formatDuration(restMs)}: gc_min_age is ${gcMinAgeSeconds} s`;
  }
  const line = entries.filter((entry) => entry.place !== undefined).length;
  const turn = `it is number ${place ?? 0} of ${line} candidates`;
  if (goesNext) return `by the collection that is due now; ${turn}`;
  return due
    ? `not by the collection that is due now; ${turn}`
    : `when the disk reaches ${gcHighPercent} %; ${turn}`;
}
