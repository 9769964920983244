/**
 * What the room agent starts: root reads what processes of users ask for, makes room, and answers
 * (room-agent.ts).
 */
import { closeSync, lstatSync, mkdirSync, readdirSync, rmSync } from 'node:fs';
import { describeError } from '../lib/core/faults.ts';
import { fits } from '../lib/core/gc-plan.ts';
import { parseImage, type SpaceNeed } from '../lib/core/image.ts';
import { parseIdName, roomAnswerPath, roomAnswersPath, userPath } from '../lib/core/layout.ts';
import {
  parseRoomRequest,
  roomAsker,
  roomVariable,
  type RoomAnswer,
  type RoomRequest,
} from '../lib/core/room-request.ts';
import type { Settings } from '../lib/core/settings.ts';
import { collect, evictForQuota } from '../lib/store/collector.ts';
import { makeRoomForContainer, makeRoomForImport, type RoomFor } from '../lib/store/container-room.ts';
import { measureFile, measureOwn } from '../lib/store/own-entries.ts';
import { collectingWithin, makeQuota } from '../lib/store/provision.ts';
import { asUser, type UserIds } from '../lib/system/as-user.ts';
import { writeFileAtomically } from '../lib/system/aside.ts';
import { elapsedMs } from '../lib/system/clock.ts';
import { inDirectory, openDirectory, type Directory } from '../lib/system/directory.ts';
import { readUsage } from '../lib/system/disk-usage.ts';
import { errnoOf, isGone, unlessErrno } from '../lib/system/errno.ts';
import { tryFlock } from '../lib/system/flock.ts';
import { processesByOwner, processIds } from '../lib/system/processes.ts';
import { CommandFailed, run } from '../lib/system/run-command.ts';
import type { Log } from '../lib/system/syslog.ts';

interface ServeRequest {
  readonly settings: Settings;
  readonly base: Directory;
  readonly log: Log;
}

/** Of one user at once; what is beyond it asks again. */
const mostOfUser = 16;
/** Of one user, the newest: whoever has more makes nobody else wait for a look at all of them. */
const mostProcesses = 4096;
const readLimitMs = 5000;
const collectLimitMs = 9 * 60_000;
const oldestAnswerMs = 60 * 60_000;

interface Asking extends RoomRequest {
  readonly pid: number;
  readonly user: UserIds;
}

/**
 * Serves users beside each other, the requests of one user in turn: who has an image that never ends keeps
 * nobody else waiting.
 */
export async function serveRoom(request: ServeRequest): Promise<void> {
  prepareAnswers(request.settings.runtimePath);
  await Promise.all(
    [...processesByOwner()].map(async ([uid, pids]) => {
      const directory = uid === undefined ? undefined : openUnserved(request.base, uid);
      if (uid === undefined || directory === undefined) return;
      try {
        const asking = await readRequests(uid, pids.slice(-mostProcesses));
        for (const one of asking) answer(request, one, 'working');
        for (const one of asking) answer(request, one, await serve(request, one));
      } finally {
        closeSync(directory.fd);
      }
    }),
  );
}

/**
 * The flock of the user's directory means that this user is being served. Users have a directory from their
 * first job on this node on. One who locks it keeps nobody but themselves from room.
 */
function openUnserved(base: Directory, uid: number): Directory | undefined {
  const directory = unlessErrno([...isGone, 'ELOOP'], () =>
    openDirectory(inDirectory(base, String(uid)), userPath(base.path, uid)),
  );
  if (directory === undefined) return undefined;
  if (directory.stats.uid === uid && tryFlock(directory.fd, 'exclusive')) return directory;
  closeSync(directory.fd);
  return undefined;
}

async function readRequests(uid: number, pids: readonly number[]): Promise<Asking[]> {
  const groups = Map.groupBy(
    pids.flatMap((pid) => {
      const found = processIds(pid);
      return found?.uid === uid && found.name === roomAsker ? [{ pid, gid: found.gid }] : [];
    }),
    ({ gid }) => gid,
  );
  const asking: Asking[] = [];
  for (const [gid, processes] of groups) {
    if (asking.length >= mostOfUser) break;
    const user = { uid, gid };
    asking.push(
      ...(await readRequestsOf(
        user,
        processes.map(({ pid }) => pid),
      )),
    );
  }
  return asking.slice(0, mostOfUser);
}

