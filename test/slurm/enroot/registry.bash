#!/bin/bash
# `enroot digest`, `import` and `load` of the stand-in: asks a real registry with curl. Of the ways to
# authenticate there is only Basic; layers are kept in the cache as they came: a cache is not to be shared
# with the real one.

readonly digest_usage='digest [options] [--] URI'
readonly import_usage='import [options] [--] URI'
readonly load_usage='load [options] [--] URI'
docker_type=application/vnd.docker.distribution.manifest
oci_type=application/vnd.oci.image
readonly manifest_list_types="$docker_type.list.v2+json, $oci_type.index.v1+json"
readonly manifest_types="$docker_type.v2+json, $oci_type.manifest.v1+json"

registry_digest() {
  local uri architecture output name digest
  parse_registry_options "$digest_usage" "$@"
  parse_reference "$uri"
  open_image
  digest=$(request --head --header "Accept: $manifest_types" -- "$manifest_url" \
    | awk 'tolower($1) == "docker-content-digest:" { sub(/\r/, "", $2); print $2 }')
  [ -n "$digest" ] || fail "Could not retrieve digest from $manifest_url"
  printf '%s\n' "$digest"
}

registry_import() {
  local uri architecture output name
  parse_registry_options "$import_usage" "$@"
  parse_reference "$uri"
  output=$(real_path "${output:-$(default_name).sqsh}")
  [ ! -e "$output" ] || fail "File already exists: $output"
  if declare -F enroot-mksquashovlfs >/dev/null; then
    hand_over_layers "$output"
    return
  fi
  make_rootfs with-opaque
  info 'Creating squashfs filesystem...'
  # shellcheck disable=SC2086 # options
  mksquashfs "$work/rootfs" "$output" -all-root -no-progress -processors "$ENROOT_MAX_PROCESSORS" \
    $ENROOT_SQUASH_OPTIONS >&2
}

registry_load() {
  local uri architecture output name path
  parse_registry_options "$load_usage" "$@"
  [ -n "${ENROOT_NATIVE_OVERLAYFS-}" ] || fail 'ENROOT_NATIVE_OVERLAYFS=y is required for enroot load'
  parse_reference "$uri"
  path=$(container_path "${name:-$(default_name)}")
  require_absent "$path"
  make_rootfs without-opaque
  info 'Loading container root filesystem...'
  mkdir -p "$path"
  tar -C "$work/rootfs" --mode=u-s,g-s -cpf - . | tar -C "$path" -xpf -
}

# Sets uri, architecture, output, name; the last two only where the command has such an option.
parse_registry_options() {
  local usage_text=$1
  shift
  architecture=$(uname -m) output='' name=''
  while [ $# -gt 0 ]; do
    if without_value -a --arch -o --output -n --name -- "$@"; then usage "$usage_text"; fi
    case ${usage_text%% *}:$1 in
      *:-a | *:--arch) architecture=$2 && shift 2 ;;
      *:--arch=?*) architecture=${1#*=} && shift ;;
      import:-o | import:--output) output=$2 && shift 2 ;;
      import:--output=?*) output=${1#*=} && shift ;;
      load:-n | load:--name) name=$2 && shift 2 ;;
      load:--name=?*) name=${1#*=} && shift ;;
      load:-f | load:--force) export ENROOT_FORCE_OVERRIDE=y && shift ;;
      *:--) shift && break ;;
      *:-?*) usage "$usage_text" ;;
      *) break ;;
    esac
  done
  [ $# -eq 1 ] || usage "$usage_text"
  uri=$1
  [[ $uri == docker://* ]] || fail "Invalid argument: $uri"
  case $architecture in
    x86_64) architecture=amd64 ;;
    aarch64) architecture=arm64 ;;
    ppc64le) ;;
    *) fail "Unsupported architecture: $architecture" ;;
  esac
}

