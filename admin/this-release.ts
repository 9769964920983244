/**
 * Which release this is. The build puts the version and the commit of build/release.ts in the place of
 * package.json.
 */
import packageJson from '../package.json' with { type: 'json' };

export const release: { readonly version: string; readonly commit?: string } = packageJson;

/** What `--version` prints. */
export const releaseText = `${release.version} (commit ${release.commit ?? 'not known'})`;
