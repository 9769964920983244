/** System calls below a user's directory, found and made to fail by strace(1): the generator "Errnos". */

const calls = [
  ...['openat2', 'openat', 'statx', 'newfstatat', 'fstat', 'getdents64', 'pread64', 'read', 'write'],
  ...['mkdir', 'rename', 'rmdir', 'unlink', 'utimensat', 'fchmod', 'fchown', 'flock'],
];

export interface Point {
  readonly call: string;
  /** Which one of its kind. */
  readonly ordinal: number;
  readonly text: string;
}

/** The calls of a trace below a directory: by a path, a descriptor, or a name below /proc/self/fd/N. */
export function pointsBelow(path: string, trace: string): Point[] {
  const counts = new Map<string, number>();
  const descriptors = new Map<string, string>();
  return trace.split('\n').flatMap((text) => {
    const call = /^(\w+)\(/.exec(text)?.[1];
    if (call === undefined) return [];
    const ordinal = (counts.get(call) ?? 0) + 1;
    counts.set(call, ordinal);
    const viaDescriptor = [...text.matchAll(/"\/proc\/self\/fd\/(\d+)[/"]/g)].some(([, fd = '']) =>
      descriptors.get(fd)?.startsWith(path),
    );
    const [, made, madePath] = / = (\d+)<([^>]*)>/.exec(text) ?? [];
    if (made !== undefined && madePath !== undefined) descriptors.set(made, madePath);
    // That the user directory itself is opened, and looked at, is the base's matter.
    if (new RegExp(`^(?:statx|newfstatat|fstat)\\(\\d+<${path}>(?:, ""|, \\{)`).test(text)) return [];
    const isBelow = new RegExp(`[<"]${path}/`).test(text) || text.includes(`<${path}>`) || viaDescriptor;
    return isBelow ? [{ call, ordinal, text }] : [];
  });
}

export const straceOf = (trace: string, ...options: readonly string[]): readonly string[] => [
  ...['/usr/bin/strace', '-qq', '-y', '-o', trace, '-e', 'signal=none', '-e', `trace=${calls.join(',')}`],
  ...options,
];

/** Options of strace: one call fails. */
export const injecting = (
  { call, ordinal }: Pick<Point, 'call' | 'ordinal'>,
  error: string,
): readonly string[] => {
  // Of two names for one number strace knows the other.
  const known = error === 'ENOTSUP' ? 'EOPNOTSUPP' : error;
  return ['-e', `inject=${call}:error=${known}:when=${ordinal}`];
};

/**
 * Whether the call that failed was one below the directory: when a call comes is also the machine's doing.
 */
export const isInjectedBelow = (path: string, trace: string): boolean =>
  pointsBelow(path, trace).some(({ text }) => text.includes('(INJECTED)'));
