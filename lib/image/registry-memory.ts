/**
 * Registries that lately gave a user's Prolog no answer: `<runtime>/registries/<uid>`, of root.
 *
 * Each job would wait in vain for the same registry. What is known here a Prolog does not ask again for a
 * while; it leaves the question to the step, so nothing is lost. A file for each user: what failed was said
 * by a process of that user, which could lie.
 */
import { readdirSync, rmSync, statSync } from 'node:fs';
import type { RegistryImage } from '../core/image.ts';
import { parseIdName, registriesPath, registryMemoryPath } from '../core/layout.ts';
import {
  formatFailures,
  isPaused,
  noteFailure,
  parseFailures,
  type RegistryFailure,
  type RememberedFailure,
} from '../core/registry-failure.ts';
import { writeFileAtomically } from '../system/aside.ts';
import { isGone, unlessErrno } from '../system/errno.ts';
import { readSmallFile } from '../system/files.ts';
import { prepareRuntimeDirectory } from '../system/runtime-directory.ts';
import { hashReference, hashRegistry } from './image-hash.ts';

const longestMemoryBytes = 64 * 1024;
const onlyRootMode = 0o700;
/** A user without a failure for so long has none to remember. */
const forgottenAfterMs = 3_600_000;

/** @returns why a Prolog of this user need not ask for the image now */
export function recallRegistryFailure(
  runtimePath: string,
  uid: number,
  image: RegistryImage,
  nowMs = Date.now(),
): RegistryFailure | undefined {
  const keys = [hashRegistry(image.registry), hashReference(image.canonical)];
  const known = readMemory(runtimePath, uid).find((one) => keys.includes(one.key) && isPaused(one, nowMs));
  if (known === undefined) return undefined;
  const ago = Math.round((nowMs - known.atMs) / 1000);
  const left = Math.ceil((known.untilMs - nowMs) / 1000);
  return { kind: known.kind, cause: `${known.cause} (${ago} s ago; not asked again for ${left} s)` };
}

/** Nothing here may fail a job: what cannot be written is asked again. */
export function noteRegistryFailure(
  runtimePath: string,
  uid: number,
  image: RegistryImage,
  failure: RegistryFailure,
  nowMs = Date.now(),
): void {
  // All images of a registry that is not there share its failure; an answer is about one image.
  const key = failure.kind === 'silent' ? hashRegistry(image.registry) : hashReference(image.canonical);
  try {
    const memory = noteFailure(readMemory(runtimePath, uid), key, failure, nowMs);
    prepareRuntimeDirectory(runtimePath, registriesPath(runtimePath), onlyRootMode);
    writeMemory(runtimePath, uid, memory);
    forgetOldUsers(runtimePath, nowMs);
  } catch {
    // See above.
  }
}

/** The registry has answered about the image. */
export function forgetRegistryFailure(runtimePath: string, uid: number, image: RegistryImage): void {
  const memory = readMemory(runtimePath, uid);
  if (memory.length === 0) return;
  const keys = [hashRegistry(image.registry), hashReference(image.canonical)];
  const rest = memory.filter(({ key }) => !keys.includes(key));
  if (rest.length === memory.length) return;
  try {
    writeMemory(runtimePath, uid, rest);
  } catch {
    // Its pause ends by itself.
  }
}

function readMemory(runtimePath: string, uid: number): readonly RememberedFailure[] {
  try {
    return parseFailures(readSmallFile(registryMemoryPath(runtimePath, uid), longestMemoryBytes) ?? '');
  } catch {
    return [];
  }
}

function writeMemory(runtimePath: string, uid: number, memory: readonly RememberedFailure[]): void {
  writeFileAtomically(registryMemoryPath(runtimePath, uid), formatFailures(memory), { mode: 0o600 });
}

function forgetOldUsers(runtimePath: string, nowMs: number): void {
  for (const name of readdirSync(registriesPath(runtimePath))) {
    const uid = parseIdName(name);
    if (uid === undefined) continue;
    const path = registryMemoryPath(runtimePath, uid);
    const changedMs = unlessErrno(isGone, () => statSync(path).mtimeMs);
    if (changedMs !== undefined && nowMs - changedMs > forgottenAfterMs) rmSync(path, { force: true });
  }
}
