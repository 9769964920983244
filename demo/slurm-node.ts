/**
 * The demo's node as a real Slurm (test/slurm/cluster.ts): jobs are submitted with srun, slurmd runs Prolog
 * and Epilog.
 */
import * as fsp from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { distDirectory, executable } from '../build/build.ts';
import type { Defer } from '../test/helpers/clean-up.ts';
import { startCluster, type Cluster } from '../test/slurm/cluster.ts';
import {
  configurationText,
  isOurLine,
  type DemoJob,
  type DemoNode,
  type DemoNodeRequest,
} from './demo-node.ts';

const runtimePath = '/run/container-cache';
const taskTimeoutMs = 120_000;
const pollMs = 10;

/** A task that says when it began and what it was given, and runs until it may end. */
const taskScript = `#!/bin/sh
echo "job=$SLURM_JOB_ID started=$(date +%s%N)"
env | grep '^ENROOT_'
echo ready
while [ ! -e "$1/finish.$SLURM_JOB_ID" ]; do sleep 0.05; done
`;

export async function startSlurmNode(request: DemoNodeRequest, defer: Defer): Promise<DemoNode> {
  const starting = startCluster(async ({ root, etc }) => {
    await fsp.mkdir(join(root, 'data'), { mode: 0o755 });
    // Users must reach it, and the checkout may be in root's home.
    await fsp.copyFile(join(distDirectory, 'taskprolog'), join(root, 'taskprolog'));
    await fsp.writeFile(join(root, 'task.sh'), taskScript, { mode: 0o755 });
    const text = configurationText({ basePath: join(root, 'data'), runtimePath }, request.settings);
    await fsp.writeFile(join(etc, 'slurm/container-cache.conf'), text);
    return { slurmConf: slurmConfiguration(root) };
  });
  // At once: a signal may come while it starts.
  defer(async () => {
    const cluster = await starting.catch(() => undefined);
    await cluster?.stop();
  });
  const cluster = await starting;
  const { root, users, slurmVersion } = cluster;
  const basePath = join(root, 'data');
  await cluster.exec([
    'mount',
    '--types',
    'tmpfs',
    '-o',
    `size=${request.diskBytes},mode=0755`,
    'tmpfs',
    basePath,
  ]);
  const [first, second = first] = users;
  if (first === undefined || second === undefined) throw new Error('The cluster has no user');
  return {
    description: `a real Slurm ${slurmVersion.join('.').replace(/\.(\d)$/, '.0$1')}: slurmctld, slurmd, munged and rsyslogd, in namespaces of their own, with a plugin that gives srun pyxis' options`,
    configuration: Object.entries(slurmConfiguration(root)).map(([key, value]) => [
      'slurm.conf',
      `${key}=${value}`,
    ]),
    users: [first, second],
    basePath,
    runtimePath,
    startDescription: 'from submission until the task runs',
    noSyslogReason: undefined,
    hostPath: (insidePath) => cluster.hostPath(insidePath),
    startJob: (user, imagePath) => startJob(cluster, user.name, imagePath),
    admin: (args) => cluster.exec([executable, ...args]),
    log: async () => (await cluster.syslog()).filter(isOurLine),
  };
}

function slurmConfiguration(root: string): Record<string, string> {
  return {
    Prolog: join(distDirectory, 'prolog'),
    Epilog: join(distDirectory, 'epilog'),
    TaskProlog: join(root, 'taskprolog'),
    PrologFlags: 'Alloc',
    BatchStartTimeout: '120',
  };
}

async function startJob(cluster: Cluster, user: string, imagePath: string): Promise<DemoJob> {
  const { root } = cluster;
  const argv = ['srun', `--container-image=${imagePath}`, join(root, 'task.sh'), root];
  const submittedAtMs = Date.now();
  const running = cluster.start(user, argv, { timeoutMs: taskTimeoutMs });
  const state = { hasEnded: false };
  const end = running.result.finally(() => (state.hasEnded = true));
  end.catch(() => undefined);
  while (!running.output().stdout.includes('\nready\n')) {
    if (state.hasEnded) throw new Error(`srun ended before its task was ready: ${JSON.stringify(await end)}`);
    await delay(pollMs);
  }
  const { stdout } = running.output();
  const [, jobId = '', startedAtNs = ''] = /^job=(\d+) started=(\d+)$/m.exec(stdout) ?? [];
  return {
    jobId: Number(jobId),
    command: [`${user}$`, `srun --container-image=${imagePath} task.sh`],
    startMs: Number(startedAtNs) / 1e6 - submittedAtMs,
    taskEnvironment: stdout.split('\n').filter((line) => line.startsWith('ENROOT_')),
    finish: async () => {
      await fsp.writeFile(join(root, `finish.${jobId}`), '');
      const { exitCode, stderr } = await end;
      if (exitCode !== 0) throw new Error(`srun ended with ${String(exitCode)}: ${stderr}`);
      const { state } = await cluster.waitForJob(jobId);
      if (state !== 'COMPLETED') throw new Error(`Job ${jobId} is ${state}, want COMPLETED`);
      const node = await cluster.nodeState();
      if (node.drained) throw new Error(`The node is drained: ${String(node.reason)}`);
    },
  };
}
