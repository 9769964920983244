/**
 * What a job's `--container-image` names, and the hash under which its rootfs is kept.
 *
 * An image is identified by what it contains, not by what it is called: a rebuilt file and a moved tag are
 * other entries. The rules for telling a path from a reference are pyxis' (a path starts with `.` or `/`),
 * those for the parts of a reference are enroot's (enroot-import(1)).
 */
import { JobFault } from './faults.ts';

export type ImageRequest = PathImage | RegistryImage;

export interface PathImage {
  readonly kind: 'path';
  /** Absolute; a relative one was joined to the job's working directory. */
  readonly path: string;
}

export interface RegistryImage {
  readonly kind: 'registry';
  /** As pyxis hands it to enroot. */
  readonly uri: string;
  /** One spelling for all spellings of a reference: `docker://USER@REGISTRY#IMAGE:TAG`. */
  readonly canonical: string;
  /** The host, with its port if the reference has one. */
  readonly registry: string;
  /** The digest that the reference itself names, `sha256:…`. */
  readonly digest: string | undefined;
}

/** PATH_MAX of Linux, the NUL included. */
const longestPath = 4096;
const longestReference = 1024;
const dockerHub = 'registry-1.docker.io';

/**
 * @param workPath the job's working directory
 * @throws JobFault BAD_REFERENCE, UNSUPPORTED_OPTION
 */
export function parseImage(image: string, workPath: string | undefined): ImageRequest {
  if (image.includes('\ufffd')) {
    // The runtime decodes the environment as UTF-8; what it could not decode it could not hand on either.
    throw new JobFault('BAD_REFERENCE', 'Cannot use the image name: it is not UTF-8');
  }
  return image.startsWith('/') || image.startsWith('.') ? parsePath(image, workPath) : parseReference(image);
}

/** An image as pyxis hands it to enroot: a path as it was given, anything else as a URI. */
export function imageOfPyxis(image: string): string {
  return /^(?:[./]|[a-z]+:\/\/)/.test(image) ? image : `docker://${image}`;
}

function parsePath(image: string, workPath: string | undefined): PathImage {
  if (!image.startsWith('/') && workPath === undefined) {
    throw new JobFault('BAD_REFERENCE', `Cannot resolve "${image}": the job has no working directory`);
  }
  const path = image.startsWith('/') ? image : `${workPath ?? ''}/${image}`;
  if (Buffer.byteLength(path) >= longestPath) {
    throw new JobFault('BAD_REFERENCE', `Cannot use the image path: longer than ${longestPath - 1} bytes`);
  }
  return { kind: 'path', path };
}

