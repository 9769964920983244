/**
 * Whatever reads a text that others write: arbitrary texts, valid ones with pieces changed, and very long
 * ones. What each parser makes of good texts is with its own tests (test/lib/core); their property tests are
 * referred to in docs/reliability.md.
 */
// test: timeout 600 s
import { mountsBefore, mountsPath, isOurMountsFile, parseEnrootConf } from '../../lib/core/enroot-conf.ts';
import { formatEntryMetadata, parseEntryMetadata } from '../../lib/core/entry-metadata.ts';
import { formatEvent, parseEvent } from '../../lib/core/events.ts';
import { faultCode, JobFault } from '../../lib/core/faults.ts';
import { mountOptions } from '../../lib/core/filesystem-kinds.ts';
import { keepReason, planCollection, type EntryFacts } from '../../lib/core/gc-plan.ts';
import { imageOfPyxis, parseDigest, parseImage, parseSuperblock } from '../../lib/core/image.ts';
import { readJob, readJobId } from '../../lib/core/job.ts';
import {
  isEntryNameOf,
  parseCreateLockName,
  parseIdName,
  parsePartialName,
  parseStubDirectoryName,
} from '../../lib/core/layout.ts';
import { formatLeaseRecord, parseLeaseRecord } from '../../lib/core/lease-record.ts';
import { parseImageLine, parseTreeLine } from '../../admin/listing.ts';
import { escapeControls, formatLogLine } from '../../lib/core/log-line.ts';
import { locationOf, missingMounts, namesInUse, parseMountinfo } from '../../lib/core/mountinfo.ts';
import { formatNodeFacts, isKnownEnroot, parseNodeFacts, type NodeFacts } from '../../lib/core/node-facts.ts';
import { parsePlugstack } from '../../lib/core/plugstack.ts';
import { parseSettings, settingKeys } from '../../lib/core/settings.ts';
import {
  batchStartTimeoutSeconds,
  parseScontrolConfig,
  prologTimeoutSeconds,
  readSlurmConf,
  runsAtAllocation,
} from '../../lib/core/slurm-conf.ts';
import { parseVersion } from '../../lib/core/version.ts';
import { forAll, longTexts, unlessItHangs, type Random } from '../helpers/property.ts';
import { assert, suite } from '../helpers/suite.ts';

/** Characters that end a line, or that a terminal or a log takes for more than a letter. */
const control = /[\u0000-\u001f\u007f-\u009f\u2028\u2029]/;

const slurmd = { SLURM_JOB_ID: '4711', SLURM_JOB_UID: '1000', SLURM_JOB_GID: '100' };

const facts: NodeFacts = {
  fingerprint: '/raid/data:auto:always:/etc/enroot',
  basePath: '/raid/data',
  enrootPath: '/usr/bin/enroot',
  enrootVersion: '4.1.2',
  isolation: 'shared',
  reason: 'a user cannot mount an overlay: a=b',
  imageFreshness: 'always',
  command: '/usr/libexec/container-cache/container-cache',
  mountsFile: '/etc/enroot/mounts.d/00-container-cache.fstab',
  baseMount: '/raid',
  validUntilMs: 1_700_000_000_000,
  importer: 'none',
  pyxisRuntimePath: '/run/pyxis',
  pyxisVersion: '0.24.0',
  pyxisFiles: '/etc/slurm/slurm.conf\t/etc/slurm/plugstack.conf',
  pyxisStamp: '1-2-3:none',
};
const metadata = {
  bootId: '0b5f4a1c-0d6e-4c3f-8f5b-2f1b6a0c9d11',
  image: '/x/y.sqsh',
  createdAtMs: 1_700_000_000_000,
  unpackMs: 2500,
  bytes: 7e9,
  inodes: 263_134,
};
const entry = 'pyxis_cache_u1000_00deadbeef001122';
const lease = { jobId: 42, uid: 1000, holder: { pid: 7, startTicks: '99' }, sinceMs: 1, entries: [entry] };
const conf = `# where
container_cache_data_path=/raid/data
container_cache_gc_high = 85
image_freshness=always
on_failure=continue
runtime_dir=/run/container-cache
`;
const mountinfo = `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
31 22 259:1 /sub/da\\040ta /data rw - xfs /dev/nvme0n1 rw
40 31 0:50 / /mnt rw - overlay overlay rw,lowerdir=/data/1000/${entry},upperdir=/u,workdir=/w,userxattr
`;
const slurmConf = `ClusterName=a # which
Prolog=/etc/slurm/prolog\\
  PrologFlags=Alloc,Contain
NodeName=n[1-4] CPUs=4
TaskProlog="/a b" Epilog=/e
`;

