/**
 * Acting as a job's user: in a child process that has given up root, or for a few system calls in our own.
 *
 * Whatever may hang or is long goes into a child: only a child can be waited for with a limit. For the rest,
 * inside the user's own directory on a local filesystem, our effective ids are switched to the user's, so
 * that the kernel refuses whatever the user could not do. The real uid stays 0, so the user cannot send us
 * signals or trace us (credentials(7)).
 */
import process from 'node:process';
import { errnoName } from '../core/errno-names.ts';
import { errnoOf } from './errno.ts';
import { findBeneath, type BeneathAddon } from './native-addon.ts';
import type { Command } from './run-command.ts';

export interface UserIds {
  readonly uid: number;
  readonly gid: number;
  /** As Slurm calls them. Only their groups are looked up by it, where the uid is not known here. */
  readonly userName?: string;
}

/** The user of files that are nobody's, on every Linux distribution. Its processes can harm no job. */
export const nobody: UserIds = { uid: 65_534, gid: 65_534 };

const userId = (): number => process.geteuid?.() ?? -1;

/** Whether we are root and so may act as another. */
export const isRoot = (): boolean => userId() === 0;

let hasNoGroups = false;

/**
 * Gives up root's supplementary groups, which it needs for nothing, for good: children do not get them, and
 * withUserIds() has less to do. Each change of IDs interrupts all threads of the process.
 */
export function dropGroups(): void {
  if (!isRoot()) return;
  try {
    process.setgroups?.([]);
    hasNoGroups = true;
  } catch (error) {
    // Without the capability withUserIds() says what is amiss, to those who come to need it.
    if (errnoOf(error) !== 'EPERM') throw error;
  }
}

/**
 * Runs `action` with the user's effective ids and no other group: enough for what the user owns, and without
 * asking a directory service. The action must be synchronous: nothing else may run while we are somebody
 * else.
 */
export function withUserIds<T>(user: UserIds, action: () => T extends Promise<unknown> ? never : T): T {
  if (userId() === user.uid) return action();
  if (!isRoot())
    throw Object.assign(new Error(`Cannot act as uid ${user.uid}: uid ${userId()} acts`), { code: 'EPERM' });
  if (hasNoGroups) {
    const addon = findBeneath();
    if (addon !== undefined) return withThreadIds(addon, user, action);
  }
  const { seteuid, setegid, setgroups, getgroups, getegid } = process;
  if (!seteuid || !setegid || !setgroups || !getgroups || !getegid)
    throw new Error('Cannot switch users here');
  // Not asked for where there are none: Node adds the effective gid to what getgroups(2) says.
  const groups = hasNoGroups ? undefined : getgroups();
  const gid = getegid();
  if (groups !== undefined) setgroups([]);
  try {
    setegid(user.gid);
    seteuid(user.uid);
    return action();
  } finally {
    seteuid(0);
    setegid(gid);
    if (groups !== undefined) setgroups(groups);
  }
}

/**
 * Of our thread alone, which is the one that acts: to change all of them stops each. No thread must be
 * started meanwhile: it would stay the user's.
 */
function withThreadIds<T>(ids: BeneathAddon, user: UserIds, action: () => T): T {
  const gid = process.getegid?.() ?? 0;
  try {
    setIds(ids, user.uid, user.gid);
    return action();
  } finally {
    setIds(ids, 0, gid);
  }
}

function setIds(ids: BeneathAddon, uid: number, gid: number): void {
  const errno = ids.setIds(uid, gid);
  if (errno !== 0 || userId() !== uid)
    throw Object.assign(new Error(`Cannot act as uid ${uid}, gid ${gid}: ${errnoName(errno) ?? errno}`), {
      code: errnoName(errno),
    });
}

/** What a command of a user may still gain from the programs it executes. */
export interface Privileges {
  /** enroot may live on file capabilities (its package "enroot+caps"); nothing else may. */
  readonly canGain: boolean;
  /**
   * What the kernel sends it when we die. TERM is for a command that ends others in turn; clear: it goes on
   * without us.
   */
  readonly deathSignal?: 'KILL' | 'TERM' | 'clear';
  /**
   * `none`: for what belongs to the user alone. Nobody is asked for groups then: the user need not be known
   * here.
   */
  readonly groups?: 'all' | 'none';
}

