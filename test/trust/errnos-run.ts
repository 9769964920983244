/**
 * `build/run exec test/trust/errnos-run.ts [--only NAME]…`: every error number at every system call that
 * Prolog, Epilog, collector and `status` make below a user's directory.
 *
 * errnos.test.ts has strace(1) make calls fail, a process for each: some ten thousand would take hours. Here
 * the programs run in this process, and node:fs and our addon fail in the place of the kernel. Whatever
 * fails, the exit code must be that of a run in which nothing fails, no line may say BUG, and another user
 * must be served as before.
 */
import assert from 'node:assert';
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createRequire, syncBuiltinESMExports } from 'node:module';
import { join } from 'node:path';
import process from 'node:process';
import { getSystemErrorName, parseArgs } from 'node:util';
import { errnoName, errnoNames } from '../../lib/core/errno-names.ts';
import { addonFiles, type BeneathAddon } from '../../lib/system/native-addon.ts';
import {
  alice,
  command,
  enterPrivateMachine,
  type TestUser,
  unlessPrivateMachine,
} from '../helpers/private-machine.ts';

enterPrivateMachine();
if (unlessPrivateMachine !== undefined) throw new Error(`Cannot run here: ${unlessPrivateMachine}`);
const { values } = parseArgs({ options: { only: { type: 'string', multiple: true } } });

/** Where a path or descriptor leads, as far as the part before the last name. */
function placeOf(where: unknown): string | undefined {
  try {
    const readlink = original['readlinkSync'] as (path: string) => string;
    if (typeof where === 'number') return readlink(`/proc/self/fd/${where}`);
    const path = String(where);
    const [, fd, rest = ''] = /^\/proc\/self\/fd\/(\d+)(\/.*)?$/.exec(path) ?? [];
    return fd === undefined ? path : readlink(`/proc/self/fd/${fd}`) + rest;
  } catch {
    return undefined;
  }
}

/** Counts the calls below a directory, and makes one of them fail. */
class Injector {
  directory = '';
  #calls = 0;
  #at = 0;
  #errno = 0;
  #isOn = false;
  text = '';

