/** beneath.ts: whatever a user puts into their directory, nothing else is reached through it. */
import { spawnSync } from 'node:child_process';
import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { BeneathError, faultCode, isFaultOfNode } from '../../../lib/core/faults.ts';
import {
  createFileBeneath,
  leadsToBeneath,
  makeDirectoryBeneath,
  moveBeneath,
  namesBeneath,
  openDirectoryBeneath,
  openFileBeneath,
  openOrCreateFileBeneath,
  removeDirectoryBeneath,
  removeFileBeneath,
  statBeneath,
  walkFromNowOn,
  withDirectoryBeneath,
} from '../../../lib/system/beneath.ts';
import { openDirectory, type Directory } from '../../../lib/system/directory.ts';
import { enterPrivateMachine, machineRoot, unlessPrivateMachine } from '../../helpers/private-machine.ts';
import { assert, suite } from '../../helpers/suite.ts';

enterPrivateMachine();

function act(file: string, ...args: string[]): void {
  const { status, stderr } = spawnSync(file, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${file}: ${stderr}`);
}

for (const way of ['by openat2', 'step by step'] as const) {
  const test = suite(`beneath, ${way}`, { skip: unlessPrivateMachine });
  let top: string;
  let directory: Directory;
  const at = (name: string): string => join(top, 'user', name);

  test.before(() => {
    if (way === 'step by step') walkFromNowOn();
  });
  test.before.each(() => {
    top = mkdtempSync(join(machineRoot, 'beneath-'));
    mkdirSync(join(top, 'user/a/b'), { recursive: true });
    writeFileSync(join(top, 'outside'), 'outside');
    writeFileSync(at('a/b/file'), 'inside');
    directory = openDirectory(join(top, 'user'));
  });
  test.after.each(() => {
    closeSync(directory.fd);
    rmSync(top, { recursive: true });
  });

  const codeOf = (action: () => unknown): string | undefined => {
    const error = assert.throws(action, BeneathError);
    assert.is(isFaultOfNode(error), false);
    assert.ok(['ENTRY_DAMAGED', 'NO_SPACE', 'NO_RESOURCES'].includes(faultCode(error)), faultCode(error));
    return error.code;
  };
  const openAll = [
    (path: string) => statBeneath(directory, path),
    (path: string) => openDirectoryBeneath(directory, path),
    (path: string) => openFileBeneath(directory, path),
  ];

  test('what is there is found, at any depth', () => {
    const fd = openFileBeneath(directory, 'a/b/file');
    assert.is(readFileSync(fd, 'utf8'), 'inside');
    assert.is(statBeneath(directory, 'a/b/file').ino, fstatSync(fd).ino);
    assert.ok(leadsToBeneath(directory, 'a/b/file', fd));
    renameSync(at('a/b/file'), at('a/b/other'));
    assert.not(leadsToBeneath(directory, 'a/b/file', fd));
    closeSync(fd);
    withDirectoryBeneath(directory, 'a/b', (found) => {
      assert.is(found.path, at('a/b'));
      assert.equal([...namesBeneath(found)], ['other']);
    });
  });

  test('descriptors close on exec, and none is left behind by a failure', () => {
    const before = openDescriptors();
    for (const open of openAll) assert.throws(() => open('a/none'), BeneathError);
    assert.throws(() => openFileBeneath(directory, 'a'), BeneathError);
    assert.throws(() => openDirectoryBeneath(directory, 'a/b/file'), BeneathError);
    assert.is(openDescriptors(), before);
    const fd = openFileBeneath(directory, 'a/b/file');
    assert.match(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'), /^flags:\s+02[0-7]{6}$/m);
    closeSync(fd);
  });

  test('a symlink is seen as one, and never followed: at the end, on the way, dangling, to itself, to a process', () => {
    symlinkSync('a', at('inside'));
    symlinkSync(top, at('away'));
    symlinkSync('x'.repeat(300), at('long'));
    symlinkSync('loop', at('loop'));
    symlinkSync(`/proc/${process.pid}/net`, at('proc'));
    for (const name of ['inside', 'away', 'long', 'loop', 'proc']) {
      assert.ok(statBeneath(directory, name).isSymbolicLink());
      codeOf(() => openDirectoryBeneath(directory, name));
      codeOf(() => openFileBeneath(directory, name));
      for (const open of openAll)
        assert.ok(['ELOOP', 'ENOTDIR'].includes(codeOf(() => open(`${name}/b`)) ?? ''), name);
    }
  });

  test('nothing outside is reached by dots, a slash, or an absolute path', () => {
    for (const path of ['..', '../outside', 'a/../../outside', '/etc/passwd', join(top, 'outside')])
      for (const open of openAll) codeOf(() => open(path));
  });

  test('what is mounted there is not entered, be it of the same filesystem', () => {
    mkdirSync(at('mount'));
    mkdirSync(join(top, 'elsewhere'));
    writeFileSync(join(top, 'elsewhere/file'), '');
    act('mount', '--bind', join(top, 'elsewhere'), at('mount'));
    try {
      for (const open of openAll)
        assert.is(
          codeOf(() => open('mount/file')),
          'EXDEV',
        );
      assert.is(
        codeOf(() => openDirectoryBeneath(directory, 'mount')),
        'EXDEV',
      );
    } finally {
      act('umount', at('mount'));
    }
  });

  test('only a regular file is opened as one; nobody is waited for', () => {
    act('mkfifo', at('fifo'));
    act('mknod', at('device'), 'c', '1', '5');
    mkdirSync(at('directory'));
    for (const name of ['fifo', 'device', 'directory']) {
      codeOf(() => openFileBeneath(directory, name));
      codeOf(() => openOrCreateFileBeneath(directory, name, 0o600));
    }
    // A FIFO that has been opened by somebody would be writable now.
    const { status } = spawnSync('timeout', ['0.2', 'sh', '-c', `: >${at('fifo')}`]);
    assert.is(status, 124);
  });

  test('names of any bytes are listed, opened and removed', () => {
    writeFileSync(Buffer.concat([Buffer.from(`${at('')}/`), Buffer.from([0xff, 0x0a, 0xc0])]), 'x');
    const name = [...namesBeneath(directory)].find((one) => one !== 'a') ?? '';
    assert.is(name, '\u00ff\n\u00c0');
    assert.is(statBeneath(directory, name).size, 1);
    removeFileBeneath(directory, name);
    assert.equal([...namesBeneath(directory)], ['a']);
  });

  test('whoever needs no more names stops, and leaves nothing open', () => {
    writeFileSync(at('a/file'), '');
    for (let index = 0; index < 3000; index++) linkSync(at('a/file'), at(`${index}`));
    const before = openDescriptors();
    for (const name of namesBeneath(directory)) if (name !== '.') break;
    assert.is(openDescriptors(), before);
    assert.is([...namesBeneath(directory)].length, 3001);
  });

  test('what is made, moved or removed is one name', () => {
    for (const name of ['', '.', '..', 'a/x', '../x', '/x', 'x\0y']) {
      codeOf(() => createFileBeneath(directory, name, 0o600));
      codeOf(() => {
        makeDirectoryBeneath(directory, name, 0o700);
      });
      codeOf(() => {
        removeFileBeneath(directory, name);
      });
      codeOf(() => {
        removeDirectoryBeneath(directory, name);
      });
      codeOf(() => {
        moveBeneath(directory, name, directory, 'x');
      });
      codeOf(() => {
        moveBeneath(directory, 'a', directory, name);
      });
    }
    assert.ok(existsSync(at('a/b/file')));
    makeDirectoryBeneath(directory, 'new', 0o700);
    closeSync(createFileBeneath(directory, 'file', 0o600));
    moveBeneath(directory, 'file', openDirectoryBeneath(directory, 'new'), 'moved');
    assert.is(
      codeOf(() => removeDirectoryBeneath(directory, 'new')),
      'ENOTEMPTY',
    );
    assert.ok(existsSync(at('new/moved')));
  });

  test('a file is made once, and never through a symlink', () => {
    symlinkSync(join(top, 'made'), at('link'));
    assert.is(
      codeOf(() => createFileBeneath(directory, 'link', 0o600)),
      'EEXIST',
    );
    codeOf(() => openOrCreateFileBeneath(directory, 'link', 0o600));
    assert.not(existsSync(join(top, 'made')));
    const [first, second] = [1, 2].map(() => openOrCreateFileBeneath(directory, 'lock', 0o600)) as [
      number,
      number,
    ];
    assert.is(fstatSync(first).ino, fstatSync(second).ino);
    assert.is(fstatSync(first).mode & 0o7777, 0o600);
  });

  test('flags are what was asked for', () => {
    const fd = openFileBeneath(directory, 'a/b/file', constants.O_WRONLY | constants.O_APPEND);
    assert.throws(() => readFileSync(fd), Error, /EBADF/);
    closeSync(fd);
  });

  test("each failure has the kernel's number, and is the user's", () => {
    assert.is(
      codeOf(() => statBeneath(directory, 'none')),
      'ENOENT',
    );
    assert.is(
      codeOf(() => statBeneath(directory, 'a/b/file/x')),
      'ENOTDIR',
    );
    assert.is(
      codeOf(() => statBeneath(directory, 'x'.repeat(300))),
      'ENAMETOOLONG',
    );
    codeOf(() => statBeneath(directory, ''));
    codeOf(() => statBeneath(directory, 'x'.repeat(100_000)));
  });

  test.run();
}

const openDescriptors = (): number => readdirSync('/proc/self/fd').length;
