#!/bin/bash
# Process 1 of a test cluster: gives the cluster its own /etc, /run, /dev, /proc and
# /var/{log,spool}, says "ready PID" (its PID on the host), and waits for the end of its
# standard input.
#
#   namespace.sh DIRECTORY      (started by supervise.sh in new namespaces)
#
# DIRECTORY/etc is complete when this begins. bash, because process 1 inherits every
# orphan of the cluster and must reap it: bash does so even while it waits in `read`,
# dash does not, and to a test a zombie looks like a process that refuses to die.
set -eu
directory=$1

# /proc is still the host's: what it calls "self" is this process's PID out there.
read -r host_pid _ </proc/self/stat

mount --types proc proc /proc
printf '%s\n' node0 >/proc/sys/kernel/hostname

mount --bind "$directory/etc" /etc
mount --bind "$directory/log" /var/log
mount --bind "$directory/spool" /var/spool

# As on a Debian node: /run is a tmpfs one cannot execute from.
mount --types tmpfs -o mode=0755,nosuid,nodev,noexec tmpfs /run
mkdir --mode=0755 /run/munge /run/lock

# A /dev of our own, or /dev/log would appear on the host. Device nodes are copied, and
# enough loop devices made for tests that mount images.
device_directory=$directory/dev
mount --types tmpfs -o mode=0755,nosuid tmpfs "$device_directory"
cp --archive --one-file-system /dev/. "$device_directory/" 2>/dev/null || true
rm --force -- "$device_directory/log" "$device_directory/ptmx"
mkdir --parents "$device_directory/pts" "$device_directory/shm"
for number in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
  [ -e "$device_directory/loop$number" ] || mknod "$device_directory/loop$number" b 7 "$number"
done
mount --types devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$device_directory/pts"
ln --symbolic pts/ptmx "$device_directory/ptmx"
mount --types tmpfs -o mode=1777,nosuid,nodev tmpfs "$device_directory/shm"
mount --rbind "$device_directory" /dev

printf 'ready %s\n' "$host_pid"
exec >/dev/null

# Nothing is ever written to the pipe: `read` ends when its last writer does.
set +e
while read -r _; do :; done
exit 0
