/** `container-cache metrics`: the counters and the node's state for Prometheus. */
import process from 'node:process';
import { writeFileAtomically } from '../lib/system/aside.ts';
import { updateCounters } from './counters-file.ts';
import { inventoryOf, savedBytes, withBase } from './inventory.ts';
import { formatMetrics } from './prometheus.ts';
import { release } from './this-release.ts';

/** node_exporter runs as a user of its own. */
const readableMode = 0o644;

/** @returns the exit code, 0 */
export function runMetrics({ output }: { readonly output: string | undefined }): Promise<number> {
  return withBase('show counters', async (settings, base) => {
    const counters = await updateCounters(settings.statePath);
    const { usage, entries: all, leases } = inventoryOf(settings, base);
    const entries = all.filter(({ kind }) => kind === 'private');
    const mounted = all.filter(({ kind }) => kind === 'mounted');
    const text = formatMetrics(counters, {
      version: release.version,
      usage,
      policy: settings,
      entries: {
        count: entries.length,
        bytes: entries.reduce((sum, { bytes }) => sum + bytes, 0),
        inodes: entries.reduce((sum, { inodes }) => sum + inodes, 0),
      },
      mounted: {
        count: mounted.length,
        bytes: mounted.reduce((sum, { bytes }) => sum + bytes, 0),
        views: mounted.reduce((sum, { viewers }) => sum + viewers.length, 0),
        savedBytes: mounted.reduce((sum, entry) => sum + savedBytes(entry), 0),
      },
      pinned: all.filter(({ pinned }) => pinned).length,
      leases: leases.length,
    });
    if (output === undefined) process.stdout.write(text);
    else writeFileAtomically(output, text, { mode: readableMode });
    return 0;
  });
}
