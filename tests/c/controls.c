/* Controls of sampling, stop strings, log-probs beside tokens and continuations from C: a chat model that advises some. */
#include <math.h>
#include <stdlib.h>

#include "check.h"

static squire_error *err = NULL;

#include "helpers.h"

#define ROOM 64

struct said {
  int32_t ids[ROOM];
  size_t n;
  char text[4 * ROOM];
  squire_event end;
};

static squire_gen_options saying(int32_t n) {
  squire_gen_options o = greedy(n);
  o.flags = SQUIRE_GEN_IGNORE_MODEL_STOPS;
  o.repetition_penalty = 1;
  return o;
}

static void pull_all(squire_gen *gen, struct said *said) {
  squire_event e;
  squire_event_init(&e, sizeof e);
  memset(said, 0, sizeof *said);
  while (squire_gen_next(gen, -1, &e, &err) == SQUIRE_OK) {
    CHECK(said->n + e.ids_len <= ROOM && strlen(said->text) + e.text_len < sizeof said->text);
    memcpy(said->ids + said->n, e.ids, e.ids_len * sizeof *e.ids);
    said->n += e.ids_len;
    strcat(said->text, e.text);
  }
  CHECK(err == NULL && e.kind == SQUIRE_EVENT_END);
  said->end = e;
}

static squire_session *prompted(squire_model *model) {
  const int32_t ids[] = {104, 105, 104, 105};
  squire_session *session = session_of(model);
  DONE(squire_session_append(session, ARRAY(ids), &err));
  return session;
}

static void say(squire_model *model, const squire_gen_options *o, struct said *said) {
  squire_session *session = prompted(model);
  squire_gen *gen = NULL;
  DONE(squire_gen_start(session, o, &gen, &err));
  pull_all(gen, said);
  int32_t ids[ROOM + 4];
  CHECK(timeline(session, ids, ROOM + 4) == said->n + 4);
  squire_gen_release(gen);
  squire_session_release(session);
}

static void advice_is_shown_and_followed(squire_model *model) {
  squire_gen_options o = saying(3);
  DONE(squire_gen_options_for(model, &o, &err));
  CHECK(o.min_p == 0.25f && o.typical_p == 1 && o.repetition_penalty == 1.5f && o.presence_penalty == 0);
  CHECK(o.frequency_penalty == -1 && o.no_repeat_ngram_size == 2 && o.logit_bias == NULL && o.stop_strings == NULL);
  CHECK(o.top_logprobs == 0);
  /* What is left alone is the same as the advice written out; what is set counts for itself. */
  struct said by_model, written, without;
  squire_gen_options plain;
  squire_gen_options_init(&plain, sizeof plain);
  plain.temperature = 0, plain.max_tokens = 30, plain.flags = SQUIRE_GEN_IGNORE_MODEL_STOPS;
  say(model, &plain, &by_model);
  o.temperature = 0, o.max_tokens = 30, o.flags = SQUIRE_GEN_IGNORE_MODEL_STOPS;
  say(model, &o, &written);
  o.repetition_penalty = 1, o.frequency_penalty = 0, o.no_repeat_ngram_size = 0;
  say(model, &o, &without);
  CHECK(memcmp(by_model.ids, written.ids, sizeof written.ids) == 0);
  CHECK(memcmp(by_model.ids, without.ids, sizeof without.ids) != 0);
  for (size_t i = 1; i < by_model.n; i++) {
    for (size_t j = i + 1; j < by_model.n; j++) {
      CHECK(by_model.ids[i - 1] != by_model.ids[j - 1] || by_model.ids[i] != by_model.ids[j]);
    }
  }
  const squire_logit_bias bias[] = {{104, 100.0f}};
  squire_gen_options biased = saying(5);
  biased.logit_bias = bias, biased.logit_bias_len = 1, biased.no_repeat_ngram_size = 0;
  say(model, &biased, &without);
  for (size_t i = 0; i < 5; i++) {
    CHECK(without.ids[i] == 104);
  }
}

