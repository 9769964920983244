/**
 * What a program has just looked at is replaced before its next system call: strace(1) stops it there. At
 * every call on something in the user directory, in Prolog, acquire, wrapper, collector and Epilog (I4, I10,
 * I16).
 *
 * One kind of replacement in turn at two calls of each program; CONTAINER_CACHE_TEST_ALL=1 tries all kinds at
 * all calls.
 */
// test: timeout 900 s
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chownSync,
  lchownSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { createLockName, partialName } from '../../lib/core/layout.ts';
import { startAcquire } from '../helpers/run-acquire.ts';
import { holders, setUsed, TestNode, until, nameOf } from '../helpers/node.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  unlessPrivateMachine,
} from '../helpers/private-machine.ts';
import { assert, suite, unlessStrace } from '../helpers/suite.ts';
import { installWrapper, stepEnvironment } from '../helpers/wrapper.ts';

enterPrivateMachine();

const test = suite('replaced between two system calls', { skip: unlessPrivateMachine ?? unlessStrace });

const calls = [
  'openat2',
  ...['openat', 'statx', 'newfstatat', 'faccessat', 'faccessat2'],
  ...['mkdir', 'flock', 'rename', 'rmdir', 'unlink', 'utimensat', 'getdents64'],
];

interface Place {
  /** Of the system call, and which of its kind. */
  readonly call: string;
  readonly ordinal: number;
  /** Below the user directory. */
  readonly path: string;
}

interface Scene {
  readonly node: TestNode;
  readonly image: string;
  readonly entry: string;
  readonly precious: readonly string[];
}

const wrapperOf = (trace: string, options: readonly string[]): string[] => [
  '/usr/bin/strace',
  '-qq',
  '-y',
  '-s',
  '4096',
  '-o',
  trace,
  ...options,
];

/** The calls of a trace that are about something in the user directory, however it is called there. */
function placesOf(trace: string, userPath: string): Place[] {
  const counts = new Map<string, number>();
  const places: Place[] = [];
  for (const line of readFileSync(trace, 'utf8').split('\n')) {
    const call = /^(\w+)\(/.exec(line)?.[1];
    if (call === undefined || !calls.includes(call)) continue;
    const ordinal = (counts.get(call) ?? 0) + 1;
    counts.set(call, ordinal);
    const byPath = line.includes(`"${userPath}/`) ? line.split(`"${userPath}/`)[1]?.split('"')[0] : undefined;
    const byDescriptor = line.includes(`<${userPath}/`)
      ? line.split(`<${userPath}/`)[1]?.split('>')[0]
      : undefined;
    const inOpen = /"\/proc\/self\/fd\/\d+\/((?:\.?pyxis_)[^"]*)"/.exec(line)?.[1];
    const path = byPath ?? byDescriptor ?? inOpen;
    if (path !== undefined && path !== '') places.push({ call, ordinal, path });
  }
  return places;
}

function own(path: string): void {
  lchownSync(path, alice.uid, alice.gid);
}

/** What is put in the place of something, and is alice's unless she could link another's. */
const kinds: readonly (readonly [string, (path: string, scene: Scene) => void])[] = [
  [
    "a symlink to root's directory",
    (path, { precious }) => {
      symlinkSync(precious[0]!, path);
      own(path);
    },
  ],
  [
    "a symlink to another user's directory",
    (path, { precious }) => {
      symlinkSync(precious[1]!, path);
      own(path);
    },
  ],
  [
    "a symlink to root's file",
    (path, { precious }) => {
      symlinkSync(join(precious[0]!, '.pyxis_cache_lock'), path);
      own(path);
    },
  ],
  [
    'a FIFO',
    (path) => {
      command('mkfifo', path);
      own(path);
    },
  ],
  [
    "a link to root's file",
    (path, { precious }) => {
      linkSync(join(precious[0]!, '.pyxis_cache_lock'), path);
    },
  ],
  [
    'a directory',
    (path) => {
      mkdirSync(path);
      own(path);
    },
  ],
  [
    "another user's directory",
    (path) => {
      mkdirSync(path);
      chownSync(path, bob.uid, bob.gid);
    },
  ],
];

/** As it is before each run: one entry, whose job is over long since, a dead partial directory, a stub. */
function setScene({ node, entry }: Scene, withEntry: boolean): void {
  command('rm', '--recursive', '--force', node.userPath(alice), join(node.basePath, '.trash'));
  node.makeUserDirectory(alice);
  if (withEntry) node.plant(alice, { hash: entry.slice(-16), usedSecondsAgo: 1000 });
  const partial = join(node.userPath(alice), partialName(entry, 2, 'abcd'));
  const stub = join(node.userPath(alice), '.pyxis_2.0/.container-cache');
  mkdirSync(join(partial, 'rootfs'), { recursive: true });
  mkdirSync(stub, { recursive: true });
  writeFileSync(join(stub, 'entry'), '');
  writeFileSync(join(node.userPath(alice), createLockName(entry)), '');
  command('chown', '--recursive', `${alice.uid}:${alice.gid}`, node.userPath(alice));
  command('chmod', '0700', node.userPath(alice));
  if (withEntry) setUsed(node.entryPath(alice, entry), 1000);
}

