/* Arguments and answers of our addon's functions, and their names (lib/system/native-addon.ts). */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "addon.h"

struct call begin(napi_env env, napi_callback_info info) {
  struct call call = {.env = env, .is_bad = false};
  size_t count = MOST_ARGUMENTS;
  call.is_bad = napi_get_cb_info(env, info, &count, call.arguments, NULL, NULL) != napi_ok;
  return call;
}

int64_t number_at(struct call *call, size_t index) {
  int64_t value = -1;
  if (napi_get_value_int64(call->env, call->arguments[index], &value) != napi_ok)
    call->is_bad = true;
  return value;
}

int int_at(struct call *call, size_t index) {
  int64_t value = number_at(call, index);
  if (value < 0 || value > INT_MAX)
    call->is_bad = true;
  return (int)value;
}

uint32_t id_at(struct call *call, size_t index) {
  int64_t value = number_at(call, index);
  if (value < 0 || value >= UINT32_MAX)
    call->is_bad = true;
  return (uint32_t)value;
}

void path_at(struct call *call, size_t index, char path[PATH_MAX]) {
  size_t length = 0;
  path[0] = '\0';
  if (napi_get_value_string_latin1(call->env, call->arguments[index], path, PATH_MAX, &length) != napi_ok ||
      length == PATH_MAX - 1 || strlen(path) != length)
    call->is_bad = true;
}

void text_at(struct call *call, size_t index, char *text, size_t size) {
  size_t length = 0;
  text[0] = '\0';
  /* Its last character may be cut: what fills the room may be longer. */
  if (napi_get_value_string_utf8(call->env, call->arguments[index], text, size, &length) != napi_ok ||
      length + sizeof "\U0010ffff" > size || strlen(text) != length)
    call->is_bad = true;
}

napi_value answer(const struct call *call, long result) {
  napi_value value = NULL;
  napi_create_int64(call->env, result < 0 ? -(int64_t)errno : result, &value);
  return value;
}

napi_value refuse(const struct call *call) {
  errno = EINVAL;
  return answer(call, -1);
}

double seconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

NAPI_MODULE_INIT() {
  const napi_property_descriptor functions[] = {
      {.utf8name = "openPath", .method = open_path, .attributes = napi_enumerable},
      {.utf8name = "exitNow", .method = exit_now, .attributes = napi_enumerable},
      {.utf8name = "exitOnCrash", .method = exit_on_crash, .attributes = napi_enumerable},
      {.utf8name = "beginConfined", .method = begin_confined, .attributes = napi_enumerable},
      {.utf8name = "endConfined", .method = end_confined, .attributes = napi_enumerable},
      {.utf8name = "setIds", .method = set_ids, .attributes = napi_enumerable},
      {.utf8name = "startLook", .method = start_look, .attributes = napi_enumerable},
      {.utf8name = "finishLook", .method = finish_look, .attributes = napi_enumerable},
      {.utf8name = "startHolder", .method = start_holder, .attributes = napi_enumerable},
      {.utf8name = "sendLine", .method = send_line, .attributes = napi_enumerable},
      {.utf8name = "processesOf", .method = processes_of, .attributes = napi_enumerable},
      {.utf8name = "sha256", .method = sha256, .attributes = napi_enumerable},
      {.utf8name = "mountImage", .method = mount_image, .attributes = napi_enumerable},
      {.utf8name = "attachMount", .method = attach_mount, .attributes = napi_enumerable},
      {.utf8name = "makeView", .method = make_view, .attributes = napi_enumerable},
      {.utf8name = "unmount", .method = unmount, .attributes = napi_enumerable},
      {.utf8name = "hasWriter", .method = has_writer, .attributes = napi_enumerable},
      {.utf8name = "letPass", .method = let_pass, .attributes = napi_enumerable},
  };
  napi_define_properties(env, exports, sizeof functions / sizeof functions[0], functions);
  return exports;
}