static void options_out_of_range_are_refused(squire_model *model) {
  squire_session *session = prompted(model);
  squire_gen *gen = NULL;
  squire_gen_options o;
#define WITH(field, value, detail)                                                                                     \
  o = saying(8);                                                                                                       \
  o.field = value;                                                                                                     \
  REFUSED(squire_gen_start(session, &o, &gen, &err), SQUIRE_E_ARGUMENT, detail)
  WITH(min_p, 1.5f, SQUIRE_DETAIL_BAD_OPTION);
  WITH(min_p, nanf(""), SQUIRE_DETAIL_BAD_OPTION);
  WITH(typical_p, 0.0f, SQUIRE_DETAIL_BAD_OPTION);
  WITH(repetition_penalty, 0.0f, SQUIRE_DETAIL_BAD_OPTION);
  WITH(presence_penalty, 2.5f, SQUIRE_DETAIL_BAD_OPTION);
  WITH(frequency_penalty, -3.0f, SQUIRE_DETAIL_BAD_OPTION);
  WITH(no_repeat_ngram_size, 65, SQUIRE_DETAIL_BAD_OPTION);
  WITH(no_repeat_ngram_size, -2, SQUIRE_DETAIL_BAD_OPTION);
  WITH(top_logprobs, 129, SQUIRE_DETAIL_BAD_OPTION);
  WITH(top_logprobs, -1, SQUIRE_DETAIL_BAD_OPTION);
  WITH(priority, 101, SQUIRE_DETAIL_BAD_OPTION);
  WITH(priority, -101, SQUIRE_DETAIL_BAD_OPTION);
  WITH(logit_bias_len, 1, SQUIRE_DETAIL_NULL_POINTER);
  WITH(stop_strings_len, 1, SQUIRE_DETAIL_NULL_POINTER);
  const squire_logit_bias outside[] = {{1 << 20, 1.0f}}, negative[] = {{-1, 1.0f}}, twice[] = {{5, 1.0f}, {5, 2.0f}};
#define BIASED(list, length, detail)                                                                                   \
  o = saying(8);                                                                                                       \
  o.logit_bias = list, o.logit_bias_len = length;                                                                      \
  REFUSED(squire_gen_start(session, &o, &gen, &err), SQUIRE_E_ARGUMENT, detail)
  BIASED(outside, 1, SQUIRE_DETAIL_ID_OUT_OF_RANGE);
  BIASED(negative, 1, SQUIRE_DETAIL_ID_OUT_OF_RANGE);
  BIASED(twice, 2, SQUIRE_DETAIL_BAD_OPTION);
  BIASED(twice, SIZE_MAX, SQUIRE_DETAIL_BAD_LENGTH);
  BIASED(twice, 1 << 22, SQUIRE_DETAIL_BAD_OPTION);
  char *huge = malloc(1 << 20);
  memset(huge, 'x', 1 << 20);
  const squire_stop_string empty[] = {{"a", 1}, {"", 0}}, none[] = {{NULL, 1}}, broken[] = {{"a\xff", 2}};
  const squire_stop_string large[] = {{huge, 1 << 20}}, endless[] = {{"a", SIZE_MAX}};
#define STOPPED(list, length, detail)                                                                                  \
  o = saying(8);                                                                                                       \
  o.stop_strings = list, o.stop_strings_len = length;                                                                  \
  REFUSED(squire_gen_start(session, &o, &gen, &err), SQUIRE_E_ARGUMENT, detail)
  STOPPED(empty, 2, SQUIRE_DETAIL_BAD_OPTION);
  STOPPED(none, 1, SQUIRE_DETAIL_NULL_POINTER);
  STOPPED(broken, 1, SQUIRE_DETAIL_NOT_UTF8);
  STOPPED(large, 1, SQUIRE_DETAIL_BAD_OPTION);
  STOPPED(endless, 1, SQUIRE_DETAIL_BAD_LENGTH);
  STOPPED(empty, 129, SQUIRE_DETAIL_BAD_OPTION);
  free(huge);
  CHECK(gen == NULL);
  squire_session_release(session);
}

