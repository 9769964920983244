/*
 * Mounts of image files (lib/system/mounting.ts): the kernel's squashfs on a loop device, and views of it for
 * one user each, by idmapped mounts (mount_setattr(2)). Linux before 5.12 answers ENOSYS.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "addon.h"

/* Older headers lack what follows; it is the same on every architecture. */
#ifndef SYS_open_tree
#define SYS_open_tree 428
#define SYS_move_mount 429
#define SYS_fsopen 430
#define SYS_fsconfig 431
#define SYS_fsmount 432
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif

#define CLOSE_ON_EXEC 1
#define CONFIG_FLAG 0
#define CONFIG_STRING 1
#define CONFIG_CREATE 6
#define ATTRIBUTES_OF_ALL (0x1 | 0x2 | 0x4) /* read-only, nosuid, nodev */
#define ATTRIBUTE_IDMAP 0x00100000
#define CLONE_TREE 1
#define FROM_EMPTY_PATH 0x4

/* mount_attr of mount_setattr(2). */
struct mount_attributes {
  uint64_t set;
  uint64_t clear;
  uint64_t propagation;
  uint64_t user_namespace;
};

static void close_quietly(int fd) {
  const int why = errno;
  if (fd >= 0)
    close(fd);
  errno = why;
}

#define LONGEST_DEVICE 32
#define LOOP_ATTEMPTS 64

/*
 * A read-only loop device of an open file, which the kernel frees when nobody has it open or mounted any
 * more. @returns its descriptor, and its path
 */
static int open_loop(int file, char path[LONGEST_DEVICE]) {
  const int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
  if (control < 0)
    return -1;
  int device = -1;
  /* Between the two calls another process may take the device. */
  for (int attempt = 0; device < 0 && attempt < LOOP_ATTEMPTS; attempt++) {
    const int number = ioctl(control, LOOP_CTL_GET_FREE);
    if (number < 0)
      break;
    snprintf(path, LONGEST_DEVICE, "/dev/loop%d", number);
    device = open(path, O_RDONLY | O_CLOEXEC);
    if (device < 0)
      break;
    struct loop_config config = {.fd = (uint32_t)file};
    config.info.lo_flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR;
    snprintf((char *)config.info.lo_file_name, LO_NAME_SIZE, "container-cache");
    if (ioctl(device, LOOP_CONFIGURE, &config) == 0)
      break;
    close_quietly(device);
    device = -1;
    if (errno != EBUSY)
      break;
  }
  close_quietly(control);
  return device;
}

static int mount_device(const char *path) {
  const int context = (int)syscall(SYS_fsopen, "squashfs", CLOSE_ON_EXEC);
  if (context < 0)
    return -1;
  int mounted = -1;
  if (syscall(SYS_fsconfig, context, CONFIG_STRING, "source", path, 0) == 0 &&
      syscall(SYS_fsconfig, context, CONFIG_FLAG, "ro", NULL, 0) == 0 &&
      syscall(SYS_fsconfig, context, CONFIG_CREATE, NULL, NULL, 0) == 0)
    mounted = (int)syscall(SYS_fsmount, context, CLOSE_ON_EXEC, ATTRIBUTES_OF_ALL);
  close_quietly(context);
  return mounted;
}

/* mountImage(file): a descriptor of the mounted file, which is nowhere yet and goes with the descriptor. */
napi_value mount_image(napi_env env, napi_callback_info info) {
  struct call call = begin(env, info);
  const int file = int_at(&call, 0);
  if (call.is_bad)
    return refuse(&call);
  char path[LONGEST_DEVICE];
  const int device = open_loop(file, path);
  if (device < 0)
    return answer(&call, -1);
  const int mounted = mount_device(path);
  close_quietly(device);
  return answer(&call, mounted);
}

/* attachMount(mounted, path): puts it on a directory. */
napi_value attach_mount(napi_env env, napi_callback_info info) {
  struct call call = begin(env, info);
  const int mounted = int_at(&call, 0);
  char path[PATH_MAX];
  path_at(&call, 1, path);
  if (call.is_bad)
    return refuse(&call);
  return answer(&call, syscall(SYS_move_mount, mounted, "", AT_FDCWD, path, FROM_EMPTY_PATH));
}

/* A child that only sleeps, in a user namespace of its own: it shares nothing with us but its start. */
static pid_t start_sleeper(void) {
  const pid_t us = getpid();
  const pid_t child = (pid_t)syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, NULL, NULL, NULL, NULL);
  if (child != 0)
    return child;
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != us)
    _exit(1);
  for (;;)
    pause();
}

