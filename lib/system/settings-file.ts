/** Where the configuration is read from. */
import { defaultConfigPath, parseSettings, type ParsedSettings } from '../core/settings.ts';
import type { Environment } from '../core/job.ts';
import { describeError } from '../core/faults.ts';
import { readSmallFile } from './files.ts';

const longestConfigBytes = 256 * 1024;

/** Reads `CONTAINER_CACHE_CONF` or the default file; a file that cannot be read is a problem like one in it. */
export function readSettings(environment: Environment): ParsedSettings {
  const path = environment['CONTAINER_CACHE_CONF'] ?? defaultConfigPath;
  const unreadable = (reason: string): ParsedSettings => ({
    ...parseSettings('', path),
    problems: [`Cannot read ${path}: ${reason}; want a file with at least container_cache_data_path=…`],
  });
  try {
    const text = readSmallFile(path, longestConfigBytes);
    return text === undefined ? unreadable('no such file') : parseSettings(text, path);
  } catch (error) {
    return unreadable(describeError(error));
  }
}
