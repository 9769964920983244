/**
 * How much of a user's own must go after a quota refused an image. Nobody tells how much of a quota is left.
 */
import { ownInodes, type SpaceNeed } from './image.ts';

/** The first attempt is a little modest: what a listing says is more than what a tree takes. */
const shares = [0.9, 1.25, Infinity] as const;

/**
 * @param need of the image
 * @param written of it before the quota refused more: that is given back
 * @param attempt that failed, from 1
 */
export function quotaNeed(need: SpaceNeed, written: SpaceNeed | undefined, attempt: number): SpaceNeed {
  const share = shares[attempt - 1] ?? Infinity;
  const bytes = need.bytes * share - (written?.bytes ?? 0);
  const inodes = (need.inodes - ownInodes) * share - (written?.inodes ?? 0);
  return { bytes: Math.max(1, bytes), inodes: Math.max(1, inodes) };
}
