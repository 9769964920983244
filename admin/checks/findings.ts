/**
 * What `container-cache check` finds, and how it is shown: a line for each finding, and below it what to do
 * about it.
 *
 *   ok    base      /raid/data: ext4, owned by root, mode 0755
 *   bad   slurm     PrologFlags is not set: the Prolog runs at the job's first step
 *                   in slurm.conf: PrologFlags=Alloc
 */
import { printable } from '../../lib/core/readable.ts';

/**
 * `warn`: it works, but worse than it could, or not for long. `bad`: it does not work as it should. `skip`:
 * it could not be checked.
 */
export type FindingStatus = 'ok' | 'warn' | 'bad' | 'skip';

export interface Finding {
  readonly status: FindingStatus;
  /** What part of the node it is about; one word. */
  readonly area: string;
  readonly text: string;
  /** What to do; for everything but `ok`. */
  readonly remedy?: string;
}

/** A part of the node, as the source of findings. */
export interface Reporter {
  readonly ok: (text: string) => Finding;
  readonly warn: (text: string, remedy: string) => Finding;
  readonly bad: (text: string, remedy: string) => Finding;
  readonly skip: (text: string, remedy: string) => Finding;
}

export function reporter(area: string): Reporter {
  const withRemedy =
    (status: FindingStatus) =>
    (text: string, remedy: string): Finding => ({ status, area, text, remedy });
  return {
    ok: (text) => ({ status: 'ok', area, text }),
    warn: withRemedy('warn'),
    bad: withRemedy('bad'),
    skip: withRemedy('skip'),
  };
}

/** Whether the node passes: a warning passes, an error does not, nor does what could not be checked. */
export function isWell(findings: readonly Finding[]): boolean {
  return findings.every(({ status }) => status === 'ok' || status === 'warn');
}

const statusWidth = 6;

/** @returns lines, aligned, with a summary at the end */
export function formatFindings(
  findings: readonly Finding[],
  paint = (_status: FindingStatus, text: string): string => text,
): string {
  const areaWidth = Math.max(0, ...findings.map(({ area }) => area.length)) + 2;
  const indent = ' '.repeat(statusWidth + areaWidth);
  const lines = findings.flatMap(({ status, area, text, remedy }) => [
    `${paint(status, status.padEnd(statusWidth))}${area.padEnd(areaWidth)}${printable(text)}`,
    ...(remedy === undefined ? [] : [`${indent}${printable(remedy)}`]),
  ]);
  return `${[...lines, summary(findings)].join('\n')}\n`;
}

function summary(findings: readonly Finding[]): string {
  const count = (status: FindingStatus): number => findings.filter((one) => one.status === status).length;
  const parts = [
    [count('bad'), 'error', 'errors'],
    [count('warn'), 'warning', 'warnings'],
    [count('skip'), 'not checked', 'not checked'],
  ] as const;
  const found = parts
    .filter(([number]) => number > 0)
    .map(([number, one, many]) => `${number} ${number === 1 ? one : many}`);
  if (found.length === 0) return 'OK: no problem found.';
  return `${isWell(findings) ? 'OK' : 'FAILED'}: ${found.join(', ')}.`;
}
