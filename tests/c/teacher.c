/* A teacher in the host's own code, from C: a thread that answers requests while the program plays and learns. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>

#include "check.h"

enum { TOP_K = 2, EPISODES = 3 };

/* What the answering thread is given, and what it did. */
struct answering {
  squire_teacher *teacher;
  int answered, failed;
  size_t refused;
  uint64_t distiller; /* who asked last */
};

/* Answers as if every id were as likely as every other, after it has tried what must be refused. */
static void answer(struct answering *a, const squire_teacher_request *r) {
  const size_t n = r->n_ids - r->from;
  const float even = -logf((float)r->vocabulary);
  float *logprobs = malloc(n * sizeof *logprobs), *top_logprobs = malloc(n * TOP_K * sizeof *top_logprobs);
  int32_t *top_ids = malloc(n * TOP_K * sizeof *top_ids);
  squire_error *err = NULL;
  CHECK(logprobs && top_logprobs && top_ids && r->from >= 1 && n > 0 && r->top_k == TOP_K && r->deadline_ms == 20000);
  for (size_t i = 0; i < n; i++) {
    logprobs[i] = even;
    for (int32_t k = 0; k < TOP_K; k++) {
      top_ids[i * TOP_K + (size_t)k] = k;
      top_logprobs[i * TOP_K + (size_t)k] = even;
    }
  }
  logprobs[0] = 0.5f; /* no log-prob */
  CHECK(squire_teacher_reply(a->teacher, r->number, r->ids + r->from, n, logprobs, top_ids, top_logprobs, n * TOP_K,
                             &err) == SQUIRE_E_MISMATCH);
  CHECK(squire_error_detail(err) == SQUIRE_DETAIL_TEACHER_REPLY);
  squire_error_release(err);
  err = NULL;
  a->refused++;
  logprobs[0] = even;
  DONE(squire_teacher_reply(a->teacher, r->number, r->ids + r->from, n, logprobs, top_ids, top_logprobs, n * TOP_K,
                            &err));
  a->answered++;
  CHECK(squire_teacher_reply(a->teacher, r->number, r->ids + r->from, n, logprobs, top_ids, top_logprobs, n * TOP_K,
                             &err) == SQUIRE_E_STATE);
  CHECK(squire_error_detail(err) == SQUIRE_DETAIL_TEACHER_REQUEST);
  squire_error_release(err);
  free(logprobs);
  free(top_logprobs);
  free(top_ids);
}

static void *answering(void *user) {
  struct answering *a = user;
  squire_teacher_batch *batch = NULL;
  squire_teacher_request r;
  squire_error *err = NULL;
  squire_teacher_request_init(&r, sizeof r);
  while (a->answered < EPISODES - 1 || a->failed == 0) {
    const squire_status status = squire_teacher_next(a->teacher, 2, 50, &batch, &err);
    if (status == SQUIRE_TIMEOUT) {
      CHECK(batch == NULL);
      continue;
    }
    CHECK(status == SQUIRE_OK);
    for (size_t i = 0; squire_teacher_batch_request(batch, i, &r, &err) == SQUIRE_OK; i++) {
      CHECK(r.distiller > 0 && r.step == 0 && r.revision == 1);
      a->distiller = r.distiller;
      if (r.episode == 1) { /* one of them it cannot score */
        DONE(squire_teacher_fail(a->teacher, r.number, TEXT("the server said 500"), &err));
        a->failed++;
      } else {
        answer(a, &r);
      }
    }
    squire_teacher_batch_release(batch);
    batch = NULL;
  }
  return NULL;
}

/* Waits for a request that never comes, until the teacher is closed. */
static void *waiting(void *user) {
  squire_teacher_batch *batch = NULL;
  squire_error *err = NULL;
  CHECK(squire_teacher_next(user, 1, 3600000, &batch, &err) == SQUIRE_END && batch == NULL && err == NULL);
  return NULL;
}

