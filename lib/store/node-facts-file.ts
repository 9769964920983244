/**
 * Finding out what the enroot wrapper must know of its node, and telling it by `<runtime>/node`
 * (lib/core/node-facts.ts).
 *
 * Every Prolog comes by, most find the file up to date: one read and a look at the enroot program. The first
 * after a boot, after a change, or some time after an attempt that failed, asks enroot for its version and
 * tries an overlay, as nobody: what a process of the job's user said could be the user's invention.
 */
import { chownSync, mkdirSync, rmSync, statSync } from 'node:fs';
import process from 'node:process';
import { JobFault, NodeFault } from '../core/faults.ts';
import { nodeFactsPath } from '../core/layout.ts';
import { mountOf } from '../core/mountinfo.ts';
import {
  areValid,
  failureLimitMs,
  formatNodeFacts,
  isKnownEnroot,
  longestNodeFactsBytes,
  parseNodeFacts,
  type EffectiveIsolation,
  type NodeFacts,
} from '../core/node-facts.ts';
import type { Settings } from '../core/settings.ts';
import { findEnroot } from '../image/enroot-program.ts';
import { asUser, isRoot, nobody } from '../system/as-user.ts';
import { asidePath, writeFileAtomically } from '../system/aside.ts';
import type { Directory } from '../system/directory.ts';
import { isGone, unlessErrno } from '../system/errno.ts';
import { readSmallFile } from '../system/files.ts';
import { readMounts } from '../system/mounts.ts';
import { probeOverlay } from '../system/overlay.ts';
import { CommandFailed, run } from '../system/run-command.ts';
import { prepareRuntimeDirectory } from '../system/runtime-directory.ts';
import { findCommandForUsers } from '../system/self.ts';
import { stampOf } from './pyxis-stamp.ts';

export const mountsFileName = '00-container-cache.fstab';

const versionTimeoutMs = 10_000;

/** @returns the facts on disk; undefined: none, or none that can be read */
export function readNodeFacts(runtimePath: string): NodeFacts | undefined {
  const text = readSmallFile(nodeFactsPath(runtimePath), longestNodeFactsBytes);
  return text === undefined ? undefined : parseNodeFacts(text);
}

/** Facts that cannot be read are as good as none. */
export function recallNodeFacts(runtimePath: string): NodeFacts | undefined {
  try {
    return readNodeFacts(runtimePath);
  } catch {
    return undefined;
  }
}

/**
 * Brings the facts up to date.
 *
 * @param known those on disk
 * @param slurmConfPath as slurmd tells it to the Prolog
 * @returns the new facts, or undefined if those on disk still hold
 * @throws a failed system call on the runtime directory or the base
 */
export async function ensureNodeFacts(
  settings: Settings,
  base: Directory,
  known: NodeFacts | undefined,
  slurmConfPath: string | undefined,
): Promise<NodeFacts | undefined> {
  const enrootPath = lookForEnroot(settings.enrootPath);
  const fingerprint = fingerprintOf(settings, enrootPath, slurmConfPath);
  const holds = (facts: NodeFacts | undefined): facts is NodeFacts =>
    facts?.fingerprint === fingerprint && areValid(facts, Date.now());
  if (holds(known)) {
    if (known.pyxisFiles !== undefined && stampOf(known.pyxisFiles) === known.pyxisStamp) return undefined;
    const { findPyxis } = await import('./pyxis.ts');
    writeFacts(settings.runtimePath, { ...known, ...(await findPyxis(slurmConfPath)) });
    return undefined;
  }
  const facts = await findFacts(settings, base, enrootPath, fingerprint, slurmConfPath);
  // Of many Prologs at once, one that failed must not have the last word.
  if (facts.validUntilMs !== undefined && holds(recallNodeFacts(settings.runtimePath))) return undefined;
  writeFacts(settings.runtimePath, facts);
  return facts;
}

function writeFacts(runtimePath: string, facts: NodeFacts): void {
  unlessErrno(['EEXIST'], () => mkdirSync(runtimePath, { recursive: true, mode: 0o711 }));
  writeFileAtomically(nodeFactsPath(runtimePath), formatNodeFacts(facts), { mode: 0o644 });
}

function lookForEnroot(enrootPath: string | undefined): string | undefined {
  try {
    return findEnroot(enrootPath);
  } catch (error) {
    if (error instanceof NodeFault || error instanceof JobFault) return undefined;
    throw error;
  }
}

