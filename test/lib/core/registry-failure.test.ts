/** registry-failure.ts: what enroot and curl print, as one cause; and how long a failure is remembered. */
import {
  explainRegistryFailure,
  formatFailures,
  isPaused,
  noteFailure,
  parseFailures,
  type RememberedFailure,
} from '../../../lib/core/registry-failure.ts';
import { assert, suite } from '../../helpers/suite.ts';

const registry = 'reg.example:5000';
const chatter = '[INFO] Querying registry for permission grant\n';

const explain = (stderr: string, exitCode = 1): string => {
  const { kind, cause } = explainRegistryFailure(registry, {
    exitCode,
    stderrTail: `${chatter}${stderr}`.trim(),
  });
  return `${kind}: ${cause}`;
};

// As enroot 4.1.2 with curl 7.88 printed them; 407 of a tunnel as older and newer curl have it.
const cases: readonly [stderr: string, explained: string][] = [
  [
    '[ERROR] URL https://reg.example:5000/v2/x/manifests/t returned error code: 401 Unauthorized',
    `refused: registry ${registry} refused: 401 Unauthorized`,
  ],
  [
    '[INFO] Authenticating with user: <anonymous>\n[ERROR] URL https://auth.example/token?x=1 returned error code: 403 Forbidden',
    `refused: registry ${registry} refused: 403 Forbidden (from auth.example)`,
  ],
  [
    '[ERROR] URL http://reg.example:5000/v2/x/manifests/t returned error code: 429 ',
    `silent: registry ${registry} is not available: 429 Too Many Requests`,
  ],
  [
    '[ERROR] URL http://reg.example:5000/v2/x/manifests/t returned error code: 599 ',
    `silent: registry ${registry} is not available: 599`,
  ],
  [
    '[ERROR] URL http://reg.example:5000/v2/x/manifests/t returned error code: 407 Proxy Authentication Required',
    `refused: the proxy before registry ${registry} refused: 407 Proxy Authentication Required`,
  ],
  [
    'curl: (56) CONNECT tunnel failed, response 407',
    `refused: the proxy before registry ${registry} refused: 407 Proxy Authentication Required`,
  ],
  [
    'curl: (56) Received HTTP code 503 from proxy after CONNECT',
    `silent: registry ${registry} is not available: 503 Service Unavailable (from the proxy)`,
  ],
  [
    "curl: (7) Failed to connect to localhost port 1 after 0 ms: Couldn't connect to server",
    `silent: cannot reach registry ${registry}: Failed to connect to localhost port 1 after 0 ms: Couldn't connect to server`,
  ],
  [
    'curl: (6) Could not resolve host: nosuch.invalid',
    `silent: cannot reach registry ${registry}: Could not resolve host: nosuch.invalid`,
  ],
  [
    'curl: (52) Empty reply from server',
    `silent: cannot reach registry ${registry}: Empty reply from server`,
  ],
  [
    'curl: (60) SSL certificate problem: self-signed certificate\nMore details here: https://curl.se/docs/sslcerts.html\n\ncurl failed to verify',
    `refused: cannot ask registry ${registry}: SSL certificate problem: self-signed certificate`,
  ],
  [
    'curl: (22) The requested URL returned error: 404\nChecksum mismatch: abc',
    `refused: registry ${registry} refused: 404 Not Found`,
  ],
  // The answer that refuses a password is not printed.
  [
    '[INFO] Authenticating with user: <anonymous>',
    `refused: registry ${registry} refused user <anonymous> (enroot does not tell the answer)`,
  ],
  [
    '[INFO] Authenticating with user: alice\n[INFO] Using credentials from file: /home/alice/.config/enroot/.credentials',
    `refused: registry ${registry} refused user alice (enroot does not tell the answer)`,
  ],
  ['[ERROR] Command not found: jq', 'other: enroot: [ERROR] Command not found: jq'],
  ['', 'other: enroot ended with exit code 1'],
];

const explaining = suite('explainRegistryFailure()');

for (const [stderr, explained] of cases) {
  explaining(explained, () => {
    assert.is(explain(stderr), explained);
  });
}

explaining('an earlier failure that enroot went on after is not the cause', () => {
  const stderr =
    'curl: (7) Failed to connect\n[INFO] Fetching\n[ERROR] URL https://reg.example:5000/x returned error code: 404 Not Found';
  assert.is(explain(stderr), `refused: registry ${registry} refused: 404 Not Found`);
});

explaining('what did not end in time did not answer, whatever it said before', () => {
  const late = explainRegistryFailure(registry, { exitCode: 124, stderrTail: chatter, lateAfterMs: 5000 });
  assert.equal(late, { kind: 'late', cause: `registry ${registry} did not answer within 5 s` });
});

explaining('what could not be written is no word of the registry', () => {
  const { kind, cause } = explainRegistryFailure(registry, {
    exitCode: 1,
    stderrTail: 'curl: (23) Failure writing output to destination',
  });
  assert.equal([kind, /full where enroot keeps layers/.test(cause)], ['other', true]);
});

explaining('a cause is short, however much was said', () => {
  for (const stderr of [`curl: (7) ${'x'.repeat(5000)}`, `[ERROR] ${'y'.repeat(5000)}`, 'z'.repeat(5000)])
    assert.ok(explain(stderr).length < 300);
});

explaining.run();

const remembering = suite('noteFailure()');

const key = '00deadbeef001122';
const failure = { kind: 'silent', cause: 'cannot reach' } as const;

remembering(
  'each failure after a pause doubles the next, up to ten minutes; one during it changes nothing',
  () => {
    let memory: readonly RememberedFailure[] = [];
    let nowMs = 1_000_000;
    const pauses: number[] = [];
    for (let failures = 1; failures <= 30; failures++) {
      memory = noteFailure(memory, key, failure, nowMs);
      const [noted] = memory;
      pauses.push((noted!.untilMs - nowMs) / 1000);
      assert.is(noteFailure(memory, key, failure, noted!.untilMs - 1), memory);
      nowMs = noted!.untilMs;
      assert.not(isPaused(noted!, nowMs));
    }
    assert.equal(pauses, [60, 120, 240, 480, ...new Array<number>(26).fill(600)]);
  },
);

remembering('it is bounded: the oldest go', () => {
  let memory: readonly RememberedFailure[] = [];
  for (let n = 0; n < 100; n++)
    memory = noteFailure(memory, n.toString(16).padStart(16, '0'), failure, 1000 + n);
  assert.is(memory.length, 16);
  assert.is(memory.at(-1)!.key, (99).toString(16).padStart(16, '0'));
});

remembering('what is written is read, whatever the cause says; nothing else is', () => {
  const cause = `a\tb\nc ${'x'.repeat(500)}`;
  const memory = noteFailure([], key, { kind: 'refused', cause }, 1000);
  const read = parseFailures(formatFailures(memory));
  assert.equal(
    read.map(({ cause: text, ...rest }) => [rest, text.length <= 201]),
    [[{ key, failures: 1, atMs: 1000, untilMs: 61_000, kind: 'refused' }, true]],
  );
  for (const text of [
    '',
    'x',
    `${key}\t1\t1\t1\tother`,
    `${key}\t1\t1\t1\tunknown\tx`,
    `${key}\t-1\t1\t1\tsilent\tx`,
  ])
    assert.equal(parseFailures(text), []);
});

remembering.run();
