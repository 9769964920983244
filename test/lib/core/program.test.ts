/** program.ts: which program one executable runs as, however it was installed. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { projectRoot } from '../../../build/source-files.ts';
import { adminCommands, chooseProgram, type Program } from '../../../lib/core/program.ts';
import { assert, suite } from '../../helpers/suite.ts';

const test = suite('chooseProgram()');

function choose(words: string, context?: string): Program {
  const [calledBy = '', ...parameters] = words.split(' ');
  return chooseProgram({ calledBy, parameters, context }).program;
}

test('a command decides before the context and the name', () => {
  for (const context of [undefined, 'prolog_slurmd', 'epilog_slurmd', 'prolog_slurmctld'])
    for (const name of ['container-cache', 'prolog', '50-container-cache', 'epilog']) {
      assert.is(choose(`${name} prolog`, context), 'prolog');
      assert.is(choose(`${name} epilog`, context), 'epilog');
      assert.is(choose(`${name} acquire /x.sqsh`, context), 'acquire');
      assert.is(choose(`${name} acquire --help`, context), 'admin');
      for (const word of [...adminCommands, '--help', '--version', '--get-yargs-completions'])
        assert.is(choose(`${name} ${word} x`, context), 'admin');
    }
});

test('what the program is given lacks the command only where that named the program', () => {
  const rest = (...parameters: string[]): readonly string[] =>
    chooseProgram({ calledBy: 'container-cache', parameters, context: undefined }).parameters;
  assert.equal(rest('acquire', '--existing', '/x.sqsh'), ['--existing', '/x.sqsh']);
  assert.equal(rest('prolog', 'x'), ['x']);
  assert.equal(rest('gc', '--dry-run'), ['gc', '--dry-run']);
});

test("without a command, slurmd's context decides before the name", () => {
  for (const name of ['container-cache', '50-container-cache', 'epilog', 'prolog', 'x', '']) {
    assert.is(choose(name, 'prolog_slurmd'), 'prolog');
    assert.is(choose(name, 'epilog_slurmd'), 'epilog');
  }
});

test('words that nobody knows cannot make a Prolog exit with a usage error', () => {
  for (const words of ['container-cache statsu', 'x -v', 'epilog 17', 'x --', 'x --helpp'])
    assert.is(choose(words, 'prolog_slurmd'), 'prolog');
});

test('where Slurm runs us and we have nothing to do, nothing is done', () => {
  const sides = ['slurmctld', 'task', 'srun', 'of_a_version_to_come'];
  for (const side of sides)
    for (const name of ['prolog', 'epilog', 'container-cache'])
      for (const kind of ['prolog', 'epilog']) assert.is(choose(name, `${kind}_${side}`), 'idle');
});

test('without a command and a context the name decides', () => {
  for (const name of ['prolog', '50-prolog', 'prolog.sh', 'container-cache-prolog', 'Prolog', 'prolog 17'])
    assert.is(choose(name), 'prolog');
  for (const name of ['epilog', '10_epilog.d', 'site-epilog']) assert.is(choose(name), 'epilog');
  for (const name of ['container-cache', 'taskprolog', 'prologue', '50-container-cache', 'x', 'x gd', ''])
    assert.is(choose(name), 'admin');
  assert.is(choose('container-cache', ''), 'admin');
});

test('knows every command of the admin', () => {
  const source = readFileSync(join(projectRoot, 'admin/cli.ts'), 'utf8');
  const offered = [...source.matchAll(/\.(?:command|completion)\(\s*'([\w-]+)/g)].map(([, word]) => word);
  assert.equal(offered.sort(), [...adminCommands].sort());
});

test.run();
