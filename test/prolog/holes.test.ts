/** Entries from which somebody else's program deleted: no job starts from one for long. */
// test: timeout 600 s
import { existsSync, readFileSync, rmSync, statSync, utimesSync } from 'node:fs';
import { join } from 'node:path';
import { lockPath } from '../../lib/core/layout.ts';
import { TestNode, until } from '../helpers/node.ts';
import {
  alice,
  command,
  enterPrivateMachine,
  syslogPath,
  unlessPrivateMachine,
} from '../helpers/private-machine.ts';
import type { Tree } from '../helpers/squashfs-image.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const test = suite('entries with holes', { skip: unlessPrivateMachine });

/** More directories than are watched, the last ones deep. */
const wide: Tree = {
  'bin/sh': { content: '#!', mode: 0o755 },
  'etc/passwd': 'root:x:0:0::/:/bin/sh\n',
  ...Object.fromEntries(Array.from({ length: 60 }, (_, index) => [`opt/a${index}/b/c/d/file`, `${index}`])),
};

/** Ends a job. @returns what the count says that its Epilog starts */
async function countedBy(node: TestNode, id: number): Promise<string> {
  rmSync(syslogPath, { force: true });
  node.configure({ log_target: 'syslog' });
  await node.epilog({ id, user: alice });
  const line = await until('it is counted', () => {
    const text = existsSync(syslogPath) ? readFileSync(syslogPath, 'utf8') : '';
    return /^<\d+>verify .*$/m.exec(text)?.[0];
  });
  node.configure({});
  return line;
}

test('a deletion by age is seen by the next Prolog, which makes the entry anew and says why', async () => {
  await using node = await TestNode.start();
  const image = node.image(wide, ['-all-time', '1000']);
  await node.prolog({ id: 1, user: alice, image });
  await node.epilog({ id: 1, user: alice });
  const [entry = ''] = node.entries(alice);
  command('find', node.basePath, '-type', 'f', '-mtime', '+30', '-delete');
  assert.not(existsSync(join(entry, 'bin/sh')));
  const second = await node.prolog({ id: 2, user: alice, image });
  assert.equal(
    [second.exitCode, second.line['result'], second.lines.at(-1)?.level],
    [0, 'created', 'warning'],
  );
  assert.match(
    second.line['reason'] ?? '',
    /damaged and is made anew: its directory \/\S* (?:is gone|has \d+ names of \d+)/,
  );
  assert.ok(existsSync(join(entry, 'bin/sh')));
  const third = await node.prolog({ id: 3, user: alice, image });
  assert.equal([third.line['result'], third.line['reason']], ['reused', undefined]);
  for (const id of [2, 3]) await node.epilog({ id, user: alice });
});

test('while another job holds it, the job runs without the cache, and is told why', async () => {
  await using node = await TestNode.start();
  const image = node.image(wide);
  await node.prolog({ id: 1, user: alice, image });
  rmSync(join(node.entries(alice)[0]!, 'bin/sh'));
  const second = await node.prolog({ id: 2, user: alice, image });
  assert.equal([second.exitCode, second.line['result'], second.line['code']], [0, 'failed', 'ENTRY_DAMAGED']);
  assert.match(second.line['reason'] ?? '', /its directory \/bin has 0 names of 1, and it is in use/);
  await node.epilog({ id: 1, user: alice });
  assert.is((await node.prolog({ id: 3, user: alice, image })).line['result'], 'created');
  await node.epilog({ id: 3, user: alice });
});

test('a file that nobody watches is missed by the count that an Epilog starts once a day', async () => {
  await using node = await TestNode.start();
  const image = node.image(wide);
  await node.prolog({ id: 1, user: alice, image });
  const [entry = ''] = node.entries(alice);
  rmSync(join(entry, 'opt/a59/b/c/d/file'));
  await node.epilog({ id: 1, user: alice });
  const second = await node.prolog({ id: 2, user: alice, image });
  assert.is(second.line['result'], 'reused', 'it is not a day old');
  const dayAgo = Date.now() / 1000 - 90_000;
  utimesSync(lockPath(entry), dayAgo, dayAgo);
  const counted = await countedBy(node, 2);
  assert.match(counted, /^<28>.* result=damaged reason="1 of \d+ files and directories are missing/);
  const third = await node.prolog({ id: 3, user: alice, image });
  assert.is(third.line['result'], 'created');
  assert.match(third.line['reason'] ?? '', /files of it are missing/);
  await node.epilog({ id: 3, user: alice });
});

test('an entry that is whole is counted once a day, and stays', async () => {
  await using node = await TestNode.start();
  const image = node.image({ ...wide, 'bin/dash': { link: 'bin/sh' } });
  await node.prolog({ id: 1, user: alice, image });
  await node.settle();
  const [entry = ''] = node.entries(alice);
  const dayAgo = Date.now() / 1000 - 90_000;
  utimesSync(lockPath(entry), dayAgo, dayAgo);
  assert.match(await countedBy(node, 1), /^<31>.* result=whole/);
  assert.is((await node.prolog({ id: 2, user: alice, image })).line['result'], 'reused');
  await node.epilog({ id: 2, user: alice });
  assert.ok(Date.now() - statSync(lockPath(entry)).mtimeMs < 3600_000);
});

test.run();
