/**
 * Squashfs images to demonstrate and measure with, made on the spot and always the same for the same seed.
 *
 * What is in them decides how long they take to unpack, so it is taken from life: text files are pieces of
 * TypeScript's compiler, binary files pieces of the pinned runtime, both of which package-lock.json fixes.
 * Sizes are distributed as in a container of Python or Node programs: half of the files are below 4 KiB, most
 * bytes are in a few large ones.
 */
import { spawn } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { once } from 'node:events';
import * as fs from 'node:fs';
import { basename, dirname, join } from 'node:path';
import process from 'node:process';
import { projectRoot } from '../../build/source-files.ts';
import type { Defer } from './clean-up.ts';
import { layOut, type Tree as Programs } from './squashfs-image.ts';

interface SampleImageRequest {
  /** The squashfs file to be made. The tree is made beside it, on the same filesystem, and deleted again. */
  readonly path: string;
  readonly seed: number;
  /** Regular files; directories and links come on top. */
  readonly fileCount: number;
  /** Half of the files are smaller. Default: 4 KiB, which makes a mean of about 24 KiB. */
  readonly medianBytes?: number;
  /** What a container needs beside these files. */
  readonly programs?: Programs;
}

export function describeImage(image: SampleImage): string {
  const mib = (bytes: number): string => `${Math.round(bytes / 1024 ** 2)} MiB`;
  return (
    `${image.fileCount.toLocaleString('en')} files, ${image.inodes.toLocaleString('en')} inodes, ` +
    `${mib(image.unpackedBytes)} unpacked, ${mib(image.imageBytes)} with ${image.compressor}`
  );
}

export interface SampleImage {
  readonly path: string;
  readonly imageBytes: number;
  readonly fileCount: number;
  /** Files, directories and links of the unpacked tree, hard links counted once. */
  readonly inodes: number;
  /** What the unpacked tree takes, each file rounded up to a block. */
  readonly unpackedBytes: number;
  readonly compressor: string;
}

const medianBytesDefault = 4096;
/** Of the natural logarithm of the sizes: the mean is six times the median. */
const logSizeSpread = 1.9;
const largestFileBytes = 8 * 1024 * 1024;
const blockBytes = 4096;
/** Above this most files of a container are libraries and archives. */
const largeFileBytes = 64 * 1024;
const filesPerDirectory = 9;
const filesPerSymlink = 14;
const filesPerHardLink = 200;
const deepestDirectory = 10;

/** As enroot is usually set up first; a squashfs-tools built without it takes the next. */
const compressors = [
  ['zstd', '-Xcompression-level', '3'],
  ['lzo'],
  ['gzip', '-Xcompression-level', '3'],
] as const;

/**
 * A maker of images, one after the other. The clean-up stops it, and waits until it has stopped: mksquashfs
 * must not write into a directory that is being deleted.
 *
 * The promise of an image rejects if mksquashfs cannot make it or was stopped.
 */
export function imageMaker(defer: Defer): (request: SampleImageRequest) => Promise<SampleImage> {
  const stopping = new AbortController();
  let current: Promise<unknown> = Promise.resolve();
  defer(async () => {
    stopping.abort();
    await current.catch(() => undefined);
  });
  return (request) => {
    const made = makeSampleImage(request, stopping.signal);
    current = made;
    return made;
  };
}

async function makeSampleImage(request: SampleImageRequest, signal: AbortSignal): Promise<SampleImage> {
  signal.throwIfAborted();
  const treePath = join(dirname(request.path), `.${basename(request.path)}.tree-${randomInt(2 ** 31)}`);
  try {
    const tree = makeTree(treePath, request);
    const compressor = await pack(treePath, request.path, signal);
    return { ...tree, path: request.path, imageBytes: fs.statSync(request.path).size, compressor };
  } finally {
    fs.rmSync(treePath, { recursive: true, force: true });
  }
}

type Tree = Pick<SampleImage, 'fileCount' | 'inodes' | 'unpackedBytes'>;

