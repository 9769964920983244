/** What the admin command looks like on a terminal, and that a pipe gets none of it. */
import { spawnSync } from 'node:child_process';
import { distDirectory } from '../../build/build.ts';
import { TestNode } from '../helpers/node.ts';
import { alice, enterPrivateMachine, unlessPrivateMachine } from '../helpers/private-machine.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const escape = '\u001b[';
const test = suite('on a terminal', { skip: unlessPrivateMachine });

/** Runs a command line in a terminal of script(1), 100 columns wide, or in a pipe. */
function shown(
  node: TestNode,
  words: string,
  { terminal = true, environment = {} }: { terminal?: boolean; environment?: Record<string, string> } = {},
): string {
  const line = `${distDirectory}/container-cache ${words}`;
  const inTerminal = ['--quiet', '--echo', 'never', '--command', `stty cols 100; ${line}`, '/dev/null'];
  const { stdout } = spawnSync(terminal ? 'script' : 'sh', terminal ? inTerminal : ['-c', line], {
    encoding: 'utf8',
    env: {
      PATH: '/usr/sbin:/usr/bin:/sbin:/bin',
      TERM: 'xterm-256color',
      CONTAINER_CACHE_CONF: node.configPath,
      ...environment,
    },
  });
  return stdout;
}

test('status and check have colours there, and nowhere else', async () => {
  await using node = await TestNode.start();
  await node.prolog({ id: 1, user: alice, image: node.image() });
  for (const words of ['status', 'check clock base']) {
    assert.ok(shown(node, words).includes(escape), `${words}: no colour`);
    assert.not.ok(shown(node, words, { terminal: false }).includes(escape), `${words}: colour in a pipe`);
    const plain = shown(node, words, { environment: { NO_COLOR: '1' } });
    assert.not.ok(plain.includes(escape), `${words}: colour against NO_COLOR`);
    assert.not.ok(shown(node, `${words} --json`).includes(escape), `${words}: colour in JSON`);
  }
  await node.epilog({ id: 1, user: alice });
});

test('status --watch draws anew, and a pipe is refused', async () => {
  await using node = await TestNode.start();
  const watch = `status --watch 0.2 & sleep 3; kill $!`;
  const frames = shown(node, watch).split('A collection starts at').length - 1;
  assert.ok(frames >= 2, `${frames} frames`);
  assert.is(shown(node, 'status --watch 1', { terminal: false }), '');
});

test('warm has a bar that ends with what came of it; a pipe gets the result alone', async () => {
  await using node = await TestNode.start();
  const warm = (image: string): string => `warm ${image} --user ${alice.uid}`;
  const drawn = shown(node, warm(node.image({ file: 'one' })));
  assert.match(drawn, /\[[#.]+\] +\d+ %/);
  assert.match(drawn.split('\r').at(-2) ?? '', /unpacked +\S+ for \S+: pyxis_cache_u\d+_[0-9a-f]{16}/);
  const piped = shown(node, warm(node.image({ file: 'two' })), { terminal: false });
  assert.match(piped, /^unpacked +\S+ for \S+: pyxis_cache_u\S+, unpacked in [^\n]+\n$/);
});

test.run();
