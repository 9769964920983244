/** The project's own files: what the checks look at and what a build depends on. */
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { join, relative } from 'node:path';

export const projectRoot = join(import.meta.dirname, '..');

/** Made by tools, not by hand. */
const FOREIGN_DIRECTORIES = new Set(['node_modules', 'dist', '.git']);

/** Every file and symlink below `directory` (default: the project), relative to the project, in name order. */
export function sourceFiles(directory = projectRoot): string[] {
  const files: string[] = [];
  const pending = [directory];
  for (let current = pending.pop(); current !== undefined; current = pending.pop()) {
    for (const item of readdirSync(current, { withFileTypes: true })) {
      const path = join(current, item.name);
      if (item.isDirectory()) {
        if (!FOREIGN_DIRECTORIES.has(item.name)) pending.push(path);
      } else if (item.isFile() || item.isSymbolicLink()) {
        files.push(relative(projectRoot, path));
      }
    }
  }
  return files.sort();
}

const SHELL_INTERPRETER = /^#!\s*\/(?:usr\/)?bin\/(?:env\s+)?(?:ba|da)?sh\b/;

/** Shell scripts, told by their first line or their name. */
export function shellScripts(files = sourceFiles()): string[] {
  return files.filter((file) => {
    if (/\.(?:sh|bash)$/.test(file)) return true;
    if (/\.[a-z]+$/.test(file)) return false;
    return SHELL_INTERPRETER.test(readFileSync(join(projectRoot, file), 'latin1').slice(0, 80));
  });
}

/** Of our addon. */
export const cSources = (): string[] => sourceFiles().filter((file) => /^lib\/.*\.c$/.test(file));

/** A digest over names and contents; `files` are relative to the project. */
export function digestOfFiles(files: readonly string[]): string {
  const digest = createHash('sha256');
  for (const file of files) {
    const path = join(projectRoot, file);
    let content: Buffer | string;
    try {
      content = readFileSync(path);
    } catch (error) {
      // A dangling symlink is its target.
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
      content = readlinkSync(path);
    }
    digest.update(`${file}\0${content.length}\0`).update(content);
  }
  return digest.digest('hex');
}
