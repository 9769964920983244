/**
 * What enroot itself will need for an image, and on which of its paths: asked of enroot, as the user, by its
 * own rules (enroot.conf, enroot.conf.d, the environment) and with the user's own credentials.
 *
 * enroot has no command for either. It is a bash script, and bash takes functions from the environment: at
 * its start it makes its directories by mkdir(1), in whose place a function prints them; `enroot digest` asks
 * a registry by curl(1), in whose place a function asks once more for the manifest itself and prints the
 * sizes of its layers. An enroot that works otherwise tells nothing.
 */
import type { SpaceNeed } from '../core/image.ts';
import { homelessPath } from '../core/layout.ts';
import { asUser, type UserIds } from '../system/as-user.ts';
import { splitLines } from '../system/lines.ts';
import { CommandFailed, run } from '../system/run-command.ts';
import { runForUser } from '../system/user-groups.ts';
import { lookUpHome } from './enroot-program.ts';

const askLimitSeconds = 10;
/** Whatever is configured for imports. */
const briefly = { ENROOT_CONNECT_TIMEOUT: '3', ENROOT_TRANSFER_TIMEOUT: '5', ENROOT_TRANSFER_RETRIES: '0' };

/** Whom enroot is asked for, and the directory in the base, for the files of whoever has no home. */
interface EnrootUser {
  readonly user: UserIds;
  readonly userPath: string;
}

interface EnrootPaths {
  readonly data: string;
  readonly cache: string;
  readonly temporary: string;
}

const printPaths =
  '() { printf \'PATHS\\t%s\\t%s\\t%s\\n\' "$ENROOT_DATA_PATH" "$ENROOT_CACHE_PATH" "$ENROOT_TEMP_PATH"; }';

/** @returns undefined if this enroot does not tell */
export async function askEnrootPaths(enrootPath: string, user: EnrootUser): Promise<EnrootPaths | undefined> {
  const text = await askEnroot(enrootPath, user, ['version'], [`BASH_FUNC_mkdir%%=${printPaths}`]);
  const [, data, cache, temporary] = /^PATHS\t(\/.*)\t(\/.*)\t(\/.*)$/m.exec(text) ?? [];
  return data === undefined || cache === undefined || temporary === undefined
    ? undefined
    : { data, cache, temporary };
}

const printLayers = `() {
  command curl "$@" || return
  local word url= head= skip= words=()
  for word; do
    if [[ -n $skip ]]; then
      skip=
      continue
    fi
    case $word in
      -I) head=1 ;;
      -o | -w) skip=1 ;;
      --) ;;
      *) words+=("$word") url=$word ;;
    esac
  done
  [[ -n $head && $url == */manifests/* ]] || return 0
  command curl --max-filesize 4000000 "\${words[@]}" 2>/dev/null \\
    | jq -r '"LAYERS\\t\\([.layers[].size] | add)"' >&2 2>/dev/null || :
}`;

/**
 * @returns the size of the image's layers as the registry has them, compressed; undefined if it does not tell
 */
export async function askLayerBytes(
  enrootPath: string,
  user: EnrootUser,
  uri: string,
): Promise<number | undefined> {
  const text = await askEnroot(enrootPath, user, ['digest', uri], [`BASH_FUNC_curl%%=${printLayers}`]);
  const sizes = [...text.matchAll(/^LAYERS\t(\d{1,15})$/gm)];
  return sizes.length === 0 ? undefined : Number(sizes.at(-1)?.[1]);
}

async function askEnroot(
  enrootPath: string,
  { user, userPath }: EnrootUser,
  args: readonly string[],
  functions: readonly string[],
): Promise<string> {
  let text = '';
  const add = (chunk: Buffer): void => {
    if (text.length < 64 * 1024) text += chunk.toString('utf8');
  };
  try {
    const home = (await lookUpHome(user)) ?? homelessPath(userPath);
    await runForUser(
      user,
      {
        file: 'timeout',
        // By env(1): no shell on the way may read them.
        args: ['--kill-after=2s', `${askLimitSeconds}s`, 'env', ...functions, enrootPath, ...args],
        environment: { HOME: home, ...briefly },
        timeoutMs: (askLimitSeconds + 5) * 1000,
        onStdout: add,
        onStderr: add,
      },
      { canGain: true, deathSignal: 'TERM' },
    );
  } catch (error) {
    if (!(error instanceof CommandFailed)) throw error;
  }
  return text;
}

/** Compressed layers grow to about three times their size; an image has an inode for each 20 KB of that. */
const layerGrowth = 3;
const bytesPerInode = 20_000;

/** The filesystems of enroot's paths, as device numbers; undefined: unknown. */
interface EnrootDevices {
  readonly data: number | undefined;
  readonly cache: number | undefined;
  readonly temporary: number | undefined;
}

const lookLimitMs = 5000;

/**
 * Where enroot's directories are, or would be made.
 *
 * The paths are the user's word and may lead anywhere, also to a filesystem that hangs: a child looks, as the
 * user.
 */
export async function findDevices(user: UserIds, paths: EnrootPaths): Promise<EnrootDevices> {
  const wanted = [paths.data, paths.cache, paths.temporary].map(withParents);
  const found = new Map<string, number>();
  const command = asUser(user, {
    file: 'stat',
    args: ['--dereference', '--format=%d %n', '--', ...new Set(wanted.flat())],
    timeoutMs: lookLimitMs,
    onStdout: splitLines((line) => {
      const [, device, path] = /^(\d{1,15}) (\/.*)$/.exec(line) ?? [];
      if (device !== undefined && path !== undefined) found.set(path, Number(device));
    }, 'utf8').add,
  });
  await run(command).catch((error: unknown) => {
    // Not all of them are there.
    if (!(error instanceof CommandFailed)) throw error;
  });
  const [data, cache, temporary] = wanted.map((levels) =>
    levels.map((path) => found.get(path)).find((device) => device !== undefined),
  );
  return { data, cache, temporary };
}

const mostLevels = 32;

/** `/a/b` → `/a/b`, `/a`, `/` */
function withParents(path: string): string[] {
  const levels: string[] = [];
  for (let up = path; levels.length < mostLevels; up = up.slice(0, up.lastIndexOf('/'))) {
    levels.push(up === '' ? '/' : up);
    if (up === '') break;
  }
  return levels;
}

/**
 * What an import, and the container that is made of it, takes on one filesystem: layers in the cache, layers
 * unpacked in the temporary directory, the container.
 *
 * @param layerBytes of a registry image, compressed
 */
export function importNeed(
  layerBytes: number,
  { data, cache, temporary }: EnrootDevices,
  device: number,
): SpaceNeed {
  const unpacked = layerBytes * layerGrowth;
  const trees = [data, temporary].filter((one) => one === device).length;
  return {
    bytes: trees * unpacked + (cache === device ? layerBytes : 0),
    inodes: Math.ceil((trees * unpacked) / bytesPerInode),
  };
}
