/**
 * Unpacking a squashfs file as a user, with the result that `enroot create` would have.
 *
 * enroot (src/runtime.sh, runtime::create) runs unsquashfs with the user's xattrs only, then gives the owner
 * read permission on everything, search and write on directories. We do the same, and let device nodes be,
 * which nobody but root can make and enroot would fail on.
 */
import { readFileSync } from 'node:fs';
import { JobFault, NodeFault } from '../core/faults.ts';
import type { SpaceNeed } from '../core/image.ts';
import { asUser, isRoot, type UserIds } from '../system/as-user.ts';
import { makeKillable } from '../system/inherited.ts';
import { splitLines } from '../system/lines.ts';
import { CommandFailed, run, type Command } from '../system/run-command.ts';
import { shortageFault, shortageIn } from '../system/shortage.ts';
import { isFindMissing, isMissing, isNotExecuted, toolTimeoutMs } from '../system/tool.ts';
import { blockBytes, mostLinkedFiles, printNames, readNames } from '../system/tree-size.ts';

interface UnpackRequest {
  readonly user: UserIds;
  readonly imagePath: string;
  /** Must not exist. */
  readonly destination: string;
  /** 0: all. */
  readonly processors: number;
  readonly timeoutMs: number;
  readonly onPercent: (percent: number) => void;
}

/**
 * unsquashfs' exit codes since squashfs-tools 4.4: 1 it gave up, 2 something could not be made but the rest
 * is there.
 */
const exitedWithOmissions = 2;
const deviceOmission = /could not create (?:character|block) device .*, because you're not superuser!$/;
const longestKeptLine = 300;

/**
 * unsquashfs sizes its tables by the limit of open files, which may be a billion under systemd (enroot issue
 * 90).
 */
const openFilesMax = 65_536;

/** Only ever lowered: raising needs a capability. No core file: it would land in the user's data. */
function limitOptions(): string[] {
  const hard = /^Max open files +\S+ +(\d+)/m.exec(readFileSync('/proc/self/limits', 'latin1'))?.[1];
  const openFiles = Math.min(openFilesMax, hard === undefined ? openFilesMax : Number(hard));
  return [`--nofile=${openFiles}:${openFiles}`, '--core=0:0'];
}

/**
 * @throws JobFault UNPACK_FAILED, CREATE_TIMEOUT, QUOTA_EXCEEDED, NO_SPACE; NodeFault TOOL_MISSING
 */
export async function unpackSquashfs(request: UnpackRequest): Promise<void> {
  const { user, imagePath, destination, processors, timeoutMs } = request;
  const args = ['-user-xattrs', ...(processors > 0 ? ['-processors', String(processors)] : [])];
  args.push('-dest', destination, imagePath);
  const complaints = new ComplaintFilter();
  const command = unsquashfsAs(user, {
    args,
    timeoutMs,
    onStdout: (chunk) => {
      // The progress bar, redrawn after carriage returns, ends in "1234/5678  21%".
      const percent = /(\d{1,3})%[^%]*$/.exec(chunk.toString('latin1'))?.[1];
      if (percent !== undefined) request.onPercent(Number(percent));
    },
    onStderr: complaints.add,
    onStart: (pid) => {
      if (isRoot()) makeKillable(pid);
    },
  });
  try {
    await run(command);
  } catch (cause) {
    const firstComplaint = complaints.end();
    if (!(cause instanceof CommandFailed)) throw cause;
    if (cause.exitCode === exitedWithOmissions && firstComplaint === undefined) return;
    throw await unpackFault(request, cause, firstComplaint);
  }
}

/** unsquashfs as the user, within our limits. */
function unsquashfsAs(user: UserIds, command: Omit<Command, 'file'>): Command {
  const { file, args, ...rest } = asUser(user, { file: 'unsquashfs', ...command });
  return { ...rest, file: 'prlimit', args: [...limitOptions(), file, ...args] };
}

/** Whether unsquashfs runs on this node at all. */
export function isUnsquashfsMissing(): Promise<boolean> {
  return isMissing((user) => unsquashfsAs(user, { args: ['-version'], timeoutMs: toolTimeoutMs }));
}

