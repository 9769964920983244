import {
  areValid,
  failureLimitMs,
  formatNodeFacts,
  isKnownEnroot,
  parseNodeFacts,
  type NodeFacts,
} from '../../../lib/core/node-facts.ts';
import { assert, suite } from '../../helpers/suite.ts';

const test = suite('node facts');

const facts: NodeFacts = {
  fingerprint: '/raid/data:auto:always:/etc/enroot',
  basePath: '/raid/data',
  baseMount: '/raid',
  enrootPath: '/usr/bin/enroot',
  enrootVersion: '4.1.2',
  isolation: 'shared',
  reason: 'a user cannot mount an overlay: a=b',
  imageFreshness: 'always',
  command: '/usr/libexec/container-cache/container-cache',
  mountsFile: '/etc/enroot/mounts.d/00-container-cache.fstab',
  validUntilMs: 1_700_000_000_000,
  importer: 'none',
  pyxisRuntimePath: '/run/pyxis',
  pyxisVersion: '0.24.0',
  pyxisFiles: '/etc/slurm/slurm.conf\t/etc/slurm/plugstack.conf',
  pyxisStamp: '1-2-3:none',
};

test('what is written is read again', () => {
  assert.equal(parseNodeFacts(formatNodeFacts(facts)), facts);
});

test('what is not known is left out', () => {
  const bare = { ...facts, enrootPath: undefined, enrootVersion: undefined, command: undefined };
  assert.not.match(formatNodeFacts(bare), /^enroot_|^command/m);
  assert.equal(parseNodeFacts(formatNodeFacts(bare)), bare);
});

test('facts hold for good, or for some time; a clock that was set back ends that', () => {
  const until = facts.validUntilMs!;
  assert.ok(areValid({ ...facts, validUntilMs: undefined }, until));
  assert.equal(
    [1, failureLimitMs, failureLimitMs + 1, 0, -1].map((restMs) => areValid(facts, until - restMs)),
    [true, true, false, false, false],
  );
  assert.is(parseNodeFacts(formatNodeFacts({ ...facts, validUntilMs: undefined }))?.validUntilMs, undefined);
});

test("a complaint's lines are one line, so that none of them is a fact", () => {
  const text = formatNodeFacts({ ...facts, reason: 'no\nisolation=overlay\r\nmore' });
  assert.is(parseNodeFacts(text)?.isolation, 'shared');
  assert.is(parseNodeFacts(text)?.reason, 'no isolation=overlay more');
});

test('a text without one of the things the wrapper needs is no facts', () => {
  const text = formatNodeFacts(facts);
  for (const key of ['for', 'base_path', 'isolation', 'image_freshness', 'mounts_file']) {
    assert.is(parseNodeFacts(text.replace(new RegExp(`^${key}=.*\\n`, 'm'), '')), undefined, key);
  }
  assert.is(parseNodeFacts(text.replace('isolation=shared', 'isolation=auto')), undefined);
  assert.is(parseNodeFacts(''), undefined);
});

test('the versions of enroot whose start we know', () => {
  for (const version of ['3.4.0', '3.5.0', '4.0.1', '4.1.2', '4.12'])
    assert.ok(isKnownEnroot(version), version);
  for (const version of ['2.2.0', '3.3.1', '5.0.0', '', 'four', '3'])
    assert.not(isKnownEnroot(version), version);
});

test.run();
