#!/bin/bash
# `enroot start` of the stand-in, up to the new namespaces; inside.bash goes on in them, as the same process.

start_usage='start [options] [--] NAME|IMAGE [COMMAND] [ARG...]'

start() {
  local configuration='' rc='' target root='' writable='' mounts=() variables=()
  while [ $# -gt 0 ]; do
    if without_value -c --conf --rc -m --mount -e --env -- "$@"; then usage "$start_usage"; fi
    case $1 in
      -c | --conf) configuration=$2 && shift 2 ;;
      --conf=?*) configuration=${1#*=} && shift ;;
      --rc) rc=$2 && shift 2 ;;
      --rc=?*) rc=${1#*=} && shift ;;
      -m | --mount) mounts+=("$2") && shift 2 ;;
      --mount=?*) mounts+=("${1#*=}") && shift ;;
      -e | --env) variables+=("$2") && shift 2 ;;
      --env=?*) variables+=("${1#*=}") && shift ;;
      -r | --root) root=y && shift ;;
      -w | --rw) writable=y && shift ;;
      --) shift && break ;;
      -?*) usage "$start_usage" ;;
      *) break ;;
    esac
  done
  [ $# -gt 0 ] || usage "$start_usage"
  target=$1
  shift

  # Lines like "#ENROOT_ROOTFS_WRITABLE yes" of the container's configuration win over the environment.
  if [ -n "$configuration" ] && [ -f "$configuration" ]; then
    load_file <(sed -n '/^#[[:space:]]*ENROOT_/s/#//p' "$configuration") y
    drop_switches_off
  fi
  if [ -n "$root" ]; then export ENROOT_REMAP_ROOT=y; fi
  if [ -n "$writable" ]; then export ENROOT_ROOTFS_WRITABLE=y; fi

  [ -n "$target" ] || fail 'Invalid argument'
  if [ -f "$target" ] && unsquashfs -s "$target" >/dev/null 2>&1; then
    target=$(real_path "$target")
  else
    target=$(existing_container_path "$target")
  fi
  check_start_options
  if [ -n "$rc" ] && [ ! -p "$rc" ]; then rc=$(existing_file "$rc"); fi
  if [ -n "$configuration" ]; then
    configuration=$(existing_file "$configuration")
    bash -n "$configuration" 2>&1 | sed 's/^/[WARN] /' >&2 || fail "Invalid argument: $configuration"
  fi

  local unprivileged=''
  if [ -z "${ENROOT_ALLOW_SUPERUSER-}" ] || [ "$EUID" -ne 0 ]; then unprivileged=y; fi
  unset BASH_ENV
  # shellcheck disable=SC2154 # library: commands.bash
  exec enroot-nsenter ${unprivileged:+--user} --mount ${ENROOT_REMAP_ROOT:+--remap-root} \
    bash --norc "$library/inside.bash" "$target" "$rc" "$configuration" \
    "$(printf '%s\n' "${mounts[@]}")" "$(printf '%s\n' "${variables[@]}")" "$@"
}

check_start_options() {
  local word
  for word in "${mounts[@]}"; do
    [[ $word =~ ^[^[:space:]]+(:[^[:space:]]+)*$ ]] || fail "Invalid argument: $word"
  done
  for word in "${variables[@]}"; do
    [[ $word =~ ^[[:alpha:]_][[:alnum:]_]*(=|$) ]] || fail "Invalid argument: $word"
  done
}

existing_file() {
  local path
  path=$(real_path "$1")
  [ -f "$path" ] || fail "No such file or directory: $path"
  printf '%s' "$path"
}
