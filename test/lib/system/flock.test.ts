/** flock.ts with real locks on real files, held by other open files and by other processes. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { flockWithin, tryFlock } from '../../../lib/system/flock.ts';
import { assert, suite } from '../../helpers/suite.ts';

/** Long enough never to decide a test's outcome. */
const LONG_MS = 60_000;

let directory: string;
let lockPath: string;
const opened: number[] = [];

function openLock(): number {
  const descriptor = openSync(lockPath, 'a');
  opened.push(descriptor);
  return descriptor;
}

function giveUp(descriptor: number): void {
  opened.splice(opened.indexOf(descriptor), 1);
  closeSync(descriptor);
}

/** Process ids of the flock(1) that wait for our lock file: they are children of this process. */
function waiters(): number[] {
  const children = readFileSync(`/proc/self/task/${process.pid}/children`, 'utf8');
  return children.split(' ').filter(Boolean).map(Number);
}

/** Resolves when flock(1) sleeps in flock(2): the kernel lists it as blocked. */
async function untilBlocked(): Promise<void> {
  // "-> FLOCK" in /proc/locks is a request that waits, see proc(5).
  while (
    !waiters().some((pid) => new RegExp(`-> FLOCK .* ${pid} `).test(readFileSync('/proc/locks', 'utf8')))
  ) {
    await sleep(5);
  }
}

/** A zombie has ended: whether an orphan is reaped is up to the machine's first process. */
function isRunning(pid: number): boolean {
  try {
    return !/^State:\tZ/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

const test = suite('flock');

test.before(() => {
  directory = mkdtempSync(join(tmpdir(), 'flock-test-'));
  lockPath = join(directory, 'lock');
});

test.after(() => {
  rmSync(directory, { recursive: true });
});

test.after.each(() => {
  for (const descriptor of opened.splice(0)) closeSync(descriptor);
});

test('shared locks go together', () => {
  assert.ok(tryFlock(openLock(), 'shared'));
  assert.ok(tryFlock(openLock(), 'shared'));
});

test('an exclusive lock refuses both, and is refused by both', () => {
  const holder = openLock();
  const other = openLock();
  assert.ok(tryFlock(holder, 'exclusive'));
  assert.not(tryFlock(other, 'shared'));
  assert.not(tryFlock(other, 'exclusive'));
  assert.ok(tryFlock(holder, 'shared'));
  assert.not(tryFlock(other, 'exclusive'));
});

test('a process that inherits the descriptor holds the lock when we have closed it', async () => {
  const descriptor = openSync(lockPath, 'a');
  assert.ok(tryFlock(descriptor, 'shared'));
  const heir = spawn('sleep', ['infinity'], { stdio: ['ignore', 'ignore', 'ignore', descriptor] });
  closeSync(descriptor);
  const other = openLock();
  assert.not(tryFlock(other, 'exclusive'));
  heir.kill('SIGKILL');
  await once(heir, 'exit');
  assert.ok(tryFlock(other, 'exclusive'));
});

test('a descriptor that is not open is an error, not a refusal', () => {
  const closed = openSync(lockPath, 'a');
  closeSync(closed);
  const error = assert.throws(
    () => tryFlock(closed, 'shared'),
    Error,
    /^Cannot flock descriptor \d+ shared$/,
  );
  assert.is((error.cause as NodeJS.ErrnoException).code, 'EBADF');
});

test('a wait starts no process when the lock is free', async () => {
  const wait = flockWithin(openLock(), 'exclusive', LONG_MS);
  assert.equal(waiters(), []);
  assert.ok(await wait);
});

test('a wait ends with the lock when its holder gives it up', async () => {
  const holder = openLock();
  const other = openLock();
  assert.ok(tryFlock(holder, 'exclusive'));
  const wait = flockWithin(other, 'exclusive', LONG_MS);
  await untilBlocked();
  giveUp(holder);
  assert.ok(await wait);
  assert.not(tryFlock(openLock(), 'shared'));
});

test('a wait ends without the lock when its time runs out', async () => {
  const holder = openLock();
  const other = openLock();
  assert.ok(tryFlock(holder, 'exclusive'));
  assert.not(await flockWithin(other, 'shared', 20));
  assert.not(await flockWithin(other, 'shared', 0));
  giveUp(holder);
  assert.ok(tryFlock(openLock(), 'exclusive'));
});

test('a waiter dies with the process it waits for', async () => {
  const holder = openLock();
  assert.ok(tryFlock(holder, 'exclusive'));
  const program = join(directory, 'waits.ts');
  const flockModule = JSON.stringify(join(import.meta.dirname, '../../../lib/system/flock.ts'));
  writeFileSync(
    program,
    `import { openSync } from 'node:fs';
     import { flockWithin } from ${flockModule};
     await flockWithin(openSync(${JSON.stringify(lockPath)}, 'a'), 'exclusive', ${LONG_MS});`,
  );
  const waits = spawn(process.execPath, [program], { stdio: 'ignore' });
  const childrenPath = `/proc/${String(waits.pid)}/task/${String(waits.pid)}/children`;
  let waiter: number | undefined;
  while (waiter === undefined || !readFileSync('/proc/locks', 'utf8').includes(` ${waiter} `)) {
    await sleep(5);
    waiter = readFileSync(childrenPath, 'utf8').split(' ').filter(Boolean).map(Number)[0];
  }
  waits.kill('SIGKILL');
  await once(waits, 'exit');
  // Without the signal the waiter would stay until its time-out, far beyond this file's limit.
  while (isRunning(waiter)) await sleep(5);
  giveUp(holder);
  assert.ok(tryFlock(openLock(), 'exclusive'));
});

test.run();
