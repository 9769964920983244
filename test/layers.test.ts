/**
 * The shape of the source tree, as DESIGN.md draws it: imports point down only and never in a circle, each
 * export is used, and lib/core is pure.
 *
 *   main → prolog | epilog | enroot | admin → lib/store → lib/image → lib/system → lib/core
 *
 * One door: what lies below a user's directory is reached through lib/system/beneath.ts alone. A module that
 * reaches anything by its path says here what; one that can make paths below a user's directory as well says
 * why it does not use both together.
 *
 * Each rule is also shown a file that breaks it: a rule that finds nothing proves nothing by itself.
 */
import { readFileSync } from 'node:fs';
import { isBuiltin } from 'node:module';
import { dirname, join, posix } from 'node:path';
import ts from 'typescript';
import { projectRoot, sourceFiles } from '../build/source-files.ts';
import { assert, suite } from './helpers/suite.ts';

/**
 * From the bottom up; a module may import from its own layer and those below. Of one row, none imports
 * another.
 */
const LAYERS = [
  ['lib/core/'],
  ['lib/system/'],
  ['lib/image/'],
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

const parsed = new WeakMap<Source, ts.SourceFile>();

function parse(source: Source): ts.SourceFile {
  const file =
    parsed.get(source) ?? ts.createSourceFile(source.path, source.text, ts.ScriptTarget.Latest, true);
  parsed.set(source, file);
  return file;
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
  visit(parse(source));
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

/** Modules of lib/ that nothing but the admin command loads, or has types of. */
function onlyAdmins(all: readonly Source[]): string[] {
  const importsFrom = new Map(
    all.map((source) => [source.path, importsOf(source).map((one) => posix.join(dirname(source.path), one))]),
  );
  const reached = new Set<string>();
  const reach = (path: string): void => {
    if (reached.has(path) || path.startsWith('admin/')) return;
    reached.add(path);
    for (const next of importsFrom.get(path) ?? []) reach(next);
  };
  reach('main.ts');
  return all.map(({ path }) => path).filter((path) => path.startsWith('lib/') && !reached.has(path));
}

layers('what only the admin command uses is beside it', () => {
  assert.equal(onlyAdmins(sources), []);
  assert.equal(
    onlyAdmins([
      { path: 'main.ts', text: "await import('./epilog/epilog.ts'); await import('./admin/cli.ts');" },
      { path: 'epilog/epilog.ts', text: "import { a } from '../lib/a.ts';" },
      { path: 'lib/a.ts', text: "import type { B } from './b.ts';" },
      { path: 'lib/b.ts', text: '' },
      { path: 'admin/cli.ts', text: "import { c } from '../lib/c.ts';" },
      { path: 'lib/c.ts', text: '' },
    ]),
    ['lib/c.ts'],
  );
});

/** Programs for developers: what they share with tests, or with each other, is the tests'. */
const OWN_PROGRAMS = ['bench/', 'demo/'];

function importsOfPrograms(all: readonly Source[]): string[] {
  return all.flatMap((source) =>
    importedNames(source).flatMap(({ from }) => {
      const program = OWN_PROGRAMS.find((top) => from.startsWith(top));
      return program === undefined || source.path.startsWith(program)
        ? []
        : [`${source.path} imports ${from}`];
    }),
  );
}

layers('nothing imports from the bench or the demo', () => {
  assert.equal(importsOfPrograms(sources), []);
  assert.equal(
    importsOfPrograms([
      { path: 'demo/a.ts', text: "import { b } from '../bench/b.ts';" },
      { path: 'bench/c.ts', text: "import { b } from './b.ts';" },
    ]),
    ['demo/a.ts imports bench/b.ts'],
  );
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
  ['lib/image/create.ts', "import type { HeldEntry } from '../store/held-entry.ts';"],
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

/** Of the admin command, as pure as lib/core. */
const PURE_OF_ADMIN = [
  ...['counters', 'listing', 'prometheus'].map((name) => `admin/${name}.ts`),
  ...['findings', 'overlay-hindrance', 'shell-deletions', 'tmpfiles'].map(
    (name) => `admin/checks/${name}.ts`,
  ),
];

purity('imports no facility of the operating system, and uses no clock, environment or chance', () => {
  const pure = sources.filter(({ path }) => path.startsWith('lib/core/') || PURE_OF_ADMIN.includes(path));
  assert.ok(PURE_OF_ADMIN.every((wanted) => pure.some(({ path }) => path === wanted)));
  assert.equal(pure.flatMap(purityFaults), []);
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

/** Of node:fs, what takes no path: a descriptor, or nothing. */
const BY_DESCRIPTOR = [
  ...['closeSync', 'constants', 'fchmodSync', 'fchownSync', 'fstatSync', 'ftruncateSync', 'futimesSync'],
  ...['readSync', 'writeSync'],
];
/** Ours, by module, that take a path and go wherever it leads. */
const BY_PATH: Readonly<Record<string, readonly string[]>> = {
  'lib/system/files.ts': ['leadsTo', 'openRegularFile', 'readSmallFile'],
  'lib/system/aside.ts': ['sweepAsides', 'writeFileAtomically'],
  'lib/system/directory.ts': ['openDirectory', 'withDirectory'],
  'lib/system/unnamed-file.ts': ['openUnnamedFile'],
};
/** Of lib/core/layout.ts, what makes a path or a name below a user's directory. */
const USERS_PATHS = [
  ...['digestPath', 'entryPath', 'homelessPath', 'lockPath', 'stubMarkPath', 'userPath'],
  ...['createLockName', 'digestsName', 'directoryName', 'imagesName', 'importerNoteName', 'lockFileName'],
  ...['partialName', 'seenName', 'stepEventsName', 'unsharedName'],
];

/** Who reaches what by its path; none of it is below a user's directory of the base. */
const REACHED_BY_PATH: Readonly<Record<string, string>> = {
  'admin/checks/check-base.ts': 'the base, /etc/fstab and the disk',
  'admin/checks/check-cleaners.ts': "the system's scripts and configuration",
  'admin/checks/check-config.ts': 'our configuration',
  'admin/checks/check-enroot-files.ts': 'the configuration of enroot',
  'admin/checks/check-leftovers.ts': "our executable, and the trash: root's",
  'admin/checks/check-mounted.ts': 'trusted_images, /proc and /dev',
  'admin/checks/check-namespace.ts': 'the configuration of Slurm, and /proc',
  'admin/checks/check-node-facts.ts': 'the runtime directory',
  'admin/checks/check-slurm.ts': 'the configuration of Slurm',
  'admin/checks/check-wrapper.ts': "drop-ins of slurmd's unit",
  'admin/checks/context.ts': "the system's configuration",
  'admin/checks/identify.ts': 'installed programs',
  'admin/counters-file.ts': 'the state directory',
  'admin/gc.ts': "the trash: root's",
  'admin/metrics.ts': 'the file that the admin names',
  'admin/room-serve.ts': "the runtime directory, and in the base the user directory itself: root's name",
  'enroot/acquire.ts': 'runs as the user, without a right of root',
  'epilog/epilog.ts': "a file that the Prolog fetched, in pyxis' runtime directory; with the user's ids",
  'lib/store/base-directory.ts': 'the base, its trash and /etc/fstab',
  'lib/store/base-fault.ts': 'the base',
  'lib/store/collector.ts': "the collector's lock in the base, and the runtime directory",
  'lib/store/data-path.ts':
    'the configuration of enroot, and the data path that it names: type and mode only',
  'lib/store/entry-sizes.ts': 'the runtime directory',
  'lib/store/entry.ts': 'writeFileSync() to a descriptor',
  'lib/store/event-files.ts': 'the state directory',
  'lib/image/hash-image.ts': 'runs as the user, without a right of root',
  'lib/store/hidden-base.ts': 'the configuration of Slurm',
  'lib/image/importer.ts': "the importer, and pyxis' runtime directory: root's",
  'lib/store/job-files.ts': 'the runtime directory',
  'lib/store/lease.ts': 'the runtime directory, sleep(1), and files of our own process',
  'lib/image/merge-layers.ts': 'runs as the user, without a right of root',
  'lib/store/mounted-eviction.ts': "mounted entries: root's",
  'lib/store/mounted-store.ts': "mounted entries: root's",
  'lib/store/node-facts-file.ts': 'the runtime directory',
  'lib/store/own-entries.ts': 'runs as the user, without a right of root',
  'lib/store/pins.ts': 'the state directory',
  'lib/store/pyxis-stamp.ts': 'the configuration of Slurm',
  'lib/store/pyxis.ts': 'the configuration of Slurm',
  'lib/store/ready-image.ts': "mounted entries: root's; and an open file that is trusted",
  'lib/image/registry-memory.ts': 'the runtime directory',
  'lib/store/room-agent.ts': 'the runtime directory',
  'lib/store/room-ask.ts': 'the runtime directory',
  'lib/store/room-presence.ts': 'the runtime directory',
  'lib/system/runtime-directory.ts': 'the runtime directory',
  'lib/store/sweep.ts': 'the base and the runtime directory',
  'lib/image/unpack.ts': '/proc',
  'lib/store/user-directory.ts': "the user directory itself: root's name",
  'lib/system/aside.ts': 'what its callers reach',
  'lib/system/background.ts': 'the runtime directory',
  'lib/system/beneath.ts': 'the door: one name in an open directory',
  'lib/system/boot.ts': '/proc',
  'lib/system/confined.ts': '/proc',
  'lib/system/directory.ts': 'what its callers reach',
  'lib/system/disk-usage.ts': 'the base',
  'lib/system/files.ts': 'what its callers reach',
  'lib/system/inherited.ts': '/proc',
  'lib/system/job-watch.ts': "slurmd's spool directory",
  'lib/system/mounts.ts': '/proc',
  'lib/system/native-addon.ts': 'a nameless file',
  'lib/system/overlay.ts': 'a directory of nobody in the runtime directory, to try an overlay',
  'lib/system/path-safety.ts': 'directories whose owner and mode are looked at',
  'lib/system/processes.ts': '/proc',
  'lib/system/programs.ts': 'installed programs',
  'lib/system/settings-file.ts': 'our configuration',
  'lib/system/slurmd.ts': '/proc',
  'lib/store/views.ts': "the runtime directory, and mounted entries: root's",
  'lib/system/trusted-file.ts': 'a way of which each step is looked at, open',
  'lib/system/unnamed-file.ts': 'a nameless file',
};
/** Those of them that can make a path below a user's directory as well, and what for. */
const USERS_PATHS_BESIDE: Readonly<Record<string, string>> = {
  'admin/checks/check-cleaners.ts': 'compared with what scripts delete',
  'admin/checks/check-leftovers.ts': 'by the door',
  'admin/room-serve.ts': 'the name of the user directory in messages',
  'enroot/acquire.ts': 'runs as the user',
  'epilog/epilog.ts': 'handed to held-entry.ts',
  'lib/store/entry-sizes.ts': 'handed to find(1) that runs as the user',
  'lib/store/entry.ts': 'by the door',
  'lib/store/event-files.ts': 'by the door',
  'lib/image/importer.ts': 'by the door',
  'lib/store/mounted-eviction.ts': 'the lock file of a mounted entry',
  'lib/store/mounted-store.ts': 'the locks of mounted entries',
  'lib/store/own-entries.ts': 'runs as the user',
  'lib/store/ready-image.ts': 'the lock file of a mounted entry',
  'lib/store/sweep.ts': 'by the door',
  'lib/store/views.ts': 'the lock file of a mounted entry',
};

/** A name that a module imports; `*`: all that the other one exports. */
interface ImportedName {
  readonly from: string;
  readonly name: string;
  /** It does nothing at run time. */
  readonly isType: boolean;
}

function importedNames(source: Source): ImportedName[] {
  const found: ImportedName[] = [];
  const add = (specifier: ts.Node | undefined, name: string, isType: boolean): void => {
    if (specifier === undefined || !ts.isStringLiteralLike(specifier)) return;
    const { text } = specifier;
    const from = text.startsWith('.') ? posix.join(dirname(source.path), text) : text;
    found.push({ from, name, isType });
  };
  const addStatement = (node: ts.ImportDeclaration | ts.ExportDeclaration): void => {
    const clause = ts.isImportDeclaration(node) ? node.importClause : node;
    const isType =
      clause !== undefined &&
      (ts.isImportClause(clause) ? clause.phaseModifier === ts.SyntaxKind.TypeKeyword : clause.isTypeOnly);
    const names = ts.isImportDeclaration(node) ? node.importClause?.namedBindings : node.exportClause;
    const isList = names !== undefined && (ts.isNamedImports(names) || ts.isNamedExports(names));
    if (!isList || (ts.isImportDeclaration(node) && node.importClause?.name !== undefined))
      add(node.moduleSpecifier, '*', isType);
    for (const element of isList ? names.elements : [])
      add(node.moduleSpecifier, (element.propertyName ?? element.name).text, isType || element.isTypeOnly);
  };
  const visit = (node: ts.Node): void => {
    if (ts.isImportDeclaration(node) || ts.isExportDeclaration(node)) addStatement(node);
    if (ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword)
      for (const name of namesTakenFrom(node)) add(node.arguments[0], name, false);
    ts.forEachChild(node, visit);
  };
  visit(parse(source));
  return found;
}

/** `const { a } = await import(…)`, `(await import(…)).a`; of other shapes: all. */
function namesTakenFrom(call: ts.CallExpression): string[] {
  let taker: ts.Node = call.parent;
  while (ts.isAwaitExpression(taker) || ts.isParenthesizedExpression(taker)) taker = taker.parent;
  if (ts.isPropertyAccessExpression(taker)) return [taker.name.text];
  if (!ts.isVariableDeclaration(taker) || !ts.isObjectBindingPattern(taker.name)) return ['*'];
  return taker.name.elements.map(({ propertyName, name }) => (propertyName ?? name).getText());
}

/** What a module imports by name, by the module it is from. Types do nothing. */
function namedImports(source: Source): Map<string, Set<string>> {
  const found = new Map<string, Set<string>>();
  for (const { from, name, isType } of importedNames(source))
    if (!isType) found.set(from, (found.get(from) ?? new Set()).add(name));
  return found;
}

/** @returns `by path` and `users' paths`: what a module can do */
function abilities(source: Source): { readonly byPath: boolean; readonly usersPaths: boolean } {
  const imports = namedImports(source);
  const has = (from: string, isMeant: (name: string) => boolean): boolean =>
    [...(imports.get(from) ?? [])].some((name) => name === '*' || isMeant(name));
  return {
    byPath:
      has('node:fs', (name) => !BY_DESCRIPTOR.includes(name)) ||
      imports.has('node:fs/promises') ||
      Object.entries(BY_PATH).some(([from, names]) => has(from, (name) => names.includes(name))),
    usersPaths: has('lib/core/layout.ts', (name) => USERS_PATHS.includes(name)),
  };
}

function doorFaults(source: Source): string[] {
  if (!placeOf(source.path)) return [];
  const { byPath, usersPaths } = abilities(source);
  if (!byPath) return [];
  return [
    ...(source.path in REACHED_BY_PATH ? [] : [`${source.path} reaches something by its path`]),
    ...(usersPaths && !(source.path in USERS_PATHS_BESIDE)
      ? [`${source.path} reaches something by its path, and has paths below users' directories`]
      : []),
  ];
}

const door = suite("the door to what lies below a user's directory");

door('no other module reaches it', () => {
  assert.equal(sources.flatMap(doorFaults), []);
});

door('no exception is listed that is none', () => {
  const needed = (isNeeded: (source: Source) => boolean): string[] =>
    sources.filter((source) => placeOf(source.path) && isNeeded(source)).map(({ path }) => path);
  assert.equal(
    Object.keys(REACHED_BY_PATH).toSorted(),
    needed((source) => abilities(source).byPath),
  );
  assert.equal(
    Object.keys(USERS_PATHS_BESIDE).toSorted(),
    needed((source) => abilities(source).byPath && abilities(source).usersPaths),
  );
});

for (const text of [
  "import { lstatSync } from 'node:fs';",
  "import { lstatSync as look } from 'node:fs';",
  "import { closeSync, type Stats, readdirSync } from 'node:fs';",
  "import * as fs from 'node:fs';",
  "import fs from 'node:fs';",
  "import { rm } from 'node:fs/promises';",
  "const { rmSync } = await import('node:fs');",
  "export { readFileSync } from 'node:fs';",
  "import { readSmallFile } from '../system/files.ts';",
  "import { withDirectory } from '../system/directory.ts';",
])
  door(`refuses in a module that is not listed: ${text}`, () => {
    assert.is(doorFaults({ path: 'lib/store/new.ts', text }).length, 1);
  });

door(
  "refuses a path below a user's directory beside it, in a module that is listed for something else",
  () => {
    const text =
      "import { readFileSync } from 'node:fs'; import { entryPath } from '../core/layout.ts'; readFileSync(entryPath('', 1, ''));";
    assert.is(doorFaults({ path: 'lib/store/pins.ts', text }).length, 1);
  },
);

for (const text of [
  "import { closeSync, fstatSync, type Stats } from 'node:fs';",
  "import type { Stats } from 'node:fs';",
  "import type { Directory } from '../system/directory.ts';",
  "import { readStart } from '../system/files.ts';",
  "import { entryPath } from '../core/layout.ts';",
])
  door(`accepts: ${text}`, () => {
    assert.equal(doorFaults({ path: 'lib/store/new.ts', text }), []);
  });

door.run();

/** Circles of imports, types included: `a → b → a`. */
function circles(all: readonly Source[]): string[] {
  const importsFrom = new Map(
    all.map((source) => [source.path, new Set(importedNames(source).map(({ from }) => from))]),
  );
  const found: string[] = [];
  const done = new Set<string>();
  const visit = (path: string, way: readonly string[]): void => {
    const start = way.indexOf(path);
    if (start >= 0) found.push([...way.slice(start), path].join(' → '));
    if (start >= 0 || done.has(path)) return;
    for (const next of importsFrom.get(path) ?? []) visit(next, [...way, path]);
    done.add(path);
  };
  for (const { path } of all) visit(path, []);
  return found;
}

function exportedNames(source: Source): string[] {
  return parse(source).statements.flatMap((node) => {
    if (ts.isExportDeclaration(node)) {
      const names = node.exportClause;
      if (names === undefined) return [];
      return ts.isNamedExports(names) ? names.elements.map(({ name }) => name.text) : [names.name.text];
    }
    const isExported =
      ts.canHaveModifiers(node) &&
      ts.getModifiers(node)?.some(({ kind }) => kind === ts.SyntaxKind.ExportKeyword);
    if (isExported !== true) return [];
    if (ts.isVariableStatement(node))
      return node.declarationList.declarations.map(({ name }) => name.getText());
    return 'name' in node ? [(node.name as ts.Identifier).text] : [];
  });
}

/** Exports that no other module imports. */
function unusedExports(all: readonly Source[]): string[] {
  const used = new Set(all.flatMap(importedNames).map(({ from, name }) => `${from}: ${name}`));
  return all.flatMap((source) =>
    exportedNames(source)
      .filter((name) => !used.has(`${source.path}: ${name}`) && !used.has(`${source.path}: *`))
      .map((name) => `${source.path}: ${name}`),
  );
}

const graph = suite('what modules have of each other');

graph('no module imports, by whatever way, a module that imports it', () => {
  assert.equal(circles(sources), []);
});

graph('each export is imported by another module', () => {
  assert.equal(unusedExports(sources), []);
});

graph('a circle is found, also one of types and of imports at run time', () => {
  const circle = [
    { path: 'lib/a.ts', text: "import { b } from './b.ts';" },
    { path: 'lib/b.ts', text: "import type { C } from './c.ts';" },
    { path: 'lib/c.ts', text: "const { a } = await import('./a.ts'); export { d } from './d.ts';" },
    { path: 'lib/d.ts', text: '' },
  ];
  assert.equal(circles(circle), ['lib/a.ts → lib/b.ts → lib/c.ts → lib/a.ts']);
  assert.equal(circles(circle.slice(1)), []);
});

for (const text of [
  'export const a = 1;',
  'export interface a {}',
  'export function a() {}',
  'const a = 1; export { a };',
])
  graph(`an export that nothing uses is found: ${text}`, () => {
    const source = { path: 'lib/a.ts', text };
    assert.equal(unusedExports([source]), ['lib/a.ts: a']);
    for (const user of [
      "import { a } from './a.ts';",
      "import { type a as b } from './a.ts';",
      "import * as all from './a.ts';",
      "const { a: b } = await import('./a.ts');",
      "call((await import('./a.ts')).a);",
      "export { a as b } from './a.ts'; import { b } from './c.ts';",
    ])
      assert.equal(
        unusedExports([source, { path: 'lib/b.ts', text: user }]).filter((one) => /\ba$/.test(one)),
        [],
        user,
      );
    assert.equal(unusedExports([source, { path: 'lib/b.ts', text: "import { b } from './a.ts';" }]), [
      'lib/a.ts: a',
    ]);
  });

graph.run();
