/**
 * What a shell script or a crontab deletes, read from its text: whether it would delete entries of ours.
 *
 * Nothing is executed, so this is a guess, made for the usual shapes: `rm -rf`, `find … -delete`,
 * `find … -exec rm`, `tmpwatch`. Variables that the text sets are followed; what else only a shell could tell
 * stands for anything.
 */

interface Deletion {
  /** From 1. */
  readonly line: number;
  /** As it is written there. */
  readonly text: string;
}

/** Stands for text that only a shell could tell. */
const anything = '\u0001';
const anythings = /\u0001/g;

/** What variables may be. */
export type Values = ReadonlyMap<string, readonly string[]>;

/** More values of a variable, or combinations of them, are not followed. */
const mostValues = 16;

/**
 * @param paths what must stay, absolute: an entry, or a file in one
 * @param known variables that the script may take from its environment: ENROOT_DATA_PATH
 * @returns the lines that would delete one of the paths or what is above it
 */
export function findDeletions(
  script: string,
  paths: readonly string[],
  known: Values = new Map(),
): Deletion[] {
  const values = new Map(known);
  const deletions: Deletion[] = [];
  for (const { number, text } of logicalLines(script)) {
    for (const command of commandsOf(resolveSubstitutions(text, values))) {
      assign(command, values);
      const words = wordsOf(command);
      if (targetsOf(words, values).some((target) => paths.some((path) => target.covers(path)))) {
        deletions.push({ line: number, text: text.trim() });
        break;
      }
    }
  }
  return deletions;
}

function logicalLines(script: string): { number: number; text: string }[] {
  const lines: { number: number; text: string }[] = [];
  let open: { number: number; text: string } | undefined;
  for (const [index, raw] of script.split('\n').entries()) {
    const text = `${open?.text ?? ''}${raw.replace(/(^|\s)#.*$/, '')}`;
    const number = open?.number ?? index + 1;
    open = text.endsWith('\\') ? { number, text: `${text.slice(0, -1)} ` } : undefined;
    if (open === undefined) lines.push({ number, text });
  }
  return open === undefined ? lines : [...lines, open];
}

