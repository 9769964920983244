/** The directory for what a reboot should forget, `/run/container-cache`, and what lies directly in it. */
import { mkdirSync } from 'node:fs';
import { errnoOf, unlessErrno } from '../system/errno.ts';

/** Everybody may pass, to the files of their own jobs; nobody but root may look around. */
const passableMode = 0o711;

/** Makes `path`, a directory of root directly below `runtimePath`, and `runtimePath` itself where they are missing. */
export function prepareRuntimeDirectory(runtimePath: string, path: string, mode: number): void {
  const make = (): unknown => unlessErrno(['EEXIST'], () => mkdirSync(path, { mode }));
  try {
    make();
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error;
    mkdirSync(runtimePath, { recursive: true, mode: passableMode });
    make();
  }
}
