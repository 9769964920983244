/** Is everything there that Prolog, Epilog and collector start? */
import { findProgram } from '../../lib/system/programs.ts';
import { systemPath } from '../../lib/system/run-command.ts';
import type { Check } from './context.ts';
import { reporter } from './findings.ts';

const report = reporter('programs');

/** By the package that has them, with Debian's name; most others call them the same. */
const needed: Readonly<Record<string, readonly string[]>> = {
  'util-linux': ['setpriv', 'prlimit', 'flock'],
  coreutils: ['sleep', 'timeout', 'rm'],
  'squashfs-tools': ['unsquashfs'],
  findutils: ['find'],
  'libc-bin': ['getent'],
};
const forLogging = 'logger';

export const checkPrograms: Check = ({ settings }) => {
  const missing = (names: readonly string[]): string[] =>
    names.filter((name) => findProgram(name, systemPath) === undefined);
  const findings = Object.entries(needed).flatMap(([name, programs]) => {
    const absent = missing(programs);
    return absent.length === 0
      ? []
      : [report.bad(`missing in ${systemPath}: ${absent.join(', ')}`, `install the package ${name}`)];
  });
  if (settings.logTarget === 'syslog' && missing([forLogging]).length > 0)
    findings.push(
      report.bad(`missing in ${systemPath}: ${forLogging}`, 'install it (package bsdutils or util-linux)'),
    );
  if (findings.length > 0) return Promise.resolve(findings);
  return Promise.resolve([report.ok(Object.values(needed).flat().join(', '))]);
};
