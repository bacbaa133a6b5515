/* One object of every kind, and a valid value of everything that a call takes: for the program that tests/c_misuse.rs
 * generates. */
#ifndef FIXTURE_H
#define FIXTURE_H

#include "check.h"

#ifdef SQUIRE_DRILL
size_t squire_drill_live_handles(void);
#endif

static squire_engine *the_squire_engine;
static squire_model *the_squire_model;
static squire_session *the_squire_session;
static squire_gen *the_squire_gen;
static squire_queue *the_squire_queue;
static squire_scores *the_squire_scores;
static squire_cancel *the_squire_cancel;
static squire_distiller *the_squire_distiller;
static squire_episode *the_squire_episode;
static squire_update *the_squire_update;
static squire_teacher *the_squire_teacher;
static squire_record *the_squire_record;
static squire_trajectory *the_squire_trajectory;
static squire_teacher_batch *the_squire_teacher_batch;

static squire_engine_options a_squire_engine_options;
static squire_model_options a_squire_model_options;
static squire_gen_options a_squire_gen_options;
static squire_event a_squire_event;
static squire_decision a_squire_decision;
static squire_teacher_request a_squire_teacher_request;

static const char *const settings_json = "{\"preset\": \"sft\"}", *const spec_json = "{}", *const check_json = "{}", *const messages_json = "[]";
static const char *const fork_json = "{}", *const recording_json = "{}";
static const char *const request_json = "{\"messages\": []}", *const text = "hello";
static const char *const name = "a", *const adapter = "a", *const why = "because";
static const char *const role = "user", *const content = "hello", *const history = "keep";
static const char *const options_json = "{\"vocabulary\": \"the-students\"}";
static const char *path, *folder;
static const int32_t ids[2] = {104, 105}, negative_ids[2] = {104, -1};

static uint64_t number;
static int32_t whole;
static size_t size;
static float real;
static const float logprobs[2] = {-1.0f, -2.0f}, *const top_logprobs = logprobs;
static const int32_t *const top_ids = ids;
static const int32_t *some_ids;
static const float *some_reals;

static int32_t take_tensor(void *user, const char *name, size_t name_len, int32_t dtype, const uint64_t *shape,
                           size_t rank, const void *data, size_t bytes) {
  (void)user, (void)name, (void)name_len, (void)dtype, (void)shape, (void)rank, (void)data, (void)bytes;
  return 0;
}

static int32_t hear_progress(void *user, const char *phase, size_t phase_len, uint64_t done, uint64_t total) {
  (void)user, (void)phase, (void)phase_len, (void)done, (void)total;
  return 0;
}

/* Puts every value that a call could write into a known state. */
static void set_values(void) {
  squire_engine_options_init(&a_squire_engine_options, sizeof a_squire_engine_options, SQUIRE_ABI);
  squire_model_options_init(&a_squire_model_options, sizeof a_squire_model_options);
  a_squire_model_options.path = folder;
  a_squire_model_options.path_len = strlen(folder);
  squire_gen_options_init(&a_squire_gen_options, sizeof a_squire_gen_options);
  squire_event_init(&a_squire_event, sizeof a_squire_event);
  squire_decision_init(&a_squire_decision, sizeof a_squire_decision);
  squire_teacher_request_init(&a_squire_teacher_request, sizeof a_squire_teacher_request);
  number = 7, whole = 7, size = 7, real = 7.0f, some_ids = NULL, some_reals = NULL;
  a_squire_event.kind = a_squire_decision.actor = 7;
}

static int values_are_set(void) {
  return number == 7 && whole == 7 && size == 7 && real == 7.0f && some_ids == NULL && some_reals == NULL &&
         a_squire_event.kind == 7 && a_squire_decision.actor == 7;
}

/* How many tokens stand in the session: what no refused call may change. */
static size_t session_length(void) {
  squire_tokens *tokens = NULL;
  size_t n = 0;
  DONE(squire_session_tokens(the_squire_session, &tokens, &err));
  squire_tokens_data(tokens, &n);
  squire_tokens_release(tokens);
  return n;
}

#define CASE(call, status, code)                                                                                       \
  do {                                                                                                                 \
    REFUSED(call, status, code);                                                                                       \
    CHECK(untouched());                                                                                                \
    CHECK(MADE_NOTHING);                                                                                               \
  } while (0)

/* An error slot that holds something is left alone, and nothing is done. */
#define OCCUPIED(call)                                                                                                 \
  do {                                                                                                                 \
    before();                                                                                                          \
    squire_error *const taken = (squire_error *)(void *)&number;                                                       \
    squire_error *err = taken;                                                                                         \
    CHECK((call) == SQUIRE_E_ARGUMENT);                                                                                \
    CHECK(err == taken && untouched() && MADE_NOTHING);                                                                \
  } while (0)

