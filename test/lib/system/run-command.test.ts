/**
 * run-command.ts with real programs: bounded in time and output, and waiting for nothing it need not wait
 * for.
 */
import { spawnSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { errnoOf } from '../../../lib/system/errno.ts';
import {
  childEnvironment,
  CommandFailed,
  run,
  runBriefly,
  runSync,
  type Command,
} from '../../../lib/system/run-command.ts';
import {
  alice,
  command,
  enterPrivateMachine,
  machineRoot,
  unlessPrivateMachine,
} from '../../helpers/private-machine.ts';
import { assert, suite } from '../../helpers/suite.ts';

enterPrivateMachine();

/** Long enough never to decide a test's outcome. */
const longMs = 60_000;
/** For commands that never end by themselves. */
const shortMs = 200;

let directory: string;

const shell = (script: string, more: Partial<Command> = {}): Command => ({
  file: 'sh',
  args: ['-c', script],
  timeoutMs: longMs,
  ...more,
});

function isRunning(pid: number): boolean {
  try {
    return !/^State:\t[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'latin1'));
  } catch {
    return false;
  }
}

async function untilEnded(pid: number): Promise<void> {
  while (isRunning(pid)) await sleep(5);
}

/**
 * Resolves when no more descriptors are open than that; pipes are closed a little later than their command
 * ends.
 */
async function untilOpen(descriptors: number): Promise<void> {
  while (readdirSync('/proc/self/fd').length > descriptors) await sleep(5);
}

