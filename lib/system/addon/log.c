/* A line to syslog (lib/system/syslog.ts): Node has no datagram sockets of the UNIX domain. */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "addon.h"

#define LONGEST_LINE (20 * 1024)
#define LONGEST_TAG 64

/*
 * As syslog(3) writes to the daemon of its own machine: <priority>, time in local time, program and process
 * ID, text.
 */
static size_t format_line(char line[LONGEST_LINE], int priority, const char *tag, const char *text) {
  static const char months[][4] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  const time_t now = time(NULL);
  struct tm local;
  if (localtime_r(&now, &local) == NULL)
    return 0;
  const int length = snprintf(line, LONGEST_LINE, "<%d>%s %2d %02d:%02d:%02d %s[%d]: %s", priority, months[local.tm_mon],
                              local.tm_mday, local.tm_hour, local.tm_min, local.tm_sec, tag, (int)getpid(), text);
  return length < 0 || length >= LONGEST_LINE ? 0 : (size_t)length;
}

/*
 * sendLine(socket, priority, tag, text, limitMs): 0. A daemon that does not read its socket is waited for
 * that long (EAGAIN).
 */
napi_value send_line(napi_env env, napi_callback_info info) {
  static char text[LONGEST_LINE];
  static char line[LONGEST_LINE];
  struct call call = begin(env, info);
  bury_former_look();
  char path[PATH_MAX];
  char tag[LONGEST_TAG];
  path_at(&call, 0, path);
  const int priority = int_at(&call, 1);
  text_at(&call, 2, tag, sizeof tag);
  text_at(&call, 3, text, sizeof text);
  const int limit_ms = int_at(&call, 4);
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (call.is_bad || strlen(path) >= sizeof address.sun_path)
    return refuse(&call);
  strcpy(address.sun_path, path);
  const size_t length = format_line(line, priority, tag, text);
  if (length == 0)
    return refuse(&call);
  const int log = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (log < 0)
    return answer(&call, -1);
  const struct timeval limit = {.tv_sec = limit_ms / 1000, .tv_usec = (suseconds_t)(limit_ms % 1000) * 1000};
  long result = setsockopt(log, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  /* With a limit, a signal's handler ends the wait whatever it says (signal(7)). */
  const double deadline = seconds_now() + limit_ms / 1e3;
  if (result == 0)
    do
      result = sendto(log, line, length, MSG_NOSIGNAL, (struct sockaddr *)&address, sizeof address);
    while (result < 0 && errno == EINTR && seconds_now() < deadline);
  const int why = errno;
  close(log);
  errno = why;
  return answer(&call, result < 0 ? -1 : 0);
}
