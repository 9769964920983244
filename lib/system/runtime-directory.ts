/** The directory for what a reboot should forget, `/run/container-cache`, and what lies directly in it. */
import { mkdirSync } from 'node:fs';
import { dirname } from 'node:path';
import { NodeFault } from '../core/faults.ts';
import { warmingsPath } from '../core/layout.ts';
import type { UserIds } from './as-user.ts';
import { startWarming } from './background.ts';
import { errnoOf, isGone, unlessErrno } from './errno.ts';
import { whoElseCanChange } from './path-safety.ts';

/** Everybody may pass, to the files of their own jobs; nobody but root may look around. */
const passableMode = 0o711;

/**
 * Whoever can change what the path leads to could forge leases and the facts of the node.
 *
 * @throws NodeFault BAD_CONFIG if anyone but root can
 */
export function checkRuntimeDirectory(runtimePath: string): void {
  // Where it is not there yet, whoever can change the last directory that is could make it first; in a sticky
  // one, they are refused then.
  for (let path = runtimePath; ; path = dirname(path)) {
    const fault = unlessErrno(
      isGone,
      () => whoElseCanChange(path, path === runtimePath ? 'itself' : 'above') ?? 'nobody',
    );
    if (fault === 'nobody') return;
    if (fault !== undefined)
      throw new NodeFault(
        'BAD_CONFIG',
        `Cannot use runtime_dir "${runtimePath}": "${fault.path}" is ${fault.found}, ` +
          'want a directory of root that nobody else can write',
      );
    if (path === '/') return;
  }
}

/**
 * Makes `path`, a directory of root directly below `runtimePath`, and `runtimePath` itself where they are
 * missing.
 */
export function prepareRuntimeDirectory(runtimePath: string, path: string, mode: number): void {
  const make = (): unknown => unlessErrno(['EEXIST'], () => mkdirSync(path, { mode }));
  try {
    make();
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error;
    mkdirSync(runtimePath, { recursive: true, mode: passableMode });
    checkRuntimeDirectory(runtimePath);
    make();
  }
}

/** startWarming(), which counts what a user has under way by files in a directory of root. */
export function startCountedWarming(
  runtimePath: string,
  user: UserIds,
  images: readonly string[],
  configPath: string | undefined,
): boolean {
  const path = warmingsPath(runtimePath);
  prepareRuntimeDirectory(runtimePath, path, 0o700);
  return startWarming(user, images, configPath, path);
}