static bool write_map(pid_t child, const char *name, uint32_t seen_as) {
  char path[64];
  char map[64];
  snprintf(path, sizeof path, "/proc/%d/%s", (int)child, name);
  const int length = snprintf(map, sizeof map, "0 %u 1\n", seen_as);
  const int file = open(path, O_WRONLY | O_CLOEXEC);
  if (file < 0)
    return false;
  const bool is_written = write(file, map, (size_t)length) == length;
  close_quietly(file);
  return is_written;
}

/* A user namespace in which root's ids are a user's. @returns its descriptor */
static int open_id_map(uint32_t uid, uint32_t gid) {
  const pid_t child = start_sleeper();
  if (child < 0)
    return -1;
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/ns/user", (int)child);
  const int id_map = write_map(child, "uid_map", uid) && write_map(child, "gid_map", gid) ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  const int why = errno;
  kill(child, SIGKILL);
  waitpid(child, NULL, 0);
  errno = why;
  return id_map;
}

/*
 * makeView(source, target, uid, gid): shows what is mounted on `source` once more on `target`, read-only,
 * where root's files are the user's.
 */
napi_value make_view(napi_env env, napi_callback_info info) {
  struct call call = begin(env, info);
  char source[PATH_MAX];
  char target[PATH_MAX];
  path_at(&call, 0, source);
  path_at(&call, 1, target);
  const uint32_t uid = id_at(&call, 2);
  const uint32_t gid = id_at(&call, 3);
  if (call.is_bad)
    return refuse(&call);
  long result = -1;
  const int tree = (int)syscall(SYS_open_tree, AT_FDCWD, source, CLONE_TREE | O_CLOEXEC | AT_SYMLINK_NOFOLLOW);
  const int id_map = tree < 0 ? -1 : open_id_map(uid, gid);
  if (id_map >= 0) {
    const struct mount_attributes attributes = {
        .set = ATTRIBUTES_OF_ALL | ATTRIBUTE_IDMAP,
        .user_namespace = (uint64_t)id_map,
    };
    result = syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attributes, sizeof attributes);
    if (result == 0)
      result = syscall(SYS_move_mount, tree, "", AT_FDCWD, target, FROM_EMPTY_PATH);
  }
  close_quietly(id_map);
  close_quietly(tree);
  return answer(&call, result);
}

/* unmount(path): at once for all who come; who is in it keeps it. */
napi_value unmount(napi_env env, napi_callback_info info) {
  struct call call = begin(env, info);
  char path[PATH_MAX];
  path_at(&call, 0, path);
  if (call.is_bad)
    return refuse(&call);
  return answer(&call, umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW));
}

/*
 * hasWriter(file): 1 if a process of this node has the file open for writing. A read lease is refused then
 * (fcntl(2)); it is given back at once. Filesystems without leases answer an error.
 */
napi_value has_writer(napi_env env, napi_callback_info info) {
  struct call call = begin(env, info);
  const int file = int_at(&call, 0);
  if (call.is_bad)
    return refuse(&call);
  if (fcntl(file, F_SETLEASE, F_RDLCK) != 0)
    return answer(&call, errno == EAGAIN ? 1 : -1);
  return answer(&call, fcntl(file, F_SETLEASE, F_UNLCK));
}

/* An access list of acl(5) as system.posix_acl_access has it: its version, then its lines in this order. */
struct access_line {
  uint16_t tag;
  uint16_t permissions;
  uint32_t id;
};
struct access_list {
  uint32_t version;
  struct access_line lines[5];
};
#define NO_ID UINT32_MAX

/* letPass(directory, uid): root has it alone, and one user may pass through it. */
napi_value let_pass(napi_env env, napi_callback_info info) {
  struct call call = begin(env, info);
  const int directory = int_at(&call, 0);
  const uint32_t uid = id_at(&call, 1);
  if (call.is_bad)
    return refuse(&call);
  /* Little-endian, as x86-64 and arm64 are: owner, user, group, mask, others. */
  const struct access_list list = {
      .version = 2,
      .lines = {{0x01, 7, NO_ID}, {0x02, 1, uid}, {0x04, 0, NO_ID}, {0x10, 1, NO_ID}, {0x20, 0, NO_ID}},
  };
  return answer(&call, fsetxattr(directory, "system.posix_acl_access", &list, sizeof list, 0));
}
