/**
 * Log lines to syslog, through logger(1), which knows every syslog daemon's socket, or to stderr.
 *
 * Node cannot write to a datagram socket. One logger is started for all lines of a flush; a program that ends at once
 * flushes once.
 */
import { writeSync } from 'node:fs';
import process from 'node:process';
import { formatLogLine, type LogValue } from '../core/log-line.ts';
import { logLevels, type LogLevel, type LogTarget, type SyslogFacility } from '../core/settings.ts';
import { runBriefly } from './run.ts';

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

export const logTag = 'container-cache';

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

export function openLog(settings: LogSettings): Log {
  let pending = '';
  let flushed = Promise.resolve();
  return {
    write: (level, word, fields) => {
      if (logLevels.indexOf(level) > logLevels.indexOf(settings.logLevel)) return;
      const line = formatLogLine(word, fields);
      if (settings.logTarget === 'stderr') writeStderr(`${logTag}[${process.pid}]: ${level}: ${line}\n`);
      else pending += `<${facilityCodes[settings.syslogFacility] * 8 + severityCodes[level]}>${line}\n`;
    },
    flush: () => {
      // One after the other: who waits for the last has waited for all, since a logger that still runs ends with us.
      flushed = flushed.then(send);
      return flushed;
    },
  };

  async function send(): Promise<void> {
    if (pending === '') return;
    const input = pending;
    pending = '';
    // Not by --id: logger of util-linux 2.38 then sends credentials that are not its own, which the kernel refuses in a user
    // namespace; the line is lost without a word.
    const tag = `${logTag}[${process.pid}]`;
    const args = ['--prio-prefix', '--tag', tag, '--size', String(longestMessageBytes)];
    await runBriefly({ file: 'logger', args, input, timeoutMs: flushTimeoutMs }).catch((error: unknown) => {
      writeStderr(`${logTag}: Cannot reach syslog: ${String(error)}\n${input}`);
    });
  }
}

function writeStderr(text: string): void {
  try {
    writeSync(2, text);
  } catch {
    // stderr may be closed or full: there is no place left to say so.
  }
}
