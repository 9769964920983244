/**
 * The groups of users whom passwd does not know, as on nodes with nss_slurm: their IDs come from Slurm, and
 * those are enough.
 *
 * setpriv(1) looks up a user's groups by uid, in a child that we can abandon (as-user.ts), and refuses a uid
 * that passwd does not know. Then, and only then, we look further: the group database may have the user's
 * name. If not, the primary group has to do.
 */
import { asUser, rememberGroups, type Privileges, type UserIds } from './as-user.ts';
import { CommandFailed, endingWithUs, run, type Command, type CommandResult } from './run-command.ts';

const lookupLimitMs = 5000;

/**
 * Runs a command as a user, with all groups of the user that can be found.
 *
 * @param how run() or runBriefly()
 * @throws CommandFailed
 */
export async function runForUser(
  user: UserIds,
  command: Command,
  privileges: Privileges = { canGain: false },
  how: (command: Command) => Promise<CommandResult> = run,
): Promise<CommandResult> {
  try {
    return await how(asUser(user, command, privileges));
  } catch (error) {
    if (!(error instanceof CommandFailed) || !isUnknownToSetpriv(error)) throw error;
    rememberGroups(user.uid, await findGroups(user));
    return how(asUser(user, command, privileges));
  }
}

/** Nothing of the user has run by then: it is setpriv's own word. */
const isUnknownToSetpriv = ({ exitCode, stderrTail }: CommandFailed): boolean =>
  exitCode === 1 && /^setpriv: uid \d+ not found/.test(stderrTail);

const nothing: readonly number[] = [];

async function findGroups({ userName = '' }: UserIds): Promise<readonly number[]> {
  if (userName === '') return nothing;
  // A name that passwd does know is another user's: Slurm says "nobody" where it knows none, and a local
  // account may have the same.
  if ((await getent('passwd', userName)) !== '') return nothing;
  // `alice  100 2000`
  const [, ...groups] = (await getent('initgroups', userName)).trim().split(/\s+/);
  return groups.filter((group) => /^\d{1,10}$/.test(group)).map(Number);
}

/** @returns '' for what is not known, or not within its time */
async function getent(database: string, key: string): Promise<string> {
  try {
    const { stdout } = await run(
      endingWithUs({ file: 'getent', args: [database, '--', key], timeoutMs: lookupLimitMs }),
    );
    return stdout.toString('utf8');
  } catch (error) {
    if (error instanceof CommandFailed) return '';
    throw error;
  }
}
