/** settings.ts: every key, its default, its extremes, and what an admin reads when something is wrong. */
import { NodeFault } from '../../../lib/core/faults.ts';
import {
  createLimitMs,
  longestPrologSeconds,
  defaultConfigPath,
  defaultRuntimePath,
  logLevels,
  parseSettings,
  requireSettings,
  settingKeys,
  syslogFacilities,
  type ImageSizes,
  type Settings,
} from '../../../lib/core/settings.ts';
import { forAll } from '../../helpers/property.ts';
import { assert, suite } from '../../helpers/suite.ts';

const file = '/etc/slurm/x.conf';
const base = 'container_cache_data_path=/raid/data\n';

/** The settings of a file that is right. */
function read(text: string): Settings {
  return requireSettings(parseSettings(text, file));
}

/** What is wrong with a file. */
function problems(text: string): readonly string[] {
  const parsed = parseSettings(text, file);
  assert.is(parsed.settings === undefined, parsed.problems.length > 0);
  return parsed.problems;
}

/** The one problem of a file that is right but for one line. */
function problemOf(line: string): string {
  const [first, ...more] = problems(base + line);
  assert.equal(more, []);
  return first ?? '';
}

const parse = suite('parseSettings()');

parse('needs the data path only; the rest has defaults', () => {
  assert.equal(read(base), {
    basePath: '/raid/data',
    gcHighPercent: 85,
    gcLowPercent: 80,
    gcMinAgeSeconds: 120,
    maxSize: undefined,
    createTimeoutSeconds: 0,
    createProcessors: 0,
    createMode: 'wait',
    imageFreshness: 'always',
    onFailure: 'continue',
    isolation: 'auto',
    enrootSysconfPath: '/etc/enroot',
    enrootPath: undefined,
    runtimePath: '/run/container-cache',
    statePath: '/var/lib/container-cache',
    pins: [],
    trustedImages: [],
    trustedOwners: [],
    imageCopying: 'auto',
    prepareImages: 16,
    logTarget: 'syslog',
    logLevel: 'info',
    syslogFacility: 'daemon',
  });
  assert.is(defaultRuntimePath, '/run/container-cache');
  assert.is(defaultConfigPath, '/etc/slurm/container-cache.conf');
});

const everything = `
  container_cache_data_path=/mnt/nvme-0/containers/data_1
  container_cache_gc_high=90
  container_cache_gc_low=70
  container_cache_max_size=1.5T
  gc_min_age=600
  create_timeout=1800
  create_processors=8
  create_mode=background
  image_freshness=if-not-present
  on_failure=fail
  isolation=shared
  enroot_sysconf_path=/opt/enroot/etc/
  enroot_path=/opt/enroot/bin/enroot
  runtime_dir=/run/cache
  state_dir=/var/cache-state
  pin=alice /images/a b.sqsh
  trusted_images=/images:/lustre/site/images/
  trusted_owners=root, 1500
  trusted_images_copy=never
  prepare_images=4
  log_target=stderr
  log_level=debug
  syslog_facility=local3
`;

parse('every key sets what it is named after', () => {
  assert.equal(read(everything), {
    basePath: '/mnt/nvme-0/containers/data_1',
    gcHighPercent: 90,
    gcLowPercent: 70,
    gcMinAgeSeconds: 600,
    maxSize: { bytes: 1.5 * 2 ** 40 },
    createTimeoutSeconds: 1800,
    createProcessors: 8,
    createMode: 'background',
    imageFreshness: 'if-not-present',
    onFailure: 'fail',
    isolation: 'shared',
    enrootSysconfPath: '/opt/enroot/etc',
    enrootPath: '/opt/enroot/bin/enroot',
    runtimePath: '/run/cache',
    statePath: '/var/cache-state',
    pins: [{ user: 'alice', image: '/images/a b.sqsh' }],
    trustedImages: ['/images', '/lustre/site/images'],
    trustedOwners: [0, 1500],
    imageCopying: 'never',
    prepareImages: 4,
    logTarget: 'stderr',
    logLevel: 'debug',
    syslogFacility: 'local3',
  });
});

