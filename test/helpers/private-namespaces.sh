#!/bin/bash
# A compute node without Slurm, private to one demo or benchmark (private-node.ts): mounts of its own, with
# /dev/log, /run and /proc, and processes of its own.
#
#   private-namespaces.sh DIRECTORY MODE < pipe held open by whoever uses it      MODE: root, user or inside
#
# Says "ready PID", the host's PID of the node's process 1, and ends when its standard input does, also
# because its user was killed. With process 1 the kernel ends every process and mount of the node; DIRECTORY
# goes last.
#
# In mode `user` nothing but a user namespace is needed. There the caller is root, and nobody else exists;
# what belongs to the machine's root belongs to nobody, so the node gets a root directory of its own.
#
# bash, because process 1 inherits every orphan and must reap it: bash does so while it waits in `read`, dash
# does not.
set -eu
directory=$1
mode=$2

if [ "$mode" != inside ]; then
  options=(--mount --propagation private --pid --fork --kill-child=KILL)
  if [ "$mode" = user ]; then
    options+=(--user --map-root-user)
  fi
  status=0
  unshare "${options[@]}" bash "$0" "$directory" inside || status=$?
  # Were something still mounted below it, it would stay.
  rm --recursive --force --one-file-system -- "$directory"
  exit "$status"
fi

# /proc is still the host's: what it calls "self" is this process's PID out there.
read -r host_pid _ </proc/self/stat

root=
if [ "$(stat --format=%u /)" -ne 0 ]; then
  root=$directory/rootfs
  mkdir "$root"
  mount --types tmpfs -o mode=0755 tmpfs "$root"
  for path in /*; do
    if [ -L "$path" ]; then
      ln --symbolic -- "$(readlink -- "$path")" "$root$path"
    elif [ -d "$path" ]; then
      mkdir -- "$root$path"
      case $path in
        /dev | /proc | /run) ;;
        *) mount --rbind -- "$path" "$root$path" ;;
      esac
    fi
  done
fi

mount --types proc proc "$root/proc"

# As on a Debian node: /run is a tmpfs one cannot execute from.
mount --types tmpfs -o mode=0755,nosuid,nodev,noexec tmpfs "$root/run"

# A /dev of our own, or /dev/log would appear on the host. The nodes are the host's, or a user could not have
# them.
device_directory=$directory/dev
mkdir "$device_directory"
mount --types tmpfs -o mode=0755,nosuid,noexec tmpfs "$device_directory"
for name in null zero full random urandom tty; do
  [ -e "/dev/$name" ] || continue
  : >"$device_directory/$name"
  mount --bind "/dev/$name" "$device_directory/$name"
done
mkdir --mode=1777 "$device_directory/shm"
mount --types tmpfs -o mode=1777,nosuid,nodev tmpfs "$device_directory/shm"
mount --rbind "$device_directory" "$root/dev"

# Entries are kept here: on the filesystem of DIRECTORY, or where that is below directories of the machine's
# root, in a directory of the node's own root.
if [ -n "$root" ]; then
  mkdir --mode=0755 "$root/node"
  mount --bind "$directory" "$root/node"
  cd "$root"
  # The old root goes on top of the new one, and away.
  pivot_root . .
  umount --lazy .
  cd /
fi

if [ -e "$directory/rsyslog.conf" ]; then
  rsyslogd -n -f "$directory/rsyslog.conf" -i /run/rsyslogd.pid </dev/null >/dev/null 2>"$directory/log/rsyslogd-errors" &
  for _ in {1..100}; do
    [ -S /dev/log ] && break
    sleep 0.05
  done
  if [ ! -S /dev/log ]; then
    printf 'rsyslogd made no /dev/log within 5 s: ' >&2
    cat -- "$directory/log/rsyslogd-errors" >&2
    exit 1
  fi
fi

printf 'ready %s\n' "$host_pid"
exec >/dev/null

# Nothing is ever written to the pipe: `read` ends when its last writer does.
set +e
while read -r _; do :; done
exit 0
