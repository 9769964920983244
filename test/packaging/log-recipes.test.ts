/** The recipes of OPERATIONS.md, as they stand there, on a real rsyslogd and a real journald. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { projectRoot } from '../../build/source-files.ts';
import { assert, suite } from '../helpers/suite.ts';

const rsyslogd = '/usr/sbin/rsyslogd';
const journald = '/lib/systemd/systemd-journald';
const test = suite('log recipes');
const unlessRsyslogd = existsSync(rsyslogd) ? undefined : 'needs rsyslog';
const unlessJournald =
  existsSync(journald) && readIfThere('/etc/machine-id') !== '' && process.getuid?.() === 0
    ? undefined
    : 'needs root, systemd and a machine ID';

/** The code blocks below a heading. */
function blocksBelow(heading: string): string[] {
  const text = readFileSync(join(projectRoot, 'OPERATIONS.md'), 'utf8');
  const section = text.split(`\n## ${heading}\n`)[1]?.split('\n## ')[0] ?? '';
  return [...section.matchAll(/```\n(.*?)```/gs)].map(([, block = '']) => block);
}

function readIfThere(path: string): string {
  return existsSync(path) ? readFileSync(path, 'utf8').trim() : '';
}

async function untilText(read: () => string, wanted: RegExp): Promise<string> {
  const deadlineMs = Date.now() + 20_000;
  for (;;) {
    const text = read();
    if (wanted.test(text)) return text;
    assert.ok(Date.now() < deadlineMs, `no ${String(wanted)} in ${text}`);
    await sleep(50);
  }
}

