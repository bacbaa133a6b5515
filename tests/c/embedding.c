/* What an embedder asks for besides tokens: the model's own way to sample, sizes without JSON, a prompt computed once, where
 * a load and an update stand, and a status where a model says nothing that is finite. Arguments: a folder without a
 * tokenizer, a chat folder that advises temperature 0.6, top_k 20 and top_p 0.95, a folder whose weights
 * are not finite, a folder to write into. */
#include <math.h>
#include <stdlib.h>

#include "helpers.h"

#ifdef SQUIRE_DRILL
size_t squire_drill_live_handles(void);
#endif

enum { PROMPT = 200, SAID = 24 };

static const char *student_folder, *chat_folder, *broken_folder, *scratch;

/* ---- how a model samples where nobody says otherwise ------------------------------------------------------------ */

static squire_gen_options unset(void) {
  squire_gen_options o;
  squire_gen_options_init(&o, sizeof o);
  return o;
}

/* What is said after two ids under these options, NULL allowed; gives the seed. */
static uint64_t say(squire_model *model, const squire_gen_options *options, int32_t said[SAID]) {
  const int32_t ids[] = {104, 105};
  squire_session *session = session_of(model);
  squire_gen *gen = NULL;
  uint64_t seed = SQUIRE_GEN_RANDOM_SEED;
  float logprobs[SAID];
  DONE(squire_session_append(session, ARRAY(ids), &err));
  squire_gen_options o = options ? *options : unset();
  if (options != NULL) {
    o.max_tokens = SAID;
    o.flags = SQUIRE_GEN_IGNORE_MODEL_STOPS;
  }
  DONE(squire_gen_start(session, options ? &o : NULL, &gen, &err));
  DONE(squire_gen_seed(gen, &seed, &err));
  if (options != NULL) {
    CHECK(pull(gen, SQUIRE_FINISH_LENGTH, SQUIRE_ACTOR_STUDENT, said, logprobs, SAID) == SAID);
  }
  squire_gen_release(gen);
  squire_session_release(session);
  return seed;
}

static int same(const int32_t a[SAID], const int32_t b[SAID]) { return memcmp(a, b, SAID * sizeof *a) == 0; }

static void options_left_alone_are_the_models(squire_engine *engine) {
  squire_model *plain = load(engine, student_folder, 0), *chat = load(engine, chat_folder, 0);
  squire_gen_options o = unset();
  CHECK(o.temperature == SQUIRE_GEN_UNSET && o.top_k == SQUIRE_GEN_UNSET && o.top_p == SQUIRE_GEN_UNSET);
  CHECK(o.seed == SQUIRE_GEN_RANDOM_SEED && o.max_tokens == 0 && o.flags == 0 && o.stop_ids == NULL);
  o.max_tokens = 7;
  DONE(squire_gen_options_for(chat, &o, &err));
  CHECK(o.temperature == 0.6f && o.top_k == 20 && o.top_p == 0.95f && o.seed == SQUIRE_GEN_RANDOM_SEED);
  CHECK(o.max_tokens == 0 && o.struct_size == sizeof o);
  DONE(squire_gen_options_for(plain, &o, &err));
  CHECK(o.temperature == 1 && o.top_k == 0 && o.top_p == 1);
  squire_text *info = NULL;
  DONE(squire_model_info(chat, &info, &err));
  CHECK(says(info, "\"generation_defaults\":{\"temperature\":0.6,\"top_k\":20,\"top_p\":0.95,"));

  /* What is left alone is the same as the advice written out, under one seed; the neutral values say something else. */
  int32_t by_model[SAID], written[SAID], neutral[SAID];
  o = unset();
  o.seed = 11;
  CHECK(say(chat, &o, by_model) == 11);
  DONE(squire_gen_options_for(chat, &o, &err));
  o.seed = 11;
  say(chat, &o, written);
  o.temperature = 1, o.top_k = 0, o.top_p = 1;
  say(chat, &o, neutral);
  CHECK(same(by_model, written) && !same(by_model, neutral));

  /* Each field counts for itself: set to the likeliest token alone, the seed says nothing any more. */
  int32_t likeliest[SAID], found[SAID];
  o = unset();
  o.temperature = 0;
  say(chat, &o, likeliest);
  o = unset();
  o.top_k = 1;
  say(chat, &o, found);
  CHECK(same(found, likeliest));
  o = unset();
  o.top_p = 1e-6f;
  say(chat, &o, found);
  CHECK(same(found, likeliest) && !same(found, by_model));
  o = unset();
  o.temperature = 1, o.top_k = 0; /* top_p stays the model's */
  o.seed = 11;
  say(chat, &o, found);
  CHECK(!same(found, neutral) && !same(found, by_model));
  squire_model_release(plain);
  squire_model_release(chat);
}

