/* A host that asks for a GPU. Arguments: what the refusal of one must say, and its detail code. */
#include <stdlib.h>

#include "check.h"

static int falls_back;

static void hear(void *user, int32_t level, const char *target, size_t target_len, const char *message, size_t len) {
  const char *wanted = user;
  (void)level, (void)target, (void)target_len;
  for (size_t i = 0; i + strlen(wanted) <= len; i++) {
    falls_back |= memcmp(message + i, wanted, strlen(wanted)) == 0;
  }
}

int main(int argc, char **argv) {
  CHECK(argc == 3);
  squire_error *err = NULL;
  squire_engine *engine = NULL;
  squire_engine_options o;
  squire_engine_options_init(&o, sizeof o, SQUIRE_ABI);
  o.backend = SQUIRE_BACKEND_CUDA;
  CHECK(squire_engine_create(&o, &engine, &err) < 0 && engine == NULL);
  CHECK(squire_error_detail(err) == atoi(argv[2]));
  CHECK(strstr(squire_error_message(err, NULL), argv[1]) != NULL);
  squire_error_release(err);
  err = NULL;

  /* The best there is: the processor, and the log says why. */
  o.backend = SQUIRE_BACKEND_BEST;
  o.log = hear;
  o.log_user = argv[1];
  CHECK(squire_engine_create(&o, &engine, &err) == SQUIRE_OK && falls_back);
  squire_engine_release(engine);

  squire_text *probe = NULL;
  CHECK(squire_device_probe(&probe, &err) == SQUIRE_OK);
  CHECK(strstr(squire_text_data(probe, NULL), argv[1]) != NULL);
  squire_text_release(probe);
  CHECK(strstr(squire_build_json(), "\"cuda\"") != NULL);
  return failures;
}
