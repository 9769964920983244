/**
 * docs/reliability.md cannot become untrue: its rows name tests that exist, and no test of test/trust/ is
 * without a row.
 *
 * The last cell of a row is `path/to/file.test.ts` and after a colon the test's name as the source has it,
 * `${…}` included.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import ts from 'typescript';
import { projectRoot } from '../build/source-files.ts';
import { assert, suite } from './helpers/suite.ts';

const trustDirectory = 'test/trust';
const textOf = (path: string): string => readFileSync(join(projectRoot, path), 'utf8');

interface Reference {
  readonly file: string;
  readonly name: string;
}

/** The tests that rows of a table name. @throws {Error} for a row whose last cell names none */
function readReferences(text: string): Reference[] {
  const rows = text
    .split('\n')
    .map((line, index) => ({ line, number: index + 1 }))
    .filter(({ line }) => line.startsWith('|'));
  const heads = new Set(rows.filter(({ line }) => /^\|[-|]+\|$/.test(line)).map(({ number }) => number));
  return rows
    .filter(({ number }) => !heads.has(number) && !heads.has(number + 1))
    .map(({ line, number }) => {
      const cell = /\|([^|]*)\|$/.exec(line.replaceAll('\\|', '\u0000'))?.[1] ?? '';
      const match = /^ `(test\/\S+\.test\.ts)`: (.+) $/.exec(cell.replaceAll('\u0000', '|'));
      if (match === null)
        throw new Error(`docs/reliability.md:${number}: its last cell names no test: ${cell}`);
      return { file: match[1] ?? '', name: match[2] ?? '' };
    });
}

/**
 * The names a file gives its tests: the first argument, a text, of calls whose last argument is a function.
 */
function readTestNames(path: string, text = textOf(path)): string[] {
  const source = ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true);
  const names: string[] = [];
  function visit(node: ts.Node): void {
    if (ts.isCallExpression(node) && isTestCall(node)) {
      const name = node.arguments.slice(0, -1).find(isText);
      if (name !== undefined)
        names.push(
          name
            .getText(source)
            .slice(1, -1)
            .replace(/\\(['"`])/g, '$1'),
        );
    }
    ts.forEachChild(node, visit);
  }
  visit(source);
  return names;
}

const isText = (node: ts.Node): boolean => ts.isStringLiteralLike(node) || ts.isTemplateExpression(node);

/** `name('…', () => …)` and `name.unless(reason, '…', () => …)` of a suite declared in the file. */
function isTestCall({ expression, arguments: values }: ts.CallExpression): boolean {
  const last = values.at(-1);
  if (last === undefined || !(ts.isArrowFunction(last) || ts.isFunctionExpression(last))) return false;
  const callee = ts.isPropertyAccessExpression(expression)
    ? expression.name.text === 'unless' && expression.expression
    : expression;
  if (callee === false || !ts.isIdentifier(callee)) return false;
  const declarations = callee.getSourceFile().statements.filter(ts.isVariableStatement);
  return declarations
    .flatMap(({ declarationList }) => [...declarationList.declarations])
    .some(
      ({ name, initializer }) =>
        ts.isIdentifier(name) &&
        name.text === callee.text &&
        // Some wrap it: `const child = inOpenRoot(suite('…'))`.
        /\bsuite[(<]/.test(initializer?.getText() ?? ''),
    );
}

const test = suite('docs/reliability.md');
const references = readReferences(textOf('docs/reliability.md'));

test('every row names a test that exists', () => {
  const known = new Map<string, string[]>();
  const unknown = references.filter(({ file, name }) => {
    const names = known.get(file) ?? readTestNames(file);
    known.set(file, names);
    return !names.includes(name);
  });
  assert.equal(unknown, []);
});

test('every test of test/trust has a row', () => {
  const files = readdirSync(join(projectRoot, trustDirectory))
    .filter((name) => name.endsWith('.test.ts'))
    .map((name) => `${trustDirectory}/${name}`);
  const missing = files.flatMap((file) =>
    readTestNames(file)
      .filter((name) => !references.some((row) => row.file === file && row.name === name))
      .map((name) => `${file}: ${name}`),
  );
  assert.equal(missing, []);
});

test('rows and tests are read', () => {
  const head = '| a | test |\n|---|---|\n';
  assert.equal(readReferences(`${head}| x \\| y | \`test/a.test.ts\`: an \\| entry |\n`), [
    { file: 'test/a.test.ts', name: 'an | entry' },
  ]);
  assert.throws(() => readReferences(`${head}| x | y |\n`), Error, /names no test/);
  const source =
    "const t = suite('s');\nt('it\\'s one', () => {});\nt.unless(why, `two ${x}`, async () => {});\nother('three', () => {});\n";
  assert.equal(readTestNames('x.ts', source), ["it's one", 'two ${x}']);
});

test.run();