static void seeds_differ_unless_given_and_repeat_a_run(squire_model *model) {
  int32_t first[SAID], second[SAID], again[SAID];
  squire_gen_options o = unset();
  o.temperature = 1, o.top_k = 0, o.top_p = 1;
  const uint64_t seed = say(model, &o, first), other = say(model, &o, second);
  CHECK(seed != other && !same(first, second) && seed < (uint64_t)1 << 53);
  o.seed = seed;
  CHECK(say(model, &o, again) == seed && same(first, again));
  CHECK(say(model, NULL, again) != say(model, NULL, again));
  o.seed = 0; /* a seed like any other */
  CHECK(say(model, &o, first) == 0 && say(model, &o, second) == 0 && same(first, second));

  const int32_t ids[] = {104};
  squire_session *session = session_of(model);
  squire_gen *gen = NULL;
  DONE(squire_session_append(session, ARRAY(ids), &err));
#define WITH(field, value)                                                                                             \
  o = unset();                                                                                                         \
  o.field = value;                                                                                                     \
  REFUSED(squire_gen_start(session, &o, &gen, &err), SQUIRE_E_ARGUMENT, SQUIRE_DETAIL_BAD_OPTION)
  WITH(temperature, -0.5f);
  WITH(temperature, nanf(""));
  WITH(temperature, 20000.0f);
  WITH(top_p, 0.0f);
  WITH(top_p, nanf(""));
  WITH(top_p, 1.5f);
  WITH(top_k, -2);
#undef WITH
  squire_session_release(session);
}

/* In an evaluation the student samples as its folder advises, unless it is told; in training as the settings say. */
static void an_evaluation_samples_as_the_model_does(squire_engine *engine) {
  squire_model *chat = load(engine, chat_folder, 0);
  squire_distiller *distiller = NULL;
  DONE(squire_distiller_create(chat, NULL, TEXT("{\"preset\": \"sft\"}"), &distiller, &err));
  int32_t said[3][SAID];
  float logprobs[SAID];
  for (int i = 0; i < 3; i++) {
    squire_episode *episode = NULL;
    squire_decision d;
    squire_gen *gen = NULL;
    squire_gen_options o = unset();
    if (i == 1) {
      DONE(squire_gen_options_for(chat, &o, &err));
    } else if (i == 2) {
      o.temperature = 1, o.top_k = 0, o.top_p = 1;
    }
    o.max_tokens = SAID;
    o.flags = SQUIRE_GEN_IGNORE_MODEL_STOPS;
    squire_decision_init(&d, sizeof d);
    DONE(squire_episode_begin(distiller, TEXT("{\"evaluation\": true, \"episode\": 5}"), &episode, &err));
    DONE(squire_episode_observe(episode, TEXT("[{\"role\": \"user\", \"content\": \"hello\"}]"), NULL, &err));
    DONE(squire_episode_decide(episode, &d, &err));
    DONE(squire_episode_act(episode, &o, &gen, &err));
    CHECK(pull(gen, SQUIRE_FINISH_LENGTH, SQUIRE_ACTOR_STUDENT, said[i], logprobs, SAID) == SAID);
    squire_gen_release(gen);
    squire_episode_release(episode);
  }
  CHECK(same(said[0], said[1]) && !same(said[0], said[2]));
  squire_distiller_release(distiller);
  squire_model_release(chat);
}

/* ---- sizes ------------------------------------------------------------------------------------------------------ */

