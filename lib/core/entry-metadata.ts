/**
 * What the lock file of an entry says about it. The entry's user owns the file, so whoever reads it takes it as a claim:
 * it may be shown, and never decides what is deleted.
 */

export interface EntryMetadata {
  /** The image as the job named it. */
  readonly image: string;
  readonly createdAtMs: number;
  readonly unpackMs: number;
  /** What the unpacked tree takes on disk. */
  readonly bytes: number;
  readonly inodes: number;
}

/** An image path of PATH_MAX bytes, all of them escaped to six, fits. */
export const longestEntryMetadataBytes = 32 * 1024;

export function formatEntryMetadata(metadata: EntryMetadata): string {
  return `${JSON.stringify({ version: 1, ...metadata })}\n`;
}

/** @returns undefined for anything but well-formed metadata of version 1 */
export function parseEntryMetadata(text: string): EntryMetadata | undefined {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return undefined;
  }
  if (typeof value !== 'object' || value === null) return undefined;
  const { version, image, createdAtMs, unpackMs, bytes, inodes } = value as Record<string, unknown>;
  if (version !== 1 || typeof image !== 'string') return undefined;
  if (!isAmount(createdAtMs) || !isAmount(unpackMs) || !isAmount(bytes) || !isAmount(inodes))
    return undefined;
  return { image, createdAtMs, unpackMs, bytes, inodes };
}

function isAmount(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
}
