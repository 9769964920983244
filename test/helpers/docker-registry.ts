/**
 * A real registry (Debian's docker-registry) on a loopback port, and images in it made from trees.
 *
 *   await using registry = await startDockerRegistry();
 *   await registry.push('team/image', 'v1', [smallTree]);
 *   // docker://localhost:34567/team/image:v1 is registry.uri('team/image', 'v1')
 *
 * Images are pushed by the registry's own protocol (Docker Registry HTTP API V2), so no further program is
 * needed. What a tree gives is the same layer, digest included, each time. The registry ends with this
 * process, however that ends.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { gzipSync } from 'node:zlib';

import { stopProcess } from './node.ts';
import { command } from './private-machine.ts';
import { makeImage, type Tree } from './squashfs-image.ts';
import { unlessRoot } from './suite.ts';

const START_TIMEOUT_MS = 60_000;
const POLL_INTERVAL_MS = 20;

const PROGRAM = '/usr/bin/docker-registry';

/** For SuiteOptions.skip: why no registry can be started here. */
export const unlessDockerRegistry =
  unlessRoot ??
  (existsSync(PROGRAM) ? undefined : 'needs docker-registry') ??
  (existsSync('/usr/bin/mksquashfs') ? undefined : 'needs mksquashfs');

/** The only ones there are where `isProtected` is set. */
export const credentials = { user: 'reader', password: 'sesame' } as const;
/** Made by `htpasswd -nbBC 4`. */
const PASSWORD_LINE = 'reader:$2y$04$LCo1otrfI0NTUA9eUENvB.Rwh7MabgaJKuSD8l08SwzTc6S4e7/ly';

const TYPES = {
  docker: {
    manifest: 'application/vnd.docker.distribution.manifest.v2+json',
    list: 'application/vnd.docker.distribution.manifest.list.v2+json',
    config: 'application/vnd.docker.container.image.v1+json',
    layer: 'application/vnd.docker.image.rootfs.diff.tar.gzip',
  },
  oci: {
    manifest: 'application/vnd.oci.image.manifest.v1+json',
    list: 'application/vnd.oci.image.index.v1+json',
    config: 'application/vnd.oci.image.config.v1+json',
    layer: 'application/vnd.oci.image.layer.v1.tar+gzip',
  },
} as const;

const ARCHITECTURE = process.arch === 'arm64' ? 'arm64' : 'amd64';
/** In a list of manifests, for the entry that is not to be chosen. */
const OTHER_ARCHITECTURE = 'riscv64';

/** The same each time, as all that goes into a digest. */
const CREATED = '1970-01-01T00:00:00Z';

/** What an image says of itself, as in `config` of an OCI image configuration. */
export interface ImageConfiguration {
  readonly Env?: readonly string[];
  readonly Entrypoint?: readonly string[];
  readonly Cmd?: readonly string[];
  readonly WorkingDir?: string;
  readonly Volumes?: Readonly<Record<string, object>>;
}

interface PushOptions {
  readonly configuration?: ImageConfiguration;
  /**
   * Default: docker. One of OCI is refused to enroot, whose first request does not say that it takes those.
   */
  readonly format?: 'docker' | 'oci';
  /** Puts a list of manifests for several architectures behind the tag. */
  readonly asList?: boolean;
}

interface DockerRegistryOptions {
  /** Whether one must be `credentials.user` for everything. */
  readonly isProtected?: boolean;
}

interface Blob {
  readonly mediaType: string;
  readonly size: number;
  readonly digest: string;
}

export async function startDockerRegistry(options: DockerRegistryOptions = {}): Promise<DockerRegistry> {
  const registry = new DockerRegistry(await findFreePort(), options);
  try {
    await registry.start();
    return registry;
  } catch (error) {
    await registry[Symbol.asyncDispose]();
    throw error;
  }
}

export class DockerRegistry implements AsyncDisposable {
  readonly #directory = mkdtempSync(join(tmpdir(), 'docker-registry-'));
  readonly #logPath = join(this.#directory, 'log');
  readonly #headers: Readonly<Record<string, string>>;
  #process: ChildProcess | undefined;
  /** `localhost:PORT`, as it goes before the image in a reference. */
  readonly address: string;

