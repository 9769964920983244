/**
 * What a hostile user does to the cache: in their own directory, with their own processes, and never with
 * another's rights. Each trick is chosen, and varied, by a seed; what it meets in the directory is the
 * moment's.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  constants,
  linkSync,
  lutimesSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { formatEntryMetadata } from '../../lib/core/entry-metadata.ts';
import {
  createLockName,
  digestsName,
  directoryName,
  entryName,
  holderTitle,
  holderVariable,
  imagesName,
  lockFileName,
  partialName,
  roomPath,
  stepEventsName,
  unsharedName,
} from '../../lib/core/layout.ts';
import { withUserIds } from '../../lib/system/as-user.ts';
import { command, type TestUser } from '../helpers/private-machine.ts';
import { Random } from '../helpers/property.ts';
import { hashOf, volumes } from './volume.ts';

/** What of others a trick may aim at. */
export interface Aims {
  /** Files and directories of root and of other users. */
  readonly paths: readonly string[];
  readonly jobs: readonly {
    readonly jobId: number;
    readonly holder: number;
    readonly entry: string;
    readonly uid: number;
  }[];
}

export interface Scene {
  readonly user: TestUser;
  /** The user's directory in the base. */
  readonly home: string;
  readonly runtimePath: string;
  readonly jobId: number;
  readonly aims: () => Aims;
}

interface Play extends Scene {
  readonly random: Random;
  /**
   * A process of the user in a session of its own, which nobody ends before the hostile user is taken away.
   */
  readonly run: (file: string, parameters: readonly string[], environment?: Record<string, string>) => void;
}

type Trick = (play: Play) => void;

const longestNameBytes = 255;
/** Beyond this, older ones end first: the test is no test of how many processes a machine can have. */
const mostProcesses = 16;

const anyOf = <T>(random: Random, choices: readonly T[], other: T): T =>
  choices[random.integer(0, choices.length - 1)] ?? other;

/** One that is there, or one that our programs may look for. */
function anyName({ random, home, user, jobId, aims }: Play): string {
  const entry = entryName(user.uid, hashOf(random.integer(1, 3)));
  const otherJob = anyOf(
    random,
    aims().jobs.map((job) => job.jobId),
    jobId + 1,
  );
  const job = random.pick([jobId, jobId, otherJob]);
  const made = random.pick<() => string>([
    () => directoryName(entry),
    () => createLockName(entry),
    () => unsharedName(entry),
    () => partialName(entry, job, 'abcd'),
    () => `.pyxis_${job}.${random.integer(0, 3)}`,
    () => `pyxis_${job}.${random.integer(0, 3)}`,
    () => stepEventsName(job),
    () => random.pick([imagesName, digestsName, '.home', lockFileName]),
  ])();
  return random.integer(1, 5) <= 3 ? anyOf(random, readdirSync(home).slice(0, 50), made) : made;
}

/** What is in the way is put elsewhere, where one thing has room, or removed. */
function clear({ random, home }: Play, path: string): void {
  const stolen = join(home, 'stolen');
  if (random.integer(0, 1) === 0) {
    rmSync(stolen, { recursive: true, force: true });
    renameSync(path, stolen);
  } else rmSync(path, { recursive: true, force: true });
}

/** A path of ours that is free now, at whatever depth. */
function freePath(play: Play): string {
  const { random, home } = play;
  const path = join(home, anyName(play));
  const inner = random.pick([
    '',
    '',
    '',
    `/${lockFileName}`,
    '/.container-cache',
    '/.container-cache/entry',
    '/rootfs',
  ]);
  try {
    if (inner !== '')
      mkdirSync(inner.endsWith('/entry') ? join(path, '.container-cache') : path, { recursive: true });
    clear(play, path + inner);
  } catch {
    // Nothing was there, or something else is in the way.
  }
  return path + inner;
}

/** Waits for nobody, and follows nothing. */
function write(path: string, text: string, flags = constants.O_CREAT | constants.O_TRUNC): void {
  const file = openSync(
    path,
    flags | constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW,
    0o600,
  );
  try {
    writeSync(file, text);
  } finally {
    closeSync(file);
  }
}