# docker://[USER@][REGISTRY#]IMAGE[:TAG][@sha256:DIGEST]; a first part of the image with a dot or a colon is a
# registry, too. Sets user, registry, image, tag; with a digest that is the tag, and the tag of the reference
# counts for nothing.
parse_reference() {
  local rest=${1#docker://} digest=''
  if [[ $rest =~ ^(.*)@(sha256:[[:alnum:]]+)$ ]]; then rest=${BASH_REMATCH[1]} digest=${BASH_REMATCH[2]}; fi
  user='' registry='' image='' tag=latest
  if [[ $rest == *@* ]]; then user=${rest%@*} rest=${rest##*@}; fi
  if [[ $rest == *'#'* ]]; then
    registry=${rest%%#*} image=${rest#*#}
  elif [[ $rest == */* ]]; then
    registry=${rest%%/*} image=${rest#*/}
    if [[ $registry != *[.:]* ]]; then registry=registry-1.docker.io image=$rest; fi
  else
    registry=registry-1.docker.io image=library/$rest
  fi
  if [[ $image == *:* ]]; then tag=${image#*:} image=${image%%:*}; fi
  tag=${digest:-$tag}
  [[ $image =~ ^[[:lower:][:digit:]/._-]+$ && $tag =~ ^[[:alnum:]._:-]+$ && -n $registry && $registry != */* ]] \
    || fail "Invalid image reference: $1"
}

default_name() {
  local shown=$image
  if [ "$registry" = registry-1.docker.io ]; then shown=${shown#library/}; fi
  printf '%s+%s' "${shown//\//+}" "$tag"
}

# ---- requests ----

curl_options=(--silent --show-error --location --retry "$ENROOT_TRANSFER_RETRIES"
  --connect-timeout "$ENROOT_CONNECT_TIMEOUT" --max-time "$ENROOT_TRANSFER_TIMEOUT")
if [ -n "${ENROOT_ALLOW_HTTP-}" ]; then
  readonly scheme=http
  curl_options+=(--proto '=http,https')
else
  readonly scheme=https
  curl_options+=(--proto '=https')
fi
credentials=()
readonly credentials_file=$ENROOT_CONFIG_PATH/.credentials
readonly private_directory=$ENROOT_CACHE_PATH/.tokens.$EUID
work=''

clean_up() {
  rm -f "$private_directory/"*".$$" || :
  if [ -n "$work" ]; then remove_tree "$work" 2>/dev/null; fi
}
trap clean_up EXIT

# Prints the answer to one request, whose URL comes last. A code of 400 or more is the end, but for those in
# $tolerated.
request() {
  local answer code
  answer=$(curl "${curl_options[@]}" "${credentials[@]}" --write-out '\n%{http_code}' "$@")
  code=${answer##*$'\n'}
  if [ "$code" -ge 400 ] && [[ " ${tolerated-} " != *" $code "* ]]; then
    fail "URL ${*: -1} returned error code: $code $(reason_of "$code")"
  fi
  printf '%s\n' "${answer%$'\n'*}"
}

reason_of() {
  case $1 in
    400) echo 'Bad Request' ;;
    401) echo 'Unauthorized' ;;
    403) echo 'Forbidden' ;;
    404) echo 'Not Found' ;;
    406) echo 'Not Acceptable' ;;
    500) echo 'Internal Server Error' ;;
    503) echo 'Service Unavailable' ;;
  esac
}

# Finds out how to ask the registry for the image and which manifest is the one for the architecture: sets
# manifest_url.
open_image() {
  local headers manifest
  if [ -z "$user" ] && [ -s "$credentials_file" ]; then
    user=$(awk -v machine="${registry%:*}" \
      '$1 == "machine" && $2 == machine && $3 == "login" && NF >= 4 { print $4; exit }' "$credentials_file")
  fi
  manifest_url=$scheme://$registry/v2/$image/manifests/$tag

  info 'Querying registry for permission grant'
  headers=$(tolerated=401 request --head -- "$manifest_url")
  if grep -qi '^www-authenticate:' <<<"$headers"; then
    authenticate "$(awk 'tolower($1) == "www-authenticate:" { print $2; exit }' <<<"$headers")"
  else
    info 'Permission granted'
  fi

  manifest=$(tolerated='401 404' request --header "Accept: $manifest_list_types" -- "$manifest_url")
  manifest=$(jq -R -s -r --arg wanted "$architecture" \
    '(fromjson | .manifests[] | select(.platform.architecture == $wanted) | .digest)? // empty' <<<"$manifest")
  if [ -n "$manifest" ]; then manifest_url=$scheme://$registry/v2/$image/manifests/${manifest%%$'\n'*}; fi
}

authenticate() {
  info "Authenticating with user: ${user:-<anonymous>}"
  [ "$1" = Basic ] || fail "Unsupported authentication method $1"
  if [ -n "$user" ] && grep -qs "^machine[[:space:]]\+${registry%:*}[[:space:]]\+login[[:space:]]\+${user}[[:space:]]" \
    "$credentials_file"; then
    info "Using credentials from file: $credentials_file"
    # Everybody can read the arguments of a process, so curl gets a file. As with the real one it is empty
    # where a variable is not set.
    (umask 077 && mkdir -p "$private_directory" && evaluate_credentials >"$private_directory/$registry.$$" 2>/dev/null) || true
    credentials=(--netrc-file "$private_directory/$registry.$$")
  elif [ -n "$user" ]; then
    credentials=(--user "$user")
  fi
  # Why it was refused the real one keeps to itself, too.
  request -- "$manifest_url" >/dev/null 2>&1
  info 'Authentication succeeded'
}

# A password that begins with a dollar sign is shell text.
evaluate_credentials() {
  local line password
  while IFS= read -r line; do
    read -r _ _ _ _ _ password <<<"$line"
    case $password in \$*) line="${line%"$password"}$(eval "echo $password")" ;; esac
    printf '%s\n' "$line"
  done <"$credentials_file"
}

# ---- the image ----

# Makes the image's files in $work/rootfs. What hides all of a directory below counts for `import` only: the
# real `load` mounts the layers in a user namespace, and there the mark for it is not seen.
make_rootfs() {
  local opaque=$1 config layers layer
  fetch_image
  info 'Extracting image layers...'
  mkdir "$work/rootfs"
  for layer in "${layers[@]}"; do apply_layer "$ENROOT_CACHE_PATH/$layer" "$work/rootfs" "$opaque"; done
  # The topmost layer of the real one, whose directories show their own times and modes.
  mkdir "$work/0"
  configure_rootfs "$ENROOT_CACHE_PATH/$config" "$work/0"
  cp -a "$work/0/." "$work/rootfs/"
}

# The real one calls programs by name, with the layers in directories 1, 2, ..., the topmost first, and what
# the image's configuration says in 0. Where functions of these names come from the environment, they get what
# the programs would.
hand_over_layers() {
  local output=$1 config layers number=0 order=0
  fetch_image
  cd "$work" || return
  info 'Extracting image layers...'
  while [ "$number" -lt ${#layers[@]} ]; do
    number=$((number + 1)) order+=:$number
    mkdir "$number"
    tar -C "$number" --warning=no-timestamp --anchored --exclude='dev/*' --exclude='./dev/*' \
      --delay-directory-restore -pxf "$ENROOT_CACHE_PATH/${layers[-number]}"
  done
  fix_permissions .
  info 'Converting whiteouts...'
  for number in ${order//:/ }; do
    if [ "$number" -gt 0 ]; then enroot-aufs2ovlfs "$number"; fi
  done
  mkdir 0
  cp "$ENROOT_CACHE_PATH/$config" config
  configure_rootfs config "$work/0"
  info 'Creating squashfs filesystem...'
  mkdir rootfs
  # shellcheck disable=SC2086 # options
  MOUNTPOINT=$work/rootfs enroot-mksquashovlfs "$order" "$output" -all-root -no-progress \
    -processors "$ENROOT_MAX_PROCESSORS" $ENROOT_SQUASH_OPTIONS >&2
}

# Sets work, and config and layers of the caller, from the lowest up.
fetch_image() {
  local manifest layer
  work=$(umask 077 && mktemp -d -p "$ENROOT_TEMP_PATH" enroot.XXXXXXXXXX)
  open_image
  info 'Fetching image manifest'
  manifest=$(request --header "Accept: $manifest_types" -- "$manifest_url")
  config=$(jq -r '.config.digest // empty | ltrimstr("sha256:")' <<<"$manifest" 2>/dev/null) || :
  readarray -t layers < <(jq -r '.layers[]?.digest | ltrimstr("sha256:")' <<<"$manifest" 2>/dev/null)
  if [ -z "$config" ] || [ ${#layers[@]} -eq 0 ]; then
    fail "Could not parse digest information from $manifest_url"
  fi
  fetch "$config"
  for layer in "${layers[@]}"; do fetch "$layer"; done
}

# Into the cache, unless it is there; under its name there is never half of it.
fetch() {
  local aside
  [ ! -e "$ENROOT_CACHE_PATH/$1" ] || return 0
  info "Downloading $1"
  aside=$(umask 037 && mktemp -p "$ENROOT_CACHE_PATH" "$1.XXXXXXXXXX")
  if ! curl "${curl_options[@]}" "${credentials[@]}" --fail --output "$aside" -- \
    "$scheme://$registry/v2/$image/blobs/sha256:$1"; then
    rm -f "$aside"
    fail "Could not download $1"
  fi
  if [ "$(sha256sum <"$aside")" != "$1  -" ]; then
    rm -f "$aside"
    fail "Checksum mismatch: $1"
  fi
  chmod 640 "$aside"
  mv -n "$aside" "$ENROOT_CACHE_PATH/$1"
}

# Lays a layer over those below it: what it takes away first (".wh.NAME", ".wh..wh..opq" for all of a
# directory), then what it brings. Devices stay out.
apply_layer() {
  local layer=$1 rootfs=$2 opaque=$3 name
  tar --quoting-style=literal -tf "$layer" | while IFS= read -r name; do
    name=${name#./}
    case ${name##*/} in
      .wh..wh..opq)
        if [ "$opaque" = with-opaque ] && [ -d "$rootfs/${name%/*}" ]; then
          find "$rootfs/${name%/*}" -mindepth 1 -delete
        fi
        ;;
      .wh.*) rm -rf "${rootfs:?}/${name%.wh.*}${name##*.wh.}" ;;
      ?*) if [ -d "$rootfs/$name" ] && [ ! -L "$rootfs/$name" ]; then rm -rf "${rootfs:?}/$name"; fi ;;
    esac
  done
  tar -C "$rootfs" --warning=no-timestamp --anchored --exclude='dev/*' --exclude='./dev/*' --no-anchored \
    --exclude='.wh.*' --delay-directory-restore -xpf "$layer"
  fix_permissions "$rootfs"
}

# What the image's configuration says becomes files of the rootfs.
configure_rootfs() {
  local config=$1 rootfs=$2 platform directory entrypoint arguments
  mkdir -p "$rootfs/etc"
  platform=$(jq -r '.architecture // empty' "$config")
  if [ "$platform" != "$architecture" ]; then
    printf "[WARN] Image architecture doesn't match the requested one: %s != %s\n" "$platform" "$architecture" >&2
  fi
  # shellcheck disable=SC2016 # ENROOT_ROOTFS is for the start to fill in
  jq -r '.config.Volumes // empty | keys[] | "${ENROOT_ROOTFS}\(.) \(.) none x-create=dir,bind,rw,nosuid,nodev"' \
    "$config" >"$rootfs/etc/fstab"
  jq -r '.config.Env // empty | .[]' "$config" >"$rootfs/etc/environment"
  directory=$(jq -r '.config.WorkingDir // empty' "$config")
  directory=${directory:-/}
  readarray -t entrypoint < <(jq -r '.config.Entrypoint // empty | .[]' "$config")
  readarray -t arguments < <(jq -r '.config.Cmd // empty | .[]' "$config")
  if [ ${#entrypoint[@]} -eq 0 ] && [ ${#arguments[@]} -eq 0 ]; then arguments=(/bin/sh); fi
  mkdir -p "$rootfs$directory"
  cat >"$rootfs/etc/rc" <<END
mkdir -p "$directory" 2>/dev/null
cd "$directory" || exit 1
unset OLDPWD
if [ -s /etc/rc.local ]; then . /etc/rc.local; fi
if [ \$# -eq 0 ]; then set -- ${arguments[@]@Q}; fi
exec ${entrypoint[@]@Q} "\$@"
END
  echo '# Sourced by /etc/rc before the entrypoint.' >"$rootfs/etc/rc.local"
}
