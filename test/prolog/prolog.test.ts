/** The way of a job through Prolog and Epilog: what is made, what is used again, what the log line says. */
// test: timeout 300 s
import { alice, enterPrivateMachine, unlessPrivateMachine } from '../helpers/private-machine.ts';
import { holders, holds, TestNode } from '../helpers/node.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const test = suite('Prolog', { skip: unlessPrivateMachine });

test('creates', async () => {
  await using node = await TestNode.start();
  const image = node.image();
  const t = performance.now();
  const a = await node.prolog({ id: 1, user: alice, image });
  const b = await node.prolog({ id: 2, user: alice, image });
  console.log(a, b, performance.now() - t, holders(), node.leases(), node.entries(alice));
  assert.ok(holds(node.lease(1)!.holder.pid, node.entries(alice)[0]!));
  console.log(await node.epilog({ id: 1, user: alice, image }));
});
test.run();