const anyTarget = ({ random, aims }: Play): string =>
  random.pick<() => string>([
    () => anyOf(random, aims().paths, '/etc/passwd'),
    () =>
      anyOf(
        random,
        aims().jobs.map(({ entry }) => entry),
        '/root',
      ),
    () => 'x'.repeat(300),
    () => '.container-cache',
    () => '/proc/self/task/1/net/../../../none/net',
    () => '/dev/zero',
    () => '../../..',
  ])();

const lie = (random: Random): number => random.pick([0, -1, 2 ** 53, 1e18, random.integer(0, 2 ** 31)]);

function entriesOf({ home, user }: Play): string[] {
  return readdirSync(home)
    .filter((name) => name.startsWith(directoryName(`pyxis_cache_u${user.uid}_`)) && !name.includes('.', 1))
    .map((name) => join(home, name));
}

/** With the user's ids, in our own process: none of them waits. */
const tricksWithFiles: Readonly<Record<string, Trick>> = {
  'a symlink, dangling, long, in a circle, or to what is others’': (play) => {
    symlinkSync(anyTarget(play), freePath(play));
  },
  'a FIFO': (play) => {
    command('mkfifo', freePath(play));
  },
  'a socket': (play) => {
    const path = freePath(play);
    command('python3', '-c', 'import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])', path);
  },
  'a file in place of a directory': (play) => {
    write(freePath(play), play.random.hostileText(200));
  },
  'a directory in place of a file': (play) => {
    mkdirSync(freePath(play), {
      recursive: true,
      mode: play.random.pick([0o700, 0o000, 0o600, 0o300, 0o7777]),
    });
  },
  'a hard link': (play) => {
    const source = join(play.home, 'link-source');
    write(source, play.random.hostileText(50));
    linkSync(play.random.pick([source, source, anyTarget(play)]), freePath(play));
  },
  'a name moved to another': (play) => {
    renameSync(join(play.home, anyName(play)), freePath(play));
  },
  'something deleted': (play) => {
    rmSync(join(play.home, anyName(play)), { recursive: true, force: true });
  },
  'many names': ({ random, home }) => {
    const { make } = anyOf(random, Object.values(volumes), Object.values(volumes)[0]!);
    make(home, random.pick([10, 100, 200]));
  },
  'odd names': ({ random, home, user, jobId }) => {
    const entry = entryName(user.uid, hashOf(random.integer(1, 3)));
    const long = partialName(
      entry,
      jobId,
      'f'.repeat(longestNameBytes - partialName(entry, jobId, '').length),
    );
    const name = random.pick<() => string | Buffer>([
      () => long,
      () => '-rf',
      () => 'a\nprolog job=1 uid=0 result=created',
      () => 'x'.repeat(longestNameBytes),
      () => Buffer.from([0x2e, 0xff, 0xfe, 0x80]),
      () => random.hostileText(40).replaceAll(/[/\0]/g, '_') || '_',
    ])();
    mkdirSync(Buffer.concat([Buffer.from(`${home}/`), Buffer.from(name)]));
  },
  'the own directory closed': ({ random, home }) => {
    chmodSync(home, random.pick([0o600, 0o300, 0o000, 0o500, 0o777]));
  },
  'something closed': (play) => {
    chmodSync(join(play.home, anyName(play)), play.random.pick([0o000, 0o600, 0o300, 0o111, 0o7777]));
  },
  'old and coming times': (play) => {
    const seconds = play.random.pick([
      0,
      1000,
      Date.now() / 1000 - 90_000,
      Date.now() / 1000 + 90_000,
      2 ** 34,
    ]);
    lutimesSync(join(play.home, anyName(play)), seconds, seconds);
  },
  'a lock file that lies': (play) => {
    const { random } = play;
    const path = join(anyOf(random, entriesOf(play), play.home), lockFileName);
    const claim = formatEntryMetadata({
      image: random.hostileText(40),
      createdAtMs: lie(random),
      unpackMs: lie(random),
      bytes: lie(random),
      inodes: lie(random),
      bootId: random.pick(['', 'x', '00000000-0000-0000-0000-000000000000']),
    });
    chmodSync(path, 0o600);
    write(path, random.integer(0, 3) === 0 ? random.hostileText(5000) : random.mutation(claim));
  },
  'a stub that lies': ({ random, home, jobId, aims }) => {
    const other = anyOf(random, aims().jobs, { jobId, holder: 1, entry: '/x', uid: 0 });
    const stub = join(home, `.pyxis_${random.pick([jobId, other.jobId])}.${random.integer(0, 3)}`);
    mkdirSync(join(stub, '.container-cache'), { recursive: true });
    const entry = random.pick([
      directoryName(other.entry),
      `pyxis_cache_u${other.uid}_${hashOf(1)}`,
      '../../..',
    ]);
    write(
      join(stub, '.container-cache/entry'),
      random.mutation(`${entry}\n${random.pick([other.holder, 1, -1])}\n/x\nreused\n`),
    );
  },
  'an image index that lies': ({ random, home }) => {
    const index = join(home, imagesName);
    const name = anyOf(random, readdirSync(index), hashOf(1));
    write(join(index, name), random.hostileText(300));
  },
  'notes of steps that lie': ({ random, home, jobId, aims }) => {
    const { entry } = anyOf(random, aims().jobs, { jobId, holder: 1, entry: '/x', uid: 0 });
    const note = `{"kind":"container","entry":"${directoryName(entry)}","result":"reused"}\n`;
    write(join(home, stepEventsName(jobId)), random.mutation(note).repeat(random.integer(1, 100)));
  },
  'a deep tree': ({ random, home }) => {
    mkdirSync(join(home, random.pick(['deep', '.pyxis_77.0']), 'd/'.repeat(random.integer(50, 300))), {
      recursive: true,
    });
  },
  'a large file with a hole': ({ home }) => {
    const path = join(home, 'large');
    write(path, 'x'.repeat(64 * 1024));
    truncateSync(path, 2 ** 40);
  },
  'nonsense for the room agent': ({ random, runtimePath, aims }) => {
    const { holder } = anyOf(random, aims().jobs, { jobId: 1, holder: 1, entry: '', uid: 0 });
    write(
      roomPath(runtimePath),
      random.pick([`${holder}\n1\n${process.pid}\n`, random.hostileText(300), '\n'.repeat(1000)]),
      0,
    );
  },
};