/** As the user, within a time limit: a process can be made to keep its readers waiting (processes.ts). */
async function readRequestsOf(user: UserIds, pids: readonly number[]): Promise<Asking[]> {
  const paths = pids.map((pid) => `/proc/${pid}/environ`);
  const options = [
    ...['--with-filename', '--no-messages', '--null-data'],
    ...['--text', '--line-buffered', '--max-count=1'],
  ];
  let text = '';
  const command = asUser(user, {
    file: 'grep',
    args: [...options, '-e', `^${roomVariable}=`, '--', ...paths],
    timeoutMs: readLimitMs,
    onStdout: (chunk) => {
      if (text.length < longestRequests) text += chunk.toString('utf8');
    },
  });
  await run(command).catch((error: unknown) => {
    // Also if one of them can no longer be read, or never lets itself be read.
    if (!(error instanceof CommandFailed)) throw error;
  });
  return text.split('\0').flatMap((line) => {
    const [, number = '', wanted = ''] =
      new RegExp(`^/proc/(\\d+)/environ:${roomVariable}=(.*)$`, 's').exec(line) ?? [];
    const pid = Number(number);
    const parsed = parseRoomRequest(wanted);
    // What a process of the user printed: it must not answer for another's.
    return parsed === undefined || !pids.includes(pid) ? [] : [{ ...parsed, user, pid }];
  });
}

const longestRequests = 1024 * 1024;

/** What the wrapper makes of a container of ours, with room to spare. */
const stubNeed: SpaceNeed = { bytes: 1024 * 1024, inodes: 64 };

async function serve(request: ServeRequest, asking: Asking): Promise<RoomAnswer> {
  const { kind, user, image } = asking;
  const startMs = elapsedMs();
  let result: RoomAnswer = 'no-room';
  let reason: string | undefined;
  try {
    result = await makeRoom(request, asking);
  } catch (error) {
    reason = describeError(error);
  }
  const totalMs = Math.round(elapsedMs() - startMs);
  request.log.write('info', 'room', { uid: user.uid, kind, image, result, reason, total_ms: totalMs });
  return result;
}

async function makeRoom(request: ServeRequest, { kind, user, image }: Asking): Promise<RoomAnswer> {
  const wanted = { ...request, user, image, collecting: collectingWithin(request, collectLimitMs) };
  if (kind === 'container') return makeRoomForContainer(wanted);
  if (kind === 'quota') return makeQuotaFor(wanted);
  if (kind === 'stub-quota')
    return (await evictForQuota(wanted.collecting, user, { count: 1 })) > 0 ? 'room' : 'no-room';
  const parsed = kind === 'stub' ? undefined : parseImage(image, undefined);
  if (parsed?.kind === 'registry') return makeRoomForImport(wanted);
  const need = parsed === undefined ? stubNeed : await measureFile(user, parsed);
  const { isWithinLimit } = await collect({ ...wanted.collecting, need, isForOthers: kind === 'stub' });
  if (!isWithinLimit && kind === 'entry') return 'over-limit';
  return fits(readUsage(request.base.path), need) ? 'room' : 'no-room';
}

async function makeQuotaFor({ user, image, collecting }: RoomFor): Promise<RoomAnswer> {
  const need = await measureOwn(user, image);
  const known = { need, written: undefined, isHopeless: false };
  return (await makeQuota(collecting, user, known, 1)) ? 'room' : 'no-room';
}

function prepareAnswers(runtimePath: string): void {
  const directory = roomAnswersPath(runtimePath);
  unlessErrno(['EEXIST'], () => mkdirSync(directory, { mode: 0o711 }));
  for (const name of readdirSync(directory)) {
    const path = `${directory}/${name}`;
    const stats = unlessErrno(['ENOENT'], () => lstatSync(path));
    const isOld = stats !== undefined && Date.now() - stats.mtimeMs > oldestAnswerMs;
    const pid = parseIdName(name);
    if (isOld || pid === undefined || processIds(pid) === undefined)
      rmSync(path, { force: true, recursive: true });
  }
}

function answer({ settings, log }: ServeRequest, { pid, user }: Asking, text: RoomAnswer): void {
  try {
    writeFileAtomically(roomAnswerPath(settings.runtimePath, pid), `${text}\n`, { mode: 0o644 });
  } catch (error) {
    log.write('warning', 'room', {
      uid: user.uid,
      result: 'failed',
      code: errnoOf(error),
      reason: describeError(error),
    });
  }
}
