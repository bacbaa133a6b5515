/* A run that is written down, from C: recorded, read back by arrays, learnt from again, and gone back from. */
#include <math.h>

#include "helpers.h"

static const char settings[] = "{\"preset\": \"sft\", \"batch_episodes\": 2, \"rollback_revisions\": 2, "
                               "\"optimizer\": {\"learning_rate\": 0.001}}";
static const int32_t shown[] = {5, 6, 7}, said[] = {8, 9};

static squire_distiller *distiller_of(squire_model *student) {
  squire_distiller *distiller = NULL;
  DONE(squire_distiller_create(student, NULL, TEXT(settings), &distiller, &err));
  return distiller;
}

static void play(squire_distiller *distiller) {
  static const char spec[] = "{\"task\": \"t\", \"panel\": \"p\", \"task_seed\": 3}";
  squire_episode *episode = NULL;
  squire_decision decision;
  squire_decision_init(&decision, sizeof decision);
  DONE(squire_episode_begin(distiller, TEXT(spec), &episode, &err));
  DONE(squire_episode_observe_ids(episode, ARRAY(shown), &err));
  DONE(squire_episode_decide(episode, &decision, &err));
  DONE(squire_episode_replay_ids(episode, ARRAY(said), &err));
  DONE(squire_episode_outcome(episode, 0.5, SQUIRE_OUTCOME_HAS_REWARD, &err));
  squire_trajectory *so_far = NULL;
  size_t n = 0;
  DONE(squire_episode_trajectory(episode, &so_far, &err));
  CHECK(squire_trajectory_ids(so_far, &n)[3] == 8 && n == 5);
  squire_trajectory_release(so_far);
  DONE(squire_episode_end(episode, 1, 1, &err));
  squire_episode_release(episode);
}

/* Builds, applies and publishes; the loss goes to a text of the report, the revision is given. */
static uint64_t learn(squire_distiller *distiller, squire_text **report) {
  squire_update *update = NULL;
  uint64_t revision = 0;
  DONE(squire_update_build(distiller, 0, NULL, NULL, NULL, &update, &err));
  DONE(squire_update_apply(distiller, update, &err));
  DONE(squire_update_report(update, report, &err));
  squire_update_release(update);
  DONE(squire_distiller_publish(distiller, &revision, &err));
  return revision;
}

static void read_back(const squire_record *record) {
  squire_trajectory *t = NULL;
  squire_text *info = NULL;
  size_t count = 0, n = 0;
  DONE(squire_record_count(record, &count, &err));
  CHECK(count == 2);
  DONE(squire_record_info(record, &info, &err));
  CHECK(says(info, "\"superseded\":0"));
  DONE(squire_record_episode(record, 1, &t, &err));
  const int32_t *ids = squire_trajectory_ids(t, &n);
  CHECK(n == 5 && ids[2] == 7 && ids[4] == 9);
  const uint8_t *sources = squire_trajectory_sources(t, &n);
  CHECK(n == 5 && sources[2] == SQUIRE_SOURCE_HOST && sources[3] == SQUIRE_SOURCE_REPLAY);
  const float *logprobs = squire_trajectory_logprobs(t, &n), *drawn = squire_trajectory_sampled_logprobs(t, NULL);
  CHECK(n == 5 && isnan(logprobs[4]) && isnan(drawn[4]));
  squire_trajectory_teacher_logprobs(t, &n);
  CHECK(n == 0);
  squire_trajectory_teacher_top_ids(t, &n);
  CHECK(n == 0);
  squire_trajectory_teacher_top_logprobs(t, &n);
  CHECK(n == 0);
  const char *json = squire_trajectory_json(t, &n);
  CHECK(strlen(json) == n && strstr(json, "\"panel\":\"p\"") != NULL && strstr(json, "\"reward\":0.5") != NULL);
  squire_trajectory_release(t);
  REFUSED(squire_record_episode(record, 2, &t, &err), SQUIRE_E_ARGUMENT, SQUIRE_DETAIL_BAD_LENGTH);
  CHECK(squire_trajectory_ids(NULL, &n) == NULL && n == 0 && squire_trajectory_json(NULL, NULL) == NULL);
}

int main(int argc, char **argv) {
  squire_record *record = NULL;
  squire_text *first = NULL, *again = NULL, *told = NULL;
  CHECK(argc == 3);
  squire_engine *engine = make_engine(SQUIRE_DRIVE_THREAD);
  squire_model *student = load(engine, argv[1], 0), *fresh = load(engine, argv[1], 0);
  squire_distiller *distiller = distiller_of(student), *other = distiller_of(fresh);
  DONE(squire_distiller_record(distiller, argv[2], strlen(argv[2]), "{}", 2, &err));
  REFUSED(squire_distiller_record(other, argv[2], strlen(argv[2]), "{}", 2, &err), SQUIRE_E_BUSY,
          SQUIRE_DETAIL_RECORD_IN_USE);
  play(distiller);
  play(distiller);
  DONE(squire_distiller_record(distiller, NULL, 0, NULL, 0, &err)); /* no more */
  const uint64_t revision = learn(distiller, &first);
  REFUSED(squire_distiller_record(other, argv[2], strlen(argv[2]), "{}", 2, &err), SQUIRE_E_MISMATCH,
          SQUIRE_DETAIL_RECORD_MISMATCH);

  DONE(squire_record_open(argv[2], strlen(argv[2]), &record, &err));
  read_back(record);
  DONE(squire_distiller_import(other, record, 0, &told, &err));
  CHECK(says(told, "\"episodes\":2"));
  DONE(squire_distiller_import(other, record, 0, &told, &err));
  CHECK(says(told, "\"known\":2"));
  CHECK(learn(other, &again) == revision);
  /* The same numbers, up to the time that they took. */
  const char *a = squire_text_data(first, NULL), *b = squire_text_data(again, NULL);
  CHECK(strncmp(a, b, (size_t)(strstr(a, "\"compared\"") - a)) == 0);

  uint64_t back = 0;
  REFUSED(squire_distiller_rollback(distiller, 99, &back, &err), SQUIRE_E_ARGUMENT, SQUIRE_DETAIL_UNKNOWN_REVISION);
  DONE(squire_distiller_rollback(distiller, revision - 1, &back, &err));
  CHECK(back == revision + 1);
  DONE(squire_distiller_metrics(distiller, &told, &err));
  CHECK(says(told, "\"kept_for_rollback\":["));
  squire_text_release(first);
  squire_text_release(again);
  squire_record_release(record);
  squire_distiller_release(distiller);
  squire_distiller_release(other);
  squire_model_release(student);
  squire_model_release(fresh);
  squire_engine_release(engine);
  return failures;
}