/** Of a race: what is done again and again for some seconds, to the paths $1 and $2. */
const races = [
  'rm -rf "$1"; ln -s "$2" "$1"; rm -f "$1"; mkdir "$1"',
  'mv -T "$1" "$1.away"; ln -s "$2" "$1"; rm -f "$1"; mv -T "$1.away" "$1"',
  'chmod 0 "${1%/*}"; chmod 700 "${1%/*}"',
  'touch -d @1 "$1"',
  'mkfifo "$1"; rm -f "$1"',
] as const;

/** By processes of the user's own. */
const tricksWithProcesses: Readonly<Record<string, Trick>> = {
  'a lock that is held for ever': (play) => {
    const { random, home, run } = play;
    const file = random.pick([
      join(anyOf(random, entriesOf(play), home), lockFileName),
      join(home, anyName(play)),
      home,
    ]);
    run('flock', [random.pick(['--shared', '--exclusive']), '--nonblock', file, 'sleep', '1000']);
  },
  'a process that outlives the job': (play) => {
    const { random, jobId, aims, run } = play;
    const job = random.pick([jobId, anyOf(random, aims().jobs, undefined)?.jobId ?? jobId]);
    run(
      'bash',
      ['-c', 'cd "$1" || cd /; exec -a "$2" sleep 1000', 'bash', anyTarget(play), holderTitle(job)],
      {
        [holderVariable]: String(job),
        SLURM_JOB_ID: String(job),
      },
    );
  },
  'a process in what is deleted': (play) => {
    play.run('sh', [
      '-c',
      'cd "$1" && for i in $(seq 100); do mkdir -p d$i; sleep 0.05; done',
      'sh',
      join(play.home, anyName(play)),
    ]);
  },
  'mounts of a namespace': (play) => {
    const { random, home, run } = play;
    const shown = random.pick([anyOf(random, entriesOf(play), home), anyTarget(play), home]);
    const script =
      'mount --bind "$1" /media; mount -t tmpfs none "$1"; mount -t overlay -o "userxattr,lowerdir=$1:/media" x /opt; exec sleep 1000';
    run('unshare', ['--user', '--map-root-user', '--mount', 'sh', '-c', script, 'sh', shown]);
  },
  'a race': (play) => {
    const { random, home, run } = play;
    const script = `for i in $(seq 300); do ${random.pick(races)}; done 2>/dev/null`;
    run('sh', ['-c', script, 'sh', join(home, anyName(play)), anyTarget(play)]);
  },
  'a signal to all that runs as the user': ({ random, run }) => {
    run('sh', ['-c', `kill -s ${random.pick(['STOP', 'KILL', 'TERM', 'CONT'])} -- -1`]);
  },
};

