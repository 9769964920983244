/** Names of users, for people. */
import { spawnSync } from 'node:child_process';
import { childEnvironment } from './run.ts';

/** A directory service that is slow costs a look its names, not its end. */
const lookupLimitMs = 5000;
const longestAnswerBytes = 1024 * 1024;

/** @returns the names of those that are known within 5 s; another one is to be called by its uid */
export function findUserNames(uids: readonly number[]): ReadonlyMap<number, string> {
  const keys = [...new Set(uids)].map(String);
  if (keys.length === 0) return new Map();
  // It exits with 2 if it does not know one of them, and prints the others.
  const { stdout } = spawnSync('getent', ['passwd', ...keys], {
    cwd: '/',
    env: childEnvironment,
    encoding: 'utf8',
    timeout: lookupLimitMs,
    killSignal: 'SIGKILL',
    maxBuffer: longestAnswerBytes,
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  const lines = ((stdout as string | null) ?? '').split('\n').map((line) => line.split(':'));
  return new Map(
    lines.flatMap(([name = '', , uid = '']) => (name !== '' && uid !== '' ? [[Number(uid), name]] : [])),
  );
}

/** @returns the uid that a name or a number stands for, if the system knows it */
export function findUserId(user: string): number | undefined {
  if (/^\d{1,10}$/.test(user)) return Number(user);
  const { stdout } = spawnSync('getent', ['passwd', '--', user], {
    cwd: '/',
    env: childEnvironment,
    encoding: 'utf8',
    timeout: lookupLimitMs,
    killSignal: 'SIGKILL',
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  const uid = ((stdout as string | null) ?? '').split(':')[2];
  return uid === undefined ? undefined : Number(uid);
}
