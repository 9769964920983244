/**
 * What only a job needs whose image is not on the node, or is not a file: asking a registry, unpacking, making room.
 *
 * Apart from prolog.ts so that a warm Prolog does not load it.
 */
import type { Job } from '../lib/core/job.ts';
import type { Settings } from '../lib/core/settings.ts';
import { collect } from '../lib/store/collector.ts';
import { fillRootfs, type CreateContext } from '../lib/store/create.ts';
import { openEnroot } from '../lib/store/enroot.ts';
import type { EntryCreator } from '../lib/store/entry.ts';
import type { ImageSource } from '../lib/store/image-source.ts';
import { moveNamesToTrash } from '../lib/store/trash.ts';
import { startBackgroundCollector } from '../lib/system/background.ts';
import type { Directory } from '../lib/system/directory.ts';
import { readUsage } from '../lib/system/disk-usage.ts';
import { findMountedEntries } from '../lib/system/mounts.ts';
import type { Log } from '../lib/system/syslog.ts';

export interface Provision {
  readonly job: Job;
  readonly settings: Settings;
  readonly base: Directory;
  readonly userDirectory: Directory;
  readonly source: ImageSource;
  readonly log: Log;
  readonly configPath: string | undefined;
}

/** What acquireEntry needs to make an entry as root for a user. */
export async function openCreator(provision: Provision): Promise<EntryCreator> {
  const { job, settings, base, userDirectory, source, configPath } = provision;
  const enroot =
    source.kind === 'registry' ? await openEnroot(settings.enrootPath, job, userDirectory.path) : undefined;
  const context: CreateContext = {
    user: job,
    source,
    processors: settings.createProcessors,
    policy: settings,
    enroot,
    readUsage: () => readUsage(base.path),
    startCollector: () => {
      startBackgroundCollector(configPath);
    },
    makeRoom: async (need, limitMs) => {
      await collect({
        base,
        runtimePath: settings.runtimePath,
        policy: settings,
        need,
        lockTimeoutMs: limitMs,
        deadlineMs: Date.now() + limitMs,
        log: provision.log.write,
      });
    },
    onProgress: progressLogger(provision),
  };
  return {
    fill: (partialPath, rootfsPath, limitMs) => fillRootfs(context, partialPath, rootfsPath, limitMs),
    isMounted: (name) => findMountedEntries(base.path)(job.uid, name),
    discard: (name) => {
      moveNamesToTrash(base, userDirectory, [name]);
      startBackgroundCollector(configPath);
    },
  };
}

const progressIntervalMs = 30_000;

/** A line at the start and one every 30 s, so that an operator sees that a node is at work and how far it is. */
function progressLogger({ job, log }: Provision): CreateContext['onProgress'] {
  let lastMs = -Infinity;
  let lastPhase: string | undefined;
  return ({ phase, percent }) => {
    const nowMs = performance.now();
    if (phase === lastPhase && nowMs - lastMs < progressIntervalMs) return;
    lastMs = nowMs;
    lastPhase = phase;
    log.write('info', 'prolog-progress', {
      job: job.jobId,
      uid: job.uid,
      image: job.container?.image,
      phase,
      percent,
    });
    void log.flush();
  };
}