static void a_stop_string_ends_text_and_timeline(squire_model *model) {
  struct said whole, cut;
  squire_gen_options o = saying(40);
  say(model, &o, &whole);
  CHECK(whole.end.finish == SQUIRE_FINISH_LENGTH && whole.end.stop_string == -1 && strlen(whole.text) > 12);
  /* Some whole characters of what it says. */
  size_t from = 6, length = 4;
  while ((whole.text[from] & 0xc0) == 0x80) from++;
  while ((whole.text[from + length] & 0xc0) == 0x80) length++;
  const squire_stop_string stops[] = {{"never said by it", 16}, {whole.text + from, length}};
  char found[16] = {0};
  memcpy(found, whole.text + from, length);
  o.stop_strings = stops, o.stop_strings_len = 2;
  say(model, &o, &cut);
  const size_t begins = (size_t)(strstr(whole.text, found) - whole.text);
  CHECK(strlen(cut.text) == begins && memcmp(cut.text, whole.text, begins) == 0);
  CHECK(cut.end.finish == SQUIRE_FINISH_STOP && cut.end.stop_string == 1 && cut.end.stop_byte == begins);
  CHECK(cut.end.stop_token < cut.n && cut.n < 40 && memcmp(cut.ids, whole.ids, cut.n * sizeof *cut.ids) == 0);
}

static void the_likeliest_stand_beside_each_token(squire_model *model) {
  squire_session *session = prompted(model);
  squire_gen_options o = saying(6);
  o.no_repeat_ngram_size = 0, o.frequency_penalty = 0;
  squire_gen *gen = NULL;
  squire_event e;
  squire_event_init(&e, sizeof e);
  o.top_logprobs = 4;
  DONE(squire_gen_start(session, &o, &gen, &err));
  size_t n = 0;
  while (squire_gen_next(gen, -1, &e, &err) == SQUIRE_OK) {
    CHECK(e.ids_len == 0 || e.top_k == 4);
    for (size_t i = 0; i < e.ids_len; i++, n++) {
      const float *top = e.top_logprobs + 4 * i;
      /* Greedy and without penalties, the first is the one that was taken. */
      CHECK(e.top_ids[4 * i] == e.ids[i] && top[0] == e.logprobs[i]);
      CHECK(top[0] >= top[1] && top[1] >= top[2] && top[2] >= top[3]);
    }
  }
  CHECK(n == 6 && e.top_k == 0);
  squire_gen_release(gen);
  squire_session_release(session);
}

static void continuations_draw_by_seeds_of_their_own(squire_model *model) {
  enum { N = 3 };
  squire_session *session = prompted(model), *sessions[N] = {NULL};
  squire_gen *gens[N] = {NULL};
  squire_gen_options o = saying(12);
  struct said said[N], alone;
  o.temperature = 1, o.seed = 5;
  DONE(squire_gen_start_n(session, &o, N, NULL, sessions, gens, &err));
  for (size_t i = 0; i < N; i++) {
    uint64_t seed = 0;
    DONE(squire_gen_seed(gens[i], &seed, &err));
    CHECK((seed == 5) == (i == 0));
    pull_all(gens[i], &said[i]);
    o.seed = seed;
    say(model, &o, &alone);
    CHECK(said[i].n == 12 && memcmp(said[i].ids, alone.ids, sizeof alone.ids) == 0);
    CHECK(i == 0 || memcmp(said[i].ids, said[0].ids, sizeof alone.ids) != 0);
    squire_gen_release(gens[i]);
    squire_session_release(sessions[i]);
  }
  int32_t ids[8];
  CHECK(timeline(session, ids, 8) == 4);
  squire_gen *none = NULL;
  squire_session *no_session = NULL;
  REFUSED(squire_gen_start_n(session, &o, 0, NULL, &no_session, &none, &err), SQUIRE_E_ARGUMENT, SQUIRE_DETAIL_BAD_OPTION);
  REFUSED(squire_gen_start_n(session, &o, SIZE_MAX, NULL, &no_session, &none, &err), SQUIRE_E_BUDGET,
          SQUIRE_DETAIL_SESSION_BUDGET);
  o.adapter = "a", o.adapter_len = 1;
  REFUSED(squire_gen_start_n(session, &o, 1, NULL, &no_session, &none, &err), SQUIRE_E_ARGUMENT, SQUIRE_DETAIL_BAD_OPTION);
  CHECK(none == NULL && no_session == NULL);
  squire_session_release(session);
}

