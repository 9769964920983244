/** job.ts: what slurmd tells, and what a user makes of it. */
import { JobFault } from '../../../lib/core/faults.ts';
import { readJob, type Environment } from '../../../lib/core/job.ts';
import { forAll } from '../../helpers/property.ts';
import { assert, suite } from '../../helpers/suite.ts';

/** As slurmd 22.05 and 26.05 set it for a Prolog. */
const slurmd: Environment = {
  SLURM_JOB_ID: '4711',
  SLURM_JOB_UID: '1000',
  SLURM_JOB_GID: '100',
  SLURM_JOB_USER: 'usera',
  SLURM_JOB_WORK_DIR: '/home/usera',
  SLURM_SCRIPT_CONTEXT: 'prolog_slurmd',
};
const option = (name: string): string => `SPANK__SLURM_SPANK_OPTION_pyxis_${name}`;

const test = suite('readJob()');

test('reads the job of a plain Slurm environment', () => {
  assert.equal(readJob(slurmd), {
    jobId: 4711,
    uid: 1000,
    gid: 100,
    userName: 'usera',
    workPath: '/home/usera',
    container: undefined,
  });
});

test('ids reach from the lowest to the highest that Linux and Slurm give', () => {
  const lowest = readJob({ ...slurmd, SLURM_JOB_ID: '1', SLURM_JOB_UID: '0', SLURM_JOB_GID: '0' });
  assert.equal([lowest.jobId, lowest.uid, lowest.gid], [1, 0, 0]);
  const all = { SLURM_JOB_ID: '4294967294', SLURM_JOB_UID: '4294967294', SLURM_JOB_GID: '4294967294' };
  const highest = readJob({ ...slurmd, ...all });
  assert.equal([highest.jobId, highest.uid, highest.gid], [4294967294, 4294967294, 4294967294]);
});

test('an id that is missing or malformed is named with what was found and what is wanted', () => {
  const wrong = [
    '',
    ' 1',
    '1 ',
    '-1',
    '+1',
    '1.0',
    '0x10',
    '1e3',
    '4294967295',
    '99999999999',
    '1\n',
    'root',
    '١',
  ];
  for (const name of ['SLURM_JOB_ID', 'SLURM_JOB_UID', 'SLURM_JOB_GID']) {
    const lowest = name === 'SLURM_JOB_ID' ? 1 : 0;
    const tail = `, want a number from ${lowest} to 4294967294; slurmd sets it for Prolog and Epilog`;
    for (const value of [undefined, ...wrong]) {
      const fault = assert.throws(() => readJob({ ...slurmd, [name]: value }), JobFault);
      assert.is(fault.code, 'BAD_JOB');
      const found = value === undefined ? 'not set' : JSON.stringify(value);
      assert.is(fault.message, `Cannot read the job: ${name} is ${found}${tail}`);
    }
  }
  assert.throws(() => readJob({ ...slurmd, SLURM_JOB_ID: '0' }), JobFault, /SLURM_JOB_ID is "0"/);
});

test('an id that is very long is not shown at full length', () => {
  const fault = assert.throws(() => readJob({ ...slurmd, SLURM_JOB_ID: '1'.repeat(100_000) }), JobFault);
  assert.ok(fault.message.length < 200);
});

test('a working directory counts if it is absolute', () => {
  for (const path of [undefined, '', '.', 'home/usera', '~', ' /home']) {
    assert.is(readJob({ ...slurmd, SLURM_JOB_WORK_DIR: path }).workPath, undefined);
  }
  assert.is(readJob({ ...slurmd, SLURM_JOB_WORK_DIR: '/' }).workPath, '/');
});

test('a user without a name is one all the same', () => {
  assert.is(readJob({ ...slurmd, SLURM_JOB_USER: undefined }).userName, '');
});

test('an image is taken as the user wrote it', () => {
  for (const image of ['/x/y.sqsh', ' nvcr.io#a/b:1 ', '-x', '\u001b[2J', '0', '$(id)', "';--"]) {
    assert.equal(readJob({ ...slurmd, [option('container_image')]: image }).container, {
      image,
      hasName: false,
    });
  }
});

test('an option without a value, empty or "(null)", was not given', () => {
  for (const nothing of ['', '(null)', undefined]) {
    assert.is(readJob({ ...slurmd, [option('container_image')]: nothing }).container, undefined);
    const container = readJob({
      ...slurmd,
      [option('container_image')]: 'ubuntu',
      [option('container_name')]: nothing,
    }).container;
    assert.equal(container, { image: 'ubuntu', hasName: false });
  }
});

test('a name is seen, whatever its text', () => {
  const image = { ...slurmd, [option('container_image')]: 'ubuntu' };
  assert.is(readJob({ ...image, [option('container_name')]: '0' }).container?.hasName, true);
});

test('a name or a file to save to makes no container without an image', () => {
  const environment = { ...slurmd, [option('container_name')]: 'x', [option('container_save')]: '/x' };
  assert.is(readJob(environment).container, undefined);
});

test('only the options of pyxis count, under the very names that Slurm gives them', () => {
  for (const name of [
    'SPANK__SLURM_SPANK_OPTION_other_container_image',
    'SPANK_SLURM_SPANK_OPTION_pyxis_container_image',
    '_SLURM_SPANK_OPTION_pyxis_container_image',
    'SPANK__SLURM_SPANK_OPTION_pyxis_container_images',
    'PYXIS_CONTAINER_IMAGE',
  ]) {
    assert.is(readJob({ ...slurmd, [name]: 'ubuntu' }).container, undefined);
  }
});

test('no user variable changes who the job is, or makes it unreadable', () => {
  const names = [
    ...['container_image', 'container_name', 'container_save', 'container_writable'].map(option),
    ...['SPANK_SLURM_JOB_ID', 'SPANK_SLURM_JOB_UID', 'SLURM_JOB_USER', 'SLURM_JOB_WORK_DIR', 'SPANK_'],
  ] as [string, ...string[]];
  forAll(300, (random) => {
    const hostile = Object.fromEntries(
      Array.from({ length: random.integer(0, 8) }, () => [random.pick(names), random.hostileText(80)]),
    );
    const job = readJob({ ...slurmd, ...hostile });
    assert.equal([job.jobId, job.uid, job.gid], [4711, 1000, 100]);
    assert.ok(job.workPath === undefined || job.workPath.startsWith('/'));
    assert.is(
      job.container?.image ?? '',
      (hostile[option('container_image')] ?? '').replace(/^\(null\)$/, ''),
    );
  });
});

test.run();
