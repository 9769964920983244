/** The project's own files: what the checks look at and what a build depends on. */
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { join, relative } from 'node:path';

export const projectRoot = join(import.meta.dirname, '..');

const ignored = readFileSync(join(projectRoot, '.gitignore'), 'utf8');
/** Directories of the project that tools make: git's own, and those that .gitignore names. */
const FOREIGN_DIRECTORIES = new Set([
  '.git',
  ...Array.from(ignored.matchAll(/^\/(.+)\/$/gm), ([, name]) => name),
]);

/** Every file and symlink of the project, relative to it, in name order. */
export function sourceFiles(): string[] {
  const files: string[] = [];
  const pending = [projectRoot];
  for (let current = pending.pop(); current !== undefined; current = pending.pop()) {
    for (const item of readdirSync(current, { withFileTypes: true })) {
      const path = join(current, item.name);
      if (item.isDirectory()) {
        if (!FOREIGN_DIRECTORIES.has(relative(projectRoot, path))) pending.push(path);
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
