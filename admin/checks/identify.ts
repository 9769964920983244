/** What a file that Slurm runs turns out to be: ours, ours of another build, or somebody else's. */
import { realpathSync, statSync } from 'node:fs';
import { basename } from 'node:path';
import { chooseProgram } from '../../lib/core/program.ts';
import { unlessErrno } from '../../lib/system/errno.ts';
import { readSmallFile } from '../../lib/system/files.ts';
import { contains, haveSameContent, isRegularFile } from '../../lib/system/programs.ts';

type Identity =
  /** `by`: a script, and what of ours it runs. `isCopy`: an upgrade of the executable does not change it. */
  | { readonly kind: 'ours'; readonly by?: string; readonly isCopy: boolean }
  | { readonly kind: 'other-build' }
  | { readonly kind: 'foreign' };

/** A script is smaller, our executable larger. */
const longestScriptBytes = 256 * 1024;
const mark = 'container-cache';
/** What a path in a script may hold without quotes, and the word after it. */
export const pathInScript = /(\/[\w./@%+=:,-]+)(?:["']?[ \t]+([\w-]+))?/g;

/**
 * Nothing is executed to find out: a Prolog may do anything.
 *
 * @param executable this build; undefined: there is none to compare with
 * @param path exists
 * @param program `prolog` or `epilog`
 */
export function identify(executable: string | undefined, path: string, program: string): Identity {
  const script = readScript(path);
  if (script === undefined) return identifyExecutable(executable, path);
  for (const [, candidate = '', word] of script.matchAll(pathInScript)) {
    if (!isRegularFile(candidate) || readScript(candidate) !== undefined) continue;
    // `container-cache gc` in a Prolog script is no Prolog of ours.
    const started = chooseProgram({
      calledBy: basename(candidate),
      parameters: word === undefined ? [] : [word],
      context: `${program}_slurmd`,
    });
    if (started.program !== program) continue;
    const identity = identifyExecutable(executable, candidate);
    if (identity.kind !== 'foreign')
      return identity.kind === 'ours' ? { ...identity, by: candidate } : identity;
  }
  return { kind: 'foreign' };
}

/** @returns undefined: no script, or not ours to read */
export function readScript(path: string): string | undefined {
  try {
    const text = readSmallFile(realpathSync(path), longestScriptBytes);
    return text?.startsWith('#!') === true ? text : undefined;
  } catch {
    // Too large for a script, or not ours to read.
    return undefined;
  }
}

function identifyExecutable(executable: string | undefined, path: string): Identity {
  const isThisBuild =
    executable !== undefined && (unlessErrno(['EACCES'], () => haveSameContent(path, executable)) ?? false);
  const isOurs = isThisBuild || (unlessErrno(['EACCES'], () => contains(path, mark)) ?? false);
  if (!isOurs) return { kind: 'foreign' };
  if (executable === undefined) return { kind: 'ours', isCopy: false };
  return isThisBuild ? { kind: 'ours', isCopy: !isSameFile(path, executable) } : { kind: 'other-build' };
}

function isSameFile(one: string, other: string): boolean {
  const [a, b] = [statSync(one), statSync(other)];
  return a.dev === b.dev && a.ino === b.ino;
}
