/** Alert rules and dashboard: understood by promtool, and of metrics that there are. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { emptyCounters } from '../../admin/counters.ts';
import { formatMetrics } from '../../admin/prometheus.ts';
import { projectRoot } from '../../build/source-files.ts';
import { assert, suite } from '../helpers/suite.ts';

const directory = join(projectRoot, 'monitoring');
const promtool =
  spawnSync('promtool', ['--version']).status === 0 ? undefined : 'needs promtool (package prometheus)';
const test = suite('monitoring');

const metrics = formatMetrics(emptyCounters(0), {
  version: '1.2.3',
  usage: { totalBytes: 100, freeBytes: 50, availableBytes: 40, totalInodes: 10, freeInodes: 5 },
  policy: { gcHighPercent: 85, gcLowPercent: 80, gcMinAgeSeconds: 0 },
  entries: { count: 0, bytes: 0, inodes: 0 },
  mounted: { count: 0, bytes: 0, views: 0, savedBytes: 0 },
  pinned: 0,
  leases: 0,
});

interface Dashboard {
  panels: { title: string; targets: { expr: string }[] }[];
}
const dashboard = JSON.parse(readFileSync(join(directory, 'grafana-dashboard.json'), 'utf8')) as Dashboard;
const expressions = dashboard.panels.flatMap(({ targets }) => targets.map(({ expr }) => expr));

function run(...args: string[]): void {
  const { status, stdout, stderr } = spawnSync('promtool', args, { cwd: directory, encoding: 'utf8' });
  assert.is(status, 0, `${stdout}${stderr}`);
}

test.unless(promtool, 'promtool understands the metrics and finds nothing to improve', () => {
  const { status, stdout, stderr } = spawnSync('promtool', ['check', 'metrics'], {
    input: metrics,
    encoding: 'utf8',
  });
  assert.equal([status, stdout, stderr], [0, '', '']);
});

test.unless(
  promtool,
  'promtool understands the alert rules, and each of them fires when it should and not before',
  () => {
    run('check', 'rules', 'prometheus-rules.yml');
    run('test', 'rules', 'prometheus-rules.test.yml');
  },
);

test('every alert has a test', () => {
  const named = (file: string, pattern: RegExp): string[] =>
    [...readFileSync(join(directory, file), 'utf8').matchAll(pattern)].map(([, name = '']) => name);
  const alerts = named('prometheus-rules.yml', /- alert: (\w+)/g);
  const tested = new Set(named('prometheus-rules.test.yml', /alertname: (\w+)/g));
  assert.equal(
    alerts.filter((name) => !tested.has(name)),
    [],
  );
  assert.ok(alerts.length >= 6);
});

test.unless(promtool, 'promtool understands every query of the dashboard', () => {
  const scratch = mkdtempSync(join(tmpdir(), 'dashboard-'));
  try {
    const variables = { $instance: '.*', $__range: '1h', $__rate_interval: '5m' };
    const rules = expressions.map((expr, index) => {
      const text = Object.entries(variables).reduce(
        (one, [name, value]) => one.replaceAll(name, value),
        expr,
      );
      return { record: `panel:query${index}`, expr: text };
    });
    const file = join(scratch, 'rules.yml');
    // JSON is YAML.
    writeFileSync(file, JSON.stringify({ groups: [{ name: 'dashboard', rules }] }));
    run('check', 'rules', file);
  } finally {
    rmSync(scratch, { recursive: true });
  }
});

test('rules and dashboard ask for metrics that there are', () => {
  const known = new Set(
    [...metrics.matchAll(/^# TYPE (\w+) (\w+)$/gm)].flatMap(([, name = '', type]) =>
      type === 'histogram' ? [`${name}_bucket`, `${name}_sum`, `${name}_count`] : [name],
    ),
  );
  const rules = readFileSync(join(directory, 'prometheus-rules.yml'), 'utf8');
  const asked = [...expressions, rules].flatMap((text) => text.match(/(?<![:\w])container_cache_\w+/g) ?? []);
  assert.equal(
    [...new Set(asked)].filter((name) => !known.has(name)),
    [],
  );
});

test.run();
