/**
 * What all entries take together, and where that stands with the cache's own limit
 * (`container_cache_max_size`).
 */
import { maxCacheBytes, type CollectionPolicy } from '../core/gc-plan.ts';
import type { SpaceNeed } from '../core/image.ts';
import { parsePartialName } from '../core/layout.ts';
import type { UserIds } from '../system/as-user.ts';
import { readUsage } from '../system/disk-usage.ts';
import { MountScan, readMounts } from '../system/mounts.ts';
import { measureShare } from '../system/tree-size.ts';
import { EntrySizes, measureEntry } from './entry-sizes.ts';
import { listEntries, type FoundEntry, type ListRequest } from './listed-entries.ts';
import { forEachUser } from './users.ts';

export interface LimitRequest extends ListRequest {
  readonly policy: CollectionPolicy;
  /** Room to be made beside the watermarks. */
  readonly need?: SpaceNeed;
  /** What is to be written is no entry: it does not count. */
  readonly isForOthers?: boolean;
}

/** Where the cache stands with its own limit, what is to be written included. */
interface LimitState {
  readonly isExceeded: () => boolean;
  /** Which of the candidates must go. If all of them are not enough for what is to be written: none. */
  readonly choose: (candidates: readonly FoundEntry[]) => readonly FoundEntry[];
  readonly forget: (entry: FoundEntry) => void;
}

export async function measureLimit(request: LimitRequest, sizes: EntrySizes): Promise<LimitState> {
  const { base, policy, need, isForOthers } = request;
  const limit = maxCacheBytes(readUsage(base.path), policy);
  if (limit === undefined) return { isExceeded: () => false, choose: () => [], forget: () => undefined };
  const { bytesOf, partialBytes } = await measureCache(request, sizes);
  const sum = (): number => [...bytesOf.values()].reduce((total, bytes) => total + bytes, partialBytes);
  const wanted = isForOthers === true ? 0 : (need?.bytes ?? 0);
  return {
    isExceeded: () => sum() + wanted > limit,
    forget: ({ name }) => {
      bytesOf.delete(name);
    },
    choose: (candidates) => {
      let rest = sum() + wanted;
      let count = 0;
      for (const { name } of candidates) {
        if (rest <= limit) break;
        rest -= bytesOf.get(name) ?? 0;
        count++;
      }
      return rest > limit && wanted > 0 ? [] : candidates.slice(0, count);
    },
  };
}

interface CacheSize {
  readonly bytesOf: Map<string, number>;
  /** Of trees that are being unpacked. */
  readonly partialBytes: number;
}

async function measureCache(request: ListRequest, sizes: EntrySizes): Promise<CacheSize> {
  const { base } = request;
  const bytesOf = new Map<string, number>();
  for (const entry of listEntries(request, new MountScan(request.base.path))) {
    const { bytes } = await measureEntry(sizes, base, entry);
    bytesOf.set(entry.name, bytes);
  }
  const partials: { user: UserIds; path: string }[] = [];
  forEachUser(base, readMounts(), request.log, (turn) => {
    const { user, directory } = turn;
    for (const name of turn.names((one) => parsePartialName(one) !== undefined))
      partials.push({ user, path: `${directory.path}/${name}/rootfs` });
  });
  let partialBytes = 0;
  for (const { user, path } of partials) partialBytes += (await measureShare(user, path)).bytes;
  return { bytesOf, partialBytes };
}

/** What all entries take, trees that are being unpacked included; for whoever is about to add one. */
export async function measureCacheBytes(
  request: ListRequest & { readonly runtimePath: string },
): Promise<number> {
  const sizes = new EntrySizes(request.runtimePath);
  const { bytesOf, partialBytes } = await measureCache(request, sizes);
  sizes.save();
  return [...bytesOf.values()].reduce((total, bytes) => total + bytes, partialBytes);
}
