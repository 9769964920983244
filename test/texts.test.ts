/** The texts for admins: complete as to codes and keys, and no table leaves a cell empty. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { projectRoot, sourceFiles } from '../build/source-files.ts';
import { faultCodes } from '../lib/core/faults.ts';
import { settingKeys } from '../lib/core/settings.ts';
import { assert, suite } from './helpers/suite.ts';

const textOf = (path: string): string => readFileSync(join(projectRoot, path), 'utf8');
const texts = sourceFiles().filter((path) => path.endsWith('.md'));

/** Rows of the tables, without their heads: of each row its trimmed cells. */
function rowsOf(text: string): string[][] {
  const lines = text.replaceAll(/```.*?```/gs, '').split('\n');
  const isRow = (line: string | undefined): boolean => line?.startsWith('|') === true;
  const isRule = (line: string | undefined): boolean => /^\|(?:-+\|)+$/.test(line ?? '');
  return lines.flatMap((line, index) => {
    if (!isRow(line) || isRule(line) || isRule(lines[index + 1])) return [];
    const inner = line.replace(/^\|/, '').replace(/\|\s*$/, '');
    return [inner.split(/(?<!\\)\|/).map((cell) => cell.trim())];
  });
}

/** The part of a text between a heading and the next of its rank or of a higher one. */
function sectionOf(text: string, heading: string): string {
  const lines = text.split('\n');
  const start = lines.indexOf(heading);
  if (start < 0) throw new Error(`There is no heading "${heading}"`);
  const rank = heading.indexOf(' ');
  const end = lines.findIndex((line, index) => index > start && new RegExp(`^#{1,${rank}} `).test(line));
  return lines.slice(start, end < 0 ? undefined : end).join('\n');
}

const test = suite('texts');

test('rows of tables are found, and an empty cell is one', () => {
  const text = '| a | b |\n|---|---|\n| `x\\|y` | |\n\n```\n| no | row |\n```\n';
  assert.equal(rowsOf(text), [['`x\\|y`', '']]);
  assert.is(sectionOf('# A\n\n## B\nb\n## C\nc', '## B'), '## B\nb');
});

test('OPERATIONS.md says of every code what it means and what to do, once', () => {
  const rows = rowsOf(sectionOf(textOf('OPERATIONS.md'), '# Codes'));
  for (const code of faultCodes) {
    const found = rows.filter(([first]) => first === `\`${code}\``);
    assert.is(found.length, 1, code);
    assert.is(found[0]?.length, 3, code);
  }
});

test('no table for admins and users has an empty cell', () => {
  for (const path of ['README.md', 'OPERATIONS.md', 'docs/configuration.md', 'docs/users.md'])
    assert.equal(
      rowsOf(textOf(path)).filter((cells) => cells.includes('')),
      [],
      path,
    );
});

test('docs/configuration.md has every key, and no other', () => {
  const keys = rowsOf(textOf('docs/configuration.md')).map(([key = '']) => key.replaceAll('`', ''));
  assert.equal(keys.sort(), [...settingKeys].sort());
});

test('links to a heading lead to one', () => {
  const anchors = new Map(
    texts.map((path) => [
      path,
      [...textOf(path).matchAll(/^#+ (.+)$/gm)].map(([, title = '']) =>
        title
          .toLowerCase()
          .replaceAll(/[^\w -]/g, '')
          .replaceAll(' ', '-'),
      ),
    ]),
  );
  const links = texts.flatMap((path) =>
    [...textOf(path).matchAll(/\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)/g)].map(([, to = '', anchor = '']) => ({
      from: path,
      to: to === '' ? path : join(path, '..', to),
      anchor,
    })),
  );
  assert.ok(links.length > 10, `${links.length} links`);
  assert.equal(
    links.filter(({ to, anchor }) => anchors.get(to)?.includes(anchor) !== true),
    [],
  );
});

test.run();