const listing = (path: string): string => command('find', path, '-printf', '%p %i %u:%g %m %s %T@ %C@ %l\n');

/**
 * What is at a path of an earlier run: the part of a partial directory's name that is different each time is
 * found anew.
 */
function findNow({ node }: Scene, path: string): string | undefined {
  const [first = '', ...rest] = path.split('/');
  const found = first.endsWith('.partial')
    ? node.partials(alice).find((name) => name.endsWith('-abcd.partial') === first.endsWith('-abcd.partial'))
    : first;
  if (found === undefined) return undefined;
  const now = join(node.userPath(alice), found, ...rest);
  return lstatSync(now, { throwIfNoEntry: false }) === undefined ? undefined : now;
}

type Program = (
  scene: Scene,
  wrapper: readonly string[],
) => Promise<{ exitCode: number | null; code: string | undefined; isTimedOut?: boolean }>;

const programs: Readonly<Record<string, { readonly withEntry: boolean; readonly run: Program }>> = {
  'a Prolog that reuses': { withEntry: true, run: runProlog },
  'a Prolog that creates': { withEntry: false, run: runProlog },
  'an acquire that reuses': { withEntry: true, run: runAcquire },
  'an acquire that creates': { withEntry: false, run: runAcquire },
  'a wrapper that creates': { withEntry: true, run: runWrapper },
  'a wrapper that starts': { withEntry: true, run: runStart },
  'a collector': {
    withEntry: true,
    run: async ({ node }, wrapper) => {
      const { exitCode } = await node.adminBy(wrapper, 'gc', '--force').result;
      // 1 is what it says when its goal is out of reach.
      return { exitCode: exitCode === 1 ? 0 : exitCode, code: undefined };
    },
  },
  'an Epilog': {
    withEntry: true,
    run: async ({ node }, wrapper) => {
      const { exitCode, line } = await node.epilog({ id: 2, user: alice, wrapper });
      return { exitCode, code: line['code'] };
    },
  },
};

async function runProlog({ node, image }: Scene, wrapper: readonly string[]) {
  const prolog = node.startProlog({ id: 3, user: alice, image, wrapper });
  const { exitCode, line } = await prolog.result;
  return { exitCode, code: line['code'] };
}

async function runAcquire({ node, image }: Scene, wrapper: readonly string[]) {
  const { exitCode, log } = await startAcquire(node, [image], { jobId: 4, wrapper }).answer;
  return { exitCode: exitCode === 1 ? 0 : exitCode, code: log?.fields['code'] };
}

const container = 'pyxis_4.0';

/** Does nothing, and is content. */
const standIn = '#!/bin/sh\n[ "$1" != version ] || echo 4.1.2\n';

const stepLimitSeconds = 30;

/** As pyxis does for a step of job 4. */
async function callWrapper({ node }: Scene, wrapper: readonly string[], parameters: readonly string[]) {
  const user = [
    `--reuid=${alice.uid}`,
    `--regid=${alice.gid}`,
    '--clear-groups',
    '--inh-caps=-all',
    '--bounding-set=-all',
  ];
  const command = [...wrapper, join(node.root, 'bin/enroot'), ...parameters];
  const limited = ['--signal=KILL', String(stepLimitSeconds), 'setpriv', ...user, '--', ...command];
  const child = spawn('timeout', limited, {
    cwd: '/',
    env: stepEnvironment(node, alice, 4),
    stdio: 'ignore',
  });
  const [exitCode, signal] = (await once(child, 'exit')) as [number | null, string | null];
  const isTimedOut = signal === 'SIGKILL';
  return { exitCode: isTimedOut ? 0 : exitCode, code: undefined, isTimedOut };
}

function runWrapper(scene: Scene, wrapper: readonly string[]) {
  return callWrapper(scene, wrapper, ['create', '--name', container, scene.image]);
}

async function runStart(scene: Scene, wrapper: readonly string[]) {
  await runWrapper(scene, []);
  return callWrapper(scene, wrapper, ['start', container, 'true']);
}

