/**
 * The packages, on a Debian of their own: an overlay on this machine's, so that what dpkg and rpm do stays
 * there. Installed, upgraded while a job holds an entry, and removed.
 */
// test: timeout 400 s
import { spawnSync, type SpawnSyncReturns } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  writeFileSync,
  appendFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { build, executable } from '../../build/build.ts';
import { packagedFiles, packagedLinks } from '../../build/package-files.ts';
import { makeOtherFiles, packFiles } from '../../build/package.ts';
import { projectRoot } from '../../build/source-files.ts';
import { isAlive } from '../helpers/node.ts';
import { alice, enterPrivateMachine, machineRoot, unlessPrivateMachine } from '../helpers/private-machine.ts';
import { makeImage } from '../helpers/squashfs-image.ts';
import { assert, suite } from '../helpers/suite.ts';

enterPrivateMachine();

const versions = ['1.0.0~dev1', '1.0.0'] as const;
const atSeconds = 1_700_000_000;
const isMissing = (tool: string): boolean => spawnSync(tool, ['--version']).status !== 0;
const missing = ['dpkg-deb', 'dpkg', 'rpmbuild', 'rpm'].filter(isMissing);

interface State {
  directory: string;
  packages: Readonly<Record<string, readonly string[]>>;
}

const test = suite<State>('packages', {
  skip: unlessPrivateMachine ?? (missing.length > 0 ? `needs ${missing.join(', ')}` : undefined),
  state: { directory: '', packages: {} },
});

const made = (directory: string): string => join(directory, 'made');

test.before(async (state) => {
  await build();
  state.directory = mkdtempSync(join(tmpdir(), 'packages-'));
  mkdirSync(made(state.directory));
  copyFileSync(executable, join(made(state.directory), 'container-cache'));
  makeOtherFiles(made(state.directory), ['node_modules/yargs/index.mjs', 'main.ts']);
  state.packages = Object.fromEntries(
    versions.map((version) => [
      version,
      packFiles(join(state.directory, version), made(state.directory), { version, atSeconds }, [
        'deb',
        'rpm',
      ]),
    ]),
  );
});
test.after(({ directory }) => {
  if (directory !== '') rmSync(directory, { recursive: true });
});

function packageOf({ packages }: State, version: string, kind: string): string {
  const path = packages[version]?.find((one) => one.endsWith(kind));
  if (path === undefined) throw new Error(`no ${kind} of ${version}`);
  return path;
}

/** A machine for a package, and what may be done on it. */
class Machine {
  readonly #root: string;

