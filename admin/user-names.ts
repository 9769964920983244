/** Names of users, for people. */
import { runSync } from '../lib/system/run-command.ts';

/** A directory service that is slow costs a look its names, not its end. */
const lookupLimitMs = 5000;

interface Account {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
}

/** Those of the keys, names or uids, that the system knows. */
function lookUp(keys: readonly string[]): Account[] {
  if (keys.length === 0) return [];
  // It exits with 2 if it does not know one of them, and prints the others.
  const { stdout } = runSync({ file: 'getent', args: ['passwd', '--', ...keys], timeoutMs: lookupLimitMs });
  return stdout.split('\n').flatMap((line) => {
    const [name = '', , uid = '', gid = ''] = line.split(':');
    return name !== '' && /^\d+$/.test(uid) && /^\d+$/.test(gid)
      ? [{ name, uid: Number(uid), gid: Number(gid) }]
      : [];
  });
}

/** @returns the names of those that are known within 5 s; another one is to be called by its uid */
export function findUserNames(uids: readonly number[]): ReadonlyMap<number, string> {
  return new Map(lookUp([...new Set(uids)].map(String)).map(({ name, uid }) => [uid, name]));
}

/** @returns the uid that a name or a number stands for, if the system knows it */
export function findUserId(user: string): number | undefined {
  return /^\d{1,10}$/.test(user) ? Number(user) : lookUp([user])[0]?.uid;
}

/** @returns the account of a name or a uid, if the system knows it */
export function findAccount(user: string): Account | undefined {
  return lookUp([user])[0];
}
