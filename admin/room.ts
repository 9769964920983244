/**
 * `container-cache room serve`, which the room agent starts, and `room ask`, by which the enroot wrapper asks
 * it.
 */
import { closeSync } from 'node:fs';
import process from 'node:process';
import { parseImage } from '../lib/core/image.ts';
import { readJobId } from '../lib/core/job.ts';
import { quotaNeed } from '../lib/core/quota-need.ts';
import { roomKinds, type RoomRequest } from '../lib/core/room-request.ts';
import { requireSettings, type Settings } from '../lib/core/settings.ts';
import { openBase } from '../lib/store/base-directory.ts';
import { evictOwnEntries, measureOwn } from '../lib/store/own-entries.ts';
import { askForRoom } from '../lib/store/room-ask.ts';
import { findUserDirectory } from '../lib/store/user-directory.ts';
import { isRoot } from '../lib/system/as-user.ts';
import { makeKillable } from '../lib/system/inherited.ts';
import { readSettings } from '../lib/system/settings-file.ts';
import { openLog } from '../lib/system/syslog.ts';
import { serveRoom } from './room-serve.ts';
import { UsageError } from './usage-error.ts';

/** @returns the exit code: of `ask` 0 if there is room now */
export async function runRoom([action, ...parameters]: readonly string[]): Promise<number> {
  const settings = requireSettings(readSettings(process.env));
  if (action === 'ask') {
    const [word, image = ''] = parameters;
    const kind = roomKinds.find((one) => one === word);
    if (kind === undefined || image === '') throw new UsageError('room ask needs KIND and IMAGE');
    const request = { kind, image: wholeName(image) };
    const answer = await askForRoom(settings.runtimePath, request);
    const isRoom = answer === undefined ? await makeOwnRoom(settings, request) : answer === 'room';
    return isRoom ? 0 : 1;
  }
  if (action !== 'serve' || !isRoot())
    throw new UsageError('only the enroot wrapper and the room agent run this command');
  makeKillable(process.pid);
  const log = openLog(settings);
  const base = openBase(settings);
  try {
    await serveRoom({ settings, base, log });
    return 0;
  } finally {
    closeSync(base.fd);
    await log.flush();
  }
}

/** Without an agent: what a user can do with what is their own. */
async function makeOwnRoom(settings: Settings, { kind, image }: RoomRequest): Promise<boolean> {
  if (kind !== 'quota' && kind !== 'stub-quota') return false;
  const user = { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 };
  const base = openBase(settings);
  try {
    const userDirectory = findUserDirectory(base, user.uid);
    if (userDirectory === undefined) return false;
    const need = kind === 'quota' ? await measureOwn(user, image) : undefined;
    const jobId = readJobId(process.env);
    const rest = need && quotaNeed(need, undefined, 1);
    return (await evictOwnEntries(base.path, userDirectory, user, jobId, rest)) > 0;
  } finally {
    closeSync(base.fd);
  }
}

function wholeName(image: string): string {
  if (/^(?:dockerd|podman):/.test(image)) return image;
  const parsed = parseImage(image, process.cwd());
  return parsed.kind === 'path' ? parsed.path : parsed.uri;
}