/** @param root must not exist */
export function makeTree(
  root: string,
  { seed, fileCount, medianBytes = medianBytesDefault, programs = {} }: Omit<SampleImageRequest, 'path'>,
): Tree {
  const random = seededRandom(seed);
  const pick = <T>(items: readonly T[]): T => items[Math.floor(random() * items.length)] as T;
  const text = fs.readFileSync(join(projectRoot, 'node_modules/typescript/lib/typescript.js'));
  const binary = fs.openSync(process.execPath, 'r');
  try {
    const binaryBytes = fs.fstatSync(binary).size;
    const directories = makeDirectories(root, Math.ceil(fileCount / filesPerDirectory), random);
    let inodes = directories.length;
    let unpackedBytes = directories.length * blockBytes;
    const paths: string[] = [];
    for (let index = 0; index < fileCount; index++) {
      const size = Math.min(
        largestFileBytes,
        Math.round(medianBytes * Math.exp(logSizeSpread * normal(random))),
      );
      const isText = random() < (size > largeFileBytes ? 0.25 : 0.75);
      const path = join(pick(directories), isText ? `module-${index}.js` : `lib${index}.so`);
      fs.writeFileSync(
        path,
        isText ? pieceOf(text, size, random) : readPiece(binary, binaryBytes, size, random),
        {
          mode: isText ? 0o644 : 0o755,
        },
      );
      paths.push(path);
      inodes++;
      unpackedBytes += Math.ceil(size / blockBytes) * blockBytes;
    }
    for (let index = 0; index < fileCount / filesPerSymlink; index++) {
      fs.symlinkSync(basename(pick(paths)), join(pick(directories), `link-${index}`));
      inodes++;
    }
    for (let index = 0; index < fileCount / filesPerHardLink; index++) {
      fs.linkSync(pick(paths), join(pick(directories), `same-${index}`));
    }
    // Red Hat's images have such a file, which not even its owner may read: Prolog and enroot mend that.
    fs.writeFileSync(join(root, 'shadow'), 'root:*:19000:0:99999:7:::\n', { mode: 0o000 });
    layOut(root, programs);
    return { fileCount: fileCount + 1, inodes: inodes + 1, unpackedBytes: unpackedBytes + blockBytes };
  } finally {
    fs.closeSync(binary);
  }
}

function makeDirectories(root: string, count: number, random: () => number): string[] {
  fs.mkdirSync(root);
  const made = [{ path: root, depth: 0 }];
  while (made.length < count) {
    const parent = made[Math.floor(random() * made.length)];
    if (parent === undefined || parent.depth >= deepestDirectory) continue;
    const path = join(parent.path, `directory-${made.length}`);
    fs.mkdirSync(path);
    made.push({ path, depth: parent.depth + 1 });
  }
  return made.map(({ path }) => path);
}

function pieceOf(source: Buffer, size: number, random: () => number): Buffer {
  const length = Math.min(size, source.byteLength);
  const start = Math.floor(random() * (source.byteLength - length));
  return source.subarray(start, start + length);
}

function readPiece(fd: number, fileBytes: number, size: number, random: () => number): Buffer {
  const piece = Buffer.alloc(Math.min(size, fileBytes));
  fs.readSync(fd, piece, 0, piece.byteLength, Math.floor(random() * (fileBytes - piece.byteLength)));
  return piece;
}

/** @returns the compressor */
async function pack(treePath: string, imagePath: string, signal: AbortSignal): Promise<string> {
  let complaint = '';
  for (const [compressor, ...options] of compressors) {
    fs.rmSync(imagePath, { force: true });
    const args = [
      treePath,
      imagePath,
      '-noappend',
      '-no-progress',
      '-all-root',
      '-comp',
      compressor,
      ...options,
    ];
    // Standard output is a long report.
    const child = spawn('mksquashfs', args, { stdio: ['ignore', 'ignore', 'pipe'] });
    // Not spawn's own option: that would reject before the process has ended, and it still has files open.
    const abort = (): unknown => child.kill('SIGKILL');
    signal.addEventListener('abort', abort);
    complaint = '';
    child.stderr.setEncoding('utf8').on('data', (chunk: string) => (complaint += chunk));
    const [exitCode] = (await once(child, 'close')) as [number | null];
    signal.removeEventListener('abort', abort);
    signal.throwIfAborted();
    if (exitCode === 0) return compressor;
  }
  fs.rmSync(imagePath, { force: true });
  throw new Error(`Cannot make "${imagePath}": mksquashfs failed with every compressor: ${complaint.trim()}`);
}

/**
 * Numbers from 0 to below 1, the same for the same seed: a linear congruential generator modulo 2^32,
 * scrambled.
 */
function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    const mixed = Math.imul(state ^ (state >>> 16), 0x45d9f3b);
    return ((mixed ^ (mixed >>> 16)) >>> 0) / 2 ** 32;
  };
}

/** A normally distributed number, by the method of Box and Muller. */
function normal(random: () => number): number {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}
