/** shell-deletions.ts: what scripts delete, read from their text. */
import { assignmentsOf, findDeletions } from '../../../admin/checks/shell-deletions.ts';
import { forAll } from '../../helpers/property.ts';
import { assert, suite } from '../../helpers/suite.ts';

const test = suite('findDeletions()');

const entry = '/raid/data/1000/.pyxis_cache_u1000_0123456789abcdef/usr/bin/sh';
const linesOf = (script: string, known: readonly (readonly [string, readonly string[]])[] = []): number[] =>
  findDeletions(script, [entry], new Map(known)).map(({ line }) => line);

test('deletions that meet an entry are found, however the path is spelled', () => {
  for (const [script, line] of [
    ['rm -rf /raid/data', 1],
    ['rm -r --force -- "/raid/data/"', 1],
    ['sudo /bin/rm -fR /raid/data/*', 1],
    ['set -e\nrm -rf "/raid/data/$SLURM_JOB_UID"', 2],
    ['rm -rf /raid/data/1000/.pyxis_*', 1],
    ['data=/raid/data\nif true; then rm -rf ${data}/1000; fi', 2],
    ['BASE=/raid\nexport DATA="$BASE/data"\n[ -d x ] || rm -rf "$DATA"', 3],
    ['d="$(sudo -u "$SLURM_JOB_USER" sh -c \'echo "/raid/data/$(id -u)"\')"\nrm -rf "$d"', 2],
    ['d=`echo /raid/data/$UID`\nrm -rf $d', 2],
    ['for dir in /tmp /raid; do\n  find "$dir" -xdev -atime +10 -delete\ndone', 2],
    ['find /raid -mindepth 1 \\\n  -mtime +7 -print0 | xargs -0 rm -rf', 1],
    ["find /raid/data -maxdepth 2 -name '.pyxis*' -exec rm -rf {} \\;", 1],
    ['find /raid/data -empty -delete', 1],
    ['rm -rf $(find /raid/data -mindepth 2 -mtime +3)', 1],
    ['0 3 * * * root /usr/sbin/tmpwatch -umc 30d /raid', 1],
    ['tmpreaper 7d /raid/.', 1],
  ] as const)
    assert.equal(linesOf(script), [line], script);
});

test('what leaves entries alone is not complained about', () => {
  for (const script of [
    '# rm -rf /raid/data',
    'rm -f /raid/data/1000/x',
    'rm -rf /raid/other /tmp/data',
    'rm -rf /raid/data/1000/*',
    'rm -rf /raid/data/1000/pyxis_*',
    'rm -rf /raid/data/1000/$SLURM_JOB_ID',
    "find /raid/data -mtime +7 -name 'pyxis_*' -exec rm -rf {} +",
    'find /raid -mtime +7',
    'find /raid -path /raid/data -prune -o -mtime +7 -delete',
    "find /raid ! -path '/raid/data/*' -mtime +7 -delete",
    'find /raid -maxdepth 1 -mtime +7 -delete',
    'rm -rf "$UNKNOWN"',
    'rm -rf "$A/$B"',
    'rm -rf "$TMPDIR"/*',
    'echo rmdir /raid/data',
    'enroot remove -f $(enroot list)',
  ])
    assert.equal(linesOf(script), [], script);
});

test('variables of the environment, and of files that are taken in, count', () => {
  assert.equal(linesOf('rm -rf "$ENROOT_DATA_PATH"', [['ENROOT_DATA_PATH', ['/raid/data/1000']]]), [1]);
  const known = [...assignmentsOf("DIRS='/tmp/. /raid/.'\n")];
  assert.equal(linesOf('tmpreaper 7d $DIRS', known), [1]);
});

test('no text makes it fail or hang', () => {
  forAll(500, (random) => {
    const script = random.mutation(
      'd="$(echo /raid/$(id -u))"; for x in a b; do find $d ${x} -name "[a" -delete; done',
    );
    for (const { line } of findDeletions(script, [entry])) assert.ok(line >= 1);
    findDeletions(random.hostileText(300), [entry]);
  });
});

test.run();
