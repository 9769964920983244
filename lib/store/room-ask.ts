/** A step asks the room agent for room (room-agent.ts), as the job's user. */
import { spawn } from 'node:child_process';
import { closeSync, statSync, writeSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { roomAnswerPath } from '../core/layout.ts';
import {
  formatRoomRequest,
  parseRoomAnswer,
  roomAsker,
  roomVariable,
  type RoomAnswer,
  type RoomRequest,
} from '../core/room-request.ts';
import { elapsedMs } from '../system/clock.ts';
import { readSmallFile } from '../system/files.ts';
import { childEnvironment } from '../system/run-command.ts';
import { openRoomFifo } from './room-presence.ts';

/**
 * Until the agent has seen it: it starts a program, after at most a second. On a busy node that takes a
 * while.
 */
const noticeLimitMs = 30_000;
/** Who was not heard asks again. */
const repeatMs = 2000;
/** As long as a collection may take that somebody waits for. */
const answerLimitMs = 10 * 60_000;
const pollMs = 50;
const longestAnswerBytes = 64;
/** Times of files are those of the last clock tick. */
const clockTickMs = 10;

/** @returns undefined if nobody answers: then all is as it would be without us */
export async function askForRoom(
  runtimePath: string,
  request: RoomRequest,
  limitMs = answerLimitMs,
): Promise<Exclude<RoomAnswer, 'working'> | undefined> {
  const fifo = openRoomFifo(runtimePath);
  if (fifo === undefined) return undefined;
  // The kernel shows root what a process was started with, so a process is started with it.
  const seconds = String(Math.ceil((noticeLimitMs + answerLimitMs) / 1000));
  const startedAtMs = Date.now() - clockTickMs;
  const asking = spawn('setpriv', ['--pdeathsig=KILL', '--', roomAsker, seconds], {
    cwd: '/',
    env: { ...childEnvironment, [roomVariable]: formatRoomRequest(request) },
    stdio: 'ignore',
  });
  asking.on('error', () => undefined);
  try {
    const { pid } = asking;
    if (pid === undefined) return undefined;
    const startMs = elapsedMs();
    let isNoticed = false;
    for (let askedMs = -repeatMs; ;) {
      const waitedMs = elapsedMs() - startMs;
      const answer = readAnswer(runtimePath, pid, startedAtMs);
      if (answer !== undefined && answer !== 'working') return answer;
      isNoticed ||= answer === 'working';
      if (waitedMs > Math.min(limitMs, isNoticed ? answerLimitMs : noticeLimitMs)) return undefined;
      if (!isNoticed && waitedMs - askedMs >= repeatMs) {
        ring(fifo);
        askedMs = waitedMs;
      }
      await delay(pollMs);
    }
  } finally {
    closeSync(fifo);
    asking.kill('SIGKILL');
  }
}

function ring(fifo: number): void {
  try {
    writeSync(fifo, '\n');
  } catch {
    // It is full: somebody floods it, and the agent is awake. Or it has ended.
  }
}

/** An older answer was for a process that had the same number. */
function readAnswer(runtimePath: string, pid: number, notBeforeMs: number): RoomAnswer | undefined {
  try {
    const path = roomAnswerPath(runtimePath, pid);
    const text = readSmallFile(path, longestAnswerBytes) ?? '';
    return statSync(path).mtimeMs < notBeforeMs ? undefined : parseRoomAnswer(text);
  } catch {
    return undefined;
  }
}
