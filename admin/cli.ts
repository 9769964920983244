/** The `container-cache` command of an admin: its commands, each in a module of its own. */
import process from 'node:process';
import yargs from 'yargs';
import packageJson from '../package.json' with { type: 'json' };
import { describeError, JobFault, NodeFault } from '../lib/core/faults.ts';
import { runCheck } from './check.ts';
import { runGc } from './gc.ts';

/** Exit codes, as in OPERATIONS.md. */
export const exitCodes = { ok: 0, failed: 1, usage: 2 } as const;

class WrongUsage extends Error {}

export async function runAdmin(parameters: readonly string[]): Promise<number> {
  let exitCode: number = exitCodes.ok;
  const cli = yargs([...parameters])
    .scriptName('container-cache')
    .usage('$0 <command>\n\nKeeps unpacked container images on a Slurm node.')
    .command(
      'gc',
      'Delete the entries that were unused for the longest time, from the high watermark down to the low one',
      (command) =>
        command
          .option('dry-run', {
            type: 'boolean',
            default: false,
            describe: 'Show the plan and change nothing',
          })
          .option('force', {
            type: 'boolean',
            default: false,
            describe: 'Collect below the high watermark, too',
          })
          .option('background', {
            type: 'boolean',
            default: false,
            describe: 'Log and print nothing (Prolog and Epilog)',
          })
          .option('json', { type: 'boolean', default: false, describe: 'Print JSON' })
          .example('$0 gc --dry-run', 'What would go, and why the rest stays'),
      async (options) => {
        exitCode = await runGc({
          dryRun: options.dryRun,
          force: options.force,
          background: options.background,
          json: options.json,
        });
      },
    )
    .command(
      'check',
      'Look whether this node is set up right; exits 1 unless all is well, and says what to do',
      (command) => command.option('json', { type: 'boolean', default: false, describe: 'Print JSON' }),
      async (options) => {
        exitCode = await runCheck({ json: options.json });
      },
    )
    .demandCommand(1, 'Name a command; --help lists them')
    .strict()
    .version(packageJson.version)
    .help()
    .wrap(Math.min(100, process.stdout.columns || 100))
    .exitProcess(false)
    .fail((message, error: Error | undefined) => {
      // yargs gives a message for wrong usage, and an error for what a command throws. Unless something is thrown here it
      // goes on and runs the command, whatever was wrong with its options.
      throw error ?? new WrongUsage(message);
    });
  try {
    await cli.parseAsync();
  } catch (error) {
    if (error instanceof WrongUsage) {
      process.stderr.write(`container-cache: ${error.message}\nTry 'container-cache --help'.\n`);
      return exitCodes.usage;
    }
    const isExpected = error instanceof NodeFault || error instanceof JobFault;
    process.stderr.write(`container-cache: ${isExpected ? `${error.code}: ` : ''}${describeError(error)}\n`);
    return exitCodes.failed;
  }
  return exitCode;
}
