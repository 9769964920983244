/**
 * `npm run build`: makes dist/.
 *
 *   container-cache                one executable: the pinned runtime, our bundle, fs-ext's addon and our own
 *   prolog, epilog                 further names of it; lib/core/program.ts picks the program
 *   taskprolog, slurm.conf.snippet, enroot, 00-container-cache.fstab, slurmd-container-cache.conf    copies
 *
 * esbuild makes two bundles: one that runs at once, with the Prolog and the Epilog, and one with the admin
 * command and its yargs, which is compiled only when that command runs. `pkg --sea` puts loader.cjs into the
 * runtime as its main program, and as assets the bundles, a code cache of the first, and the addons.
 *
 * Nothing is fetched, and nothing is done if dist/ was made from the same inputs.
 */
import { createHash } from 'node:crypto';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  closeSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { Script } from 'node:vm';
import type { SeaConfig } from '@yao-pkg/pkg/lib-es5/sea.js';
import type * as esbuild from 'esbuild';
import { flockWithin } from '../lib/system/flock.ts';
import { addonFiles } from '../lib/system/native-addon.ts';
import { readRelease, type Release } from './release.ts';
import { digestOfFiles, projectRoot, sourceFiles } from './source-files.ts';

export const distDirectory = join(projectRoot, 'dist');
export const executable = join(distDirectory, 'container-cache');

/** The asset's name of the admin command's bundle. */
const ADMIN_ASSET = 'admin.cjs';
const PROGRAM_NAMES = ['prolog', 'epilog'];
/** Source and mode. */
const COPIES: readonly { source: string; mode: number }[] = [
  { source: 'taskprolog/taskprolog', mode: 0o755 },
  { source: 'enroot/enroot', mode: 0o755 },
  { source: 'enroot/00-container-cache.fstab', mode: 0o644 },
  { source: 'slurm.conf.snippet', mode: 0o644 },
  { source: 'systemd/slurmd-container-cache.conf', mode: 0o644 },
];
/**
 * One thread beside our own in place of four, and none that waits for a debugger: each has to be started, and
 * interrupted whenever we change our effective ids.
 */
export const runtimeOptions = ['--v8-pool-size=1', '--disable-sigusr1'];
const INPUT_DIRECTORIES = ['prolog', 'epilog', 'admin', 'lib', 'taskprolog', 'enroot', 'systemd'];
const INPUT_FILES = [
  'main.ts',
  'build/build.ts',
  'build/loader.cjs',
  'build/release.ts',
  'build/runtime-checksums',
  'build/source-files.ts',
  'package.json',
  'package-lock.json',
  'slurm.conf.snippet',
];
const RUNTIME_CHECKSUMS = join(projectRoot, 'build/runtime-checksums');
const LOADER = join(projectRoot, 'build/loader.cjs');
/** Compiled by build/run. By the asset's name, relative to the project. */
const ADDONS = Object.fromEntries(
  Object.entries(addonFiles).map(([asset, file]) => [asset, `node_modules/${file}`]),
);
/** What dist/ was made from: its presence also says that it was made to the end. */
const STAMP = join(distDirectory, '.inputs');
const LOCK_TIMEOUT_MS = 10 * 60_000;

/**
 * Builtins that take longest to load, and that not every call of a program comes to use. A bundle's
 * imports all run at its start; through this, these are loaded when first used. Programs import them
 * by name or as a namespace: `import crypto from 'node:crypto'` would load it at once.
 */
const LAZY_BUILTINS = ['node:child_process', 'node:crypto', 'node:fs/promises', 'node:module'];
const LAZY_BUILTINS_BANNER = `require = ((load) => (name) => {
  if (!${JSON.stringify(LAZY_BUILTINS)}.includes(name)) return load(name);
  return new Proxy({}, { get: (_, key) => load(name)[key], ownKeys: () => Reflect.ownKeys(load(name)),
    getOwnPropertyDescriptor: (_, key) => ({ ...Reflect.getOwnPropertyDescriptor(load(name), key), configurable: true }) });
})(require);`;

/** In the environment of tests: dist/ was made for this run, and to ask whether it still is takes 2 s. */
export const BUILT_VARIABLE = 'CONTAINER_CACHE_BUILT';

/**
 * Makes dist/ unless it is up to date; of several at once one works and the others wait. Returns whether it
 * was made.
 */
