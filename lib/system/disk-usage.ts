/** How full a filesystem is: statfs(2). */
import { statfsSync } from 'node:fs';
import type { Usage } from '../core/gc-plan.ts';

/** @param path anything on the filesystem */
export function readUsage(path: string): Usage {
  const { bsize, blocks, bfree, bavail, files, ffree } = statfsSync(path);
  return {
    totalBytes: blocks * bsize,
    freeBytes: bfree * bsize,
    availableBytes: bavail * bsize,
    totalInodes: files,
    freeInodes: ffree,
  };
}
