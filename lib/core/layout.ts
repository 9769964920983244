/**
 * Every path and every name of ours, so that no other module pastes one together.
 *
 *   /raid/data/                                        settings.basePath
 *   /raid/data/pyxis-container-cache-gc.lock           collectorLockName
 *   /raid/data/.trash/                                 trashPath
 *   /raid/data/.mounted/MOUNTED/                       mountedEntryPath
 *   /raid/data/.mounted/MOUNTED/facts, image.squashfs  factsName, copyName
 *   /raid/data/.mounted/.users/1000/MOUNTED            usedMountedPath
 *   /raid/data/1000/                                   userPath
 *   /raid/data/1000/.ENTRY/                            entryPath
 *   /raid/data/1000/.ENTRY/.pyxis_cache_lock           lockPath
 *   /raid/data/1000/.ENTRY.create.lock                 createLockName
 *   /raid/data/1000/.ENTRY.42-9f3c.partial/            partialName
 *   /raid/data/1000/.ENTRY.unshared                    unsharedName
 *   /raid/data/1000/.digests/00deadbeef001122          digestPath
 *   /raid/data/1000/.home/                             homelessPath
 *   /raid/data/1000/.images/00deadbeef001122           imagesName, named by image-hash.ts
 *   /raid/data/1000/.images/00deadbeef001122.seen      seenName
 *   /raid/data/1000/.images/importer                   importerNoteName
 *   /raid/data/1000/.pyxis_42.0/.container-cache/entry stubMarkPath
 *   /raid/data/1000/.steps-42.events                   stepEventsName
 *   /run/container-cache/leases/42                     leasePath
 *   /run/container-cache/leases/42.starting            startingPath
 *   /run/container-cache/jobs/42/env, images           jobPath, jobEnvName, jobImagesName
 *   /run/container-cache/node                          nodeFactsPath
 *   /run/container-cache/collector.lock                backgroundCollectorPath
 *   /run/container-cache/images/MOUNTED                imageMountPath
 *   /run/container-cache/views/1000/MOUNTED            userViewsPath, viewPath
 *   /run/container-cache/registries/1000               registryMemoryPath
 *   /run/container-cache/warming/1000.1                warmingsPath, warmingName
 *   /run/container-cache/sizes, gc-missed              entrySizesPath, missedGoalPath
 *   /run/container-cache/room, room.lock, answers/4711 roomPath, roomLockPath, roomAnswerPath
 *   /var/lib/container-cache/events/2026-11-24         eventsPath
 *   /var/lib/container-cache/counters, pins            countersPath, pinsPath
 *
 * ENTRY is `pyxis_cache_u1000_00deadbeef001122` (entryName), and a container is called `pyxis_42.0`: so in
 * logs, leases, pins, commands and calls. The directories of both have a dot before the name: `enroot list`
 * shows every other directory of a data path as a container that can be removed, and scripts that clean up
 * look for `pyxis_*`. MOUNTED is `pyxis_cache_mounted_00deadbeef001122` (mountedEntryName).
 */

export const lockFileName = '.pyxis_cache_lock';
export const collectorLockName = 'pyxis-container-cache-gc.lock';
export const trashName = '.trash';
export const digestsName = '.digests';
export const imagesName = '.images';

const mountedStoreName = '.mounted';
/** Root's alone. */
export const mountedStorePath = (basePath: string): string => `${basePath}/${mountedStoreName}`;
/** @param identity of the image file, 16 lower-case hex digits */
export const mountedEntryName = (identity: string): string => `pyxis_cache_mounted_${identity}`;
export const mountedEntryPath = (basePath: string, name: string): string =>
  `${mountedStorePath(basePath)}/${name}`;
/** Which mounted entries a user has used: empty files, whose time is the last use. */
export const mountedUsersPath = (basePath: string): string => `${mountedStorePath(basePath)}/.users`;
export const usedMountedPath = (basePath: string, uid: number): string =>
  `${mountedUsersPath(basePath)}/${uid}`;
export const factsName = 'facts';
export const copyName = 'image.squashfs';

export const trashPath = (basePath: string): string => `${basePath}/${trashName}`;
export const userPath = (basePath: string, uid: number): string => `${basePath}/${uid}`;