test.unless(
  unlessRsyslogd,
  'rsyslog: a file of its own has all lines and no other, and a log host gets what wants attention',
  async () => {
    const [ownFile = '', toHost = '', ofRoot = ''] = blocksBelow('Log recipes');
    const root = mkdtempSync(join(tmpdir(), 'rsyslog-'));
    let received = '';
    const server = createServer((socket) => {
      socket.on('data', (data) => (received += data.toString()));
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    const [own, other, roots] = ['own.log', 'other.log', 'root.log'].map((name) => join(root, name)) as [
      string,
      string,
      string,
    ];
    const [loading = '', filter = ''] = ofRoot.split('\n');
    const trusting = loading.replaceAll('SysSock.', '').replace(/^.*"imuxsock" (.*)\)$/, '$1');
    chmodSync(root, 0o755);
    const socketPath = join(root, 'log');
    // The host first: the other recipe stops.
    const configuration = [
      `module(load="imuxsock" SysSock.Use="off")`,
      `input(type="imuxsock" Socket="${socketPath}" RateLimit.Interval="0" ${trusting})`,
      filter.replace('/var/log/container-cache-root.log', roots),
      toHost.replace('@@loghost:514', `@@127.0.0.1:${port}`),
      ownFile.replace('/var/log/container-cache.log', own),
      `*.* ${other}`,
    ].join('\n');
    assert.match(configuration, new RegExp(`Annotate=[^]*${roots}[^]*127.0.0.1:${port}[^]*${own}`));
    writeFileSync(join(root, 'rsyslog.conf'), `${configuration}\n`);
    const check = spawnSync(rsyslogd, ['-N1', '-f', join(root, 'rsyslog.conf')], { encoding: 'utf8' });
    assert.is(check.status, 0, check.stderr);
    const daemon = spawn(rsyslogd, ['-n', '-f', join(root, 'rsyslog.conf'), '-i', join(root, 'pid')], {
      stdio: 'ignore',
    });
    try {
      await untilText(() => (existsSync(socketPath) ? 'there' : ''), /there/);
      const log = (tag: string, line: string, ids: Readonly<Record<string, number>> = {}): void => {
        const args = ['--socket', socketPath, '--prio-prefix', '--tag', tag];
        assert.is(spawnSync('logger', args, { input: `${line}\n`, ...ids }).status, 0);
      };
      chmodSync(socketPath, 0o666);
      if (process.getuid?.() === 0)
        log('container-cache[6]', '<30>prolog job=3 forged', { uid: 65_534, gid: 65_534 });
      log('container-cache[7]', '<30>prolog job=1 result=reused');
      log('container-cache[8]', '<28>prolog job=2 result=failed code=NO_SPACE');
      log('container-cachet[9]', '<28>another program');
      const others = await untilText(
        () => (existsSync(other) ? readFileSync(other, 'utf8') : ''),
        /another program/,
      );
      assert.not.match(others, /prolog/);
      const lines = await untilText(() => (existsSync(own) ? readFileSync(own, 'utf8') : ''), /job=2/);
      assert.match(lines, /container-cache\[7\]: prolog job=1 result=reused\n/);
      assert.not.match(lines, /another/);
      if (process.getuid?.() === 0) {
        const said = await untilText(() => readIfThere(roots), /job=2/);
        assert.match(said, /job=1/);
        assert.not.match(said, /forged/);
        assert.match(lines, /forged/);
      }
      await untilText(() => received, /job=2 result=failed/);
      assert.not.match(received, /job=1|another/);
    } finally {
      daemon.kill('SIGKILL');
      server.close();
      rmSync(root, { recursive: true });
    }
  },
);

/** The commands of a paragraph, each as it stands there. */
function commandsOf(start: string): string[] {
  const text = readFileSync(join(projectRoot, 'OPERATIONS.md'), 'utf8');
  const paragraph = text.slice(text.indexOf(start)).split('\n\n', 1)[0]!;
  return [...paragraph.matchAll(/`([^`]+)`/g)].map(([, command = '']) => command);
}

test.unless(
  unlessJournald,
  'journald: all lines, those that want attention, those of a job, and their fields',
  () => {
    const [all = '', attention = '', job = '', bare = '', fields = ''] = commandsOf('More with journald:');
    const [, ofRoot = ''] =
      /With journald:\s+`([^`]+)`/.exec(readFileSync(join(projectRoot, 'OPERATIONS.md'), 'utf8')) ?? [];
    assert.match(fields, /^journalctl .*uniq -c$/);
    // In a /run and a /dev of its own, where what it takes over is nobody else's.
    const script = `
    exec 2>&1
    mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal /run/log/journal /run/dev
    cp --archive /dev/null /dev/urandom /run/dev/ && mount --bind /run/dev /dev
    ln -s /run/systemd/journal/dev-log /dev/log
    ${journald} >/dev/null &
    until [ -S /run/systemd/journal/dev-log ]; do sleep 0.05; done
    say() { echo "$2" | logger --prio-prefix --tag "$1"; }
    say 'container-cache[7]' '<30>prolog job=1 result=reused'
    say 'container-cache[8]' '<28>prolog job=17 result=failed code=NO_SPACE'
    say 'container-cachet[9]' '<28>prolog job=17 another program'
    until ${all} | grep -q job=17; do sleep 0.05; done
    for options in '' ${JSON.stringify(attention)} ${JSON.stringify(job)} ${JSON.stringify(bare)}; do
      echo "== $options"
      eval "${all} $options"
    done
    echo == fields
    ${fields}
    echo '<30>prolog job=9 forged' |
      setpriv --reuid=65534 --regid=65534 --clear-groups logger --prio-prefix --tag 'container-cache[6]'
    until ${all} | grep -q forged; do sleep 0.05; done
    echo == root
    ${ofRoot}`;
    const { status, stdout } = spawnSync(
      'unshare',
      ['--mount', '--pid', '--fork', '--kill-child', '--mount-proc', 'timeout', '60', 'sh', '-c', script],
      { encoding: 'utf8' },
    );
    assert.is(status, 0, stdout);
    const [, everything = '', urgent = '', ofJob = '', plain = '', counts = '', roots = ''] =
      stdout.split(/^== .*\n/m);
    const one = /container-cache\[\d+\]: prolog job=1 result=reused\n/;
    const other = /container-cache\[\d+\]: prolog job=17 result=failed code=NO_SPACE\n/;
    assert.match(everything, one);
    assert.match(everything, other);
    assert.not.match(stdout, /another program/);
    for (const text of [urgent, ofJob]) {
      assert.match(text, other);
      assert.not.match(text, one);
    }
    assert.is(plain, 'prolog job=1 result=reused\nprolog job=17 result=failed code=NO_SPACE\n');
    assert.match(roots, one);
    assert.not.match(roots, /forged/);
    assert.equal(counts.trim().split(/\s*\n\s*/), ['1 result=failed', '1 result=reused']);
  },
);

test.run();
