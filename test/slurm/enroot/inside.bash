#!/bin/bash
# Second half of `enroot start` of the stand-in: runs in the new namespaces, with all capabilities there, and
# makes the container of a root filesystem before it goes on as the container's first program.
#
#   inside.bash ROOTFS RC CONFIGURATION MOUNTS VARIABLES [COMMAND [ARGUMENT...]]
#
# ROOTFS is a directory or a squashfs image; MOUNTS and VARIABLES are lines. All is done in the order of the
# real one, and in the same files, so that what goes wrong in between leaves the same behind:
#
#   1. a private tmpfs hides the runtime directory; the rootfs is mounted on itself
#   2. under the rootfs's lock: environment, mounts of pass -1, hooks and their mounts, mounts of pass 0, rc
#   3. the rootfs becomes read-only, unless it is to be writable; the lock is always
#   4. the rootfs becomes the root, all privileges go, and the rc script or the command takes over
set -euo pipefail
shopt -s lastpipe

rootfs=$1 rc=$2 configuration=$3 mounts=$4 variables=$5
shift 5
readonly environment_file=$ENROOT_RUNTIME_PATH/environment
readonly mounts_file=$ENROOT_RUNTIME_PATH/fstab
readonly rc_file=$ENROOT_RUNTIME_PATH/rc

fail() {
  printf '[ERROR] %s\n' "$*" >&2
  exit 1
}

mount_point_of() {
  findmnt --noheadings --output TARGET --first-only --target "$1"
}

