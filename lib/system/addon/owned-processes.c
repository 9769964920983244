/*
 * The processes of one user (lib/system/processes.ts): Node would take longer for each than the kernel does
 * for ten.
 */
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "addon.h"

/* processesOf(uid): an array of process IDs, by the owner of /proc/<pid>. To look there never waits. */
napi_value processes_of(napi_env env, napi_callback_info info) {
  struct call call = begin(env, info);
  const uint32_t uid = id_at(&call, 0);
  if (call.is_bad)
    return refuse(&call);
  DIR *processes = opendir("/proc");
  if (processes == NULL)
    return answer(&call, -1);
  napi_value list = NULL;
  napi_create_array(env, &list);
  uint32_t count = 0;
  for (const struct dirent *item; (item = readdir(processes)) != NULL;) {
    struct stat stats;
    if (!isdigit((unsigned char)item->d_name[0]) || fstatat(dirfd(processes), item->d_name, &stats, 0) != 0 ||
        stats.st_uid != uid)
      continue;
    napi_value pid = NULL;
    napi_create_int64(env, strtol(item->d_name, NULL, 10), &pid);
    napi_set_element(env, list, count++, pid);
  }
  closedir(processes);
  return list;
}