  constructor(port: number, { isProtected = false }: DockerRegistryOptions) {
    this.address = `localhost:${port}`;
    const lines = [
      'version: 0.1',
      'storage:',
      `  filesystem: {rootdirectory: ${join(this.#directory, 'data')}}`,
      '  delete: {enabled: true}',
      `http: {addr: "127.0.0.1:${port}"}`,
    ];
    const passwords = join(this.#directory, 'htpasswd');
    if (isProtected) {
      writeFileSync(passwords, `${PASSWORD_LINE}\n`);
      lines.push(`auth: {htpasswd: {realm: test, path: ${passwords}}}`);
    }
    writeFileSync(join(this.#directory, 'config.yml'), `${lines.join('\n')}\n`);
    writeFileSync(this.#logPath, '');
    const secret = Buffer.from(`${credentials.user}:${credentials.password}`).toString('base64');
    this.#headers = isProtected ? { authorization: `Basic ${secret}` } : {};
  }

  /** `docker://localhost:PORT/REPOSITORY:TAG`; a tag that is a digest comes after an `@`. */
  uri(repository: string, tag: string): string {
    return `docker://${this.address}/${repository}${tag.startsWith('sha256:') ? '@' : ':'}${tag}`;
  }

  /**
   * Makes an image and puts a tag on it, whatever the tag was on.
   *
   * @param layers from the lowest up; a file `.wh.NAME` takes NAME of the layers below away, `.wh..wh..opq`
   *   all that is below in its directory
   * @returns the digest that `enroot digest` prints
   */
  async push(
    repository: string,
    tag: string,
    layers: readonly Tree[],
    { configuration = {}, format = 'docker', asList = false }: PushOptions = {},
  ): Promise<string> {
    const archives = layers.map(archiveOf);
    return this.pushArchives(
      repository,
      tag,
      archives.map((archive) => ({ archive: gzipSync(archive), contentDigest: digestOf(archive) })),
      { configuration, format, asList },
    );
  }

  /**
   * The same of tar archives.
   *
   * @param layers from the lowest up, as gzip has compressed them; and the digest of what it has compressed
   */
  async pushArchives(
    repository: string,
    tag: string,
    layers: readonly { readonly archive: Buffer; readonly contentDigest: string }[],
    { configuration = {}, format = 'docker', asList = false }: PushOptions = {},
  ): Promise<string> {
    const types = TYPES[format];
    const config = {
      architecture: ARCHITECTURE,
      os: 'linux',
      created: CREATED,
      config: configuration,
      // enroot asks first as clients of the oldest protocol do, and for them the registry needs it.
      history: layers.map(() => ({ created: CREATED, created_by: 'test' })),
      rootfs: { type: 'layers', diff_ids: layers.map(({ contentDigest }) => contentDigest) },
    };
    const uploaded: Blob[] = [];
    for (const { archive } of layers) uploaded.push(await this.#upload(repository, archive, types.layer));
    const configBlob = await this.#upload(repository, Buffer.from(JSON.stringify(config)), types.config);
    const manifest = { schemaVersion: 2, mediaType: types.manifest, config: configBlob, layers: uploaded };
    const text = JSON.stringify(manifest);
    const digest = digestOf(text);
    await this.#putManifest(repository, asList ? digest : tag, text, types.manifest);
    if (asList) {
      const entry = { mediaType: types.manifest, size: text.length, digest };
      const manifests = [OTHER_ARCHITECTURE, ARCHITECTURE].map((architecture) => ({
        ...entry,
        platform: { architecture, os: 'linux' },
      }));
      const list = JSON.stringify({ schemaVersion: 2, mediaType: types.list, manifests });
      await this.#putManifest(repository, tag, list, types.list);
    }
    return digest;
  }

  /** Puts `tag` on what another tag, or a digest, names now. */
  async moveTag(repository: string, tag: string, to: string): Promise<void> {
    const accept = Object.values(TYPES)
      .flatMap(({ manifest, list }) => [manifest, list])
      .join(', ');
    const answer = await this.#request('GET', `/v2/${repository}/manifests/${to}`, { headers: { accept } });
    const type = answer.headers.get('content-type') ?? '';
    await this.#putManifest(repository, tag, await answer.text(), type);
  }

  /**
   * What it was asked for, oldest first, its own helpers' requests included:
   * `GET /v2/team/image/manifests/v1`.
   */
  requests(): string[] {
    const lines = readFileSync(this.#logPath, 'utf8').matchAll(/"((?:GET|HEAD|PUT|POST|PATCH) [^ ?"]+)/g);
    return [...lines].map(([, request = '']) => request);
  }

  /** From now on every connection is refused; what it holds stays. */
  async stop(): Promise<void> {
    const running = this.#process;
    if (running === undefined) return;
    this.#process = undefined;
    const ended = once(running, 'exit');
    running.kill('SIGKILL');
    await ended;
  }

  /** From then on connections are made and nothing is answered, until release(). */
  async hold(): Promise<void> {
    if (this.#process !== undefined) await stopProcess(this.#process.pid!);
  }

  release(): void {
    this.#process?.kill('SIGCONT');
  }

  async start(): Promise<void> {
    const log = openSync(this.#logPath, 'a');
    const parameters = ['--pdeathsig', 'KILL', PROGRAM, 'serve', join(this.#directory, 'config.yml')];
    const started = spawn('setpriv', parameters, { stdio: ['ignore', log, log] });
    closeSync(log);
    this.#process = started;
    const deadlineMs = performance.now() + START_TIMEOUT_MS;
    while (!(await this.#isAnswering())) {
      if (started.exitCode !== null || performance.now() > deadlineMs) {
        const printed = readFileSync(this.#logPath, 'utf8').split('\n').slice(-5).join('\n');
        throw new Error(`Cannot start docker-registry on ${this.address}: ${printed}`);
      }
      await sleep(POLL_INTERVAL_MS);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
    rmSync(this.#directory, { recursive: true, force: true });
  }

  async #isAnswering(): Promise<boolean> {
    try {
      await fetch(`http://${this.address}/v2/`);
      return true;
    } catch {
      return false;
    }
  }

  async #upload(repository: string, content: Buffer, mediaType: string): Promise<Blob> {
    const digest = digestOf(content);
    const opened = await this.#request('POST', `/v2/${repository}/blobs/uploads/`);
    const location = new URL(opened.headers.get('location') ?? '', `http://${this.address}`);
    location.searchParams.set('digest', digest);
    const headers = { 'content-type': 'application/octet-stream' };
    await this.#request('PUT', `${location.pathname}${location.search}`, { body: content, headers });
    return { mediaType, size: content.length, digest };
  }

  async #putManifest(repository: string, tag: string, text: string, mediaType: string): Promise<void> {
    const headers = { 'content-type': mediaType };
    await this.#request('PUT', `/v2/${repository}/manifests/${tag}`, { body: text, headers });
  }

  async #request(
    method: string,
    path: string,
    { body, headers }: { body?: Buffer | string; headers?: Record<string, string> } = {},
  ): Promise<Response> {
    const answer = await fetch(`http://${this.address}${path}`, {
      method,
      headers: { ...this.#headers, ...headers },
      ...(body === undefined ? {} : { body: typeof body === 'string' ? body : new Uint8Array(body) }),
    });
    if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${await answer.text()}`);
    return answer;
  }
}

export function digestOf(content: string | Buffer): string {
  return `sha256:${createHash('sha256').update(content).digest('hex')}`;
}

/** A tree as a tar archive, by way of the squashfs image that all other tests use. */
function archiveOf(tree: Tree): Buffer {
  const directory = mkdtempSync(join(tmpdir(), 'layer-'));
  try {
    const image = makeImage(join(directory, 'image'), tree, ['-noI', '-noD', '-noF', '-noX', '-no-xattrs']);
    const root = join(directory, 'root');
    command('unsquashfs', '-quiet', '-no-progress', '-dest', root, image);
    const options = ['--sort=name', '--mtime=@0', '--owner=0', '--group=0', '--numeric-owner'];
    const { status, stdout, stderr } = spawnSync('tar', [...options, '-C', root, '-cf', '-', '.'], {
      maxBuffer: 1024 * 1024 * 1024,
    });
    if (status !== 0) throw new Error(`Cannot make a layer: exit code ${String(status)}: ${String(stderr)}`);
    return stdout;
  } finally {
    rmSync(directory, { recursive: true });
  }
}

/** Another program may take it before the registry does, but hardly ever will. */
async function findFreePort(): Promise<number> {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}
