/** What a task counts, and the line it ends with. */
import { appendFileSync } from 'node:fs';

export interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

/** Where .ci/run adds up the counts of several tasks; then they leave the closing line to it. */
const COUNTS_FILE_VARIABLE = 'CONTAINER_CACHE_COUNTS_FILE';

/** Prints the closing line `N passed, N failed[, N skipped]`. */
export function printCounts({ passed, failed, skipped }: Counts): void {
  const file = process.env[COUNTS_FILE_VARIABLE];
  if (file === undefined) {
    console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`);
  } else {
    appendFileSync(file, `${passed} ${failed} ${skipped}\n`);
  }
}
