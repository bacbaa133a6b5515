/* What the C programs do again and again: make, load, pull, look. */
#ifndef HELPERS_H
#define HELPERS_H

#include "check.h"

static inline squire_engine *make_engine(int32_t drive) {
  squire_engine_options o;
  squire_engine *engine = NULL;
  squire_engine_options_init(&o, sizeof o, SQUIRE_ABI);
  o.compute = SQUIRE_COMPUTE_F32;
  o.threads = 2;
  o.drive = drive;
  DONE(squire_engine_create(&o, &engine, &err));
  return engine;
}

static inline squire_model *load(squire_engine *engine, const char *folder, uint64_t max_context) {
  squire_model_options o;
  squire_model *model = NULL;
  squire_model_options_init(&o, sizeof o);
  o.path = folder;
  o.path_len = strlen(folder);
  o.max_context = max_context;
  DONE(squire_model_load(engine, &o, NULL, &model, &err));
  return model;
}

static inline squire_session *session_of(squire_model *model) {
  squire_session *session = NULL;
  DONE(squire_session_create(model, &session, &err));
  return session;
}

/* Copies at most `room` ids of a session's timeline and gives their number. */
static inline size_t timeline(const squire_session *session, int32_t *ids, size_t room) {
  squire_tokens *tokens = NULL;
  size_t n = 0;
  DONE(squire_session_tokens(session, &tokens, &err));
  const int32_t *data = squire_tokens_data(tokens, &n);
  for (size_t i = 0; i < n && i < room; i++) {
    ids[i] = data[i];
  }
  squire_tokens_release(tokens);
  return n;
}

/* Whether the JSON in a text has a piece; releases the text. */
static inline int says(squire_text *text, const char *piece) {
  const int found = text != NULL && strstr(squire_text_data(text, NULL), piece) != NULL;
  if (!found) {
    fprintf(stderr, "no %s in %s\n", piece, text ? squire_text_data(text, NULL) : "nothing");
  }
  squire_text_release(text);
  return found;
}

static inline int metrics_say(const squire_engine *engine, const char *piece) {
  squire_text *text = NULL;
  DONE(squire_engine_metrics(engine, &text, &err));
  return says(text, piece);
}

static inline squire_gen_options greedy(int32_t n) {
  squire_gen_options o;
  squire_gen_options_init(&o, sizeof o);
  o.temperature = 0;
  o.max_tokens = n;
  return o;
}

/* What a training rollout leaves to its distiller's settings. */
static inline squire_gen_options trained(int32_t n) {
  squire_gen_options o = greedy(n);
  o.temperature = SQUIRE_GEN_UNSET;
  return o;
}

/* Pulls a generation to its end; gives the number of tokens, and of them at most `room` ids and log-probs. */
static inline size_t pull(squire_gen *gen, int32_t finish, int32_t actor, int32_t *ids, float *logprobs, size_t room) {
  size_t n = 0;
  for (;;) {
    squire_error *err = NULL;
    squire_event e;
    squire_event_init(&e, sizeof e);
    const squire_status status = squire_gen_next(gen, -1, &e, &err);
    if (status == SQUIRE_END) {
      CHECK(e.kind == SQUIRE_EVENT_END && e.finish == finish && e.ids_len == 0 && e.text == NULL);
      CHECK(squire_gen_next(gen, 0, &e, NULL) == SQUIRE_END); /* again and again */
      return n;
    }
    CHECK(status == SQUIRE_OK && e.kind == SQUIRE_EVENT_TOKENS && e.finish == 0 && e.actor == actor);
    CHECK((e.ids_len > 0 || e.text_len > 0) && (e.ids_len == 0 || (e.position > 0 && e.revision > 0)));
    CHECK(e.text[e.text_len] == 0);
    if (status != SQUIRE_OK) {
      fprintf(stderr, "%s\n", squire_error_message(err, NULL));
      squire_error_release(err);
      return n;
    }
    for (size_t i = 0; i < e.ids_len; i++, n++) {
      CHECK(e.logprobs[i] <= 0 && e.sampled_logprobs[i] <= 0);
      if (n < room) {
        ids[n] = e.ids[i];
        logprobs[n] = e.logprobs[i];
      }
    }
  }
}

#endif /* HELPERS_H */
