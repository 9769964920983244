/*
 * The system calls that beneath.ts, as-user.ts and confined.ts need and Node does not have, each as the
 * kernel has it. All else that they do Node can do with a descriptor, or with one name below /proc/self/fd/N.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "addon.h"

/* Older headers lack what follows; it is the same on every architecture. */
#ifndef SYS_openat2
#define SYS_openat2 437
#endif

/* open_how of openat2(2), and its RESOLVE_ flags. */
struct how_to_open {
  uint64_t flags;
  uint64_t mode;
  uint64_t resolve;
};
#define NO_OTHER_MOUNT 0x01
#define NO_MAGIC_LINKS 0x02
#define NO_SYMLINKS 0x04
#define ONLY_BENEATH 0x08

/*
 * openPath(directory, path, flags): a descriptor that only stands for what is there (O_PATH); nothing is
 * opened by it.
 */
napi_value open_path(napi_env env, napi_callback_info info) {
  struct call call = begin(env, info);
  int directory = int_at(&call, 0);
  char path[PATH_MAX];
  path_at(&call, 1, path);
  int flags = int_at(&call, 2);
  if (call.is_bad)
    return refuse(&call);
  const struct how_to_open how = {
      .flags = (uint64_t)flags | O_PATH | O_NOFOLLOW | O_CLOEXEC,
      .resolve = ONLY_BENEATH | NO_SYMLINKS | NO_MAGIC_LINKS | NO_OTHER_MOUNT,
  };
  return answer(&call, syscall(SYS_openat2, directory, path, &how, sizeof how));
}

/*
 * setIds(uid, gid): the effective ids of the calling thread alone. seteuid(3) would stop all threads until
 * each has done the same. Real and saved ids stay: users can neither signal nor trace us (credentials(7)).
 */
napi_value set_ids(napi_env env, napi_callback_info info) {
  struct call call = begin(env, info);
  uint32_t uid = id_at(&call, 0);
  uint32_t gid = id_at(&call, 1);
  if (call.is_bad)
    return refuse(&call);
  /* Only root may change the group: uid comes last on the way to a user, and first on the way back. */
  long result = uid == 0 ? syscall(SYS_setresuid, -1, uid, -1) : 0;
  if (result == 0)
    result = syscall(SYS_setresgid, -1, gid, -1);
  if (result == 0 && uid != 0)
    result = syscall(SYS_setresuid, -1, uid, -1);
  return answer(&call, result);
}

/*
 * What children of a user get, and what we have ourselves, for as long as one is started. The last is set for
 * each.
 */
static struct child_limit {
  int resource;
  rlim_t most;
} child_limits[] = {{RLIMIT_CORE, 0}, {RLIMIT_NOFILE, 65536}, {RLIMIT_NPROC, 8192}, {RLIMIT_FSIZE, RLIM_INFINITY}};
#define CHILD_LIMITS (sizeof child_limits / sizeof child_limits[0])
static struct rlimit own_limits[CHILD_LIMITS];

static int own_pid_namespace = -1;

static rlim_t lower(rlim_t one, rlim_t other) { return one < other ? one : other; }

/* Whether a hard limit that we lower can be ours again. */
static bool may_raise_limits(void) {
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{0}};
  return syscall(SYS_capget, &header, data) == 0 && (data[0].effective & (UINT32_C(1) << CAP_SYS_RESOURCE)) != 0;
}

/*
 * beginConfined(fileBytes): the next child of this thread is the first process of a PID namespace, with which
 * all that it has started is killed; its limits are those above, and no file that it writes may be larger
 * than fileBytes, unless that is 0. No thread can be started until endConfined().
 */
napi_value begin_confined(napi_env env, napi_callback_info info) {
  struct call call = begin(env, info);
  int64_t file_bytes = number_at(&call, 0);
  if (call.is_bad || file_bytes < 0)
    return refuse(&call);
  child_limits[CHILD_LIMITS - 1].most = file_bytes == 0 ? RLIM_INFINITY : (rlim_t)file_bytes;
  const bool is_hard = may_raise_limits();
  for (size_t index = 0; index < CHILD_LIMITS; index++) {
    struct rlimit *own = &own_limits[index];
    if (getrlimit(child_limits[index].resource, own) != 0)
      return answer(&call, -1);
    const rlim_t most = child_limits[index].most;
    const struct rlimit lowered = {.rlim_cur = lower(own->rlim_cur, most), .rlim_max = is_hard ? lower(own->rlim_max, most) : own->rlim_max};
    if (setrlimit(child_limits[index].resource, &lowered) != 0)
      return answer(&call, -1);
  }
  if (own_pid_namespace < 0)
    own_pid_namespace = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
  return answer(&call, own_pid_namespace < 0 ? -1 : unshare(CLONE_NEWPID));
}

/* endConfined(): children are as we are again, whatever beginConfined() came to. */
napi_value end_confined(napi_env env, napi_callback_info info) {
  struct call call = begin(env, info);
  long result = 0;
  for (size_t index = 0; index < CHILD_LIMITS; index++)
    if (own_limits[index].rlim_max != 0 && setrlimit(child_limits[index].resource, &own_limits[index]) != 0)
      result = -1;
  memset(own_limits, 0, sizeof own_limits);
  if (own_pid_namespace >= 0 && setns(own_pid_namespace, CLONE_NEWPID) != 0)
    result = -1;
  return answer(&call, result);
}

static volatile sig_atomic_t last_exit_code = 1;

static void end_here(int signal) {
  (void)signal;
  _exit(last_exit_code);
}

/*
 * exitOnCrash(code): what would kill this process from within (V8 out of memory aborts, a stack that
 * overflows in native code) ends it with an exit code. The handler runs on a stack of its own.
 */
napi_value exit_on_crash(napi_env env, napi_callback_info info) {
  static char stack[16 * 1024];
  static const int signals[] = {SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
  struct call call = begin(env, info);
  last_exit_code = int_at(&call, 0);
  if (call.is_bad)
    return refuse(&call);
  const stack_t aside = {.ss_sp = stack, .ss_size = sizeof stack};
  long result = sigaltstack(&aside, NULL);
  for (size_t index = 0; result == 0 && index < sizeof signals / sizeof signals[0]; index++) {
    struct sigaction action = {.sa_handler = end_here, .sa_flags = SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    result = sigaction(signals[index], &action, NULL);
  }
  return answer(&call, result);
}

/* exitNow(code): without the runtime's own end, which takes down threads that nobody waits for. */
napi_value exit_now(napi_env env, napi_callback_info info) {
  struct call call = begin(env, info);
  const int code = int_at(&call, 0);
  if (call.is_bad || code > 255)
    return refuse(&call);
  _exit(code);
}
