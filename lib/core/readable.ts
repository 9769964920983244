/** Amounts, times and tables for people on a terminal. Programs get JSON. */

const binaryUnits = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'] as const;

/** @returns three digits at most before the unit, as `du -h` does; a decimal below ten */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (Math.round(value) >= 1024 && unit < binaryUnits.length - 1) {
    value /= 1024;
    unit++;
  }
  const digits = unit > 0 && Math.round(value * 10) < 100 ? 1 : 0;
  return `${value.toFixed(digits)} ${binaryUnits[unit] ?? ''}`;
}

export function formatCount(count: number): string {
  return String(count).replace(/\B(?=(\d{3})+$)/g, ',');
}

const durationUnits = [
  ['d', 86_400],
  ['h', 3600],
  ['min', 60],
  ['s', 1],
] as const;

/** @returns the largest unit and, where it says much, the next: `3 d 4 h`, `12 min`, `4.2 s`, `95 ms` */
export function formatDuration(milliseconds: number): string {
  const rest = Math.max(0, milliseconds);
  if (rest < 1000) return `${Math.round(rest)} ms`;
  if (rest < 10_000) return `${(rest / 1000).toFixed(1)} s`;
  const seconds = Math.round(rest / 1000);
  const first = durationUnits.findIndex(([, size]) => seconds >= size);
  const [unit, size] = durationUnits[first] ?? ['s', 1];
  const count = Math.floor(seconds / size);
  const next = durationUnits[first + 1];
  const more = next === undefined || count >= 10 ? 0 : Math.floor((seconds % size) / next[1]);
  return next === undefined || more === 0 || unit === 'min'
    ? `${count} ${unit}`
    : `${count} ${unit} ${more} ${next[0]}`;
}

/** A time as people say it. One that is up to a minute ahead is now: clocks may differ by that much. */
export function formatAgo(atMs: number, nowMs: number): string {
  const ageMs = nowMs - atMs;
  if (ageMs < -60_000) return `in ${formatDuration(-ageMs)}`;
  return ageMs < 1000 ? 'now' : `${formatDuration(ageMs)} ago`;
}

/** A bar of `width` characters, with a mark at each of the positions in percent. */
export function formatBar(percent: number, marks: readonly number[], width = 40): string {
  const cell = (at: number): number => Math.min(width - 1, Math.floor((at / 100) * width));
  const filled = Math.round((Math.min(100, Math.max(0, percent)) / 100) * width);
  const cells: string[] = Array.from({ length: width }, (_, index) => (index < filled ? '#' : '.'));
  for (const mark of marks) cells[cell(mark)] = '|';
  return `[${cells.join('')}]`;
}

/**
 * Columns as wide as their widest cell, two blanks between.
 *
 * @param right columns whose cells end at the same place, as numbers should
 */
export function renderTable(rows: readonly (readonly string[])[], right: readonly number[] = []): string[] {
  const widths = (rows[0] ?? []).map((_, column) =>
    Math.max(...rows.map((row) => (row[column] ?? '').length)),
  );
  return rows.map((row) =>
    row
      .map((cell, column) => {
        const width = widths[column] ?? 0;
        return right.includes(column) ? cell.padStart(width) : cell.padEnd(width);
      })
      .join('  ')
      .trimEnd(),
  );
}

/** File names and output of programs may hold what moves a terminal's cursor. */
export function printable(text: string): string {
  return text.replace(/\s*\n\s*/g, ' ').replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, '?');
}