for (const runner of [run, runBriefly]) {
  const test = suite(`${runner.name}()`);

  test.before.each(() => {
    directory = mkdtempSync(join(tmpdir(), 'run-test-'));
  });
  test.after.each(() => {
    rmSync(directory, { recursive: true });
  });

  const outputOf = async (script: string, more: Partial<Command> = {}): Promise<string> =>
    (await runner(shell(script, more))).stdout.toString('utf8');

  const failureOf = (script: string, more: Partial<Command> = {}): Promise<CommandFailed> =>
    assert.rejects(runner(shell(script, more)), CommandFailed);

  test('gives what the command printed, and how long it took', async () => {
    const { stdout, durationMs } = await runner(shell("printf 'a\\0b\\377'; echo complaint >&2"));
    assert.ok(stdout.equals(Buffer.from([0x61, 0, 0x62, 0xff])));
    assert.ok(durationMs > 0);
  });

  test('the command starts in / with a fixed environment, and what is added to it', async () => {
    process.env['CONTAINER_CACHE_TEST_SECRET'] = 'x';
    const { stdout } = await runner({ file: 'env', args: [], timeoutMs: longMs, environment: { A: 'b c' } });
    delete process.env['CONTAINER_CACHE_TEST_SECRET'];
    assert.equal(stdout.toString().trimEnd().split('\n').sort(), [
      'A=b c',
      'LC_ALL=C',
      `PATH=${childEnvironment['PATH']!}`,
    ]);
    assert.is(await outputOf('pwd -P'), '/\n');
  });

  test('arguments are handed on as they are', async () => {
    const args = ['%s|', '$(id)', 'a b', "'", '"', '\n', '*', ''];
    const { stdout } = await runner({ file: 'printf', args, timeoutMs: longMs });
    assert.is(
      stdout.toString(),
      args
        .slice(1)
        .map((text) => `${text}|`)
        .join(''),
    );
  });

  test('input reaches the command to its end; without input it reads nothing', async () => {
    const input = 'größe\n'.repeat(8000);
    assert.is(await outputOf('sha256sum', { input }), await outputOf(`sha256sum <${writeInput(input)}`));
    assert.is(await outputOf('cat'), '');
  });

  function writeInput(text: string): string {
    const path = join(directory, 'input');
    writeFileSync(path, text);
    return path;
  }

  test('a command that does not read its input has not failed by that', async () => {
    assert.is(await outputOf('echo done', { input: 'x'.repeat(1_000_000) }), 'done\n');
  });

  test('descriptors arrive as 3, 4, …, and no other of ours is open', async () => {
    const [first, second, unrelated] = ['a', 'b', 'c'].map((name) => {
      const path = join(directory, name);
      writeFileSync(path, name);
      return openSync(path, 'r');
    }) as [number, number, number];
    const descriptors = [second, first];
    assert.is(await outputOf('cat <&3; cat <&4', { descriptors }), 'ba');
    const open = await outputOf('for fd in /proc/self/fd/*; do readlink $fd; done; true', { descriptors });
    assert.equal(
      open.split('\n').filter((path) => path.startsWith(directory)),
      ['b', 'a'].map((name) => join(directory, name)),
    );
    for (const fd of [first, second, unrelated]) closeSync(fd);
  });

  test('an exit code other than 0 is a failure that tells it', async () => {
    const failure = await failureOf('echo oops >&2; exit 3');
    assert.is(failure.message, 'sh exited with 3: oops');
    assert.is(failure.file, 'sh');
    assert.equal([failure.exitCode, failure.signal, failure.timedOut], [3, undefined, false]);
    assert.is(failure.stderrTail, 'oops');
    assert.ok(Number.isSafeInteger(failure.durationMs));
    assert.is((await failureOf('exit 1')).message, 'sh exited with 1');
    // Of all that a program says, the line that tells why.
    for (const [said, cause] of [
      [
        '[INFO] Fetching layers\\n[ERROR] URL returned error code: 401\\n',
        '[ERROR] URL returned error code: 401',
      ],
      ['[INFO] Fetching layers\\n', ''],
      [
        'tar: a: Cannot write: No space left\\ntar: b: Cannot write: No space left\\ntar: Exiting with failure status\\n',
        'tar: a: Cannot write: No space left',
      ],
      ['gzip: stdout: Broken pipe\\ncurl: (7) Failed to connect\\n', 'curl: (7) Failed to connect'],
      ['first\\n\\nlast\\n\\n', 'last'],
    ] as const) {
      const failed = await failureOf(`printf '${said}' >&2; exit 5`);
      assert.is(failed.message, `sh exited with 5${cause === '' ? '' : `: ${cause}`}`);
    }
  });

  test('a signal is a failure that tells it', async () => {
    const failure = await failureOf('kill -TERM $$');
    assert.is(failure.message, 'sh was ended by SIGTERM');
    assert.equal([failure.exitCode, failure.signal, failure.timedOut], [undefined, 'SIGTERM', false]);
  });

  test('a program that is not there, may not be executed or gets too much is a failure to start', async () => {
    const before = readdirSync('/proc/self/fd').length;
    for (const [file, args, errno] of [
      ['container-cache-no-such-program', [], 'ENOENT'],
      ['/etc/passwd', [], 'EACCES'],
      ['true', ['x'.repeat(1_000_000)], 'E2BIG'],
    ] as const) {
      const failure = await assert.rejects(runner({ file, args, timeoutMs: longMs }), CommandFailed);
      assert.is(failure.message, `${file} could not be started`);
      assert.equal([failure.exitCode, failure.signal, failure.timedOut], [undefined, undefined, false]);
      assert.is(errnoOf(failure.cause), errno);
    }
    await untilOpen(before);
  });

  test('the end of what it complained is kept, and no more of it', async () => {
    const failure = await failureOf(
      'head --bytes=300000 /dev/zero | tr "\\0" x >&2; echo " last words" >&2; exit 1',
    );
    assert.ok(failure.stderrTail.endsWith('x last words'));
    assert.ok(failure.stderrTail.length <= 1024);
    assert.ok(failure.stderrTail.length > 900);
  });

  test('the start of what it printed is kept, and no more of it', async () => {
    const { stdout } = await runner(shell('head --bytes=1000000 /dev/zero | tr "\\0" x'));
    assert.is(stdout.toString(), 'x'.repeat(64 * 1024));
  });

  test('a command that does not end in time is killed', async () => {
    let pid = 0;
    const failure = await failureOf('trap "" TERM INT HUP; echo working >&2; while :; do sleep 0.01; done', {
      timeoutMs: shortMs,
      onStart: (started) => (pid = started),
    });
    assert.is(failure.message, `sh did not end within ${shortMs} ms and was killed: working`);
    assert.equal([failure.exitCode, failure.signal, failure.timedOut], [undefined, 'SIGKILL', true]);
    await untilEnded(pid);
  });

  test('a stopped command is killed like any other', async () => {
    let pid = 0;
    const options = { timeoutMs: shortMs, onStart: (started: number) => (pid = started) };
    assert.ok((await failureOf('kill -STOP $$', options)).timedOut);
    await untilEnded(pid);
  });

  test('the pid is told once, right after the start, and not of what did not start', async () => {
    const pids: number[] = [];
    const onStart = (pid: number): number => pids.push(pid);
    const running = runner(shell('echo $$', { onStart }));
    assert.is(pids.length, 1);
    assert.is((await running).stdout.toString(), `${pids[0]!}\n`);
    await assert.rejects(
      runner({ file: 'no-such-program', args: [], timeoutMs: longMs, onStart }),
      CommandFailed,
    );
    assert.is(pids.length, 1);
  });

  test('no descriptor stays open, whatever comes of it', async () => {
    // What Node itself opens on first use is open now.
    await runner(shell('true', { input: 'x' }));
    const before = readdirSync('/proc/self/fd').length;
    await runner(shell('echo x', { input: 'x' }));
    await failureOf('exit 1');
    await failureOf('exec sleep infinity', { timeoutMs: shortMs });
    await untilOpen(before);
  });

  /**
   * Runs a program of ours that runs a command with a limit of 200 ms, prints how that ended, and must then
   * come to its own end: were it to wait for the command, spawnSync's limit would end it.
   */
  function endOfProgram(script: string, before = ''): { stdout: string; status: number | null } {
    const path = join(directory, 'program.ts');
    const module = join(import.meta.dirname, '../../../lib/system/run-command.ts');
    writeFileSync(
      path,
      `import { ${runner.name} } from ${JSON.stringify(module)};
       const command = { file: 'sh', args: ['-c', ${JSON.stringify(script)}], timeoutMs: ${shortMs}, input: 'x'.repeat(300_000) };
       ${before}
       await ${runner.name}(command).then(
         ({ stdout }) => { console.log('ended', stdout.toString()); },
         (error) => { console.log(error.timedOut ? 'timed out' : error.message); },
       );`,
    );
    const { stdout, status } = spawnSync(process.execPath, [path], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'inherit'],
      timeout: 20_000,
      killSignal: 'SIGKILL',
    });
    return { stdout: stdout.trim(), status };
  }

  test('a process that outlives the command with its output open is not waited for', async () => {
    const pidPath = join(directory, 'pid');
    const { stdout, status } = endOfProgram(`sleep infinity & echo $! >${pidPath}; echo mine`);
    const outliving = Number(readFileSync(pidPath, 'utf8'));
    try {
      assert.is(status, 0);
      assert.is(stdout, 'ended mine');
      assert.ok(isRunning(outliving));
    } finally {
      process.kill(outliving, 'SIGKILL');
      await untilEnded(outliving);
    }
  });

  test.unless(unlessPrivateMachine, 'a command that cannot even be killed is not waited for', async () => {
    // We are a user here, and the command becomes root's, by way of a program with the setuid bit.
    const becomeRoot = join(machineRoot, 'become-root');
    command('install', '--mode=4755', '/usr/bin/setpriv', becomeRoot);
    command('chmod', '0777', directory);
    const pidPath = join(directory, 'pid');
    const drop = `process.setgroups([]); process.setgid(${alice.gid}); process.setuid(${alice.uid});`;
    const script = `echo $$ >${pidPath}; exec ${becomeRoot} --reuid=0 --regid=0 --clear-groups sleep infinity`;
    const { stdout, status } = endOfProgram(script, drop);
    const unkillable = Number(readFileSync(pidPath, 'utf8'));
    try {
      assert.ok(isRunning(unkillable));
      assert.equal([stdout, status], ['timed out', 0]);
    } finally {
      process.kill(unkillable, 'SIGKILL');
      await untilEnded(unkillable);
    }
  });

  test.run();
}

