#!/bin/bash
# Stands in for enroot where tests ask registries: `digest`, `import` and `version`, as enroot 4.1 answers
# them, on a directory in place of a registry. Beside this script lie
#
#   version      what `version` prints
#   registry/    NAME.digest and NAME.sqsh for each reference, NAME being the reference with `_` for what is
#                not alphanumeric; NAME is REPOSITORY@DIGEST, too, where the image stays when its tag moves.
#                No such directory: nobody listens there
#   next/        what takes the place of registry/NAME.* as soon as a digest was told
#   password     what the user's credentials must say
#   proxy        the only way to the registry; where it is not https_proxy, nobody listens
#   answer       what the registry answers in place of an image: `http CODE TEXT`, `curl CODE TEXT`, or `hang`
#   conf         enroot.conf: settings that the environment can change
#   calls        one line for each call: uid, groups, HOME, what was asked
#   hold         while it is there, an import waits
#   programs     with this file, `import` calls its programs, also where the environment has functions of the
#                same names
#   made         one line for each import: `layers` were handed to such functions, or a `file` was made
#   beside       one line for each import: the names beside its output
set -eu
here=${0%/*}

fail() {
  printf '[ERROR] %s\n' "$*" >&2
  exit 1
}

info() {
  printf '[INFO] %s\n' "$*" >&2
}

usage() {
  printf 'Usage: enroot COMMAND [ARG...]\n'
  exit 1
}

# As common::curl of the real one ends.
end_of_curl() {
  code=$1
  shift
  printf 'curl: (%s) %s\n' "$code" "$*" >&2
  exit "$code"
}

find_reference() {
  name=${1#docker://}
  host=${name%%[/#]*}
  info 'Querying registry for permission grant'
  if [ ! -d "$here/registry" ] || { [ -e "$here/proxy" ] && [ "${https_proxy-}" != "$(cat "$here/proxy")" ]; }; then
    end_of_curl 7 "Failed to connect to ${host%:*} port 443 after 0 ms: Couldn't connect to server"
  fi
  [ ! -e "$here/answer" ] || answer_instead "$1"
  [ ! -e "$here/password" ] || authenticate
  case $name in
    # A tag beside a digest counts for nothing.
    *:*@sha256:*) name=$(printf '%s' "$name" | sed 's/:[^:@/]*@sha256:/@sha256:/') ;;
  esac
  reference=$here/registry/$(printf '%s' "$name" | tr -c '[:alnum:]' '_')
  [ -e "$reference.digest" ] || fail "URL https://$host/v2/x/manifests/x returned error code: 404 Not Found"
}

answer_instead() {
  read -r kind code text <"$here/answer"
  case $kind in
    curl) end_of_curl "$code" "$text" ;;
    hang) while :; do sleep 10; done ;;
  esac
  case $code in
    408 | 429 | 5*)
      # curl waits before each of its attempts, longer each time.
      [ "${ENROOT_TRANSFER_RETRIES:-0}" -eq 0 ] || sleep 1000
      ;;
  esac
  # The real one has no words for 429.
  [ "$code" != 429 ] || text=''
  fail "URL https://$host/v2/x/manifests/x returned error code: $code $text"
}

# A registry that wants a password (Basic). Where it refuses one, the real enroot drops the answer.
authenticate() {
  credentials=${ENROOT_CONFIG_PATH:-${XDG_CONFIG_HOME:-$HOME/.config}/enroot}/.credentials
  user=$(awk -v machine="${host%:*}" '$1 == "machine" && $2 == machine && $3 == "login" { print $4; exit }' \
    "$credentials" 2>/dev/null) || :
  info "Authenticating with user: ${user:-<anonymous>}"
  [ -n "$user" ] || exit 1
  info "Using credentials from file: $credentials"
  # A password that begins with a dollar sign is shell text, up to the end of the line, as the real one has
  # it.
  password=$(sed 's/^\([^ ]* *\)\{5\}//; q' "$credentials")
  case $password in \$*) password=$(sh -c "echo $password" 2>/dev/null) || : ;; esac
  [ "$password" = "$(cat "$here/password")" ] || exit 1
  info 'Authentication succeeded'
}

printf '%s %s %s %s\n' "$(id -u)" "$(id -G | tr ' ' ',')" "$HOME" "$*" >>"$here/calls"
# The real one does so at each start, and cannot go on without.
mkdir -p "$ENROOT_DATA_PATH" "$ENROOT_RUNTIME_PATH" || exit 1
if [ -e "$here/conf" ]; then
  while read -r key value; do
    eval "[ -n \"\${$key-}\" ] || export $key='$value'"
  done <"$here/conf"
fi

read -r version <"$here/version"
case ${1-} in
  version)
    printf '%s\n' "$version"
    ;;
  digest)
    [ "${version%%.*}" -ge 4 ] || usage
    find_reference "$2"
    cat "$reference.digest"
    for file in "$here/next/${reference##*/}".*; do
      [ ! -e "$file" ] || mv "$file" "$here/registry/"
    done
    ;;
  import)
    [ "$2" = --output ] || usage
    output=$3
    [ ! -e "$output" ] || fail "File already exists: $output"
    (cd "${output%/*}" && echo *) >>"$here/beside"
    find_reference "$4"
    info 'Fetching image manifest list'
    work=$(mktemp -d "$ENROOT_TEMP_PATH/enroot.XXXXXXXXXX")
    trap 'rm -rf "$work"' EXIT
    : >"$work/layer"
    while [ -e "$here/hold" ]; do sleep 0.01; done
    [ -e "$reference.sqsh" ] || fail "Could not fetch layer"
    if [ ! -e "$here/programs" ] && declare -F enroot-mksquashovlfs >/dev/null; then
      echo layers >>"$here/made"
      cd "$work"
      unsquashfs -quiet -no-progress -no-xattrs -dest 1 "$reference.sqsh" >&2 || fail "Could not extract layer"
      chmod -f -R u+rX . || :
      find . -type d ! -perm -u=w -exec chmod u+w {} +
      mkdir 0
      enroot-aufs2ovlfs 1
      enroot-mksquashovlfs 0:1 "$output"
    else
      echo file >>"$here/made"
      cp "$reference.sqsh" "$output"
    fi
    ;;
  *)
    usage
    ;;
esac
