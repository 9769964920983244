/** tmpfiles.d(5), as far as it tells what systemd-tmpfiles(8) deletes by age. */

export interface TmpfilesLine {
  readonly file: string;
  readonly line: number;
  readonly type: string;
  /** May be a pattern. */
  readonly path: string;
  /** `10d`; undefined: nothing is deleted by age. */
  readonly age: string | undefined;
}

/** Lines that are no item are passed over. */
export function parseTmpfiles(text: string, file: string): TmpfilesLine[] {
  return text.split('\n').flatMap((raw, index): TmpfilesLine[] => {
    const line = raw.trim();
    if (line === '' || line.startsWith('#')) return [];
    const [type = '', path = '', , , , age] = (line.match(/"(?:\\.|[^"\\])*"|\S+/g) ?? []).map((word) =>
      word.replace(/^"(.*)"$/, '$1'),
    );
    if (!path.startsWith('/')) return [];
    const plain = path.replaceAll('%%', '%').replace(/\/+$/, '');
    return [
      { file, line: index + 1, type, path: plain, age: age === undefined || age === '-' ? undefined : age },
    ];
  });
}

const agedTypes = /^[dDevqQX]/;

/**
 * The line by which a path is deleted by age, together with what lies in it. The nearest line on the way up
 * decides: systemd-tmpfiles leaves out what has a line of its own.
 */
export function agingLine(lines: readonly TmpfilesLine[], path: string): TmpfilesLine | undefined {
  for (let here = path; here !== ''; here = here.slice(0, here.lastIndexOf('/'))) {
    const own = lines.filter(({ path: pattern }) => globMatches(pattern, here));
    if (own.some(({ type }) => type.startsWith('x'))) return undefined;
    const aged = own.find(({ type, age }) => agedTypes.test(type) && age !== undefined);
    if (aged !== undefined) return aged;
    if (own.length > 0) return undefined;
  }
  return undefined;
}

/** The line by which a path is removed at boot, whatever its age. */
export function removingLine(lines: readonly TmpfilesLine[], path: string): TmpfilesLine | undefined {
  const removed = lines.filter(({ type }) => /^[RD]/.test(type));
  for (let here = path; here !== ''; here = here.slice(0, here.lastIndexOf('/'))) {
    const found = removed.find(
      ({ type, path: pattern }) => globMatches(pattern, here) && (type.startsWith('R') || here !== path),
    );
    if (found !== undefined) return found;
  }
  return undefined;
}

/** As fnmatch(3) with FNM_PATHNAME and FNM_PERIOD. */
function globMatches(pattern: string, path: string): boolean {
  const wanted = pattern.split('/');
  const found = path.split('/');
  return (
    wanted.length === found.length &&
    wanted.every((component, index) => {
      const name = found[index] ?? '';
      if (name.startsWith('.') && /^[*?[]/.test(component)) return false;
      const source = component
        .replace(/[.+^${}()|\\]/g, '\\$&')
        .replace(/\*/g, '.*')
        .replace(/\?/g, '.')
        .replace(/\[!/g, '[^');
      try {
        return new RegExp(`^${source}$`).test(name);
      } catch {
        return false;
      }
    })
  );
}