/** `$(id -u)` becomes anything, `$(sh -c 'echo "/raid/$(id -u)"')` what is echoed. */
function resolveSubstitutions(text: string, values: Values): string {
  let resolved = text;
  for (let round = 0; round < 8; round++) {
    const next = resolved.replace(/\$\(([^()]*)\)|`([^`]*)`/g, (_, inner?: string, old?: string) => {
      const command = inner ?? old ?? '';
      const echoed = /\b(?:echo|printf '%s(?:\\n)?')\s+["']*([^"']*\/[^"']*)/.exec(command)?.[1];
      if (echoed !== undefined) return expand(echoed, values)[0] ?? anything;
      // Which files a command of a pipe lists, for `rm -rf $(find …)`: the find is looked at itself.
      return /^\s*find\s/.test(command) ? ` ; ${command} -delete ; ` : anything;
    });
    if (next === resolved) return resolved;
    resolved = next;
  }
  return resolved;
}

const commandsOf = (text: string): string[] => text.split(/;|&&|\|\||(?<!>)&(?!>)|\bdo\b|\bthen\b|\belse\b/);

function assign(command: string, values: Map<string, readonly string[]>): void {
  const loop = /^\s*for\s+(\w+)\s+in\s+(.*)$/.exec(command);
  if (loop?.[1] !== undefined) {
    values.set(
      loop[1],
      wordsOf(loop[2] ?? '')
        .flatMap((word) => expand(word, values))
        .slice(0, mostValues),
    );
    return;
  }
  const assignment = /^\s*(?:(?:export|local|readonly|declare)\s+(?:-\w+\s+)*)?(\w+)=(.*)$/.exec(command);
  if (assignment?.[1] === undefined) return;
  const word = wordsOf(assignment[2] ?? '')[0] ?? '';
  values.set(assignment[1], expand(word, values));
}

/**
 * Words without their quotes; blanks in quotes do not part them. What was quoted keeps its marks as they are.
 */
function wordsOf(command: string): string[] {
  const words = command.match(/(?:"(?:\\.|[^"\\])*"|'[^']*'|\\.|[^\s"'\\])+/g) ?? [];
  return words.map((word) => word.replace(/\\(.)/g, '$1').replace(/["']/g, ''));
}

/** The values a word may have. */
function expand(word: string, values: Values): string[] {
  const variable = /\$(?:\{(\w+)[^}]*\}|(\w+))/;
  let open = [word];
  for (let round = 0; round < 8 && open.some((one) => variable.test(one)); round++)
    open = open
      .flatMap((one) => {
        const match = variable.exec(one);
        if (match === null) return [one];
        const found = values.get(match[1] ?? match[2] ?? '') ?? [anything];
        return found.map(
          (value) => one.slice(0, match.index) + value + one.slice(match.index + match[0].length),
        );
      })
      .slice(0, mostValues);
  return open.map((one) => one.replace(/\$\S*/g, anything));
}

/**
 * A variable may hold several, with blanks between. `/tmp/.` is what cleaners are given for a directory that
 * may be a link.
 */
const expandPaths = (word: string, values: Values): string[] =>
  expand(word, values)
    .flatMap((value) => value.split(/\s+/))
    .filter((pattern) => pattern.startsWith('/'))
    .map((pattern) => pattern.replace(/\/\.?$/, ''));

/** What a script sets, for one that takes it in by `. FILE`. */
export function assignmentsOf(script: string): Values {
  const values = new Map<string, readonly string[]>();
  for (const { text } of logicalLines(script))
    for (const command of commandsOf(resolveSubstitutions(text, values))) assign(command, values);
  return values;
}

interface Target {
  readonly covers: (path: string) => boolean;
}

/** What a command deletes. */
function targetsOf(words: readonly string[], values: Values): Target[] {
  const at = words.findIndex((word) => /^(?:.*\/)?(?:rm|find|tmpwatch|tmpreaper|stmpclean)$/.test(word));
  if (at < 0) return [];
  const name = (words[at] ?? '').replace(/^.*\//, '');
  const rest = words.slice(at + 1);
  const pathsIn = (some: readonly string[]): string[] =>
    some.filter((word) => !word.startsWith('-')).flatMap((word) => expandPaths(word, values));
  if (name === 'find') return findTargets(rest, values);
  const isRecursive = name !== 'rm' || rest.some((word) => /^-[a-zA-Z]*[rR]|^--recursive$/.test(word));
  if (!isRecursive) return [];
  return pathsIn(rest).map((pattern) => ({ covers: (path) => coversWhole(pattern, path) }));
}

function findTargets(words: readonly string[], values: Values): Target[] {
  const firstTest = words.findIndex((word) => /^[-!(]/.test(word) && !/^-[HLPO]/.test(word));
  const tests = words.slice(firstTest < 0 ? words.length : firstTest);
  const deletes = tests.includes('-delete') || tests.some((word) => /^(?:.*\/)?rm$/.test(word));
  if (!deletes) return [];
  const valueOf = (option: string): string | undefined => {
    const at = tests.indexOf(option);
    return at < 0 ? undefined : tests[at + 1];
  };
  const deepest = Number(valueOf('-maxdepth') ?? Infinity);
  const name = valueOf('-name') ?? valueOf('-iname');
  // `-path X -prune`, `! -path X`: what is left out.
  const leftOut = tests.flatMap((word, index) => {
    if (!/^-(?:i?path|wholename)$/.test(word)) return [];
    const isLeftOut = ['!', '-not'].includes(tests[index - 1] ?? '') || tests[index + 2] === '-prune';
    return isLeftOut ? expand(tests[index + 1] ?? '', values) : [];
  });
  const roots = words
    .slice(0, firstTest < 0 ? words.length : firstTest)
    .filter((word) => !word.startsWith('-'));
  return roots
    .flatMap((word) => expandPaths(word, values))
    .map((pattern) => ({
      covers: (path) => {
        if (
          leftOut.some(
            (one) => matches(one.replace(/\/\*$/, ''), path) || coversWhole(one.replace(/\/?\*$/, ''), path),
          )
        )
          return false;
        const depth = depthBelow(pattern, path);
        if (depth === undefined) return false;
        const below = path.split('/').slice(-Math.max(depth, 1)).slice(0, deepest);
        if (deepest < depth && tests.includes('-delete') && !tests.includes('-exec')) return false;
        return name === undefined ? deepest > 0 : below.some((component) => matchesName(name, component));
      },
    }));
}

/** Whether a pattern names the path or a directory above it. */
const coversWhole = (pattern: string, path: string): boolean => depthBelow(pattern, path) !== undefined;

/** How many components a path has below what a pattern names; undefined: it does not lie there. */
function depthBelow(pattern: string, path: string): number | undefined {
  const wanted = pattern.split('/').filter((one) => one !== '');
  const found = path.split('/').filter((one) => one !== '');
  if (wanted.length > found.length || pattern.replace(anythings, '').replace(/[/*]/g, '') === '')
    return undefined;
  return wanted.every((component, index) => matchesName(component, found[index] ?? '', true))
    ? found.length - wanted.length
    : undefined;
}

const matches = (pattern: string, path: string): boolean => depthBelow(pattern, path) === 0;

/** As the shell does it: a `*` does not stand for a dot in front. find(1) has no such exception. */
function matchesName(pattern: string, name: string, isShell = false): boolean {
  if (isShell && name.startsWith('.') && /^[*?[\u0001]/.test(pattern)) return false;
  const source = pattern
    .replace(/[.+^${}()|\\]/g, '\\$&')
    .replace(/\*/g, '.*')
    .replace(/\?/g, '.')
    .replace(/\[!/g, '[^')
    .replace(anythings, '.*');
  try {
    return new RegExp(`^${source}$`).test(name);
  } catch {
    return false;
  }
}
