/**
 * The counters and the state of the node as Prometheus reads them (text format 0.0.4), for node_exporter's
 * textfile collector.
 *
 * Every label value that can occur is there from the start, with 0: an alert on a rate needs a first value.
 */
import {
  collectionResults,
  evictionReasons,
  startSources,
  type StartResult,
  type StartSource,
} from '../lib/core/events.ts';
import { faultCodes, isBypassCode } from '../lib/core/faults.ts';
import {
  blocksUsedPercent,
  inodesUsedPercent,
  type CollectionPolicy,
  type Usage,
} from '../lib/core/gc-plan.ts';
import { unpackBucketsSeconds, type Counters } from './counters.ts';

interface NodeState {
  readonly version: string;
  readonly usage: Usage;
  readonly policy: CollectionPolicy;
  /** What the entries say of themselves, added up. */
  readonly entries: { readonly count: number; readonly bytes: number; readonly inodes: number };
  readonly mounted: {
    readonly count: number;
    readonly bytes: number;
    readonly views: number;
    readonly savedBytes: number;
  };
  readonly pinned: number;
  readonly leases: number;
}

type Labels = Readonly<Record<string, string>>;
type Sample = readonly [labels: Labels, value: number, suffix?: string];

export function formatMetrics(counters: Counters, node: NodeState): string {
  return [...startMetrics(counters), ...collectorMetrics(counters), ...nodeMetrics(node)].join('');
}

function metric(
  name: string,
  type: 'counter' | 'gauge' | 'histogram',
  help: string,
  samples: readonly Sample[],
): string {
  const full = `container_cache_${name}`;
  const lines = samples.map(
    ([labels, value, suffix = '']) => `${full}${suffix}${formatLabels(labels)} ${formatValue(value)}\n`,
  );
  return `# HELP ${full} ${help}\n# TYPE ${full} ${type}\n${lines.join('')}`;
}

/** Values of ours are plain words: there is nothing to escape. */
function formatLabels(labels: Labels): string {
  const pairs = Object.entries(labels).map(([name, value]) => `${name}="${value}"`);
  return pairs.length === 0 ? '' : `{${pairs.join(',')}}`;
}

const formatValue = (value: number): string => (value === Infinity ? '+Inf' : String(value));

function startMetrics({ starts }: Counters): string[] {
  const bySource = (valueOf: (source: StartSource) => number): Sample[] =>
    startSources.map((source) => [{ source }, valueOf(source)]);
  const results = (result: StartResult): Sample[] =>
    bySource((source) => starts[source].results[result] ?? 0);
  const codes = (label: string, isWanted: (isBypass: boolean) => boolean): Sample[] =>
    startSources.flatMap((source) =>
      faultCodes
        .filter((code) => isWanted(isBypassCode(code)))
        .map((code): Sample => [{ source, [label]: code }, starts[source].codes[code] ?? 0]),
    );
  return [
    metric('hits_total', 'counter', 'Containers whose image was on the node.', results('reused')),
    metric(
      'misses_total',
      'counter',
      'Containers whose image was unpacked into the cache.',
      results('created'),
    ),
    metric(
      'waits_total',
      'counter',
      'Containers that waited for the unpack of another job.',
      results('waited'),
    ),
    metric(
      'bypasses_total',
      'counter',
      'Containers that the cache does not serve, by code.',
      codes('reason', (isBypass) => isBypass),
    ),
    metric(
      'failures_total',
      'counter',
      'Containers that ran without the cache because of a fault, by code.',
      codes('code', (isBypass) => !isBypass),
    ),
    metric(
      'unpack_seconds',
      'histogram',
      'Seconds that unpacking took.',
      startSources.flatMap((source) => unpackSamples(source, starts[source])),
    ),
    metric(
      'unpack_seconds_saved_total',
      'counter',
      'Unpack time that reuse saved: for each reuse, the seconds that the unpack of its entry took.',
      bySource((source) => starts[source].savedMs / 1000),
    ),
  ];
}

function unpackSamples(
  source: StartSource,
  { unpackBuckets, unpackMs }: Counters['starts'][StartSource],
): Sample[] {
  let count = 0;
  const buckets = [...unpackBucketsSeconds, Infinity].map((bound, index): Sample => {
    count += unpackBuckets[index] ?? 0;
    return [{ source, le: formatValue(bound) }, count, '_bucket'];
  });
  return [...buckets, [{ source }, unpackMs / 1000, '_sum'], [{ source }, count, '_count']];
}

function collectorMetrics({ evictions, collections, lastCollectionAtMs }: Counters): string[] {
  return [
    metric(
      'evictions_total',
      'counter',
      'Entries that were evicted, by reason.',
      evictionReasons.map((reason) => [{ reason }, evictions[reason] ?? 0]),
    ),
    metric(
      'collections_total',
      'counter',
      'Collections that were due, by result.',
      collectionResults.map((result) => [{ result }, collections[result] ?? 0]),
    ),
    metric('last_collection_timestamp_seconds', 'gauge', 'When the last due collection ended; 0: never.', [
      [{}, (lastCollectionAtMs ?? 0) / 1000],
    ]),
  ];
}

function nodeMetrics({ version, usage, policy, entries, mounted, pinned, leases }: NodeState): string[] {
  const one = (value: number): Sample[] => [[{}, value]];
  return [
    metric('entries', 'gauge', 'Unpacked images on the node.', one(entries.count)),
    metric(
      'entry_bytes',
      'gauge',
      'Bytes that the entries take on disk, counted when they were unpacked.',
      one(entries.bytes),
    ),
    metric('entry_inodes', 'gauge', 'Files and directories of the entries.', one(entries.inodes)),
    metric('mounted_entries', 'gauge', 'Images that are mounted for all users.', one(mounted.count)),
    metric('mounted_bytes', 'gauge', 'Bytes that copies of such images take on disk.', one(mounted.bytes)),
    metric('views', 'gauge', 'Mounts by which users see such images.', one(mounted.views)),
    metric(
      'mounted_saved_bytes',
      'gauge',
      'Bytes that entries of their own would take for all who see such images.',
      one(mounted.savedBytes),
    ),
    metric('pinned_entries', 'gauge', 'Entries that no collection evicts.', one(pinned)),
    metric('leases', 'gauge', 'Jobs that hold entries.', one(leases)),
    metric('used_ratio', 'gauge', "How much of the base's filesystem is used.", [
      [{ resource: 'blocks' }, blocksUsedPercent(usage) / 100],
      [{ resource: 'inodes' }, inodesUsedPercent(usage) / 100],
    ]),
    metric('watermark_ratio', 'gauge', 'Where a collection starts, and where it ends.', [
      [{ watermark: 'high' }, policy.gcHighPercent / 100],
      [{ watermark: 'low' }, policy.gcLowPercent / 100],
    ]),
    metric('free_bytes', 'gauge', 'Bytes that users can still write.', one(usage.availableBytes)),
    metric('info', 'gauge', 'The installed version.', [[{ version }, 1]]),
  ];
}
