/** Whether this node has a room agent (room-agent.ts): two system calls, for every Prolog. */
import { closeSync, constants, openSync } from 'node:fs';
import { roomPath } from '../core/layout.ts';

/** Opens the FIFO of the agent for writing. @returns undefined if nobody reads it, or none is there */
export function openRoomFifo(runtimePath: string): number | undefined {
  try {
    return openSync(roomPath(runtimePath), constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW);
  } catch {
    return undefined;
  }
}

export function hasRoomAgent(runtimePath: string): boolean {
  const fifo = openRoomFifo(runtimePath);
  if (fifo !== undefined) closeSync(fifo);
  return fifo !== undefined;
}
