/**
 * The digest behind a registry reference, and the memory of the last one: a small file in the user directory, for the day when the
 * registry does not answer.
 *
 * Apart from image-source.ts so that a job with an image file does not load it.
 */
import { mkdirSync } from 'node:fs';
import { hashReference } from '../core/image-hash.ts';
import { parseDigest, type RegistryImage } from '../core/image.ts';
import type { Environment } from '../core/job.ts';
import { digestPath, digestsName, userPath } from '../core/layout.ts';
import type { Settings } from '../core/settings.ts';
import { withUserIds, type UserIds } from '../system/as-user.ts';
import { isGone, unlessErrno } from '../system/errno.ts';
import { readSmallFile, writeFileAtomically } from '../system/files.ts';
import { openEnroot } from './enroot.ts';
import { resolveRegistry, type RegistrySource } from './image-source.ts';

/**
 * @param environment of a job, for whoever acts as its user already
 * @throws JobFault, NodeFault TOOL_MISSING
 */
export async function findRegistrySource(
  user: UserIds,
  image: RegistryImage,
  settings: Settings,
  environment?: Environment,
): Promise<RegistrySource> {
  const path = digestPath(settings.basePath, user.uid, hashReference(image.canonical));
  return resolveRegistry(image, settings.imageFreshness, {
    recall: () => recallDigest(user, path),
    remember: (_, digest) => {
      rememberDigest(user, path, digest);
    },
    ask: async (uri) => {
      const enroot = await openEnroot(
        settings.enrootPath,
        user,
        userPath(settings.basePath, user.uid),
        environment,
      );
      return enroot.digest(uri);
    },
  });
}

const longestDigestBytes = 256;

/** The file is the user's: whatever is no digest is as good as nothing. */
function recallDigest(user: UserIds, path: string): string | undefined {
  try {
    return parseDigest(withUserIds(user, () => readSmallFile(path, longestDigestBytes)) ?? '');
  } catch {
    return undefined;
  }
}

function rememberDigest(user: UserIds, path: string, digest: string): void {
  withUserIds(user, () =>
    // Not remembered is asked again: nothing a user puts here may fail the job.
    unlessErrno([...isGone, 'EEXIST', 'EACCES', 'ELOOP', 'EISDIR', 'ENOSPC', 'EDQUOT'], () => {
      const directory = path.slice(0, path.indexOf(`/${digestsName}/`) + digestsName.length + 1);
      unlessErrno(['EEXIST'], () => mkdirSync(directory, { mode: 0o700 }));
      writeFileAtomically(path, `${digest}\n`, { mode: 0o600 });
    }),
  );
}
