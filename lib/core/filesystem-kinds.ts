/** What a filesystem is good for, by the name /proc/self/mountinfo gives it. */

/**
 * `local`: a disk of this node. `network`: other nodes have it, too, and a hung server hangs us. `fuse`: a
 * program that may not answer. `memory`: a reboot forgets it. `stacked`: cannot carry an overlay's upper
 * layer. `unknown`: try.
 */
type FilesystemKind = 'local' | 'network' | 'fuse' | 'memory' | 'stacked' | 'unknown';

const kinds: Readonly<Record<Exclude<FilesystemKind, 'unknown' | 'fuse'>, readonly string[]>> = {
  local: ['ext2', 'ext3', 'ext4', 'xfs', 'btrfs', 'zfs', 'f2fs', 'bcachefs', 'jfs', 'reiserfs'],
  network: [
    '9p',
    'acfs',
    'afs',
    'beegfs',
    'ceph',
    'cifs',
    'coda',
    'gfs2',
    'gpfs',
    'lustre',
    'ncpfs',
    'nfs',
    'nfs4',
    'ocfs2',
    'orangefs',
    'panfs',
    'pvfs2',
    'smb3',
    'smbfs',
    'virtiofs',
    'vxfs',
    'wekafs',
  ],
  memory: ['tmpfs', 'ramfs'],
  stacked: ['overlay', 'aufs', 'ecryptfs'],
};

export function filesystemKind(type: string): FilesystemKind {
  if (/^fuse(?:blk|ctl)?(?:\.|$)/.test(type)) return 'fuse';
  for (const kind of ['local', 'network', 'memory', 'stacked'] as const)
    if (kinds[kind].includes(type)) return kind;
  return 'unknown';
}

/** Why a filesystem is nothing for entries; undefined: it may do. */
export function filesystemHindrance(type: string): string | undefined {
  switch (filesystemKind(type)) {
    case 'network':
      return `${type}: other nodes have it too, and its server decides how fast jobs start`;
    case 'fuse':
      return `${type}, a filesystem that another program serves and that may hang`;
    case 'local':
    case 'memory':
    case 'stacked':
    case 'unknown':
      return undefined;
  }
}

/** What to do about it. */
export const diskRemedy = 'set container_cache_data_path to a directory on a disk of this node';

/**
 * The options of a mount point (`noexec`, `ro`, …): field 6 of the last line of mountinfo that has it
 * (proc(5)).
 *
 * @param mountPoint as mountinfo writes it, escapes undone
 */
export function mountOptions(mountinfo: string, mountPoint: string): readonly string[] {
  const escaped = mountPoint.replace(
    /[ \t\n\\]/g,
    (character) => `\\${character.charCodeAt(0).toString(8).padStart(3, '0')}`,
  );
  const lines = mountinfo.split('\n').map((line) => line.split(' '));
  return lines.findLast((fields) => fields[4] === escaped)?.[5]?.split(',') ?? [];
}
