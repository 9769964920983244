/** slurm-conf.ts on files as administrators write them. */
import {
  batchStartTimeoutSeconds,
  parseScontrolConfig,
  prologTimeoutSeconds,
  readSlurmConf,
  runsAtAllocation,
  runsSerially,
  taskPrologNeedsLibraries,
  type SlurmConf,
} from '../../../lib/core/slurm-conf.ts';
import { assert, suite } from '../../helpers/suite.ts';

/** Reads /etc/slurm/slurm.conf of these files. */
function read(main: string, others: Readonly<Record<string, string>> = {}): Promise<SlurmConf> {
  const files: Record<string, string> = { '/etc/slurm/slurm.conf': main, ...others };
  return readSlurmConf('/etc/slurm/slurm.conf', (path) => Promise.resolve(files[path]));
}

const lines = suite('readSlurmConf(): lines');

lines('keys are found whatever their case, the last value counts, all are there', async () => {
  const conf = await read('PROLOG=/a\nprolog = /b\n');
  assert.equal(conf.all('Prolog'), ['/a', '/b']);
  assert.is(conf.last('Prolog'), '/b');
  assert.is(conf.last('Epilog'), undefined);
});

lines('comments end a line, unless a backslash is before the mark', async () => {
  const conf = await read('#Prolog=/a\nEpilog=/e # Prolog=/b\nTaskProlog=/c\\#d\n');
  assert.is(conf.last('Prolog'), undefined);
  assert.is(conf.last('Epilog'), '/e');
  assert.is(conf.last('TaskProlog'), '/c#d');
});

lines('a backslash at the end continues, two do not, and one in a comment neither', async () => {
  const conf = await read('PrologFlags=\\\nAlloc,\\  \nSerial\nA=x\\\\\nB=y # z \\\nC=w');
  assert.is(conf.last('PrologFlags'), 'Alloc,Serial');
  assert.is(conf.last('A'), 'x\\');
  assert.is(conf.last('B'), 'y');
  assert.is(conf.last('C'), 'w');
});

lines('several pairs stand on a line, values with blanks in quotes', async () => {
  const conf = await read('Prolog="/a b/c" Epilog=/d  PrologFlags=Alloc');
  assert.is(conf.last('Prolog'), '/a b/c');
  assert.is(conf.last('Epilog'), '/d');
  assert.is(conf.last('PrologFlags'), 'Alloc');
});

lines('what a node or partition says of itself is not the cluster’s', async () => {
  const conf = await read('NodeName=n1 Prolog=/a\n PartitionName=p Epilog=/b\n');
  assert.equal([conf.last('Prolog'), conf.last('Epilog')], [undefined, undefined]);
});

lines.run();

const includes = suite('readSlurmConf(): Include');

includes(
  'files are read in their place, beside slurm.conf unless absolute, named by the cluster',
  async () => {
    const conf = await read('ClusterName=Big\nProlog=/a\nInclude sub/one.conf\ninclude /x/%c.conf\n', {
      '/etc/slurm/sub/one.conf': 'Prolog=/b\nInclude two.conf',
      '/etc/slurm/two.conf': 'Prolog=/c',
      '/x/big.conf': 'Prolog=/d',
    });
    assert.equal(conf.all('Prolog'), ['/a', '/b', '/c', '/d']);
    assert.equal(conf.problems, []);
  },
);

includes('a file that is not there is a problem, the rest is read', async () => {
  const conf = await read('Include none.conf\nProlog=/a');
  assert.equal(conf.problems, ['/etc/slurm/none.conf cannot be read']);
  assert.is(conf.last('Prolog'), '/a');
});

includes('a file that includes itself has an end', async () => {
  const conf = await read('Include slurm.conf\nProlog=/a');
  assert.equal(conf.problems, ['/etc/slurm/slurm.conf is included by itself']);
});

includes('Includes is a key, not the directive', async () => {
  const conf = await read('Includes=x');
  assert.equal([conf.last('Includes'), conf.problems], ['x', []]);
});

includes.run();

const scontrol = suite('parseScontrolConfig()');

scontrol('has the values slurmctld has, lists too, and not what is not set', () => {
  const conf = parseScontrolConfig(`\
Configuration data as of 2026-01-01T00:00:00
BatchStartTimeout       = 10 sec
Prolog[0]               = /etc/slurm/prolog.d/*
Prolog[1]               = /b
Epilog                  = (null)
TaskProlog              =
PrologFlags             = Alloc,Contain
`);
  assert.equal(conf.all('Prolog'), ['/etc/slurm/prolog.d/*', '/b']);
  assert.equal([conf.last('Epilog'), conf.last('TaskProlog')], [undefined, undefined]);
  assert.is(batchStartTimeoutSeconds(conf), 10);
  assert.ok(runsAtAllocation(conf.last('PrologFlags')));
});

scontrol.run();

const meanings = suite('what values mean');

const confOf = (values: Readonly<Record<string, string>>): Pick<SlurmConf, 'last'> => ({
  last: (key) => values[key],
});

meanings('the Prolog runs at allocation by Alloc and by what implies it, in any case', () => {
  for (const flags of ['Alloc', 'alloc', 'Serial,ALLOC', 'Contain', 'X11', 'RunInJob', 'ForceRequeueOnFail'])
    assert.ok(runsAtAllocation(flags), flags);
  for (const flags of [undefined, '', 'NoHold', 'Serial', 'None']) assert.not(runsAtAllocation(flags), flags);
});

meanings('Serial makes Prologs wait for each other', () => {
  assert.ok(runsSerially('Alloc,serial'));
  assert.not(runsSerially('Alloc'));
});

meanings('a Prolog has a time limit if one is set, and PrologTimeout is the newer word', () => {
  assert.is(prologTimeoutSeconds(confOf({})), undefined);
  assert.is(prologTimeoutSeconds(confOf({ PrologEpilogTimeout: '65534' })), undefined);
  assert.is(prologTimeoutSeconds(confOf({ PrologEpilogTimeout: 'INFINITE' })), undefined);
  assert.is(prologTimeoutSeconds(confOf({ PrologEpilogTimeout: '60' })), 60);
  assert.is(prologTimeoutSeconds(confOf({ PrologEpilogTimeout: '60', PrologTimeout: '90' })), 90);
});

meanings('BatchStartTimeout is 10 seconds unless it is set', () => {
  assert.is(batchStartTimeoutSeconds(confOf({})), 10);
  assert.is(batchStartTimeoutSeconds(confOf({ BatchStartTimeout: '600' })), 600);
});

meanings('a TaskProlog in a container lacks slurmstepd’s libraries from 24.11 until before 25.11', () => {
  assert.equal(
    ['22.05.8', '24.05.3', '24.11.0', '25.05.2', '25.11.0', '26.05.3'].map((version) =>
      taskPrologNeedsLibraries(version.split('.').map(Number)),
    ),
    [false, false, true, true, false, false],
  );
});

meanings.run();
