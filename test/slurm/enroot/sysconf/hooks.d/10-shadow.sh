#!/bin/sh
# Writes into the rootfs: accounts of root, nobody and the user, before those of the image, and the user's
# home.
set -eu
read -r _ uid _ </proc/self/uid_map
read -r _ gid _ </proc/self/gid_map
nobody=$(cat /proc/sys/kernel/overflowuid)
nogroup=$(cat /proc/sys/kernel/overflowgid)
IFS=: read -r user _ uid _ comment home shell <<END
$(getent passwd "$uid")
END
IFS=: read -r group _ gid _ <<END
$(getent group "$gid")
END
[ -x "$ENROOT_ROOTFS$shell" ] || shell=/bin/sh

# Puts the lines of standard input before those of a file of the rootfs, which lose the same names, and apt's
# own.
put_first() {
  touch "$ENROOT_ROOTFS/etc/$1"
  aside=$ENROOT_ROOTFS/etc/.$1.$$
  awk -F : '$1 != "_apt" && !seen[$1]++' - "$ENROOT_ROOTFS/etc/$1" >"$aside"
  mv "$aside" "$ENROOT_ROOTFS/etc/$1"
}

put_first group <<END
root:x:0:
nogroup:x:$nogroup:
$group:x:$gid:
END
put_first passwd <<END
root:x:0:0:root:/root:$shell
nobody:x:$nobody:$nogroup:nobody:/:/sbin/nologin
$user:x:$uid:$gid:$comment:$home:$shell
END

if [ ! -e "$ENROOT_ROOTFS$home" ]; then
  mask=$(awk '$1 == "UMASK" { print $2 }' "$ENROOT_ROOTFS/etc/login.defs" 2>/dev/null) || :
  (umask "${mask:-077}" && mkdir -p "$ENROOT_ROOTFS$home")
  if [ -d "$ENROOT_ROOTFS/etc/skel" ]; then cp -Lpr "$ENROOT_ROOTFS/etc/skel/." "$ENROOT_ROOTFS$home"; fi
fi