/* In training what changes the distribution is refused; stop strings and log-probs hold. */
static void episodes_refuse_what_their_settings_do_not_say(squire_model *model) {
  squire_distiller *distiller = NULL;
  squire_episode *episode = NULL;
  squire_gen *gen = NULL;
  squire_decision d;
  squire_decision_init(&d, sizeof d);
  DONE(squire_distiller_create(model, NULL, TEXT("{\"preset\": \"sft\"}"), &distiller, &err));
  DONE(squire_episode_begin(distiller, TEXT("{}"), &episode, &err));
  DONE(squire_episode_observe(episode, TEXT("[{\"role\": \"user\", \"content\": \"hello\"}]"), NULL, &err));
  DONE(squire_episode_override(episode, SQUIRE_ACTOR_STUDENT, &d, &err));
  squire_gen_options o;
  const squire_logit_bias bias[] = {{104, 1.0f}};
#define WITH_SET(field, value)                                                                                         \
  squire_gen_options_init(&o, sizeof o);                                                                               \
  o.field = value;                                                                                                     \
  REFUSED(squire_episode_act(episode, &o, &gen, &err), SQUIRE_E_ARGUMENT, SQUIRE_DETAIL_BAD_OPTION)
  WITH_SET(min_p, 0.0f);
  WITH_SET(typical_p, 1.0f);
  WITH_SET(repetition_penalty, 1.1f);
  WITH_SET(presence_penalty, 0.5f);
  WITH_SET(frequency_penalty, 0.5f);
  WITH_SET(no_repeat_ngram_size, 3);
  WITH_SET(logit_bias, bias);
  squire_gen_options_init(&o, sizeof o);
  const squire_stop_string stops[] = {{"never said by it", 16}};
  o.stop_strings = stops, o.stop_strings_len = 1, o.top_logprobs = 2, o.max_tokens = 3;
  squire_event e;
  squire_event_init(&e, sizeof e);
  DONE(squire_episode_act(episode, &o, &gen, &err));
  while (squire_gen_next(gen, -1, &e, &err) == SQUIRE_OK) {
    CHECK(e.ids_len == 0 || e.top_k == 2);
    for (size_t i = 0; i < e.ids_len; i++) {
      CHECK(e.logprobs[i] == e.sampled_logprobs[i]); /* the folder's advice is passed over */
    }
  }
  squire_gen_release(gen);
  squire_episode_release(episode);
  squire_distiller_release(distiller);
}

/* The record so far says what ended the turn. */
static int ended_by(const squire_episode *episode, const char *wanted) {
  squire_text *trace = NULL;
  DONE(squire_episode_trace(episode, &trace, &err));
  return says(trace, wanted);
}

static const char user[] = "[{\"role\": \"user\", \"content\": \"hello\"}]";

