/** The man pages: well-formed, and complete as to commands, options and keys. */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { build, executable } from '../../build/build.ts';
import { manPages } from '../../build/package-files.ts';
import { projectRoot } from '../../build/source-files.ts';
import { settingKeys } from '../../lib/core/settings.ts';
import { assert, suite } from '../helpers/suite.ts';

const pathOf = (page: string): string => join(projectRoot, 'man', page);
const sourceOf = (page: string): string => readFileSync(pathOf(page), 'utf8');
const mandoc = spawnSync('mandoc', ['-h']).error === undefined ? undefined : 'needs mandoc';

const test = suite('man pages');

test.unless(mandoc, 'mandoc finds nothing wrong with them', () => {
  for (const page of manPages) {
    const { stdout } = spawnSync('mandoc', ['-T', 'lint', '-W', 'warning', pathOf(page)], {
      encoding: 'utf8',
    });
    assert.is(stdout, '', page);
  }
});

test('there is one for the command, each program, and the configuration', () => {
  assert.equal([...manPages].sort(), [
    'container-cache-enroot.8',
    'container-cache-epilog.8',
    'container-cache-prolog.8',
    'container-cache-taskprolog.8',
    'container-cache.8',
    'container-cache.conf.5',
  ]);
});

test('what they refer to is there', () => {
  for (const page of manPages)
    for (const [, name, section] of sourceOf(page).matchAll(/^\.Xr (container-cache\S*) (\d)/gm))
      assert.ok(manPages.includes(`${name}.${section}`), `${page}: ${name}(${section})`);
});

test('container-cache(8) has every command and every option', async () => {
  await build();
  const complete = (...words: string[]): string[] =>
    spawnSync(executable, ['--get-yargs-completions', 'container-cache', ...words], {
      encoding: 'utf8',
      env: { ...process.env, SHELL: '/bin/bash' },
    })
      .stdout.trim()
      .split('\n');
  const page = sourceOf('container-cache.8');
  const commands = complete('').filter((word) => /^[a-z]+$/.test(word));
  assert.ok(commands.length >= 11, commands.join(' '));
  for (const command of commands) {
    assert.match(page, new RegExp(`^\\.Cm ${command}$`, 'm'));
    for (const option of complete(command, '--'))
      assert.ok(page.includes(`Fl \\${option.slice(1)}`), `${command} ${option}`);
  }
});

test('container-cache.conf(5) has every key, and no other', () => {
  const keys = [...sourceOf('container-cache.conf.5').matchAll(/^\.It Ic (\w+) Ns =/gm)].map(
    ([, key]) => key,
  );
  assert.equal(keys.sort(), [...settingKeys].sort());
});

test.run();
