/**
 * Log lines to syslog, or to stderr.
 *
 * Our addon writes to the daemon's socket as syslog(3) would: Node cannot. Where that fails, logger(1) tries,
 * which knows other kinds of sockets; one logger is started for all lines that are left.
 */
import { writeSync } from 'node:fs';
import process from 'node:process';
import { errnoName } from '../core/errno-names.ts';
import { formatLogLine, type LogValue } from '../core/log-line.ts';
import { logLevels, type LogLevel, type LogTarget, type SyslogFacility } from '../core/settings.ts';
import { elapsedMs, pauseFor } from './clock.ts';
import { unlessErrno } from './errno.ts';
import { findBeneath } from './native-addon.ts';
import { runBriefly } from './run-command.ts';

export type LogFields = Readonly<Record<string, LogValue>>;

export interface Log {
  readonly write: (level: LogLevel, word: string, fields: LogFields) => void;
  /** Hands what was written to syslog. Never rejects: a node without syslog runs its jobs. */
  readonly flush: () => Promise<void>;
}

export interface LogSettings {
  readonly logTarget: LogTarget;
  readonly logLevel: LogLevel;
  readonly syslogFacility: SyslogFacility;
}

const logTag = 'container-cache';

const facilityCodes: Readonly<Record<SyslogFacility, number>> = {
  user: 1,
  daemon: 3,
  auth: 4,
  syslog: 5,
  cron: 9,
  authpriv: 10,
  local0: 16,
  local1: 17,
  local2: 18,
  local3: 19,
  local4: 20,
  local5: 21,
  local6: 22,
  local7: 23,
};
const severityCodes: Readonly<Record<LogLevel, number>> = { error: 3, warning: 4, info: 6, debug: 7 };

/** A syslog daemon that does not read its socket makes logger wait; the job must not. */
const flushTimeoutMs = 5000;
/** Above what formatLogLine lets through, escapes included. */
const longestMessageBytes = 16 * 1024;

interface Line {
  readonly priority: number;
  readonly text: string;
}

/** @param socketPath of the syslog daemon */
export function openLog(settings: LogSettings, socketPath = '/dev/log'): Log {
  let pending: Line[] = [];
  let flushed = Promise.resolve();
  return {
    write: (level, word, fields) => {
      if (logLevels.indexOf(level) > logLevels.indexOf(settings.logLevel)) return;
      const text = formatLogLine(word, fields);
      if (settings.logTarget === 'stderr') writeStderr(`${logTag}[${process.pid}]: ${level}: ${text}\n`);
      else
        pending.push({ priority: facilityCodes[settings.syslogFacility] * 8 + severityCodes[level], text });
    },
    flush: () => {
      // One after the other: who waits for the last has waited for all, since a logger that still runs ends
      // with us.
      flushed = flushed.then(send);
      return flushed;
    },
  };

  async function send(): Promise<void> {
    const lines = pending;
    pending = [];
    const { left, isStuck } = sendToSocket(socketPath, lines);
    if (left.length === 0) return;
    // logger(1) would wait as long, in vain.
    if (isStuck) complain('its daemon does not read', left);
    else await sendByLogger(left);
  }
}

/** @returns the lines that could not be sent, and whether that was for want of time */
function sendToSocket(
  socketPath: string,
  lines: readonly Line[],
): { left: readonly Line[]; isStuck: boolean } {
  const addon = lines.length > 0 ? findBeneath() : undefined;
  if (addon === undefined) return { left: lines, isStuck: false };
  const deadlineMs = elapsedMs() + flushTimeoutMs;
  for (const [index, { priority, text }] of lines.entries()) {
    const limitMs = Math.max(1, Math.round(deadlineMs - elapsedMs()));
    const result = addon.sendLine(socketPath, priority, logTag, text, limitMs);
    if (result !== 0) return { left: lines.slice(index), isStuck: errnoName(result) === 'EAGAIN' };
  }
  return { left: [], isStuck: false };
}

const inLoggersWords = (lines: readonly Line[]): string =>
  lines.map(({ priority, text }) => `<${priority}>${text}\n`).join('');

function complain(cause: string, lines: readonly Line[]): void {
  writeStderr(`${logTag}: Cannot reach syslog: ${cause}\n${inLoggersWords(lines)}`);
}

async function sendByLogger(lines: readonly Line[]): Promise<void> {
  const input = inLoggersWords(lines);
  // Not by --id: logger of util-linux 2.38 then sends credentials that are not its own, which the kernel
  // refuses in a user namespace; the line is lost without a word.
  const tag = `${logTag}[${process.pid}]`;
  const args = ['--prio-prefix', '--tag', tag, '--size', String(longestMessageBytes)];
  await runBriefly({ file: 'logger', args, input, timeoutMs: flushTimeoutMs }).catch((error: unknown) => {
    complain(String(error), lines);
  });
}

/** Whoever reads our stderr, such as slurmd, does so at once. */
const stderrLimitMs = 1000;

function writeStderr(text: string): void {
  const bytes = Buffer.from(text);
  const deadlineMs = elapsedMs() + stderrLimitMs;
  let written = 0;
  try {
    while (written < bytes.length && elapsedMs() < deadlineMs) {
      // A pipe takes less than all at once, and one that does not wait takes nothing while it is full.
      const taken = unlessErrno(['EAGAIN'], () => writeSync(2, bytes, written));
      if (taken === undefined) pauseFor(1);
      written += taken ?? 0;
    }
  } catch {
    // stderr may be closed or full: there is no place left to say so.
  }
}
