/**
 * The layers of a registry's image as `enroot import` unpacks them, without the squashfs file that it would
 * make of them.
 *
 * That file would be compressed, unpacked once more, and deleted, which takes longer than all else
 * (docs/performance.md). No command of enroot stops before: `enroot load` copies the layers once more, and
 * shows files that a layer hides by an opaque directory, since it mounts them as a user who may not read that
 * mark. But enroot is a bash script, and bash takes functions from the environment. Of the programs that
 * `import` calls by name, two are replaced:
 *
 *   enroot-aufs2ovlfs LAYER             writes the paths of the layer's whiteouts into LAYER.whiteouts, and
 *                                       changes nothing
 *   enroot-mksquashovlfs 0:1:2 FILE …   makes a directory FILE, and moves the layers into it, with a file
 *                                       `order`: `0:1:2`
 *
 * merge-layers.ts makes one tree of that directory. An enroot that does not take these functions makes a
 * squashfs file.
 */
import { JobFault } from '../core/faults.ts';
import { asUser, type UserIds } from '../system/as-user.ts';
import { CommandFailed, run } from '../system/run-command.ts';
import { shortageIn, shortageFault } from '../system/shortage.ts';

const listWhiteouts = String.raw`() { find "$1" -name '.wh.*' -printf '%P\0' >"$1.whiteouts"; }`;

/** What enroot's own function prints if it fails is not a registry's fault. */
const complaint = 'container-cache: cannot keep the layers';

const moveLayers = `() {
  local IFS=:
  mkdir "$2" && printf %s "$1" >"$2/order" && mv -- $1 *.whiteouts "$2" && return
  echo '${complaint}' >&2
  return 1
}`;

/** For env(1), which starts enroot: a shell on the way would read them. */
export const layerFunctions: readonly string[] = [
  `BASH_FUNC_enroot-aufs2ovlfs%%=${listWhiteouts}`,
  `BASH_FUNC_enroot-mksquashovlfs%%=${moveLayers}`,
];

/** Whether an import failed that would not have failed without the functions. */
export const couldNotKeepLayers = (end: CommandFailed): boolean => end.stderrTail.includes(complaint);

/**
 * Makes `rootfsPath` of the layers and deletes their directory, as the user.
 *
 * @param command container-cache, as users can execute it
 * @throws JobFault UNPACK_FAILED, CREATE_TIMEOUT, NO_SPACE, QUOTA_EXCEEDED
 */
export async function mergeLayers(
  user: UserIds,
  command: string,
  layersPath: string,
  rootfsPath: string,
  timeoutMs: number,
): Promise<void> {
  try {
    await runMerge(user, command, [layersPath, rootfsPath], timeoutMs);
  } catch (cause) {
    if (!(cause instanceof CommandFailed)) throw cause;
    const message = `Cannot merge the layers in "${layersPath}"`;
    const shortage = shortageIn(cause.stderrTail);
    if (shortage !== undefined) throw shortageFault(shortage, message, cause.stderrTail);
    throw new JobFault(cause.timedOut ? 'CREATE_TIMEOUT' : 'UNPACK_FAILED', message, { cause });
  }
}

/** Deletes what was not merged, and what had been made of it, as the user. @throws CommandFailed */
export async function discardLayers(
  user: UserIds,
  command: string,
  paths: readonly [layersPath: string, rootfsPath: string],
  timeoutMs: number,
): Promise<void> {
  await runMerge(user, command, ['--discard', ...paths], timeoutMs);
}

async function runMerge(
  user: UserIds,
  command: string,
  parameters: readonly string[],
  timeoutMs: number,
): Promise<void> {
  const args = ['merge-layers', ...parameters];
  await run(asUser(user, { file: command, args, timeoutMs }, { canGain: false, groups: 'none' }));
}
