#!/bin/sh
# What a job can tell about its container, as sections of text: two containers of one image are alike if these
# are. The test image has it as /probe. Left out is what differs from job to job: IDs, ports and times.
#
#   probe.sh [files]      where it may write it changes files, and without the word directories as well
#
# The last section is for the test alone, which leaves it out of the comparison: what the root filesystem is
# made of.
set -u
export LC_ALL=C

section() {
  printf '\n== %s\n' "$1"
}

# Every file of a tree: type, mode, owner, links and size (not those of directories: filesystems differ),
# target. What is mounted may be on the filesystem of the root or not.
tree() {
  find "$1" -xdev \( \( -path /.lock -o -path '/mnt/shared/*' \) -prune -o -type d -printf '%y %m %U:%G %p\n' \
    -o -printf '%y %m %U:%G %n %s %p %l\n' \) | sort
}

contents() {
  find "$1" -xdev -type f -exec cksum {} + | sort
}

section identity
id
grep -E '^(Uid|Gid|Groups|CapEff|CapBnd|NoNewPrivs):' /proc/self/status
umask

section directory
pwd

section environment
env | sed -E 's/^((SLURM|SRUN|PMI)[^=]*)=.*/\1/' | sort

section 'root filesystem'
tree /

section 'files of the image'
contents /data
find /data ! -newermt 2024-01-01 -printf '%T@ %p\n' | sort
cat /etc/image /etc/passwd /etc/group

# How a mount keeps programs and devices; whether access times are written is the machine's affair.
section mounts
while read -r _ _ _ _ target options rest; do
  type=${rest#*- }
  case $target in
    /.lock) ;;
    / | /volume) echo "$target $options" ;;
    *) echo "$target $options ${type%% *}" ;;
  esac
done </proc/self/mountinfo | sed -E 's/,(relatime|noatime|nodiratime)//g; s,/job[0-9]+/,/job/,' | sort

section 'mounted by the job'
for directory in "$HOME" /mnt/shared /volume; do
  ls -A "$directory"
done 2>&1

section writing
echo written >/volume/written && cat /volume/written
if ! touch /written 2>/dev/null; then
  echo 'the root filesystem is read-only'
else
  echo more >>/data/appended
  rm /data/doomed
  mv /data/private /data/empty/moved
  chmod 0711 /data/program
  echo new >/data/directory/nested/new
  if [ "${1-}" != files ]; then
    rm -r /data/doomed-directory
    mkdir /data/doomed-directory
    mv /data/directory /data/renamed
  fi
  tree /data
  contents /data
fi 2>&1

section backing
while read -r _ _ _ _ target _ rest; do
  type=${rest#*- }
  [ "$target" != / ] || backing=${type%% *}
done </proc/self/mountinfo
echo "$backing"
