/* Many generations, one wait: with a thread of the engine's and poll(), and on an engine that the caller drives. */
#include <poll.h>
#include <stdlib.h>

#include "check.h"

static squire_error *err = NULL;

#include "helpers.h"

#define AGENTS 12

static squire_gen *say(squire_session *session, int32_t n, uint64_t seed) {
  squire_gen_options o;
  squire_gen *gen = NULL;
  squire_gen_options_init(&o, sizeof o);
  o.max_tokens = n;
  o.seed = seed;
  o.temperature = 1;
  o.flags = SQUIRE_GEN_IGNORE_MODEL_STOPS;
  DONE(squire_gen_start(session, &o, &gen, &err));
  return gen;
}

static int is_readable(int fd, int timeout_ms) {
  struct pollfd p = {.fd = fd, .events = POLLIN};
  return poll(&p, 1, timeout_ms) == 1;
}

static void agents(squire_engine *engine, squire_model *model, int polls) {
  squire_session *sessions[AGENTS];
  squire_gen *gens[AGENTS];
  size_t heard[AGENTS] = {0}, ended = 0;
  squire_queue *queue = NULL;
  squire_event e;
  uint64_t tag = 99;
  int32_t fd = -1;
  DONE(squire_queue_create(engine, &queue, &err));
  DONE(squire_queue_fd(queue, &fd, &err));
  CHECK(fd >= 0 && !is_readable(fd, 0));
  squire_event_init(&e, sizeof e);
  e.kind = 7;
  CHECK(squire_queue_next(queue, 0, &tag, &e, &err) == SQUIRE_TIMEOUT && tag == 99 && e.kind == 7);
  for (int i = 0; i < AGENTS; i++) {
    const int32_t ids[] = {104, 105, 97 + i};
    sessions[i] = session_of(model);
    DONE(squire_session_append(sessions[i], ARRAY(ids), &err));
    gens[i] = say(sessions[i], 2 + i, (uint64_t)i);
    DONE(squire_queue_add(queue, gens[i], (uint64_t)i, &err));
  }
  REFUSED(squire_queue_add(queue, gens[0], 1, &err), SQUIRE_E_ARGUMENT, SQUIRE_DETAIL_BAD_VALUE);
  while (ended < AGENTS) {
    if (polls) {
      CHECK(is_readable(fd, 60000));
    }
    const squire_status status = squire_queue_next(queue, polls ? 0 : -1, &tag, &e, &err);
    if (status == SQUIRE_TIMEOUT) {
      continue;
    }
    CHECK(status == SQUIRE_OK && err == NULL && tag < AGENTS);
    if (e.kind == SQUIRE_EVENT_END) {
      CHECK(e.finish == SQUIRE_FINISH_LENGTH && heard[tag] == 2 + tag);
      ended++;
    } else {
      /* The bytes of a character that was broken off come without an id. */
      CHECK(e.kind == SQUIRE_EVENT_TOKENS && (e.ids_len == 0 || e.position == 3 + heard[tag]));
      heard[tag] += e.ids_len;
    }
  }
  CHECK(squire_queue_next(queue, 0, &tag, &e, &err) == SQUIRE_TIMEOUT && !is_readable(fd, 0));
  /* One that left with its end tells it again to whoever pulls it, and may be put into another queue. */
  CHECK(squire_gen_next(gens[3], 0, &e, &err) == SQUIRE_END && e.finish == SQUIRE_FINISH_LENGTH);
  /* One that is released while it is in, and a queue that goes before its generations. */
  squire_gen *endless = say(sessions[0], 0, 1), *released = say(sessions[1], 0, 1);
  DONE(squire_queue_add(queue, endless, 5, &err));
  DONE(squire_queue_add(queue, released, 6, &err));
  squire_gen_release(released);
  do {
    DONE(squire_queue_next(queue, -1, &tag, &e, &err));
    CHECK(tag == 5);
  } while (e.kind != SQUIRE_EVENT_TOKENS);
  squire_queue_release(queue);
  squire_gen_cancel(endless);
  while (squire_gen_next(endless, -1, &e, &err) == SQUIRE_OK) {
  }
  CHECK(e.kind == SQUIRE_EVENT_END && e.finish == SQUIRE_FINISH_CANCELLED);
  squire_gen_release(endless);
  for (int i = 0; i < AGENTS; i++) {
    squire_gen_release(gens[i]);
    squire_session_release(sessions[i]);
  }
}

/* A reference of many releases nothing; the last one cancels, and the generation leaves the queue. */
static void the_last_reference_releases(squire_engine *engine, squire_model *model) {
  squire_queue *queue = NULL;
  squire_event e;
  uint64_t tag = 99;
  squire_session *session = session_of(model);
  const int32_t ids[] = {104, 105};
  DONE(squire_session_append(session, ARRAY(ids), &err));
  squire_gen *gen = say(session, 0, 1);
  CHECK(squire_gen_retain(gen) == gen && squire_gen_retain(NULL) == NULL);
  DONE(squire_queue_create(engine, &queue, &err));
  DONE(squire_queue_add(queue, gen, 5, &err));
  squire_event_init(&e, sizeof e);
  squire_gen_release(gen);
  DONE(squire_queue_next(queue, -1, &tag, &e, &err));
  CHECK(tag == 5 && e.kind == SQUIRE_EVENT_TOKENS);
  REFUSED(squire_session_append(session, ARRAY(ids), &err), SQUIRE_E_BUSY, SQUIRE_DETAIL_SESSION_BUSY);
  squire_gen_release(gen);
  tag = 99;
  CHECK(squire_queue_next(queue, 0, &tag, &e, &err) == SQUIRE_TIMEOUT && tag == 99);
  DONE(squire_session_append(session, ARRAY(ids), &err));
  squire_queue_release(queue);
  squire_session_release(session);
}

static void another_engines_are_refused(squire_engine *engine, squire_model *other_model) {
  squire_queue *queue = NULL;
  squire_session *session = session_of(other_model);
  const int32_t ids[] = {104};
  DONE(squire_session_append(session, ARRAY(ids), &err));
  squire_gen *gen = say(session, 1, 1);
  DONE(squire_queue_create(engine, &queue, &err));
  REFUSED(squire_queue_add(queue, gen, 1, &err), SQUIRE_E_ARGUMENT, SQUIRE_DETAIL_FOREIGN_HANDLE);
  squire_queue_release(queue);
  squire_gen_release(gen);
  squire_session_release(session);
}

int main(int argc, char **argv) {
  CHECK(argc == 2);
  squire_engine *engine = make_engine(SQUIRE_DRIVE_THREAD), *driven = make_engine(SQUIRE_DRIVE_CALLER);
  squire_model *model = load(engine, argv[1], 512), *stepped = load(driven, argv[1], 512);
  agents(engine, model, 1);
  agents(engine, model, 0);
  agents(driven, stepped, 0);
  another_engines_are_refused(driven, model);
  the_last_reference_releases(engine, model);
  the_last_reference_releases(driven, stepped);
  squire_model_release(model);
  squire_model_release(stepped);
  squire_engine_release(engine);
  squire_engine_release(driven);
  return 0;
}
