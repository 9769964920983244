/**
 * One executable, several programs: the name it is called by picks one, as with busybox.
 *
 * Slurm starts `prolog` and `epilog` for every job, so they must cost little: each program is loaded
 * only when it is the one called for. (build/build.ts keeps the admin command's code apart.)
 */
import { basename } from 'node:path';
import { settleInheritance } from './lib/system/inherited.ts';

async function runProgram(): Promise<number> {
  // In the executable, argv[1] is the name it was called by, also through a link.
  const [, calledBy = '', ...parameters] = process.argv;
  switch (basename(calledBy)) {
    case 'prolog': {
      const { runProlog } = await import('./prolog/prolog.ts');
      return runProlog();
    }
    case 'epilog': {
      const { runEpilog } = await import('./epilog/epilog.ts');
      return runEpilog();
    }
    default: {
      if (parameters[0] === 'acquire' && !parameters.includes('--help')) {
        // Each container start waits for it: without yargs, which would take as long as all the rest.
        const { runAcquire } = await import('./enroot/acquire.ts');
        return runAcquire(parameters.slice(1), process.env);
      }
      const { runAdmin } = await import('./admin/cli.ts');
      return runAdmin(parameters);
    }
  }
}

settleInheritance();
void runProgram().then((exitCode) => {
  // Everything is written and waited for. Not by `exitCode`: the runtime would first take down its heap, piece by piece.
  process.exit(exitCode);
});