parse('a size is bytes with a unit, powers of 1024, or percent of the disk', () => {
  const size = (text: string): unknown => read(`${base}container_cache_max_size=${text}`).maxSize;
  for (const [text, bytes] of [
    ['1', 1],
    ['4096', 4096],
    ['3K', 3072],
    ['64M', 64 * 2 ** 20],
    ['500G', 500 * 2 ** 30],
    ['500 GiB', 500 * 2 ** 30],
    ['500gb', 500 * 2 ** 30],
    ['2T', 2 ** 41],
  ] as const)
    assert.equal(size(text), { bytes }, text);
  assert.equal(
    [size('40%'), size('0.5 %'), size('100%')],
    [{ percent: 40 }, { percent: 0.5 }, { percent: 100 }],
  );
  for (const wrong of [
    '',
    '0',
    '0K',
    '0%',
    '101%',
    '-1',
    '1P',
    '1KK',
    '5 0',
    '%',
    'K',
    '1e9',
    '99999999T',
    '1.5.5G',
    'toString',
  ])
    assert.match(
      problemOf(`container_cache_max_size=${wrong}`),
      /want bytes with K, M, G or T behind them/,
      wrong,
    );
});

parse('a key that this test does not know is one that nobody tested', () => {
  const tested = [...everything.matchAll(/^ *(\w+)=/gm)].map(([, key]) => key);
  assert.equal([...settingKeys].sort(), tested.sort());
});

parse('blanks, empty lines, comments, carriage returns and a byte order mark do not count', () => {
  const text = `\ufeff# the cache\r\n\r\n \t container_cache_data_path \t=  /raid/data \r\n#gc_min_age=1\r\n   # gc_min_age=2\r\ngc_min_age= 7`;
  assert.is(read(text).basePath, '/raid/data');
  assert.is(read(text).gcMinAgeSeconds, 7);
});

parse('the ends of each range are in it, one more is not', () => {
  const ranges = [
    ['container_cache_gc_high', 'gcHighPercent', 1, 100, 'percent', 'container_cache_gc_low=0\n'],
    ['container_cache_gc_low', 'gcLowPercent', 0, 99, 'percent', 'container_cache_gc_high=100\n'],
    ['gc_min_age', 'gcMinAgeSeconds', 0, 31_536_000, 'seconds', ''],
    ['create_timeout', 'createTimeoutSeconds', 0, 86_400, 'seconds, 0 for a limit by size', ''],
    ['create_processors', 'createProcessors', 0, 1024, 'threads, 0 for all', ''],
  ] as const;
  for (const [key, property, lowest, highest, unit, beside] of ranges) {
    assert.is(read(`${base}${beside}${key}=${lowest}`)[property], lowest);
    assert.is(read(`${base}${beside}${key}=${highest}`)[property], highest);
    const wanted = `want a whole number from ${lowest} to ${highest} (${unit})`;
    for (const wrong of [lowest - 1, highest + 1]) {
      assert.equal(problems(`${base}${beside}${key}=${wrong}`), [
        `${file}:${beside === '' ? 2 : 3}: ${key}: found "${wrong}", ${wanted}`,
      ]);
    }
  }
});

parse('a number is digits and nothing else', () => {
  for (const text of [
    '',
    'soon',
    '1.5',
    '1e3',
    '0x10',
    '+5',
    '-0',
    '5s',
    '1_000',
    '٣',
    '1 # one',
    '9'.repeat(30),
  ]) {
    assert.is(
      problemOf(`gc_min_age=${text}`),
      `${file}:2: gc_min_age: found "${text}", want a whole number from 0 to 31536000 (seconds)`,
    );
  }
  assert.is(read(`${base}gc_min_age=007`).gcMinAgeSeconds, 7);
});

