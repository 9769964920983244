/**
 * `npm run package [-- DIRECTORY]`: makes a .deb, an .rpm and a .tar.gz of what belongs on a node, a list of
 * what is in them (`sbom.spdx.json`), and SHA256SUMS, in packages/ or the directory.
 *
 * The version is that of package.json, with the commit where no tag says that it is that version. All times
 * are the commit's, and of the same files the same packages are made, to the byte. Only the executable is
 * another in each build: V8 makes its code cache anew.
 *
 * What the system's tools are needed for: dpkg-deb (any Debian), rpmbuild (package rpm). One that is missing
 * is named, and its package left out.
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { gzipSync } from 'node:zlib';
import { distDirectory, makeExecutable } from './build.ts';
import { manPages, packagedDirectories, packagedFiles, packagedLinks } from './package-files.ts';
import { readRelease, type Release } from './release.ts';
import { projectRoot } from './source-files.ts';

/** What is packed, with its time: everything in a package has it. */
interface Packed {
  readonly version: string;
  /** Seconds. */
  readonly atSeconds: number;
}

/** Debian's and rpm's names of an architecture. */
const architectures: Readonly<Record<string, { readonly deb: string; readonly rpm: string }>> = {
  x64: { deb: 'amd64', rpm: 'x86_64' },
  arm64: { deb: 'arm64', rpm: 'aarch64' },
};

const summary = 'Keeps unpacked container images on a Slurm node';
const description = [
  'Prolog and Epilog for Slurm with pyxis and enroot: the root file system of a container',
  'image stays on the node, and the next job starts from it in well under a second.',
];

function output(
  file: string,
  args: readonly string[],
  environment: Readonly<Record<string, string>> = {},
): string {
  const { status, stdout, stderr, error } = spawnSync(file, args, {
    cwd: projectRoot,
    encoding: 'utf8',
    env: { ...process.env, ...environment },
    maxBuffer: 64 * 1024 * 1024,
  });
  if (status !== 0) throw new Error(`${file} ${args.join(' ')}: ${error?.message ?? stderr}`);
  return stdout.trim();
}

/** @returns paths of the packages */
async function makePackages(directory: string, release: Release): Promise<string[]> {
  const { version, atSeconds } = release;
  if (atSeconds === undefined)
    throw new Error(
      'Cannot make packages: git tells no commit, whose time all files get. Use a git checkout',
    );
  // Always the same: the executable remembers where it was made.
  const made = join(distDirectory, '.package');
  rmSync(made, { recursive: true, force: true });
  try {
    mkdirSync(made, { recursive: true });
    const executable = join(made, 'container-cache');
    const modules = await makeExecutable('main.ts', executable, release);
    makeOtherFiles(made, modules);
    return packFiles(directory, made, { version, atSeconds });
  } finally {
    rmSync(made, { recursive: true });
  }
}

const makers = { tar: makeTar, deb: makeDeb, rpm: makeRpm };
type Kind = keyof typeof makers;

/**
 * Packs what is made.
 *
 * @param made has the executable and what makeOtherFiles() adds
 * @returns paths of the packages
 */
export function packFiles(
  directory: string,
  made: string,
  release: Packed,
  kinds: readonly Kind[] = ['tar', 'deb', 'rpm'],
): string[] {
  mkdirSync(directory, { recursive: true });
  const work = mkdtempSync(join(directory, '.work-'));
  try {
    layOut(rootIn(work), made, release);
    const packages = kinds
      .map((kind) => makers[kind](directory, work, release))
      .filter((path) => path !== undefined);
    const bill = join(directory, 'sbom.spdx.json');
    writeFileSync(bill, billOfMaterials(release));
    const sums = [...packages, bill].map(
      (path) => `${createHash('sha256').update(readFileSync(path)).digest('hex')}  ${basename(path)}\n`,
    );
    writeFileSync(join(directory, 'SHA256SUMS'), sums.join(''));
    return packages;
  } finally {
    rmSync(work, { recursive: true });
  }
}

/**
 * What the executable is made of, the runtime among it, as npm knows it (SPDX 2.3). Of the same commit the
 * same: the document's name and time are the release's.
 */
function billOfMaterials({ version, atSeconds }: Packed): string {
  const bill = JSON.parse(
    output('npm', ['sbom', '--sbom-format=spdx', '--package-lock-only', '--omit=dev']),
  ) as { documentNamespace: string; creationInfo: { created: string } };
  bill.documentNamespace = `http://spdx.org/spdxdocs/container-cache-${version}`;
  bill.creationInfo.created = new Date(atSeconds * 1000).toISOString().replace(/\.\d+Z$/, 'Z');
  return `${JSON.stringify(bill, undefined, 2)}\n`;
}