function parseReference(image: string): RegistryImage {
  const scheme = /^([a-z]+):\/\//.exec(image)?.[1];
  if (scheme !== undefined && scheme !== 'docker') {
    throw new JobFault('UNSUPPORTED_OPTION', `Images of ${scheme}:// are not cached`);
  }
  const uri = imageOfPyxis(image);
  if (uri.length > longestReference) {
    throw new JobFault(
      'BAD_REFERENCE',
      `Cannot use the image reference: longer than ${longestReference} characters`,
    );
  }
  // The digest comes off first: to a greedy USER, IMAGE@DIGEST would look like USER@IMAGE:TAG.
  const { reference = '', digest } =
    /^docker:\/\/(?<reference>.*?)(?:@(?<digest>sha256:[A-Za-z0-9]+))?$/s.exec(uri)?.groups ?? {};
  const { user, name } = /^(?:(?<user>.+)@)?(?<name>[^@]+)$/.exec(reference)?.groups ?? {};
  const parts = name === undefined ? undefined : splitName(name);
  if (
    parts === undefined ||
    (digest !== undefined && parseDigest(digest) === undefined) ||
    (user !== undefined && !/^[\w.!~*'()%;:&=+$,@-]+$/.test(user))
  ) {
    throw new JobFault(
      'BAD_REFERENCE',
      `Cannot parse "${image}", want [docker://][USER@][REGISTRY#]IMAGE[:TAG|@DIGEST]`,
    );
  }
  const suffix = digest === undefined ? `:${parts.tag ?? 'latest'}` : `@${digest}`;
  const canonical = `docker://${user === undefined ? '' : `${user}@`}${parts.registry}#${parts.repository}${suffix}`;
  return { kind: 'registry', uri, canonical, registry: parts.registry, digest };
}

interface NameParts {
  readonly registry: string;
  readonly repository: string;
  readonly tag: string | undefined;
}

function splitName(name: string): NameParts | undefined {
  const hash = name.indexOf('#');
  const slash = name.indexOf('/');
  let registry = dockerHub;
  let rest = name;
  if (hash >= 0) {
    registry = name.slice(0, hash);
    rest = name.slice(hash + 1);
  } else if (slash >= 0 && /[.:]/.test(name.slice(0, slash))) {
    // Without `#`, a first part with a dot or a port is a registry; else it is a namespace of Docker Hub.
    registry = name.slice(0, slash);
    rest = name.slice(slash + 1);
  }
  const match = /^(?<repository>[a-z0-9/._-]+)(?::(?<tag>[A-Za-z0-9._:-]+))?$/.exec(rest);
  const { repository, tag } = match?.groups ?? {};
  if (repository === undefined || !/^[^/#@\s\p{Cc}]+$/u.test(registry)) return undefined;
  if (/^(index\.)?docker\.io$/.test(registry)) registry = dockerHub;
  const isOfficial = registry === dockerHub && !repository.includes('/');
  return { registry, repository: isOfficial ? `library/${repository}` : repository, tag };
}

/** What is read of a squashfs file to know it again. */
export interface SquashfsFacts {
  readonly realPath: string;
  readonly sizeBytes: number;
  /** As find(1) prints it, seconds with a fraction: never computed with. */
  readonly modifiedAt: string;
  /**
   * The same of the last change of the inode, which nobody can set: it tells a file that was replaced with
   * its old times.
   */
  readonly changedAt: string;
  /** The first 96 bytes. */
  readonly superblock: Uint8Array;
}

export const superblockBytes = 96;

export interface Superblock {
  readonly inodes: number;
  /** Of the file's bytes, those that belong to the filesystem. */
  readonly usedBytes: number;
  readonly isDataCompressed: boolean;
}

/**
 * Reads the superblock of squashfs 4.0: little-endian, magic "hsqs", inode count at 4, flags at 24, version
 * at 28, bytes used at 40 (the kernel's fs/squashfs/squashfs_fs.h, struct squashfs_super_block).
 *
 * @throws JobFault NOT_SQUASHFS
 */
export function parseSuperblock(facts: SquashfsFacts): Superblock {
  const { superblock, sizeBytes, realPath } = facts;
  if (
    superblock.byteLength < superblockBytes ||
    Buffer.from(superblock.subarray(0, 4)).toString('latin1') !== 'hsqs'
  ) {
    throw new JobFault('NOT_SQUASHFS', `Cannot use "${realPath}": not a squashfs file`);
  }
  const view = new DataView(superblock.buffer, superblock.byteOffset, superblock.byteLength);
  const major = view.getUint16(28, true);
  if (major !== 4) {
    throw new JobFault('NOT_SQUASHFS', `Cannot use "${realPath}": squashfs version ${major}, want 4`);
  }
  const usedBytes = Number(view.getBigUint64(40, true));
  if (usedBytes > sizeBytes) {
    throw new JobFault(
      'NOT_SQUASHFS',
      `Cannot use "${realPath}": cut off, ${sizeBytes} of ${usedBytes} bytes`,
    );
  }
  const dataIsUncompressed = 0x2;
  return {
    inodes: view.getUint32(4, true),
    usedBytes,
    isDataCompressed: (view.getUint16(24, true) & dataIsUncompressed) === 0,
  };
}

/** Disk space an unpacked image takes. */
export interface SpaceNeed {
  readonly bytes: number;
  readonly inodes: number;
}

/**
 * Compressed container images grow to two to three times their size; a file's last block is half empty on
 * average.
 */
const usualGrowth = 3;
const tailBytesPerInode = 2048;
/** Beside the image's own inodes: the partial directory and the lock file. */
export const ownInodes = 2;

/** Inodes are exact; bytes are a cautious guess, since the superblock does not tell the unpacked size. */
export function estimateSpace(superblock: Superblock): SpaceNeed {
  const growth = superblock.isDataCompressed ? usualGrowth : 1;
  return {
    bytes: superblock.usedBytes * growth + superblock.inodes * tailBytesPerInode,
    inodes: superblock.inodes + ownInodes,
  };
}

/** @returns the digest in the output of `enroot digest`, or undefined */
export function parseDigest(output: string): string | undefined {
  return /^sha256:[0-9a-f]{64}$/.exec(output.trim())?.[0];
}
