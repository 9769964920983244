/**
 * The room agent: how a step, whose processes are its user's, has root make room.
 *
 *   <runtime>/room            root's FIFO, which everybody may write to: a bell
 *   <runtime>/room.lock       flocked by the agent
 *   <runtime>/answers/<pid>   root's answer to that process
 *
 *   1. A Prolog that finds nobody reading the FIFO starts the agent: a shell of root, in a separate session,
 *      that sleeps in read(2). It takes 3 MiB.
 *   2. A step starts a process that says in its environment what it wants (room-request.ts), and rings.
 *   3. The agent starts `container-cache room serve`, at most once a second, however much is written.
 *   4. That program finds such processes, reads the request and measures the image as their user, collects,
 *      and answers. It holds the flock of the user's directory, so that only one serves a user at a time. Who
 *      gets no answer asks again.
 *
 * The kernel says who asks, and the image what they need: a request costs others what a job with that image
 * would. What is written says nothing: where somebody keeps the FIFO full, others need not get a byte in,
 * since the agent is awake.
 *
 * This module is loaded only by a Prolog that finds no agent.
 */
import { spawn } from 'node:child_process';
import { closeSync, constants, mkdirSync } from 'node:fs';
import { roomLockPath, roomPath } from '../core/layout.ts';
import { confinedTo } from '../system/as-user.ts';
import { collectorCapabilities } from '../system/background.ts';
import { openRegularFile } from '../system/files.ts';
import { tryFlock } from '../system/flock.ts';
import { childEnvironment } from '../system/run-command.ts';
import { selfCommand } from '../system/self.ts';

export const roomAgentTitle = 'container-cache-room';

/**
 * bash, since its `read` needs no other process to wait in. Without `-d ''` it would drop NULs and wait for
 * something else. Descriptor
 * 3 is the lock, 4 the FIFO, which it has open for writing, too: so it never ends. It looks every five
 * minutes whether the FIFO still is its own, and ends if not.
 *
 * One program serves those who ask at about the same time, while the next may come: a user who keeps one busy
 * keeps no other user waiting. Who was not heard, since eight are busy, asks again.
 */
const script = `
fifo=$1
shift
if [[ ! -p $fifo ]]; then
  rm --force --recursive -- "$fifo"
  mkfifo --mode=0622 -- "$fifo" || exit
fi
exec 4<>"$fifo" || exit
while [[ $fifo -ef /proc/$$/fd/4 ]]; do
  read -r -d '' -n 1 -t 300 -u 4 || continue
  for ((count = 0; count < 16; count++)); do
    read -r -d '' -n 4096 -t 0.01 -u 4 || break
  done
  running=($(jobs -rp))
  if [[ \${#running[@]} -lt 8 ]]; then
    "$@" </dev/null 3<&- 4<&- &
  fi
  sleep 1 3<&- 4<&-
done
`;

/**
 * Starts the agent, unless somebody just did. Without bash there is none, and steps are as they were.
 *
 * @param mayUnmount images are mounted on this node, and what it evicts may be one of them
 */
export function startRoomAgent(
  runtimePath: string,
  configPath: string | undefined,
  mayUnmount: boolean,
): void {
  // The first Prolog after a boot.
  mkdirSync(runtimePath, { recursive: true, mode: 0o711 });
  const lock = openRegularFile(roomLockPath(runtimePath), constants.O_CREAT);
  try {
    if (!tryFlock(lock, 'exclusive')) return;
    const self = selfCommand();
    const serve = [self.file, ...self.args, 'room', 'serve'];
    const shell = ['bash', '-c', script, roomAgentTitle, roomPath(runtimePath), ...serve];
    const capabilities = [...collectorCapabilities, ...(mayUnmount ? (['sys_admin'] as const) : [])];
    const child = spawn('setpriv', [...confinedTo(capabilities), '--', ...shell], {
      cwd: '/',
      detached: true,
      env: { ...childEnvironment, ...(configPath === undefined ? {} : { CONTAINER_CACHE_CONF: configPath }) },
      stdio: ['ignore', 'ignore', 'ignore', lock],
    });
    child.on('error', () => undefined);
    child.unref();
  } finally {
    closeSync(lock);
  }
}
