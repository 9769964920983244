/**
 * plugstack.conf (spank(7)): which SPANK plugins are loaded, with what arguments.
 *
 *   required /usr/lib/slurm/spank_pyxis.so container_scope=job
 *   include /etc/slurm/plugstack.conf.d/*
 */

type PlugstackLine =
  | { readonly kind: 'plugin'; readonly path: string; readonly parameters: readonly string[] }
  | { readonly kind: 'include'; readonly pattern: string };

/** Lines that are neither are passed over, as Slurm does. An argument with blanks is quoted. */
export function parsePlugstack(text: string): PlugstackLine[] {
  return text.split('\n').flatMap((line): PlugstackLine[] => {
    const [word = '', target, ...parameters] = wordsOf(line.replace(/#.*$/, ''));
    if (target === undefined) return [];
    if (/^(?:required|optional)$/i.test(word)) return [{ kind: 'plugin', path: target, parameters }];
    return /^include$/i.test(word) ? [{ kind: 'include', pattern: target }] : [];
  });
}

function wordsOf(line: string): string[] {
  const words = line.match(/(?:"[^"]*"|'[^']*'|[^\s"'])+/g) ?? [];
  return words.map((word) => word.replaceAll(/"([^"]*)"|'([^']*)'/g, '$1$2'));
}

export type Plugin = Extract<PlugstackLine, { readonly kind: 'plugin' }>;

/** What pyxis is told in plugstack.conf, as far as it concerns us. */
export interface PyxisOptions {
  /** The program that gets images of registries in enroot's stead; undefined: none. */
  readonly importer: string | undefined;
  readonly runtimePath: string;
}

const defaultRuntimePath = '/run/pyxis';

/**
 * Each line that has pyxis' arguments counts, whatever the plugin's file is called: who takes another program
 * for pyxis is no worse off than without a cache, who misses an importer is.
 *
 * @returns undefined if two lines disagree, so that nobody can say what pyxis does
 */
export function pyxisOptions(plugins: readonly Plugin[]): PyxisOptions | undefined {
  const found = plugins
    .filter(
      ({ path, parameters }) => isPyxis(path) || parameters.some((text) => text.startsWith('importer=')),
    )
    .map(({ parameters }): PyxisOptions => {
      const last = (name: string): string | undefined =>
        parameters.findLast((text) => text.startsWith(`${name}=`))?.slice(name.length + 1);
      return {
        importer: last('importer') === '' ? undefined : last('importer'),
        runtimePath: last('runtime_path') ?? defaultRuntimePath,
      };
    });
  const [first = { importer: undefined, runtimePath: defaultRuntimePath }, ...others] = found;
  const isSame = (one: PyxisOptions): boolean =>
    one.importer === first.importer && one.runtimePath === first.runtimePath;
  return others.every(isSame) ? first : undefined;
}

const isPyxis = (path: string): boolean => /(?:^|[/_])pyxis[^/]*\.so$/.test(path);