# What belongs to a configuration directory, the system's before the user's, in name order.
parts() {
  local directory file
  shopt -s nullglob
  for directory in "$ENROOT_SYSCONF_PATH/$1" "$ENROOT_CONFIG_PATH/$1"; do
    for file in "$directory"/*"$2"; do printf '%s\n' "$file"; done
  done
  shopt -u nullglob
}

# Puts the environment's value in the place of each ${NAME}, nothing else: no default, no $NAME.
substitute() {
  local file
  for file in "$@"; do
    [ -f "$file" ] || continue
    # shellcheck disable=SC2016 # awk's own text
    awk '{
      rest = $0
      line = ""
      while (match(rest, /\$\{[A-Za-z_][A-Za-z0-9_]*\}/)) {
        line = line substr(rest, 1, RSTART - 1) ENVIRON[substr(rest, RSTART + 2, RLENGTH - 3)]
        rest = substr(rest, RSTART + RLENGTH)
      }
      print line rest
    }' "$file"
  done
}

# Leaves only lines NAME=VALUE, without quotes around the value; ENROOT_… stay out of the container.
tidy_environment() {
  local name='[[:alpha:]_][[:alnum:]_]*'
  sed -i -E -e 's/^[[:space:]]+//' -e "/^$name=/!d" -e '/^ENROOT_/d' \
    -e "s/^($name)=[\"'](.*)[\"'][[:space:]]*\$/\\1=\\2/" "$environment_file"
}

write_environment() {
  local variable files
  parts environ.d .env | readarray -t files
  substitute "$rootfs/etc/environment" "${files[@]}" >"$environment_file"
  if declare -F environ >/dev/null; then environ >>"$environment_file"; fi
  while IFS= read -r variable; do
    case $variable in
      '') ;;
      *=*) printf '%s\n' "$variable" ;;
      *) printf '%s=%s\n' "$variable" "${!variable-}" ;;
    esac
  done <<<"$variables" >>"$environment_file"
  tidy_environment
}

mount_first() {
  local files
  parts mounts.d .fstab | readarray -t files
  substitute "$rootfs/etc/fstab" "${files[@]}" >"$mounts_file"
  enroot-mount --root "$rootfs" --pass -1 "$mounts_file"
}

# Hooks see an empty list of mounts; what they put there is mounted before the rest.
run_hooks() {
  local hook
  mv "$mounts_file" "$mounts_file~"
  : >"$mounts_file"
  for hook in $(parts hooks.d .sh); do
    [ -x "$hook" ] || continue
    "$hook" || fail "$hook exited with return code $?"
  done
  if declare -F hooks >/dev/null; then hooks; fi
  enroot-mount --root "$rootfs" "$mounts_file"
  mv "$mounts_file~" "$mounts_file"
  tidy_environment
}

mount_last() {
  if declare -F mounts >/dev/null; then mounts >>"$mounts_file"; fi
  if [ -n "$mounts" ]; then printf '%s\n' "$mounts" | tr ':' ' ' >>"$mounts_file"; fi
  enroot-mount --root "$rootfs" "$mounts_file"
}

write_rc() {
  if [ -n "$rc" ]; then
    cp -Lp "$rc" "$rc_file"
  elif declare -F rc >/dev/null; then
    # The body alone.
    declare -f rc | sed '1,2d;$d' >"$rc_file"
  fi
}

# The image as the lowest layer under an overlay, served by a process that ends with this one, whatever it is
# by then.
mount_image() {
  local image=$1 overlay=$2 server layers tries=0
  set -m
  setpriv --pdeathsig KILL -- squashfuse -f -o "uid=$EUID,gid=$(id -g)" "$image" "$overlay/lower" \
    >"$ENROOT_RUNTIME_PATH/squashfuse" 2>&1 &
  server=$!
  set +m
  until mountpoint -q "$overlay/lower"; do
    if ! kill -0 "$server" 2>/dev/null || [ $((tries += 1)) -gt 500 ]; then
      sed 's/^/[WARN] /' "$ENROOT_RUNTIME_PATH/squashfuse" >&2
      fail "Failed to mount: $image"
    fi
    sleep .01
  done
  disown "$server"
  if [ -n "${ENROOT_NATIVE_OVERLAYFS-}" ]; then
    layers="lowerdir=$overlay/lower,upperdir=$overlay/upper,workdir=$overlay/work"
    enroot-mount - <<<"overlay $overlay overlay $layers,xino=off" || fail "Failed to mount: $image"
  else
    fail 'The stand-in mounts images by the kernel only: ENROOT_NATIVE_OVERLAYFS'
  fi
}

enroot-mount - <<END
none $(mount_point_of "$ENROOT_RUNTIME_PATH") none slave
tmpfs $ENROOT_RUNTIME_PATH tmpfs x-create=dir,mode=700,slave
END
mkdir -p "$ENROOT_RUNTIME_PATH"/overlay/{lower,upper,work}

if [ -f "$rootfs" ]; then
  mount_image "$rootfs" "$ENROOT_RUNTIME_PATH/overlay"
  rootfs=$ENROOT_RUNTIME_PATH/overlay
fi
enroot-mount - <<END
none $(mount_point_of "$rootfs") none slave
$rootfs $rootfs none bind,nosuid,nodev,slave
END

# The lock file is opened where the rootfs is now, before anything is mounted over it.
(
  export ENROOT_PID=$$ ENROOT_ROOTFS=$rootfs ENROOT_ENVIRON=$environment_file ENROOT_MOUNTS=$mounts_file
  flock -w 30 "$lock" >/dev/null 2>&1 || fail 'Could not acquire rootfs lock'
  if [ -n "$configuration" ]; then
    # shellcheck source=/dev/null # the user's
    . "$configuration"
  fi
  write_environment >/dev/null
  mount_first >/dev/null
  run_hooks >/dev/null
  mount_last >/dev/null
  write_rc >/dev/null
) {lock}>"$rootfs/.lock"

if [ -z "${ENROOT_ROOTFS_WRITABLE-}" ]; then
  enroot-mount - <<<"none $rootfs none remount,bind,nosuid,nodev,ro"
fi
if [ -f "$rootfs/.lock" ]; then
  enroot-mount - <<<"$rootfs/.lock $rootfs/.lock none bind,nosuid,nodev,noexec,ro,private"
fi

switch=(enroot-switchroot)
if [ -n "${ENROOT_LOGIN_SHELL-}" ]; then switch+=(--login); fi
if [ -f "$rc_file" ]; then switch+=(--rcfile "$rc_file"); fi
exec "${switch[@]}" --envfile "$environment_file" "$rootfs" "$@"
