/* The start of a lease's holder (lib/store/lease.ts), by vfork(2): the memory that we have does not count. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "addon.h"

#define FIRST_DESCRIPTOR 3
#define MOST_DESCRIPTORS 64
#define LONGEST_TEXT 256

struct holder {
  const char *file;
  char *arguments[3];
  char *environment[2];
  int descriptors[MOST_DESCRIPTORS];
  uint32_t descriptor_count;
};

/*
 * In the child, which shares our memory until it executes: system calls, and nothing else. @returns the error
 * number
 */
static int become_holder(const struct holder *holder) {
  /* Our own handlers must not run in it. */
  for (int number = 1; number < NSIG; number++)
    signal(number, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  const int nothing = open("/dev/null", O_RDWR);
  if (nothing < 0 || setsid() < 0 || chdir("/") != 0)
    return errno;
  /* First out of the way of the numbers that they get. */
  int moved[MOST_DESCRIPTORS];
  for (uint32_t index = 0; index < holder->descriptor_count; index++)
    if ((moved[index] = fcntl(holder->descriptors[index], F_DUPFD_CLOEXEC, FIRST_DESCRIPTOR + MOST_DESCRIPTORS)) < 0)
      return errno;
  const int aside = fcntl(nothing, F_DUPFD_CLOEXEC, FIRST_DESCRIPTOR + MOST_DESCRIPTORS);
  if (aside < 0)
    return errno;
  close(nothing);
  for (int number = 0; number < FIRST_DESCRIPTOR; number++)
    if (dup2(aside, number) < 0)
      return errno;
  for (uint32_t index = 0; index < holder->descriptor_count; index++)
    if (dup2(moved[index], FIRST_DESCRIPTOR + (int)index) < 0)
      return errno;
  sigprocmask(SIG_SETMASK, &none, NULL);
  execve(holder->file, holder->arguments, holder->environment);
  return errno;
}

/*
 * startHolder(file, title, environment, descriptors): its process ID. It runs `file infinity` in a session of
 * its own, by the name `title`, with one variable, in the root directory, with /dev/null as its standard
 * streams, and the descriptors from 3 on.
 */
napi_value start_holder(napi_env env, napi_callback_info info) {
  struct call call = begin(env, info);
  char file[PATH_MAX];
  char title[LONGEST_TEXT];
  char variable[LONGEST_TEXT];
  static char forever[] = "infinity";
  path_at(&call, 0, file);
  text_at(&call, 1, title, sizeof title);
  text_at(&call, 2, variable, sizeof variable);
  struct holder holder = {.file = file, .arguments = {title, forever, NULL}, .environment = {variable, NULL}};
  if (napi_get_array_length(env, call.arguments[3], &holder.descriptor_count) != napi_ok ||
      holder.descriptor_count > MOST_DESCRIPTORS)
    return refuse(&call);
  for (uint32_t index = 0; index < holder.descriptor_count; index++) {
    napi_value element = NULL;
    if (napi_get_element(env, call.arguments[3], index, &element) != napi_ok ||
        napi_get_value_int32(env, element, &holder.descriptors[index]) != napi_ok)
      return refuse(&call);
  }
  if (call.is_bad)
    return refuse(&call);
  bury_former_look();
  sigset_t all;
  sigset_t ours;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, &ours);
  volatile int why = 0;
  const pid_t child = vfork();
  if (child == 0) {
    why = become_holder(&holder);
    _exit(1);
  }
  if (child < 0)
    why = errno;
  sigprocmask(SIG_SETMASK, &ours, NULL);
  errno = why;
  return answer(&call, why == 0 ? child : -1);
}
