/** The hash under which an image's rootfs is kept. */
import { createHash } from 'node:crypto';
import type { SquashfsFacts } from '../core/image.ts';
import { findBeneath } from '../system/native-addon.ts';

/** What content was read under: the same file, untouched since. */
export function hashIdentity(facts: SquashfsFacts): string {
  const { realPath, sizeBytes, modifiedAt, changedAt, superblock } = facts;
  return shortHash(['identity', realPath, String(sizeBytes), modifiedAt, changedAt, superblock]);
}

/** What files of the same content have in common and costs nothing to read; others may have it as well. */
export function hashFingerprint({ sizeBytes, superblock }: SquashfsFacts): string {
  return shortHash(['fingerprint', String(sizeBytes), superblock]);
}

/** @param content the SHA-256 of the whole file, in hex */
export function hashContent(content: string): string {
  return shortHash(['content', content]);
}

/** @param digest `sha256:…` of the image's manifest */
export function hashDigest(digest: string): string {
  return shortHash(['digest', digest]);
}

/** For an enroot that cannot tell digests, and as the name of the file that remembers one. */
export function hashReference(canonical: string): string {
  return shortHash(['reference', canonical]);
}

/** For the memory of registries that do not answer. */
export function hashRegistry(registry: string): string {
  return shortHash(['registry', registry]);
}

/**
 * 16 hex digits of SHA-256 over the parts, each with its length before it, so that no two lists run together.
 */
function shortHash(parts: readonly (string | Uint8Array)[]): string {
  const pieces = parts.flatMap((part) => {
    const bytes = typeof part === 'string' ? Buffer.from(part) : part;
    return [Buffer.from(`${bytes.byteLength}:`), bytes];
  });
  return sha256(Buffer.concat(pieces)).toString('hex').slice(0, 16);
}

/** By our addon, where it can be had: the runtime takes milliseconds to load its own way. */
function sha256(bytes: Buffer): Buffer {
  const hash = findBeneath()?.sha256(bytes);
  return hash instanceof Buffer ? hash : createHash('sha256').update(bytes).digest();
}
