/**
 * `container-cache merge-layers [--discard] LAYERS ROOTFS`: one tree of an image's layers, by renames;
 * enroot-layers.ts starts it as the user. With --discard both are deleted, as far as they are there.
 *
 * LAYERS holds what enroot has unpacked and enroot-layers.ts kept of it:
 *
 *   order          the names of the layers, the topmost first, with colons between: `0:1:2`
 *   1, 2, …        the layers, as they are in the image; 0 is what enroot makes of the image's configuration
 *   1.whiteouts    the whiteouts of layer 1, each as a path in it that ends in a zero byte
 *
 * From the lowest layer up, each is moved into ROOTFS, with the result that an overlay of them shows: a
 * whiteout `.wh.NAME` deletes NAME of the layers below, `.wh..wh..opq` all of a directory; a directory of two
 * layers has the files of both, and permissions and times of the upper one; all else of an upper layer takes
 * the place of what is below. A directory that only one layer has moves as a whole.
 *
 * No link of an image is followed: a directory is entered only if it was seen to be one, by its type or by
 * the error of a rename.
 */
import {
  chmodSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmdirSync,
  unlinkSync,
  utimesSync,
  type Stats,
} from 'node:fs';
import process from 'node:process';
import { describeError } from '../core/faults.ts';
import { errnoOf, unlessErrno } from '../system/errno.ts';

const whiteoutPrefix = '.wh.';
const opaqueName = '.wh..wh..opq';
const ownerAll = 0o700;
const permissionBits = 0o7777;

/** @returns the exit code */
export function runMergeLayers(parameters: readonly string[]): number {
  const isDiscard = parameters[0] === '--discard';
  const [layersPath, rootfsPath, ...rest] = isDiscard ? parameters.slice(1) : parameters;
  if (layersPath === undefined || rootfsPath === undefined || rest.length > 0) return 2;
  try {
    if (isDiscard) for (const path of [layersPath, rootfsPath]) remove(Buffer.from(path));
    else mergeLayers(layersPath, rootfsPath);
    return 0;
  } catch (error) {
    process.stderr.write(`${describeError(error)}\n`);
    return 1;
  }
}

function mergeLayers(layersPath: string, rootfsPath: string): void {
  const order = readFileSync(`${layersPath}/order`, 'latin1').split(':');
  mkdirSync(rootfsPath, { mode: ownerAll });
  for (const name of order.toReversed()) {
    const layer = Buffer.from(`${layersPath}/${name}`);
    mergeDirectory(layer, Buffer.from(rootfsPath), '', directoriesWithWhiteouts(layersPath, name));
  }
  // What was hidden by a layer above.
  remove(Buffer.from(layersPath));
}

/** enroot's own layer has none, and no list. */
const configurationLayer = '0';

/** Those with a whiteout in them or further below, as paths in the layer; bytes as latin1. */
function directoriesWithWhiteouts(layersPath: string, layer: string): ReadonlySet<string> {
  if (layer === configurationLayer) return new Set();
  const paths = readFileSync(`${layersPath}/${layer}.whiteouts`, 'latin1').split('\0').slice(0, -1);
  const directories = new Set<string>();
  for (const path of paths) {
    for (let end = path.lastIndexOf('/'); end >= 0; end = path.lastIndexOf('/', end - 1))
      directories.add(path.slice(0, end));
    directories.add('');
  }
  return directories;
}

/**
 * Moves what is in `from` into `to`, which is a directory.
 *
 * @param path of both, in the layer and in the rootfs
 */
function mergeDirectory(from: Buffer, to: Buffer, path: string, withWhiteouts: ReadonlySet<string>): void {
  const stats = openForOwner(from);
  openForOwner(to);
  const names = readdirSync(from, { withFileTypes: true, encoding: 'buffer' });
  if (withWhiteouts.has(path))
    applyWhiteouts(
      names.map(({ name }) => name),
      to,
    );
  for (const entry of names) {
    const text = entry.name.toString('latin1');
    if (text.startsWith(whiteoutPrefix)) continue;
    const [source, target] = [join(from, entry.name), join(to, entry.name)];
    const entryPath = path === '' ? text : `${path}/${text}`;
    if (!entry.isDirectory()) replaceByFile(source, target);
    else if (withWhiteouts.has(entryPath)) {
      makeDirectory(target);
      mergeDirectory(source, target, entryPath, withWhiteouts);
    } else if (!replaceByDirectory(source, target)) mergeDirectory(source, target, entryPath, withWhiteouts);
  }
  chmodSync(to, stats.mode & permissionBits);
  utimesSync(to, stats.atimeMs / 1000, stats.mtimeMs / 1000);
}

/** What its owner may not change would keep its owner from moving what is in it. */
function openForOwner(directory: Buffer): Stats {
  const stats = lstatSync(directory);
  if ((stats.mode & ownerAll) !== ownerAll) chmodSync(directory, (stats.mode & permissionBits) | ownerAll);
  return stats;
}

function applyWhiteouts(names: readonly Buffer[], to: Buffer): void {
  for (const name of names) {
    const text = name.toString('latin1');
    if (!text.startsWith(whiteoutPrefix)) continue;
    if (text === opaqueName) {
      for (const below of readdirSync(to, { encoding: 'buffer' })) remove(join(to, below));
      continue;
    }
    const hidden = text.slice(whiteoutPrefix.length);
    if (['', '.', '..'].includes(hidden) || hidden.startsWith(whiteoutPrefix))
      throw new Error(`Cannot merge a layer: unknown whiteout "${text}"`);
    remove(join(to, name.subarray(whiteoutPrefix.length)));
  }
}

function replaceByFile(source: Buffer, target: Buffer): void {
  try {
    renameSync(source, target);
  } catch (error) {
    if (errnoOf(error) !== 'EISDIR') throw error;
    remove(target);
    renameSync(source, target);
  }
}

/** @returns false: there is a directory with something in it, where nothing was done */
function replaceByDirectory(source: Buffer, target: Buffer): boolean {
  for (;;) {
    try {
      renameSync(source, target);
      return true;
    } catch (error) {
      switch (errnoOf(error)) {
        case 'ENOTEMPTY':
        case 'EEXIST':
          return false;
        case 'ENOTDIR':
          unlinkSync(target);
          break;
        case 'EACCES':
          // A directory that its owner may not change cannot get another parent.
          if ((openForOwner(source).mode & ownerAll) === ownerAll) throw error;
          break;
        default:
          throw error;
      }
    }
  }
}

function makeDirectory(path: Buffer): void {
  for (;;) {
    try {
      mkdirSync(path, { mode: ownerAll });
      return;
    } catch (error) {
      if (errnoOf(error) !== 'EEXIST') throw error;
      if (lstatSync(path).isDirectory()) return;
      unlinkSync(path);
    }
  }
}

/** All of a tree, which may not be there. */
function remove(path: Buffer): void {
  const stats = unlessErrno(['ENOENT'], () => lstatSync(path));
  if (stats === undefined) return;
  if (!stats.isDirectory()) return unlinkSync(path);
  openForOwner(path);
  for (const name of readdirSync(path, { encoding: 'buffer' })) remove(join(path, name));
  rmdirSync(path);
}

const separator = Buffer.from('/');

/** Names are bytes, of any encoding. */
const join = (directory: Buffer, name: Buffer): Buffer => Buffer.concat([directory, separator, name]);
