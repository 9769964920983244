#!/bin/sh
# Writes into the rootfs: the machine's time zone.
set -eu
[ -L /etc/localtime ] || exit 0
cp -d /etc/localtime "$ENROOT_ROOTFS/etc/localtime"
zone=$(readlink -f /etc/localtime)
if [ ! -e "$ENROOT_ROOTFS$zone" ]; then
  mkdir -p "$ENROOT_ROOTFS${zone%/*}"
  cp "$zone" "$ENROOT_ROOTFS$zone"
fi
