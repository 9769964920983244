/** The images of the stress test, and what a tree is. */
import { lstatSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import { lockFileName } from '../../lib/core/layout.ts';
import type { Tree } from '../helpers/squashfs-image.ts';
import type { TestNode } from '../helpers/node.ts';
import { command } from '../helpers/private-machine.ts';
import { listScript } from './stress-stand-ins.ts';

/** What an image must become. */
export interface Image {
  readonly path: string;
  readonly listing: string;
  /** As the stand-in enroot prints it. */
  readonly checksum: string;
  /** What its files take. */
  readonly kibibytes: number;
}

/** Images differ in size, names and content: no tree can be taken for another image's. */
export function makeStressImage(node: TestNode, index: number): Image {
  const files: Tree = Object.fromEntries(
    Array.from({ length: 5 + 7 * index }, (_, file) => [
      `d${file % 3}/f${index}-${file}`,
      `${index}`.repeat(10 + file),
    ]),
  );
  const tree: Tree = {
    ...files,
    'etc/mark': `image ${index}\n`,
    'bin/tool': { content: '#!/bin/sh\n', mode: 0o755 },
    'lib/link': { symlink: `../etc/mark-${index}` },
    large: Buffer.alloc(4096 * (index % 4), index).toString('latin1'),
  };
  const path = node.image(tree);
  const unpacked = join(node.root, `unpacked-${index}`);
  command('unsquashfs', '-no-progress', '-quiet', '-dest', unpacked, path);
  return {
    path,
    listing: listingOf(unpacked),
    checksum: command('sh', '-c', listScript, 'sh', unpacked).trim(),
    kibibytes: kibibytesOf(unpacked),
  };
}

/** Names, kinds, modes and content of a tree, but for our lock file. What goes meanwhile is missing in it. */
export function listingOf(root: string, below = ''): string {
  const lines: string[] = [];
  const names = ifThere(() => readdirSync(join(root, below))) ?? [];
  for (const name of names.sort()) {
    if (below === '' && name === lockFileName) continue;
    const path = join(root, below, name);
    const stats = ifThere(() => lstatSync(path));
    if (stats === undefined) continue;
    const place = join(below, name);
    const mode = stats.mode.toString(8);
    if (stats.isDirectory()) lines.push(`${place} ${mode}`, listingOf(root, place));
    else if (stats.isSymbolicLink()) lines.push(`${place} -> ${ifThere(() => readlinkSync(path))}`);
    else lines.push(`${place} ${mode} ${ifThere(() => readFileSync(path, 'latin1'))}`);
  }
  return lines.join('\n');
}

export function ifThere<T>(look: () => T): T | undefined {
  try {
    return look();
  } catch (error) {
    if (['ENOENT', 'ESRCH', 'ENOTDIR'].includes((error as NodeJS.ErrnoException).code ?? ''))
      return undefined;
    throw error;
  }
}

export const inodeOf = (path: string): number | undefined => ifThere(() => lstatSync(path).ino);

/** What a tree takes, as du(1) counts. */
export const kibibytesOf = (path: string): number => Number.parseInt(command('du', '-sk', path), 10);