  async watch(at: number, errno: number, action: () => Promise<unknown>): Promise<number> {
    Object.assign(this, { text: '' });
    [this.#calls, this.#at, this.#errno, this.#isOn] = [0, at, errno, true];
    try {
      await action();
    } finally {
      this.#isOn = false;
    }
    return this.#calls;
  }

  /** @returns the number of the error that this call is to fail with; 0: none */
  meet(name: string, where: readonly unknown[]): number {
    if (!this.#isOn) return 0;
    const places = where.map(placeOf);
    // That the user directory itself is opened, and looked at, is the base's matter.
    const isBelow = places.some((place) => place?.startsWith(`${this.directory}/`));
    const isOfDirectory = /^(?:readdir|opendir)/.test(name) && places.includes(this.directory);
    if (!isBelow && !isOfDirectory) return 0;
    if (++this.#calls !== this.#at) return 0;
    this.text = `${name} ${String(places[0])}`;
    return this.#errno;
  }
}

type AnyFunction = (...parameters: unknown[]) => unknown;
const require = createRequire(import.meta.url);
const fs = require('node:fs') as Record<string, AnyFunction>;
const original = { ...fs };
const injector = new Injector();

// Before anybody loads it: what it exports cannot be changed.
const addonPath = require.resolve(`../../node_modules/${addonFiles['beneath.node']}`);
const addon = require(addonPath) as BeneathAddon;
(require.cache[addonPath] as { exports: unknown }).exports = Object.create(addon, {
  openPath: {
    value: (directory: number, path: string, flags: number) => {
      const errno = injector.meet('openat2', [`/proc/self/fd/${directory}/${path}`]);
      return errno === 0 ? addon.openPath(directory, path, flags) : -errno;
    },
  },
}) as BeneathAddon;

const { setScene } = await import('./errno-scene.ts');
const { runProlog } = await import('../../prolog/prolog.ts');
const { runEpilog } = await import('../../epilog/epilog.ts');
const { runGc } = await import('../../admin/gc.ts');
const { runStatus } = await import('../../admin/status.ts');

/**
 * Of node:fs, what our code calls below a user's directory; the number of leading parameters that are paths
 * or descriptors.
 */
const patched: Readonly<Record<string, number>> = {
  ...{ openSync: 1, readSync: 1, writeSync: 1, fstatSync: 1, statSync: 1, lstatSync: 1, readdirSync: 1 },
  ...{ opendirSync: 1, mkdirSync: 1, renameSync: 2, unlinkSync: 1, rmdirSync: 1, rmSync: 1, readlinkSync: 1 },
  ...{
    fchmodSync: 1,
    fchownSync: 1,
    chmodSync: 1,
    chownSync: 1,
    utimesSync: 1,
    lutimesSync: 1,
    futimesSync: 1,
  },
  ...{ writeFileSync: 1, readFileSync: 1, fsyncSync: 1, ftruncateSync: 1, existsSync: 1, linkSync: 2 },
};

const { node, image, ofBob } = await setScene();
await using _ = node;
injector.directory = node.userPath(alice);

for (const [name, count] of Object.entries(patched)) {
  const call = original[name]!;
  fs[name] = (...parameters) => {
    // Log lines.
    if (name === 'writeSync' && parameters[0] === 2) {
      printed += String(parameters[1]);
      return (parameters[1] as Buffer).length;
    }
    // The mounts of each process of the machine take longer to read than all the rest.
    if (name === 'readdirSync' && parameters[0] === '/proc') return [String(process.pid)];
    const errno = injector.meet(name, parameters.slice(0, count));
    if (errno === 0) return call(...parameters);
    const code = getSystemErrorName(-errno);
    throw Object.assign(new Error(`${code}: injected, ${name}`), { code, errno: -errno, syscall: name });
  };
}
syncBuiltinESMExports();
/** The highest is 133. */
const numbers = new Map(Array.from({ length: 200 }, (_, index) => [errnoName(index + 1), index + 1]));

function numberOf(error: string): number {
  const number = numbers.get(error);
  if (number === undefined) throw new Error(`${error} has no number`);
  return number;
}

/** What the programs print, in place of the terminal. */
let printed = '';
const print = process.stdout.write.bind(process.stdout);
const collectOutput = (text: unknown): boolean => {
  printed += String(text);
  return true;
};

process.env['CONTAINER_CACHE_CONF'] = node.configPath;
const jobOf = (user: TestUser, context: string): Record<string, string | undefined> => ({
  CONTAINER_CACHE_CONF: node.configPath,
  SLURM_JOB_ID: '2',
  SLURM_JOB_UID: String(user.uid),
  SLURM_JOB_GID: String(user.gid),
  SLURM_JOB_USER: user.name,
  SLURM_JOB_WORK_DIR: '/',
  SLURM_SCRIPT_CONTEXT: context,
  SPANK__SLURM_SPANK_OPTION_pyxis_container_image: image,
});

const programs: Readonly<Record<string, { run: () => Promise<number>; check: () => void }>> = {
  Prolog: {
    run: () => runProlog(jobOf(alice, 'prolog_slurmd')),
    check: () => assert.match(printed, / prolog .*result=/),
  },
  Epilog: {
    run: () => runEpilog(jobOf(alice, 'epilog_slurmd')),
    check: () => assert.match(printed, / epilog .*result=/),
  },
  collector: {
    run: () => runGc({ dryRun: false, force: true, background: false, json: false }),
    check: () => assert.ok(!existsSync(ofBob), "bob's entry was not collected"),
  },
  status: {
    run: () =>
      runStatus({
        ...{ json: false, user: undefined, image: undefined, sort: 'used', reverse: false },
        watch: undefined,
      }),
    check: () => assert.ok(printed.includes('00000000000000bb'), "bob's entry is not shown"),
  },
};

const template = join(node.root, 'template');
command('cp', '--archive', node.basePath, template);
/** As setScene() left it. What the last run started in the background may be in the way. */
function reset(): void {
  const script =
    'for i in 1 2 3 4 5; do rm -rf "$1"; cp -aT "$2" "$1" && exit; sleep 0.2; done 2>/dev/null; exit 1';
  const { status } = spawnSync('sh', ['-c', script, 'sh', node.basePath, template]);
  assert.equal(status, 0);
}

async function runOne(
  program: (typeof programs)[string],
  at: number,
  errno: number,
): Promise<[number, number]> {
  printed = '';
  process.stdout.write = collectOutput;
  let exitCode = -1;
  try {
    const calls = await injector.watch(at, errno, async () => {
      exitCode = await program.run();
    });
    return [calls, exitCode];
  } finally {
    process.stdout.write = print;
  }
}

const wanted = Object.entries(programs).filter(([name]) => values.only?.includes(name) ?? true);
for (const [name, program] of wanted) {
  reset();
  const [calls, expected] = await runOne(program, 0, 0);
  program.check();
  assert.ok(calls > 5, `${name}: ${calls} calls`);
  let [tried, missed] = [0, 0];
  for (let at = 1; at <= calls; at++) {
    if (at % 10 === 0) print(`${name}: ${at} of ${calls} calls\n`);
    for (const error of errnoNames) {
      if (name !== 'status') reset();
      const errno = numberOf(error);
      const [, exitCode] = await runOne(program, at, errno);
      tried++;
      if (injector.text === '') missed++;
      const told = `${name}: ${error} at ${at}, ${injector.text}: ${printed}`;
      assert.equal(exitCode, expected, told);
      assert.ok(!/code=BUG/.test(printed), told);
      try {
        program.check();
      } catch (cause) {
        throw new Error(told, { cause });
      }
      if (name === 'Prolog') await runEpilog(jobOf(alice, 'epilog_slurmd'));
    }
  }
  print(`${name}: ${calls} calls, ${tried} tried, ${missed} not met\n`);
}
