/**
 * Is the base what entries need: root's, on a disk of this node, where flock and a user's overlay work, with
 * room?
 */
import { closeSync, constants, lstatSync, openSync, readFileSync } from 'node:fs';
import { release } from 'node:os';
import { describeError, NodeFault } from '../../lib/core/faults.ts';
import {
  diskRemedy,
  filesystemHindrance,
  filesystemKind,
  mountOptions,
} from '../../lib/core/filesystem-kinds.ts';
import { blocksUsedPercent, inodesUsedPercent, maxCacheBytes, usedPercent } from '../../lib/core/gc-plan.ts';
import { mountOf, type Mount } from '../../lib/core/mountinfo.ts';
import { formatMode } from '../../lib/core/path-cure.ts';
import { formatBytes } from '../../lib/core/readable.ts';
import type { Settings } from '../../lib/core/settings.ts';
import { findEnroot } from '../../lib/image/enroot-program.ts';
import { openBase } from '../../lib/store/base-directory.ts';
import type { Directory } from '../../lib/system/directory.ts';
import { readUsage } from '../../lib/system/disk-usage.ts';
import { isGone, unlessErrno } from '../../lib/system/errno.ts';
import { tryFlock } from '../../lib/system/flock.ts';
import { readMounts } from '../../lib/system/mounts.ts';
import { probeOverlay } from '../../lib/system/overlay.ts';
import { answers, readKernelValue, type Check, type CheckContext } from './context.ts';
import { reporter, type Finding } from './findings.ts';
import { overlayHindrance } from './overlay-hindrance.ts';

const report = reporter('base');

export const checkBase: Check = async (context) => {
  const { basePath } = context.settings;
  const mount = mountOf(basePath, readMounts());
  const filesystem = mount?.filesystem ?? 'unknown';
  // Before the first look: what is on a dead server would not come back.
  const disk = diskFinding(basePath, filesystem);
  if (disk?.status === 'bad') return [disk];
  if (!(await answers(basePath))) return [report.bad(`${basePath} does not answer`, 'check its disk: dmesg')];
  if (unlessErrno(isGone, () => lstatSync(basePath)) === undefined) {
    return [
      report.bad(
        `${basePath} does not exist`,
        `install --directory --owner=root --group=root --mode=0755 ${basePath}`,
      ),
    ];
  }
  let base;
  try {
    base = openBase(context.settings);
  } catch (error) {
    if (!(error instanceof NodeFault)) throw error;
    return [report.bad(describeError(error), faultRemedy(basePath))];
  }
  try {
    return [
      report.ok(`${basePath}: ${filesystem}, owned by root, mode ${formatMode(base.stats.mode)}`),
      ...(disk === undefined ? [] : [disk]),
      flockFinding(basePath),
      roomFinding(basePath, context.settings),
      ...sizeFindings(basePath, context.settings),
      ...(await overlayFindings(context, base, mount)),
    ];
  } finally {
    closeSync(base.fd);
  }
};

const faultRemedy = (basePath: string): string =>
  `correct what the line above says; each directory down to ${basePath} must be root's, on a mounted disk, no symlink, and sticky (chmod +t) if others can write to it`;

/** @returns undefined for an ordinary disk */
function diskFinding(basePath: string, filesystem: string): Finding | undefined {
  const hindrance = filesystemHindrance(filesystem);
  if (hindrance !== undefined) return report.bad(`${basePath} is on ${hindrance}`, diskRemedy);
  switch (filesystemKind(filesystem)) {
    case 'memory':
      return report.warn(
        `${basePath} is on ${filesystem}: entries use memory and are lost at a reboot`,
        diskRemedy,
      );
    case 'stacked':
      return report.warn(
        `${basePath} is on ${filesystem}, which cannot hold the writable layer of a container`,
        diskRemedy,
      );
    case 'unknown':
      return report.warn(
        `${basePath} is on ${filesystem}, which this program does not know; the lines below try it`,
        diskRemedy,
      );
    default:
      return undefined;
  }
}

/** Two open files of one directory: no file has to be made for it. */
function flockFinding(basePath: string): Finding {
  const open = (): number => openSync(basePath, constants.O_RDONLY | constants.O_DIRECTORY);
  const [one, other] = [open(), open()];
  try {
    // Refused at once: somebody else checks at the same moment, and so it works.
    const works = !tryFlock(one, 'exclusive') || !tryFlock(other, 'shared');
    if (works) return report.ok('flock works');
    return report.bad(
      'flock does not work: a lock was granted while somebody held it',
      'mount the disk without options that weaken locks, or use another disk',
    );
  } catch (error) {
    return report.bad(
      `flock does not work: ${describeError(error)}`,
      'use a filesystem that has flock(2), or install flock (util-linux)',
    );
  } finally {
    closeSync(one);
    closeSync(other);
  }
}

