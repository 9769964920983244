#!/bin/bash
# Stands in for enroot 4.1 in test clusters, where the real one is not installed: the same commands, files,
# mounts, exit codes and refusals, for what a job by way of pyxis does and for what container-cache does.
# Installed by stand-in.ts, beside
#
#   enroot-nsenter, enroot-mount, enroot-switchroot     namespace-tools.c
#   start.bash, inside.bash, registry.bash              the longer commands
#   installation                                        two lines: the configuration's directory; the version
#
# Left out: batch, bundle, exec, info; the sources dockerd and podman; hooks for GPUs, cgroups and
# ENROOT_RESTRICT_DEV.
set -euo pipefail
shopt -s lastpipe inherit_errexit

self=$(readlink -f "$0")
readonly library=${self%/*}
{ read -r installed_sysconf_path && read -r version; } <"$library/installation"

# ---- what every command uses ----

info() { printf '[INFO] %s\n' "$*" >&2; }

fail() {
  printf '[ERROR] %s\n' "$*" >&2
  exit 1
}

usage() {
  printf 'Usage: enroot %s\n' "$1"
  exit 1
}

# Whether an option that has a value was given none: `without_value OPTION... -- "$@"`.
without_value() {
  local option=" "
  while [ "$1" != -- ]; do option+="$1 " && shift; done
  [[ $option == *" ${2-} "* ]] && [ -z "${3-}" ]
}

real_path() {
  readlink -f "$1" 2>/dev/null || fail "No such file or directory: $1"
}

# The path of a container by its name, whatever is there; symbolic links are followed, the last one too.
container_path() {
  [ -n "$1" ] || fail 'Invalid argument'
  case $1 in */*) fail "Invalid argument: $1" ;; esac
  real_path "$ENROOT_DATA_PATH/$1"
}

existing_container_path() {
  local path
  path=$(container_path "$1")
  [ -d "$path" ] || fail "No such file or directory: $path"
  printf '%s' "$path"
}

# Makes room for what a command is to write, or refuses.
require_absent() {
  [ -e "$1" ] || return 0
  [ -n "${ENROOT_FORCE_OVERRIDE-}" ] || fail "File already exists: $1"
  remove_tree "$1"
}

# Without permission on the way it gives itself permission and tries again; it stays on one filesystem.
remove_tree() {
  rm --one-file-system --preserve-root -rf "$1" 2>/dev/null && return
  chmod -f -R +rwX "$1" || :
  rm --one-file-system --preserve-root -rf "$1"
}

# So that an owner without capabilities can read everything and change every directory.
fix_permissions() {
  chmod -f -R u+rX "$1" || :
  find "$1" -maxdepth 15 -type d ! -perm -u=w -exec chmod -f u+w {} + || :
}

# ---- configuration ----

# Exports a variable: what the environment has wins, unless a third argument says that it does not.
export_setting() {
  if [ -n "${3-}" ]; then export "$1=$2"; else export "$1=${!1:-$2}"; fi
}

load_file() {
  local key value
  [ -e "$1" ] || return 0
  if [ -s "$1" ] && ! bash -n "$1" >/dev/null 2>&1; then
    printf 'Invalid configuration file: %s\n' "$1"
    exit 1
  fi
  while IFS=$' \t=' read -r key value; do
    if [[ $key =~ ^(ENROOT_[[:upper:]_]+|(MELLANOX|NVIDIA)_.*|SSL_CERT_(DIR|FILE)|(all|no|http|https)_proxy)$ ]]; then
      # The value is shell text; its words come out with one blank between them.
      export_setting "$key" "$(eval "echo $value")" "${2-}"
    fi
  done <"$1"
}

# A switch that says no is a variable that is not there.
drop_switches_off() {
  local name
  for name in $(compgen -e ENROOT_); do
    case ${!name} in n | no | N | No | NO | f | F | false | False | FALSE) unset "$name" ;; esac
  done
}

