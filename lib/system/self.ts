/** How this program starts itself again. */
import { isSea } from 'node:sea';
import process from 'node:process';

/** @returns file and first arguments of the admin command, as bundled or under the bare runtime */
export function selfCommand(): { readonly file: string; readonly args: readonly string[] } {
  if (isSea()) return { file: process.execPath, args: [] };
  return { file: process.execPath, args: [new URL('../../main.ts', import.meta.url).pathname] };
}
