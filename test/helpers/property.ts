/**
 * Properties: what must hold for any input, tried on many inputs from a seeded generator.
 *
 * Every case has a seed of its own, and a failure names it: with that number in CONTAINER_CACHE_TEST_SEED the
 * same case is the first one tried. Without the variable each run of the tests tries other cases.
 */
import process from 'node:process';
import { runInNewContext } from 'node:vm';

const seedVariable = 'CONTAINER_CACHE_TEST_SEED';

/** Mulberry32: 32 bits of state are plenty for a few hundred cases, and any number is a good seed. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** @returns a whole number, both ends included */
  integer(from: number, to: number): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let bits = this.#state;
    bits = Math.imul(bits ^ (bits >>> 15), bits | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return from + Math.floor((((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32) * (to - from + 1));
  }

  pick<T>(choices: readonly [T, ...T[]]): T;
  pick(choices: string): string;
  pick<T>(choices: readonly T[] | string): T | string | undefined {
    return choices[this.integer(0, choices.length - 1)];
  }

  /** @returns that many characters, UTF-16 units, out of an alphabet */
  text(alphabet: string, lengthMin: number, lengthMax: number): string {
    return Array.from({ length: this.integer(lengthMin, lengthMax) }, () => this.pick(alphabet)).join('');
  }

  /**
   * Text as an adversary would have it: ends of lines, quotes, escapes, marks that reorder, halves of
   * characters.
   */
  hostileText(lengthMax: number): string {
    return this.text(hostileAlphabet, 0, lengthMax);
  }

  /**
   * A valid text with some pieces left out, doubled, moved or replaced: what comes close to a format tries it
   * hardest.
   */
  mutation(text: string): string {
    let mutated = text;
    for (let changes = this.integer(1, 4); changes > 0; changes--) {
      const from = this.integer(0, mutated.length);
      const to = this.integer(from, Math.min(mutated.length, from + 8));
      const piece = mutated.slice(from, to);
      const replacement = this.pick([
        '',
        piece + piece,
        this.hostileText(3),
        String(this.integer(-2, 10 ** 12)),
      ]);
      mutated = mutated.slice(0, from) + replacement + mutated.slice(to);
    }
    return mutated;
  }
}

const hostileAlphabet =
  'aZ09 _-./:,;=+@#%$\'"`\\{}[]()<>|&*?~!\n\r\t\0\u0007\u001b\u007f\u0085\u00a0\u00e9\u061c\u2028\u202e\u2066\ud83d\ude00\ufeff\ufffd';

/**
 * Tries a property on many cases.
 *
 * @throws Error that names the seed of the first case that fails, with what failed as its cause
 */
export function forAll(cases: number, property: (random: Random) => void): void {
  const firstSeed = Number(process.env[seedVariable] ?? Date.now() % 2 ** 32);
  for (let index = 0; index < cases; index++) {
    const seed = (firstSeed + index) >>> 0;
    try {
      property(new Random(seed));
    } catch (cause) {
      const reason = cause instanceof Error ? (cause.stack ?? cause.message) : String(cause);
      throw new Error(`The property does not hold with ${seedVariable}=${seed}: ${reason}`, { cause });
    }
  }
}

/**
 * Of a parser that takes a moment for what it is given; one that tries all ways to read it would take years.
 */
const hangLimitMs = 30_000;

/**
 * Runs something that must come to an end, and stops it if it does not, also within a regular expression.
 *
 * @throws Error if it was stopped
 */
export function unlessItHangs(body: () => void): void {
  runInNewContext('body()', { body }, { timeout: hangLimitMs });
}

/**
 * Texts that make a parser work if it goes back over what it has read: pieces of its format again and again,
 * alone, and in the middle of a valid text.
 */
export function longTexts(sample: string, pieces: readonly string[], length: number): string[] {
  const half = Math.floor(sample.length / 2);
  return pieces.flatMap((piece) => {
    const long = piece.repeat(Math.ceil(length / piece.length));
    return [`${long}\0`, `${sample.slice(0, half)}${long}!${sample.slice(half)}`];
  });
}