/* Stop strings, token budgets and time limits end a turn in training too, and the record says which. */
static void limits_end_a_turn(squire_model *model) {
  squire_distiller *distiller = NULL;
  squire_decision d;
  struct said whole, cut;
  squire_decision_init(&d, sizeof d);
  DONE(squire_distiller_create(model, NULL, TEXT("{\"preset\": \"sft\"}"), &distiller, &err));
  memset(&whole, 0, sizeof whole);
  for (int way = 0; way < 4; way++) {
    squire_episode *episode = NULL;
    squire_gen *gen = NULL;
    squire_gen_options o;
    squire_gen_options_init(&o, sizeof o);
    o.flags = SQUIRE_GEN_IGNORE_MODEL_STOPS;
    DONE(squire_episode_begin(distiller, TEXT("{\"episode\": 5}"), &episode, &err));
    DONE(squire_episode_observe(episode, TEXT(user), NULL, &err));
    DONE(squire_episode_override(episode, SQUIRE_ACTOR_STUDENT, &d, &err));
    size_t from = 6, length = 2;
    while ((whole.text[from] & 0xc0) == 0x80) from++;
    while ((whole.text[from + length] & 0xc0) == 0x80) length++;
    const squire_stop_string stops[] = {{"never said by it", 16}, {whole.text + from, length}};
    o.max_tokens = way == 0 ? 30 : way == 3 ? 5 : 0;
    if (way == 1) {
      o.stop_strings = stops, o.stop_strings_len = 2;
    }
    o.time_limit_ms = way == 2 ? 1 : 0; /* the context has room for 2,000, which take longer */
    DONE(squire_episode_act(episode, &o, &gen, &err));
    if (way == 2) {
      squire_event e;
      size_t n = 0;
      squire_event_init(&e, sizeof e);
      while (squire_gen_next(gen, -1, &e, &err) == SQUIRE_OK) {
        n += e.ids_len;
      }
      CHECK(e.finish == SQUIRE_FINISH_TIME);
      CHECK(ended_by(episode, n > 0 ? "\"ended_by\":\"time\"" : "\"turns\":[]"));
    } else {
      pull_all(gen, way == 0 ? &whole : &cut);
      CHECK(ended_by(episode, way == 1 ? "\"ended_by\":\"stop_string\"" : "\"ended_by\":\"max_tokens\""));
    }
    if (way == 1) {
      CHECK(cut.end.finish == SQUIRE_FINISH_STOP && cut.end.stop_string == 1);
      CHECK(strlen(cut.text) == (size_t)cut.end.stop_byte && memcmp(cut.ids, whole.ids, cut.n * sizeof *cut.ids) == 0);
    }
    CHECK(way != 3 || (cut.n == 5 && memcmp(cut.ids, whole.ids, sizeof *cut.ids * 5) == 0));
    squire_gen_release(gen);
    squire_episode_release(episode);
  }
  squire_distiller_release(distiller);
}

/* The host's teacher is told what texts end its turn. */
static void a_teacher_is_told_the_stop_strings(squire_model *model) {
  squire_teacher *teacher = NULL;
  squire_teacher_batch *batch = NULL;
  squire_teacher_request r;
  squire_distiller *distiller = NULL;
  squire_episode *episode = NULL;
  squire_gen *gen = NULL;
  squire_decision d;
  struct said said;
  squire_decision_init(&d, sizeof d);
  squire_teacher_request_init(&r, sizeof r);
  DONE(squire_teacher_create(TEXT("{\"vocabulary\": \"another\"}"), &teacher, &err));
  DONE(squire_distiller_create_taught(model, teacher,
                                      TEXT("{\"actor\": {\"kind\": \"teacher\"}, \"student_turns\": {\"kernel\": \"none\"}, "
                                           "\"teacher_turns\": {\"kernel\": \"cross-entropy\"}}"),
                                      &distiller, &err));
  DONE(squire_episode_begin(distiller, TEXT("{}"), &episode, &err));
  DONE(squire_episode_observe(episode, TEXT(user), NULL, &err));
  DONE(squire_episode_decide(episode, &d, &err));
  squire_gen_options o;
  const squire_stop_string stops[] = {{"x\0y", 3}, {"st", 2}};
  squire_gen_options_init(&o, sizeof o);
  o.stop_strings = stops, o.stop_strings_len = 2;
  DONE(squire_episode_act(episode, &o, &gen, &err));
  DONE(squire_teacher_next(teacher, 1, 0, &batch, &err));
  DONE(squire_teacher_batch_request(batch, 0, &r, &err));
  CHECK(r.n_stop_strings == 2 && r.time_left_ms == 0);
  CHECK(r.stop_strings[0].len == 3 && memcmp(r.stop_strings[0].text, "x\0y", 3) == 0);
  CHECK(r.stop_strings[1].len == 2 && memcmp(r.stop_strings[1].text, "st", 2) == 0);
  DONE(squire_teacher_say_text(teacher, r.number, TEXT("go east, then north"), 0, &err));
  squire_teacher_batch_release(batch);
  pull_all(gen, &said);
  CHECK(strcmp(said.text, "go ea") == 0 && said.end.stop_string == 1);
  CHECK(ended_by(episode, "\"stop_string\":\"st\""));
  squire_gen_release(gen);
  squire_episode_release(episode);
  squire_distiller_release(distiller);
  squire_teacher_release(teacher);
}

