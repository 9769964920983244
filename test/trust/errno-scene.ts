/** What the generator "Errnos" works on. To be imported in a private machine. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { partialName } from '../../lib/core/layout.ts';
import { nameOf, TestNode } from '../helpers/node.ts';
import { alice, bob, command } from '../helpers/private-machine.ts';

const settings = {
  container_cache_gc_high: 99,
  container_cache_gc_low: 0,
  gc_min_age: 0,
  enroot_path: '/none/enroot',
  on_failure: 'fail',
};

export interface Scene {
  readonly node: TestNode;
  readonly image: string;
  readonly ofBob: string;
}

/**
 * Alice has an entry of a job that is over, a dead partial directory, a stub, a note of a step and a digest;
 * bob has an entry.
 */
export async function setScene(): Promise<Scene> {
  const node = await TestNode.start({ settings });
  const image = node.image();
  await node.prolog({ id: 1, user: alice, image });
  await node.epilog({ id: 1, user: alice });
  await node.settle();
  const user = node.userPath(alice);
  const name = nameOf(node.entries(alice)[0]!);
  mkdirSync(join(user, partialName(name, 2, 'abcd'), 'rootfs'), { recursive: true });
  mkdirSync(join(user, '.pyxis_2.0/.container-cache'), { recursive: true });
  writeFileSync(join(user, '.pyxis_2.0/.container-cache/entry'), '');
  writeFileSync(join(user, '.steps-2.events'), '');
  mkdirSync(join(user, '.digests'));
  command('chown', '--recursive', `${alice.uid}:${alice.gid}`, user);
  return { node, image, ofBob: node.plant(bob, { hash: '00000000000000bb', usedSecondsAgo: 1000 }) };
}