static void sizes_are_asked_without_json(squire_engine *engine) {
  squire_model *plain = load(engine, student_folder, 40), *chat = load(engine, chat_folder, 0);
  uint64_t vocabulary = 0, context = 0, ids = 9;
  DONE(squire_model_sizes(plain, &vocabulary, &context, &ids, &err));
  CHECK(vocabulary == 259 && context == 40 && ids == 0);
  DONE(squire_model_sizes(chat, &vocabulary, NULL, &ids, &err));
  CHECK(vocabulary == 288 && ids > 256 && ids <= 288);
  DONE(squire_model_sizes(chat, NULL, NULL, NULL, &err));
  squire_tokens *stops = NULL;
  size_t n = 9;
  DONE(squire_model_stop_ids(chat, &stops, &err));
  CHECK(squire_tokens_data(stops, &n)[0] == 266 && n == 1);
  squire_tokens_release(stops);

  const int32_t prompt[] = {5, 6, 7};
  uint64_t length = 9, room = 9, pending = 9;
  squire_session *session = session_of(plain);
  DONE(squire_session_length(session, &length, &room, &pending, &err));
  CHECK(length == 0 && room == 40 && pending == 0);
  DONE(squire_session_append(session, ARRAY(prompt), &err));
  DONE(squire_session_length(session, &length, &room, &pending, &err));
  CHECK(length == 3 && room == 37 && pending == 3);
  DONE(squire_session_prefill(session, NULL, NULL, NULL, &err));
  DONE(squire_session_length(session, NULL, NULL, &pending, &err));
  CHECK(pending == 0);
  squire_session_release(session);
  squire_model_release(plain);
  squire_model_release(chat);
}

/* Writes `text` over a file of the checkpoint of step 0; with "" it is removed. */
static void spoil(const char *folder, const char *name, const char *text) {
  char path[4096];
  snprintf(path, sizeof path, "%s/step-00000000/%s", folder, name);
  if (*text == 0) {
    CHECK(remove(path) == 0);
    return;
  }
  FILE *file = fopen(path, "wb");
  CHECK(file != NULL && fputs(text, file) >= 0 && fclose(file) == 0);
}

static void checkpoints_are_found_and_broken_ones_told(squire_model *student, const char *name) {
  char folder[4000];
  uint64_t step = 9;
  squire_distiller *distiller = NULL;
  snprintf(folder, sizeof folder, "%s/%s", scratch, name);
  REFUSED(squire_checkpoint_probe(TEXT(folder), &step, &err), SQUIRE_END, 0); /* no such folder */
  REFUSED(squire_checkpoint_probe(TEXT(scratch), &step, &err), SQUIRE_END, 0); /* nothing in it */
  CHECK(step == 9);
  DONE(squire_distiller_create(student, NULL, TEXT("{\"preset\": \"sft\"}"), &distiller, &err));
  DONE(squire_distiller_save(distiller, TEXT(folder), &err));
  DONE(squire_checkpoint_probe(TEXT(folder), &step, &err));
  CHECK(step == 0);
  DONE(squire_checkpoint_probe(TEXT(folder), NULL, &err));
  spoil(folder, "masters.safetensors", "short");
  REFUSED(squire_checkpoint_probe(TEXT(folder), &step, &err), SQUIRE_E_FORMAT, SQUIRE_DETAIL_CHECKPOINT_FORM);
  spoil(folder, "masters.safetensors", "");
  REFUSED(squire_checkpoint_probe(TEXT(folder), &step, &err), SQUIRE_E_FORMAT, SQUIRE_DETAIL_CHECKPOINT_FORM);
  spoil(folder, "state.json", "{\"version\": 1}");
  REFUSED(squire_checkpoint_probe(TEXT(folder), &step, &err), SQUIRE_E_FORMAT, SQUIRE_DETAIL_CHECKPOINT_FORM);
  snprintf(folder, sizeof folder, "%s/config.json", student_folder);
  REFUSED(squire_checkpoint_probe(TEXT(folder), &step, &err), SQUIRE_E_IO, SQUIRE_DETAIL_CANNOT_READ);
  squire_distiller_release(distiller);
}

/* ---- a prompt computed once ------------------------------------------------------------------------------------- */

typedef struct {
  uint64_t calls, last, total, stop_at;
} watch;

/* Done rises up to total, which stays; the first call says 0. */
static int32_t watch_progress(void *user, const char *phase, size_t phase_len, uint64_t done, uint64_t total) {
  watch *w = user;
  CHECK(phase != NULL && phase_len >= 7 && done <= total);
  CHECK(w->calls == 0 ? done == 0 : done > w->last && total == w->total);
  w->calls++, w->last = done, w->total = total;
  return w->stop_at != 0 && w->calls == w->stop_at;
}

static uint64_t rows_of(const squire_engine *engine) {
  squire_text *text = NULL;
  DONE(squire_engine_metrics(engine, &text, &err));
  const char *at = strstr(squire_text_data(text, NULL), "\"rows\":");
  CHECK(at != NULL);
  const uint64_t rows = at ? strtoull(at + 7, NULL, 10) : 0;
  squire_text_release(text);
  return rows;
}

