/**
 * plugstack.conf (spank(7)): which SPANK plugins are loaded, with what arguments.
 *
 *   required /usr/lib/slurm/spank_pyxis.so container_scope=job
 *   include /etc/slurm/plugstack.conf.d/*
 */

export type PlugstackLine =
  | { readonly kind: 'plugin'; readonly path: string; readonly parameters: readonly string[] }
  | { readonly kind: 'include'; readonly pattern: string };

/** Lines that are neither are passed over, as Slurm does. */
export function parsePlugstack(text: string): PlugstackLine[] {
  return text.split('\n').flatMap((line): PlugstackLine[] => {
    const [word = '', target, ...parameters] = line.replace(/#.*$/, '').trim().split(/\s+/);
    if (target === undefined) return [];
    if (/^(?:required|optional)$/i.test(word)) return [{ kind: 'plugin', path: target, parameters }];
    return /^include$/i.test(word) ? [{ kind: 'include', pattern: target }] : [];
  });
}
