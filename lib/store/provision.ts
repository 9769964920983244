/**
 * Making an entry as root for a user: asking a registry, unpacking, making room.
 *
 * A module of its own so that a Prolog whose entry is there does not load it.
 */
import type { Settings } from '../core/settings.ts';
import { collect } from './collector.ts';
import { fillRootfs, type CreateContext } from './create.ts';
import { openEnroot } from './enroot.ts';
import type { EntryCreator } from './entry.ts';
import { recordEvents } from './events.ts';
import type { ImageSource } from './image-source.ts';
import { pinnedNames } from './pins.ts';
import { moveNamesToTrash } from './trash.ts';
import { startBackgroundCollector } from '../system/background.ts';
import type { UserIds } from '../system/as-user.ts';
import type { Directory } from '../system/directory.ts';
import { readUsage } from '../system/disk-usage.ts';
import { findMountedEntries } from '../system/mounts.ts';
import type { Log } from '../system/syslog.ts';

export interface Provision {
  readonly user: UserIds;
  readonly settings: Settings;
  readonly base: Directory;
  readonly userDirectory: Directory;
  readonly source: ImageSource;
  readonly log: Log;
  readonly configPath: string | undefined;
  readonly onProgress: CreateContext['onProgress'];
}

/** What acquireEntry needs to make an entry as root for a user. */
export async function openCreator(provision: Provision): Promise<EntryCreator> {
  const { user, settings, base, userDirectory, source, configPath } = provision;
  const enroot =
    source.kind === 'registry' ? await openEnroot(settings.enrootPath, user, userDirectory.path) : undefined;
  const context: CreateContext = {
    user,
    source,
    userPath: userDirectory.path,
    processors: settings.createProcessors,
    policy: settings,
    enroot,
    readUsage: () => readUsage(base.path),
    startCollector: () => {
      startBackgroundCollector(settings.runtimePath, configPath);
    },
    makeRoom: async (need, limitMs) => {
      await collect({
        base,
        runtimePath: settings.runtimePath,
        policy: settings,
        pinned: pinnedNames(settings.statePath, provision.log.write),
        need,
        lockTimeoutMs: limitMs,
        deadlineMs: Date.now() + limitMs,
        log: provision.log.write,
        record: (event) => {
          recordEvents(settings.statePath, [event]);
        },
      });
    },
    onProgress: provision.onProgress,
  };
  return {
    fill: (...parameters) => fillRootfs(context, ...parameters),
    isMounted: (name) => findMountedEntries(base.path)(user.uid, name),
    discard: (name) => {
      moveNamesToTrash(base, userDirectory, [name]);
      startBackgroundCollector(settings.runtimePath, configPath);
    },
  };
}
