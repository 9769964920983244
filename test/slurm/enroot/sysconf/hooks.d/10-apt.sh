#!/bin/sh
# Writes into the rootfs: lets apt work where root is the only user there is.
set -eu
if [ -f "$ENROOT_ROOTFS/etc/debian_version" ] && [ -n "${ENROOT_REMAP_ROOT-}" ]; then
  mkdir -p "$ENROOT_ROOTFS/etc/apt/apt.conf.d"
  echo 'APT::Sandbox::User "root";' >"$ENROOT_ROOTFS/etc/apt/apt.conf.d/enroot"
fi
