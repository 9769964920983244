/** Rules that no tool we use knows: the source tree tests itself. */
import { readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { projectRoot, shellScripts, sourceFiles } from '../build/source-files.ts';
import { assert, suite } from './helpers/suite.ts';

const files = sourceFiles();
const textOf = (path: string): string => readFileSync(join(projectRoot, path), 'utf8');
const isShipped = (path: string): boolean =>
  /^(?:lib|prolog|epilog|admin|taskprolog|enroot)\/|^main\.ts$/.test(path);

/** Lines of `path` that match, as file:line. */
function linesMatching(path: string, pattern: RegExp, text = textOf(path)): string[] {
  return text
    .split('\n')
    .flatMap((line, index) => (pattern.test(line) ? [`${path}:${index + 1}: ${line.trim()}`] : []));
}

// In pieces, or this file would break its own rule.
const UNFINISHED = new RegExp(
  ['\\bTO' + 'DO\\b', '\\bFIX' + 'ME\\b', '\\bX' + 'XX\\b', 'not impl' + 'emented'].join('|'),
);

/** Suites declared at the start of a line, by variable. */
function suitesWithoutRun(text: string): string[] {
  const declared = [...text.matchAll(/^const (\w+) = suite[(<]/gm)].map(([, name = '']) => name);
  return declared.filter((name) => !new RegExp(`^${name}\\.run\\(\\);`, 'm').test(text));
}

function startsWithDocComment(text: string): boolean {
  return /^(?:#![^\n]*\n)?\/\*\*/.test(text);
}

function onlyCalls(text: string): boolean {
  return /^\s*\w+\.only\(/m.test(text);
}

/** Addresses of a registry: npm writes them as "resolved", and nothing else in a lock file is a download. */
function resolvedAddresses(lock: { packages?: Record<string, { resolved?: string }> }): string[] {
  return Object.values(lock.packages ?? {}).flatMap(({ resolved }) =>
    resolved === undefined ? [] : [resolved],
  );
}

/** Named by those who read them: man(1), systemd, package managers, npm, CI, and people, who read texts. */
const NAMED_BY_OTHERS = /^(?:man|packaging|systemd)\/|^\.ci\/run$|^package\.json$|\.md$/;

/**
 * Stems that several files have. A test is called by what it tests, and a header stands beside its source.
 */
function sharedStems(paths: readonly string[]): string[] {
  const named = paths.filter((path) => !NAMED_BY_OTHERS.test(path) && !/\.test\.ts$|\.h$/.test(path));
  const byStem = Map.groupBy(named, (path) => basename(path).replace(/(?<=.)\.[^.]*$/, ''));
  return [...byStem.values()].filter((those) => those.length > 1).map((those) => those.join(' '));
}

const WIDEST = 110;

/** The line, without marks before its text, has a blank outside `code` where it could be broken. */
const isBreakable = (line: string): boolean =>
  /\S\s+\S/.test(line.replace(/^[\s#*/>-]*(?:\d+\.)?/, '').replaceAll(/`[^`]*`/g, 'code'));

/** Lines wider than WIDEST that `isMeant`, as file:line. A tab is as wide as eight letters. */
function wideLines(path: string, lines: readonly string[], isMeant: (line: string) => boolean): string[] {
  return lines.flatMap((line, index) => {
    const isWide = line.replaceAll('\t', ' '.repeat(8)).length > WIDEST;
    return isWide && isMeant(line) && isBreakable(line) ? [`${path}:${index + 1}: ${line.trim()}`] : [];
  });
}

/** Of a text; not rows of tables, code, headings and definitions of links. */
function wideProse(path: string, text = textOf(path)): string[] {
  const withoutCode = text.replaceAll(/^( *)```[^]*?^\1```/gm, (code) => code.replaceAll(/[^\n]/g, ''));
  return wideLines(path, withoutCode.split('\n'), (line) => !/^(?:\||#|\s*\[[^\]]+\]: )/.test(line));
}

/** Of a program; not those for linters, which read one line. */
function wideComments(path: string, comment: RegExp, text = textOf(path)): string[] {
  const isMeant = (line: string): boolean =>
    comment.test(line) && !/eslint-disable|shellcheck|^#!/.test(line);
  return wideLines(path, text.split('\n'), isMeant);
}

const SLASH_COMMENT = /^\s*(?:\/\/|\/?\*)|[\w;,{}()[\]]\s+\/[/*]\s/;
const HASH_COMMENT = /^\s*#\s/;

const tidy = suite('tidy');

tidy('prose has lines of at most 110 characters', () => {
  const texts = files.filter((path) => /\.md$|^man\//.test(path));
  assert.equal(
    texts.flatMap((path) => wideProse(path)),
    [],
  );
  const wide = `one ${'x'.repeat(WIDEST)}`;
  const kept = ['```', wide, '```', `| ${wide} |`, `[a]: ${wide}`, `- \`${wide}\``, 'x'.repeat(WIDEST + 1)];
  assert.equal(wideProse('a.md', [...kept, wide].join('\n')), [`a.md:${kept.length + 1}: ${wide}`]);
});

tidy('comments have lines of at most 110 characters', () => {
  const scripts = new Set(shellScripts(files));
  const wide = files.flatMap((path) => {
    if (/\.(?:ts|js|cjs|c|h)$/.test(path)) return wideComments(path, SLASH_COMMENT);
    return scripts.has(path) ? wideComments(path, HASH_COMMENT) : [];
  });
  assert.equal(wide, []);
  const text = `one ${'x'.repeat(WIDEST)}`;
  for (const line of [`// ${text}`, ` * ${text}`, `\tint a; /* ${text} */`])
    assert.is(wideComments('a.c', SLASH_COMMENT, line).length, 1, line);
  assert.is(wideComments('a.sh', HASH_COMMENT, `  # ${text}`).length, 1);
  assert.is(wideComments('a.sh', HASH_COMMENT, `# shellcheck ${text}`).length, 0);
  assert.is(wideComments('a.ts', SLASH_COMMENT, `print('${text}');`).length, 0);
  assert.is(wideComments('a.c', SLASH_COMMENT, `\t/* ${'x '.repeat(50)}*/`).length, 1);
});

tidy('no two files have one stem', () => {
  assert.equal(sharedStems(files), []);
  assert.equal(sharedStems(['lib/a.ts', 'test/lib/a.test.ts', 'build/a', 'c.h', 'c.c']), [
    'lib/a.ts build/a',
  ]);
});

tidy('nothing is marked as unfinished', () => {
  assert.equal(
    files.flatMap((path) => linesMatching(path, UNFINISHED)),
    [],
  );
  assert.is(linesMatching('x.ts', UNFINISHED, `// ${'TO' + 'DO'}: later`).length, 1);
});

tidy('every module says what it is for', () => {
  const silent = files.filter((path) => path.endsWith('.ts') && !startsWithDocComment(textOf(path)));
  assert.equal(
    silent.filter((path) => isShipped(path) || path.startsWith('build/')),
    [],
  );
  assert.not(startsWithDocComment("import { join } from 'node:path';\n/** Later. */"));
});

tidy('every shell script says what it is for', () => {
  const silent = shellScripts(files).filter((path) => !/^#!.*\n#/.test(textOf(path)));
  assert.equal(silent, []);
});

tidy('every suite of a test file is run', () => {
  const tests = files.filter((path) => path.endsWith('.test.ts'));
  assert.equal(
    tests.flatMap((path) => suitesWithoutRun(textOf(path)).map((name) => `${path}: ${name}`)),
    [],
  );
  assert.equal(suitesWithoutRun("const a = suite('a');\nconst b = suite('b');\na.run();\n"), ['b']);
});

tidy('no test file leaves the others of its suite out', () => {
  const tests = files.filter((path) => path.endsWith('.test.ts'));
  assert.equal(
    tests.filter((path) => onlyCalls(textOf(path))),
    [],
  );
  assert.ok(onlyCalls("test.only('x', () => {});"));
});

tidy('tests reach uvu through test/helpers, where its gaps are closed', () => {
  const direct = /from 'uvu(?:\/\w+)?'/;
  const others = files.filter((path) => path.endsWith('.ts') && !path.startsWith('test/helpers/'));
  assert.equal(
    others.filter((path) => path !== 'test/tidy.test.ts').flatMap((path) => linesMatching(path, direct)),
    [],
  );
  assert.is(linesMatching('x.ts', direct, "import { suite } from 'uvu';").length, 1);
});

tidy('no file holds a path of the machine it was written on', () => {
  const pattern = new RegExp(`${projectRoot.replaceAll(/[^\w/]/g, '\\$&')}(?![\\w-])`);
  // A checkout in / or /app would forbid half of all paths.
  const telling = projectRoot.split('/').length > 2;
  assert.equal(telling ? files.flatMap((path) => linesMatching(path, pattern)) : [], []);
});

tidy('the lock file names no registry', () => {
  assert.equal(resolvedAddresses(JSON.parse(textOf('package-lock.json')) as object), []);
  assert.is(
    resolvedAddresses({ packages: { 'node_modules/a': { resolved: 'https://registry.example/a.tgz' } } })
      .length,
    1,
  );
});

tidy('the license is the same everywhere', () => {
  const { license } = JSON.parse(textOf('package.json')) as { license?: string };
  assert.is(license, 'Apache-2.0');
  assert.match(textOf('LICENSE'), /^\s+Apache License\n\s+Version 2\.0, January 2004\n/);
  assert.match(textOf('packaging/copyright'), /^License: Apache-2\.0$/m);
  assert.match(textOf('build/package.ts'), /'License: Apache-2\.0'/);
});

tidy('packages are pinned to one exact version', () => {
  const manifest = JSON.parse(textOf('package.json')) as Record<string, Record<string, string> | undefined>;
  const ranges = ['dependencies', 'devDependencies', 'optionalDependencies']
    .flatMap((kind) => Object.entries(manifest[kind] ?? {}))
    .filter(([, version]) => !/^\d+\.\d+\.\d+$/.test(version));
  assert.equal(ranges, []);
});

tidy('the runtime is the same version on every architecture', () => {
  const { optionalDependencies = {} } = JSON.parse(textOf('package.json')) as {
    optionalDependencies?: Record<string, string>;
  };
  const versions = Object.entries(optionalDependencies).filter(([name]) => name.startsWith('node-linux-'));
  assert.is(versions.length, 2);
  assert.is(new Set(versions.map(([, version]) => version)).size, 1);
  assert.is(process.version, `v${versions[0]?.[1] ?? ''}`);
});

tidy.run();
