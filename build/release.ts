/**
 * Which release this source tree is: the version of package.json and the commit of git. Nothing else asks for
 * them.
 */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { projectRoot } from './source-files.ts';

export interface Release {
  /**
   * As dpkg and rpm order it: `0.1.0` where a tag `v0.1.0` says so, else `0.1.0~dev12+g0123abc`, which comes
   * before it.
   */
  readonly version: string;
  /** 12 digits; undefined where git does not tell, such as in an unpacked archive. */
  readonly commit: string | undefined;
  /** Of the commit, seconds. */
  readonly atSeconds: number | undefined;
}

/** @param paths relative to the project: the commit is the last one that changed any of them */
export function readRelease(paths: readonly string[] = ['.']): Release {
  const { version } = JSON.parse(readFileSync(join(projectRoot, 'package.json'), 'utf8')) as {
    version: string;
  };
  const [commit, time] = git('log', '-1', '--format=%H %ct', '--', ...paths)?.split(' ') ?? [];
  if (commit === undefined || time === undefined) return { version, commit: undefined, atSeconds: undefined };
  const known = { commit: commit.slice(0, 12), atSeconds: Number(time) };
  const isDirty = git('status', '--porcelain', '--untracked-files=no', '--', ...paths) !== '';
  if (!isDirty && git('tag', '--points-at', 'HEAD')?.split('\n').includes(`v${version}`) === true)
    return { version, ...known };
  const count = git('rev-list', '--count', commit) ?? '0';
  const changes = isDirty ? '.dirty' : '';
  return { version: `${version}~dev${count}+g${commit.slice(0, 7)}${changes}`, ...known };
}

/** @returns undefined: there is no git, it failed, or it knows no commit */
function git(...args: string[]): string | undefined {
  const { status, stdout } = spawnSync('git', args, { cwd: projectRoot, encoding: 'utf8' });
  return status === 0 ? stdout.trim() : undefined;
}
