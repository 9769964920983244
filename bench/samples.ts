/** From samples to findings. */
import type { Figure, Finding } from './report.ts';
import { summarise } from '../test/helpers/statistics.ts';

/** Samples of several kinds, by the kind's name. */
export class Samples<Kind extends string> {
  readonly #values = new Map<Kind, number[]>();

  add(kind: Kind, value: number): void {
    this.#values.set(kind, [...(this.#values.get(kind) ?? []), value]);
  }

  figure(kind: Kind, what: string, unit: Figure['unit'] = 'ms'): Figure {
    return { what, unit, value: summarise(this.#values.get(kind) ?? []) };
  }
}

interface FindingOptions {
  readonly goal?: number;
  readonly note?: string;
}

export const compare = (id: string, a: Figure, b: Figure, { goal, note }: FindingOptions = {}): Finding => ({
  id,
  a,
  b,
  result: a.value.median / b.value.median,
  formula: undefined,
  goal,
  note,
});
