/** What the benchmark found, as data and as the table it prints. */
import { renderTable } from '../lib/core/readable.ts';
import type { Summary } from '../test/helpers/statistics.ts';

/** A quantity with its unit. */
export interface Figure {
  readonly what: string;
  readonly unit: 'ms' | 'MiB';
  readonly value: Summary;
}

export interface Finding {
  /** Which of the goals, `a` to `j`; the same letter for what only explains it. */
  readonly id: string;
  readonly a: Figure;
  /** What `a` is compared with; undefined if with a fixed amount. */
  readonly b: Figure | undefined;
  /** `a` against `b`, or the amount itself. */
  readonly result: number;
  /** How `result` comes from the medians, where it is not just a / b. */
  readonly formula: string | undefined;
  /** The most that `result` should be; undefined for what only explains. */
  readonly goal: number | undefined;
  readonly note: string | undefined;
}

export interface Measured {
  readonly findings: readonly Finding[];
  /** What could not be measured, and why. */
  readonly failures: readonly { readonly id: string; readonly reason: string }[];
}

export interface Facts {
  readonly processor: string;
  readonly cores: number;
  readonly memoryGiB: number;
  readonly kernel: string;
  readonly filesystem: string;
  readonly runtime: string;
  readonly unsquashfs: string;
  /** Average number of busy threads over the minute before the first sample. */
  readonly loadBefore: number;
  readonly image: string;
  readonly log: string;
  /** What started containers, and of which image; undefined if nothing did. */
  readonly containers: string | undefined;
}

export interface Report extends Measured {
  readonly facts: Facts;
  readonly durationSeconds: number;
}

const holds = ({ result, goal }: Finding): boolean | undefined =>
  goal === undefined ? undefined : result <= goal;

export function renderReport(report: Report): string {
  const { facts, findings, failures } = report;
  const lines = [
    `machine     ${facts.processor}, ${facts.cores} cores, ${facts.memoryGiB} GiB, load ${facts.loadBefore.toFixed(2)} before`,
    `system      Linux ${facts.kernel}, entries on ${facts.filesystem}, ${facts.unsquashfs}, runtime ${facts.runtime}`,
    `image       ${facts.image}`,
    `log         ${facts.log}`,
    ...(facts.containers === undefined ? [] : [`containers  ${facts.containers}`]),
    '',
    ...renderTable([
      ['', 'what (A)', 'against (B)', 'A', 'B', 'result', 'goal', 'holds'],
      ...findings.map((finding) => [
        `(${finding.id})`,
        finding.a.what,
        finding.b?.what ?? '-',
        renderFigure(finding.a),
        finding.b === undefined ? '-' : renderFigure(finding.b),
        renderResult(finding, finding.result),
        finding.goal === undefined ? '-' : renderResult(finding, finding.goal),
        { true: 'yes', false: 'NO', undefined: '-' }[String(holds(finding))] ?? '-',
      ]),
    ]),
    '',
    'Figures are medians (lower to upper quartile, number of samples); samples of A and B take turns. Without a goal:',
    'for comparison.',
    ...findings.flatMap(({ id, formula, note }) => [
      ...(formula === undefined ? [] : [`(${id}) result is ${formula}`]),
      ...(note === undefined ? [] : [`(${id}) ${note}`]),
    ]),
    ...failures.map(({ id, reason }) => `(${id}) could not be measured: ${reason}`),
    `It took ${report.durationSeconds} s.`,
  ];
  return `${lines.join('\n')}\n`;
}

function renderFigure({ unit, value }: Figure): string {
  const digits = unit === 'MiB' || value.median < 10 ? 2 : value.median < 1000 ? 1 : 0;
  const [median, lower, upper] = [value.median, value.lowerQuartile, value.upperQuartile].map((number) =>
    number.toFixed(digits),
  );
  return `${median ?? ''} ${unit} (${lower ?? ''}-${upper ?? ''}, ${value.count})`;
}

const renderResult = ({ a, b }: Finding, number: number): string =>
  b === undefined ? `${number.toFixed(2)} ${a.unit}` : `${number.toFixed(2)}x`;