static void play(squire_distiller *distiller) {
  const int32_t seen[] = {1, 2, 3, 4};
  squire_episode *episode = NULL;
  squire_decision decision;
  squire_gen_options options;
  squire_gen *gen = NULL;
  squire_event event;
  squire_error *err = NULL;
  squire_decision_init(&decision, sizeof decision);
  squire_gen_options_init(&options, sizeof options);
  squire_event_init(&event, sizeof event);
  options.max_tokens = 6;
  DONE(squire_episode_begin(distiller, TEXT("{}"), &episode, &err));
  DONE(squire_episode_observe_ids(episode, ARRAY(seen), &err));
  DONE(squire_episode_decide(episode, &decision, &err));
  CHECK(decision.actor == SQUIRE_ACTOR_STUDENT);
  DONE(squire_episode_act(episode, &options, &gen, &err));
  while (squire_gen_next(gen, -1, &event, &err) == SQUIRE_OK && event.kind == SQUIRE_EVENT_TOKENS) {
  }
  squire_gen_release(gen);
  DONE(squire_episode_outcome(episode, 0, 0, &err));
  DONE(squire_episode_end(episode, 1, 1, &err));
  squire_episode_release(episode);
}

/* A teacher that takes turns: refused, said, late, and taken by the student where it fails. One thread does both sides. */
static void acts(squire_model *model) {
  static const char settings[] = "{\"actor\": {\"kind\": \"teacher\"}, \"teacher_fails\": \"student\","
                                 " \"student_turns\": {\"kernel\": \"none\"},"
                                 " \"teacher_turns\": {\"kernel\": \"cross-entropy\"}}";
  const int32_t seen[] = {1, 2, 3, 4}, stops[] = {9};
  int32_t turn[] = {5, 9};
  squire_teacher *teacher = NULL;
  squire_teacher_batch *batch = NULL;
  squire_teacher_request r;
  squire_distiller *distiller = NULL;
  squire_episode *episode = NULL;
  squire_decision decision;
  squire_gen_options options;
  squire_gen *gen = NULL;
  squire_event event;
  squire_error *err = NULL;
  squire_teacher_request_init(&r, sizeof r);
  squire_decision_init(&decision, sizeof decision);
  squire_gen_options_init(&options, sizeof options);
  squire_event_init(&event, sizeof event);
  options.max_tokens = 6;
  options.stop_ids = stops;
  options.stop_ids_len = 1;
  DONE(squire_teacher_create(
      TEXT("{\"vocabulary\": \"the-students\", \"acts\": true, \"scores\": false, \"deadline_ms\": 20000}"), &teacher, &err));
  DONE(squire_distiller_create_taught(model, teacher, TEXT(settings), &distiller, &err));
  DONE(squire_episode_begin(distiller, TEXT("{}"), &episode, &err));
  for (int i = 0; i < 2; i++) {
    DONE(squire_episode_observe_ids(episode, ARRAY(seen), &err));
    DONE(squire_episode_decide(episode, &decision, &err));
    CHECK(decision.actor == SQUIRE_ACTOR_TEACHER);
    options.time_limit_ms = i == 0 ? 600000 : 0;
    DONE(squire_episode_act(episode, &options, &gen, &err));
    CHECK(squire_gen_next(gen, 0, &event, &err) == SQUIRE_TIMEOUT);
    DONE(squire_teacher_next(teacher, 1, 0, &batch, &err));
    DONE(squire_teacher_batch_request(batch, 0, &r, &err));
    CHECK(r.kind == SQUIRE_REQUEST_TURN && r.from == r.n_ids && r.n_ids >= 4 && r.top_k == 0 && r.max_tokens == 6);
    CHECK(r.ids[r.n_ids - 1] == 4 && r.n_stop_ids >= 1 && r.stop_ids[r.n_stop_ids - 1] == 9 && r.messages == NULL);
    CHECK(r.temperature == 1 && r.top_p == 1 && r.draw_top_k == 0);
    CHECK(r.n_stop_strings == 0 && (r.time_left_ms > 0) == (i == 0) && r.time_left_ms <= 600000);
    if (i == 0) {
      REFUSED(squire_teacher_reply(teacher, r.number, NULL, 0, NULL, NULL, NULL, 0, &err), SQUIRE_E_MISMATCH,
              SQUIRE_DETAIL_TEACHER_REPLY);
      REFUSED(squire_teacher_say(teacher, r.number, turn, 1, NULL, 0, 0, &err), SQUIRE_E_MISMATCH,
              SQUIRE_DETAIL_TEACHER_REPLY);
      REFUSED(squire_teacher_say(teacher, r.number, turn, 1, NULL, 0, 2, &err), SQUIRE_E_ARGUMENT,
              SQUIRE_DETAIL_BAD_OPTION);
      REFUSED(squire_teacher_say_text(teacher, r.number, TEXT("go"), 0, &err), SQUIRE_E_IO, SQUIRE_DETAIL_MISSING_FILE);
      DONE(squire_teacher_say(teacher, r.number, ARRAY(turn), NULL, 0, 0, &err));
      DONE(squire_gen_next(gen, -1, &event, &err));
      CHECK(event.kind == SQUIRE_EVENT_TOKENS && event.ids_len == 2 && event.ids[0] == 5 && event.ids[1] == 9);
      CHECK(event.actor == SQUIRE_ACTOR_TEACHER && event.position == r.n_ids);
      CHECK(squire_gen_next(gen, -1, &event, &err) == SQUIRE_END && event.finish == SQUIRE_FINISH_STOP);
    } else {
      DONE(squire_teacher_fail(teacher, r.number, TEXT("the server said 500"), &err));
      REFUSED(squire_gen_next(gen, -1, &event, &err), SQUIRE_E_TEACHER, SQUIRE_DETAIL_TEACHER_FAILED);
      DONE(squire_episode_decide(episode, &decision, &err));
      CHECK(decision.actor == SQUIRE_ACTOR_STUDENT && decision.reason == SQUIRE_REASON_TEACHER_FAILED);
      squire_gen_release(gen);
      gen = NULL;
      DONE(squire_episode_act(episode, &options, &gen, &err));
      while (squire_gen_next(gen, -1, &event, &err) == SQUIRE_OK && event.kind == SQUIRE_EVENT_TOKENS) {
      }
    }
    squire_gen_release(gen);
    squire_teacher_batch_release(batch);
    gen = NULL;
    batch = NULL;
    DONE(squire_episode_outcome(episode, 0, 0, &err));
  }
  DONE(squire_episode_end(episode, 1, 1, &err));
  squire_episode_release(episode);
  squire_distiller_release(distiller);
  squire_teacher_release(teacher);
}

