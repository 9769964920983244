/** log-line.ts against users who would write the log themselves. */
import { escapeControls, formatLogLine } from '../../../lib/core/log-line.ts';
import { forAll } from '../../helpers/property.ts';
import { assert, suite } from '../../helpers/suite.ts';

/**
 * Reads a line as an operator's tool would: bare values have no blank, quoted ones end at the first bare
 * quote.
 */
function parseLine(line: string): { word: string; fields: [string, string][]; rest: string } {
  const [word = ''] = line.split(' ', 1);
  const fields: [string, string][] = [];
  let rest = line.slice(word.length);
  for (;;) {
    const match = /^ ([a-z_]+)=(?:"((?:[^"\\]|\\.)*)"|([^" ]+))(?= |$)/.exec(rest);
    if (match === null) return { word, fields, rest };
    const [text, key = '', quoted, bare = ''] = match;
    fields.push([key, quoted ?? bare]);
    rest = rest.slice(text.length);
  }
}

/** What an escaped text stood for: a JSON string has the same escapes. */
const unescape = (text: string): string => JSON.parse(`"${text}"`) as string;

const format = suite('formatLogLine()');

format('is a word and its keys, quoted where a value is more than a plain word', () => {
  const fields = {
    job: 42,
    image: '/x/my image.sqsh',
    entry: 'pyxis_cache_u1_00',
    reason: '',
    unpack_ms: 1.5,
  };
  assert.is(
    formatLogLine('prolog', fields),
    'prolog job=42 image="/x/my image.sqsh" entry=pyxis_cache_u1_00 reason="" unpack_ms=2',
  );
});

format('leaves out what is undefined', () => {
  assert.is(formatLogLine('epilog', { job: undefined, uid: 0, entry: undefined }), 'epilog uid=0');
  assert.is(formatLogLine('epilog', {}), 'epilog');
});

format('a plain word is letters, digits and what paths and references are made of', () => {
  const plain = 'Az09_./:@%+,-';
  assert.is(formatLogLine('x', { image: plain }), `x image=${plain}`);
  for (const mark of [
    ' ',
    '=',
    '"',
    "'",
    '\\',
    ';',
    '|',
    '$',
    '(',
    '[',
    '<',
    '*',
    '#',
    '~',
    '\n',
    'ä',
    '\u00a0',
  ]) {
    assert.match(formatLogLine('x', { image: `a${mark}b` }), /^x image="a.+b"$/);
  }
});

format('a value that looks like keys stays one value', () => {
  const image = 'a" result=created uid=0 x="\nprolog job=7 result=reused\\';
  const line = formatLogLine('prolog', { job: 1, image, result: 'failed' });
  assert.equal(parseLine(line).fields, [
    ['job', '1'],
    ['image', 'a\\" result=created uid=0 x=\\"\\nprolog job=7 result=reused\\\\'],
    ['result', 'failed'],
  ]);
});

format('a value that is too long ends in an ellipsis, and its line goes on', () => {
  const line = formatLogLine('prolog', { image: 'a'.repeat(5000), result: 'failed' });
  assert.is(line, `prolog image="${'a'.repeat(511)}…" result=failed`);
  assert.is(formatLogLine('x', { image: 'a'.repeat(512) }), `x image=${'a'.repeat(512)}`);
});

format('a value that grows by its escapes does not push the later keys off the line', () => {
  for (const character of ['\u0001', '"', '\\', '\ud800', '\u{1f600}']) {
    for (const before of ['', 'a', 'ab', 'abc', 'abcd', 'abcde']) {
      const value = before + character.repeat(2000);
      const line = formatLogLine('prolog', { user: value, image: value, reason: value, result: 'failed' });
      const { fields, rest } = parseLine(line);
      assert.is(rest, '');
      assert.equal(fields[3], ['result', 'failed']);
      // Neither an escape nor a character was cut in two.
      const image = fields[1]?.[1] ?? '';
      assert.ok(image.length > 490 && image.length <= 512);
      assert.ok(image.isWellFormed());
      assert.ok(value.startsWith(unescape(image).replace(/…$/, '')));
    }
  }
});

format('every number is a whole one', () => {
  assert.is(
    formatLogLine('x', { ms: 101.80136700000003, a: -0.2, b: 1e15 + 0.5 }),
    'x ms=102 a=0 b=1000000000000001',
  );
  assert.is(formatLogLine('x', { a: Number.NaN, b: Infinity }), 'x a=- b=-');
  forAll(200, (random) => {
    const value = (random.integer(-1_000_000, 1_000_000) * Math.PI) / random.integer(1, 1000);
    assert.match(formatLogLine('x', { value }), /^x value=-?\d+$/);
  });
});

format('a line has a limit, however many keys', () => {
  const fields = Object.fromEntries(Array.from({ length: 20 }, (_, index) => [`k${index}`, 'b'.repeat(400)]));
  const line = formatLogLine('x', fields);
  assert.is(line.length, 2048);
  assert.ok(line.endsWith('…'));
});

format('no value can end the line, forge a key or move the cursor', () => {
  forAll(1000, (random) => {
    const image = random.hostileText(random.pick([20, 100, 700]));
    const reason = random.mutation('Cannot read "x": result=created');
    const line = formatLogLine('prolog', { job: 7, image, result: 'failed', reason });
    assert.ok(line.isWellFormed());
    assert.not.match(line, /[\p{Cc}\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/u);
    const { word, fields, rest } = parseLine(line);
    assert.is(word, 'prolog');
    assert.is(rest, '');
    assert.equal(
      fields.map(([key]) => key),
      ['job', 'image', 'result', 'reason'],
    );
    assert.equal(fields[2], ['result', 'failed']);
    const shown = unescape(fields[1]?.[1] ?? '');
    assert.ok(shown === image || (shown.endsWith('…') && image.startsWith(shown.slice(0, -1))));
  });
});

format.run();

const escape = suite('escapeControls()');

escape('shows what cannot be seen', () => {
  assert.is(escapeControls('a\nb\tc\rd'), 'a\\nb\\tc\\rd');
  assert.is(
    escapeControls('\u0000\u0007\u001b[2J\u007f\u0085\u009b'),
    '\\u0000\\u0007\\u001b[2J\\u007f\\u0085\\u009b',
  );
  assert.is(escapeControls('say "\\n"'), 'say \\"\\\\n\\"');
});

escape('shows the marks that reorder text, and those that end a line', () => {
  for (const code of [0x061c, 0x200e, 0x200f, 0x2028, 0x2029, 0x202a, 0x202e, 0x2066, 0x2069]) {
    assert.is(escapeControls(String.fromCharCode(code)), `\\u${code.toString(16).padStart(4, '0')}`);
  }
});

escape('shows half a character, and leaves whole ones be', () => {
  assert.is(escapeControls('\ud83d'), '\\ud83d');
  assert.is(escapeControls('\ude00'), '\\ude00');
  assert.is(escapeControls('\ude00\ud83d'), '\\ude00\\ud83d');
  assert.is(escapeControls('\ud83d\ud83d\ude00\ude00'), '\\ud83d\u{1f600}\\ude00');
  assert.is(escapeControls('bücher/東京/\u{1f600}'), 'bücher/東京/\u{1f600}');
});

escape('loses nothing', () => {
  forAll(1000, (random) => {
    const text = random.hostileText(60);
    assert.is(unescape(escapeControls(text)), text);
  });
});

escape.run();