const rememberedGroups = new Map<number, readonly number[]>();

/** Groups of a user whom the system's databases do not know, for all that follows (user-groups.ts). */
export function rememberGroups(uid: number, groups: readonly number[]): void {
  rememberedGroups.set(uid, groups);
}

function groupOptions({ uid }: UserIds, groups: Privileges['groups']): string {
  if (uid === 0) return '--keep-groups';
  if (groups === 'none' || uid === nobody.uid) return '--clear-groups';
  const remembered = rememberedGroups.get(uid);
  if (remembered === undefined) return '--init-groups';
  return remembered.length === 0 ? '--clear-groups' : `--groups=${remembered.join(',')}`;
}

/**
 * The same command, run as the user, killed when we die.
 *
 * Groups come from the system's databases (`--init-groups`), which can be slow or away: mind the command's
 * time limit. Where they may not know the user, runForUser() (user-groups.ts) comes first.
 */
export function asUser(
  user: UserIds,
  command: Command,
  privileges: Privileges = { canGain: false },
): Command {
  const ids =
    userId() === user.uid
      ? []
      : [`--reuid=${user.uid}`, `--regid=${user.gid}`, groupOptions(user, privileges.groups)];
  const confinement =
    privileges.canGain || user.uid === 0
      ? []
      : ['--no-new-privs', ...(isRoot() ? ['--bounding-set=-all'] : [])];
  const args = [
    ...ids,
    '--inh-caps=-all',
    ...confinement,
    `--pdeathsig=${privileges.deathSignal ?? 'KILL'}`,
    '--',
    command.file,
    ...command.args,
  ];
  const program = command.program ?? command.file;
  const isConfined = isRoot() && user.uid !== 0 && privileges.deathSignal !== 'clear';
  if (!isConfined || !privileges.canGain || !isHarmless(command.environment))
    return { ...command, program, file: 'setpriv', args, isConfined };
  const own = ['-c', ownNumbers, firstNumber(), ...args];
  return { ...command, program, file: 'sh', args: own, isConfined };
}

/**
 * For enroot, an importer, and what they run: a /proc of its PID namespace, by which programs find their
 * parents (GNU parallel its shell). And other numbers than those of the next namespace: enroot has its own in
 * the names of temporary files that all enroots of a user share. The first process of a namespace may choose
 * the next number. Where there is no namespace (confined.ts), or root may not mount in one (containers,
 * AppArmor), nothing of it.
 */
const ownNumbers = `
[ $$ -eq 1 ] && unshare --mount --propagation=slave -- true 2>/dev/null || exec setpriv "$@"
exec unshare --mount --propagation=slave -- sh -c '
  { mount -t proc -o nosuid,nodev,noexec proc /proc; echo "$0" >/proc/sys/kernel/ns_last_pid; } 2>/dev/null
  exec setpriv "$@"' "$0" "$@"`;

/** Root's shell reads it: no functions, no files to begin with. */
const isHarmless = (environment: Command['environment']): boolean =>
  Object.keys(environment ?? {}).every(
    (name) => /^[A-Za-z_]\w*$/.test(name) && !/^(?:BASH.*|ENV|SHELLOPTS|PS4)$/.test(name),
  );

/** Below the smallest limit that the kernel has for them (32,768). */
const firstNumber = (): string => String(1000 + Math.floor(Math.random() * 30_000));

/** Capabilities of root, by the names of capabilities(7) without `cap_`. */
type Capability =
  | ('dac_override' | 'dac_read_search' | 'fowner' | 'kill')
  | ('setgid' | 'setpcap' | 'setuid' | 'sys_admin' | 'sys_ptrace');

/** Options of setpriv(1) that leave a child of root only these capabilities, whatever it executes. */
export function confinedTo(capabilities: readonly Capability[]): string[] {
  return [
    '--inh-caps=-all',
    `--bounding-set=${['-all', ...capabilities.map((capability) => `+${capability}`)].join(',')}`,
  ];
}
