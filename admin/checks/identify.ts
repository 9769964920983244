/** What a file that Slurm runs turns out to be: ours, ours of another build, or somebody else's. */
import { realpathSync } from 'node:fs';
import { basename } from 'node:path';
import { unlessErrno } from '../../lib/system/errno.ts';
import { readSmallFile } from '../../lib/system/files.ts';
import { contains, haveSameContent, isRegularFile } from '../../lib/system/programs.ts';

export type Identity =
  /** `by`: a script, and what of ours it runs. */
  | { readonly kind: 'ours'; readonly by?: string }
  | { readonly kind: 'other-build' }
  /** Our executable, but its name picks another of its programs. */
  | { readonly kind: 'misnamed' }
  | { readonly kind: 'foreign' };

/** A script is smaller, our executable larger. */
const longestScriptBytes = 256 * 1024;
const mark = 'container-cache';
/** What a path in a script may hold without quotes. */
const pathInScript = /\/[\w./@%+=:,-]+/g;

/**
 * Nothing is executed to find out: a Prolog may do anything.
 *
 * @param executable this build; undefined: there is none to compare with
 * @param path exists
 * @param program `prolog` or `epilog`
 */
export function identify(executable: string | undefined, path: string, program: string): Identity {
  const script = readScript(path);
  if (script === undefined) return identifyExecutable(executable, path, program);
  const named = [...script.matchAll(pathInScript)].map(([found]) => found);
  for (const candidate of named) {
    if (basename(candidate) !== program || !isRegularFile(candidate)) continue;
    if (readScript(candidate) !== undefined) continue;
    const identity = identifyExecutable(executable, candidate, program);
    if (identity.kind !== 'foreign')
      return identity.kind === 'ours' ? { kind: 'ours', by: candidate } : identity;
  }
  return { kind: 'foreign' };
}

function readScript(path: string): string | undefined {
  try {
    const text = readSmallFile(realpathSync(path), longestScriptBytes);
    return text?.startsWith('#!') === true ? text : undefined;
  } catch {
    // Too large for a script, or not ours to read.
    return undefined;
  }
}

function identifyExecutable(executable: string | undefined, path: string, program: string): Identity {
  const isThisBuild =
    executable !== undefined && (unlessErrno(['EACCES'], () => haveSameContent(path, executable)) ?? false);
  const isOurs = isThisBuild || (unlessErrno(['EACCES'], () => contains(path, mark)) ?? false);
  if (!isOurs) return { kind: 'foreign' };
  if (executable !== undefined && !isThisBuild) return { kind: 'other-build' };
  return basename(path) === program ? { kind: 'ours' } : { kind: 'misnamed' };
}