parse('a choice is one of its words, exactly', () => {
  const choices = {
    image_freshness: 'always, if-not-present',
    on_failure: 'continue, fail',
    log_target: 'syslog, stderr',
    log_level: 'error, warning, info, debug',
    syslog_facility:
      'auth, authpriv, cron, daemon, local0, local1, local2, local3, local4, local5, local6, local7, syslog, user',
  };
  for (const [key, words] of Object.entries(choices)) {
    for (const wrong of ['', 'toString', words.split(', ')[0]!.toUpperCase(), `${words.split(', ')[0]!} x`]) {
      assert.is(problemOf(`${key}=${wrong}`), `${file}:2: ${key}: found "${wrong}", want one of ${words}`);
    }
    for (const right of words.split(', ')) assert.equal(problems(`${base}${key}=${right}`), []);
  }
  assert.is(logLevels.join(', '), choices.log_level);
  assert.is(syslogFacilities.join(', '), choices.syslog_facility);
});

parse('a path is absolute, plain, and not the root', () => {
  const wanted = 'want an absolute path of letters, digits and _.+@%=- without "." or ".." in it';
  const wrong = [
    ...['', '/', '//', 'raid/data', './raid', '~/data', '$HOME/data', '/raid//data', '/raid/data//'],
    ...['/raid/./data', '/raid/../data', '/raid/data/..', '/raid/data/.', '/..', '/.'],
    ...[
      '/raid/my data',
      "/raid/'data'",
      '/raid/a:b',
      '/raid/a,b',
      '/raid/$x',
      '/raid/ä',
      '/raid/a\\040b',
      '/raid/a#b',
    ],
  ];
  for (const key of ['container_cache_data_path', 'enroot_path', 'runtime_dir']) {
    const beside = key === 'container_cache_data_path' ? '\n' : base;
    for (const path of wrong) {
      assert.equal(problems(`${beside}${key}=${path}`), [
        `${file}:2: ${key}: found ${JSON.stringify(path)}, ${wanted}`,
      ]);
    }
  }
});

parse('a path loses the slash at its end, and may have dots within its names', () => {
  assert.is(read('container_cache_data_path=/raid/data/').basePath, '/raid/data');
  assert.is(read('container_cache_data_path=/raid/..data/x..y/...').basePath, '/raid/..data/x..y/...');
  assert.is(read(`${base}runtime_dir=/a/`).runtimePath, '/a');
  assert.is(read('container_cache_data_path=/a=b@c+%-_.0').basePath, '/a=b@c+%-_.0');
});

parse('the data path must be there', () => {
  assert.equal(problems('gc_min_age=1'), [
    `${file}: container_cache_data_path: not set, want the absolute path of a node-local directory`,
  ]);
  assert.is(problems('').length, 1);
});

parse('an unknown key is named, with the one that is like it, and never with all of them', () => {
  for (const [key, nearest] of [
    ['gc_minage', 'gc_min_age'],
    ['GC_MIN_AGE', 'gc_min_age'],
    ['container_cache_gc_high.', 'container_cache_gc_high'],
    ['container-cache-data-path', 'container_cache_data_path'],
    ['data_path', 'container_cache_data_path'],
    ['container_cache_pin', 'pin'],
    ['isloation', 'isolation'],
    ['enroot_sysconf', undefined],
    ['', undefined],
    ['toString', undefined],
    ['__proto__', undefined],
    ['x', undefined],
  ] as const) {
    const hint = nearest === undefined ? 'container-cache.conf(5) has all of them' : `is it ${nearest}?`;
    assert.is(problemOf(`${key}=1`), `${file}:2: unknown key ${JSON.stringify(key)}; ${hint}`);
  }
});

parse('each key is recognised with any one letter of it missing', () => {
  for (const key of settingKeys.filter((one) => one.length > 3))
    for (let at = 0; at < key.length; at++)
      assert.ok(
        problemOf(`${key.slice(0, at)}${key.slice(at + 1)}=1`).endsWith(`; is it ${key}?`),
        `${key} ${at}`,
      );
});

parse('a line without "=" is shown', () => {
  assert.is(problemOf('gc_min_age 5'), `${file}:2: found "gc_min_age 5", want key=value`);
});

parse('what is found is shown in one line, and not at full length', () => {
  const shown = problemOf(`gc_min_age=${'\u001b['.repeat(100)}`);
  assert.match(shown, /^\/etc\/slurm\/x\.conf:2: gc_min_age: found "(?:\\u001b\[){40}…", want /);
  assert.is(problemOf('a\u0000b'), `${file}:2: found "a\\u0000b", want key=value`);
});

