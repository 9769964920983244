/** Programs that the stress test puts in the place of enroot, unsquashfs and squeue. */
import { join } from 'node:path';
import { lockFileName } from '../../lib/core/layout.ts';
import { replaceProgram } from '../helpers/private-machine.ts';

/** Prints one line for names, kinds and one file of a tree, which differs from image to image. */
const listTree = `cd "$1" && find . ! -name ${lockFileName} ! -path ./etc/mark | LC_ALL=C sort | cat - etc/mark | cksum`;

/**
 * Stands in for the real enroot: what the wrapper has it do, without namespaces. Its data path is the base's
 * user directory, where an admin has named containers and the cache on one disk.
 */
export const enrootStandIn = (basePath: string): string => `#!/bin/sh
data=\${ENROOT_DATA_PATH:-${basePath}/$(id -u)}
list() { (${listTree}) 2>&1; }
case $1 in
  version) echo 4.1.2 ;;
  create)
    [ ! -e "$data/$3" ] || { echo "[ERROR] File already exists: $3" >&2; exit 1; }
    case $3 in
      pyxis_[0-9]*) mkdir "$data/$3" ;;
      *) PATH=/usr/local/sbin:$PATH unsquashfs -no-progress -quiet -dest "$data/$3" "$4" ;;
    esac
    ;;
  start)
    [ -d "$data/$2" ] || { echo "[ERROR] No such file or directory: $2" >&2; exit 1; }
    if [ -z "\${CONTAINER_CACHE_FSTAB-}" ]; then echo real; read -r _; exit 0; fi
    lower=\${CONTAINER_CACHE_FSTAB#*lowerdir=}
    lower=\${lower%%,*}
    list "$lower"
    read -r _
    list "$lower"
    ;;
  remove) rm -rf "$data/$3" ;;
esac
`;

/** A tree as the stand-in enroot lists it. */
export const listScript = listTree;

interface UnsquashfsOptions {
  readonly basePath: string;
  /**
   * Gets `log`, a line for each unpack; has `slow`, a file for each job whose unpacks take long, and `need`,
   * kibibytes of images.
   */
  readonly watchPath: string;
  /**
   * Of each user's directory. Kernels without quotas are common: it fails as it does where a quota is used
   * up.
   */
  readonly quotaKibibytes: number | undefined;
}

/** A second unpack of an entry while one runs, or of one that is there, leaves a line. */
export const replaceUnsquashfs = ({ basePath, watchPath, quotaKibibytes }: UnsquashfsOptions): Disposable =>
  replaceProgram(
    'unsquashfs',
    `
limit=${quotaKibibytes ?? ''} dest='' partial='' image=''
for word; do
  case $word in
    ${basePath}/*) [ -n "$dest" ] || dest=$word ;;
  esac
  image=$word
done
case $dest in
  */.pyxis_cache_u*.partial/rootfs)
    partial=\${dest%/rootfs} home=\${dest%/.pyxis_cache_u*} name=\${partial##*/.}
    job=\${name#*.} name=\${name%%.*}
    job=\${job%%-*}
    echo "unpack $name" >>${watchPath}/log
    exec 9>>"${watchPath}/$name"
    chmod 0666 "${watchPath}/$name" 2>/dev/null
    flock --nonblock 9 || echo "twice $name" >>${watchPath}/log
    [ ! -e "$home/.$name/${lockFileName}" ] || echo "needless $name" >>${watchPath}/log
    [ ! -e "${watchPath}/slow/$job" ] || exec bash -c 'exec -a "unpack $0" sleep 90' "$partial"
    ;;
esac
if [ -n "$dest" ] && [ -n "$limit" ]; then
  rest=\${dest#${basePath}/}
  used=$(du -sk "${basePath}/\${rest%%/*}" 2>/dev/null | cut -f1)
  need=0
  { read -r need <"${watchPath}/need/\${image##*/}"; } 2>/dev/null
  if [ "$((used + need))" -gt "$limit" ]; then
    mkdir "$dest" && echo half >"$dest/half"
    echo 'Write on output file failed because Disk quota exceeded' >&2
    exit 1
  fi
fi
exec /usr/bin/unsquashfs "$@"`,
  );

/** A slurmctld to which a job is over once there is a file of its number. It knows nothing else. */
export const replaceSqueue = (overPath: string): Disposable =>
  replaceProgram(
    'squeue',
    `
case $* in
  *--jobs=*)
    id=\${*##*--jobs=}
    if [ -e ${overPath}/$id ]; then echo "$id CANCELLED"; else echo "$id RUNNING"; fi
    ;;
  *) exit 1 ;;
esac`,
  );

/** The directories below the watched one. */
export const watchDirectories = (watchPath: string): Readonly<Record<'slow' | 'need' | 'over', string>> => ({
  slow: join(watchPath, 'slow'),
  need: join(watchPath, 'need'),
  over: join(watchPath, 'over'),
});
