#!/bin/sh
# Stands in for enroot where tests ask registries: `digest`, `import` and `version`, as enroot 4.1 answers them, on a
# directory in place of a registry. Beside this script lie
#
#   version      what `version` prints
#   registry/    NAME.digest and NAME.sqsh for each reference, NAME being the reference with `_` for what is not
#                alphanumeric; no such directory: the registry does not answer
#   calls        one line for each call: uid, groups, HOME, what was asked
#   hold         while it is there, an import waits
set -eu
here=${0%/*}

fail() {
  printf '[ERROR] %s\n' "$*" >&2
  exit 1
}

usage() {
  printf 'Usage: enroot COMMAND [ARG...]\n'
  exit 1
}

find_reference() {
  [ -d "$here/registry" ] || fail "Could not process JSON input: Failed to connect to registry"
  reference=$here/registry/$(printf '%s' "${1#docker://}" | tr -c '[:alnum:]' '_')
  [ -e "$reference.digest" ] || fail "URL $1 returned error code: 404 Not Found"
}

printf '%s %s %s %s\n' "$(id -u)" "$(id -G | tr ' ' ',')" "$HOME" "$*" >>"$here/calls"
# The real one does so at each start, and cannot go on without.
mkdir -p "$ENROOT_DATA_PATH" "$ENROOT_RUNTIME_PATH" || exit 1

read -r version <"$here/version"
case ${1-} in
  version)
    printf '%s\n' "$version"
    ;;
  digest)
    [ "${version%%.*}" -ge 4 ] || usage
    printf '[INFO] Querying registry for permission grant\n' >&2
    find_reference "$2"
    cat "$reference.digest"
    ;;
  import)
    [ "$2" = --output ] || usage
    output=$3
    [ ! -e "$output" ] || fail "File already exists: $output"
    printf '[INFO] Fetching image manifest list\n' >&2
    find_reference "$4"
    work=$(mktemp -d "$ENROOT_TEMP_PATH/enroot.XXXXXXXXXX")
    trap 'rm -rf "$work"' EXIT
    : >"$work/layer"
    while [ -e "$here/hold" ]; do sleep 0.01; done
    [ -e "$reference.sqsh" ] || fail "Could not fetch layer"
    cp "$reference.sqsh" "$output"
    ;;
  *)
    usage
    ;;
esac