load_configuration() {
  local file
  load_file "$installed_sysconf_path/enroot.conf"
  for file in "$installed_sysconf_path"/enroot.conf.d/*.conf; do load_file "$file"; done

  local home=${HOME-}
  if [ -z "$home" ]; then home=~; fi
  export_setting XDG_DATA_HOME "$home/.local/share"
  export_setting XDG_CONFIG_HOME "$home/.config"
  export_setting XDG_CACHE_HOME "$home/.cache"
  export_setting XDG_RUNTIME_DIR /run

  export_setting ENROOT_LIBRARY_PATH "$library"
  export_setting ENROOT_SYSCONF_PATH "$installed_sysconf_path"
  export_setting ENROOT_RUNTIME_PATH "$XDG_RUNTIME_DIR/enroot"
  export_setting ENROOT_CONFIG_PATH "$XDG_CONFIG_HOME/enroot"
  export_setting ENROOT_CACHE_PATH "$XDG_CACHE_HOME/enroot"
  export_setting ENROOT_DATA_PATH "$XDG_DATA_HOME/enroot"
  export_setting ENROOT_TEMP_PATH "${TMPDIR:-/tmp}"

  export_setting ENROOT_SQUASH_OPTIONS '-comp lzo -noD -exit-on-error'
  export_setting ENROOT_MAX_PROCESSORS "$(nproc)"
  export_setting ENROOT_CONNECT_TIMEOUT 30
  export_setting ENROOT_TRANSFER_TIMEOUT 0
  export_setting ENROOT_TRANSFER_RETRIES 0
  export_setting ENROOT_LOGIN_SHELL true
  export_setting ENROOT_NATIVE_OVERLAYFS true
  local switch
  for switch in ALLOW_SUPERUSER ALLOW_HTTP ROOTFS_WRITABLE REMAP_ROOT FORCE_OVERRIDE; do
    export_setting "ENROOT_$switch" false
  done
  drop_switches_off
  (umask 077 && mkdir -p "$ENROOT_CACHE_PATH" "$ENROOT_DATA_PATH" "$ENROOT_RUNTIME_PATH")
  export ENROOT_VERSION=$version
}

# ---- commands ----

readonly create_usage='create [options] [--] IMAGE'
readonly export_usage='export [options] [--] NAME'
readonly remove_usage='remove [options] [--] NAME...'

create() {
  local name='' image path
  while [ $# -gt 0 ]; do
    if without_value -n --name -- "$@"; then usage "$create_usage"; fi
    case $1 in
      -n | --name) name=$2 && shift 2 ;;
      --name=?*) name=${1#*=} && shift ;;
      -f | --force) export ENROOT_FORCE_OVERRIDE=y && shift ;;
      --) shift && break ;;
      -?*) usage "$create_usage" ;;
      *) break ;;
    esac
  done
  [ $# -eq 1 ] || usage "$create_usage"
  [ -n "$1" ] || fail 'Invalid argument'
  image=$(real_path "$1")
  [ -f "$image" ] || fail "No such file or directory: $image"
  unsquashfs -s "$image" >/dev/null 2>&1 || fail "Invalid image format: $image"
  path=$(container_path "${name:-$(basename "${image%.sqsh}")}")
  require_absent "$path"

  info 'Extracting squashfs filesystem...'
  unsquashfs -no-progress -processors "$ENROOT_MAX_PROCESSORS" -user-xattrs -d "$path" "$image" >&2
  fix_permissions "$path"
}

export_container() {
  local file='' path exclude=()
  while [ $# -gt 0 ]; do
    if without_value -o --output -- "$@"; then usage "$export_usage"; fi
    case $1 in
      -o | --output) file=$2 && shift 2 ;;
      --output=?*) file=${1#*=} && shift ;;
      -f | --force) export ENROOT_FORCE_OVERRIDE=y && shift ;;
      --) shift && break ;;
      -?*) usage "$export_usage" ;;
      *) break ;;
    esac
  done
  [ $# -eq 1 ] || usage "$export_usage"
  path=$(existing_container_path "$1")
  file=$(real_path "${file:-$(basename "$path").sqsh}")
  if [ -e "$file" ]; then
    [ -n "${ENROOT_FORCE_OVERRIDE-}" ] || fail "File already exists: $file"
    # Not a tree: a directory there is in the way even by force.
    rm -f "$file"
  fi

  # Left out: devices; mount points, which are empty files and directories of mode 000; the lock. `-empty`
  # opens such a directory, and a find(1) that minds that it cannot (findutils 4.10) ends this, as it ends the
  # real one.
  find "$path" \( -path "$path/dev/*" -print \) -o \( -perm 0 -prune \( -empty -o -type d \) -print \) \
    | readarray -t exclude
  if [ -f "$path/.lock" ]; then exclude+=("$path/.lock"); fi
  if [ ${#exclude[@]} -gt 0 ]; then exclude=(-e "${exclude[@]}"); fi
  info 'Creating squashfs filesystem...'
  # shellcheck disable=SC2086 # options
  mksquashfs "$path" "$file" -all-root -no-progress -processors "$ENROOT_MAX_PROCESSORS" $ENROOT_SQUASH_OPTIONS \
    "${exclude[@]}" >&2
}

remove() {
  local name path
  while [ $# -gt 0 ]; do
    case $1 in
      -f | --force) export ENROOT_FORCE_OVERRIDE=y && shift ;;
      --) shift && break ;;
      -?*) usage "$remove_usage" ;;
      *) break ;;
    esac
  done
  [ $# -gt 0 ] || usage "$remove_usage"
  for name in "$@"; do
    path=$(existing_container_path "$name")
    REPLY=y
    if [ -z "${ENROOT_FORCE_OVERRIDE-}" ]; then
      read -r -p "Do you really want to delete $path? [y/N] "
    fi
    case $REPLY in y | Y) remove_tree "$path" ;; esac
  done
}

list() {
  case ${1-} in
    -f | --fancy) ;;
    '')
      cd "$ENROOT_DATA_PATH" && ls -1
      return
      ;;
    *) usage 'list [options]' ;;
  esac
  list_processes
}

# One line for each container, and one more for each further process in it. A process belongs to a container
# if the filesystem that is its root is the container's directory, so not if an overlay is: those are under
# "<unknown>".
list_processes() {
  local within name pid names
  declare -A pids
  cd "$ENROOT_DATA_PATH"
  within=$(findmnt --noheadings --output TARGET --first-only --target .)
  within=${PWD#"${within%/}"}/
  shopt -s nullglob
  for name in */; do pids[${name%/}]=''; done
  shopt -u nullglob
  for pid in $(lsns --noheadings --raw --type mnt --output PID); do
    [ -e "/proc/$pid/root/.lock" ] || continue
    name=$(awk '$5 == "/" { print $4; exit }' "/proc/$pid/mountinfo" 2>/dev/null) || continue
    name=${name#"$within"}
    if [ -z "$name" ] || [ -z "${pids[$name]+known}" ]; then name='<unknown>'; fi
    pids[$name]+=" $pid"
  done
  readarray -t names < <(printf '%s\n' "${!pids[@]}" | sort)
  column -t -s $'\t' < <(
    printf 'NAME\tPID\tCOMM\tSTATE\tSTARTED\tTIME\tMNTNS\tUSERNS\tCOMMAND\n'
    for name in "${names[@]}"; do
      if [ -n "$name" ]; then list_one "$name" "${pids[$name]}"; fi
    done
  )
}

list_one() {
  local first=$1 columns pid stat started elapsed mount_namespace user_namespace command
  [ -n "$2" ] || { printf '%s\n' "$1" && return; }
  columns=pid:1,stat:1,stime:1,etime:1,mntns:1,userns:1,command:1
  ps --no-headers -o "$columns" -p "${2# }" \
    | while read -r pid stat started elapsed mount_namespace user_namespace command; do
      printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$first" "$pid" "$(cat "/proc/$pid/comm" 2>/dev/null)" \
        "$stat" "$started" "$elapsed" "$mount_namespace" "$user_namespace" "$command"
      first=' '
    done || printf '%s\n' "$1"
}

load_configuration
# As a package of the distribution has them in /usr/bin.
export PATH=$PATH:$library
[ $# -gt 0 ] || usage 'COMMAND [ARG...]'
command=$1
shift
case $command in
  version) printf '%s\n' "$version" ;;
  create) create "$@" ;;
  export) export_container "$@" ;;
  list) list "$@" ;;
  remove) remove "$@" ;;
  start)
    # shellcheck source-path=SCRIPTDIR source=start.bash
    . "$library/start.bash"
    start "$@"
    ;;
  digest | import | load)
    # shellcheck source-path=SCRIPTDIR source=registry.bash
    . "$library/registry.bash"
    "registry_$command" "$@"
    ;;
  *) usage 'COMMAND [ARG...]' ;;
esac
