/**
 * The digest behind a registry reference, and the memory of the last one: a small file in the user directory,
 * for the day when the registry does not answer.
 *
 *   the reference names a digest      that one; nobody asks
 *   if-not-present, and it is there   the digest seen last; nobody asks
 *   the registry answers              the tag's digest
 *   it does not answer a Prolog       nothing: the step asks, with the job's credentials and proxies
 *   it does not answer the user       the digest seen last, if its entry is there
 *   it refuses the user               nothing: enroot runs as without us, and shows its error
 *
 * Apart from image-source.ts so that a job with an image file does not load it.
 */
import { basename, dirname } from 'node:path';
import { parseDigest, type RegistryImage } from '../core/image.ts';
import type { Environment } from '../core/job.ts';
import { digestPath, digestsName, entryName, entryPath, lockPath, userPath } from '../core/layout.ts';
import { RegistryFault } from '../core/registry-failure.ts';
import type { Settings } from '../core/settings.ts';
import type { UserIds } from '../system/as-user.ts';
import {
  inDirectoryOf,
  inIndexOf,
  readSmallFileBeneath,
  statBeneath,
  writeFileBeneath,
} from '../system/beneath.ts';
import type { Directory } from '../system/directory.ts';
import { openEnroot, type QuestionLimits } from './enroot-program.ts';
import { hashDigest, hashReference } from './image-hash.ts';
import type { RegistrySource } from './image-source.ts';
import { forgetRegistryFailure, noteRegistryFailure, recallRegistryFailure } from './registry-memory.ts';

/**
 * Who asks. A `prolog` has none of the job's environment: no answer to it is final. A `user` is a step, with
 * that environment, or an admin who warms an image.
 */
export type Asker =
  { readonly kind: 'prolog' } | { readonly kind: 'user'; readonly environment?: Environment };

/** A job waits for it, and a registry that is well answers within one. The step asks if it was too short. */
const prologLimits: QuestionLimits = { connect: 3, request: 4, whole: 5 };
/** Whom nobody answers here gets an older image: a registry that is slow shall not count as away. */
const userLimits: QuestionLimits = { connect: 5, request: 10, whole: 20 };

/** @throws RegistryFault; JobFault, NodeFault TOOL_MISSING */
export async function findRegistrySource(
  user: UserIds,
  image: RegistryImage,
  settings: Settings,
  asker: Asker,
): Promise<RegistrySource> {
  const ask = (): Promise<Told> =>
    asker.kind === 'prolog'
      ? askFromProlog(user, image, settings)
      : askRegistry(user, image, settings, userLimits, asker.environment);
  const source: RegistrySource = {
    kind: 'registry',
    hash: '',
    image,
    importUri: image.uri,
    warning: undefined,
    askedFrom: undefined,
    confirm: undefined,
  };
  const byDigest = (digest: string): RegistrySource => ({
    ...source,
    hash: hashDigest(digest),
    importUri: `${image.uri}@${digest}`,
  });
  if (image.digest !== undefined) {
    const confirm = async (): Promise<void> => {
      await ask();
    };
    return {
      ...source,
      hash: hashDigest(image.digest),
      confirm: asker.kind === 'prolog' ? confirm : undefined,
    };
  }

  const path = digestPath(settings.basePath, user.uid, hashReference(image.canonical));
  const last = recallDigest(user, path);
  const kept = last !== undefined && hasEntry(user, settings.basePath, hashDigest(last)) ? last : undefined;
  if (kept !== undefined && settings.imageFreshness === 'if-not-present') return byDigest(kept);
  try {
    const { digest, askedFrom } = await ask();
    if (digest === undefined)
      return {
        ...source,
        hash: hashReference(image.canonical),
        warning: 'this enroot cannot tell digests: a moved tag is not noticed',
        askedFrom,
      };
    if (digest !== last) rememberDigest(user, path, digest);
    return { ...byDigest(digest), askedFrom };
  } catch (error) {
    if (!(error instanceof RegistryFault) || kept === undefined) throw error;
    if (asker.kind === 'prolog') {
      throw new RegistryFault(error.failure, {
        isRemembered: error.isRemembered,
        lastHash: hashDigest(kept),
      });
    }
    // Not for one that is late: on a busy node enroot itself takes that long, and would get the image of now.
    if (error.failure.kind !== 'silent') throw error;
    return { ...byDigest(kept), warning: `${error.message}; using the image seen last` };
  }
}

interface Told {
  readonly digest: string | undefined;
  readonly askedFrom: string;
}

async function askRegistry(
  user: UserIds,
  image: RegistryImage,
  settings: Settings,
  limits: QuestionLimits,
  environment?: Environment,
): Promise<Told> {
  const enroot = await openEnroot(
    settings.enrootPath,
    user,
    userPath(settings.basePath, user.uid),
    environment,
  );
  return { digest: await enroot.digest(image, limits), askedFrom: enroot.home };
}

/** What failed a moment ago is not waited for once more. */
async function askFromProlog(user: UserIds, image: RegistryImage, settings: Settings): Promise<Told> {
  const { runtimePath } = settings;
  const known = recallRegistryFailure(runtimePath, user.uid, image);
  if (known !== undefined) throw new RegistryFault(known, { isRemembered: true });
  try {
    const told = await askRegistry(user, image, settings, prologLimits);
    forgetRegistryFailure(runtimePath, user.uid, image);
    return told;
  } catch (error) {
    if (error instanceof RegistryFault) noteRegistryFailure(runtimePath, user.uid, image, error.failure);
    throw error;
  }
}

function hasEntry(user: UserIds, basePath: string, hash: string): boolean {
  const path = lockPath(entryPath(basePath, user.uid, entryName(user.uid, hash)));
  try {
    inUserDirectory(user, path, (userDirectory) =>
      statBeneath(userDirectory, `${basename(dirname(path))}/${basename(path)}`),
    );
    return true;
  } catch {
    return false;
  }
}

const longestDigestBytes = 256;

/** The file is the user's: whatever is no digest is as good as nothing. */
function recallDigest(user: UserIds, path: string): string | undefined {
  try {
    const text = inUserDirectory(user, path, (userDirectory) =>
      readSmallFileBeneath(userDirectory, `${digestsName}/${basename(path)}`, longestDigestBytes),
    );
    return parseDigest(text ?? '');
  } catch {
    return undefined;
  }
}

function rememberDigest(user: UserIds, path: string, digest: string): void {
  inIndexOf(user, dirname(dirname(path)), digestsName, (digests) => {
    writeFileBeneath(digests, basename(path), `${digest}\n`, 0o600);
  });
}

function inUserDirectory<T>(
  user: UserIds,
  path: string,
  action: (userDirectory: Directory) => T extends Promise<unknown> ? never : T,
): T {
  return inDirectoryOf<T>(user, dirname(dirname(path)), action);
}