/** @param hash 16 lower-case hex digits */
export const entryName = (uid: number, hash: string): string => `pyxis_cache_u${uid}_${hash}`;
/** @param name of an entry, or of a container that a stub stands for */
export const directoryName = (name: string): string => `.${name}`;
export const entryPath = (basePath: string, uid: number, name: string): string =>
  `${userPath(basePath, uid)}/${directoryName(name)}`;
export const lockPath = (entry: string): string => `${entry}/${lockFileName}`;

export const createLockName = (entry: string): string => `.${entry}.create.lock`;
/** With isolation=shared: a container could not start on the entry's files; the wrapper writes why. */
export const unsharedName = (entry: string): string => `.${entry}.unshared`;
/** @param jobId by which the Epilog finds a job's leftovers; 0 without a job */
export const partialName = (entry: string, jobId: number, nonce: string): string =>
  `.${entry}.${jobId}-${nonce}.partial`;

export const digestPath = (basePath: string, uid: number, referenceHash: string): string =>
  `${userPath(basePath, uid)}/${digestsName}/${referenceHash}`;

/** The home directory that enroot gets where passwd knows none: enroot makes directories in it. */
export const homelessPath = (userDirectoryPath: string): string => `${userDirectoryPath}/.home`;

export const seenName = (fingerprint: string): string => `${fingerprint}.seen`;
/** What the user's jobs have seen of pyxis' importer. */
export const importerNoteName = 'importer';
export const isImageIndexName = (name: string): boolean =>
  /^(?:[0-9a-f]{16}(?:\.seen)?|importer)$/.test(name);

export const leasesPath = (runtimePath: string): string => `${runtimePath}/leases`;
export const leasePath = (runtimePath: string, jobId: number): string =>
  `${leasesPath(runtimePath)}/${jobId}`;
/** While a holder is started that no record tells of yet. */
export const startingPath = (runtimePath: string, jobId: number): string =>
  `${leasePath(runtimePath, jobId)}.starting`;
export const jobsPath = (runtimePath: string): string => `${runtimePath}/jobs`;
export const jobPath = (runtimePath: string, jobId: number): string => `${jobsPath(runtimePath)}/${jobId}`;
export const jobEnvName = 'env';
export const jobImagesName = 'images';

/** What steps of a job, which run as the user, have to be counted: the Epilog takes it. */
export const stepEventsName = (jobId: number): string => `.steps-${jobId}.events`;

export const eventsPath = (statePath: string): string => `${statePath}/events`;
export const countersPath = (statePath: string): string => `${statePath}/counters`;
export const pinsPath = (statePath: string): string => `${statePath}/pins`;

export const nodeFactsPath = (runtimePath: string): string => `${runtimePath}/node`;
/** How a step asks root for room (lib/store/room-agent.ts). */
export const roomPath = (runtimePath: string): string => `${runtimePath}/room`;
export const roomLockPath = (runtimePath: string): string => `${runtimePath}/room.lock`;
export const roomAnswersPath = (runtimePath: string): string => `${runtimePath}/answers`;
export const roomAnswerPath = (runtimePath: string, pid: number): string =>
  `${roomAnswersPath(runtimePath)}/${pid}`;
/**
 * What entries take on disk, as root counted it; and when a collection last said that it cannot reach its
 * goal.
 */
export const entrySizesPath = (runtimePath: string): string => `${runtimePath}/sizes`;
export const missedGoalPath = (runtimePath: string): string => `${runtimePath}/gc-missed`;
/**
 * The lock of the collector that Prolog or Epilog started, from before its first instruction; that of the
 * base is another.
 */
export const backgroundCollectorPath = (runtimePath: string): string => `${runtimePath}/collector.lock`;

/** Where the kernel has image files mounted, and what each user sees of them. */
export const imageMountsPath = (runtimePath: string): string => `${runtimePath}/images`;
export const imageMountPath = (runtimePath: string, name: string): string =>
  `${imageMountsPath(runtimePath)}/${name}`;
export const viewsPath = (runtimePath: string): string => `${runtimePath}/views`;
export const userViewsPath = (runtimePath: string, uid: number): string => `${viewsPath(runtimePath)}/${uid}`;
export const viewPath = (runtimePath: string, uid: number, name: string): string =>
  `${userViewsPath(runtimePath, uid)}/${name}`;