/** A new enroot in place of the old one is another file, or has another time. */
function fingerprintOf(
  settings: Settings,
  enrootPath: string | undefined,
  slurmConfPath: string | undefined,
): string {
  const stats = enrootPath === undefined ? undefined : unlessErrno(isGone, () => statSync(enrootPath));
  return [
    settings.basePath,
    settings.isolation,
    settings.imageFreshness,
    settings.enrootSysconfPath,
    process.execPath,
    slurmConfPath ?? 'none',
    enrootPath ?? 'none',
    stats === undefined ? 'none' : `${stats.ino}-${stats.size}-${stats.mtimeMs}`,
  ].join(':');
}

async function findFacts(
  settings: Settings,
  base: Directory,
  enrootPath: string | undefined,
  fingerprint: string,
  slurmConfPath: string | undefined,
): Promise<NodeFacts> {
  const { findPyxis } = await import('./pyxis.ts');
  // Before all else: what is changed while we look is another stamp for the next Prolog.
  const pyxis = await findPyxis(slurmConfPath);
  const enrootVersion = enrootPath === undefined ? undefined : await askVersion(settings, enrootPath);
  return {
    fingerprint,
    basePath: settings.basePath,
    baseMount: mountOf(settings.basePath, readMounts())?.mountPoint,
    enrootPath,
    enrootVersion,
    imageFreshness: settings.imageFreshness,
    command: findCommandForUsers(),
    mountsFile: `${settings.enrootSysconfPath}/mounts.d/${mountsFileName}`,
    ...pyxis,
    ...(await decideIsolation(settings, base, enrootPath, enrootVersion)),
  };
}

async function decideIsolation(
  settings: Settings,
  base: Directory,
  enrootPath: string | undefined,
  enrootVersion: string | undefined,
): Promise<Decision> {
  if (settings.isolation === 'off') return decided('off', 'isolation=off is configured');
  if (enrootPath === undefined) return decided('off', 'there is no enroot on this node; set enroot_path');
  if (enrootVersion === undefined) return failed('off', `${enrootPath} does not tell its version`);
  if (!isKnownEnroot(enrootVersion))
    return decided('off', `${enrootPath} is version ${enrootVersion}, want 3.4 to 4.x`);
  const { describeHiddenBase } = await import('./hidden-base.ts');
  const hidden = await describeHiddenBase(settings, process.env['SLURM_CONF']);
  if (hidden !== undefined) return decided('off', hidden);
  if (settings.isolation !== 'auto') return decided(settings.isolation);
  const probe = await probeOverlay(base.path, enrootPath);
  return probe.works
    ? decided('overlay')
    : failed('shared', `a user cannot mount an overlay: ${probe.reason}`);
}

type Decision = Pick<NodeFacts, 'isolation' | 'reason' | 'validUntilMs'>;

function decided(isolation: EffectiveIsolation, reason?: string): Decision {
  return { isolation, reason, validUntilMs: undefined };
}

/** Decided for want of better: an attempt failed. */
function failed(isolation: EffectiveIsolation, reason: string): Decision {
  const again = `it is tried again in ${failureLimitMs / 60_000} min`;
  return { isolation, reason: `${reason}; ${again}`, validUntilMs: Date.now() + failureLimitMs };
}

/** enroot makes its directories at each start, so it is given one. */
async function askVersion(settings: Settings, enrootPath: string): Promise<string | undefined> {
  const directory = asidePath(`${settings.runtimePath}/version`);
  prepareRuntimeDirectory(settings.runtimePath, directory, 0o700);
  try {
    chownSync(directory, nobody.uid, nobody.gid);
    return await askEnrootVersion(enrootPath, directory);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/**
 * Asks enroot for its version, as nobody if we are root.
 *
 * @param directory in place of all that enroot makes at its start; it is there
 * @returns such as `4.1.2`; undefined if it does not tell
 */
export async function askEnrootVersion(enrootPath: string, directory: string): Promise<string | undefined> {
  const names = ['HOME', ...['DATA', 'RUNTIME', 'CACHE', 'TEMP'].map((name) => `ENROOT_${name}_PATH`)];
  const command = {
    file: enrootPath,
    args: ['version'],
    environment: Object.fromEntries(names.map((name) => [name, directory])),
    timeoutMs: versionTimeoutMs,
  };
  try {
    const { stdout } = await run(isRoot() ? asUser(nobody, command, { canGain: true }) : command);
    return /^\d+(?:\.\d+)*/.exec(stdout.toString('latin1').trim())?.[0];
  } catch (error) {
    if (error instanceof CommandFailed) return undefined;
    throw error;
  }
}
