/**
 * The files a test cluster is configured by, as text. No file is read or written here.
 */

/** The one node; it is also the host name inside the cluster. */
export const NODE_NAME = 'node0';

export interface ClusterUser {
  readonly name: string;
  readonly uid: number;
  /** The user's primary group has the user's name and this number. */
  readonly gid: number;
  /** Names of supplementary groups; each becomes a group of the cluster. */
  readonly groups: readonly string[];
}

/** First number of the supplementary groups, which are numbered in order of appearance. */
const FIRST_SUPPLEMENTARY_GID = 59900;

/** Two users nobody has on a real machine; only the first is in group `imagereaders`. */
export const DEFAULT_USERS: readonly ClusterUser[] = [
  { name: 'usera', uid: 59001, gid: 59001, groups: ['imagereaders'] },
  { name: 'userb', uid: 59002, gid: 59002, groups: [] },
];

interface Accounts {
  readonly passwd: string;
  readonly group: string;
  readonly shadow: string;
}

/** Lines to add to /etc/passwd, /etc/group and /etc/shadow for users whose homes are in homesDirectory. */
export function accountLines(users: readonly ClusterUser[], homesDirectory: string): Accounts {
  const groupNames = [...new Set(users.flatMap((user) => user.groups))];
  const lines = (all: readonly string[]): string => all.map((line) => `${line}\n`).join('');
  return {
    passwd: lines(
      users.map((user) => `${user.name}:x:${user.uid}:${user.gid}::${homesDirectory}/${user.name}:/bin/sh`),
    ),
    group: lines([
      ...users.map((user) => `${user.name}:x:${user.gid}:`),
      ...groupNames.map((name, index) => {
        const members = users.filter((user) => user.groups.includes(name)).map((user) => user.name);
        return `${name}:x:${FIRST_SUPPLEMENTARY_GID + index}:${members.join(',')}`;
      }),
    ]),
    shadow: lines(users.map((user) => `${user.name}:*:19000:0:99999:7:::`)),
  };
}

interface SlurmConfFacts {
  readonly slurmctldPort: number;
  readonly slurmdPort: number;
  /** Processors the node claims, whatever the machine has: the number of jobs at once. */
  readonly cpus: number;
  /**
   * Parameters that replace or follow the ones below, e.g. `{ Prolog: '/x/prolog' }`; an empty one leaves the
   * line out.
   */
  readonly parameters: Readonly<Record<string, string>>;
}

/**
 * slurm.conf(5) for one node on loopback, without accounting and without cgroups.
 * Logs are below /var/log and state below /var/spool, both the cluster's own.
 */
export function slurmConf(facts: SlurmConfFacts): string {
  const parameters: Record<string, string> = {
    ClusterName: 'test',
    SlurmctldHost: `${NODE_NAME}(127.0.0.1)`,
    SlurmctldPort: String(facts.slurmctldPort),
    SlurmdPort: String(facts.slurmdPort),
    CommunicationParameters: 'NoInAddrAny,NoCtldInAddrAny',
    // As slurm.conf.snippet asks for: a batch job whose Prolog takes longer would be put back into the queue.
    BatchStartTimeout: '600',
    SlurmUser: 'root',
    SlurmdUser: 'root',
    AuthType: 'auth/munge',
    StateSaveLocation: '/var/spool/slurmctld',
    SlurmdSpoolDir: '/var/spool/slurmd',
    SlurmctldPidFile: '/run/slurmctld.pid',
    SlurmdPidFile: '/run/slurmd.pid',
    SlurmctldLogFile: '/var/log/slurmctld.log',
    SlurmdLogFile: '/var/log/slurmd.log',
    SlurmctldDebug: 'debug',
    SlurmdDebug: 'debug',
    MailProg: '/bin/true',
    MpiDefault: 'none',
    // Neither needs cgroups, so the same configuration serves in a container.
    ProctrackType: 'proctrack/linuxproc',
    TaskPlugin: 'task/none',
    JobAcctGatherType: 'jobacct_gather/none',
    SelectType: 'select/cons_tres',
    SelectTypeParameters: 'CR_CPU',
    // Believe CPUs= below even where the machine has fewer.
    SlurmdParameters: 'config_overrides',
    // Look for runnable jobs often: the default of 60 s is for big clusters.
    SchedulerParameters: 'sched_interval=1,bf_interval=1',
    // A finished job must stay visible to scontrol: there is no accounting to ask.
    MinJobAge: '86400',
    ReturnToService: '2',
    SlurmdTimeout: '30',
    SlurmctldTimeout: '10',
    KillWait: '2',
    CompleteWait: '0',
    UnkillableStepTimeout: '20',
    ...facts.parameters,
  };
  return [
    ...Object.entries(parameters).flatMap(([key, value]) => (value === '' ? [] : [`${key}=${value}`])),
    `NodeName=${NODE_NAME} NodeAddr=127.0.0.1 CPUs=${facts.cpus} State=UNKNOWN`,
    `PartitionName=main Nodes=${NODE_NAME} Default=YES MaxTime=INFINITE State=UP`,
    '',
  ].join('\n');
}

/**
 * cgroup.conf(5): no cgroup plugin where Slurm can do without one (23.11 and later, which
 * would otherwise try to reach systemd); before that there is nothing to switch off.
 */
export function cgroupConf(slurmVersion: readonly [number, number]): string {
  const [major, minor] = slurmVersion;
  return major > 23 || (major === 23 && minor >= 11) ? 'CgroupPlugin=disabled\n' : '';
}

/** rsyslog.conf(5): what is written to /dev/log, twice: as an operator sees it, and with its priority. */
export function rsyslogConf(): string {
  return `global(workDirectory="/var/spool")
module(load="imuxsock" SysSock.Name="/dev/log" SysSock.RateLimit.Interval="0")
template(name="withPriority" type="string"
  string="%syslogfacility-text%.%syslogseverity-text% %syslogtag%%msg:::sp-if-no-1st-sp%%msg:::drop-last-lf%\\n")
action(type="omfile" file="/var/log/syslog" template="RSYSLOG_TraditionalFileFormat")
action(type="omfile" file="/var/log/syslog-priority" template="withPriority")
`;
}

/** plugstack.conf: one line for each SPANK plugin. */
export function plugstackConf(lines: readonly string[]): string {
  return lines.map((line) => `${line}\n`).join('');
}
