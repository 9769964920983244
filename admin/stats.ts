/** `container-cache stats`: what the cache did over a time. */
import process from 'node:process';
import { evictionReasons, startSources, type StartResult } from '../lib/core/events.ts';
import { faultCodes, isBypassCode, type FaultCode } from '../lib/core/faults.ts';
import { formatCount, formatDuration, renderTable } from '../lib/core/readable.ts';
import { keptDays } from '../lib/store/event-files.ts';
import { countSince } from './counters-file.ts';
import type { Counters, StartCounters } from './counters.ts';
import { withBase } from './inventory.ts';
import { UsageError } from './usage-error.ts';

interface StatsOptions {
  /** `7d`, `12h`, or a date like `2026-11-01`, in UTC. */
  readonly since: string;
  readonly json: boolean;
}

const dayMs = 86_400_000;
const unitsMs: Readonly<Record<string, number>> = { m: 60_000, h: 3_600_000, d: dayMs, w: 7 * dayMs };

/** @throws UsageError */
function parseSince(since: string, nowMs: number): number {
  const [, count, unit] = /^(\d{1,6})([mhdw])$/.exec(since) ?? [];
  const atMs =
    count !== undefined && unit !== undefined
      ? nowMs - Number(count) * (unitsMs[unit] ?? dayMs)
      : /^\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d)?Z?)?$/.test(since)
        ? Date.parse(since.length > 10 && !since.endsWith('Z') ? `${since}Z` : since)
        : Number.NaN;
  if (Number.isNaN(atMs))
    throw new UsageError(
      `Cannot read --since ${JSON.stringify(since)}: use 30m, 12h, 7d, 2w, or a UTC date such as 2026-11-01 or 2026-11-01T08:00`,
    );
  return atMs;
}

/** @returns the exit code, 0 */
export function runStats({ since, json }: StatsOptions): Promise<number> {
  const nowMs = Date.now();
  const sinceMs = parseSince(since, nowMs);
  return withBase('show counters', (settings) => {
    const counters = countSince(settings.statePath, sinceMs);
    process.stdout.write(json ? `${JSON.stringify(toJson(counters, nowMs))}\n` : describe(counters, nowMs));
    return 0;
  });
}

const sourceTitles: Readonly<Record<(typeof startSources)[number], string>> = {
  job: 'JOBS',
  step: 'STEPS',
  warm: 'WARM',
};

const resultTitles: Readonly<Record<StartResult, string>> = {
  reused: 'from the cache',
  waited: "waited for another job's unpack",
  created: 'unpacked into the cache',
  bypassed: 'not served by the cache',
  failed: 'ran without it after a fault',
};

function toJson({ starts, evictions, collections }: Counters, nowMs: number): unknown {
  const ofSource = ({ results, codes, unpackMs, savedMs }: StartCounters): unknown => ({
    hits: results.reused ?? 0,
    waits: results.waited ?? 0,
    misses: results.created ?? 0,
    bypasses: pick(codes, true),
    failures: pick(codes, false),
    unpackMs,
    savedMs,
  });
  return {
    untilMs: nowMs,
    jobs: ofSource(starts.job),
    steps: ofSource(starts.step),
    warm: ofSource(starts.warm),
    evictions: Object.fromEntries(evictionReasons.map((reason) => [reason, evictions[reason] ?? 0])),
    collections,
  };
}

const pick = (codes: StartCounters['codes'], isBypass: boolean): Record<string, number> =>
  Object.fromEntries(listCodes(codes, isBypass));

function listCodes(codes: StartCounters['codes'], isBypass: boolean): [FaultCode, number][] {
  return faultCodes
    .filter((code) => isBypassCode(code) === isBypass)
    .map((code): [FaultCode, number] => [code, codes[code] ?? 0])
    .filter(([, count]) => count > 0)
    .toSorted(([, a], [, b]) => b - a);
}

function describe(counters: Counters, nowMs: number): string {
  const { starts, evictions, sinceMs } = counters;
  const results = Object.keys(resultTitles) as StartResult[];
  const total = (source: (typeof startSources)[number]): number =>
    results.reduce((sum, result) => sum + (starts[source].results[result] ?? 0), 0);
  const cells = (counts: readonly number[]): string[] => counts.map(formatCount);
  const row = (title: string, of: (starts: StartCounters) => number): string[] => [
    title,
    ...cells(startSources.map((source) => of(starts[source]))),
  ];
  const codeRows = (isBypass: boolean): string[][] =>
    faultCodes
      .filter((code) => isBypassCode(code) === isBypass)
      .filter((code) => startSources.some((source) => (starts[source].codes[code] ?? 0) > 0))
      .map((code) => row(`    ${code}`, ({ codes }) => codes[code] ?? 0));
  const rows = [
    ['', ...startSources.map((source) => sourceTitles[source])],
    ['containers', ...cells(startSources.map(total))],
    ...results.flatMap((result) => [
      row(`  ${resultTitles[result]}`, (one) => one.results[result] ?? 0),
      ...(result === 'bypassed' ? codeRows(true) : result === 'failed' ? codeRows(false) : []),
    ]),
  ];
  const sum = (of: (starts: StartCounters) => number): number =>
    startSources.reduce((all, source) => all + of(starts[source]), 0);
  const hits = sum(({ results: { reused } }) => reused ?? 0);
  const served = hits + sum(({ results: { created, waited } }) => (created ?? 0) + (waited ?? 0));
  const gone = evictionReasons.map((reason) => `${formatCount(evictions[reason] ?? 0)} ${reason}`).join(', ');
  return [
    `Since ${new Date(sinceMs).toISOString().slice(0, 16)}Z (${formatDuration(nowMs - sinceMs)}; ${keptDays} days are kept)`,
    '',
    ...renderTable(
      rows,
      startSources.map((_, index) => index + 1),
    ),
    '',
    `hit ratio  ${served === 0 ? '-' : `${((100 * hits) / served).toFixed(1)} %`}`,
    `unpacking  ${formatDuration(sum(({ unpackMs }) => unpackMs))} spent, ${formatDuration(sum(({ savedMs }) => savedMs))} saved`,
    `evictions  ${gone}`,
    '',
  ].join('\n');
}
