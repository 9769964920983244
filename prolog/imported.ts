/** A job whose image pyxis has from its importer: the Prolog gets it there, too (lib/image/importer.ts). */
import { JobFault } from '../lib/core/faults.ts';
import type { RegistryImage } from '../lib/core/image.ts';
import type { Environment, Job } from '../lib/core/job.ts';
import { createLimitMs, type Settings } from '../lib/core/settings.ts';
import type { SquashfsSource } from '../lib/image/image-source.ts';
import { getFromImporter, noteWhatStayed, type Importer, type ImportRequest } from '../lib/image/importer.ts';
import { heldFileStamp, writeJobFiles } from '../lib/store/job-files.ts';
import type { Directory } from '../lib/system/directory.ts';

/** An image that pyxis has from its importer. */
export interface ImporterImage {
  readonly kind: 'importer';
  readonly importer: Importer;
  readonly image: RegistryImage;
}

interface Context {
  readonly job: Job;
  readonly settings: Settings;
  readonly userDirectory: Directory;
  readonly environment: Environment;
}

/**
 * @param serve gets the job its entry of a file
 * @throws JobFault
 */
export async function prepareImported<T>(
  { job, settings, userDirectory, environment }: Context,
  { importer, image }: ImporterImage,
  serve: (file: SquashfsSource) => Promise<T>,
): Promise<T> {
  if (settings.createMode === 'background')
    throw new JobFault(
      'UNSUPPORTED_OPTION',
      `"${importer.path}" gets the image in the step: no job waits for it before (create_mode=background)`,
    );
  const limitMs = createLimitMs(settings, undefined);
  const request: ImportRequest = {
    ...{ importer, job, environment, image, limitMs },
    userPath: userDirectory.path,
  };
  const { source, path, release } = await getFromImporter(request);
  if (source === undefined) {
    // It was fetched: the step takes it instead of fetching it again.
    writeJobFiles(settings.runtimePath, job, {
      environment: '',
      images: [{ image: image.uri, entry: '-', stamp: heldFileStamp(path) }],
    });
    throw new JobFault(
      'UNSUPPORTED_OPTION',
      `Files of "${importer.path}" are pyxis' temporary ones: the step gets "${path}", and later ones their own`,
    );
  }
  try {
    return await serve(source);
  } finally {
    await release();
    await noteWhatStayed(request, path);
  }
}
