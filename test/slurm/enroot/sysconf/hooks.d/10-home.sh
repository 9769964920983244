#!/bin/sh
# ENROOT_MOUNT_HOME: the user's home, as /root if they are root in the container.
set -eu
[ -n "${ENROOT_MOUNT_HOME-}" ] || exit 0
read -r _ uid _ </proc/self/uid_map
home=${HOME:-$(getent passwd "$uid" | cut -d : -f 6)}
inside=$home
if [ -n "${ENROOT_REMAP_ROOT-}" ]; then inside=/root; fi
printf '%s %s none x-create=dir,bind,rw,nosuid\n' "$home" "$inside" >>"$ENROOT_MOUNTS"
printf 'HOME=%s\n' "$inside" >>"$ENROOT_ENVIRON"
