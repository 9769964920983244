/** Evicting a mounted entry: as eviction.ts does it, but root's, and unmounted before the rename. */
import { closeSync, lstatSync } from 'node:fs';
import { keepReason, type CollectionPolicy, type EntryFacts } from '../core/gc-plan.ts';
import { lockPath, mountedEntryPath } from '../core/layout.ts';
import type { Directory } from '../system/directory.ts';
import { isGone, unlessErrno } from '../system/errno.ts';
import { leadsTo, openRegularFile } from '../system/files.ts';
import { tryFlock } from '../system/flock.ts';
import { openMountedStore } from './mounted-store.ts';
import { moveToTrash } from './trash.ts';
import { unmountEntry } from './views.ts';

interface MountedEviction {
  readonly base: Directory;
  readonly runtimePath: string;
  readonly policy: CollectionPolicy;
}

/** The name in the trash, or why it stays. */
export type Moved = { readonly trashed: string } | { readonly kept: string };

export function moveMountedAway(
  { base, runtimePath, policy }: MountedEviction,
  trash: Directory,
  entry: EntryFacts,
): Moved {
  const path = mountedEntryPath(base.path, entry.name);
  const lock = unlessErrno(isGone, () => openRegularFile(lockPath(path)));
  if (lock === undefined) return { kept: 'gone' };
  try {
    if (!tryFlock(lock, 'exclusive')) return { kept: 'leased' };
    // From here on nobody can hold the entry; but somebody may have held and released it since the plan.
    if (!leadsTo(lockPath(path), lock)) return { kept: 'replaced' };
    const usedAtMs = lstatSync(path).mtimeMs;
    const reason = keepReason({ ...entry, leased: false, usedAtMs }, policy, Date.now());
    if (reason !== undefined) return { kept: reason };
    if (usedAtMs !== entry.usedAtMs) return { kept: 'used' };
    unmountEntry(runtimePath, entry.name);
    const store = openMountedStore(base.path);
    try {
      return { trashed: moveToTrash({ userDirectory: store, trash }, entry.name) };
    } finally {
      closeSync(store.fd);
    }
  } finally {
    closeSync(lock);
  }
}
