/** Output that comes in chunks, cut into lines. */

interface LineSplitter {
  readonly add: (chunk: Buffer) => void;
  /** Hands on what came after the last end of line, if anything did. */
  readonly end: () => void;
}

/** A child may print for ever without an end of line: of what is longer only this much is kept. */
const longestLine = 64 * 1024;

/** @param onLine gets each line without its end */
export function splitLines(onLine: (line: string) => void, encoding: 'utf8' | 'latin1'): LineSplitter {
  let rest = '';
  return {
    add: (chunk) => {
      const lines = (rest + chunk.toString(encoding)).split('\n');
      rest = (lines.pop() ?? '').slice(0, longestLine);
      for (const line of lines) onLine(line);
    },
    end: () => {
      if (rest !== '') onLine(rest);
      rest = '';
    },
  };
}
