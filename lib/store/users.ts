/**
 * A pass over the users of a base: trouble with one, of whatever kind, costs that user alone, and is told in
 * one line.
 *
 * Each user has a budget in each pass. Who has more than it allows, or makes looking slow, keeps by it what
 * is their own; the others are looked at as if that user was not there.
 */
import { closeSync } from 'node:fs';
import { describeError } from '../core/faults.ts';
import { parseIdName } from '../core/layout.ts';
import { mountPointsBelow, type Mount } from '../core/mountinfo.ts';
import type { LogLevel } from '../core/settings.ts';
import { withUserIds, type UserIds } from '../system/as-user.ts';
import { namesBeneath, openDirectoryBeneath } from '../system/beneath.ts';
import { processorMs } from '../system/clock.ts';
import type { Directory } from '../system/directory.ts';
import { mountScanMs } from '../system/mounts.ts';
import type { LogFields } from '../system/syslog.ts';

type WriteLog = (level: LogLevel, word: string, fields: LogFields) => void;

/** Of one user in one pass (DESIGN.md, decision 39). Nobody has as many images. */
export const userBudget = {
  /** Names of a user directory that are read; links cost their owner neither inodes nor quota. */
  names: 20_000,
  /** Those of them that look like ours, each of which costs some system calls. */
  names_of_ours: 500,
  /** Of processor time: on a busy node, or a slow disk, an honest user's turn takes longer by the clock. */
  cpu_milliseconds: 5000,
  lines: 10,
} as const;

/**
 * Evictions of one user in one collection that free next to nothing: what is deleted in vain must not take
 * the time of others.
 */
export const mostVainEvictions = 30;

type Limit = keyof typeof userBudget;

const spentMs = (): number => processorMs() - mountScanMs();

/** One user's turn in a pass. */
export class UserTurn {
  readonly user: UserIds;
  readonly directory: Directory;
  readonly #mounts: readonly Mount[];
  readonly #log: WriteLog;
  readonly #startedMs = spentMs();
  readonly #exceeded = new Set<Limit>();
  #lines = 0;

  constructor(user: UserIds, directory: Directory, mounts: readonly Mount[], log: WriteLog) {
    this.user = user;
    this.directory = directory;
    this.#mounts = mounts;
    this.#log = log;
  }

  /**
   * Names in the user directory that are wanted, those with something mounted on or below them left out:
   * their server may never answer.
   *
   * @throws BeneathError
   */
  names(isWanted: (name: string) => boolean): string[] {
    const covered = new Set(
      mountPointsBelow(this.directory.path, this.#mounts).map(
        (point) => point.slice(this.directory.path.length + 1).split('/', 1)[0],
      ),
    );
    return withUserIds(this.user, () => {
      const wanted: string[] = [];
      let read = 0;
      for (const name of namesBeneath(this.directory)) {
        if (++read > userBudget.names) {
          this.#exceeded.add('names');
          break;
        }
        if (!isWanted(name) || covered.has(name)) continue;
        if (wanted.length === userBudget.names_of_ours) {
          this.#exceeded.add('names_of_ours');
          break;
        }
        wanted.push(name);
      }
      return wanted;
    });
  }

  /**
   * Runs `action` for each of the names; what one of them throws is told, and the next is looked at, as long
   * as there is time.
   */
  each(names: readonly string[], action: (name: string) => void): void {
    for (const name of names) {
      if (spentMs() - this.#startedMs > userBudget.cpu_milliseconds) {
        this.#exceeded.add('cpu_milliseconds');
        return;
      }
      try {
        action(name);
      } catch (error) {
        this.log('warning', 'gc-kept', { name, reason: describeError(error) });
      }
    }
  }

  log(level: LogLevel, word: string, fields: LogFields): void {
    if (++this.#lines > userBudget.lines) this.#exceeded.add('lines');
    else this.#log(level, word, { uid: this.user.uid, ...fields });
  }

  end(): void {
    if (this.#exceeded.size === 0) return;
    this.#log('warning', 'user-budget', {
      uid: this.user.uid,
      exceeded: [...this.#exceeded].map((limit) => `${limit}>${userBudget[limit]}`).join(','),
      reason: `not all of "${this.directory.path}" was looked at: see what this user has there`,
    });
  }
}

/**
 * Gives each user of the base a turn: names that are a uid, directories, owned by that uid, with nothing
 * mounted on them.
 *
 * @param log for the lines of a turn; also what the action throws ends in one of them
 */
export function forEachUser(
  base: Directory,
  mounts: readonly Mount[],
  log: WriteLog,
  action: (turn: UserTurn) => void,
): void {
  for (const name of namesBeneath(base)) {
    const uid = parseIdName(name);
    if (uid === undefined || mounts.some((mount) => mount.mountPoint === `${base.path}/${name}`)) continue;
    try {
      withUserDirectory(base, uid, (directory) => {
        const turn = new UserTurn({ uid, gid: directory.stats.gid }, directory, mounts, log);
        try {
          action(turn);
        } finally {
          turn.end();
        }
      });
    } catch (error) {
      log('warning', 'user-skipped', { uid, reason: describeError(error) });
    }
  }
}

/** Runs `action` with a user directory that is there and the user's. */
function withUserDirectory(base: Directory, uid: number, action: (directory: Directory) => void): void {
  const directory = openDirectoryBeneath(base, String(uid));
  try {
    if (directory.stats.uid === uid && directory.stats.dev === base.stats.dev) action(directory);
  } finally {
    closeSync(directory.fd);
  }
}
