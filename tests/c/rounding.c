/* Bits do not depend on the host's floating-point environment: the same run under every rounding mode, and under traps
 * that kill whoever divides 0 by 0, gives the same reports, tokens and weights; and the host finds its environment again,
 * in its callbacks and after every call. */
#define _GNU_SOURCE
#include <fenv.h>
#include <stdlib.h>

#include "check.h"

static int mode, traps;

static int is_the_hosts(void) {
  return fegetround() == mode && fegetexcept() == traps && fetestexcept(FE_ALL_EXCEPT) == 0;
}

/* A call, and the environment after it. */
#define KEPT(call)                                                                                                     \
  do {                                                                                                                 \
    DONE(call);                                                                                                        \
    CHECK(is_the_hosts());                                                                                             \
  } while (0)

static int heard;

static int32_t progress(void *user, const char *phase, size_t phase_len, uint64_t done, uint64_t total) {
  (void)user, (void)phase, (void)phase_len, (void)done, (void)total;
  CHECK(is_the_hosts());
  heard++;
  return 0;
}

static squire_model *load(squire_engine *engine, const char *path) {
  squire_model_options o;
  squire_model *model = NULL;
  squire_model_options_init(&o, sizeof o);
  o.path = path, o.path_len = strlen(path);
  o.progress = progress;
  KEPT(squire_model_load(engine, &o, NULL, &model, &err));
  return model;
}

/* What a run gives: tokens and reports as text, and the learnt weights. */
typedef struct {
  char text[1 << 16];
  size_t len, bytes;
  char *weights;
} results;

static void note(results *r, const char *text, size_t len) {
  CHECK(r->len + len <= sizeof r->text);
  memcpy(r->text + r->len, text, len);
  r->len += len;
}

static void play(squire_distiller *distiller, results *r) {
  const int32_t prompt[] = {10, 11, 12}, next[] = {20, 21};
  squire_episode *episode = NULL;
  KEPT(squire_episode_begin(distiller, TEXT("{}"), &episode, &err));
  KEPT(squire_episode_observe_ids(episode, prompt, 3, &err));
  for (int turn = 0; turn < 3; turn++) {
    squire_decision d;
    squire_gen_options o;
    squire_event event;
    squire_gen *gen = NULL;
    squire_status status;
    squire_error *err = NULL;
    squire_decision_init(&d, sizeof d);
    squire_gen_options_init(&o, sizeof o);
    squire_event_init(&event, sizeof event);
    o.max_tokens = 5;
    KEPT(squire_episode_decide(episode, &d, &err));
    note(r, (const char *)&d.probability, sizeof d.probability);
    KEPT(squire_episode_act(episode, &o, &gen, &err));
    while ((status = squire_gen_next(gen, -1, &event, &err)) == SQUIRE_OK) {
      CHECK(is_the_hosts());
      for (size_t i = 0; i < event.ids_len; i++) {
        note(r, (const char *)&event.ids[i], sizeof *event.ids);
        note(r, (const char *)&event.logprobs[i], sizeof *event.logprobs);
        note(r, (const char *)&event.sampled_logprobs[i], sizeof *event.sampled_logprobs);
      }
    }
    CHECK(status == SQUIRE_END && err == NULL);
    squire_gen_release(gen);
    KEPT(squire_episode_outcome(episode, 0.1, SQUIRE_OUTCOME_HAS_REWARD, &err));
    KEPT(squire_episode_observe_ids(episode, next, 2, &err));
  }
  KEPT(squire_episode_end(episode, 1, 1, &err));
  squire_episode_release(episode);
}

static void read_weights(const char *folder, results *r) {
  char path[8192];
  snprintf(path, sizeof path, "%s/model.safetensors", folder);
  FILE *file = fopen(path, "rb");
  CHECK(file != NULL);
  if (file == NULL) {
    return;
  }
  fseek(file, 0, SEEK_END);
  r->bytes = (size_t)ftell(file);
  rewind(file);
  r->weights = malloc(r->bytes);
  CHECK(r->weights != NULL && fread(r->weights, 1, r->bytes, file) == r->bytes);
  fclose(file);
}

