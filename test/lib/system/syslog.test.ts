/**
 * syslog.ts up to the daemon's socket, up to logger(1), and to stderr.
 *
 * The daemon is a real rsyslogd on a socket of its own. In the private machine, which has none at /dev/log, a
 * stand-in takes logger's place, to see what it is handed or to misbehave; where the real one has to judge,
 * it runs with --no-act, which prints what it would send.
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { logLevels, syslogFacilities, type LogLevel } from '../../../lib/core/settings.ts';
import { openLog, type LogSettings } from '../../../lib/system/syslog.ts';
import { until } from '../../helpers/node.ts';
import {
  command,
  enterPrivateMachine,
  mount,
  replaceProgram,
  syslogPath,
  umount,
  unlessPrivateMachine,
} from '../../helpers/private-machine.ts';
import { assert, suite, unlessStrace } from '../../helpers/suite.ts';

enterPrivateMachine();

const settings: LogSettings = { logTarget: 'syslog', logLevel: 'info', syslogFacility: 'daemon' };

let directory: string;
const at = (name: string): string => join(directory, name);
const contentOf = (path: string): string => (existsSync(path) ? readFileSync(path, 'utf8') : '');

/** Runs a program of ours with `openLog` and `settings` at hand, as its stderr is ours otherwise. */
function program(
  text: string,
  wrapper: readonly string[] = [],
): { status: number | null; stdout: string; stderr: string; pid: number } {
  const path = at('program.ts');
  const module = join(import.meta.dirname, '../../../lib/system/syslog.ts');
  writeFileSync(
    path,
    `import { closeSync } from 'node:fs';
     import { openLog } from ${JSON.stringify(module)};
     const settings = ${JSON.stringify(settings)};
     ${text}`,
  );
  const [file, ...parameters] = [...wrapper, process.execPath, path];
  return spawnSync(file, parameters, { encoding: 'utf8', timeout: 60_000, killSignal: 'SIGKILL' });
}

function inDirectory(test: ReturnType<typeof suite>): ReturnType<typeof suite> {
  test.before.each(() => {
    directory = mkdtempSync(join(tmpdir(), 'syslog-test-'));
  });
  test.after.each(() => {
    rmSync(directory, { recursive: true });
  });
  return test;
}

const stderr = inDirectory(suite('log to stderr'));

stderr('a line says who, how grave and what, and is there at once', () => {
  const result = program(`
    const log = openLog({ ...settings, logTarget: 'stderr' });
    log.write('warning', 'gc-kept', { uid: 7, reason: 'a b\\nc' });
    process.exit(5);`);
  assert.is(result.status, 5);
  assert.is(result.stderr, `container-cache[${result.pid}]: warning: gc-kept uid=7 reason="a b\\nc"\n`);
});

stderr('what is less grave than the level is left out', () => {
  for (const [index, logLevel] of logLevels.entries()) {
    const { stderr: text } = program(`
      const log = openLog({ ...settings, logTarget: 'stderr', logLevel: '${logLevel}' });
      for (const level of ${JSON.stringify(logLevels)}) log.write(level, 'x', {});
      await log.flush();`);
    const written = text
      .trim()
      .split('\n')
      .map((line) => line.replace(/^.*\]: (\w+): x$/, '$1'));
    assert.equal(written, logLevels.slice(0, index + 1));
  }
});

stderr('nothing is handed to syslog', () => {
  const before = contentOf(syslogPath);
  program(`
    const log = openLog({ ...settings, logTarget: 'stderr' });
    log.write('error', 'x', {});
    await log.flush();`);
  assert.is(contentOf(syslogPath), before);
});

stderr('a stderr that is closed is no failure', () => {
  const result = program(`
    closeSync(2);
    const log = openLog({ ...settings, logTarget: 'stderr' });
    log.write('error', 'x', {});
    await log.flush();
    console.log('done');`);
  assert.equal([result.status, result.stdout], [0, 'done\n']);
});

stderr.run();

const syslog = inDirectory(suite('log to syslog', { skip: unlessPrivateMachine }));