export async function build(): Promise<boolean> {
  if (process.env[BUILT_VARIABLE] !== undefined) return false;
  mkdirSync(distDirectory, { recursive: true });
  const lock = openSync(join(distDirectory, '.lock'), 'a');
  try {
    if (!(await flockWithin(lock, 'exclusive', LOCK_TIMEOUT_MS))) {
      throw new Error(`Cannot build: ${distDirectory} is locked by another build for ${LOCK_TIMEOUT_MS} ms`);
    }
    // What else the tree has changes nothing in dist/, and does not make it anew.
    const release = readRelease([...INPUT_DIRECTORIES, ...INPUT_FILES]);
    const inputs = digestOfInputs(release);
    if (isUpToDate(inputs)) return false;
    await makeDist(release);
    writeFileSync(STAMP, inputs);
    return true;
  } finally {
    closeSync(lock);
  }
}

function digestOfInputs({ version }: Release): string {
  const files = sourceFiles().filter(
    (file) => INPUT_FILES.includes(file) || INPUT_DIRECTORIES.some((top) => file.startsWith(`${top}/`)),
  );
  return `${process.version} ${process.arch} ${version} ${digestOfFiles([...files, ...Object.values(ADDONS)])}\n`;
}

function isUpToDate(inputs: string): boolean {
  const outputs = [executable, ...PROGRAM_NAMES.map((name) => join(distDirectory, name))];
  outputs.push(...COPIES.map(({ source }) => join(distDirectory, basename(source))));
  return (
    existsSync(STAMP) && readFileSync(STAMP, 'utf8') === inputs && outputs.every((path) => existsSync(path))
  );
}

/** @throws an Error if the runtime is not the one that was pinned, whoever changed it */
export function checkRuntime(path = process.execPath, name = `${process.version} ${process.arch}`): void {
  const line = readFileSync(RUNTIME_CHECKSUMS, 'utf8')
    .split('\n')
    .find((one) => one.endsWith(`  ${name}`));
  const found = createHash('sha256').update(readFileSync(path)).digest('hex');
  if (line === undefined || !line.startsWith(`${found} `))
    throw new Error(
      `Cannot build: ${path} (${name}) is not the runtime that build/runtime-checksums names: its SHA-256 is ${found}. ` +
        'Remove node_modules and run it again; for a new version write its sum there',
    );
}

/**
 * Everything is made aside and renamed into place: a program of dist/ that runs meanwhile goes on as it is.
 */
async function makeDist(release: Release): Promise<void> {
  rmSync(STAMP, { force: true });
  // Always the same name: the executable remembers it as its main program's path. The lock makes it ours.
  const aside = join(distDirectory, '.new');
  rmSync(aside, { recursive: true, force: true });
  mkdirSync(aside);
  try {
    await makeExecutable('main.ts', join(aside, basename(executable)), release);
    for (const { source, mode } of COPIES) {
      const target = join(aside, basename(source));
      copyFileSync(join(projectRoot, source), target);
      chmodSync(target, mode);
      renameSync(target, join(distDirectory, basename(source)));
    }
    renameSync(join(aside, basename(executable)), executable);
    for (const name of PROGRAM_NAMES) {
      const link = join(aside, name);
      symlinkSync(basename(executable), link);
      renameSync(link, join(distDirectory, name));
    }
  } finally {
    rmSync(aside, { recursive: true, force: true });
  }
}

/**
 * Makes one executable of `entry` and all it imports, with the addons and the admin command as assets.
 *
 * @param output absolute path; its directory receives the bundles, too.
 * @param release what `--version` prints
 * @returns the modules that are in it, relative to the project
 */
export async function makeExecutable(
  entry: string,
  output: string,
  release: Pick<Release, 'version' | 'commit'>,
): Promise<string[]> {
  checkRuntime();
  const main = join(dirname(output), 'main.cjs');
  const admin = join(dirname(output), ADMIN_ASSET);
  const cache = join(dirname(output), 'main.cache');
  const modules = [
    ...(await bundleProgram(entry, main)),
    ...(await bundle('admin/cli.ts', admin, [withRelease(release)])),
  ];
  wrapWithCodeCache(main, cache);
  const seaConfig: SeaConfig & { execArgv: string[]; execArgvExtension: 'none' } = {
    disableExperimentalSEAWarning: true,
    useSnapshot: false,
    useCodeCache: true,
    assets: {
      [basename(main)]: main,
      [basename(cache)]: cache,
      [ADMIN_ASSET]: admin,
      ...Object.fromEntries(Object.entries(ADDONS).map(([asset, file]) => [asset, join(projectRoot, file)])),
    },
    execArgv: runtimeOptions,
    // NODE_OPTIONS of a job is meant for the job's own Node.
    execArgvExtension: 'none',
  };
  const target = {
    nodeRange: `node${process.versions.node}`,
    platform: 'linux' as const,
    arch: process.arch,
    output,
  };
  // What `pkg --sea` runs for a plain file. Its command line has no way to name assets or a runtime at
  // hand: it would fetch one.
  const pkgSea = await import('@yao-pkg/pkg/lib-es5/sea.js');
  await pkgSea.default.default(LOADER, { targets: [target], nodePath: process.execPath, seaConfig });
  return modules;
}

