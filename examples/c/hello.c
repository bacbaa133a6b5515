/* Loads a model folder and continues a prompt: hello FOLDER PROMPT [cpu|cuda|best [SEED]]
 * Without a seed each run says something else; the same seed says the same.
 * Build and start, in the repository:
 *   cargo build --release
 *   cc -Iinclude examples/c/hello.c -Ltarget/release -lsquire -Wl,-rpath,"$PWD/target/release" -o hello
 *   ./hello MODEL_FOLDER "Once upon a time" */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "squire.h"

static squire_error *err;
#define TRY(call) if ((call) < 0) return fprintf(stderr, "%s\n", squire_error_message(err, NULL)), 1

int main(int argc, char **argv) {
  squire_engine_options eo;
  squire_model_options mo;
  squire_gen_options go;
  squire_event event;
  squire_engine *engine;
  squire_model *model;
  squire_session *session;
  squire_tokens *prompt;
  squire_gen *gen;
  size_t n;
  if (argc < 3 || argc > 5) return fprintf(stderr, "usage: hello FOLDER PROMPT [cpu|cuda|best [SEED]]\n"), 2;
  squire_engine_options_init(&eo, sizeof eo, SQUIRE_ABI);
  if (argc > 3 && strcmp(argv[3], "cuda") == 0) eo.backend = SQUIRE_BACKEND_CUDA;
  if (argc > 3 && strcmp(argv[3], "best") == 0) eo.backend = SQUIRE_BACKEND_BEST;
  squire_model_options_init(&mo, sizeof mo);
  squire_gen_options_init(&go, sizeof go);
  if (argc > 4) go.seed = strtoull(argv[4], NULL, 10);
  squire_event_init(&event, sizeof event);
  mo.path = argv[1];
  mo.path_len = strlen(argv[1]);
  TRY(squire_engine_create(&eo, &engine, &err));
  TRY(squire_model_load(engine, &mo, NULL, &model, &err));
  TRY(squire_tokenize(model, argv[2], strlen(argv[2]), 0, &prompt, &err));
  TRY(squire_session_create(model, &session, &err));
  const int32_t *ids = squire_tokens_data(prompt, &n);
  TRY(squire_session_append(session, ids, n, &err));
  TRY(squire_gen_start(session, &go, &gen, &err));
  while (squire_gen_next(gen, -1, &event, &err) == SQUIRE_OK) fwrite(event.text, 1, event.text_len, stdout);
  TRY(squire_error_status(err));
  squire_gen_release(gen);
  squire_tokens_release(prompt);
  squire_session_release(session);
  squire_model_release(model);
  squire_engine_release(engine);
  return 0;
}