/** @param modules what is in the executable */
export function makeOtherFiles(made: string, modules: readonly string[]): void {
  const executable = join(made, 'container-cache');
  writeFileSync(join(made, 'completion'), `${output(executable, ['completion'], { SHELL: '/bin/bash' })}\n`);
  writeFileSync(join(made, 'third-party-licenses'), licensesOf(modules));
  for (const page of manPages)
    writeFileSync(
      join(made, `${page}.gz`),
      gzipSync(readFileSync(join(projectRoot, 'man', page)), { level: 9 }),
    );
}

/** @param modules paths below the project, those of npm packages among them */
function licensesOf(modules: readonly string[]): string {
  const names = modules.flatMap((path) => /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1] ?? []);
  const runtime = `node-linux-${process.arch}`;
  return [...new Set([runtime, 'fs-ext', ...names.toSorted()])]
    .map((name) => {
      const root = join(projectRoot, 'node_modules', name);
      const license = readdirSync(root).find((one) => /^(license|licence)/i.test(one));
      const { version, license: named } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as {
        version: string;
        license?: string;
      };
      const text =
        license === undefined
          ? `License: ${named ?? 'see its package'}\n`
          : readFileSync(join(root, license), 'utf8');
      return `==== ${name} ${version}\n\n${text}\n`;
    })
    .join('\n');
}

const rootIn = (work: string): string => join(work, 'root');

/** The node's files below `root`, with their modes and the commit's time. */
function layOut(root: string, made: string, { atSeconds }: Packed): void {
  for (const file of packagedFiles) {
    const target = join(root, file.target);
    mkdirSync(dirname(target), { recursive: true, mode: 0o755 });
    copyFileSync(join(file.made === true ? made : projectRoot, file.source), target);
    chmodSync(target, file.mode);
    utimesSync(target, atSeconds, atSeconds);
  }
  for (const { target, leadsTo } of packagedLinks) {
    mkdirSync(dirname(join(root, target)), { recursive: true, mode: 0o755 });
    symlinkSync(leadsTo, join(root, target));
  }
}

function makeTar(directory: string, work: string, { version, atSeconds }: Packed): string {
  const path = join(directory, `container-cache-${version}-linux-${process.arch}.tar.gz`);
  const plain = join(directory, '.tar');
  const owner = [
    '--owner=0',
    '--group=0',
    '--numeric-owner',
    '--sort=name',
    '--format=gnu',
    `--mtime=@${atSeconds}`,
  ];
  output('tar', ['--create', ...owner, `--file=${plain}`, `--directory=${rootIn(work)}`, './etc', './usr']);
  writeFileSync(path, gzipSync(readFileSync(plain)));
  rmSync(plain);
  return path;
}

/** Whether one of the system's tools is there. */
function isThere(tool: string): boolean {
  const found = spawnSync(tool, ['--version']).status === 0;
  if (!found) console.log(`package: ${tool} is not installed: its package is left out`);
  return found;
}

function scriptNamed(name: string): string {
  return readFileSync(join(projectRoot, 'packaging', name), 'utf8');
}