static void make_fixture(int argc, char **argv) {
  static const char replayed[] = "{\"demonstration\": [\"hello\"]}";
  CHECK(argc == 3);
  folder = argv[1];
  path = argv[2];
  set_values();
  the_squire_cancel = squire_cancel_create();
  DONE(squire_engine_create(&a_squire_engine_options, &the_squire_engine, &err));
  DONE(squire_model_load(the_squire_engine, &a_squire_model_options, NULL, &the_squire_model, &err));
  DONE(squire_session_create(the_squire_model, &the_squire_session, &err));
  DONE(squire_session_append(the_squire_session, ARRAY(ids), &err));
  DONE(squire_score(the_squire_session, ARRAY(ids), 1, NULL, &the_squire_scores, &err));
  /* A generation of another session: this one is to be idle. */
  squire_session *other = NULL;
  DONE(squire_session_fork(the_squire_session, &other, &err));
  a_squire_gen_options.max_tokens = 1;
  DONE(squire_gen_start(other, &a_squire_gen_options, &the_squire_gen, &err));
  squire_session_release(other);
  DONE(squire_queue_create(the_squire_engine, &the_squire_queue, &err));
  DONE(squire_distiller_create(the_squire_model, NULL, TEXT(settings_json), &the_squire_distiller, &err));
  DONE(squire_episode_begin(the_squire_distiller, TEXT(replayed), &the_squire_episode, &err));
  DONE(squire_episode_observe_ids(the_squire_episode, ARRAY(ids), &err));
  DONE(squire_episode_decide(the_squire_episode, &a_squire_decision, &err));
  DONE(squire_episode_replay_stored(the_squire_episode, &err));
  DONE(squire_episode_outcome(the_squire_episode, 0, 0, &err));
  DONE(squire_episode_end(the_squire_episode, 1, 1, &err));
  DONE(squire_update_build(the_squire_distiller, 0, NULL, NULL, NULL, &the_squire_update, &err));
  squire_episode_release(the_squire_episode);
  the_squire_episode = NULL;
  DONE(squire_episode_begin(the_squire_distiller, TEXT(replayed), &the_squire_episode, &err));
  /* An episode of a distiller that the host teaches asks for its scores. */
  static const char taught_json[] = "{\"preset\": \"opd\", \"student_turns\": {\"kernel\": \"sampled-reverse-kl\"}}";
  squire_distiller *taught = NULL;
  squire_episode *asking = NULL;
  squire_gen *gen = NULL;
  squire_error *err = NULL;
  DONE(squire_teacher_create(TEXT(options_json), &the_squire_teacher, &err));
  DONE(squire_distiller_create_taught(the_squire_model, the_squire_teacher, TEXT(taught_json), &taught, &err));
  char run[4096];
  CHECK(snprintf(run, sizeof run, "%s-run", path) < (int)sizeof run);
  DONE(squire_distiller_record(taught, TEXT(run), TEXT(recording_json), &err));
  DONE(squire_episode_begin(taught, TEXT(spec_json), &asking, &err));
  DONE(squire_episode_observe_ids(asking, ARRAY(ids), &err));
  DONE(squire_episode_decide(asking, &a_squire_decision, &err));
  DONE(squire_episode_act(asking, &a_squire_gen_options, &gen, &err));
  while (squire_gen_next(gen, -1, &a_squire_event, &err) == SQUIRE_OK && a_squire_event.kind == SQUIRE_EVENT_TOKENS) {
  }
  squire_gen_release(gen);
  DONE(squire_episode_outcome(asking, 0, 0, &err));
  DONE(squire_episode_end(asking, 1, 1, &err));
  DONE(squire_teacher_next(the_squire_teacher, 1, 0, &the_squire_teacher_batch, &err));
  DONE(squire_record_open(TEXT(run), &the_squire_record, &err));
  DONE(squire_record_episode(the_squire_record, 0, &the_squire_trajectory, &err));
  CHECK(squire_trajectory_ids(the_squire_trajectory, &size) != NULL && size > 2);
  size = 7;
  squire_episode_release(asking);
  squire_distiller_release(taught);
}

static void end_fixture(void) {
  CHECK(session_length() == 4);
  squire_engine_release(the_squire_engine); /* before what hangs on it: any order is right */
  squire_model_release(the_squire_model);
  squire_session_release(the_squire_session);
  squire_gen_release(the_squire_gen);
  squire_queue_release(the_squire_queue);
  squire_scores_release(the_squire_scores);
  squire_cancel_release(the_squire_cancel);
  squire_distiller_release(the_squire_distiller);
  squire_episode_release(the_squire_episode);
  squire_update_release(the_squire_update);
  squire_teacher_release(the_squire_teacher);
  squire_teacher_batch_release(the_squire_teacher_batch);
  squire_record_release(the_squire_record);
  squire_trajectory_release(the_squire_trajectory);
#ifdef SQUIRE_DRILL
  CHECK(squire_drill_live_handles() == 0);
#endif
}

#endif /* FIXTURE_H */
