/*
 * A look at a file as a user (lib/image/image-source.ts): its type, size and times, its real path, its first
 * bytes, as find(1), realpath(1) and head(1) would print them one after the other.
 *
 * A child looks: only a child can be left behind where a filesystem hangs, and only a process can have the
 * user's ids and groups. It executes nothing, so it costs a fraction of a millisecond. Having changed its ids
 * it can be traced by nobody but root (ptrace(2), PR_SET_DUMPABLE): the copy of our memory that it has is
 * safe. Its user can stop or kill it, and then there is no answer in time.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "addon.h"

#ifndef SYS_close_range
#define SYS_close_range 436
#endif

#define LONGEST_STAMP 256
#define LONGEST_START 4096
/* In one write: a pipe takes that much, and whoever reads it has all or nothing. */
#define LONGEST_ANSWER (LONGEST_STAMP + PATH_MAX + LONGEST_START)

static struct look {
  pid_t child;
  int answer;
} look = {.child = -1, .answer = -1};
/* The child before: it has answered, or been killed. */
static pid_t former_child = -1;

void bury_former_look(void) {
  if (former_child > 0 && waitpid(former_child, NULL, WNOHANG) != 0)
    former_child = -1;
}

static _Noreturn void give_up(void) { _exit(1); }

/* slurmd is not for the kernel's out-of-memory killer, and its children inherit that. */
static void give_up_protection(void) {
  const int file = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
  char first = '\0';
  if (file >= 0 && read(file, &first, 1) == 1 && first == '-' && write(file, "0", 1) != 1)
    give_up();
  if (file >= 0)
    close(file);
}

/* For good: with no group that is not the user's, and no capability. */
static void become(uid_t uid, gid_t gid) {
  if (uid != geteuid()) {
    struct passwd *user = getpwuid(uid);
    if (user == NULL || initgroups(user->pw_name, gid) != 0 || syscall(SYS_setresgid, gid, gid, gid) != 0 ||
        syscall(SYS_setresuid, uid, uid, uid) != 0)
      give_up();
  }
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  const struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {{0}};
  /* Last: whatever fs.suid_dumpable says of processes that have changed their ids. */
  if ((uid != 0 && syscall(SYS_capset, &header, none) != 0) || prctl(PR_SET_DUMPABLE, 0) != 0)
    give_up();
}

static size_t append_stamp(char *answer, const struct stat *stats) {
  const int length = snprintf(answer, LONGEST_STAMP, "f %" PRIdMAX " %" PRIdMAX ".%09ld0 %" PRIdMAX ".%09ld0 %" PRIdMAX,
                              (intmax_t)stats->st_size, (intmax_t)stats->st_mtim.tv_sec, stats->st_mtim.tv_nsec,
                              (intmax_t)stats->st_ctim.tv_sec, stats->st_ctim.tv_nsec, (intmax_t)stats->st_blocks);
  if (length < 0 || length >= LONGEST_STAMP)
    give_up();
  return (size_t)length + 1;
}

/* Of the very file that is open, whatever lies at its path by now. */
static size_t append_real_path(char *answer, int file) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  const ssize_t length = readlink(link, answer, PATH_MAX);
  struct stat stats;
  struct stat found;
  if (length <= 0 || length >= PATH_MAX || fstat(file, &stats) != 0)
    give_up();
  answer[length] = '\0';
  /* Such as "/images/a.sqsh (deleted)". */
  if (stat(answer, &found) != 0 || found.st_ino != stats.st_ino || found.st_dev != stats.st_dev)
    give_up();
  return (size_t)length + 1;
}

static size_t append_start(char *answer, int file, size_t bytes) {
  size_t length = 0;
  ssize_t got = 0;
  while (length < bytes && (got = pread(file, answer + length, bytes - length, (off_t)length)) > 0)
    length += (size_t)got;
  if (got < 0)
    give_up();
  return length;
}

