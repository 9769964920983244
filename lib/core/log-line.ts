/**
 * One log line: `word key=value key="value with blanks"`. Values come from users; whatever could end a line,
 * forge a key or move a terminal's cursor is escaped, and every value and the line have a limit.
 */

export type LogValue = string | number | undefined;

/**
 * Characters of one value, and of one line; rsyslog cuts messages at 8 KiB by default, syslog-ng likewise.
 */
const longestValue = 512;
const longestLine = 2048;

/** @returns the line; keys whose value is undefined are left out */
export function formatLogLine(word: string, fields: Readonly<Record<string, LogValue>>): string {
  const parts = [word];
  for (const [key, value] of Object.entries(fields)) {
    if (value !== undefined)
      parts.push(`${key}=${typeof value === 'number' ? formatNumber(value) : formatValue(value)}`);
  }
  const line = parts.join(' ');
  return line.length > longestLine ? `${line.slice(0, longestLine - 1)}…` : line;
}

/** Times and sizes come from divisions and clocks: nobody wants to read their fractions. */
const formatNumber = (value: number): string =>
  // Plus 0: no minus before a zero.
  Number.isFinite(value) ? String(Math.round(value) + 0) : '-';

function formatValue(value: string): string {
  const text = shorten(escapeControls(value));
  return /^[A-Za-z0-9_./:@%+,-]+$/.test(text) ? text : `"${text}"`;
}

/**
 * Cuts what is escaped already: a value that grew by its escapes must not push the later keys off the line.
 */
function shorten(escaped: string): string {
  if (escaped.length <= longestValue) return escaped;
  // No half escape and no half surrogate pair at the cut.
  const whole = /^(?:[^\\]|\\u[0-9a-f]{4}|\\[^u])*/u.exec(escaped.slice(0, longestValue - 1));
  return `${(whole?.[0] ?? '').replace(/[\ud800-\udbff]$/, '')}…`;
}

/**
 * Escapes as in JSON: backslash, quote, controls (C0, DEL, C1), line and paragraph separators, the marks that
 * reorder text in a terminal, and lone surrogates.
 */
export function escapeControls(text: string): string {
  return text.replace(
    /[\\"\u0000-\u001f\u007f-\u009f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g,
    (character) => {
      if (character === '\\' || character === '"') return `\\${character}`;
      if (character === '\n') return '\\n';
      if (character === '\t') return '\\t';
      if (character === '\r') return '\\r';
      return `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`;
    },
  );
}
