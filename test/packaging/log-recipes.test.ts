/** The recipes of OPERATIONS.md for rsyslog, as they stand there, on a real rsyslogd. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { projectRoot } from '../../build/source-files.ts';
import { assert, suite } from '../helpers/suite.ts';

const rsyslogd = '/usr/sbin/rsyslogd';
const test = suite('log recipes', { skip: existsSync(rsyslogd) ? undefined : 'needs rsyslog' });

/** The code blocks below a heading. */
function blocksBelow(heading: string): string[] {
  const text = readFileSync(join(projectRoot, 'OPERATIONS.md'), 'utf8');
  const section = text.split(`\n## ${heading}\n`)[1]?.split('\n## ')[0] ?? '';
  return [...section.matchAll(/```\n(.*?)```/gs)].map(([, block = '']) => block);
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

test('rsyslog: a file of its own has all lines and no other, and a log host gets what wants attention', async () => {
  const [ownFile = '', toHost = ''] = blocksBelow('Log recipes');
  const root = mkdtempSync(join(tmpdir(), 'rsyslog-'));
  let received = '';
  const server = createServer((socket) => {
    socket.on('data', (data) => (received += data.toString()));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const [own, other] = [join(root, 'own.log'), join(root, 'other.log')];
  const socketPath = join(root, 'log');
  // The host first: the other recipe stops.
  const configuration = [
    `module(load="imuxsock" SysSock.Use="off")`,
    `input(type="imuxsock" Socket="${socketPath}" RateLimit.Interval="0")`,
    toHost.replace('@@loghost:514', `@@127.0.0.1:${port}`),
    ownFile.replace('/var/log/container-cache.log', own),
    `*.* ${other}`,
  ].join('\n');
  assert.match(configuration, new RegExp(`127.0.0.1:${port}[^]*${own}`));
  writeFileSync(join(root, 'rsyslog.conf'), `${configuration}\n`);
  const check = spawnSync(rsyslogd, ['-N1', '-f', join(root, 'rsyslog.conf')], { encoding: 'utf8' });
  assert.is(check.status, 0, check.stderr);
  const daemon = spawn(rsyslogd, ['-n', '-f', join(root, 'rsyslog.conf'), '-i', join(root, 'pid')], {
    stdio: 'ignore',
  });
  try {
    await untilText(() => (existsSync(socketPath) ? 'there' : ''), /there/);
    const log = (tag: string, line: string): void => {
      const args = ['--socket', socketPath, '--prio-prefix', '--tag', tag];
      assert.is(spawnSync('logger', args, { input: `${line}\n` }).status, 0);
    };
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
    await untilText(() => received, /job=2 result=failed/);
    assert.not.match(received, /job=1|another/);
  } finally {
    daemon.kill('SIGKILL');
    server.close();
    rmSync(root, { recursive: true });
  }
});

test.run();