static void a_prompt_is_computed_once_for_all_its_forks(int32_t drive) {
  squire_engine_options eo;
  squire_engine *engine = NULL;
  squire_engine_options_init(&eo, sizeof eo, SQUIRE_ABI);
  eo.drive = drive;
  eo.max_batch_tokens = 64;
  eo.prefix_budget = 0; /* what the first session computed is to go with it */
  DONE(squire_engine_create(&eo, &engine, &err));
  squire_model *model = load(engine, student_folder, 0);
  int32_t prompt[PROMPT], question[3] = {9, 8, 7};
  for (int i = 0; i < PROMPT; i++) {
    prompt[i] = (i * 37 + 11) % 259;
  }
  /* What a session of its own says. */
  squire_gen_options o = greedy(6);
  o.flags = SQUIRE_GEN_IGNORE_MODEL_STOPS;
  int32_t alone[6], said[6];
  float alone_logprobs[6], logprobs[6];
  squire_gen *gen = NULL;
  squire_session *own = session_of(model), *system = session_of(model), *fork = NULL;
  DONE(squire_session_append(own, ARRAY(prompt), &err));
  DONE(squire_session_append(own, ARRAY(question), &err));
  DONE(squire_gen_start(own, &o, &gen, &err));
  CHECK(pull(gen, SQUIRE_FINISH_LENGTH, SQUIRE_ACTOR_STUDENT, alone, alone_logprobs, 6) == 6);
  squire_gen_release(gen);
  squire_session_release(own);

  watch w = {0, 0, 0, 0};
  DONE(squire_session_append(system, ARRAY(prompt), &err));
  uint64_t before = rows_of(engine);
  DONE(squire_session_prefill(system, NULL, watch_progress, &w, &err));
  CHECK(rows_of(engine) - before == PROMPT && w.calls >= 4 && w.last == PROMPT && w.total == PROMPT);
  DONE(squire_session_prefill(system, NULL, NULL, NULL, &err)); /* nothing is pending */
  CHECK(rows_of(engine) - before == PROMPT);
  for (int i = 0; i < 3; i++) {
    DONE(squire_session_fork(system, &fork, &err));
    DONE(squire_session_append(fork, ARRAY(question), &err));
    before = rows_of(engine);
    DONE(squire_gen_start(fork, &o, &gen, &err));
    CHECK(pull(gen, SQUIRE_FINISH_LENGTH, SQUIRE_ACTOR_STUDENT, said, logprobs, 6) == 6);
    squire_gen_release(gen);
    squire_session_release(fork);
    /* The question, and a row for each token that another one follows: nothing of the prompt. */
    CHECK(rows_of(engine) - before == 3 + 5);
    CHECK(memcmp(said, alone, sizeof said) == 0 && memcmp(logprobs, alone_logprobs, sizeof logprobs) == 0);
  }

  /* Stopped, it keeps what is computed and the ids; gone on with, it computes the rest. */
  squire_session *stopped = session_of(model);
  DONE(squire_session_append(stopped, ARRAY(prompt), &err));
  squire_cancel *cancel = squire_cancel_create();
  squire_cancel_set(cancel);
  REFUSED(squire_session_prefill(stopped, cancel, NULL, NULL, &err), SQUIRE_CANCELLED, 0);
  squire_cancel_release(cancel);
  uint64_t length = 0, pending = 0;
  DONE(squire_session_length(stopped, &length, NULL, &pending, &err));
  CHECK(length == PROMPT && pending == PROMPT);
  for (uint64_t at = 1; at <= 2; at++) {
    watch stop = {0, 0, 0, at};
    REFUSED(squire_session_prefill(stopped, NULL, watch_progress, &stop, &err), SQUIRE_CANCELLED, 0);
  }
  DONE(squire_session_length(stopped, &length, NULL, &pending, &err));
  CHECK(length == PROMPT && pending < PROMPT);
  DONE(squire_session_prefill(stopped, NULL, NULL, NULL, &err));
  DONE(squire_session_append(stopped, ARRAY(question), &err));
  DONE(squire_gen_start(stopped, &o, &gen, &err));
  CHECK(pull(gen, SQUIRE_FINISH_LENGTH, SQUIRE_ACTOR_STUDENT, said, logprobs, 6) == 6);
  CHECK(memcmp(said, alone, sizeof said) == 0 && memcmp(logprobs, alone_logprobs, sizeof logprobs) == 0);
  squire_gen_release(gen);
  squire_session_release(stopped);
  squire_session_release(system);
  squire_model_release(model);
  squire_engine_release(engine);
}

