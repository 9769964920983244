/** Where the configuration is read from. */
import { describeError } from '../core/faults.ts';
import type { Environment } from '../core/job.ts';
import { defaultConfigPath, parseSettings, type ParsedSettings } from '../core/settings.ts';
import { errnoOf } from './errno.ts';
import { readSmallFile } from './files.ts';
import { followSafely } from './path-safety.ts';

const longestConfigBytes = 256 * 1024;

/**
 * Reads `CONTAINER_CACHE_CONF` or the default file; a file that cannot be read is a problem like one in it.
 */
export function readSettings(environment: Environment): ParsedSettings {
  const path = environment['CONTAINER_CACHE_CONF'] ?? defaultConfigPath;
  const unreadable = (reason: string): ParsedSettings => ({
    ...parseSettings('', path),
    problems: [`Cannot read ${path}: ${reason}; want a file with at least container_cache_data_path=…`],
  });
  try {
    const text = readConfig(path);
    return text === undefined ? unreadable('no such file') : parseSettings(text, path);
  } catch (error) {
    return unreadable(describeError(error));
  }
}

/**
 * Sites keep what is in /etc/slurm elsewhere, by symlinks: good if nobody but root can change where they
 * lead.
 */
function readConfig(path: string): string | undefined {
  try {
    return readSmallFile(path, longestConfigBytes);
  } catch (error) {
    if (errnoOf(error) !== 'ELOOP') throw error;
    return readSmallFile(followSafely(path), longestConfigBytes);
  }
}
