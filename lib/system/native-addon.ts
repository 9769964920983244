/**
 * The compiled part of fs-ext, loaded on first use.
 *
 * In development it lies in node_modules, compiled by build/run. In the one-file executable it
 * travels as an asset, and the dynamic linker wants a file: so it is written to a file without a
 * name (O_TMPFILE, see open(2)) and loaded through its descriptor. Nothing is left on disk, nobody
 * can swap the file under its name, and nothing need be installed beside the executable.
 *
 * The linker refuses a filesystem mounted noexec, and a user can write to few places. Neither can
 * be told beforehand, so the candidates are tried in turn. If none serves, the caller must do
 * without (flock.ts falls back to flock(1)).
 */
import { closeSync, writeSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname } from 'node:path';
import { getRawAsset, isSea } from 'node:sea';
import { openUnnamedFile } from './unnamed-file.ts';

/** What flock.ts calls of fs-ext's addon. Its own JavaScript would only map names to the constants. */
export interface FsExtAddon {
  /** flock(2) without a callback: returns when done, throws an error with `code` and `errno`. */
  flock(descriptor: number, operation: number): unknown;
  constants: Readonly<Record<'LOCK_SH' | 'LOCK_EX' | 'LOCK_NB' | 'LOCK_UN', number>>;
}

/** The asset's name in the executable: build/build.ts puts it there. */
export const ADDON_ASSET = 'fs_ext.node';

let loaded: FsExtAddon | undefined;

/**
 * fs-ext's addon.
 *
 * @throws {AggregateError} if no directory will hold a loadable file; one error for each.
 */
export function loadFsExt(): FsExtAddon {
  loaded ??= isSea() ? loadFromAsset() : loadFromNodeModules();
  return loaded;
}

function loadFromNodeModules(): FsExtAddon {
  return createRequire(import.meta.url)('fs-ext/build/Release/fs_ext.node') as FsExtAddon;
}

function loadFromAsset(): FsExtAddon {
  const bytes = new Uint8Array(getRawAsset(ADDON_ASSET));
  const failures: Error[] = [];
  for (const directory of candidateDirectories()) {
    try {
      return loadThrough(directory, bytes);
    } catch (cause) {
      failures.push(
        new Error(`Cannot load fs-ext's addon from a nameless file in "${directory}"`, { cause }),
      );
    }
  }
  throw new AggregateError(failures, `Cannot load fs-ext's addon: ${failures.length} directories tried`);
}

/** Memory first: a nameless file on a disk filesystem costs a journal entry. */
function candidateDirectories(): string[] {
  const { XDG_RUNTIME_DIR, TMPDIR, HOME } = process.env;
  const directories = [
    '/dev/shm',
    '/run',
    '/tmp',
    '/var/tmp',
    dirname(process.execPath),
    XDG_RUNTIME_DIR,
    TMPDIR,
    HOME,
  ];
  return directories.filter((directory) => directory?.startsWith('/') === true) as string[];
}

function loadThrough(directory: string, bytes: Uint8Array): FsExtAddon {
  const descriptor = openUnnamedFile(directory, 0o700);
  try {
    let written = 0;
    while (written < bytes.length) written += writeSync(descriptor, bytes, written);
    const module = { exports: {} };
    process.dlopen(module, `/proc/self/fd/${descriptor}`);
    return module.exports as FsExtAddon;
  } finally {
    // The mapping keeps the file.
    closeSync(descriptor);
  }
}
