/** The word that somebody most likely meant. */

/** More mistakes than this, or than a third of the word, make it another word. */
const mostMistakes = 5;

/**
 * @returns one with the same end (`data_path` for `container_cache_data_path`), or with few other letters;
 *   undefined: none
 */
export function nearestWord<T extends string>(word: string, words: readonly T[]): T | undefined {
  const limit = Math.min(mostMistakes, Math.floor(word.length / 3));
  const alike = word.toLowerCase().replaceAll('-', '_');
  const longer = words.find(
    (candidate) => alike !== '' && (candidate.endsWith(`_${alike}`) || alike.endsWith(`_${candidate}`)),
  );
  if (longer !== undefined) return longer;
  let nearest: T | undefined;
  let fewest = limit + 1;
  for (const candidate of words) {
    const mistakes = countMistakes(alike, candidate, fewest);
    if (mistakes >= fewest) continue;
    fewest = mistakes;
    nearest = candidate;
  }
  return nearest;
}

/**
 * Letters to insert, delete or change (Levenshtein's distance); a number of `enough` or more means: too many.
 */
function countMistakes(from: string, to: string, enough: number): number {
  if (Math.abs(from.length - to.length) >= enough) return enough;
  let row = Array.from({ length: to.length + 1 }, (_, column) => column);
  for (let index = 0; index < from.length; index++) {
    const next = [index + 1];
    for (let column = 1; column <= to.length; column++) {
      const change = (row[column - 1] ?? 0) + (from[index] === to[column - 1] ? 0 : 1);
      next.push(Math.min(change, (row[column] ?? 0) + 1, (next[column - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row[to.length] ?? enough;
}