/** What the private machine has in logger's place. */
const keep = `cat >>${syslogPath}`;
/** Sends nothing, wherever this machine's syslog may be, and prints what it would have sent. */
const realWithoutSending = '/usr/bin/logger --no-act --stderr --socket-errors=off';

/** Puts a shell script in the place of logger, until it is disposed of. */
function replaceLogger(body: string): Disposable {
  replaceProgram('logger', body);
  return {
    [Symbol.dispose]: () => {
      replaceProgram('logger', keep);
    },
  };
}

/** What a log hands to logger, by a stand-in that keeps it. */
async function handed(
  action: (log: ReturnType<typeof openLog>) => unknown,
  changed: Partial<LogSettings> = {},
): Promise<string> {
  rmSync(syslogPath, { force: true });
  const log = openLog({ ...settings, ...changed });
  await action(log);
  await log.flush();
  return contentOf(syslogPath);
}

syslog('a line has its priority before it, as a number', async () => {
  const text = await handed((log) => {
    log.write('info', 'prolog', { job: 1, image: '/x y' });
    log.write('error', 'epilog', { job: 1 });
  });
  assert.is(text, '<30>prolog job=1 image="/x y"\n<27>epilog job=1\n');
});

syslog('facilities and levels have the numbers that logger knows them by', async () => {
  const levelNames: Readonly<Record<LogLevel, string>> = {
    error: 'err',
    warning: 'warning',
    info: 'info',
    debug: 'debug',
  };
  for (const syslogFacility of syslogFacilities) {
    for (const level of logLevels) {
      const ours = await handed(
        (log) => {
          log.write(level, 'x', {});
        },
        { syslogFacility, logLevel: 'debug' },
      );
      const priority = `${syslogFacility}.${levelNames[level]}`;
      const { stderr: theirs } = spawnSync('sh', ['-c', `${realWithoutSending} --priority ${priority} x`], {
        encoding: 'utf8',
      });
      assert.is(ours.replace(/>.*\n/, '>'), theirs.replace(/>.*\n/, '>'), priority);
    }
  }
});

syslog('what is less grave than the level is left out', async () => {
  for (const [index, logLevel] of logLevels.entries()) {
    const text = await handed(
      (log) => {
        for (const level of logLevels) log.write(level, level, {});
      },
      { logLevel },
    );
    assert.equal(text.replaceAll(/<\d+>/g, '').trim().split('\n'), logLevels.slice(0, index + 1));
  }
});

syslog('each line is handed over once; without a line no logger is started', async () => {
  using _ = replaceLogger(`echo start >>${at('starts')}; cat >>${syslogPath}`);
  const text = await handed(async (log) => {
    await log.flush();
    log.write('debug', 'left-out', {});
    await log.flush();
    assert.is(contentOf(at('starts')), '');
    log.write('info', 'one', {});
    log.write('info', 'two', {});
    await log.flush();
    log.write('info', 'three', {});
  });
  assert.is(text, '<30>one\n<30>two\n<30>three\n');
  assert.is(contentOf(at('starts')), 'start\nstart\n');
});

syslog('the real logger reads tag, process and priority from what it is handed', async () => {
  using _ = replaceLogger(`exec ${realWithoutSending} "$@" 2>>${at('sent')}`);
  await handed(
    (log) => {
      log.write('warning', 'prolog', { image: '<0>evil', reason: '\n<0>evil' });
      log.write('info', 'x', {});
    },
    { syslogFacility: 'local3' },
  );
  const lines = contentOf(at('sent')).trimEnd().split('\n');
  const head = (priority: number): string =>
    `^<${priority}>\\w{3} +\\d+ [\\d:]{8} (?:\\S+ )?container-cache\\[${process.pid}\\]: `;
  assert.is(lines.length, 2);
  assert.match(lines[0]!, new RegExp(`${head(19 * 8 + 4)}prolog image="<0>evil" reason="\\\\n<0>evil"$`));
  assert.match(lines[1]!, new RegExp(`${head(19 * 8 + 6)}x$`));
});