/** Nothing of these is a user's to bring about. */
const forbidden = ['BUG', 'NO_SPACE', 'USER_DIRECTORY', 'BASE_UNSAFE', 'TOOL_MISSING', 'LEASE_FAILED'];
const tryAll = process.env['CONTAINER_CACHE_TEST_ALL'] !== undefined;
const settings = {
  on_failure: 'fail',
  container_cache_gc_high: 99,
  container_cache_gc_low: 1,
  gc_min_age: 0,
};

for (const [what, { withEntry, run }] of Object.entries(programs)) {
  test(`whatever ${what} has just looked at: it ends, touches nothing of others and drains no node`, async () => {
    await using node = await TestNode.start();
    node.configure({ ...settings, ...installWrapper(node, standIn).settings });
    const image = node.image();
    await node.prolog({ id: 1, user: alice, image });
    const entry = nameOf(node.entries(alice)[0]!);
    await node.epilog({ id: 1, user: alice });
    // The Epilog looks at all processes, and its calls are counted.
    await node.settle();
    const precious = [
      [0, 0],
      [bob.uid, bob.gid],
    ].map(([uid = 0, gid = 0]) => {
      const path = join(node.root, `precious-${uid}`);
      mkdirSync(path, { mode: 0o700 });
      writeFileSync(join(path, '.pyxis_cache_lock'), 'precious\n', { mode: 0o600 });
      command('chown', '--recursive', `${uid}:${gid}`, path);
      return path;
    });
    const scene = { node, image, entry, precious };
    const trace = join(node.root, 'trace');
    writeFileSync(trace, '', { mode: 0o666 });
    command('chmod', '0666', trace);

    setScene(scene, withEntry);
    await run(scene, wrapperOf(trace, ['-e', `trace=${calls.join(',')}`]));
    const places = placesOf(trace, node.userPath(alice));
    for (const job of [2, 3, 4]) await node.epilog({ id: job, user: alice });
    await node.settle();
    assert.ok(places.length >= 4, `only ${places.length} calls: ${readFileSync(trace, 'utf8').slice(-2000)}`);

    const stride = tryAll ? 1 : Math.ceil(places.length / 2);
    let replaced = 0;
    for (const [index, { call, ordinal, path }] of places.entries()) {
      if (index % stride > 0) continue;
      for (const [kind, put] of tryAll ? kinds : [kinds[(index / stride) % kinds.length]!]) {
        const where = `${what}: ${kind} for ${path} after ${call} ${ordinal}`;
        setScene(scene, withEntry);
        writeFileSync(trace, '');
        const inject = ['-e', `trace=${call}`, '-e', `inject=${call}:signal=SIGSTOP:when=${ordinal}`];
        const running = run(scene, wrapperOf(trace, inject));
        const state = { isOver: false };
        void running.finally(() => {
          state.isOver = true;
        });
        await until(
          'it is stopped, or over',
          () => state.isOver || readFileSync(trace, 'utf8').includes('stopped by SIGSTOP'),
        );
        const target = findNow(scene, path);
        // The holder of what it has done so far is not looked for: only what comes after counts.
        if (!state.isOver && target !== undefined) {
          command('mv', '--no-target-directory', target, join(node.root, `aside-${replaced++}`));
          put(target, scene);
        }
        // Those linked to have another number of links and time of change by it.
        const before = precious.map(listing);
        for (const pid of stopped()) process.kill(pid, 'SIGCONT');
        const { exitCode, code, isTimedOut = false } = await running;
        assert.is(exitCode, 0, where);
        // A shell waits for ever for the other end of a FIFO: its user's time, until the step is over.
        assert.ok(!isTimedOut || kind === 'a FIFO', where);
        assert.not(forbidden.includes(code ?? ''), `${where}: ${code}`);
        if (kind !== "a link to root's file") assert.equal(precious.map(listing), before, where);
        assert.is(readFileSync(join(precious[0]!, '.pyxis_cache_lock'), 'utf8'), 'precious\n', where);
        for (const job of [2, 3, 4]) {
          if (job !== 2 && holders(job).length === 0) continue;
          assert.is((await node.epilog({ id: job, user: alice })).exitCode, 0, where);
        }
        assert.equal(holders(), [], where);
        // The Epilog has had something to delete: its collector must not be at work in the next scene.
        await node.settle();
      }
    }
    await node.settle();
    await node.gc('--force');
    assert.ok(replaced > 0);
    process.stdout.write(`${what}: ${places.length} calls, ${replaced} replacements\n`);
  });
}

/** Processes that a signal has stopped. */
function stopped(): number[] {
  return command('sh', '-c', 'grep -l "^State:.*[Tt]" /proc/[0-9]*/status 2>/dev/null || true')
    .split('\n')
    .flatMap((path) => /^\/proc\/(\d+)\//.exec(path)?.[1] ?? [])
    .map(Number);
}

test.run();
