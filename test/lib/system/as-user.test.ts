/** as-user.ts: while we act as a user the kernel takes us for that user, and afterwards for root again. */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import {
  chownSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { asUser, dropGroups, isRoot, withUserIds, type UserIds } from '../../../lib/system/as-user.ts';
import { errnoOf } from '../../../lib/system/errno.ts';
import { CommandFailed, run, runBriefly, type Command } from '../../../lib/system/run-command.ts';
import {
  alice,
  bob,
  enterPrivateMachine,
  machineRoot,
  readersGid,
  replaceProgram,
  unlessPrivateMachine,
} from '../../helpers/private-machine.ts';
import { assert, suite, type Suite } from '../../helpers/suite.ts';

enterPrivateMachine();

/** Long enough never to decide a test's outcome. */
const longMs = 60_000;

let root: string;
const at = (name: string): string => join(root, name);

function file(name: string, owner: UserIds, mode: number): string {
  writeFileSync(at(name), name, { mode });
  chownSync(at(name), owner.uid, owner.gid);
  return at(name);
}

function inOpenRoot(test: Suite<Record<string, never>>): Suite<Record<string, never>> {
  test.before.each(() => {
    root = mkdtempSync(join(machineRoot, 'as-user-'));
    chownSync(root, alice.uid, alice.gid);
  });
  test.after.each(() => {
    rmSync(root, { recursive: true });
  });
  return test;
}

const ids = (): unknown => [
  process.getuid?.(),
  process.geteuid?.(),
  process.getgid?.(),
  process.getegid?.(),
  process.getgroups?.().sort((a, b) => a - b),
];

/** Who this test is when a suite begins. */
let ourIds: unknown;

for (const way of ['of all threads', 'of our thread alone'] as const) {
  const within = inOpenRoot(suite(`withUserIds(), ${way}`, { skip: unlessPrivateMachine }));

  within.before(() => {
    // From then on the addon does it.
    if (way === 'of our thread alone') dropGroups();
    ourIds = ids();
  });

  within('the kernel sees the user, with no other group and nothing that root may', () => {
    const status = withUserIds(alice, () => readFileSync('/proc/thread-self/status', 'utf8'));
    const field = (name: string): string[] =>
      new RegExp(`^${name}:\\s*(.*?)\\s*$`, 'm').exec(status)?.[1]?.split(/\s+/) ?? [];
    // Real, effective, saved, filesystem. The real one stays root's: the user cannot send us signals.
    assert.equal(field('Uid'), ['0', String(alice.uid), '0', String(alice.uid)]);
    assert.equal(field('Gid'), ['0', String(alice.gid), '0', String(alice.gid)]);
    assert.match(status, /^Groups:[ \t]*$/m);
    assert.match(field('CapEff')[0] ?? '', /^0+$/);
  });

  within('what is made is the user’s', () => {
    withUserIds(alice, () => {
      writeFileSync(at('file'), '');
      mkdirSync(at('directory'));
      symlinkSync('x', at('link'));
    });
    for (const name of ['file', 'directory']) {
      const { uid, gid } = statSync(at(name));
      assert.equal([uid, gid], [alice.uid, alice.gid], name);
    }
  });

  within('what is root’s alone can be neither read nor written', () => {
    const secret = file('secret', { uid: 0, gid: 0 }, 0o600);
    mkdirSync(at('closed'), { mode: 0o700 });
    for (const action of [
      () => readFileSync(secret),
      () => readdirSync(at('closed')),
      () => {
        writeFileSync(secret, '');
      },
      () => {
        writeFileSync(join(machineRoot, 'x'), '');
      },
      () => {
        chownSync(secret, alice.uid, alice.gid);
      },
    ]) {
      const error = assert.throws(() => withUserIds(alice, action), Error);
      assert.ok(['EACCES', 'EPERM'].includes(errnoOf(error) ?? ''), String(error));
    }
    assert.is(readFileSync(secret, 'utf8'), 'secret');
  });

  within('what only the user may read can be read, and what is another’s cannot', () => {
    file('alices', alice, 0o600);
    file('bobs', bob, 0o600);
    assert.is(
      withUserIds(alice, () => readFileSync(at('alices'), 'utf8')),
      'alices',
    );
    assert.is(
      errnoOf(assert.throws(() => withUserIds(alice, () => readFileSync(at('bobs'))), Error)),
      'EACCES',
    );
  });

  // Who has given up root's groups has none that could count.
  within.unless(
    way === 'of all threads' ? undefined : 'no groups',
    'no supplementary group counts, neither the user’s nor ours',
    () => {
      const shared = file('shared', { uid: 0, gid: readersGid }, 0o640);
      const groups = process.getgroups!();
      process.setgroups!([readersGid]);
      const before = ids();
      try {
        assert.is(
          errnoOf(assert.throws(() => withUserIds(alice, () => readFileSync(shared)), Error)),
          'EACCES',
        );
        assert.equal(ids(), before);
      } finally {
        process.setgroups!(groups);
      }
    },
  );

  within.after.each(() => {
    assert.equal(ids(), ourIds);
  });

  within('afterwards we are who we were', () => {
    assert.is(
      withUserIds(alice, () => 7),
      7,
    );
    assert.equal(ids(), ourIds);
    assert.is(readFileSync(file('secret', { uid: 0, gid: 0 }, 0o600), 'utf8'), 'secret');
  });

  within('after a throw too', () => {
    assert.throws(
      () =>
        withUserIds(alice, () => {
          throw new RangeError('x');
        }),
      RangeError,
    );
    assert.equal(ids(), ourIds);
  });

  within('acting as the same user within is no change, as another it is refused', () => {
    withUserIds(alice, () => {
      const inside = ids();
      withUserIds(alice, () => {
        assert.equal(ids(), inside);
      });
      assert.equal(ids(), inside);
      for (const other of [bob, { uid: 0, gid: 0 }]) {
        let ran = false;
        const error = assert.throws(() => withUserIds(other, () => (ran = true)), Error);
        assert.is(errnoOf(error), 'EPERM');
        assert.not.ok(ran);
        assert.equal(ids(), inside);
      }
    });
    assert.equal(ids(), ourIds);
  });

  within('root acts as root with all it has', () => {
    withUserIds({ uid: 0, gid: 0 }, () => {
      assert.equal(ids(), ourIds);
    });
  });

  within('the other threads are the user too, or stay root: as the way is', () => {
    const statuses = withUserIds(alice, () =>
      readdirSync('/proc/self/task').map((thread) =>
        readFileSync(`/proc/self/task/${thread}/status`, 'latin1'),
      ),
    );
    const acting = statuses.filter((status) => status.includes(`\nUid:\t0\t${alice.uid}\t0\t`)).length;
    assert.ok(statuses.length > 1);
    assert.is(acting, way === 'of all threads' ? statuses.length : 1);
  });

  within('isRoot() tells who acts', () => {
    assert.ok(isRoot());
    assert.not.ok(withUserIds(alice, isRoot));
    assert.ok(isRoot());
  });

  within('a user cannot send us signals meanwhile', () => {
    withUserIds(alice, () => {
      const { status, stderr } = spawnSync('kill', ['-s', 'TERM', String(process.pid)], {
        encoding: 'utf8',
        uid: alice.uid,
      });
      assert.is.not(status, 0, stderr);
    });
  });

  within.run();
}

const child = inOpenRoot(suite('asUser()', { skip: unlessPrivateMachine }));

const commandOf = (program: string, ...args: string[]): Command => ({
  file: program,
  args,
  timeoutMs: longMs,
});

/** The lines of /proc/self/status that tell what a process is and may, as the command run has them. */
async function statusOf(command: Command): Promise<Record<string, string>> {
  const { stdout } = await run(command);
  const lines = stdout.toString().trimEnd().split('\n');
  return Object.fromEntries(
    lines.map((line) => line.split(/:\s*/, 2).map((text) => text.trim().replaceAll(/\s+/g, ' '))) as [
      string,
      string,
    ][],
  );
}

const cat = commandOf('cat', '/proc/self/status');
const none = '0000000000000000';

child('a command runs as the user, with all groups, no capability, and can gain none', async () => {
  const status = await statusOf(asUser(alice, cat));
  const four = (id: number): string => Array.from({ length: 4 }, () => id).join(' ');
  assert.is(status['Uid'], four(alice.uid));
  assert.is(status['Gid'], four(alice.gid));
  assert.is(status['Groups'], `${alice.gid} ${readersGid}`);
  for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb']) assert.is(status[set], none, set);
  assert.is(status['NoNewPrivs'], '1');
});

child('a user without further groups gets none of ours', async () => {
  assert.is((await statusOf(asUser(bob, cat)))['Groups'], String(bob.gid));
});

child('a command that may gain privileges starts without any', async () => {
  const status = await statusOf(asUser(alice, cat, { canGain: true }));
  for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapAmb']) assert.is(status[set], none, set);
  assert.is(status['NoNewPrivs'], '0');
  assert.is.not(status['CapBnd'], none);
  assert.is(status['Uid']?.split(' ')[0], String(alice.uid));
});

child('a command of root is not confined', async () => {
  const ours = await statusOf(cat);
  const status = await statusOf(asUser({ uid: 0, gid: 0 }, cat));
  for (const name of ['Uid', 'Gid', 'Groups', 'CapPrm', 'CapEff', 'CapBnd', 'NoNewPrivs']) {
    assert.is(status[name], ours[name], name);
  }
});

/** Ways for a program to leave something behind that does the like of `sleep 31337`, in shell. */
const evasions: readonly (readonly [string, string])[] = [
  ['a child', 'sleep 31337 &'],
  ['a session of its own', 'setsid sleep 31337 &'],
  ['an orphan of an orphan', '(setsid sh -c "sleep 31337 & sleep 31337" &)'],
  ['one that hears no signal', '(trap "" HUP INT TERM QUIT; setsid sleep 31337 &)'],
  ['one that is stopped', 'setsid sh -c "kill -STOP \\$\\$" sh-31337 &'],
  ['one in namespaces of its own', 'unshare --user --pid --fork sleep 31337 &'],
  ['one that forks and ends all the time', 'f() { sleep 0.01; f & }; f 31337 & sleep 31337 &'],
];
const isLeft = (): string[] => {
  const { stdout } = spawnSync('ps', ['-ww', '-o', 'pid=,args=', '-U', String(alice.uid)], {
    encoding: 'utf8',
  });
  return stdout.split('\n').filter((line) => line !== '');
};

for (const canGain of [false, true])
  for (const [what, leave] of evasions) {
    child(`what it leaves ends with it: ${what}${canGain ? ', with enroot’s privileges' : ''}`, async () => {
      const command = commandOf('sh', '-c', `exec >/dev/null 2>&1; ${leave}\n sleep 0.1`);
      await run(asUser(alice, command, { canGain }));
      assert.equal(isLeft(), []);
    });
    child(`or is killed with it: ${what}${canGain ? ', with enroot’s privileges' : ''}`, async () => {
      const command = commandOf(
        'sh',
        '-c',
        `exec >/dev/null 2>&1; ${leave}\n kill -STOP $$; exec sleep 31337`,
      );
      const late = run(asUser(alice, { ...command, timeoutMs: 300 }, { canGain }));
      await assert.rejects(late, CommandFailed, /did not end within/);
      // Killed, they may be a moment on their way out.
      for (let round = 0; round < 100 && isLeft().length > 0; round++) await sleep(20);
      assert.equal(isLeft(), []);
    });
  }

child('it writes no core file, and has no more files and processes than that', async () => {
  const { stdout } = await run(
    asUser(alice, commandOf('sh', '-c', 'cat /proc/self/limits /proc/self/oom_score_adj')),
  );
  const text = stdout.toString();
  const limit = (name: string): number => Number(new RegExp(`^${name} +(\\d+)`, 'm').exec(text)?.[1]);
  assert.is(limit('Max core file size'), 0);
  assert.ok(limit('Max open files') <= 65_536 && limit('Max processes') <= 8192, text);
  assert.not.match(text, /^-\d+$/m);
});

child('of files in memory that are root’s it fills little', async () => {
  const command = commandOf(
    'sh',
    '-c',
    'head --bytes=3000000 /dev/zero || echo full >&2; exec 3>&1; stat --dereference --format=%s /dev/fd/3 >&2; exit 1',
  );
  const failure = await assert.rejects(runBriefly(asUser(alice, command)), CommandFailed);
  assert.match(failure.stderrTail, /full\n1048576$/);
});

child('what enroot runs finds itself and its parents in /proc', async () => {
  const script =
    'sh -c \'echo "$(cat /proc/$$/comm) $(cat /proc/$PPID/comm)"; ls -d /proc/[0-9]* | wc -l\'; :';
  const { stdout } = await run(
    asUser(alice, commandOf('timeout', '10', 'sh', '-c', script), { canGain: true }),
  );
  const [names, count] = stdout.toString().trim().split('\n');
  assert.is(names, 'sh sh');
  assert.ok(Number(count) < 10, count);
});

child('two enroots of a user at once have other process numbers', async () => {
  const numbers = await Promise.all(
    [1, 2, 3].map(async () => {
      const command = commandOf('timeout', '10', 'sh', '-c', 'echo $$; sleep 0.2');
      return (await run(asUser(alice, command, { canGain: true }))).stdout.toString();
    }),
  );
  assert.is(new Set(numbers).size, 3, numbers.join());
});

child('where root may not mount in a namespace of its own, enroot runs without', async () => {
  using _ = replaceProgram('unshare', 'echo "unshare: Operation not permitted" >&2; exit 1');
  const { stdout } = await run(asUser(alice, commandOf('id', '--user'), { canGain: true }));
  assert.is(stdout.toString(), `${alice.uid}\n`);
});

child('who is that user already asks for no other ids', () => {
  const { file: program, args } = withUserIds(alice, () => asUser(alice, cat));
  assert.is(program, 'setpriv');
  assert.equal(args, [
    ...['--inh-caps=-all', '--no-new-privs', '--pdeathsig=KILL'],
    ...['--', 'cat', '/proc/self/status'],
  ]);
});

child('it reads what its groups may, and not what root may', async () => {
  const shared = file('shared', { uid: 0, gid: readersGid }, 0o640);
  const secret = file('secret', { uid: 0, gid: 0 }, 0o600);
  assert.is((await run(asUser(alice, commandOf('cat', shared)))).stdout.toString(), 'shared');
  await assert.rejects(run(asUser(bob, commandOf('cat', shared))), CommandFailed, /Permission denied/);
  await assert.rejects(run(asUser(alice, commandOf('cat', secret))), CommandFailed, /Permission denied/);
});

child('what it makes is the user’s, and it does not get far in root’s directories', async () => {
  await run(asUser(alice, commandOf('touch', at('made'))));
  const { uid, gid } = statSync(at('made'));
  assert.equal([uid, gid], [alice.uid, alice.gid]);
  await assert.rejects(run(asUser(alice, commandOf('touch', join(machineRoot, 'made')))), CommandFailed);
});

child('arguments that look like options of setpriv are the command’s', async () => {
  const { stdout } = await run(asUser(alice, commandOf('printf', '%s|', '--reuid=0', '--', '-h')));
  assert.is(stdout.toString(), '--reuid=0|--|-h|');
});

child('the rest of the command stays as it was', async () => {
  const onStart = (): void => undefined;
  const command = { ...cat, input: 'x', environment: { A: '1' }, onStart };
  const { file: _file, args: _args, ...rest } = asUser(alice, command);
  assert.equal(rest, {
    timeoutMs: longMs,
    input: 'x',
    environment: { A: '1' },
    onStart,
    program: 'cat',
    isConfined: true,
  });
  const { stdout } = await run(asUser(alice, { ...commandOf('env'), environment: { A: '1' } }));
  assert.match(stdout.toString(), /^PATH=\S+\nLC_ALL=C\nA=1\n$/);
});

child('a program that is not there fails as one, and setpriv says so', async () => {
  const failure = await assert.rejects(run(asUser(alice, commandOf('no-such-program'))), CommandFailed);
  assert.is(failure.exitCode, 127);
  assert.match(failure.stderrTail, /^setpriv: .*no-such-program/);
});

child('for a user whom no database knows nothing is run', async () => {
  const unknown = { uid: 59_999, gid: 59_999 };
  const failure = await assert.rejects(run(asUser(unknown, commandOf('touch', at('made')))), CommandFailed);
  assert.match(failure.stderrTail, /^setpriv: /);
  assert.equal(readdirSync(root), []);
});

/**
 * Starts a program of ours that runs a shell as alice, is killed, and tells the shell's pid: not by what the
 * shell says, which is in a PID namespace.
 */
async function killParentOf(script: string, privileges: string): Promise<number> {
  const library = (name: string): string =>
    JSON.stringify(join(import.meta.dirname, '../../../lib/system', name));
  const path = at('program.ts');
  writeFileSync(
    path,
    `import { asUser } from ${library('as-user.ts')};
     import { run } from ${library('run-command.ts')};
     await run({
       ...asUser(${JSON.stringify(alice)}, { file: 'sh', args: ['-c', ${JSON.stringify(script)}], timeoutMs: ${longMs} }, ${privileges}),
       onStdout: (chunk) => process.stdout.write(chunk),
     });`,
  );
  const parent: ChildProcess = spawn(process.execPath, [path], { stdio: ['ignore', 'pipe', 'inherit'] });
  await once(parent.stdout!, 'data');
  const pid = Number(
    readdirSync('/proc').find(
      (name) => /^\d+$/.test(name) && commandLineOf(name) === ['sh', '-c', script, ''].join('\0'),
    ),
  );
  assert.ok(isRunning(pid));
  parent.kill('SIGKILL');
  await once(parent, 'exit');
  return pid;
}

function commandLineOf(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8');
  } catch {
    return '';
  }
}

function isRunning(pid: number): boolean {
  try {
    return !/^State:\t[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'latin1'));
  } catch {
    return false;
  }
}

child('it dies with us, even when we are killed', async () => {
  const pid = await killParentOf(
    `trap "" TERM INT HUP PIPE; echo ready; while :; do sleep 0.01; done`,
    '{ canGain: false }',
  );
  // Without the signal it would stay, beyond this file's limit.
  while (isRunning(pid)) await sleep(5);
});

child('a command that ends others is asked to end when we die', async () => {
  const script = `trap 'touch ${at('cleaned')}; exit' TERM; echo ready; while :; do sleep 0.01; done`;
  const pid = await killParentOf(script, "{ canGain: true, deathSignal: 'TERM' }");
  while (isRunning(pid)) await sleep(5);
  assert.ok(readdirSync(root).includes('cleaned'));
});

child.run();
