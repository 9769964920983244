/** Squashfs images for tests, made by the real mksquashfs from a description. */
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { command, machineRoot } from './private-machine.ts';

/** A text is a file of that content, mode 0644. */
export type TreeItem =
  | string
  | {
      readonly content: string | Buffer;
      readonly mode?: number;
      readonly xattrs?: Readonly<Record<string, string>>;
    }
  | { readonly directory: true; readonly mode?: number }
  | { readonly symlink: string }
  /** Another path of the tree, further up in it. */
  | { readonly link: string }
  | { readonly fifo: true; readonly mode?: number }
  /** As `mksquashfs -p` wants it: `c 666 0 0 1 3`. The node exists in the image only. */
  | { readonly device: string };

export type Tree = Readonly<Record<string, TreeItem>>;

export const smallTree: Tree = {
  'etc/os-release': 'ID=test\n',
  'bin/tool': { content: '#!/bin/sh\n', mode: 0o755 },
};

/** @returns a tree of that many files, 100 to a directory */
export function treeOfFiles(count: number, content: string | Buffer = 'x'): Tree {
  return Object.fromEntries(
    Array.from({ length: count }, (_, index) => [`d${Math.floor(index / 100)}/f${index}`, { content }]),
  );
}

/**
 * Writes an image; one that is there is replaced by another file.
 *
 * @param options of mksquashfs
 */
export function makeImage(
  imagePath: string,
  tree: Tree = smallTree,
  options: readonly string[] = [],
): string {
  const source = mkdtempSync(join(machineRoot, 'tree-'));
  try {
    const pseudo = layOut(source, tree);
    const aside = `${imagePath}.new`;
    const parameters = [source, aside, '-noappend', '-no-progress', '-quiet', '-processors', '1', ...options];
    const { status, stderr } = spawnSync('mksquashfs', [...parameters, ...pseudo], { encoding: 'utf8' });
    if (status !== 0) throw new Error(`mksquashfs: exit code ${String(status)}: ${stderr}`);
    chmodSync(aside, 0o644);
    command('mv', aside, imagePath);
    return imagePath;
  } finally {
    rmSync(source, { recursive: true });
  }
}

/** @returns the options of mksquashfs for what cannot lie in a directory here */
export function layOut(root: string, tree: Tree): string[] {
  chmodSync(root, 0o755);
  const pseudo: string[] = [];
  const modes: [string, number][] = [];
  for (const [name, item] of Object.entries(tree)) {
    const path = join(root, name);
    mkdirSync(dirname(path), { recursive: true, mode: 0o755 });
    if (typeof item === 'string') writeFileSync(path, item);
    else if ('content' in item) writeFileSync(path, item.content);
    else if ('directory' in item) mkdirSync(path, { recursive: true });
    else if ('symlink' in item) symlinkSync(item.symlink, path);
    else if ('link' in item) linkSync(join(root, item.link), path);
    else if ('fifo' in item) command('mkfifo', path);
    else pseudo.push('-p', `${name} ${item.device}`);
    if (typeof item !== 'string' && 'xattrs' in item)
      for (const [key, value] of Object.entries(item.xattrs ?? {}))
        command('setfattr', `--name=${key}`, `--value=${value}`, path);
    if (typeof item !== 'string' && 'mode' in item) modes.push([path, item.mode]);
  }
  for (const [path, mode] of modes) chmodSync(path, mode);
  return pseudo;
}

/** Sets a file's modification time, seconds after 1970. */
export function setModifiedAt(path: string, seconds: number): void {
  utimesSync(path, seconds, seconds);
}