int main(int argc, char **argv) {
  static const char settings[] = "{\"preset\": \"opd\", \"batch_episodes\": 3}";
  CHECK(argc == 2);
  squire_error *err = NULL;
  squire_engine_options eo;
  squire_model_options mo;
  squire_engine *engine = NULL;
  squire_model *model = NULL;
  squire_teacher *teacher = NULL;
  squire_teacher_batch *none = NULL;
  squire_distiller *distiller = NULL;
  squire_update *update = NULL;
  squire_text *report = NULL;
  pthread_t thread, waiters[2];
  squire_engine_options_init(&eo, sizeof eo, SQUIRE_ABI);
  squire_model_options_init(&mo, sizeof mo);
  mo.path = argv[1];
  mo.path_len = strlen(argv[1]);
  DONE(squire_engine_create(&eo, &engine, &err));
  DONE(squire_model_load(engine, &mo, NULL, &model, &err));

  acts(model);
  REFUSED(squire_teacher_create(TEXT("{}"), &teacher, &err), SQUIRE_E_ARGUMENT, SQUIRE_DETAIL_BAD_VALUE);
  DONE(squire_teacher_create(TEXT("{\"vocabulary\": \"the-students\", \"top_k\": 2, \"deadline_ms\": 20000}"), &teacher,
                             &err));
  REFUSED(squire_distiller_create_taught(model, teacher, TEXT("{\"preset\": \"guided-opd\"}"), &distiller, &err),
          SQUIRE_E_ARGUMENT, SQUIRE_DETAIL_BAD_OPTION);
  DONE(squire_distiller_create_taught(model, teacher, TEXT(settings), &distiller, &err));
  CHECK(squire_teacher_next(teacher, 1, 0, &none, &err) == SQUIRE_TIMEOUT && none == NULL && err == NULL);

  /* A check that nobody answers, and one that is stopped. */
  squire_cancel *cancel = squire_cancel_create();
  REFUSED(squire_distiller_check_teacher(distiller, TEXT("{\"ids\": [1, 2, 3, 4]}"), 30, cancel, &report, &err),
          SQUIRE_E_TEACHER, SQUIRE_DETAIL_TEACHER_SILENT);
  REFUSED(squire_distiller_check_teacher(distiller, TEXT("{}"), 30, NULL, &report, &err), SQUIRE_E_TEMPLATE,
          SQUIRE_DETAIL_NO_TEMPLATE);
  squire_cancel_set(cancel);
  CHECK(squire_distiller_check_teacher(distiller, TEXT("{\"ids\": [1, 2, 3, 4]}"), 0, cancel, &report, &err) ==
            SQUIRE_CANCELLED &&
        report == NULL && err == NULL);
  squire_cancel_release(cancel);

  struct answering a = {squire_teacher_retain(teacher), 0, 0, 0, 0};
  CHECK(pthread_create(&thread, NULL, answering, &a) == 0);
  for (int i = 0; i < EPISODES; i++) {
    play(distiller);
  }
  DONE(squire_update_build(distiller, 0, NULL, NULL, NULL, &update, &err));
  CHECK(pthread_join(thread, NULL) == 0);
  CHECK(a.answered == 2 && a.failed >= 1 && a.refused == 2); /* what failed is asked anew */
  DONE(squire_update_report(update, &report, &err));
  size_t n = 0;
  const char *text = squire_text_data(report, &n);
  CHECK(strstr(text, "\"episodes\":2") != NULL && strstr(text, "the server said 500") != NULL);
  DONE(squire_update_apply(distiller, update, &err));
  uint64_t number = 0;
  DONE(squire_distiller_number(distiller, &number, &err));
  CHECK(number > 0 && number == a.distiller);

  /* Closed, it wakes who waits, and refuses who asks. */
  while (squire_teacher_next(teacher, 9, 0, &none, &err) == SQUIRE_OK) { /* what failed is asked anew */
    squire_teacher_batch_release(none);
  }
  for (int i = 0; i < 2; i++) {
    CHECK(pthread_create(&waiters[i], NULL, waiting, teacher) == 0);
  }
  DONE(squire_teacher_close(teacher, &err));
  DONE(squire_teacher_close(teacher, &err));
  for (int i = 0; i < 2; i++) {
    CHECK(pthread_join(waiters[i], NULL) == 0);
  }
  CHECK(squire_teacher_next(teacher, 1, 0, &none, &err) == SQUIRE_END && none == NULL && err == NULL);
  squire_update_release(update);
  update = NULL;
  uint64_t thrown_away = 0;
  DONE(squire_distiller_discard(distiller, &thrown_away, &err));
  play(distiller);
  REFUSED(squire_update_build(distiller, 0, NULL, NULL, NULL, &update, &err), SQUIRE_E_TEACHER,
          SQUIRE_DETAIL_TEACHER_CLOSED);

  squire_text_release(report);
  squire_update_release(update);
  squire_distiller_release(distiller);
  squire_teacher_release(teacher);
  squire_teacher_release(a.teacher);
  squire_model_release(model);
  squire_engine_release(engine);
  return failures;
}