/* ---- where a load and an update stand --------------------------------------------------------------------------- */

typedef struct {
  char text[8192];
  size_t n;
} lines;

static void hear(void *user, int32_t level, const char *target, size_t target_len, const char *message, size_t len) {
  lines *l = user;
  CHECK(level == 2 && target_len > 0 && target != NULL);
  if (l->n + len + 2 < sizeof l->text) {
    memcpy(l->text + l->n, message, len);
    l->n += len;
    l->text[l->n++] = '\n';
    l->text[l->n] = 0;
  }
}

static int heard(const lines *l, const char *piece) {
  if (strstr(l->text, piece) == NULL) {
    fprintf(stderr, "no %s in\n%s", piece, l->text);
    return 0;
  }
  return 1;
}

static void loads_and_updates_say_where_they_stand(void) {
  static lines l;
  squire_engine_options eo;
  squire_engine *engine = NULL;
  squire_engine_options_init(&eo, sizeof eo, SQUIRE_ABI);
  eo.drive = SQUIRE_DRIVE_CALLER; /* one thread writes */
  eo.log = hear;
  eo.log_user = &l;
  DONE(squire_engine_create(&eo, &engine, &err));
  for (uint32_t flags = 0; flags <= SQUIRE_MODEL_COPY; flags += SQUIRE_MODEL_COPY) {
    squire_model_options o;
    squire_model *model = NULL;
    watch w = {0, 0, 0, 0};
    squire_model_options_init(&o, sizeof o);
    o.path = chat_folder;
    o.path_len = strlen(chat_folder);
    o.flags = flags;
    o.progress = watch_progress;
    o.progress_user = &w;
    l.n = 0;
    DONE(squire_model_load(engine, &o, NULL, &model, &err));
    CHECK(w.calls >= 2 && w.last == w.total && w.total > 0);
    CHECK(heard(&l, "documents: ") && heard(&l, flags ? " bytes copied, " : " bytes mapped, "));
    CHECK(heard(&l, "tokenizer: ") && heard(&l, "ready: ") && heard(&l, chat_folder) && heard(&l, " s\n"));
    squire_model_release(model);
    const uint64_t calls = w.calls;
    for (uint64_t at = 1; at <= calls; at++) { /* stopped at each of them, the last included */
      watch stop = {0, 0, 0, at};
      o.progress_user = &stop;
      model = NULL;
      REFUSED(squire_model_load(engine, &o, NULL, &model, &err), SQUIRE_CANCELLED, 0);
      CHECK(model == NULL && stop.calls == at);
    }
  }

  squire_model *model = load(engine, chat_folder, 0);
  squire_distiller *distiller = NULL;
  squire_episode *episode = NULL;
  squire_decision d;
  squire_update *update = NULL;
  squire_decision_init(&d, sizeof d);
  DONE(squire_distiller_create(model, NULL, TEXT("{\"preset\": \"sft\", \"steps\": 4}"), &distiller, &err));
  DONE(squire_episode_begin(distiller, TEXT("{\"demonstration\": [\"hello\"]}"), &episode, &err));
  DONE(squire_episode_observe(episode, TEXT("[{\"role\": \"user\", \"content\": \"hello\"}]"), NULL, &err));
  DONE(squire_episode_decide(episode, &d, &err));
  DONE(squire_episode_replay_stored(episode, &err));
  DONE(squire_episode_outcome(episode, 0, 0, &err));
  DONE(squire_episode_end(episode, 1, 1, &err));
  squire_episode_release(episode);
  l.n = 0;
  DONE(squire_update_build(distiller, 0, NULL, NULL, NULL, &update, &err));
  CHECK(heard(&l, "update of step 0 built: loss ") && heard(&l, " tokens of 1 episodes, ") && heard(&l, " s\n"));
  l.n = 0;
  DONE(squire_update_apply(distiller, update, &err));
  CHECK(heard(&l, "step 1 of 4 applied: ") && heard(&l, " s\n"));
  l.n = 0;
  l.text[0] = 0;
  squire_update *none = NULL;
  REFUSED(squire_update_build(distiller, 0, NULL, NULL, NULL, &none, &err), SQUIRE_E_STATE,
          SQUIRE_DETAIL_NOTHING_TO_LEARN);
  CHECK(l.n == 0); /* what failed is told by its status */
  squire_update_release(update);
  squire_distiller_release(distiller);
  squire_model_release(model);
  squire_engine_release(engine);
}