syslog('the real logger cuts no line that a log can have', async () => {
  using _ = replaceLogger(`exec ${realWithoutSending} "$@" 2>>${at('sent')}`);
  const fields = Object.fromEntries(
    Array.from({ length: 20 }, (_one, index) => [`k${index}`, '\u6771'.repeat(400)]),
  );
  await handed((log) => {
    log.write('info', 'x', { ...fields });
  });
  const lines = contentOf(at('sent')).trimEnd().split('\n');
  assert.is(lines.length, 1);
  assert.match(lines[0]!, /: x k0="\u6771{400}" .*\u6771…$/);
});

syslog('many lines at once all arrive', async () => {
  const text = await handed((log) => {
    for (let index = 0; index < 3000; index++) log.write('info', 'x', { index, image: 'a'.repeat(100) });
  });
  assert.is(text.trimEnd().split('\n').length, 3000);
});

/** Logs a line, says on stdout that it went on, and ends. */
const goesOn = `
  const log = openLog(settings);
  log.write('error', 'prolog', { job: 1, result: 'failed' });
  await log.flush();
  console.log('went on');`;

syslog('a logger that fails does not fail the program; the lines go to stderr', () => {
  using _ = replaceLogger('cat >/dev/null; echo "no socket" >&2; exit 1');
  const result = program(goesOn);
  assert.equal([result.status, result.stdout], [0, 'went on\n']);
  assert.match(
    result.stderr,
    /^container-cache: Cannot reach syslog: .*logger exited with 1: no socket\n<27>prolog job=1 result=failed\n$/,
  );
});

syslog('a logger that hangs does not hang the program', () => {
  using _ = replaceLogger(`echo $$ >${at('pid')}; trap '' TERM; while :; do sleep 0.1; done`);
  const result = program(goesOn);
  assert.equal([result.status, result.stdout], [0, 'went on\n']);
  assert.match(
    result.stderr,
    /^container-cache: Cannot reach syslog: .*did not end within 5\.0 s and was killed\n<27>prolog /,
  );
  const pid = contentOf(at('pid')).trim();
  assert.not.ok(
    readdirSync('/proc').includes(pid) && /^State:\t[^ZX]/m.test(contentOf(`/proc/${pid}/status`)),
  );
});

syslog('a logger that leaves a process behind with everything open is not waited for', () => {
  using _ = replaceLogger(`cat >/dev/null; sleep infinity & echo $! >${at('pid')}`);
  const result = program(goesOn);
  process.kill(Number(contentOf(at('pid'))), 'SIGKILL');
  assert.equal([result.status, result.stdout, result.stderr], [0, 'went on\n', '']);
});

syslog('a logger that cannot be started does not fail the program, with stderr closed either', () => {
  using _ = replaceLogger('');
  command('chmod', '0644', '/usr/local/sbin/logger');
  mount('--bind', '/dev/null', '/usr/bin/logger');
  try {
    const result = program(goesOn);
    assert.equal([result.status, result.stdout], [0, 'went on\n']);
    assert.match(result.stderr, /^container-cache: Cannot reach syslog: .*logger could not be started/);
    const silent = program(`closeSync(2);${goesOn}`);
    assert.equal([silent.status, silent.stdout], [0, 'went on\n']);
  } finally {
    umount('/usr/bin/logger');
  }
});

syslog.run();

const rsyslogd = '/usr/sbin/rsyslogd';
const daemon = inDirectory(
  suite('log to the daemon', { skip: existsSync(rsyslogd) ? unlessPrivateMachine : 'needs rsyslog' }),
);

/** An rsyslogd that writes down each line as it came. */
async function startDaemon(): Promise<AsyncDisposable & { readonly pid: number; readonly socket: string }> {
  const socket = at('log');
  writeFileSync(
    at('rsyslog.conf'),
    `module(load="imuxsock" SysSock.Use="off")
     input(type="imuxsock" Socket="${socket}" RateLimit.Interval="0")
     template(name="raw" type="string" string="%rawmsg%\\n")
     action(type="omfile" file="${at('received')}" template="raw")\n`,
  );
  const child = spawn(rsyslogd, ['-n', '-f', at('rsyslog.conf'), '-i', at('pid')], { stdio: 'ignore' });
  const ended = once(child, 'exit');
  await until('rsyslogd listens', () => existsSync(socket));
  return {
    pid: child.pid!,
    socket,
    [Symbol.asyncDispose]: async () => {
      child.kill('SIGKILL');
      await ended;
    },
  };
}