const allTricks = [
  ...Object.values(tricksWithFiles).map((play) => ({ play, isProcess: false })),
  ...Object.values(tricksWithProcesses).map((play) => ({ play, isProcess: true })),
  // Nothing else keeps what is there in use.
  ...Object.values(tricksWithProcesses).map((play) => ({ play, isProcess: true })),
];

export class HostileProcesses {
  readonly #user: TestUser;
  readonly #children: ChildProcess[] = [];
  played = 0;
  refused = 0;

  constructor(user: TestUser) {
    this.#user = user;
  }

  play(scene: Scene, seed: number): void {
    const random = new Random(seed);
    const { play, isProcess } = allTricks[random.integer(0, allTricks.length - 1)]!;
    const run: Play['run'] = (...parameters) => {
      this.#run(...parameters);
    };
    const act = (): void => {
      try {
        // Else the user has made it impossible for themselves, for good.
        if (random.integer(0, 3) > 0)
          withUserIds(this.#user, () => {
            chmodSync(scene.home, 0o700);
          });
        play({ ...scene, random, run });
        this.played++;
      } catch {
        this.refused++;
      }
    };
    if (isProcess) act();
    else withUserIds(this.#user, act);
  }

  #run(file: string, parameters: readonly string[], environment: Record<string, string> = {}): void {
    const { uid, gid } = this.#user;
    const child = spawn(file, parameters, {
      uid,
      gid,
      cwd: '/',
      detached: true,
      env: { PATH: '/usr/bin:/bin', ...environment },
      stdio: 'ignore',
    });
    child.on('error', () => undefined);
    this.#children.push(child);
    for (const old of this.#children.splice(0, this.#children.length - mostProcesses)) old.kill('SIGKILL');
  }
}

/** Variables that lie, for a step of the user's. */
export function lyingEnvironment({ jobId, aims, home }: Scene, seed: number): Record<string, string> {
  const random = new Random(seed);
  const other = anyOf(random, aims().jobs, { jobId, holder: 1, entry: '/x', uid: 0 });
  return random.pick<Record<string, string>>([
    {},
    {},
    { SLURM_JOB_UID: String(other.uid) },
    { SLURM_JOB_ID: String(other.jobId) },
    { SLURM_JOB_ID: random.hostileText(20).replaceAll('\0', '') },
    { CONTAINER_CACHE_CONF: join(home, 'conf') },
    { CONTAINER_CACHE_FSTAB: 'x / x x 0 0', ENROOT_DATA_PATH: anyOf(random, aims().paths, '/') },
  ]);
}

/** What a job may name as its image. */
export function oddImage(scene: Scene, seed: number): string {
  const random = new Random(seed);
  const paths = [
    ...[
      '/dev/zero',
      '/proc/self/mem',
      '/',
      'none',
      '-x',
      'docker://',
      'dockerd://x',
      '/root/x.sqsh',
      'a\nb',
      '../../x',
    ],
    ...['x'.repeat(5000), scene.home, join(scene.home, 'large'), join(scene.home, imagesName)],
  ];
  return anyOf(random, [...paths, ...scene.aims().paths], '/');
}
