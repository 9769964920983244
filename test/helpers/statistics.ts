/** Figures of a benchmark: many samples, told by their median and how far they spread. */

export interface Summary {
  /** Number of samples. */
  readonly count: number;
  readonly median: number;
  /** A quarter of the samples is below the lower quartile, a quarter above the upper. */
  readonly lowerQuartile: number;
  readonly upperQuartile: number;
}

/** @throws {RangeError} without a sample */
export function summarise(samples: readonly number[]): Summary {
  const sorted = samples.toSorted((a, b) => a - b);
  return {
    count: sorted.length,
    median: quantile(sorted, 0.5),
    lowerQuartile: quantile(sorted, 0.25),
    upperQuartile: quantile(sorted, 0.75),
  };
}

/** Between two samples it is interpolated. */
function quantile(sorted: readonly number[], share: number): number {
  const position = (sorted.length - 1) * share;
  const below = sorted[Math.floor(position)];
  const above = sorted[Math.ceil(position)];
  if (below === undefined || above === undefined) throw new RangeError('No sample, want at least one');
  return below + (above - below) * (position - Math.floor(position));
}

/**
 * What to run in which order: each round takes one sample of each, and every other round goes backwards, so
 * that no sample always follows the same one and slow drifts of the machine meet all alike.
 */
export function interleave<T>(kinds: readonly T[], rounds: number): T[] {
  return Array.from({ length: rounds }, (_, round) => (round % 2 === 0 ? kinds : kinds.toReversed())).flat();
}
