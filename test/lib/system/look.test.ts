/**
 * A look at a file as a user, by our addon (addon/look.c): what find(1), realpath(1) and head(1) would say,
 * or nothing.
 */
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { loadBeneath } from '../../../lib/system/native-addon.ts';
import { mountSilentFuse, unlessFuse } from '../../helpers/filesystem.ts';
import {
  alice,
  bob,
  command,
  enterPrivateMachine,
  machineRoot,
  readersGid,
  unlessPrivateMachine,
  type TestUser,
} from '../../helpers/private-machine.ts';
import { assert, suite } from '../../helpers/suite.ts';

enterPrivateMachine();

const test = suite('look as a user', { skip: unlessPrivateMachine });

let directory: string;
const at = (name: string): string => join(directory, name);

test.before.each(() => {
  directory = mkdtempSync(join(machineRoot, 'look-'));
  chmodSync(directory, 0o755);
});
test.after.each(() => {
  rmSync(directory, { recursive: true, force: true });
});

const startBytes = 96;
const limitMs = 5000;

function look(path: string, user: TestUser = alice): string | undefined {
  const addon = loadBeneath();
  assert.is(addon.startLook(user.uid, user.gid, path, startBytes), 0);
  const seen = addon.finishLook(limitMs);
  assert.not(typeof seen === 'number');
  return (seen as Buffer | undefined)?.toString('latin1');
}

function byPrograms(path: string): string {
  const args = [
    '--reuid',
    String(alice.uid),
    '--regid',
    String(alice.gid),
    '--init-groups',
    'find',
    '-L',
    path,
  ];
  args.push('-maxdepth', '0', '-printf', '%y %s %T@ %C@ %b\\0', '-exec', 'realpath', '--zero', '{}', ';');
  args.push('-exec', 'head', `--bytes=${startBytes}`, '{}', ';');
  return spawnSync('setpriv', args, { encoding: 'latin1', env: { PATH: '/usr/bin:/bin', LC_ALL: 'C' } })
    .stdout;
}

function file(name: string, content: string | Buffer = 'x'.repeat(5000)): string {
  writeFileSync(at(name), content);
  return at(name);
}

test('it sees what the programs see', () => {
  const plain = file('plain');
  const old = file('old');
  command('touch', '--date=@1.000000001', old);
  const whole = file('whole seconds');
  command('touch', '--date=2020-02-03 04:05:06', whole);
  const sparse = file('sparse', '');
  truncateSync(sparse, 2 ** 41);
  symlinkSync('plain', at('link'));
  mkdirSync(at('sub'));
  symlinkSync('..', at('sub/up'));
  symlinkSync(at('sub/up/link'), at('far'));
  const names = ['東京', 'a b', "'$(x)`", '-rf', 'a\nb', 'x'.repeat(255)].map((name) => file(name));
  const short = [0, 1, 95, 96, 97].map((bytes) => file(`short-${bytes}`, '\0'.repeat(bytes)));
  for (const path of [
    plain,
    old,
    whole,
    sparse,
    at('link'),
    at('far'),
    `${at('sub')}/../plain`,
    ...names,
    ...short,
  ])
    assert.is(look(path), byPrograms(path), path);
});

test('of what is no regular file, or is from before 1970, it says nothing, at once', () => {
  command('mkfifo', '--mode=0666', at('fifo'));
  command('touch', '--date=@-5', file('early'));
  symlinkSync('loop', at('loop'));
  symlinkSync('nowhere', at('dangling'));
  const paths = [
    at('fifo'),
    at('early'),
    at('loop'),
    at('dangling'),
    at('none'),
    directory,
    '/dev/zero',
    '/dev/stdin',
  ];
  for (const path of paths) assert.is(look(path), undefined, path);
});

test("the user's ids and all groups decide, and nothing of root's", () => {
  const secret = file('secret');
  chmodSync(secret, 0o600);
  const readers = file('readers');
  chownSync(readers, 0, readersGid);
  chmodSync(readers, 0o640);
  const others = file('others');
  chownSync(others, 0, readersGid);
  chmodSync(others, 0o604);
  const bobs = file('bobs');
  chownSync(bobs, bob.uid, bob.gid);
  chmodSync(bobs, 0o400);
  mkdirSync(at('closed'), { mode: 0o700 });
  file('closed/image');
  const seenBy = (user: TestUser): string[] =>
    ['secret', 'readers', 'others', 'bobs', 'closed/image'].filter(
      (name) => look(at(name), user) !== undefined,
    );
  // Who is in the group of `others` is no other.
  assert.equal(seenBy(alice), ['readers']);
  assert.equal(seenBy(bob), ['others', 'bobs']);
});

test('a user whom passwd does not know is for the programs', () => {
  assert.is(look(file('plain'), { uid: 61_999, gid: 61_999, name: 'nobody-knows' }), undefined);
});

test('one at a time; its answer is taken once', () => {
  const addon = loadBeneath();
  const path = file('plain');
  assert.is(addon.startLook(alice.uid, alice.gid, path, startBytes), 0);
  assert.ok(addon.startLook(alice.uid, alice.gid, path, startBytes) < 0);
  assert.ok(addon.finishLook(limitMs) instanceof Buffer);
  assert.ok(Number(addon.finishLook(limitMs)) < 0);
  for (const bad of ['a\0b', 'x'.repeat(5000)])
    assert.ok(addon.startLook(alice.uid, alice.gid, bad, startBytes) < 0);
});

/** Children of ours that are not zombies. */
const children = (): number[] =>
  readdirSync('/proc')
    .map(Number)
    .filter((pid) => {
      try {
        const [, state, parent] = /^.*\) (\w) (\d+)/.exec(readFileSync(`/proc/${pid}/stat`, 'latin1')) ?? [];
        return state !== 'Z' && Number(parent) === process.pid;
      } catch {
        return false;
      }
    });

test.unless(
  unlessFuse,
  'a look that hangs is given up in time, has nothing of ours open, and is nobody’s to trace',
  async () => {
    const point = at('hung');
    mkdirSync(point);
    await using _ = await mountSilentFuse(point, bob, { forOthers: true });
    const before = children();
    const addon = loadBeneath();
    assert.is(addon.startLook(alice.uid, alice.gid, join(point, 'image'), startBytes), 0);
    const own = (): number[] => children().filter((pid) => !before.includes(pid));
    const startedMs = performance.now();
    let pid: number | undefined;
    // Until it has given up root for good.
    while (performance.now() - startedMs < limitMs) {
      [pid] = own();
      const status = pid === undefined ? '' : readFileSync(`/proc/${pid}/status`, 'latin1');
      if (new RegExp(`^Uid:(?:\\t${alice.uid}){4}$`, 'm').test(status) && /^CapPrm:\t0+$/m.test(status))
        break;
    }
    const status = readFileSync(`/proc/${pid}/status`, 'latin1');
    assert.match(status, /^CapPrm:\t0+$/m);
    assert.match(status, /^CapEff:\t0+$/m);
    assert.equal(readdirSync(`/proc/${pid}/fd`).length, 1);
    const asAlice = [
      '--reuid',
      String(alice.uid),
      '--regid',
      String(alice.gid),
      '--init-groups',
      'cat',
      `/proc/${pid}/environ`,
    ];
    assert.is(spawnSync('setpriv', asAlice).status, 1);
    assert.is(addon.finishLook(50), undefined);
    while (own().length > 0) assert.ok(performance.now() - startedMs < limitMs, 'it is still there');
    // And the next one is as if nothing had been.
    assert.ok(look(file('plain')) !== undefined);
  },
);

test.run();