  constructor(name: string) {
    const top = join(machineRoot, name);
    this.#root = join(top, 'root');
    for (const directory of [top, this.#root, join(top, 'upper'), join(top, 'work')]) mkdirSync(directory);
    const layers = `lowerdir=/,upperdir=${top}/upper,workdir=${top}/work`;
    mount('--types', 'overlay', '--options', layers, 'overlay', this.#root);
    mount('--types', 'proc', 'proc', this.path('/proc'));
    mount('--bind', '/dev', this.path('/dev'));
    for (const directory of ['/run', '/srv']) mount('--types', 'tmpfs', 'tmpfs', this.path(directory));
    for (const path of ['/etc/slurm', '/etc/enroot', '/var/lib/container-cache'])
      rmSync(this.path(path), { recursive: true, force: true });
    for (const file of ['/etc/passwd', '/etc/group']) copyFileSync(file, this.path(file));
  }

  path(path: string): string {
    return join(this.#root, path);
  }

  run(file: string, ...args: readonly string[]): SpawnSyncReturns<string> {
    return this.runWith({}, file, ...args);
  }

  runWith(
    environment: Readonly<Record<string, string>>,
    file: string,
    ...args: readonly string[]
  ): SpawnSyncReturns<string> {
    return spawnSync('chroot', [this.#root, file, ...args], {
      encoding: 'utf8',
      env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', DEBIAN_FRONTEND: 'noninteractive', ...environment },
    });
  }

  /** Runs what must succeed. @returns all that it printed */
  must(file: string, ...args: readonly string[]): string {
    const { status, stdout, stderr } = this.run(file, ...args);
    assert.is(status, 0, `${file} ${args.join(' ')}: ${stdout}${stderr}`);
    return stdout + stderr;
  }

  program(name: 'prolog' | 'epilog', image: string): SpawnSyncReturns<string> {
    return this.runWith(
      {
        SLURM_JOB_ID: '7',
        SLURM_JOB_UID: String(alice.uid),
        SLURM_JOB_GID: String(alice.gid),
        SLURM_JOB_USER: alice.name,
        SPANK__SLURM_SPANK_OPTION_pyxis_container_image: image,
      },
      `/usr/libexec/container-cache/${name}`,
    );
  }

  /** Brings a file to where the machine sees it. */
  bring(path: string, name: string): string {
    copyFileSync(path, this.path(`/srv/${name}`));
    return `/srv/${name}`;
  }
}

function mount(...args: readonly string[]): void {
  const { status, stderr } = spawnSync('mount', args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`mount ${args.join(' ')}: ${stderr}`);
}

const configuration = '/etc/slurm/container-cache.conf';

interface Manager {
  readonly kind: '.deb' | '.rpm';
  readonly install: readonly string[];
  readonly upgrade: readonly string[];
  readonly remove: readonly string[];
  /** Where the manager can forget a package that it has removed. */
  readonly purge?: readonly string[];
  /** What is left of the configuration after a removal. */
  readonly leftConfiguration: string;
}

const managers: readonly Manager[] = [
  {
    kind: '.deb',
    install: ['dpkg', '--force-depends', '--install'],
    upgrade: ['dpkg', '--force-depends', '--force-confold', '--install'],
    remove: ['dpkg', '--remove', 'container-cache'],
    purge: ['dpkg', '--purge', 'container-cache'],
    leftConfiguration: configuration,
  },
  {
    kind: '.rpm',
    install: ['rpm', '--install', '--nodeps'],
    upgrade: ['rpm', '--upgrade', '--nodeps'],
    remove: ['rpm', '--erase', '--nodeps', 'container-cache'],
    leftConfiguration: `${configuration}.rpmsave`,
  },
];

for (const { kind, install, upgrade, remove, purge, leftConfiguration } of managers) {
  test(`${kind}: installed, upgraded under a job, and removed`, (state) => {
    const machine = new Machine(kind.slice(1));
    const [first, second] = versions.map((version) =>
      machine.bring(packageOf(state, version, kind), `${version}${kind}`),
    );

    const said = machine.must(install[0]!, ...install.slice(1), first!);
    assert.match(said, /set container_cache_data_path/);
    for (const { target, mode } of packagedFiles) {
      // Debian keeps documents of packages out of its containers; this machine may be one.
      if (target.startsWith('/usr/share/doc/') || target.startsWith('/usr/share/man/')) continue;
      const stats = statSync(machine.path(target));
      assert.equal([stats.mode & 0o7777, stats.uid, stats.gid], [mode, 0, 0], target);
    }
    for (const { target, leadsTo } of packagedLinks) assert.is(readlinkSync(machine.path(target)), leadsTo);
    assert.match(machine.must('container-cache', '--help'), /status/);
    if (existsSync('/usr/bin/systemd-analyze')) {
      const units = packagedFiles
        .map(({ target }) => target)
        .filter((target) => /\.(?:service|timer)$/.test(target));
      assert.is(machine.must('systemd-analyze', 'verify', '--man=no', ...units), '');
      // As the Prolog makes them where no package does.
      const modeOf = (path: string): number => statSync(machine.path(path)).mode & 0o7777;
      assert.equal([modeOf('/run/container-cache'), modeOf('/var/lib/container-cache')], [0o711, 0o755]);
    }

    appendFileSync(machine.path(configuration), 'container_cache_data_path=/srv/data\nlog_target=stderr\n');
    mkdirSync(machine.path('/srv/data'), { mode: 0o755 });
    const image = makeImage(join(state.directory, `image${kind}.sqsh`));
    const seen = machine.bring(image, 'image.sqsh');
    chmodSync(machine.path(seen), 0o644);
    assert.match(machine.program('prolog', seen).stderr, /result=created/);
    const { holder } = JSON.parse(readFileSync(machine.path('/run/container-cache/leases/7'), 'utf8')) as {
      holder: { pid: number };
    };
    assert.ok(isAlive(holder.pid));

    const saidByUpgrade = machine.must(upgrade[0]!, ...upgrade.slice(1), second!);
    assert.not.match(saidByUpgrade, /next steps|were kept|drains this node/);
    assert.match(
      readFileSync(machine.path(configuration), 'utf8'),
      /^container_cache_data_path=\/srv\/data$/m,
    );
    assert.ok(isAlive(holder.pid), 'the job has lost its lease by the upgrade');
    assert.match(machine.program('prolog', seen).stderr, /result=reused/);
    assert.match(machine.program('epilog', seen).stderr, /result=released/);
    assert.not.ok(isAlive(holder.pid));

    mkdirSync(machine.path('/etc/slurm'), { recursive: true });
    writeFileSync(machine.path('/etc/slurm/slurm.conf'), 'Prolog=/usr/libexec/container-cache/prolog\n');
    const saidAtLast = machine.must(remove[0]!, ...remove.slice(1));
    assert.match(saidAtLast, /slurm\.conf still names its Prolog or Epilog/);
    assert.match(saidAtLast, /rm -rf \/srv\/data\/\*\/\.pyxis_\*/);
    assert.not.ok(existsSync(machine.path('/usr/libexec/container-cache')));
    assert.not.ok(existsSync(machine.path('/usr/sbin/container-cache')));
    assert.ok(existsSync(machine.path(leftConfiguration)));
    const left = readdirSync(machine.path(`/srv/data/${alice.uid}`)).filter((name) =>
      /^\.pyxis_cache_u\d+_[0-9a-f]{16}$/.test(name),
    );
    assert.is(left.length, 1);

    const counters = machine.path('/var/lib/container-cache/events');
    assert.ok(existsSync(counters));
    if (purge === undefined) return;
    assert.not.match(machine.must(purge[0]!, ...purge.slice(1)), /were kept/);
    assert.equal(
      [existsSync(dirname(counters)), existsSync(machine.path(leftConfiguration))],
      [false, false],
    );
    assert.ok(existsSync(machine.path(`/srv/data/${alice.uid}/${left[0]!}`)));
  });
}

/** What is packed is of no matter here: a small program in the executable's place. */
function packSmall({ directory }: State, name: string): string[] {
  const files = join(directory, `${name}-made`);
  mkdirSync(files);
  writeFileSync(join(files, 'container-cache'), '#!/bin/sh\necho completion\n', { mode: 0o755 });
  makeOtherFiles(files, ['node_modules/yargs/index.mjs', 'main.ts']);
  return packFiles(join(directory, name), files, { version: '1.0.0', atSeconds });
}

test('packed twice they are the same to the byte, and SHA256SUMS says so', (state) => {
  const [first, second] = ['first', 'second'].map((name) => {
    assert.is(packSmall(state, name).length, 3);
    return readFileSync(join(state.directory, name, 'SHA256SUMS'), 'utf8');
  });
  assert.is(second, first);
  assert.is(first?.trim().split('\n').length, 4);
  const bill = JSON.parse(readFileSync(join(state.directory, 'first/sbom.spdx.json'), 'utf8')) as {
    documentNamespace: string;
    packages: readonly { name: string; versionInfo: string }[];
  };
  assert.match(bill.documentNamespace, /-1\.0\.0$/);
  const names = bill.packages.map(({ name }) => name);
  for (const name of ['fs-ext', 'yargs', `node-linux-${process.arch}`]) assert.ok(names.includes(name), name);
  assert.not(names.includes('eslint'));
  const cwd = join(state.directory, 'second');
  const { status, stderr } = spawnSync('sha256sum', ['--check', '--strict', 'SHA256SUMS'], {
    cwd,
    encoding: 'utf8',
  });
  assert.is(status, 0, stderr);
});

test('links between the texts lead to a file of the package', () => {
  const texts = packagedFiles.filter(({ target }) => target.endsWith('.md'));
  const targets = new Set(packagedFiles.map(({ target }) => target));
  const links = texts.flatMap(({ source, target }) =>
    [...readFileSync(join(projectRoot, source), 'utf8').matchAll(/\]\((?!https?:)([^)#]+)/g)].map(
      ([, link = '']) => ({ from: source, link, to: join(dirname(target), link) }),
    ),
  );
  assert.ok(links.length > 15, `${links.length} links`);
  assert.equal(
    links.filter(({ to }) => !targets.has(to)),
    [],
  );
});

test('the archive unpacks to the same tree', (state) => {
  const root = join(state.directory, 'tar');
  mkdirSync(root);
  const archive = packSmall(state, 'archived').find((path) => path.endsWith('.tar.gz'));
  spawnSync('tar', ['--extract', '--gzip', `--file=${archive}`, `--directory=${root}`]);
  for (const { target, mode } of packagedFiles) {
    const stats = statSync(join(root, target));
    assert.equal([stats.mode & 0o7777, stats.uid, stats.mtimeMs], [mode, 0, atSeconds * 1000], target);
  }
});

test.run();
