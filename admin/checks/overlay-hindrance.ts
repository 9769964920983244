/** Why a user cannot mount an overlay on a node: the first of the usual reasons that holds. */
import { isAtLeast, parseVersion } from '../../lib/core/version.ts';

/** What the kernel says; a file of /proc that is not there is undefined. */
export interface OverlayFacts {
  /** `uname -r` */
  readonly kernelRelease: string;
  /**
   * Whether /proc/filesystems has overlay. It is not there until its module is loaded, which a user cannot
   * do.
   */
  readonly hasOverlay: boolean;
  /** /proc/sys/user/max_user_namespaces, max_mnt_namespaces */
  readonly maxUserNamespaces: string | undefined;
  readonly maxMountNamespaces: string | undefined;
  /** /proc/sys/kernel/unprivileged_userns_clone, of Debian's kernels */
  readonly unprivilegedUsernsClone: string | undefined;
  /** /proc/sys/kernel/apparmor_restrict_unprivileged_userns, of Ubuntu's since 23.10 */
  readonly apparmorRestricts: string | undefined;
  /** Type of the filesystem that is to carry the upper layer. */
  readonly filesystem: string;
}

interface Hindrance {
  readonly what: string;
  readonly remedy: string;
}

/** Unprivileged overlays came with it. */
const firstKernel = [5, 11];

/** @returns undefined if none of the usual reasons holds */
export function overlayHindrance(facts: OverlayFacts): Hindrance | undefined {
  const kernel = parseVersion(facts.kernelRelease);
  if (kernel !== undefined && !isAtLeast(kernel, firstKernel)) {
    return {
      what: `Linux ${facts.kernelRelease} does not let users mount an overlay`,
      remedy: 'use Linux 5.11 or newer; until then set isolation=shared',
    };
  }
  if (facts.unprivilegedUsernsClone === '0')
    return sysctlHindrance('kernel.unprivileged_userns_clone', '0', '1');
  if (facts.maxUserNamespaces === '0') return sysctlHindrance('user.max_user_namespaces', '0', '65536');
  if (facts.maxMountNamespaces === '0') return sysctlHindrance('user.max_mnt_namespaces', '0', '65536');
  if (facts.apparmorRestricts !== undefined && facts.apparmorRestricts !== '0') {
    return {
      what: `kernel.apparmor_restrict_unprivileged_userns is ${facts.apparmorRestricts}`,
      remedy:
        "load enroot's AppArmor profile (its package has one for enroot-nsenter), " +
        'or sysctl kernel.apparmor_restrict_unprivileged_userns=0',
    };
  }
  if (!facts.hasOverlay) {
    return {
      what: 'the kernel module overlay is not loaded',
      remedy: 'modprobe overlay; echo overlay >/etc/modules-load.d/overlay.conf',
    };
  }
  if (facts.filesystem === 'overlay') {
    return {
      what: 'the base is on an overlay, which cannot hold another overlay',
      remedy: 'use a directory on a disk of the node',
    };
  }
  return undefined;
}

function sysctlHindrance(name: string, value: string, wanted: string): Hindrance {
  return {
    what: `${name} is ${value}`,
    remedy: `sysctl ${name}=${wanted}; echo ${name}=${wanted} >/etc/sysctl.d/50-container-cache.conf`,
  };
}