/** The locks of the unpacks in the background that a user has. */
export const warmingsPath = (runtimePath: string): string => `${runtimePath}/warming`;
export const warmingName = (uid: number, turn: number): string => `${uid}.${turn}`;

/** Which registries gave a user's Prolog no answer. */
export const registriesPath = (runtimePath: string): string => `${runtimePath}/registries`;
export const registryMemoryPath = (runtimePath: string, uid: number): string =>
  `${registriesPath(runtimePath)}/${uid}`;

/**
 * What makes a directory `.pyxis_<job>.<step>` a stub of the enroot wrapper: a container of enroot has no
 * such file.
 */
export const stubMarkPath = (stub: string): string => `${stub}/.container-cache/entry`;

/**
 * pyxis' names of a step's own container, with a dot; the second form, where container_scope=job, carries the
 * job ID twice. Version 0.1 made stubs without the dot.
 */
const stubPattern = /^\.?pyxis_([1-9]\d{0,9})(?:_\1)?\.\d{1,10}$/;

/**
 * The job of a step's own container, by the name of its directory. A user can give a directory such a name,
 * too.
 */
export function parseStubDirectoryName(name: string): { readonly jobId: number } | undefined {
  const jobId = stubPattern.exec(name)?.[1];
  return jobId === undefined ? undefined : { jobId: Number(jobId) };
}

/** What every entry is called, whoever's it is. */
export const entryNamePattern = /^pyxis_cache_(?:u(0|[1-9]\d{0,9})|mounted)_([0-9a-f]{16})$/;
const mountedEntryPattern = /^pyxis_cache_mounted_[0-9a-f]{16}$/;
const createLockPattern = /^\.(pyxis_cache_u(?:0|[1-9]\d{0,9})_[0-9a-f]{16})\.create\.lock$/;
const unsharedPattern = /^\.(pyxis_cache_u(?:0|[1-9]\d{0,9})_[0-9a-f]{16})\.unshared$/;
const partialPattern =
  /^\.(pyxis_cache_u(?:0|[1-9]\d{0,9})_[0-9a-f]{16})\.(0|[1-9]\d{0,9})-[0-9a-f]+\.partial$/;
const stepEventsPattern = /^\.steps-[1-9]\d{0,9}\.events$/;
const idPattern = /^(0|[1-9]\d{0,9})$/;

export const isEntryName = (value: unknown): value is string =>
  typeof value === 'string' && entryNamePattern.test(value);

export function isEntryNameOf(uid: number, name: string): boolean {
  return entryNamePattern.exec(name)?.[1] === String(uid);
}

export const isMountedEntryName = (name: string): boolean => mountedEntryPattern.test(name);

/** Whether a job of that user may have the entry. */
export const isEntryNameFor = (uid: number, name: string): boolean =>
  isEntryNameOf(uid, name) || isMountedEntryName(name);

/**
 * A directory counts as an entry only in the directory of the user it names.
 *
 * @returns the entry's name
 */
export function parseEntryDirectoryName(uid: number, directory: string): string | undefined {
  const name = directory.slice(1);
  return directory.startsWith('.') && isEntryNameOf(uid, name) ? name : undefined;
}

export function parseCreateLockName(name: string): { readonly entry: string } | undefined {
  const entry = createLockPattern.exec(name)?.[1];
  return entry === undefined ? undefined : { entry };
}

export function parseUnsharedName(name: string): { readonly entry: string } | undefined {
  const entry = unsharedPattern.exec(name)?.[1];
  return entry === undefined ? undefined : { entry };
}

export function parsePartialName(
  name: string,
): { readonly entry: string; readonly jobId: number } | undefined {
  const match = partialPattern.exec(name);
  const [, entry, jobId] = match ?? [];
  return entry === undefined || jobId === undefined ? undefined : { entry, jobId: Number(jobId) };
}

export const isStepEventsName = (name: string): boolean => stepEventsPattern.test(name);

/** The number that a directory entry of base (a uid) or of leases and jobs (a job ID) stands for. */
export function parseIdName(name: string): number | undefined {
  return idPattern.test(name) ? Number(name) : undefined;
}

/**
 * A holder is found by what it is called in its own environment; only root can put it there for a root
 * process.
 */
export const holderVariable = 'CONTAINER_CACHE_LEASE';
export const holderTitle = (jobId: number): string => `container-cache-lease ${jobId}`;
