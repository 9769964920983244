/**
 * Ends that nobody planned, of the programs that Slurm runs for each job. The exit code is always 0: any
 * other drains the node, and a user may have caused it. main.ts imports this module before all others.
 *
 *   an uncaught exception or rejection; stdout or stderr is closed   one log line, exit 0
 *   V8 out of memory, a crash in native code                         exit 0, once guardAgainstCrash() has run
 *
 * What remains: SIGKILL (the OOM killer, slurmd's own time limit), and a runtime that does not start.
 */
import { spawnSync } from 'node:child_process';
import { basename } from 'node:path';
import process from 'node:process';
import { chooseProgram } from '../core/program.ts';
import { loadBeneath } from './native-addon.ts';

const logLimitMs = 5000;
const longestText = 1000;

const { program } = chooseProgram({
  calledBy: basename(process.argv[1] ?? ''),
  parameters: process.argv.slice(2),
  context: process.env['SLURM_SCRIPT_CONTEXT'],
});
const isOfSlurm = program === 'prolog' || program === 'epilog' || program === 'idle';

function end(error: unknown): never {
  try {
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
    // Not by syslog.ts: what failed may be anything.
    const line = `${program} result=failed code=BUG reason=${JSON.stringify(text.slice(0, longestText))}`;
    spawnSync('logger', ['--tag', 'container-cache', '--priority', 'daemon.err', '--', line], {
      env: { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' },
      stdio: 'ignore',
      timeout: logLimitMs,
      killSignal: 'SIGKILL',
    });
  } finally {
    process.exit(0);
  }
}

if (isOfSlurm) process.on('uncaughtException', end);

/** To be called where the addon is loaded anyway: it would cost each start a millisecond. */
export function guardAgainstCrash(): void {
  if (!isOfSlurm) return;
  try {
    loadBeneath().exitOnCrash(0);
  } catch {
    // Without the addon a crash is a crash.
  }
}