/** dpkg runs a script with what it does as the first argument, rpm with how many versions will be left. */
function scriptFor(name: string, isDue: string): string {
  return scriptNamed(name).replace(/^#!.*\n(?:#.*\n)*/, (head) => `${head}${isDue} || exit 0\n`);
}

function makeDeb(directory: string, work: string, { version, atSeconds }: Packed): string | undefined {
  if (!isThere('dpkg-deb')) return undefined;
  const root = rootIn(work);
  const architecture = architectures[process.arch]?.deb ?? process.arch;
  const path = join(directory, `container-cache_${version}_${architecture}.deb`);
  const debian = join(root, 'DEBIAN');
  mkdirSync(debian, { mode: 0o755 });
  const kibibytes = packagedFiles.reduce(
    (sum, { target }) => sum + Math.ceil(statSync(join(root, target)).size / 1024),
    0,
  );
  const control = {
    Package: 'container-cache',
    Version: version,
    Architecture: architecture,
    Maintainer: 'The container-cache project <root@localhost>',
    Section: 'admin',
    Priority: 'optional',
    'Installed-Size': String(kibibytes),
    Depends: 'bsdutils, coreutils, findutils, libc6, libstdc++6, squashfs-tools, util-linux',
    Suggests: 'slurmd',
    Description: [summary, ...description].join('\n '),
  };
  const files: Readonly<Record<string, readonly [text: string, mode: number]>> = {
    control: [
      Object.entries(control)
        .map(([key, value]) => `${key}: ${value}\n`)
        .join(''),
      0o644,
    ],
    conffiles: [
      packagedFiles
        .filter(({ isConfiguration }) => isConfiguration)
        .map(({ target }) => `${target}\n`)
        .join(''),
      0o644,
    ],
    postinst: [scriptFor('after-install', '[ "$1" = configure ]'), 0o755],
    prerm: [scriptFor('before-removal', '[ "$1" = remove ]'), 0o755],
    postrm: [scriptFor('after-removal', '[ "$1" = remove ] || [ "$1" = purge ]'), 0o755],
  };
  for (const [name, [text, mode]] of Object.entries(files)) writeFileSync(join(debian, name), text, { mode });
  // Of the directories, whose times dpkg-deb takes as they are.
  output('find', [root, '-exec', 'touch', '--no-dereference', `--date=@${atSeconds}`, '{}', '+']);
  output('dpkg-deb', ['--root-owner-group', '-Zgzip', '-z6', '--build', root, path], {
    SOURCE_DATE_EPOCH: String(atSeconds),
  });
  rmSync(debian, { recursive: true });
  return path;
}

function makeRpm(directory: string, work: string, { version, atSeconds }: Packed): string | undefined {
  if (!isThere('rpmbuild')) return undefined;
  const architecture = architectures[process.arch]?.rpm ?? process.arch;
  const marks = packagedFiles.map(({ target, isConfiguration, isDocumentation }) => {
    const mark = isConfiguration === true ? '%config(noreplace) ' : isDocumentation === true ? '%doc ' : '';
    return `${mark}${target}`;
  });
  const scriptlet = (name: string, script: string, isDue: string): string[] => [
    `%${name}`,
    ...scriptFor(script, isDue)
      .replace(/^#!.*\n/, '')
      .trimEnd()
      .split('\n'),
    '',
  ];
  const spec = [
    'Name: container-cache',
    `Version: ${version}`,
    'Release: 1',
    `Summary: ${summary}`,
    'License: Apache-2.0',
    'Requires: coreutils, findutils, squashfs-tools, util-linux',
    // The executable is not to be taken apart, and finds what it needs by itself.
    'AutoReqProv: no',
    '%description',
    ...description,
    '',
    ...scriptlet('post', 'after-install', '[ "$1" -ge 1 ]'),
    ...scriptlet('preun', 'before-removal', '[ "$1" -eq 0 ]'),
    ...scriptlet('postun', 'after-removal', '[ "$1" -eq 0 ]'),
    '%files',
    '%defattr(-,root,root,-)',
    ...marks,
    ...packagedLinks.map(({ target }) => target),
    ...packagedDirectories.map((path) => `%dir ${path}`),
  ];
  const specPath = join(work, 'container-cache.spec');
  writeFileSync(specPath, `${spec.join('\n')}\n`);
  const buildRoot = join(work, 'buildroot');
  output('cp', ['--archive', rootIn(work), buildRoot]);
  const defines: Readonly<Record<string, string>> = {
    _topdir: join(work, 'rpm'),
    _rpmdir: join(work, 'rpms'),
    _build_name_fmt: '%%{NAME}-%%{VERSION}.%%{ARCH}.rpm',
    _buildhost: 'container-cache',
    _build_id_links: 'none',
    _binary_payload: 'w6.gzdio',
    use_source_date_epoch_as_buildtime: '1',
    clamp_mtime_to_source_date_epoch: '1',
    __os_install_post: '%{nil}',
    debug_package: '%{nil}',
  };
  output(
    'rpmbuild',
    [
      '-bb',
      `--buildroot=${buildRoot}`,
      `--target=${architecture}-linux`,
      '--nodeps',
      '--noclean',
      ...Object.entries(defines).flatMap(([name, value]) => ['--define', `${name} ${value}`]),
      specPath,
    ],
    { SOURCE_DATE_EPOCH: String(atSeconds) },
  );
  const name = `container-cache-${version}.${architecture}.rpm`;
  const path = join(directory, name);
  copyFileSync(join(work, 'rpms', name), path);
  return path;
}

if (import.meta.main) {
  const release = readRelease();
  const directory = resolve(projectRoot, process.argv[2] ?? 'packages');
  console.log(`package: container-cache ${release.version}`);
  for (const path of await makePackages(directory, release))
    console.log(`package: ${path} (${(statSync(path).size / 1024 ** 2).toFixed(1)} MiB)`);
}