parse('a key that is there twice is refused, and the first line of it is named', () => {
  assert.equal(problems(`${base}gc_min_age=1\n\ngc_min_age=1\ngc_min_age=2\n`), [
    `${file}:4: gc_min_age: found a second time, want it once (line 2 has it)`,
    `${file}:5: gc_min_age: found a second time, want it once (line 2 has it)`,
  ]);
});

parse('trusted images are directories by their paths, trusted owners uids', () => {
  for (const value of ['images', '/images:', '/images:b', '/', '/a b'])
    assert.match(
      problems(`${base}trusted_images=${value}\n`).join(),
      /trusted_images: found .*want an absolute/,
    );
  for (const value of ['alice', '-1', '4294967295', '1;2', ''])
    assert.match(problems(`${base}trusted_owners=${value}\n`).join(), /trusted_owners: found .*want uids/);
});

parse('pins add up, a line for each', () => {
  const text = `${base}pin=alice /a.sqsh\npin = 1001 \t nvcr.io#nvidia/pytorch:25.10 \npin=* /a.sqsh\n`;
  assert.equal(read(text).pins, [
    { user: 'alice', image: '/a.sqsh' },
    { user: '1001', image: 'nvcr.io#nvidia/pytorch:25.10' },
    { user: '*', image: '/a.sqsh' },
  ]);
});

parse('a pin without a user, without an image, or with a path that is not absolute is refused', () => {
  for (const value of ['/a.sqsh', 'alice', 'alice ./a.sqsh', '-x /a.sqsh', '** /a.sqsh', ''])
    assert.match(problems(`${base}pin=${value}\n`).join(), /^[^ ]+:2: pin: found .*want a user and an image/);
});

parse('the low watermark must be below the high one', () => {
  const wanted = 'want low below high';
  assert.is(
    problemOf('container_cache_gc_low=70\ncontainer_cache_gc_high=70'),
    `${file}:2: container_cache_gc_low: found low 70 and high 70, ${wanted}`,
  );
  assert.is(
    problemOf('container_cache_gc_high=50\ncontainer_cache_gc_low=60'),
    `${file}:3: container_cache_gc_low: found low 60 and high 50, ${wanted}`,
  );
  // Against a default too: the line that is there is the one to look at.
  assert.is(
    problemOf('container_cache_gc_low=85'),
    `${file}:2: container_cache_gc_low: found low 85 and high 85, ${wanted}`,
  );
  assert.is(
    problemOf('container_cache_gc_high=80'),
    `${file}:2: container_cache_gc_high: found low 80 and high 80, ${wanted}`,
  );
  assert.equal(problems(`${base}container_cache_gc_low=84`), []);
  assert.equal(problems(`${base}container_cache_gc_high=81`), []);
});

parse('a watermark that was not understood is not compared', () => {
  assert.is(
    problemOf('container_cache_gc_high=9 5\ncontainer_cache_gc_low=90'),
    `${file}:2: container_cache_gc_high: found "9 5", want a whole number from 1 to 100 (percent)`,
  );
  assert.is(
    problemOf('container_cache_gc_low=\ncontainer_cache_gc_high=50'),
    `${file}:2: container_cache_gc_low: found "", want a whole number from 0 to 99 (percent)`,
  );
});

