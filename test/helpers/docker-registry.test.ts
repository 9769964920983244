/** The registry that other tests ask: what is pushed is there, tags move, and it goes and comes back. */
import {
  credentials,
  startDockerRegistry,
  unlessDockerRegistry,
  type DockerRegistry,
} from './docker-registry.ts';
import { smallTree } from './squashfs-image.ts';
import { assert, suite } from './suite.ts';

const test = suite('a registry on loopback', { skip: unlessDockerRegistry });

const MANIFEST = 'application/vnd.docker.distribution.manifest.v2+json';

/** The digest behind a tag, or the code of the registry's refusal. */
async function digestAt(
  registry: DockerRegistry,
  path: string,
  headers: Record<string, string> = {},
): Promise<string | number | null> {
  const answer = await fetch(`http://${registry.address}/v2/${path}`, {
    method: 'HEAD',
    headers: { accept: MANIFEST, ...headers },
  });
  return answer.ok ? answer.headers.get('docker-content-digest') : answer.status;
}

test('an image is behind its tag, by the digest that its push returned', async () => {
  await using registry = await startDockerRegistry();
  const digest = await registry.push('team/image', 'v1', [smallTree]);
  assert.is(await digestAt(registry, 'team/image/manifests/v1'), digest);
  assert.is(await digestAt(registry, `team/image/manifests/${digest}`), digest);
  assert.is(await digestAt(registry, 'team/image/manifests/v2'), 404);
  assert.is(registry.uri('team/image', 'v1'), `docker://${registry.address}/team/image:v1`);
  assert.is(registry.uri('team/image', digest), `docker://${registry.address}/team/image@${digest}`);
});

test('the same trees are the same image, and others another', async () => {
  await using registry = await startDockerRegistry();
  const digest = await registry.push('image', 'v1', [smallTree]);
  assert.is(await registry.push('other', 'v1', [smallTree]), digest);
  assert.is.not(await registry.push('image', 'v1', [{ ...smallTree, more: 'x' }]), digest);
  assert.is.not(await digestAt(registry, 'image/manifests/v1'), digest);
});

test('a tag moves to another image', async () => {
  await using registry = await startDockerRegistry();
  const digest = await registry.push('image', 'v1', [smallTree]);
  await registry.push('image', 'latest', [{ newer: 'x' }]);
  await registry.moveTag('image', 'latest', 'v1');
  assert.is(await digestAt(registry, 'image/manifests/latest'), digest);
});

test('it keeps what it has while it is stopped', async () => {
  await using registry = await startDockerRegistry();
  const digest = await registry.push('image', 'v1', [smallTree]);
  await registry.stop();
  await assert.rejects(() => digestAt(registry, 'image/manifests/v1'), TypeError, /fetch failed/);
  await registry.start();
  assert.is(await digestAt(registry, 'image/manifests/v1'), digest);
});

test('held, it accepts connections and does not answer', async () => {
  await using registry = await startDockerRegistry();
  await registry.hold();
  const url = `http://${registry.address}/v2/`;
  await assert.rejects(fetch(url, { signal: AbortSignal.timeout(200) }), DOMException, /timeout/);
  registry.release();
  assert.ok((await fetch(url)).ok);
});

test('it tells what it was asked for', async () => {
  await using registry = await startDockerRegistry();
  await digestAt(registry, 'image/manifests/v1');
  assert.is(registry.requests().at(-1), 'HEAD /v2/image/manifests/v1');
});

test('protected, it answers those only who say the password', async () => {
  await using registry = await startDockerRegistry({ isProtected: true });
  const digest = await registry.push('image', 'v1', [smallTree]);
  assert.is(await digestAt(registry, 'image/manifests/v1'), 401);
  const secret = Buffer.from(`${credentials.user}:${credentials.password}`).toString('base64');
  const headers = { authorization: `Basic ${secret}` };
  assert.is(await digestAt(registry, 'image/manifests/v1', headers), digest);
});

test.run();
