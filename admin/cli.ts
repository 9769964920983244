/** The `container-cache` command of an admin: its commands, each in a module of its own. */
import process from 'node:process';
import yargs from 'yargs';
import { describeError, JobFault, NodeFault } from '../lib/core/faults.ts';
import { dropGroups } from '../lib/system/as-user.ts';
import { checkAreas, runCheck } from './check.ts';
import { runExplain } from './explain.ts';
import { runGc } from './gc.ts';
import { runMetrics } from './metrics.ts';
import { runPin, runUnpin } from './pin.ts';
import { runRm } from './rm.ts';
import { runRoom } from './room.ts';
import { runStats } from './stats.ts';
import { runStatus, sortKeys } from './status.ts';
import { releaseText } from './this-release.ts';
import { UsageError } from './usage-error.ts';
import { runVerify } from './verify.ts';
import { runWarm } from './warm.ts';

/** Exit codes, as in OPERATIONS.md. */
const exitCodes = { ok: 0, failed: 1, usage: 2 } as const;

const shownNames = 'Names as `status` shows them';
const anyEntries = { type: 'string', array: true, default: [], describe: shownNames } as const;

const json = { type: 'boolean', default: false, describe: 'Print JSON' } as const;

export async function runAdmin(parameters: readonly string[]): Promise<number> {
  // Once more: this bundle has another copy of the module, which would stop all threads at each change of
  // IDs.
  dropGroups();
  let exitCode: number = exitCodes.ok;
  const cli = yargs([...parameters])
    .scriptName('container-cache')
    .usage('$0 <command>\n\nKeeps unpacked container images on a Slurm node.')
    .command(
      'status',
      'Show how full the disk is, and all entries: user, image, size, last use, jobs',
      (command) =>
        command
          .option('user', {
            type: 'string',
            requiresArg: true,
            describe: "Show only this user's entries (name or uid)",
          })
          .option('image', {
            type: 'string',
            requiresArg: true,
            describe: 'Show only entries whose image name contains this text',
          })
          .option('sort', { choices: sortKeys, default: 'used' as const, describe: 'Sort by this column' })
          .option('reverse', { type: 'boolean', default: false, describe: 'Reverse the order' })
          .option('watch', {
            type: 'number',
            requiresArg: true,
            describe: 'Show it again every so many seconds, until you press Ctrl-C',
          })
          .option('json', json)
          .example('$0 status --user alice --sort size', "alice's entries, the largest first")
          .example('$0 status --watch 2', 'Watch the node'),
      async ({ user, image, sort, reverse, watch, json: asJson }) => {
        if (watch !== undefined && !(watch >= 0.1 && watch <= 86_400))
          throw new UsageError('--watch needs a number of seconds from 0.1 to 86400');
        exitCode = await runStatus({ user, image, sort, reverse, watch, json: asJson });
      },
    )
    .command(
      'explain <what>',
      'Explain an entry, an image or a job: who holds it, why it is kept, when it would be evicted',
      (command) =>
        command
          .positional('what', {
            type: 'string',
            demandOption: true,
            describe: 'The name of an entry, an image as a job names it, or a job ID',
          })
          .option('json', json)
          .example('$0 explain 4711', 'What job 4711 holds'),
      async ({ what, json: asJson }) => {
        exitCode = await runExplain({ what, json: asJson });
      },
    )
    .command(
      'rm <entry..>',
      'Delete entries, even young ones; entries in use or pinned are kept',
      (command) =>
        command
          .positional('entry', {
            type: 'string',
            array: true,
            demandOption: true,
            describe: shownNames,
          })
          .example('$0 rm pyxis_cache_u1000_00deadbeef001122', 'The next job unpacks this image again'),
      async ({ entry }) => {
        exitCode = await runRm({ names: entry });
      },
    )
    .command(
      'pin [entry..]',
      'Protect entries from every collection; without a name, list the pins',
      (command) => command.positional('entry', anyEntries).option('json', json),
      async ({ entry, json: asJson }) => {
        exitCode = await runPin({ entries: entry, json: asJson });
      },
    )
    .command(
      'unpin <entry..>',
      'Remove pins: collections may evict these entries again',
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
      'Unpack images for a user, or mount them for everyone, ahead of time; without an image, those of the pin lines',
      (command) =>
        command
          .positional('image', {
            type: 'string',
            array: true,
            default: [],
            describe: 'As a job names it: a path, or [docker://][USER@][REGISTRY#]IMAGE[:TAG|@DIGEST]',
          })
          .option('user', {
            type: 'string',
            requiresArg: true,
            describe: 'The user who gets the entries (name or uid); without it, everyone (trusted_images)',
          })
          .option('group', {
            type: 'number',
            requiresArg: true,
            describe: 'The number of their primary group: needed if passwd does not know the user',
          })
          .option('user-name', {
            type: 'string',
            requiresArg: true,
            describe: 'If passwd does not know the user: the name that the group database has',
          })
          .option('pin', { type: 'boolean', default: false, describe: 'Pin the entries, too' })
          .option('background', {
            type: 'boolean',
            default: false,
            describe: 'Return at once and unpack at low priority; the log has the result',
          })
          .option('json', json)
          .example(
            '$0 warm /images/pytorch.sqsh --user alice',
            "alice's next job does not wait for this image",
          )
          .example('$0 warm', 'From cron: keep the images of the pin lines on the node'),
      async ({ image, user, group, userName, pin, background, json: asJson }) => {
        exitCode = await runWarm({ images: image, user, group, userName, pin, background, json: asJson });
      },
    )
    .command(
      'verify [entry..]',
      'Compare entries with their images: names, types, sizes, times; without a name, all entries',
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
      'Show hits, misses, bypasses, and the unpack time that reuse saved',
      (command) =>
        command
          .option('since', {
            type: 'string',
            default: '7d',
            requiresArg: true,
            describe: 'How far to look back: 30m, 12h, 7d, 2w, or a UTC date such as 2026-11-01T08:00',
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
            describe: "Replace this file instead of printing: for node_exporter's textfile collector",
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
      'At the high watermark, evict the least recently used entries until usage is below the low one',
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
            describe: 'Print nothing, only log (for Prolog and Epilog)',
          })
          .option('json', json)
          .example('$0 gc --dry-run', 'What would be evicted, and why the rest is kept'),
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
      'Check how this node is set up, and say what to do; exit code 1 after an error',
      (command) =>
        command
          .positional('area', {
            array: true,
            choices: checkAreas,
            default: [],
            describe: 'Check only these parts, and the configuration',
          })
          .option('json', json)
          .example('$0 check slurm wrapper', 'After a change of slurm.conf or slurmd'),
      async (options) => {
        exitCode = await runCheck({ areas: options.area, json: options.json });
      },
    )
    // Not listed: only the enroot wrapper and the room agent run it.
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
    .version(releaseText)
    .help()
    .wrap(Math.min(100, process.stdout.columns || 100))
    .exitProcess(false)
    .fail((message, error: Error | undefined) => {
      // yargs gives a message for wrong usage, and an error for what a command throws. If nothing is thrown
      // here, it runs the command in spite of the wrong options.
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
