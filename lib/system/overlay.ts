/**
 * Whether a user may mount an overlay over a directory of the base: Linux 5.11 and newer, unless the
 * distribution forbids user namespaces or the filesystem cannot carry an upper layer. Found out by doing it,
 * as nobody and with the programs by which enroot does it: where AppArmor restricts user namespaces, enroot's
 * own helpers are allowed what unshare(1) is not.
 */
import { chownSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { asUser, isRoot, nobody } from './as-user.ts';
import { asidePath } from './aside.ts';
import { isExecutable } from './files.ts';
import { CommandFailed, run } from './run-command.ts';

type OverlayProbe = { readonly works: true } | { readonly works: false; readonly reason: string };

const probeTimeoutMs = 10_000;

/** What an overlay must be able to do: show the lower layer, take a change, hide a deleted name. */
const useOverlay = 'cd "$1/merged" && [ -f old ] && echo changed >old && rm gone && [ ! -e gone ]';
const mountByHelper = `echo "overlay $1/merged overlay lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work,userxattr" | "$2" - && ${useOverlay}`;
const mountByUtil = `mount -t overlay -o "lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work,userxattr" overlay "$1/merged" && ${useOverlay}`;

/**
 * Tries an overlay below a directory and leaves nothing of it; what a killed one leaves is the collector's to
 * sweep.
 *
 * @param directoryOnBase absolute; whoever we are must be able to make a directory in it
 * @param enrootPath the real enroot; its helper programs lie beside it
 */
export async function probeOverlay(
  directoryOnBase: string,
  enrootPath: string | undefined,
): Promise<OverlayProbe> {
  const directory = asidePath(join(directoryOnBase, 'overlay-probe'));
  mkdirSync(directory, { mode: 0o700 });
  try {
    const user = isRoot() ? nobody : undefined;
    const made = ['', 'lower', 'upper', 'work', 'merged'].map((name) => join(directory, name));
    for (const path of made.slice(1)) mkdirSync(path, { mode: 0o700 });
    const files = ['old', 'gone'].map((name) => join(directory, 'lower', name));
    for (const path of files) writeFileSync(path, 'lower\n', { mode: 0o600 });
    if (user !== undefined) for (const path of [...made, ...files]) chownSync(path, user.uid, user.gid);
    const [file = '', ...args] = probeCommand(directory, enrootPath);
    const command = { file, args, timeoutMs: probeTimeoutMs };
    await run(user === undefined ? command : asUser(user, command, { canGain: true }));
    return { works: true };
  } catch (error) {
    if (!(error instanceof CommandFailed)) throw error;
    return { works: false, reason: error.message };
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

function probeCommand(directory: string, enrootPath: string | undefined): string[] {
  const helpers = enrootPath === undefined ? undefined : findHelpers(enrootPath);
  if (helpers === undefined) {
    return ['unshare', '--user', '--map-root-user', '--mount', 'sh', '-c', mountByUtil, 'sh', directory];
  }
  return [helpers.enter, '--user', '--mount', 'sh', '-c', mountByHelper, 'sh', directory, helpers.mount];
}

function findHelpers(enrootPath: string): { enter: string; mount: string } | undefined {
  const enter = join(dirname(enrootPath), 'enroot-nsenter');
  const mount = join(dirname(enrootPath), 'enroot-mount');
  return isExecutable(enter) && isExecutable(mount) ? { enter, mount } : undefined;
}
