/**
 * The shape of the source tree, as DESIGN.md draws it: imports point down only, and lib/core is pure.
 *
 *   main → prolog | epilog | enroot | admin → lib/store → lib/system → lib/core
 *
 * Each rule is also shown a file that breaks it: a rule that finds nothing proves nothing by itself.
 */
import { readFileSync } from 'node:fs';
import { isBuiltin } from 'node:module';
import { dirname, join, posix } from 'node:path';
import ts from 'typescript';
import { projectRoot, sourceFiles } from '../build/source-files.ts';
import { assert, suite } from './helpers/suite.ts';

/** From the bottom up; a module may import from its own layer and those below. Of one row, none imports another. */
const LAYERS = [
  ['lib/core/'],
  ['lib/system/'],
  ['lib/store/'],
  ['prolog/', 'epilog/', 'enroot/', 'admin/'],
  ['main.ts'],
];
/** Its version is the programs' version. */
const MANIFEST = 'package.json';
/** npm packages that run on a node, and where. */
const PACKAGES: Readonly<Record<string, string>> = { 'fs-ext': 'lib/system/', yargs: 'admin/' };
/** Builtins that only compute. */
const PURE_BUILTINS = ['node:buffer', 'node:crypto', 'node:path', 'node:path/posix', 'node:util'];
/** Globals that reach the machine or the clock. */
const IMPURE_GLOBALS = [
  'clearInterval',
  'clearTimeout',
  'console',
  'fetch',
  'performance',
  'process',
  'queueMicrotask',
  'setImmediate',
  'setInterval',
  'setTimeout',
];

interface Source {
  path: string;
  text: string;
}

interface Place {
  layer: number;
  part: string;
}

function placeOf(path: string): Place | undefined {
  for (const [layer, parts] of LAYERS.entries()) {
    const part = parts.find((start) => path.startsWith(start));
    if (part !== undefined) return { layer, part };
  }
  return undefined;
}

function importsOf({ text }: Source): string[] {
  return ts.preProcessFile(text, true, true).importedFiles.map(({ fileName }) => fileName);
}

function packageOf(specifier: string): string {
  return specifier
    .split('/')
    .slice(0, specifier.startsWith('@') ? 2 : 1)
    .join('/');
}

/** Why a module may not import what it imports; empty: it may. */
function layerFaults(source: Source): string[] {
  const own = placeOf(source.path);
  if (!own) return [];
  const faults: string[] = [];
  for (const specifier of importsOf(source)) {
    if (isBuiltin(specifier)) {
      if (!specifier.startsWith('node:')) faults.push(`${source.path} imports ${specifier} without "node:"`);
      continue;
    }
    if (!specifier.startsWith('.')) {
      const home = PACKAGES[packageOf(specifier)];
      if (home === undefined || !source.path.startsWith(home))
        faults.push(`${source.path} imports ${specifier}`);
      continue;
    }
    const target = posix.join(dirname(source.path), specifier);
    const other = placeOf(target);
    const allowed = target === MANIFEST || (other && (other.part === own.part || other.layer < own.layer));
    if (!allowed) faults.push(`${source.path} imports ${target}`);
  }
  return faults;
}

/** What makes a module of lib/core depend on more than its arguments. */
function purityFaults(source: Source): string[] {
  const faults: string[] = [];
  for (const specifier of importsOf(source)) {
    if (isBuiltin(specifier) && !PURE_BUILTINS.includes(specifier)) {
      faults.push(`${source.path} imports ${specifier}`);
    }
  }
  const file = ts.createSourceFile(source.path, source.text, ts.ScriptTarget.Latest, true);
  const visit = (node: ts.Node): void => {
    if (ts.isIdentifier(node) && isFreeName(node)) {
      if (IMPURE_GLOBALS.includes(node.text)) faults.push(`${source.path} uses ${node.text}`);
      if (node.text === 'Date' && readsClock(node)) faults.push(`${source.path} reads the clock`);
    }
    if (ts.isPropertyAccessExpression(node) && node.getText() === 'Math.random') {
      faults.push(`${source.path} uses Math.random`);
    }
    ts.forEachChild(node, visit);
  };
  visit(file);
  return faults;
}

/** Not a property, key, type or declaration of that name. */
function isFreeName(node: ts.Identifier): boolean {
  const { parent } = node;
  if (ts.isPropertyAccessExpression(parent)) return parent.expression === node;
  return !(
    ts.isPropertyAssignment(parent) ||
    ts.isPropertySignature(parent) ||
    ts.isMethodSignature(parent) ||
    ts.isMethodDeclaration(parent) ||
    ts.isTypeReferenceNode(parent) ||
    ts.isQualifiedName(parent)
  );
}

/** `Date.now()`, `Date()` and `new Date()`; `new Date(ms)` only converts. */
function readsClock({ parent }: ts.Identifier): boolean {
  if (ts.isPropertyAccessExpression(parent)) return parent.name.text === 'now';
  if (ts.isNewExpression(parent)) return (parent.arguments?.length ?? 0) === 0;
  return ts.isCallExpression(parent);
}

const sources = sourceFiles()
  .filter((path) => path.endsWith('.ts'))
  .map((path): Source => ({ path, text: readFileSync(join(projectRoot, path), 'utf8') }));

const layers = suite('layers');

layers('imports point down only', () => {
  assert.equal(sources.flatMap(layerFaults), []);
});

layers('every module belongs to a layer, or to what is not shipped', () => {
  const notShipped = ['bench/', 'build/', 'demo/', 'test/'];
  const homeless = sources.filter(
    ({ path }) => !placeOf(path) && !notShipped.some((top) => path.startsWith(top)),
  );
  assert.equal(
    homeless.map(({ path }) => path),
    [],
  );
});

for (const [path, text] of [
  ['lib/core/job.ts', "import { tryFlock } from '../system/flock.ts';"],
  ['lib/system/flock.ts', "import type { Lease } from '../store/lease.ts';"],
  ['lib/store/lease.ts', "const { runProlog } = await import('../../prolog/prolog.ts');"],
  ['prolog/prolog.ts', "export { runEpilog } from '../epilog/epilog.ts';"],
  ['epilog/epilog.ts', "import yargs from 'yargs';"],
  ['lib/store/entry.ts', "import { flock } from 'fs-ext';"],
  ['admin/cli.ts', "import { build } from '../build/build.ts';"],
  ['admin/cli.ts', "import { sep } from 'path';"],
] as const) {
  layers(`refuses in ${path}: ${text}`, () => {
    assert.is(layerFaults({ path, text }).length, 1);
  });
}

layers.run();

const purity = suite('lib/core is pure');

purity('imports no facility of the operating system, and uses no clock, environment or chance', () => {
  assert.equal(sources.filter(({ path }) => path.startsWith('lib/core/')).flatMap(purityFaults), []);
});

for (const text of [
  "import { readFileSync } from 'node:fs';",
  'export const home = process.env.HOME;',
  'export const nowMs = () => Date.now();',
  'export const now = () => new Date();',
  'export const chance = Math.random();',
  'setTimeout(() => {}, 1);',
]) {
  purity(`refuses: ${text}`, () => {
    assert.is(purityFaults({ path: 'lib/core/x.ts', text }).length, 1);
  });
}

for (const text of [
  "import { createHash } from 'node:crypto';",
  'export const iso = (ms: number) => new Date(ms).toISOString();',
  'export interface Facts { process: string; performance: number }',
  'export const holder = { process: 1 };',
]) {
  purity(`accepts: ${text}`, () => {
    assert.equal(purityFaults({ path: 'lib/core/x.ts', text }), []);
  });
}

purity.run();
