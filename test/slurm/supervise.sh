#!/bin/sh
# Keeps one test cluster's namespaces and takes all of it down again.
#
#   supervise.sh DIRECTORY < pipe held open by the test process
#
# Everything the cluster starts is a descendant of namespace.sh, process 1 of a PID
# namespace: when that one ends, the kernel kills the rest and drops the mount namespace
# with every mount in it. It ends as soon as its standard input does, so a test process
# that is killed takes its cluster with it. What then remains is this process and
# DIRECTORY, which it deletes last.
set -u
directory=$1
here=$(dirname -- "$0")

unshare --mount --propagation private --pid --fork --kill-child=KILL --uts --ipc \
  bash "$here/namespace.sh" "$directory"
status=$?

# The mounts below DIRECTORY ended with the namespace; --one-file-system is for the case
# that somebody mounted something there from outside.
rm --recursive --force --one-file-system -- "$directory"
exit "$status"
