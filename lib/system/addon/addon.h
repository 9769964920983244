/*
 * What the parts of our addon share: a call's arguments and its answer.
 *
 * A function returns what the system call did, or the negative error number: its caller makes an error of it.
 */
#ifndef CONTAINER_CACHE_ADDON_H
#define CONTAINER_CACHE_ADDON_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <node_api.h>

#define MOST_ARGUMENTS 5

struct call {
  napi_env env;
  napi_value arguments[MOST_ARGUMENTS];
  bool is_bad;
};

struct call begin(napi_env env, napi_callback_info info);

int64_t number_at(struct call *call, size_t index);

/* A descriptor, flags: what does not fit is refused, not cut. */
int int_at(struct call *call, size_t index);

/* The largest of 32 bits means "leave as it is" to the kernel. */
uint32_t id_at(struct call *call, size_t index);

/* Each character is a byte (latin1), as names are. For the kernel a path would end at a zero byte. */
void path_at(struct call *call, size_t index, char path[PATH_MAX]);

/* A text in UTF-8 without a zero byte, up to `size` with its end. */
void text_at(struct call *call, size_t index, char *text, size_t size);

/* `result`, or the error number that the failed call has left. */
napi_value answer(const struct call *call, long result);

/* For arguments that are none. */
napi_value refuse(const struct call *call);

/* Seconds on a clock that nobody sets. */
double seconds_now(void);

/* Takes note of the end of the last look's child, if it has ended: otherwise it would be init's to do. */
void bury_former_look(void);

napi_value open_path(napi_env env, napi_callback_info info);
napi_value set_ids(napi_env env, napi_callback_info info);
napi_value begin_confined(napi_env env, napi_callback_info info);
napi_value end_confined(napi_env env, napi_callback_info info);
napi_value exit_now(napi_env env, napi_callback_info info);
napi_value exit_on_crash(napi_env env, napi_callback_info info);
napi_value start_look(napi_env env, napi_callback_info info);
napi_value finish_look(napi_env env, napi_callback_info info);
napi_value start_holder(napi_env env, napi_callback_info info);
napi_value send_line(napi_env env, napi_callback_info info);
napi_value processes_of(napi_env env, napi_callback_info info);
napi_value sha256(napi_env env, napi_callback_info info);
napi_value mount_image(napi_env env, napi_callback_info info);
napi_value attach_mount(napi_env env, napi_callback_info info);
napi_value make_view(napi_env env, napi_callback_info info);
napi_value unmount(napi_env env, napi_callback_info info);
napi_value has_writer(napi_env env, napi_callback_info info);
napi_value let_pass(napi_env env, napi_callback_info info);

#endif