async function unpackFault(
  { imagePath }: UnpackRequest,
  cause: CommandFailed,
  complaint: string | undefined,
): Promise<Error> {
  const shortage = shortageIn(`${complaint ?? ''} ${cause.stderrTail}`);
  if (cause.timedOut) {
    return new JobFault('CREATE_TIMEOUT', `Cannot unpack "${imagePath}" in time`, { cause });
  }
  if (shortage !== undefined) return shortageFault(shortage, `Cannot unpack "${imagePath}"`, complaint);
  if (isNotExecuted(cause) && (await isUnsquashfsMissing())) {
    return new NodeFault('TOOL_MISSING', `Cannot unpack "${imagePath}": is squashfs-tools installed?`, {
      cause,
    });
  }
  const what = complaint === undefined || cause.message.includes(complaint) ? '' : `: ${complaint}`;
  return new JobFault('UNPACK_FAILED', `Cannot unpack "${imagePath}"${what}`, { cause });
}

/**
 * The first complaint of unsquashfs that is not about a device node: exit code 2 stands for those, but also
 * for a symlink that found no space, and an entry without it must not be published.
 */
class ComplaintFilter {
  #first: string | undefined;
  readonly #lines = splitLines((line) => {
    const text = line.trim();
    if (text === '' || deviceOmission.test(text)) return;
    this.#first ??= text.slice(0, longestKeptLine);
  }, 'utf8');

  readonly add = this.#lines.add;

  end(): string | undefined {
    this.#lines.end();
    return this.#first;
  }
}

/**
 * Gives the owner what enroot gives, and measures the tree, in one walk.
 *
 * A directory gets its permissions before find(1) enters it. `-execdir` names files relative to their
 * directory, so a tree deeper than PATH_MAX is no obstacle.
 *
 * @returns what the tree takes on disk, hard links counted once
 */
export async function settlePermissions(user: UserIds, path: string, timeoutMs: number): Promise<SpaceNeed> {
  const closedDirectory = ['-type', 'd', '!', '-perm', '-u=rwx', '-execdir', 'chmod', 'u+rwx', '{}', ';'];
  const closedFile = [
    '-type',
    'f',
    '(',
    '!',
    '-perm',
    '-u=r',
    '-o',
    '!',
    '-perm',
    '-u=x',
    '-perm',
    '/go=x',
    ')',
  ];
  // As unsquashfs run by a user leaves them out.
  const setId = ['-perm', '/6000', '!', '-type', 'l', '-execdir', 'chmod', 'ug-s', '{}', '+'];
  const openFile = [...closedFile, '-execdir', 'chmod', 'u+rX', '{}', '+'];
  const args = [path, ...closedDirectory, ',', ...openFile, ',', ...setId, ',', ...printNames];
  let blocks = 0;
  let inodes = 0;
  const linked = new Set<string>();
  const onStdout = readNames((size, names, inode) => {
    if (inode !== undefined && names > 1) {
      if (linked.has(inode)) return;
      // Beyond them each name counts.
      if (linked.size < mostLinkedFiles) linked.add(inode);
    }
    blocks += size;
    inodes++;
  });
  await run(
    asUser(user, { file: 'find', args, timeoutMs, onStdout }, { canGain: false, groups: 'none' }),
  ).catch(async (cause: unknown) => {
    const message = `Cannot set the permissions of "${path}"`;
    if (!(cause instanceof CommandFailed)) throw new JobFault('UNPACK_FAILED', message, { cause });
    const shortage = shortageIn(cause.stderrTail);
    if (shortage !== undefined) throw shortageFault(shortage, message);
    if (isNotExecuted(cause) && (await isFindMissing()))
      throw new NodeFault('TOOL_MISSING', message, { cause });
    throw new JobFault(cause.timedOut ? 'CREATE_TIMEOUT' : 'UNPACK_FAILED', message, { cause });
  });
  return { bytes: blocks * blockBytes, inodes };
}