static void run(char **argv, int32_t drive, int rounding, int trapped, results *r) {
  static const char settings[] =
      "{\"preset\": \"guided-opd\", \"steps\": 3, \"actor\": {\"kind\": \"bernoulli\", \"beta\": {\"start\": 0.7, \"end\": "
      "0.1, \"shape\": \"cosine\", \"finish\": 0.9, \"clock\": \"fraction\"}}, \"sampling\": {\"temperature\": 0.9, "
      "\"top_p\": 0.95}, \"normaliser\": \"turn-mean\", \"optimizer\": {\"learning_rate\": {\"start\": 0.01, \"end\": "
      "0.001, \"shape\": \"exp\", \"finish\": 3}, \"weight_decay\": 0.01, \"grad_clip\": 0.3}}";
  char out[4096];
  squire_engine_options eo;
  squire_engine *engine = NULL;
  squire_distiller *distiller = NULL;
  mode = rounding, traps = trapped, r->len = 0;
  fesetround(mode);
  feclearexcept(FE_ALL_EXCEPT);
  feenableexcept(traps);
  squire_engine_options_init(&eo, sizeof eo, SQUIRE_ABI);
  eo.threads = 2, eo.drive = drive;
  KEPT(squire_engine_create(&eo, &engine, &err));
  squire_model *student = load(engine, argv[1]), *teacher = load(engine, argv[2]);
  KEPT(squire_distiller_create(student, teacher, TEXT(settings), &distiller, &err));
  for (int step = 0; step < 3; step++) {
    squire_update *update = NULL;
    squire_text *text = NULL;
    for (int i = 0; i < 3; i++) {
      play(distiller, r);
    }
    heard = 0;
    KEPT(squire_update_build(distiller, 0, NULL, progress, NULL, &update, &err));
    CHECK(heard > 0);
    KEPT(squire_update_apply(distiller, update, &err));
    KEPT(squire_update_report(update, &text, &err));
    const char *report = squire_text_data(text, NULL), *seconds = strstr(report, "\"seconds\"");
    CHECK(seconds != NULL);
    note(r, report, seconds == NULL ? 0 : (size_t)(seconds - report));
    squire_text_release(text);
    squire_update_release(update);
    KEPT(squire_distiller_publish(distiller, NULL, &err));
    KEPT(squire_distiller_metrics(distiller, &text, &err));
    /* Up to the revisions that live: one may still be let go of. */
    const char *metrics = squire_text_data(text, NULL), *revision = strstr(metrics, "\"revision\"");
    CHECK(revision != NULL);
    note(r, metrics, revision == NULL ? 0 : (size_t)(revision - metrics));
    squire_text_release(text);
  }
  snprintf(out, sizeof out, "%s/%d-%d-%d", argv[3], mode, traps, drive);
  KEPT(squire_model_save(student, out, strlen(out), &err));
  squire_distiller_release(distiller);
  squire_model_release(student);
  squire_model_release(teacher);
  squire_engine_release(engine);
  CHECK(is_the_hosts());
  fedisableexcept(FE_ALL_EXCEPT);
  fesetround(FE_TONEAREST);
  read_weights(out, r);
}

int main(int argc, char **argv) {
  static results wanted, found;
  const int modes[] = {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO, FE_TONEAREST};
  if (argc != 4) {
    return 2;
  }
  run(argv, SQUIRE_DRIVE_THREAD, FE_TONEAREST, 0, &wanted);
  for (int drive = 0; drive < 2; drive++) {
    for (int i = 0; i < 4; i++) {
      const int trapped = i == 3 || drive == 1 ? FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW : 0;
      run(argv, drive == 0 ? SQUIRE_DRIVE_THREAD : SQUIRE_DRIVE_CALLER, modes[i], trapped, &found);
      CHECK(found.len == wanted.len && memcmp(found.text, wanted.text, wanted.len) == 0);
      CHECK(found.bytes == wanted.bytes && memcmp(found.weights, wanted.weights, wanted.bytes) == 0);
      free(found.weights);
    }
  }
  free(wanted.weights);
  return failures;
}
