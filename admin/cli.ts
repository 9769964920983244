/** The `container-cache` command of an admin: its commands, each in a module of its own. */
import process from 'node:process';
import yargs from 'yargs';
import packageJson from '../package.json' with { type: 'json' };
import { describeError, JobFault, NodeFault } from '../lib/core/faults.ts';
import { checkAreas, runCheck } from './check.ts';
import { runExplain } from './explain.ts';
import { runGc } from './gc.ts';
import { runMetrics } from './metrics.ts';
import { runPin, runUnpin } from './pin.ts';
import { runRm } from './rm.ts';
import { runRoom } from './room.ts';
import { runStats } from './stats.ts';
import { runStatus, sortKeys } from './status.ts';
import { UsageError } from './usage-error.ts';
import { runVerify } from './verify.ts';
import { runWarm } from './warm.ts';
import { dropGroups } from '../lib/system/as-user.ts';

/** Exit codes, as in OPERATIONS.md. */
const exitCodes = { ok: 0, failed: 1, usage: 2 } as const;

const shownNames = 'Names as `status` shows them';
const anyEntries = { type: 'string', array: true, default: [], describe: shownNames } as const;

const json = { type: 'boolean', default: false, describe: 'Print JSON' } as const;

export async function runAdmin(parameters: readonly string[]): Promise<number> {
  // Once more: a bundle of its own has a module of its own, which would not know, and stop all threads at each change of IDs.
  dropGroups();
  let exitCode: number = exitCodes.ok;
  const cli = yargs([...parameters])
    .scriptName('container-cache')
    .usage('$0 <command>\n\nKeeps unpacked container images on a Slurm node.')
    .command(
      'status',
      'Show how full the node is, and every entry: whose, how large, when used, by which jobs',
      (command) =>
        command
          .option('user', {
            type: 'string',
            requiresArg: true,
            describe: 'Only of this user, a name or a uid',
          })
          .option('image', {
            type: 'string',
            requiresArg: true,
            describe: 'Only images with this in their name',
          })
          .option('sort', { choices: sortKeys, default: 'used' as const, describe: 'By what' })
          .option('reverse', { type: 'boolean', default: false, describe: 'The other way round' })
          .option('watch', {
            type: 'number',
            requiresArg: true,
            describe: 'Show it anew after so many seconds, until interrupted',
          })
          .option('json', json)
          .example('$0 status --user alice --sort size', 'What alice has, the largest first')
          .example('$0 status --watch 2', 'Watch the node'),
      async ({ user, image, sort, reverse, watch, json: asJson }) => {
        if (watch !== undefined && !(watch >= 0.1 && watch <= 86_400))
          throw new UsageError('--watch wants a number of seconds from 0.1 to 86400');
        exitCode = await runStatus({ user, image, sort, reverse, watch, json: asJson });
      },
    )
    .command(
      'explain <what>',
      'Tell of an entry, an image or a job: who holds it, why it stays, when it would go',
      (command) =>
        command
          .positional('what', {
            type: 'string',
            demandOption: true,
            describe: "An entry's name, an image as the job names it, or a job ID",
          })
          .option('json', json)
          .example('$0 explain 4711', 'What job 4711 holds'),
      async ({ what, json: asJson }) => {
        exitCode = await runExplain({ what, json: asJson });
      },
    )
    .command(
      'rm <entry..>',
      'Delete entries, however young; what is in use stays',
      (command) =>
        command
          .positional('entry', {
            type: 'string',
            array: true,
            demandOption: true,
            describe: shownNames,
          })
          .example('$0 rm pyxis_cache_u1000_00deadbeef001122', 'Have the next job unpack it anew'),
      async ({ entry }) => {
        exitCode = await runRm({ names: entry });
      },
    )
    .command(
      'pin [entry..]',
      'Keep entries from every collection; without a name, list what is pinned',
      (command) => command.positional('entry', anyEntries).option('json', json),
      async ({ entry, json: asJson }) => {
        exitCode = await runPin({ entries: entry, json: asJson });
      },
    )
    .command(
      'unpin <entry..>',
      'Let collections have pinned entries again',
      (command) =>
        command.positional('entry', {
          type: 'string',
          array: true,
          demandOption: true,
          describe: 'Names as `pin` lists them',
        }),
      async ({ entry }) => {
        exitCode = await runUnpin({ entries: entry });
      },
    )
    .command(
      'warm [image..]',
      'Unpack images for a user ahead of time; without an image, and pin, those that the configuration pins',
      (command) =>
        command
          .positional('image', {
            type: 'string',
            array: true,
            default: [],
            describe: 'As a job names it: a path, or [docker://][USER@][REGISTRY#]IMAGE[:TAG|@DIGEST]',
          })
          .option('user', { type: 'string', requiresArg: true, describe: 'Whose entries, by name or uid' })
          .option('group', {
            type: 'number',
            requiresArg: true,
            describe: 'The primary group, a number; with it --user may be a uid that passwd does not know',
          })
          .option('user-name', {
            type: 'string',
            requiresArg: true,
            describe: 'By what name to look for the groups of a user whom passwd does not know',
          })
          .option('pin', { type: 'boolean', default: false, describe: 'Pin them as well' })
          .option('background', {
            type: 'boolean',
            default: false,
            describe: 'Return at once and work on at idle priority; what comes of it is logged',
          })
          .option('json', json)
          .example('$0 warm /images/pytorch.sqsh --user alice', 'What her next job would wait for')
          .example('$0 warm', 'From cron: keep the images of the configuration on the node'),
      async ({ image, user, group, userName, pin, background, json: asJson }) => {
        exitCode = await runWarm({ images: image, user, group, userName, pin, background, json: asJson });
      },
    )
    .command(
      'verify [entry..]',
      'Compare entries with their images: names, types, sizes, times; without a name, all of them',
      (command) =>
        command
          .positional('entry', anyEntries)
          .option('json', json)
          .option('background', { type: 'boolean', default: false, hidden: true }),
      async ({ entry, json: asJson, background }) => {
        exitCode = await runVerify({ entries: entry, json: asJson, background });
      },
    )
    .command(
      'stats',
      'Show hits, misses and bypasses, and what unpacking was saved, over a time',
      (command) =>
        command
          .option('since', {
            type: 'string',
            default: '7d',
            requiresArg: true,
            describe: 'Such as 30m, 12h, 7d, 2w, or 2026-11-01T08:00 (UTC)',
          })
          .option('json', json),
      async ({ since, json: asJson }) => {
        exitCode = await runStats({ since, json: asJson });
      },
    )
    .command(
      'metrics',
      "Print all counters and the node's state for Prometheus",
      (command) =>
        command
          .option('output', {
            type: 'string',
            requiresArg: true,
            describe: "Replace this file at once, in node_exporter's textfile directory, instead of printing",
          })
          .example(
            '$0 metrics --output /var/lib/prometheus/node-exporter/container-cache.prom',
            'From a timer',
          ),
      async ({ output }) => {
        exitCode = await runMetrics({ output });
      },
    )
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
          .option('json', json)
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
      'check [area..]',
      'Look whether this node is set up right; exits 1 unless all is well, and says what to do',
      (command) =>
        command
          .positional('area', {
            array: true,
            choices: checkAreas,
            default: [],
            describe: 'Only these parts of it, and the configuration',
          })
          .option('json', json)
          .example('$0 check slurm wrapper', 'After a change of slurm.conf or of slurmd'),
      async (options) => {
        exitCode = await runCheck({ areas: options.area, json: options.json });
      },
    )
    // Not listed: for programs of ours.
    .command(
      'room <action> [parameter..]',
      false,
      (command) =>
        command
          .positional('action', { type: 'string', demandOption: true })
          .positional('parameter', { type: 'string', array: true, default: [] as string[] }),
      async ({ action, parameter }) => {
        exitCode = await runRoom([action, ...parameter]);
      },
    )
    .completion('completion', 'Print the completion script for bash')
    .demandCommand(1, 'Name a command; --help lists them')
    .strict()
    .version(packageJson.version)
    .help()
    .wrap(Math.min(100, process.stdout.columns || 100))
    .exitProcess(false)
    .fail((message, error: Error | undefined) => {
      // yargs gives a message for wrong usage, and an error for what a command throws. Unless something is thrown here it
      // goes on and runs the command, whatever was wrong with its options.
      throw error ?? new UsageError(message);
    });
  try {
    await cli.parseAsync();
  } catch (error) {
    if (error instanceof UsageError) {
      process.stderr.write(`container-cache: ${error.message}\nTry 'container-cache --help'.\n`);
      return exitCodes.usage;
    }
    const isExpected = error instanceof NodeFault || error instanceof JobFault;
    process.stderr.write(`container-cache: ${isExpected ? `${error.code}: ` : ''}${describeError(error)}\n`);
    return exitCodes.failed;
  }
  return exitCode;
}
