/** disk-usage.ts against df(1), on a small ext4 with blocks reserved for root. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { blocksUsedPercent, inodesUsedPercent } from '../../../lib/core/gc-plan.ts';
import { readUsage } from '../../../lib/system/disk-usage.ts';
import { makeExt4, unlessExt4 } from '../../helpers/filesystem.ts';
import { command, enterPrivateMachine } from '../../helpers/private-machine.ts';
import { assert, suite } from '../../helpers/suite.ts';

enterPrivateMachine();
const test = suite('readUsage()', { skip: unlessExt4() });

/** What df prints of a filesystem, by column. */
function df(path: string, columns: string): number[] {
  const [, numbers = ''] = command('df', '--block-size=1', `--output=${columns}`, path).trim().split('\n');
  return numbers
    .trim()
    .split(/\s+/)
    .map((text) => Number.parseInt(text, 10));
}

test('tells what df tells', () => {
  using filesystem = makeExt4({ mebibytes: 16, inodes: 128 });
  const { path } = filesystem;
  mkdirSync(join(path, 'd'));
  writeFileSync(join(path, 'd/f'), Buffer.alloc(3_000_000, 1));
  command('sync', '--file-system', path);
  const usage = readUsage(path);
  const { totalBytes, freeBytes, availableBytes, totalInodes, freeInodes } = usage;
  assert.equal(
    [totalBytes, totalBytes - freeBytes, availableBytes, totalInodes, totalInodes - freeInodes, freeInodes],
    df(path, 'size,used,avail,itotal,iused,iavail'),
  );
  // df rounds up.
  assert.equal(
    [Math.ceil(blocksUsedPercent(usage)), Math.ceil(inodesUsedPercent(usage))],
    df(path, 'pcent,ipcent'),
  );
});

test('what is reserved for root is free, but not available', () => {
  using filesystem = makeExt4({ mebibytes: 16, inodes: 128 });
  const { freeBytes, availableBytes, totalBytes } = readUsage(filesystem.path);
  assert.ok(freeBytes > availableBytes);
  assert.ok(freeBytes < totalBytes);
});

test('any path on the filesystem will do', () => {
  using filesystem = makeExt4({ mebibytes: 4, inodes: 64 });
  mkdirSync(join(filesystem.path, 'd'));
  assert.equal(readUsage(join(filesystem.path, 'd')), readUsage(filesystem.path));
});

test('what is not there is an error', () => {
  assert.throws(() => readUsage('/nonexistent'), Error, /ENOENT/);
});

test.run();
