/** A directory that is a registry to the enroot that stands in for the real one (test/helpers/stand-in-enroot.sh). */
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
import { makeImage, type Tree } from './image.ts';
import { machineRoot } from './private-machine.ts';

export interface EnrootCall {
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
    writeFileSync(join(this.#directory, 'calls'), '');
    // Whoever runs enroot writes there.
    chmodSync(join(this.#directory, 'calls'), 0o666);
  }

  /**
   * Puts an image behind a reference, in place of the one that is there.
   *
   * @param reference as it comes to enroot, `docker://` left out
   * @param mark one hex digit that makes the digest, and the image's content by default
   */
  push(reference: string, mark: string, tree: Tree = { 'etc/mark': mark }): void {
    writeFileSync(this.#file(reference, 'digest'), `${digestOf(mark)}\n`);
    makeImage(this.#file(reference, 'sqsh'), tree);
  }

  /** Replaces what an import of the reference gives; undefined: it fails. */
  spoilImage(reference: string, content: string | undefined): void {
    rmSync(this.#file(reference, 'sqsh'));
    if (content !== undefined) writeFileSync(this.#file(reference, 'sqsh'), content);
  }

  #file(reference: string, kind: 'digest' | 'sqsh'): string {
    return join(this.#directory, 'registry', `${reference.replaceAll(/[^A-Za-z0-9]/g, '_')}.${kind}`);
  }

  /** From now on the registry does not answer. */
  stop(): void {
    renameSync(join(this.#directory, 'registry'), join(this.#directory, 'stopped'));
  }

  /** Imports wait until release(). */
  hold(): void {
    writeFileSync(join(this.#directory, 'hold'), '');
  }

  release(): void {
    rmSync(join(this.#directory, 'hold'));
  }

  calls(command?: string): EnrootCall[] {
    return readFileSync(join(this.#directory, 'calls'), 'utf8')
      .split('\n')
      .filter(Boolean)
      .map((line) => {
        const [uid = '', groups = '', home = '', ...parameters] = line.split(' ');
        return { uid: Number(uid), groups: groups.split(',').map(Number), home, parameters };
      })
      .filter(({ parameters }) => command === undefined || parameters[0] === command);
  }
}

export const digestOf = (mark: string): string => `sha256:${mark.repeat(64)}`;
