/**
 * A directory that is a registry to the enroot that stands in for the real one
 * (test/helpers/stand-in-enroot.sh).
 */
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { projectRoot } from '../../build/source-files.ts';
import { machineRoot } from './private-machine.ts';
import { makeImage, type Tree } from './squashfs-image.ts';

interface EnrootCall {
  readonly uid: number;
  readonly groups: readonly number[];
  readonly home: string;
  readonly parameters: readonly string[];
}

export class StandInRegistry {
  readonly #directory: string;
  /** For `enroot_path`. */
  readonly enrootPath: string;

  constructor(version = '4.1.2') {
    this.#directory = mkdtempSync(join(machineRoot, 'registry-'));
    chmodSync(this.#directory, 0o755);
    this.enrootPath = join(this.#directory, 'enroot');
    copyFileSync(join(projectRoot, 'test/helpers/stand-in-enroot.sh'), this.enrootPath);
    mkdirSync(join(this.#directory, 'registry'));
    writeFileSync(join(this.#directory, 'version'), `${version}\n`);
    for (const name of ['beside', 'calls', 'made']) {
      writeFileSync(join(this.#directory, name), '');
      // Whoever runs enroot writes there.
      chmodSync(join(this.#directory, name), 0o666);
    }
  }

  /**
   * Puts an image behind a reference, in place of the one that is there, which stays to be had by its digest.
   *
   * @param reference as it comes to enroot, `docker://` left out
   * @param mark one hex digit that makes the digest, and the image's content by default
   */
  push(reference: string, mark: string, tree: Tree = { 'etc/mark': mark }): void {
    this.#put('registry', reference, mark, tree);
  }

  /** Has the tag move to another image right after its digest was told. */
  pushAfterDigest(reference: string, mark: string): void {
    mkdirSync(join(this.#directory, 'next'), { recursive: true });
    // Whoever runs enroot moves the files.
    for (const name of ['next', 'registry']) chmodSync(join(this.#directory, name), 0o777);
    this.#put('next', reference, mark, { 'etc/mark': mark });
  }

  #put(directory: 'registry' | 'next', reference: string, mark: string, tree: Tree): void {
    const tag = this.#path(directory, reference);
    const pinned = this.#path('registry', byDigest(reference, mark));
    makeImage(`${pinned}.sqsh`, tree);
    if (tag !== pinned) copyFileSync(`${pinned}.sqsh`, `${tag}.sqsh`);
    for (const path of [tag, pinned]) writeFileSync(`${path}.digest`, `${digestOf(mark)}\n`);
  }

  /** Replaces what an import of the image gives, by its tag and by its digest; undefined: it fails. */
  spoilImage(reference: string, mark: string, content: string | undefined): void {
    for (const name of [reference, byDigest(reference, mark)]) {
      const path = `${this.#path('registry', name)}.sqsh`;
      rmSync(path);
      if (content !== undefined) writeFileSync(path, content);
    }
  }

  /** Takes a digest away, as a registry that collects garbage. */
  forget(reference: string, mark: string): void {
    for (const kind of ['digest', 'sqsh'])
      rmSync(`${this.#path('registry', byDigest(reference, mark))}.${kind}`);
  }

  #path(directory: 'registry' | 'next', reference: string): string {
    return join(this.#directory, directory, reference.replaceAll(/[^A-Za-z0-9]/g, '_'));
  }

  /**
   * What the registry demands or does from now on, as the head of stand-in-enroot.sh says; undefined: no
   * more.
   */
  set(name: 'password' | 'proxy' | 'answer' | 'conf' | 'programs', content: string | undefined): void {
    const path = join(this.#directory, name);
    if (content === undefined) rmSync(path, { force: true });
    else writeFileSync(path, `${content}\n`);
  }

  /** From now on the registry does not answer. */
  stop(): void {
    renameSync(join(this.#directory, 'registry'), join(this.#directory, 'stopped'));
  }

  /** It does again. */
  start(): void {
    renameSync(join(this.#directory, 'stopped'), join(this.#directory, 'registry'));
  }

  /** Imports wait until release(). */
  hold(): void {
    writeFileSync(join(this.#directory, 'hold'), '');
  }

  release(): void {
    rmSync(join(this.#directory, 'hold'));
  }

  /** What each import handed over: `layers` or a `file`. */
  readonly made = (): string[] => this.#linesOf('made');

  /** What each import found beside its output. */
  readonly beside = (): string[] => this.#linesOf('beside');

  #linesOf(name: string): string[] {
    return readFileSync(join(this.#directory, name), 'utf8').split('\n').filter(Boolean);
  }

  calls(command?: string): EnrootCall[] {
    return this.#linesOf('calls')
      .map((line) => {
        const [uid = '', groups = '', home = '', ...parameters] = line.split(' ');
        return { uid: Number(uid), groups: groups.split(',').map(Number), home, parameters };
      })
      .filter(({ parameters }) => command === undefined || parameters[0] === command);
  }
}

export const digestOf = (mark: string): string => `sha256:${mark.repeat(64)}`;

/** The same image by its digest: a tag beside it counts for nothing. */
const byDigest = (reference: string, mark: string): string =>
  `${reference.replace(/@sha256:.*$/, '').replace(/:[^:@/]*$/, '')}@${digestOf(mark)}`;