static _Noreturn void look_at(const char *path, size_t bytes, int to) {
  static char text[LONGEST_ANSWER];
  /* What it is, before it is opened: to open a device or a FIFO does something. */
  const int place = open(path, O_PATH | O_CLOEXEC);
  struct stat stats;
  if (place < 0 || fstat(place, &stats) != 0 || !S_ISREG(stats.st_mode) || stats.st_mtim.tv_sec < 0 ||
      stats.st_ctim.tv_sec < 0)
    give_up();
  char itself[64];
  snprintf(itself, sizeof itself, "/proc/self/fd/%d", place);
  const int file = open(itself, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (file < 0)
    give_up();
  size_t length = append_stamp(text, &stats);
  length += append_real_path(text + length, file);
  length += append_start(text + length, file, bytes);
  _exit(write(to, text, length) == (ssize_t)length ? 0 : 1);
}

/* slurmd reads its pipes to their end: a child that hangs must not have them. */
static bool close_all_but(int kept) {
  return syscall(SYS_close_range, 0, kept - 1, 0) == 0 && syscall(SYS_close_range, kept + 1, ~0U, 0) == 0;
}

/* startLook(uid, gid, path, bytes): 0, and finishLook() has the answer. One at a time. */
napi_value start_look(napi_env env, napi_callback_info info) {
  struct call call = begin(env, info);
  const uint32_t uid = id_at(&call, 0);
  const uint32_t gid = id_at(&call, 1);
  char path[PATH_MAX];
  text_at(&call, 2, path, sizeof path);
  const int bytes = int_at(&call, 3);
  if (call.is_bad || bytes > LONGEST_START || look.child >= 0)
    return refuse(&call);
  bury_former_look();
  int pipes[2];
  if (pipe2(pipes, O_CLOEXEC) != 0)
    return answer(&call, -1);
  const pid_t us = getpid();
  const pid_t child = fork();
  if (child == 0) {
    give_up_protection();
    if (pipes[1] < 1 || !close_all_but(pipes[1]))
      give_up();
    become(uid, gid);
    /* After the change of ids, which takes it back. */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != us)
      give_up();
    look_at(path, (size_t)bytes, pipes[1]);
  }
  const int why = errno;
  close(pipes[1]);
  if (child < 0) {
    close(pipes[0]);
    errno = why;
    return answer(&call, -1);
  }
  look = (struct look){.child = child, .answer = pipes[0]};
  return answer(&call, 0);
}

/* Waits without the event loop. @returns the bytes read; 0 for no answer, or none in time */
static size_t await_answer(char *text, size_t size, int limit_ms) {
  const double deadline = seconds_now() + limit_ms / 1e3;
  for (;;) {
    const double left_ms = (deadline - seconds_now()) * 1e3;
    struct pollfd ready = {.fd = look.answer, .events = POLLIN};
    const int count = poll(&ready, 1, left_ms < 1 ? 0 : (int)left_ms);
    if (count > 0) {
      const ssize_t got = read(look.answer, text, size);
      return got < 0 ? 0 : (size_t)got;
    }
    if (count == 0 || errno != EINTR)
      return 0;
  }
}

/* finishLook(limitMs): a Buffer; undefined where there is no answer, for whatever reason. */
napi_value finish_look(napi_env env, napi_callback_info info) {
  static char text[LONGEST_ANSWER];
  struct call call = begin(env, info);
  const int limit_ms = int_at(&call, 0);
  if (call.is_bad || look.child < 0)
    return refuse(&call);
  const size_t length = await_answer(text, sizeof text, limit_ms);
  close(look.answer);
  kill(look.child, SIGKILL);
  /* Nobody waits for its end, which comes a moment later: one that hangs is left behind. */
  former_child = look.child;
  look = (struct look){.child = -1, .answer = -1};
  napi_value value = NULL;
  if (length > 0)
    napi_create_buffer_copy(env, length, text, NULL, &value);
  return value;
}