/* One flag for many, which the host need not keep. */
static void a_flag_cancels_many(squire_model *model) {
  enum { N = 3 };
  squire_session *sessions[N];
  squire_gen *gens[N];
  squire_gen_options o = saying(0);
  struct said said;
  squire_event e;
  o.repetition_penalty = 1, o.frequency_penalty = 0, o.no_repeat_ngram_size = 0;
  squire_cancel *flag = squire_cancel_create();
  o.cancel = flag;
  for (size_t i = 0; i < N; i++) {
    gens[i] = NULL;
    sessions[i] = prompted(model);
    DONE(squire_gen_start(sessions[i], &o, &gens[i], &err));
  }
  squire_cancel_set(flag);
  squire_cancel_release(flag);
  squire_event_init(&e, sizeof e);
  for (size_t i = 0; i < N; i++) {
    while (squire_gen_next(gens[i], -1, &e, &err) == SQUIRE_OK) {
    }
    CHECK(e.finish == SQUIRE_FINISH_CANCELLED);
    squire_gen_release(gens[i]);
  }
  /* Set before the start nothing is said, and nothing is computed for several. */
  flag = squire_cancel_create();
  squire_cancel_set(flag);
  o.cancel = flag;
  gens[0] = NULL;
  DONE(squire_gen_start(sessions[0], &o, &gens[0], &err));
  pull_all(gens[0], &said);
  CHECK(said.n == 0 && said.end.finish == SQUIRE_FINISH_CANCELLED);
  squire_gen_release(gens[0]);
  gens[0] = NULL;
  squire_session *none = NULL;
  CHECK(squire_gen_start_n(sessions[0], &o, 1, NULL, &none, &gens[0], &err) == SQUIRE_CANCELLED && gens[0] == NULL);
  o.cancel = (const squire_cancel *)sessions[0];
  REFUSED(squire_gen_start(sessions[1], &o, &gens[0], &err), SQUIRE_E_ARGUMENT, SQUIRE_DETAIL_WRONG_HANDLE);
  squire_cancel_release(flag);
  for (size_t i = 0; i < N; i++) {
    squire_session_release(sessions[i]);
  }
}

int main(int argc, char **argv) {
  CHECK(argc == 2);
  squire_engine *engine = make_engine(SQUIRE_DRIVE_THREAD);
  squire_model *model = load(engine, argv[1], 0);
  advice_is_shown_and_followed(model);
  options_out_of_range_are_refused(model);
  a_stop_string_ends_text_and_timeline(model);
  the_likeliest_stand_beside_each_token(model);
  continuations_draw_by_seeds_of_their_own(model);
  episodes_refuse_what_their_settings_do_not_say(model);
  limits_end_a_turn(model);
  a_teacher_is_told_the_stop_strings(model);
  a_flag_cancels_many(model);
  squire_model_release(model);
  squire_engine_release(engine);
  return failures;
}
