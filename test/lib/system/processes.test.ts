/** processes.ts on real processes, with names and ends as inconvenient as they come. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { withUserIds } from '../../../lib/system/as-user.ts';
import {
  listProcesses,
  processCommandLine,
  processMountinfo,
  processStartTicks,
  processUid,
  processVariable,
} from '../../../lib/system/processes.ts';
import { assert, suite, unlessRoot } from '../../helpers/suite.ts';

const nobody = { uid: 65_534, gid: 65_534 };
const children: ChildProcess[] = [];

/** Starts a program; `ready` is what it prints when it is as the test wants it. */
async function start(
  file: string,
  parameters: readonly string[],
  options: { env?: Record<string, string>; uid?: number; gid?: number; argv0?: string } = {},
  ready?: string,
): Promise<number> {
  const child = spawn(file, parameters, { ...options, stdio: ['ignore', 'pipe', 'inherit'] });
  children.push(child);
  await once(child, 'spawn');
  for await (const chunk of ready === undefined ? [] : child.stdout)
    if (String(chunk).includes(ready!)) break;
  return child.pid!;
}

/** Ends a process and has it reaped, so that nothing of it is left. */
async function end(pid: number): Promise<void> {
  const child = children.find((one) => one.pid === pid)!;
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
}

const test = suite('processes');

test.after.each(async () => {
  for (const child of children.splice(0)) {
    if (child.exitCode !== null || child.signalCode !== null) continue;
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
  }
});

const statField = (pid: number, field: number): string | undefined =>
  readFileSync(`/proc/${pid}/stat`, 'latin1')
    .replace(/^.*\) /s, '')
    .split(' ')[field - 3];

test('the start time is the 22nd field of stat, and stays', async () => {
  const pid = await start('sleep', ['infinity']);
  const ticks = processStartTicks(pid);
  assert.match(ticks ?? '', /^\d+$/);
  assert.is(ticks, statField(pid, 22));
  await sleep(30);
  assert.is(processStartTicks(pid), ticks);
});

test('a process that started later has a later start time, or the same tick', async () => {
  const first = await start('sleep', ['infinity']);
  const second = await start('sleep', ['infinity']);
  assert.ok(Number(processStartTicks(first)) <= Number(processStartTicks(second)));
  assert.ok(Number(processStartTicks(process.pid)) <= Number(processStartTicks(first)));
});

test('a name with parentheses, blanks and newlines is no trap', async () => {
  for (const name of ['a) Z 1 (', ') X 0 0', '((', '))', 'a\\nb) 1 2 3']) {
    const script = `printf '${name}' >/proc/$$/comm; echo ready; read -r _ </proc/self/fd/0; while :; do sleep 1; done`;
    const pid = await start('sh', ['-c', script], {}, 'ready');
    const ticks = processStartTicks(pid);
    assert.match(ticks ?? '', /^\d+$/, name);
    assert.is(ticks, statField(pid, 22), name);
  }
});

test('a zombie has ended', () => {
  // As long as this test is synchronous, nobody reaps it.
  const child = spawn('true', { stdio: 'ignore' });
  children.push(child);
  const pid = child.pid!;
  while (!/^State:\tZ/m.test(readFileSync(`/proc/${pid}/status`, 'latin1'))) {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
  }
  assert.is(processStartTicks(pid), undefined);
  assert.is(processVariable(pid, 'PATH'), undefined);
  assert.is(processMountinfo(pid, 1e6), undefined);
  assert.is(processCommandLine(pid), '');
});

test('of a process that is gone there is nothing to tell', async () => {
  const pid = await start('sleep', ['infinity'], { env: { PATH: '/usr/bin:/bin', A: '1' } });
  await end(pid);
  assert.is(processStartTicks(pid), undefined);
  assert.is(processVariable(pid, 'A'), undefined);
  assert.is(processCommandLine(pid), undefined);
  assert.is(processUid(pid), undefined);
  assert.is(processMountinfo(pid, 1e6), undefined);
});

test('a variable is found by its whole name, and has all of its value', async () => {
  const env = { PATH: '/usr/bin:/bin', AB: '1', A: 'x=y z', EMPTY: '', LEASE: '42' };
  const pid = await start('sleep', ['infinity'], { env });
  assert.is(processVariable(pid, 'A'), 'x=y z');
  assert.is(processVariable(pid, 'AB'), '1');
  assert.is(processVariable(pid, 'EMPTY'), '');
  assert.is(processVariable(pid, 'EASE'), undefined);
  assert.is(processVariable(pid, 'LEAS'), undefined);
  assert.is(processVariable(pid, 'B'), undefined);
});

test('a command line is its arguments with blanks between', async () => {
  const pid = await start('sleep', ['infinity'], { argv0: 'container-cache-lease 42' });
  assert.is(processCommandLine(pid), 'container-cache-lease 42 infinity');
  assert.ok(processCommandLine(process.pid)?.includes('processes.test.ts'));
});

test('all processes are listed, ours and a child among them', async () => {
  const pid = await start('sleep', ['infinity']);
  const all = listProcesses();
  assert.ok(all.includes(process.pid) && all.includes(pid));
  assert.ok(all.every((one) => Number.isSafeInteger(one) && one > 0));
});

test('the mounts of a process are those of its namespace', async () => {
  const pid = await start('sleep', ['infinity']);
  const all = readFileSync('/proc/self/mountinfo', 'latin1');
  assert.is(processMountinfo(pid, 1e6), all);
  assert.is(processMountinfo(pid, 100), all.slice(0, 100));
});

test('our own uid is what the system says', () => {
  assert.is(processUid(process.pid), process.getuid?.());
});

test.unless(unlessRoot, 'the uid of a process is its real one', async () => {
  const pid = await start('sleep', ['infinity'], nobody);
  assert.is(processUid(pid), nobody.uid);
  withUserIds(nobody, () => {
    assert.is(processUid(process.pid), 0);
  });
});

test.unless(unlessRoot, 'what is hidden from us is as good as gone', async () => {
  const pid = await start('sleep', ['infinity'], { env: { PATH: '/usr/bin:/bin', A: '1' } });
  withUserIds(nobody, () => {
    assert.is(processVariable(pid, 'A'), undefined);
  });
  assert.is(processVariable(pid, 'A'), '1');
});

test.run();