/* ---- logits that are not finite --------------------------------------------------------------------------------- */

static void a_model_that_is_not_finite_says_so(squire_engine *engine) {
  squire_model *model = load(engine, broken_folder, 0);
  squire_session *session = session_of(model);
  const int32_t ids[] = {104, 105};
  squire_gen *gen = NULL;
  squire_event e;
  squire_event_init(&e, sizeof e);
  DONE(squire_session_append(session, ARRAY(ids), &err));
  for (int greedily = 0; greedily < 2; greedily++) {
    squire_gen_options o = unset();
    o.max_tokens = 4;
    o.temperature = greedily ? 0 : 1;
    DONE(squire_gen_start(session, &o, &gen, &err));
    REFUSED(squire_gen_next(gen, -1, &e, &err), SQUIRE_E_DIVERGED, SQUIRE_DETAIL_NOT_FINITE);
    REFUSED(squire_gen_next(gen, -1, &e, &err), SQUIRE_END, 0);
    CHECK(e.kind == SQUIRE_EVENT_END && e.finish == SQUIRE_FINISH_FAILED);
    squire_gen_release(gen);
  }
  squire_scores *scores = NULL;
  REFUSED(squire_score(session, ids, 2, 1, NULL, &scores, &err), SQUIRE_E_DIVERGED, SQUIRE_DETAIL_NOT_FINITE);
  uint64_t length = 0;
  DONE(squire_session_length(session, &length, NULL, NULL, &err));
  CHECK(length == 2 && scores == NULL);
  DONE(squire_session_truncate(session, 1, &err)); /* it is idle and takes calls */
  squire_session_release(session);

  squire_distiller *distiller = NULL;
  squire_decision d;
  squire_decision_init(&d, sizeof d);
  DONE(squire_distiller_create(model, NULL, TEXT("{\"preset\": \"sft\"}"), &distiller, &err));
  for (int handed_over = 0; handed_over < 2; handed_over++) {
    squire_episode *episode = NULL;
    DONE(squire_episode_begin(distiller, TEXT("{}"), &episode, &err));
    DONE(squire_episode_observe_ids(episode, ARRAY(ids), &err));
    DONE(squire_episode_override(episode, SQUIRE_ACTOR_STUDENT, &d, &err));
    DONE(squire_episode_act(episode, NULL, &gen, &err));
    REFUSED(squire_gen_next(gen, -1, &e, &err), SQUIRE_E_DIVERGED, SQUIRE_DETAIL_NOT_FINITE);
    squire_gen_release(gen);
    DONE(squire_episode_decide(episode, &d, &err));
    CHECK(d.actor == SQUIRE_ACTOR_STUDENT);
    if (handed_over) {
      DONE(squire_episode_override(episode, SQUIRE_ACTOR_REPLAY, &d, &err));
      DONE(squire_episode_replay_ids(episode, ARRAY(ids), &err));
      DONE(squire_episode_outcome(episode, 0, 0, &err));
    }
    DONE(squire_episode_end(episode, 0, 0, &err));
    squire_episode_release(episode);
  }
  squire_distiller_release(distiller);
  squire_model_release(model);
}

int main(int argc, char **argv) {
  CHECK(argc == 5);
  student_folder = argv[1], chat_folder = argv[2], broken_folder = argv[3], scratch = argv[4];
  const int32_t drives[] = {SQUIRE_DRIVE_THREAD, SQUIRE_DRIVE_CALLER};
  for (int i = 0; i < 2; i++) {
    squire_engine *engine = make_engine(drives[i]);
    squire_model *student = load(engine, student_folder, 0);
    options_left_alone_are_the_models(engine);
    seeds_differ_unless_given_and_repeat_a_run(student);
    an_evaluation_samples_as_the_model_does(engine);
    sizes_are_asked_without_json(engine);
    checkpoints_are_found_and_broken_ones_told(student, i == 0 ? "first" : "second");
    a_prompt_is_computed_once_for_all_its_forks(drives[i]);
    a_model_that_is_not_finite_says_so(engine);
    squire_model_release(student);
    squire_engine_release(engine);
  }
  loads_and_updates_say_where_they_stand();
#ifdef SQUIRE_DRILL
  CHECK(squire_drill_live_handles() == 0);
#endif
  return failures;
}