function roomFinding(basePath: string, { gcHighPercent, gcLowPercent }: Settings): Finding {
  const usage = readUsage(basePath);
  const used = `${blocksUsedPercent(usage).toFixed(1)} % of blocks and ${inodesUsedPercent(usage).toFixed(1)} % of inodes used`;
  const goal = `a collection starts at ${gcHighPercent} % and ends below ${gcLowPercent} %`;
  if (usedPercent(usage) < gcHighPercent) return report.ok(`${used}; ${goal}`);
  return report.warn(
    `${used}; ${goal}: it is due now`,
    'container-cache gc --dry-run shows what would be evicted and why the rest is kept',
  );
}

/** Below it not even a small distribution fits: a number without the unit that was meant. */
const smallestUsefulBytes = 100 * 1024 * 1024;

function sizeFindings(basePath: string, settings: Settings): Finding[] {
  const usage = readUsage(basePath);
  const limitBytes = maxCacheBytes(usage, settings);
  if (limitBytes === undefined) return [];
  const limit = `container_cache_max_size is ${formatBytes(limitBytes)}`;
  if (limitBytes < smallestUsefulBytes)
    return [
      report.warn(
        `${limit}, too small for almost any image: jobs run without the cache`,
        'add a unit, such as 500G, or use percent of the disk, such as 40%',
      ),
    ];
  if (limitBytes > usage.totalBytes)
    return [
      report.warn(
        `${limit}, more than the disk's ${formatBytes(usage.totalBytes)}: it has no effect`,
        'use a smaller value or percent of the disk, or remove the line',
      ),
    ];
  return [report.ok(`${limit} of the disk's ${formatBytes(usage.totalBytes)}`)];
}

async function overlayFindings(
  { settings, isRoot }: CheckContext,
  base: Directory,
  mount: Mount | undefined,
): Promise<Finding[]> {
  const { isolation } = settings;
  const noexec = isNoexec(mount);
  if (isolation === 'off' || isolation === 'shared') {
    const known = report.ok(`no overlay is needed: isolation=${isolation}`);
    return isolation === 'shared' && noexec ? [noexecFinding(mount)] : [known];
  }
  if (!isRoot) {
    return [
      report.skip('only root can check whether users can mount an overlay there', 'run this command as root'),
    ];
  }
  const probe = await probeOverlay(base.path, enrootOf(settings));
  if (probe.works) return [report.ok('users can mount an overlay there')];
  const hindrance = overlayHindrance(overlayFacts(mount?.filesystem ?? 'unknown'));
  const what = `users cannot mount an overlay there: ${hindrance?.what ?? probe.reason}`;
  const remedy = hindrance?.remedy ?? 'use another filesystem (xfs needs ftype=1), or set isolation=shared';
  // With auto the Prolog makes the same test and takes shared.
  return isolation === 'overlay'
    ? [report.bad(`${what}, but isolation=overlay needs it`, remedy)]
    : [
        report.warn(`${what}; containers use the entries directly, read-only`, remedy),
        ...(noexec ? [noexecFinding(mount)] : []),
      ];
}

function enrootOf({ enrootPath }: Settings): string | undefined {
  try {
    return findEnroot(enrootPath);
  } catch (error) {
    if (error instanceof NodeFault) return undefined;
    throw error;
  }
}

function isNoexec(mount: Mount | undefined): boolean {
  const mountinfo = readFileSync('/proc/self/mountinfo', 'latin1');
  return mount !== undefined && mountOptions(mountinfo, mount.mountPoint).includes('noexec');
}

/** An overlay does not inherit it from the disk below; a bind mount of an entry does. */
function noexecFinding(mount: Mount | undefined): Finding {
  const point = mount?.mountPoint ?? '';
  return report.bad(
    `${point} is mounted noexec: programs in a shared entry cannot run`,
    `mount --options remount,exec ${point}; change /etc/fstab, too`,
  );
}

function overlayFacts(filesystem: string): Parameters<typeof overlayHindrance>[0] {
  return {
    kernelRelease: release(),
    hasOverlay: /^nodev\toverlay$/m.test(readFileSync('/proc/filesystems', 'latin1')),
    maxUserNamespaces: readKernelValue('/proc/sys/user/max_user_namespaces'),
    maxMountNamespaces: readKernelValue('/proc/sys/user/max_mnt_namespaces'),
    unprivilegedUsernsClone: readKernelValue('/proc/sys/kernel/unprivileged_userns_clone'),
    apparmorRestricts: readKernelValue('/proc/sys/kernel/apparmor_restrict_unprivileged_userns'),
    filesystem,
  };
}