/**
 * Makes the bundle a function for loader.cjs, and its code cache with all functions: what is lazy when the
 * cache is made would be compiled by each process anew. The flag is back before the cache is made, which is
 * valid for the same flags alone.
 */
export function wrapWithCodeCache(bundlePath: string, cachePath: string): void {
  const source = `(function (require, module, exports) {${readFileSync(bundlePath, 'latin1')}\n})`;
  setFlagsFromString('--no-lazy');
  let script: Script;
  try {
    script = new Script(source, { filename: basename(bundlePath) });
  } finally {
    setFlagsFromString('--lazy');
  }
  writeFileSync(bundlePath, source, 'latin1');
  writeFileSync(cachePath, script.createCachedData());
}

/** Bundles what runs at once, and returns the modules that are in it, relative to the project. */
export async function bundleProgram(entry: string, output: string): Promise<string[]> {
  return bundle(entry, output, [adminAsAsset]);
}

async function bundle(entry: string, output: string, plugins: esbuild.Plugin[]): Promise<string[]> {
  // Each test file loads this module, and few of them bundle anything.
  const { build: bundleFiles } = await import('esbuild');
  const { metafile } = await bundleFiles({
    absWorkingDir: projectRoot,
    entryPoints: [entry],
    outfile: output,
    bundle: true,
    platform: 'node',
    format: 'cjs',
    target: `node${process.versions.node}`,
    // Only syntax: names and lines stay as they are, so that a stack trace in syslog can be read.
    minifySyntax: true,
    legalComments: 'none',
    // One byte a character: the runtime has nothing to decode.
    charset: 'ascii',
    logLevel: 'warning',
    // A bundle in an executable has no file. Development's way to the addon is not taken there, and
    // yargs only looks for translations beside itself.
    define: { 'import.meta.url': '"file:///container-cache/bundle.js"' },
    banner: { js: LAZY_BUILTINS_BANNER },
    metafile: true,
    plugins,
  });
  return Object.keys(metafile.inputs);
}

/** Only the admin command tells its release (admin/release.ts). */
function withRelease({ version, commit }: Pick<Release, 'version' | 'commit'>): esbuild.Plugin {
  return {
    name: 'release',
    setup(build) {
      build.onLoad({ filter: /\/package\.json$/ }, ({ path }) =>
        path === join(projectRoot, 'package.json')
          ? { contents: JSON.stringify({ version, commit }), loader: 'json' }
          : undefined,
      );
    },
  };
}

/** main.ts imports the admin command when it is called for; in the executable that compiles the asset. */
const adminAsAsset: esbuild.Plugin = {
  name: 'admin-as-asset',
  setup(build) {
    build.onResolve({ filter: /^\.\/admin\/cli\.ts$/ }, () => ({ path: ADMIN_ASSET, namespace: 'asset' }));
    build.onLoad({ filter: /.*/, namespace: 'asset' }, ({ path }) => ({
      resolveDir: projectRoot,
      contents: `
        import { getAsset } from 'node:sea';
        import { Script } from 'node:vm';
        const wrapper = '(function (module, exports, require) {' + getAsset(${JSON.stringify(path)}, 'utf8') + '\\n})';
        const module = { exports: {} };
        new Script(wrapper, { filename: ${JSON.stringify(path)} }).runInThisContext()(module, module.exports, require);
        export const { runAdmin } = module.exports;`,
    }));
  },
};

if (import.meta.main) {
  const startedMs = performance.now();
  const made = await build();
  console.log(
    made
      ? `build: made dist/ in ${((performance.now() - startedMs) / 1000).toFixed(1)} s`
      : 'build: dist/ is up to date',
  );
}