interface Parser {
  readonly name: string;
  readonly samples: readonly [string, ...string[]];
  /** Of its format, to make long texts of. */
  readonly pieces: readonly string[];
  /**
   * Reads the text and asserts what must hold for any; throws what the parser throws, which must be a
   * JobFault.
   */
  readonly read: (text: string) => unknown;
}

const parsers: readonly Parser[] = [
  {
    name: 'configuration',
    samples: [conf],
    pieces: ['=', '/', '/a', 'a=b\n', '\n', '#', 'container_cache_data_path=/', '1'],
    read: (text) => {
      const { settings, problems } = parseSettings(text, '/x.conf');
      assert.is(settings === undefined, problems.length > 0);
      for (const problem of problems) assert.not.match(problem, control);
      for (const path of [settings?.basePath, settings?.runtimePath, settings?.enrootPath])
        if (path !== undefined) assert.match(path, /^(?:\/(?!\.{1,2}(?:\/|$))[\w.+@%=-]+)+$/);
    },
  },
  {
    name: 'image reference',
    samples: [
      `docker://user@reg.example:5000#team/app@sha256:${'0f'.repeat(32)}`,
      'nvcr.io#nvidia/pytorch:24.01-py3',
      'ubuntu',
      './a b.sqsh',
      '/images/x.sqsh',
    ],
    pieces: [
      '@',
      '#',
      ':',
      '/',
      'a',
      '.',
      '@sha256:',
      'a@',
      'a/',
      '//',
      'a:',
      'docker://',
      `@sha256:${'0'.repeat(64)}`,
    ],
    read: (text) => {
      const request = parseImage(text, '/w');
      assert.match(imageOfPyxis(text), /^(?:[./]|[a-z]+:\/\/)/);
      if (request.kind === 'path') {
        assert.ok(request.path.startsWith('/') && request.path.endsWith(text));
        return;
      }
      assert.not.match(request.canonical, /[\s\p{Cc}]/u);
      const again = parseImage(request.canonical, '/w');
      assert.is(again.kind === 'registry' && again.canonical, request.canonical);
    },
  },
  {
    name: 'image digest',
    samples: [`sha256:${'0f'.repeat(32)}\n`],
    pieces: ['sha256:', '0', ' ', '\n', 'f\n'],
    read: (text) => assert.match(parseDigest(text) ?? `sha256:${'0'.repeat(64)}`, /^sha256:[0-9a-f]{64}$/),
  },
  {
    name: 'Slurm variables',
    samples: ['4711', '0', '4294967294', '/home/a', '(null)'],
    pieces: ['0', '1', ' ', '/', '-'],
    read: (text) => {
      const hostile = {
        SLURM_JOB_USER: text,
        SLURM_JOB_WORK_DIR: text,
        SPANK__SLURM_SPANK_OPTION_pyxis_container_image: text,
        SPANK__SLURM_SPANK_OPTION_pyxis_container_name: text,
        SPANK_SLURM_JOB_ID: text,
      };
      const job = readJob({ ...slurmd, ...hostile });
      assert.equal([job.jobId, job.uid, job.gid], [4711, 1000, 100]);
      assert.ok(job.workPath === undefined || job.workPath.startsWith('/'));
      const id = readJobId({ SLURM_JOB_ID: text });
      assert.ok(Number.isInteger(id) && id > 0 && id < 2 ** 32 && BigInt(text) === BigInt(id));
      assert.is(readJob({ ...slurmd, SLURM_JOB_UID: text }).uid, id);
    },
  },
  {
    name: 'lease record',
    samples: [formatLeaseRecord(lease)],
    pieces: ['[', '{"a":', '"', '1', entry, `"${entry}",`],
    read: (text) => {
      const record = parseLeaseRecord(text);
      if (record === undefined) return;
      assert.ok(record.holder.pid >= 2);
      for (const name of record.entries) assert.ok(isEntryNameOf(record.uid, name));
      assert.equal(parseLeaseRecord(formatLeaseRecord(record)), record);
    },
  },
  {
    name: 'entry metadata',
    samples: [formatEntryMetadata(metadata)],
    pieces: ['[', '{"image":', '"', '\\u0000', '9'],
    read: (text) => {
      const found = parseEntryMetadata(text);
      if (found !== undefined) assert.equal(parseEntryMetadata(formatEntryMetadata(found)), found);
    },
  },
  {
    name: 'events',
    samples: [
      formatEvent({ kind: 'start', atMs: 1, source: 'step', result: 'created', entry, unpackMs: 7 }),
      formatEvent({
        kind: 'start',
        atMs: 1,
        source: 'step',
        result: 'bypassed',
        code: 'UNPACKING',
        image: '/x',
      }),
      formatEvent({ kind: 'eviction', atMs: 1, reason: 'room', entry }),
    ],
    pieces: ['[', '{"kind":', '"start"', '"', '\\u0000', '9', `"${entry}"`],
    read: (text) => {
      const event = parseEvent(text);
      if (event !== undefined) assert.equal(parseEvent(formatEvent(event)), event);
    },
  },
  {
    name: 'listings',
    samples: [
      '-rwsr-xr-x 0/0                       3 2026-11-24 18:06 squashfs-root/a b',
      'lrwxrwxrwx 1 2026-11-24 18:06 /l -> a',
    ],
    pieces: ['-rw-r--r-- ', '0/0 ', '    ', '2026-11-24 ', '18:06 ', 'squashfs-root', '/', '\n'],
    read: (text) => {
      parseImageLine(text);
      parseTreeLine(text);
    },
  },
  {
    name: 'mountinfo and fstab',
    samples: [mountinfo, '/dev/sda /raid/data ext4 defaults 0 0\n'],
    pieces: [
      ' ',
      '/',
      '\\040',
      ' - ',
      ',',
      ':',
      'lowerdir=',
      ',lowerdir+=/a',
      '/a/..',
      '\n',
      'a b c d e f - g h i\n',
    ],
    read: (text) => {
      const mounts = parseMountinfo(text);
      for (const name of namesInUse(mounts, '/data', { device: '259:1', path: '/sub/da ta' }))
        assert.match(name, /^[^/]*\/[^/]*$/);
      const location = locationOf('/data/1000', mounts);
      assert.ok(
        location === undefined ||
          location.path.endsWith('/1000') ||
          location.path.endsWith('/data/1000') ||
          mounts.some(({ mountPoint }) => mountPoint === '/data/1000'),
      );
      for (const point of missingMounts('/raid/data', text, mounts))
        assert.ok('/raid/data/'.startsWith(`${point}/`));
      mountOptions(text, '/data');
    },
  },
  {
    name: 'node facts',
    samples: [formatNodeFacts(facts)],
    pieces: ['=', 'for=', '\n', 'isolation=overlay\n', ' '],
    read: (text) => {
      const found = parseNodeFacts(text);
      // Only what we write has to read back the same: a carriage return becomes a blank.
      if (found !== undefined && !text.includes('\r'))
        assert.equal(parseNodeFacts(formatNodeFacts(found)), found);
    },
  },
  {
    name: 'versions',
    samples: ['4.1.2', 'slurm-wlm 22.05.8', '6.18.0-rc1+'],
    pieces: ['1', '1.', '.', '9.9', ' 1'],
    read: (text) => {
      for (const part of parseVersion(text) ?? []) assert.ok(part >= 0);
      isKnownEnroot(text);
    },
  },
  {
    name: 'enroot.conf and mounts.d',
    samples: [
      'ENROOT_DATA_PATH /raid/data/$(id -u)\nENROOT_SQUASH_OPTIONS=-comp lzo -noD\n',
      '/a/b /a/b none bind\n',
    ],
    pieces: [' ', '\t', '=', 'ENROOT_A', ' = ', '/', 'a ', '#', '\n'],
    read: (text) => {
      for (const { key, value } of parseEnrootConf(text)) {
        assert.match(key, /^ENROOT_[A-Z_]+$/);
        assert.ok(value !== '' && value.trim() === value && !value.includes('\n'));
      }
      isOurMountsFile(text);
      mountsPath(text, '/a/taskprolog');
      mountsBefore('00-container-cache.fstab', text.split('\n'));
    },
  },
  {
    name: 'slurm.conf and scontrol',
    samples: [slurmConf, 'Prolog[0]   = /etc/slurm/prolog\nPrologTimeout = 65534\n'],
    pieces: [' ', '\\', '\\\n', '#', '"', 'a=', 'a=b ', 'a = ', '\\ ', '[1]', '="', '\t'],
    read: (text) => {
      const found = parseScontrolConfig(text);
      runsAtAllocation(found.last('PrologFlags'));
      assert.ok((prologTimeoutSeconds(found) ?? 0) <= 65_533);
      assert.not(Number.isNaN(batchStartTimeoutSeconds(found)));
    },
  },
  {
    name: 'plugstack.conf',
    samples: [
      'required /usr/lib/slurm/spank_pyxis.so container_scope=job # why\ninclude /etc/slurm/plugstack.conf.d/*\n',
    ],
    pieces: [' ', '#', 'required ', 'include', '\t', '\n', 'a '],
    read: (text) => {
      for (const line of parsePlugstack(text)) {
        const words = line.kind === 'plugin' ? [line.path, ...line.parameters] : [line.pattern];
        // What is quoted may have blanks.
        for (const word of words) assert.match(word, /["']/.test(text) ? /^[^\n]*$/ : /^\S+$/);
      }
    },
  },
  {
    name: 'names on disk',
    samples: [
      entry,
      `.${entry}.create.lock`,
      `.${entry}.42-9f3c.partial`,
      '.pyxis_42.0',
      'pyxis_42_42.0',
      '1000',
    ],
    pieces: ['pyxis_', '0', 'f', '.', '_', '/', 'pyxis_1_1', '.partial', '-'],
    read: (text) => {
      const partial = parsePartialName(text);
      const isOurs =
        [parseCreateLockName(text), partial, parseStubDirectoryName(text), parseIdName(text)].some(
          (found) => found !== undefined,
        ) || isEntryNameOf(1000, text);
      // It is put below a directory as it is.
      if (isOurs) assert.match(text, /^[\w.-]+$/);
      if (isOurs) assert.not.match(text, /^\.{1,2}$/);
      if (partial !== undefined)
        assert.ok(text.includes(`.${partial.jobId}-`) && text.includes(partial.entry));
      const stub = parseStubDirectoryName(text);
      if (stub !== undefined) assert.match(text, new RegExp(`^\\.?pyxis_${stub.jobId}[._]`));
    },
  },
  {
    name: 'log line',
    samples: ['/images/a b.sqsh', 'result=created" code=X'],
    pieces: ['\u001b', '"', '\\', '\ud83d', '\ude00', '\u{1f600}', 'a', ' ', '\n'],
    read: (text) => {
      const line = formatLogLine('prolog', { job: 7, image: text, result: 'failed', reason: text });
      assert.ok(line.length <= 2048 && line.isWellFormed());
      assert.not.match(line, control);
      assert.match(line, /^prolog job=7 image=.* result=failed reason=/);
      assert.not.match(escapeControls(text), control);
    },
  },
];

const test = suite('parsers');

for (const { name, samples, pieces, read } of parsers) {
  const readHarmless = (text: string): void => {
    try {
      read(text);
    } catch (error) {
      if (!(error instanceof JobFault)) throw error;
      assert.not(['BUG', undefined].includes(faultCode(error)));
    }
  };

  test(`${name}: no text makes it throw what is not declared, or pass on what is not allowed`, () => {
    forAll(1500, (random) => {
      readHarmless(hostile(random, samples));
    });
  });

  test(`${name}: no text of 400,000 characters makes it go back over it again and again`, () => {
    for (const text of longTexts(samples[0], [...pieces, '\n', ' ', 'a', '0', '\u0000'], 400_000)) {
      unlessItHangs(() => {
        readHarmless(text);
      });
    }
  });
}

/**
 * Nothing of the format; or a valid text, two of them crossed, or one of another format, changed once or
 * twice.
 */
function hostile(random: Random, samples: readonly [string, ...string[]]): string {
  const valid = (): string => random.pick(samples);
  switch (random.integer(0, 5)) {
    case 0:
      return random.hostileText(200);
    case 1: {
      const [one, other] = [valid(), valid()];
      return one.slice(0, random.integer(0, one.length)) + other.slice(random.integer(0, other.length));
    }
    case 2:
      return random.mutation(random.mutation(random.mutation(valid())));
    case 3:
      return random.mutation(random.pick(parsers as readonly [Parser, ...Parser[]]).samples[0]);
    default:
      return random.mutation(valid());
  }
}

test('slurm.conf: no text makes it throw or takes it long, includes of itself and continued lines too', async () => {
  const read = async (text: string): Promise<void> => {
    const found = await readSlurmConf('/etc/slurm/slurm.conf', () => Promise.resolve(text));
    for (const key of ['prolog', 'include', 'taskprolog', 'clustername'])
      for (const value of found.all(key)) assert.not.match(value, /\n/);
  };
  const texts: string[] = [];
  forAll(500, (random) =>
    texts.push(hostile(random, [slurmConf, 'Include slurm.conf\nInclude slurm.conf\n'])),
  );
  for (const text of texts) await read(text);
});

test('a superblock of any bytes is refused, or tells numbers that can be', () => {
  forAll(1500, (random) => {
    const superblock = Buffer.from(random.text('\u0000\u0001\u0004hsq\u00ff', 0, 100), 'latin1');
    if (random.integer(0, 3) > 0) superblock.write('hsqs');
    if (superblock.length > 30 && random.integer(0, 3) > 0) superblock.writeUInt16LE(4, 28);
    const sizeBytes = random.pick([0, 96, 2 ** 40, Number.MAX_SAFE_INTEGER]);
    try {
      const found = parseSuperblock({
        realPath: '/x',
        sizeBytes,
        modifiedAt: '1.0',
        changedAt: '1.0',
        superblock,
      });
      assert.ok(
        found.inodes >= 0 && found.inodes < 2 ** 32 && found.usedBytes >= 0 && found.usedBytes <= sizeBytes,
      );
    } catch (error) {
      assert.instance(error, JobFault);
    }
  });
});

test('node facts read back as they were written, and a value never makes a fact of its own', () => {
  forAll(500, (random) => {
    const text = (): string => random.hostileText(60);
    const some = (): string | undefined => (random.integer(0, 3) === 0 ? undefined : text());
    const written: NodeFacts = {
      fingerprint: text(),
      basePath: text(),
      enrootPath: some(),
      enrootVersion: some(),
      isolation: random.pick(['overlay', 'shared', 'off']),
      reason: some(),
      imageFreshness: text(),
      command: some(),
      mountsFile: text(),
      baseMount: some(),
      validUntilMs: random.integer(0, 1) === 0 ? undefined : random.integer(0, Number.MAX_SAFE_INTEGER),
      importer: some(),
      pyxisRuntimePath: some(),
      pyxisVersion: some(),
      pyxisFiles: some(),
      pyxisStamp: some(),
    };
    const expected = Object.fromEntries(
      Object.entries(written).map(([key, value]: [string, string | number | undefined]) => [
        key,
        typeof value === 'string' ? value.replaceAll(/[\r\n]+/g, ' ') : value,
      ]),
    );
    assert.equal(parseNodeFacts(formatNodeFacts(written)), expected);
  });
});

test('settings of any valid value read back', () => {
  forAll(500, (random) => {
    const path = (): string => `/${random.text('abcXYZ019_.+@%=-', 1, 12)}x/${random.text('abc019_', 1, 12)}`;
    const low = random.integer(0, 98);
    const values: Record<(typeof settingKeys)[number], string | number> = {
      container_cache_data_path: path(),
      container_cache_gc_high: random.integer(low + 1, 100),
      container_cache_gc_low: low,
      container_cache_max_size: random.pick([
        `${random.integer(1, 999)}${random.pick(['', 'K', 'M', 'G', 'T'])}`,
        '40%',
      ]),
      gc_min_age: random.integer(0, 31_536_000),
      create_timeout: random.integer(0, 86_400),
      create_processors: random.integer(0, 1024),
      create_mode: random.pick(['wait', 'background']),
      image_freshness: random.pick(['always', 'if-not-present']),
      on_failure: random.pick(['continue', 'fail']),
      isolation: random.pick(['auto', 'overlay', 'shared', 'off']),
      enroot_sysconf_path: path(),
      enroot_path: path(),
      runtime_dir: path(),
      state_dir: path(),
      pin: `${random.text('abcxyz019_.@-', 1, 8).replace(/^[.@-]/, 'a')} /${random.text('abc#:/.é -', 0, 12)}x`,
      trusted_images: `${path()}:${path()}`,
      trusted_owners: `root, ${random.integer(0, 4_294_967_294)}`,
      trusted_images_copy: random.pick(['auto', 'reflink', 'copy', 'never']),
      prepare_images: random.integer(0, 64),
      log_target: random.pick(['syslog', 'stderr']),
      log_level: random.pick(['error', 'warning', 'info', 'debug']),
      syslog_facility: random.pick(['daemon', 'local0', 'user']),
    };
    const blank = (): string => random.text(' \t', 0, 3);
    const text = settingKeys
      .map((key) => `${blank()}${key}${blank()}=${blank()}${values[key]}${blank()}\n`)
      .join('');
    const { settings, problems } = parseSettings(text, '/x.conf');
    assert.equal(problems, []);
    assert.ok(settings);
    const { pins, maxSize, trustedImages, trustedOwners, ...rest } = settings;
    const { pin, container_cache_max_size: size, trusted_images, trusted_owners, ...others } = values;
    assert.is(trustedImages.join(':'), trusted_images);
    assert.is(`root, ${trustedOwners[1]}`, trusted_owners);
    assert.equal(maxSize, { [size === '40%' ? 'percent' : 'bytes']: Object.values(maxSize ?? {})[0] });
    assert.equal(Object.values(rest).sort(), Object.values(others).sort());
    assert.equal(
      pins.map(({ user, image }) => `${user} ${image}`),
      [pin],
    );
  });
});

test('mounts of any names read back', () => {
  forAll(500, (random) => {
    const name = (): string => `/${random.text('aé \t\n\\,:=-/', 0, 12)}`;
    const written = Array.from({ length: random.integer(1, 4) }, () => ({
      device: `${random.integer(0, 300)}:${random.integer(0, 99)}`,
      root: name(),
      mountPoint: name(),
      filesystem: random.pick(['ext4', 'fuse.x', 'overlay']),
      superOptions: 'rw,a=b',
    }));
    const escape = (text: string): string =>
      text.replaceAll(/[ \t\n\\]/g, (found) => `\\${found.charCodeAt(0).toString(8).padStart(3, '0')}`);
    const text = written.map(
      ({ device, root, mountPoint, filesystem, superOptions }, index) =>
        `${index} 1 ${device} ${escape(root)} ${escape(mountPoint)} rw${' shared:1'.repeat(index)} - ${filesystem} none ${superOptions}\n`,
    );
    assert.equal(parseMountinfo(text.join('')), written);
  });
});

test('a plan for entries and disks of any numbers keeps what is used, and leaves none out', () => {
  forAll(1000, (random) => {
    const number = (): number =>
      random.pick([0, 1, -1, 0.5, random.integer(0, 10 ** 12), Number.MAX_SAFE_INTEGER]);
    const entries = Array.from({ length: random.integer(0, 20) }, (_, index): EntryFacts => ({
      uid: random.integer(0, 3),
      name: `e${index}`,
      usedAtMs: number(),
      leased: random.integer(0, 3) === 0,
      mounted: random.integer(0, 3) === 0,
      pinned: false,
      takesRoom: true,
      bytes: Math.abs(number()),
      inodes: Math.abs(number()),
    }));
    const disk = {
      totalBytes: number(),
      freeBytes: number(),
      availableBytes: number(),
      totalInodes: number(),
      freeInodes: number(),
    };
    const policy = {
      gcHighPercent: random.integer(1, 100),
      gcLowPercent: random.integer(0, 99),
      gcMinAgeSeconds: random.pick([0, 120, 10 ** 9]),
    };
    const nowMs = number();
    const { evict, reserve, kept } = planCollection(entries, disk, policy, nowMs);
    assert.equal(
      [...evict, ...reserve, ...kept.map((one) => one.entry)].map(({ name }) => name).sort(),
      entries.map(({ name }) => name).sort(),
    );
    for (const one of [...evict, ...reserve]) assert.is(keepReason(one, policy, nowMs), undefined);
  });
});

test.run();