parse('all problems are reported at once, in the order of their lines', () => {
  const text =
    'container_cache_data_path=data\ngc_min_age=soon\nnonsense\nlog_level=loud\nx=1\nlog_level=info\n';
  assert.equal(
    problems(text).map((problem) =>
      problem.replace(/(found|unknown key) ("[^"]*"|a second time).*/, '$1 $2'),
    ),
    [
      `${file}:1: container_cache_data_path: found "data"`,
      `${file}:2: gc_min_age: found "soon"`,
      `${file}:3: found "nonsense"`,
      `${file}:4: log_level: found "loud"`,
      `${file}:5: unknown key "x"`,
      `${file}:6: log_level: found a second time`,
    ],
  );
});

parse('the failure policy and the log target are known even if all the rest is wrong', () => {
  const parsed = parseSettings('nonsense\non_failure=fail\nlog_target=stderr\ngc_min_age=soon', file);
  assert.is(parsed.settings, undefined);
  assert.is(parsed.onFailure, 'fail');
  assert.is(parsed.logTarget, 'stderr');
});

parse('a failure policy that was not understood does not drain the node', () => {
  assert.is(parseSettings(`${base}on_failure=drain`, file).onFailure, 'continue');
  assert.is(parseSettings(base, file).onFailure, 'continue');
  // The first one counts; the second is the problem.
  assert.is(parseSettings('on_failure=fail\non_failure=continue', file).onFailure, 'fail');
});

parse('never throws, and gives settings or says why not', () => {
  forAll(500, (random) => {
    const text = random.integer(0, 3) === 0 ? random.hostileText(200) : random.mutation(everything);
    const parsed = parseSettings(text, file);
    assert.is(parsed.settings === undefined, parsed.problems.length > 0);
    for (const problem of parsed.problems) {
      assert.match(problem, /^\/etc\/slurm\/x\.conf:(?:\d+:)? /);
      assert.ok(problem.length < 600, problem);
      assert.not.match(problem, /[\u0000-\u001f]/);
    }
    if (parsed.settings === undefined) return;
    assert.ok(parsed.settings.gcLowPercent < parsed.settings.gcHighPercent);
    assert.match(parsed.settings.basePath, /^(?:\/[^/\s]+)+$/);
  });
});

parse.run();

const require = suite('requireSettings()');

require('a broken file is a fault of the node that names the first problem and counts the others', () => {
  const fault = assert.throws(
    () => read('gc_min_age=soon\nx=1'),
    NodeFault,
    /^\/etc\/slurm\/x\.conf:1: gc_min_age: found "soon", [^;]* \(and 2 more: container-cache check\)$/,
  );
  assert.is(fault.code, 'BAD_CONFIG');
  const alone = assert.throws(() => read(`${base}x=1`), NodeFault, /unknown key "x"/);
  assert.not.match(alone.message, /more/);
});

require.run();

const limit = suite('createLimitMs()');
const automatic = read(base);
const MiB = 2 ** 20;

/** A file whose every byte is on its disk. */
const whole = (bytes: number): ImageSizes => ({ claimedBytes: bytes, writtenBytes: bytes });
const hourMs = 3_600_000;

limit('is what the admin set, whatever the image', () => {
  const set = read(`${base}create_timeout=90`);
  for (const image of [undefined, whole(0), whole(Number.MAX_SAFE_INTEGER)])
    assert.is(createLimitMs(set, image), 90_000);
  assert.is(longestPrologSeconds(set), 90 + 120);
});

limit('is five minutes and a second for each 4 MiB of a file, and an hour at most', () => {
  assert.is(createLimitMs(automatic, whole(0)), 300_000);
  assert.is(createLimitMs(automatic, whole(4 * MiB)), 300_000 + 1024);
  assert.is(createLimitMs(automatic, whole(8 * 1024 * MiB)), 300_000 + 2048 * 1024);
  assert.is(createLimitMs(automatic, whole(2 ** 43)), hourMs);
  assert.is(longestPrologSeconds(automatic), 3600 + 120);
});

limit('is an hour where only the registry knows the size', () => {
  assert.is(createLimitMs(automatic, undefined), hourMs);
});

limit('what is on the disk counts, not what a file claims or what lies behind its image', () => {
  assert.is(createLimitMs(automatic, { claimedBytes: 2 ** 43, writtenBytes: 4 * MiB }), 300_000 + 1024);
  assert.is(createLimitMs(automatic, { claimedBytes: 4 * MiB, writtenBytes: 2 ** 43 }), 300_000 + 1024);
  // Where the filesystem counts no blocks, there is but the claim.
  assert.is(createLimitMs(automatic, { claimedBytes: 4 * MiB, writtenBytes: 0 }), 300_000 + 1024);
  assert.is(createLimitMs(automatic, { claimedBytes: Number.MAX_SAFE_INTEGER, writtenBytes: 0 }), hourMs);
});

limit.run();
