/** Publishing an entry: what the kernel sees, in which order (I1, I2), and what is put aside first. */
// test: timeout 600 s
import { spawn } from 'node:child_process';
import { lstatSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { holds, isAlive, lockFileOf, openFiles, TestNode, until } from '../../helpers/node.ts';
import { alice, command, enterPrivateMachine, unlessPrivateMachine } from '../../helpers/private-machine.ts';
import { assert, suite, unlessStrace } from '../../helpers/suite.ts';

enterPrivateMachine();

const unlessTraced = unlessPrivateMachine ?? unlessStrace;

const test = suite('an entry', { skip: unlessPrivateMachine });

test.unless(unlessTraced, 'has its lock file, flocked shared, before it has its name', async () => {
  await using node = await TestNode.start();
  const trace = join(node.root, 'trace');
  const calls = 'trace=openat,flock,rename,renameat,renameat2,unlink,unlinkat';
  const wrapper = ['/usr/bin/strace', '-f', '-yy', '-o', trace, '-e', calls];
  const prolog = node.startProlog({ id: 1, user: alice, image: node.image(), wrapper });
  await until('the Prolog has done its work', () => node.jobFile(1, 'env') !== undefined);
  // strace(1) follows the holder and the room agent, too, and would stay as long.
  process.kill(node.lease(1)!.holder.pid, 'SIGKILL');
  let isOver = false;
  const ending = prolog.result.finally(() => {
    isOver = true;
  });
  await until('strace has ended', () => {
    for (const pid of isOver ? [] : node.roomAgents()) process.kill(pid, 'SIGKILL');
    return isOver;
  });
  const { line } = await ending;
  assert.is(line['result'], 'created');
  const [entry = ''] = node.entries(alice);
  const lines = readFileSync(trace, 'utf8').split('\n');
  const find = (what: string, pattern: RegExp): number => {
    const found = lines.flatMap((text, index) => (pattern.test(text) ? [index] : []));
    assert.is(found.length, 1, `${what}: ${found.map((index) => lines[index]).join('\n')}`);
    return found[0]!;
  };
  const name = basename(entry).replaceAll(/\W/g, '\\$&');
  const make = find(
    'the lock file is made',
    /openat\(.*\/\.pyxis_cache_lock", [^ ]*O_CREAT\|O_EXCL.* = \d+<[^>]*rootfs\/\.pyxis_cache_lock>/,
  );
  const lock = find('it is flocked', /flock\(\d+<[^>]*rootfs\/\.pyxis_cache_lock>, LOCK_SH\|LOCK_NB\) += 0/);
  const publish = find(
    'the entry is published',
    new RegExp(`rename(at2?)?\\(.*rootfs", .*/${name}"(, 0)?\\) += 0`),
  );
  assert.ok(
    make < lock && lock < publish,
    lines.filter((_, index) => [make, lock, publish].includes(index)).join('\n'),
  );
  // Nothing else ever had the name, and nothing was written to the entry under it.
  assert.equal(
    lines.filter((text) => text.includes(`/${basename(entry)}/`) && /O_WRONLY|O_RDWR|O_CREAT/.test(text)),
    [],
  );
});

test('that has lost its lock file while a process has it mounted is left alone', async () => {
  await using node = await TestNode.start({ settings: { on_failure: 'fail' } });
  const image = node.image();
  await node.prolog({ id: 1, user: alice, image });
  await node.epilog({ id: 1, user: alice });
  const [entry = ''] = node.entries(alice);
  const { ino } = lstatSync(entry);
  command('rm', lockFileOf(entry));
  const script = 'mount --bind "$1" /srv; exec sleep infinity';
  const container = spawn(
    'unshare',
    ['--mount', '--propagation', 'private', 'sh', '-euc', script, 'sh', entry],
    {
      stdio: 'ignore',
      env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' },
    },
  );
  try {
    await until('it is mounted', () => readFileSync(`/proc/${container.pid!}/comm`, 'utf8') === 'sleep\n');
    const { exitCode, line } = await node.prolog({ id: 2, user: alice, image });
    assert.equal([exitCode, line['code']], [0, 'ENTRY_DAMAGED']);
    assert.match(line['reason']!, /no lock file, and a process has it mounted/);
    assert.is(lstatSync(entry).ino, ino);
  } finally {
    container.kill('SIGKILL');
  }
  await until('it has ended', () => !isAlive(container.pid!));
  assert.is((await node.prolog({ id: 3, user: alice, image })).line['result'], 'created');
  assert.is.not(lstatSync(entry).ino, ino);
});

test.unless(
  unlessTraced,
  'that is evicted between the open of its lock file and the flock is not taken',
  async () => {
    await using node = await TestNode.start({ settings: { gc_min_age: 0 } });
    const image = node.image();
    await node.prolog({ id: 1, user: alice, image });
    await node.epilog({ id: 1, user: alice });
    const [entry = ''] = node.entries(alice);
    node.configure({ container_cache_gc_high: 1, container_cache_gc_low: 0, gc_min_age: 0 });
    // The Prolog stops as soon as it has read what is in it; by now it has no path to it but a descriptor's.
    const inject = [
      '-e',
      'trace=pread64',
      '-e',
      'inject=pread64:signal=SIGSTOP:when=1',
      '-P',
      lockFileOf(entry),
    ];
    const wrapper = ['/usr/bin/strace', '-qq', '-o', '/dev/null', ...inject];
    const prolog = node.startProlog({ id: 2, user: alice, image, wrapper });
    const pid = await until('it has the lock file open', () =>
      childrenOf(prolog.pid).find((child) => hasOpen(child, lockFileOf(entry))),
    );
    assert.match((await node.gc('--force')).stdout, /^gc-evicted /m);
    process.kill(pid, 'SIGCONT');
    const { line } = await prolog.result;
    assert.is(line['result'], 'created');
    assert.ok(holds(node.lease(2)!.holder.pid, entry));
  },
);

function childrenOf(pid: number): number[] {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8');
  return children.split(' ').filter(Boolean).map(Number);
}

function hasOpen(pid: number, path: string): boolean {
  try {
    return openFiles(pid).some((file) => file.path === path);
  } catch {
    // It may just close one, or end.
    return false;
  }
}

test.run();