const received = (): string[] => contentOf(at('received')).split('\n').slice(0, -1);
/** Without the time, which may differ by a second, and the process ID. */
const unstamped = (line: string | undefined): string | undefined =>
  line?.replace(/>\w{3} [ \d]\d [\d:]{8} /, '>TIME ').replace(/\[\d+\]/, '[PID]');

daemon('a line comes in as one of logger(1) does, with the process ID of ours', async () => {
  rmSync(syslogPath, { force: true });
  await using rsyslog = await startDaemon();
  const log = openLog(settings, rsyslog.socket);
  const reason = `<0>evil\n<0>\u6771 ${'a'.repeat(9000)}`;
  log.write('warning', 'prolog', { image: '<0>x', reason });
  log.write('error', 'epilog', { job: 1 });
  await log.flush();
  await until('both lines are there', () => received().length === 2);
  const [first = '', second] = received();
  assert.match(first, new RegExp(`container-cache\\[${process.pid}\\]: `));
  const text = first.replace(/^.*?\]: /, '');
  const args = [
    '--socket',
    rsyslog.socket,
    '--prio-prefix',
    '--tag',
    'container-cache[1]',
    '--size',
    '16384',
  ];
  spawnSync('/usr/bin/logger', args, { input: `<28>${text}\n<27>epilog job=1\n` });
  await until('those of logger are there', () => received().length === 4);
  assert.equal(received().slice(2).map(unstamped), [first, second].map(unstamped));
  assert.is(contentOf(syslogPath), '');
});

daemon('many lines at once all arrive, in their order', async () => {
  await using rsyslog = await startDaemon();
  const log = openLog(settings, rsyslog.socket);
  for (let index = 0; index < 3000; index++) log.write('info', 'x', { index });
  await log.flush();
  await until('all are there', () => received().length === 3000);
  assert.ok(received().every((line, index) => line.endsWith(`: x index=${index}`)));
});

daemon.unless(unlessStrace, 'a signal in the middle of a line costs nothing', async () => {
  rmSync(syslogPath, { force: true });
  await using rsyslog = await startDaemon();
  const interrupted = [
    '-f',
    '-qq',
    '-o',
    at('trace'),
    '-e',
    'trace=sendto',
    '-e',
    'inject=sendto:error=EINTR:when=1',
  ];
  const text = `
    const log = openLog(settings, ${JSON.stringify(rsyslog.socket)});
    log.write('info', 'x', {});
    await log.flush();`;
  assert.is(program(text, ['/usr/bin/strace', ...interrupted]).status, 0);
  assert.match(contentOf(at('trace')), /EINTR.*\(INJECTED\)/);
  await until('the line is there', () => received().length === 1);
  assert.is(contentOf(syslogPath), '');
});

daemon('a daemon that does not read is waited for, and then the lines go to stderr', async () => {
  await using rsyslog = await startDaemon();
  process.kill(rsyslog.pid, 'SIGSTOP');
  const startedMs = performance.now();
  const result = program(`
    const log = openLog(settings, ${JSON.stringify(rsyslog.socket)});
    for (let index = 0; index < 10000; index++) log.write('error', 'x', { index });
    await log.flush();
    console.log('went on');`);
  assert.equal([result.status, result.stdout], [0, 'went on\n']);
  assert.ok(performance.now() - startedMs < 30_000);
  assert.match(
    result.stderr,
    /^container-cache: Cannot reach syslog: its daemon does not read\n<27>x index=\d+\n/,
  );
  assert.match(result.stderr, /<27>x index=9999\n$/);
});

daemon('where nobody listens, logger is asked', async () => {
  rmSync(syslogPath, { force: true });
  for (const socket of [at('none'), at('file')]) {
    writeFileSync(at('file'), '');
    const log = openLog(settings, socket);
    log.write('info', 'x', { socket });
    await log.flush();
  }
  assert.is(contentOf(syslogPath), `<30>x socket=${at('none')}\n<30>x socket=${at('file')}\n`);
});

daemon.run();
