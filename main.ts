/**
 * One executable, several programs; lib/core/program.ts picks one.
 *
 * Slurm starts `prolog` and `epilog` for every job, so they must cost little: each program is loaded
 * only when it is the one called for. (build/build.ts keeps the admin command's code apart.)
 */
// First: what fails from here on ends by it.
import './lib/system/last-resort.ts';
import { basename } from 'node:path';
import { chooseProgram } from './lib/core/program.ts';
import { settleInheritance } from './lib/system/inherited.ts';
import { findBeneath } from './lib/system/native-addon.ts';

async function runProgram(): Promise<void> {
  // In the executable, argv[1] is the name it was called by, also through a link.
  const [, calledBy = '', ...given] = process.argv;
  const context = process.env['SLURM_SCRIPT_CONTEXT'];
  const { program, parameters } = chooseProgram({ calledBy: basename(calledBy), parameters: given, context });
  switch (program) {
    case 'prolog': {
      const { runProlog } = await import('./prolog/prolog.ts');
      return leave(await runProlog());
    }
    case 'epilog': {
      const { runEpilog } = await import('./epilog/epilog.ts');
      return leave(await runEpilog());
    }
    case 'acquire': {
      // Each container start waits for it: without yargs, which would take as long as all the rest.
      const { runAcquire } = await import('./enroot/acquire.ts');
      return leave(await runAcquire(parameters, process.env));
    }
    case 'hash-image': {
      const { runHashImage } = await import('./lib/image/hash-image.ts');
      return leave(runHashImage(parameters));
    }
    case 'merge-layers': {
      const { runMergeLayers } = await import('./lib/image/merge-layers.ts');
      return leave(runMergeLayers(parameters));
    }
    case 'ready-image': {
      const { runReadyImage } = await import('./lib/store/ready-image.ts');
      process.exitCode = await runReadyImage(parameters, process.env);
      return;
    }
    case 'idle':
      return leave(0);
    case 'admin': {
      const { runAdmin } = await import('./admin/cli.ts');
      process.exitCode = await runAdmin(parameters);
    }
  }
}

/**
 * Ends at once; by `exitCode` the runtime would first take down its heap, piece by piece, and by
 * process.exit() its threads. Only for programs that print a line at most: what a pipe has not taken yet is
 * lost.
 */
function leave(exitCode: number): never {
  findBeneath()?.exitNow(exitCode);
  process.exit(exitCode);
}

settleInheritance();
void runProgram();
