/*
 * A short text's hash, by the cryptography that is in the runtime: for Node's own way to it, the runtime
 * loads modules for milliseconds.
 */
#include <openssl/sha.h>

#include "addon.h"

/* sha256(bytes): a Buffer of 32 bytes. */
napi_value sha256(napi_env env, napi_callback_info info) {
  struct call call = begin(env, info);
  void *bytes = NULL;
  size_t length = 0;
  unsigned char hash[SHA256_DIGEST_LENGTH];
  if (call.is_bad || napi_get_buffer_info(env, call.arguments[0], &bytes, &length) != napi_ok ||
      SHA256(bytes, length, hash) == NULL)
    return refuse(&call);
  napi_value value = NULL;
  napi_create_buffer_copy(env, sizeof hash, hash, NULL, &value);
  return value;
}