const streams = suite('run() with callbacks');

streams('sees all that is printed, and keeps nothing of it', async () => {
  let printed = 0;
  let complained = 0;
  const { stdout } = await run(
    shell('head --bytes=1000000 /dev/zero; head --bytes=500000 /dev/zero >&2', {
      onStdout: (chunk) => (printed += chunk.byteLength),
      onStderr: (chunk) => (complained += chunk.byteLength),
    }),
  );
  assert.equal([printed, complained, stdout.byteLength], [1_000_000, 500_000, 0]);
});

streams('sees it while the command runs', async () => {
  const seen: string[] = [];
  let pid = 0;
  await run(
    shell('trap "exit 0" TERM; echo one; while :; do sleep 0.01; done', {
      onStart: (started) => (pid = started),
      onStdout: (chunk) => {
        seen.push(String(chunk));
        process.kill(pid, 'SIGTERM');
      },
    }),
  );
  assert.equal(seen, ['one\n']);
});

streams.run();

const sync = suite('runSync()');

sync('gives what was printed, whatever came of it, and why it failed', () => {
  assert.equal(runSync(shell('echo one')), { stdout: 'one\n', failure: undefined });
  const failed = runSync(shell('echo two; echo error: three >&2; exit 3'));
  assert.equal(
    [failed.stdout, failed.failure?.exitCode, failed.failure?.stderrTail],
    ['two\n', 3, 'error: three'],
  );
  const killed = runSync(shell('echo four; kill -TERM $$'));
  assert.equal(
    [killed.stdout, killed.failure?.signal, killed.failure?.timedOut],
    ['four\n', 'SIGTERM', false],
  );
});

sync('kills what does not end in time', () => {
  const { stdout, failure } = runSync(shell('echo began; exec sleep infinity', { timeoutMs: shortMs }));
  assert.equal([stdout, failure?.timedOut], ['began\n', true]);
  assert.match(failure!.message, /^sh did not end within .* and was killed$/);
});

sync('what cannot be started prints nothing', () => {
  const { stdout, failure } = runSync({ file: 'no-such-program', args: [], timeoutMs: longMs });
  assert.equal([stdout, failure?.exitCode, errnoOf(failure?.cause)], ['', undefined, 'ENOENT']);
});

sync('descriptors arrive as 3, 4, …', () => {
  const fd = openSync('/dev/null', 'r');
  try {
    assert.is(runSync(shell('readlink /proc/self/fd/3', { descriptors: [fd] })).stdout, '/dev/null\n');
  } finally {
    closeSync(fd);
  }
});

sync.run();
