/** unique.ts: no two names alike, within a process and between two. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import process from 'node:process';
import { pathToFileURL } from 'node:url';
import { uniqueHex } from '../../../lib/system/unique.ts';
import { assert, suite } from '../../helpers/suite.ts';

const test = suite('uniqueHex()');

test('is hex digits, another each time', () => {
  const names = Array.from({ length: 10_000 }, uniqueHex);
  for (const name of names) assert.match(name, /^[0-9a-f]+$/);
  assert.is(new Set(names).size, names.length);
});

test('is another in another process', () => {
  const module = pathToFileURL(join(import.meta.dirname, '../../../lib/system/unique.ts')).href;
  const program = `import { uniqueHex } from ${JSON.stringify(module)}; console.log(uniqueHex());`;
  const [first, second] = [1, 2].map(() => {
    const { status, stdout, stderr } = spawnSync(
      process.execPath,
      ['--input-type=module-typescript', '--eval', program],
      {
        encoding: 'utf8',
      },
    );
    assert.is(status, 0, stderr);
    return stdout.trim();
  });
  assert.match(first ?? '', /^[0-9a-f]+$/);
  assert.is.not(first, second);
});

test.run();
