/**
 * Which program one executable runs as. Whoever starts it may have linked, copied or renamed it:
 *
 *   1. A command on the command line decides: `container-cache prolog`, `container-cache gc`. We start
 *      ourselves only so.
 *   2. Otherwise SLURM_SCRIPT_CONTEXT decides, which Slurm sets for every script of slurm.conf.
 *   3. Otherwise the name it was called by decides.
 */

export type Program =
  'prolog' | 'epilog' | 'acquire' | 'hash-image' | 'merge-layers' | 'ready-image' | 'admin' | 'idle';

interface Start {
  /** The file name of argv[0], also that of a link. */
  readonly calledBy: string;
  readonly parameters: readonly string[];
  /** SLURM_SCRIPT_CONTEXT. */
  readonly context: string | undefined;
}

/** What only Slurm and we ourselves start. */
const ownCommands = ['prolog', 'epilog', 'hash-image', 'merge-layers', 'ready-image'] as const;

/** What admin/cli.ts offers; a test compares the two. */
export const adminCommands = [
  ...(['status', 'explain', 'rm', 'pin', 'unpin', 'warm', 'verify', 'stats', 'metrics'] as const),
  ...(['gc', 'check', 'completion', 'room'] as const),
] as const;

/** yargs calls us so for the completion script. */
const adminOptions = ['--help', '--version', '--get-yargs-completions'];

/**
 * @returns the program, and the parameters that are left for it. `idle`: Slurm runs us where we have nothing
 *   to do, such as PrologSlurmctld or TaskProlog; a failure there would hold jobs.
 */
export function chooseProgram(start: Start): { program: Program; parameters: readonly string[] } {
  const { parameters } = start;
  const [command, ...rest] = parameters;
  const own = ownCommands.find((known) => known === command);
  if (own !== undefined) return { program: own, parameters: rest };
  if (command === 'acquire' && !rest.includes('--help')) return { program: command, parameters: rest };
  if (command === 'acquire' || [...adminCommands, ...adminOptions].some((known) => known === command))
    return { program: 'admin', parameters };
  return { program: programOfSlurm(start.context) ?? programOfName(start.calledBy), parameters };
}

function programOfSlurm(context = ''): Program | undefined {
  if (context === 'prolog_slurmd') return 'prolog';
  if (context === 'epilog_slurmd') return 'epilog';
  return context === '' ? undefined : 'idle';
}

/** `prolog`, `50-prolog.sh`, `container-cache-epilog`; not `taskprolog`, which is a script. */
const nameInName = /(?:^|[^a-z])(prolog|epilog)(?:[^a-z]|$)/i;

function programOfName(calledBy: string): Program {
  const name = nameInName.exec(calledBy)?.[1]?.toLowerCase();
  return name === 'prolog' || name === 'epilog' ? name : 'admin';
}
