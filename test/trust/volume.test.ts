/**
 * Of each of the volumes that a user can have (volume.ts) a small number: a collection makes the same scans
 * and about as many processes as without it, and another user's entry goes. Times are measured by
 * volume-run.ts.
 */
// test: timeout 300 s
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { TestNode } from '../helpers/node.ts';
import { alice, bob, enterPrivateMachine, unlessPrivateMachine } from '../helpers/private-machine.ts';
import { assert, suite, unlessStrace } from '../helpers/suite.ts';
import { hashOf, makeVolume, volumes } from './volume.ts';

enterPrivateMachine();

const settings = { container_cache_gc_high: 1, container_cache_gc_low: 0, gc_min_age: 0, log_level: 'info' };
const count = 50;

const test = suite('volume', { skip: unlessPrivateMachine ?? unlessStrace });

for (const [name, volume] of Object.entries(volumes))
  test(`of ${name}: a collection starts few processes, scans once, tells little, and bob's entry goes`, async () => {
    await using node = await TestNode.start({ settings });
    makeVolume(node, volume, count);
    const ofBob = node.plant(bob, { hash: hashOf(1000), usedSecondsAgo: 10 });
    const trace = join(node.root, 'trace');
    const strace = [
      '/usr/bin/strace',
      '-f',
      '-qq',
      '-o',
      trace,
      '-e',
      'signal=none',
      '-e',
      'trace=execve,openat',
    ];
    const { lines } = await node.adminBy(strace, 'gc', '--force').result;
    const calls = readFileSync(trace, 'utf8').split('\n');
    const matching = (pattern: RegExp): number => calls.filter((one) => pattern.test(one)).length;
    assert.not(existsSync(ofBob));
    assert.is(matching(/"\/proc\/1\/mountinfo"/), 1);
    assert.ok(matching(/execve\(/) < count / 2, `${matching(/execve\(/)} processes`);
    const told = lines.filter(({ fields }) => fields['uid'] === String(alice.uid));
    assert.ok(told.length < count / 2, `${told.length} lines`);
  });

test.run();
