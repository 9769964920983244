#!/bin/bash
# `npm run test:on -- SUITE [OPTION…] [COMMAND…]`: README's two commands on a fresh Debian of another release,
# as a newcomer runs them.
#
#   1. ROOTS/SUITE.base is made: debootstrap(8), then Debian's own nodejs and npm. One that an earlier run
#      kept is taken as it is.
#   2. ROOTS/SUITE is a copy of it with this checkout. It runs as a machine: namespaces for mounts, processes,
#      network, names and IPC, a /dev and a cgroup of its own, systemd as process 1 where the kernel lets it
#      have a cgroup2.
#   3. The commands run in it, and all that this run made is removed.
#
# pivot_root(2), since the kernel refuses user namespaces in a chroot. The network is its own, too:
# slirp4netns(1) takes what apt and npm ask for to the outside. How the outer machine's apt and npm are set up
# is carried in.
set -euo pipefail

project=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
self=$project/test/on/on.sh
roots=${CONTAINER_CACHE_TEST_ROOTS:-/var/tmp/container-cache-test-roots}
usage="Usage: npm run test:on -- SUITE [--keep] [--again] [--at DIRECTORY] [COMMAND…]
  SUITE            a release that debootstrap knows, for example trixie
  --keep           leave the root, and the base that the next run then takes, in $roots
  --again          enter the root that was kept, with the checkout that is in it
  --at DIRECTORY   where the checkout goes; default: /root/container-cache
  COMMAND…         in place of \`npm run demo\` and \`npm test\`
CONTAINER_CACHE_TEST_ROOTS names another directory for roots. Needs root, 3 GB of disk, and a mirror and npm's registry within reach."

say() {
  printf 'test:on: %s\n' "$*" >&2
}

die() {
  say "$*"
  exit 1
}

# Runs as process 1 of the new namespaces, on the outer root. Says the PID that it has outside, and becomes
# the machine's init.
become_machine() {
  local root=$1 init=$2 host_pid name number
  # /proc is still the outer one: what it calls "self" is our PID out there.
  read -r host_pid _ </proc/self/stat
  printf '%s\n' "${root##*/}" >/proc/sys/kernel/hostname

  mount --bind "$root" "$root"
  mount --types tmpfs -o mode=0755,nosuid,nodev,noexec tmpfs "$root/run"
  # The settings of the kernel are the outer machine's, so systemd must not change them. A second /proc that
  # nothing covers: the kernel lets users of a user namespace mount one only where they see one whole.
  mkdir "$root/run/whole-proc"
  mount --types proc proc "$root/run/whole-proc"
  mount --types proc -o nosuid,nodev,noexec proc "$root/proc"
  mount --bind "$root/proc/sys" "$root/proc/sys"
  mount -o remount,bind,ro "$root/proc/sys"
  mount --types sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
  [ "$init" = shell ] || mount --types cgroup2 -o nosuid,nodev,noexec cgroup2 "$root/sys/fs/cgroup"

  mount --types tmpfs -o mode=0755,nosuid tmpfs "$root/dev"
  for name in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 fuse:10:229; do
    IFS=: read -r name major minor <<<"$name"
    mknod --mode=0666 "$root/dev/$name" c "$major" "$minor"
  done
  mknod --mode=0660 "$root/dev/loop-control" c 10 237
  for ((number = 0; number < 64; number++)); do
    mknod --mode=0660 "$root/dev/loop$number" b 7 "$number"
  done
  mkdir "$root/dev/pts" "$root/dev/shm"
  mount --types devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$root/dev/pts"
  mount --types tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/dev/shm"
  ln --symbolic pts/ptmx "$root/dev/ptmx"
  ln --symbolic /proc/self/fd "$root/dev/fd"
  for name in stdin:0 stdout:1 stderr:2; do
    ln --symbolic "fd/${name#*:}" "$root/dev/${name%:*}"
  done

  cd "$root"
  # The old root goes on top of the new one, and away.
  pivot_root . .
  umount --lazy .
  cd /
  printf '%s\n' "$host_pid"
  exec </dev/null >/dev/null 2>&1
  # No daemon of a package that is installed here by now: slurmd without a configuration alone takes 90 s to
  # fail.
  [ "$init" = shell ] || exec env --ignore-environment container=container-cache-test-on /sbin/init --unit=basic.target
  # bash reaps orphans while it waits.
  exec bash -c 'while :; do sleep infinity & wait $!; done'
}

if [ "${1-}" = --become-machine ]; then
  become_machine "$2" "$3"
fi

# What of the machine's making has to be undone, in the order of a stack.
supervisor='' init='' network='' cgroup='' scratch=''

stop_machine() {
  local process
  # Process 1 is gone only when all that ran in the machine is. Before it has said who it is, unshare(1) takes
  # it along.
  for process in "$network" "${init:-$supervisor}"; do
    [ -z "$process" ] || kill -KILL "$process" 2>/dev/null || true
  done
  # Not how they ended.
  wait 2>/dev/null
  [ -z "$cgroup" ] || find "$cgroup" -depth -type d -exec rmdir {} + || true
  supervisor='' init='' network='' cgroup=''
}

start_machine() {
  local root=$1 kind=systemd top
  top=$(findmnt --noheadings --first-only --types cgroup2 --output TARGET) || top=''
  if [ -z "$top" ] || ! mkdir "$top/container-cache-test-on.$$" 2>/dev/null; then
    kind=shell
    say 'process 1 is a shell, not systemd: this machine has no cgroup2 where root may make a directory'
  else
    cgroup=$top/container-cache-test-on.$$
  fi
  mkfifo "$scratch/pid"
  (
    [ -z "$cgroup" ] || echo "$BASHPID" >"$cgroup/cgroup.procs"
    # Whatever ends this script ends the machine.
    exec setpriv --pdeathsig KILL unshare --mount --propagation private --pid --fork --kill-child=KILL --uts --ipc --net --cgroup \
      bash "$self" --become-machine "$root" "$kind"
  ) </dev/null >"$scratch/pid" 2>"$scratch/log" {lock}>&- &
  supervisor=$!
  read -r init <"$scratch/pid" || die "the machine did not start: $(cat "$scratch/log")"
  rm "$scratch/pid"

  mkfifo "$scratch/network"
  setpriv --pdeathsig KILL slirp4netns --configure --mtu=1400 --disable-host-loopback --ready-fd=3 "$init" tap0 \
    3>"$scratch/network" >"$scratch/network.log" 2>&1 </dev/null {lock}>&- &
  network=$!
  read -r -n 1 _ <"$scratch/network" || die "slirp4netns: $(cat "$scratch/network.log")"
  rm "$scratch/network"

  [ "$kind" = systemd ] || return 0
  local state='' deadline=$((SECONDS + 120))
  # It is "degraded" if a unit failed that has no meaning in here.
  until [ "$state" = running ] || [ "$state" = degraded ]; do
    [ "$SECONDS" -lt "$deadline" ] || die "systemd is not up after 120 s: $state"
    sleep 0.5
    state=$(inside systemctl is-system-running 2>/dev/null) || true
  done
}

# Runs a command in the machine with the environment of a login, and what the outer one needs to reach
# servers.
inside() {
  local -a variables=(HOME=/root USER=root LOGNAME=root SHELL=/bin/bash LANG=C.UTF-8 "TERM=${TERM:-dumb}")
  variables+=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
  local name
  for name in {http,https,no}_proxy {HTTP,HTTPS,NO}_PROXY "${certificate_variables[@]}"; do
    [ -z "${!name-}" ] || variables+=("$name=${!name}")
  done
  nsenter --target "$init" --mount --uts --ipc --net --pid --cgroup --root --wd -- \
    env --ignore-environment "${variables[@]}" "$@" {lock}>&-
}

certificate_variables=(NODE_EXTRA_CA_CERTS SSL_CERT_FILE SSL_CERT_DIR CURL_CA_BUNDLE)

# How apt and npm of the outer machine reach their servers, into a root. No address of any stands in this
# file.
carry_settings() {
  local root=$1 name file
  printf '%s\n' "${root##*/}" >"$root/etc/hostname"
  {
    printf '127.0.0.1 localhost %s\n::1 localhost\n' "${root##*/}"
    grep --invert-match --extended-regexp '^[[:space:]]*(127\.|::1|#|$)' /etc/hosts || true
  } >"$root/etc/hosts"
  # slirp4netns(1) answers there, by asking the outer machine's servers.
  rm --force "$root/etc/resolv.conf"
  echo 'nameserver 10.0.2.3' >"$root/etc/resolv.conf"
  if command -v apt-config >/dev/null; then
    apt-config dump | grep --extended-regexp '^Acquire::(http|https|Check)[^ ]* ".+"' >"$root/etc/apt/apt.conf.d/00outer-machine" || true
  fi
  # A machine that is thrown away need not be safe against a loss of power.
  echo force-unsafe-io >"$root/etc/dpkg/dpkg.cfg.d/unsafe-io"
  mkdir --parents "$root/usr/local/share/ca-certificates"
  find /usr/local/share/ca-certificates -name '*.crt' -exec cp --target-directory="$root/usr/local/share/ca-certificates" {} + 2>/dev/null || true
  file=$(npm config get globalconfig)
  [ ! -f "$file" ] || install -m 0644 -D "$file" "$root/etc/npmrc"
  file=$(npm config get userconfig)
  [ ! -f "$file" ] || install -m 0600 -D "$file" "$root/root/.npmrc"
  # Debian's own bundle of certificates comes with its package.
  for file in "$(npm config get cafile)" "${NODE_EXTRA_CA_CERTS-}" "${SSL_CERT_FILE-}" "${CURL_CA_BUNDLE-}"; do
    [ ! -f "$file" ] || [ "$file" = /etc/ssl/certs/ca-certificates.crt ] || install -m 0644 -D "$file" "$root$file"
  done
}

make_base() {
  local mirror=''
  if command -v apt-get >/dev/null; then
    # shellcheck disable=SC2016 # apt's own variables
    mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 2>/dev/null | sed -n 's/^Debian //p' | grep --max-count=1 --invert-match security) || true
  fi
  say "making a base of $suite: debootstrap"
  remove "$base.new"
  # In namespaces of its own: nothing that it mounts or starts stays.
  unshare --mount --propagation private --pid --fork --kill-child=KILL --mount-proc \
    debootstrap "$suite" "$base.new" ${mirror:+"$mirror"} </dev/null >"$scratch/log" 2>&1 || die "debootstrap failed: $(tail -n 20 "$scratch/log")"
  carry_settings "$base.new"
  start_machine "$base.new"
  say 'its nodejs and npm: apt-get install'
  inside sh -euc 'export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    apt-get -qq -y --no-install-recommends install ca-certificates nodejs npm
    apt-get clean' </dev/null >"$scratch/log" 2>&1 || die "apt-get failed: $(tail -n 20 "$scratch/log")"
  stop_machine
  mv "$base.new" "$base"
}

make_root() {
  remove "$root"
  cp --archive --reflink=auto "$base" "$root"
  carry_settings "$root"
  install -d "$root$at"
  # As a clone has it: without what tools have made here.
  local -a made
  mapfile -t made < <(sed --quiet 's|^/\(.*\)/$|--exclude=./\1|p' "$project/.gitignore")
  tar --create --directory "$project" --exclude=./.git "${made[@]}" . \
    | tar --extract --no-same-owner --directory "$root$at"
}

remove() {
  rm --recursive --force --one-file-system -- "$@"
}

# Runs a command in the checkout and says how it ended.
run_there() {
  local started=$SECONDS status=0
  say "$suite:$at# $*"
  # In the background: a signal to this script is answered at once.
  # shellcheck disable=SC2016 # parameters of the inner shell
  inside bash -c 'cd -- "$1" && shift && exec "$@"' bash "$at" "$@" <&0 &
  wait $! || status=$?
  say "$suite:$at# $*: exit code $status after $((SECONDS - started)) s"
  return "$status"
}

# shellcheck disable=SC2317 # by the trap
clean_up() {
  local status=$?
  trap - EXIT
  trap '' INT TERM HUP
  stop_machine
  if [ "$is_kept" = no ]; then
    remove "$root" "$base.new"
    [ "$had_base" = yes ] || remove "$base"
  else
    say "kept: $root"
  fi
  remove "$scratch"
  [ -n "${CONTAINER_CACHE_TEST_ROOTS-}" ] || rmdir --ignore-fail-on-non-empty "$roots"
  exit "$status"
}

# A function is read whole before it runs: whoever edits this file meanwhile changes nothing.
main() {
  suite=${1-} is_kept=no is_again=no at=/root/container-cache
  case $suite in
    '' | -* | */* | .*)
      printf '%s\n' "$usage" >&2
      exit 2
      ;;
  esac
  shift
  while [[ ${1-} == -* ]]; do
    case $1 in
      --keep) is_kept=yes ;;
      --again) is_again=yes is_kept=yes ;;
      --at)
        at=${2-}
        [[ $at == /* ]] || die "--at takes an absolute path, not \"$at\""
        shift
        ;;
      *) die "unknown option $1"$'\n'"$usage" ;;
    esac
    shift
  done

  [ "$(id -u)" -eq 0 ] || die 'needs root: it makes namespaces, device nodes and files of other users'
  missing=()
  for program in debootstrap slirp4netns unshare nsenter setpriv pivot_root npm; do
    command -v "$program" >/dev/null || missing+=("$program")
  done
  [ "${#missing[@]}" -eq 0 ] || die "needs ${missing[*]}"
  [ -c /dev/net/tun ] || die 'needs /dev/net/tun, for the network of the machine'

  [ -e "$roots" ] || mkdir --mode=0700 "$roots"
  if [ ! -O "$roots" ] || [ -L "$roots" ]; then
    die "$roots is not a directory of root"
  fi
  roots=$(cd -- "$roots" && pwd -P)
  # Nothing in the machine has it: it leads out.
  exec {lock}<"$roots"
  flock --nonblock "$lock" || die "$roots is in use by another run"
  root=$roots/$suite base=$roots/$suite.base
  had_base=no
  [ ! -d "$base" ] || had_base=yes
  scratch=$(mktemp --directory)
  trap clean_up EXIT
  trap 'say "ended by SIGINT"; exit 130' INT
  trap 'say "ended by SIGTERM"; exit 143' TERM
  trap 'say "ended by SIGHUP"; exit 129' HUP

  if [ "$is_again" = yes ]; then
    [ -d "$root$at" ] || die "there is no $root$at: an earlier run must have been told --keep"
  else
    [ "$had_base" = yes ] || make_base
    make_root
  fi
  start_machine "$root"
  # shellcheck disable=SC2016 # variables of the inner shell
  say "$(inside sh -c '. /etc/os-release; echo "$PRETTY_NAME, Node $(node --version), npm $(npm --version), process 1: $(cat /proc/1/comm)"')"
  inside update-ca-certificates >/dev/null 2>&1 || true

  status=0
  if [ $# -gt 0 ]; then
    run_there "$@" || status=$?
  else
    run_there npm run demo </dev/null || status=1
    run_there npm test </dev/null || status=1
  fi
  exit "$status"
}

main "$@"
