/* The host lives on when calls panic, when it forks, and when it leaks nothing: against a build with drill entries. */
#include <stdatomic.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

squire_status squire_drill_panic(squire_error **err);
squire_status squire_drill_panic_out(squire_text **out, squire_error **err);
squire_status squire_drill_panic_on(squire_cancel *cancel, squire_error **err);
squire_status squire_drill_touch(const squire_cancel *cancel, squire_error **err);
squire_status squire_drill_panic_in_steps(squire_engine *engine, squire_error **err);
size_t squire_drill_live_handles(void);

static void a_panic_is_a_status_with_its_message(void) {
  squire_error *err = NULL;
  CHECK(squire_drill_panic(&err) == SQUIRE_E_PANIC);
  CHECK(squire_error_detail(err) == SQUIRE_DETAIL_PANIC);
  CHECK(strstr(squire_error_message(err, NULL), "a drill") != NULL);
  CHECK(strstr(squire_error_message(err, NULL), "drill.rs:") != NULL);
  squire_error_release(err);
  CHECK(squire_drill_panic(NULL) == SQUIRE_E_PANIC);
}

static void a_panic_leaves_the_out_parameter_null(void) {
  int stale = 0;
  squire_text *out = (squire_text *)(void *)&stale;
  CHECK(squire_drill_panic_out(&out, NULL) == SQUIRE_E_PANIC);
  CHECK(out == NULL);
}

static void a_panic_poisons_its_object_until_release(void) {
  squire_error *err = NULL;
  squire_cancel *cancel = squire_cancel_create();
  CHECK(squire_drill_touch(cancel, NULL) == SQUIRE_OK);
  CHECK(squire_drill_panic_on(cancel, NULL) == SQUIRE_E_PANIC);
  CHECK(squire_drill_touch(cancel, &err) == SQUIRE_E_POISONED);
  CHECK(squire_error_detail(err) == SQUIRE_DETAIL_POISONED);
  squire_error_release(err);
  squire_cancel_release(cancel);
}

static void a_forked_child_is_refused_and_the_parent_is_not(void) {
  squire_cancel *cancel = squire_cancel_create();
  pid_t child = fork();
  if (child == 0) {
    squire_error *err = NULL;
    CHECK(squire_drill_touch(cancel, &err) == SQUIRE_E_STATE);
    CHECK(squire_error_detail(err) == SQUIRE_DETAIL_AFTER_FORK);
    squire_error_release(err);
    squire_cancel_release(cancel); /* does nothing here */
    CHECK(squire_drill_touch(cancel, NULL) == SQUIRE_E_STATE);
    squire_cancel *own = squire_cancel_create();
    CHECK(squire_drill_touch(own, NULL) == SQUIRE_OK);
    squire_cancel_release(own);
    _exit(failures);
  }
  int status = 1;
  CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
  CHECK(squire_drill_touch(cancel, NULL) == SQUIRE_OK);
  squire_cancel_release(cancel);
}

static void count_errors(void *user, int32_t level, const char *target, size_t target_len, const char *message,
                         size_t len) {
  (void)target, (void)target_len, (void)message, (void)len;
  *(int *)user += level == 0;
}

/* Whatever runs when a step panics fails; the engine and its sessions answer POISONED from then on; the host lives. */
static void a_panic_in_a_step_poisons_the_engine(const char *folder, int32_t drive) {
  squire_engine_options eo;
  squire_model_options mo;
  squire_engine *engine = NULL;
  squire_model *model = NULL, *more = NULL;
  squire_session *session = NULL, *idle = NULL;
  squire_gen *gen = NULL;
  squire_scores *scores = NULL;
  squire_event e;
  const int32_t ids[] = {5, 6};
  int errors = 0;
  squire_engine_options_init(&eo, sizeof eo, SQUIRE_ABI);
  squire_model_options_init(&mo, sizeof mo);
  squire_event_init(&e, sizeof e);
  eo.drive = drive;
  eo.log = count_errors;
  eo.log_user = &errors;
  mo.path = folder;
  mo.path_len = strlen(folder);
  DONE(squire_engine_create(&eo, &engine, &err));
  DONE(squire_model_load(engine, &mo, NULL, &model, &err));
  DONE(squire_session_create(model, &session, &err));
  DONE(squire_session_create(model, &idle, &err));
  DONE(squire_session_append(session, ARRAY(ids), &err));
  DONE(squire_session_append(idle, ARRAY(ids), &err));

  DONE(squire_drill_panic_in_steps(engine, &err));
  DONE(squire_gen_start(session, NULL, &gen, &err));
  REFUSED(squire_gen_next(gen, -1, &e, &err), SQUIRE_E_PANIC, SQUIRE_DETAIL_PANIC);
  CHECK(squire_gen_next(gen, -1, &e, NULL) == SQUIRE_END);
  REFUSED(squire_session_append(session, ARRAY(ids), &err), SQUIRE_E_POISONED, SQUIRE_DETAIL_POISONED);
  DONE(squire_session_append(idle, ARRAY(ids), &err)); /* what did not run is whole, though nothing computes it */
  REFUSED(squire_score(idle, ARRAY(ids), 0, NULL, &scores, &err), SQUIRE_E_POISONED, SQUIRE_DETAIL_POISONED);
  REFUSED(squire_model_load(engine, &mo, NULL, &more, &err), SQUIRE_E_POISONED, SQUIRE_DETAIL_POISONED);
  if (drive == SQUIRE_DRIVE_CALLER) {
    REFUSED(squire_engine_step(engine, &err), SQUIRE_E_POISONED, SQUIRE_DETAIL_POISONED);
  }
  squire_gen_release(gen);
  squire_session_release(session);
  squire_session_release(idle);
  squire_model_release(model);
  squire_engine_release(engine);
  CHECK(errors == 1);

  eo.drive = SQUIRE_DRIVE_THREAD; /* and a new engine works */
  engine = NULL;
  DONE(squire_engine_create(&eo, &engine, &err));
  squire_engine_release(engine);
}

/* What is cancelled without a round ends under the same guard. */
static void a_panic_while_a_release_ends_its_generation_is_the_engines(const char *folder) {
  squire_engine_options eo;
  squire_engine *engine = NULL;
  squire_session *session = NULL;
  squire_gen *gen = NULL;
  const int32_t ids[] = {5, 6};
  int errors = 0;
  squire_engine_options_init(&eo, sizeof eo, SQUIRE_ABI);
  eo.drive = SQUIRE_DRIVE_CALLER;
  eo.log = count_errors;
  eo.log_user = &errors;
  DONE(squire_engine_create(&eo, &engine, &err));
  squire_model_options mo;
  squire_model *model = NULL;
  squire_model_options_init(&mo, sizeof mo);
  mo.path = folder;
  mo.path_len = strlen(folder);
  DONE(squire_model_load(engine, &mo, NULL, &model, &err));
  DONE(squire_session_create(model, &session, &err));
  DONE(squire_session_append(session, ARRAY(ids), &err));
  DONE(squire_gen_start(session, NULL, &gen, &err));
  DONE(squire_drill_panic_in_steps(engine, &err));
  squire_gen_release(gen);
  CHECK(errors == 1);
  REFUSED(squire_engine_step(engine, &err), SQUIRE_E_POISONED, SQUIRE_DETAIL_POISONED);
  REFUSED(squire_session_append(session, ARRAY(ids), &err), SQUIRE_E_POISONED, SQUIRE_DETAIL_POISONED);
  squire_session_release(session);
  squire_model_release(model);
  squire_engine_release(engine);
}

/* A host that lets go of everything in the log line of the engine's own thread. */
typedef struct {
  squire_gen *gen;
  squire_session *session;
  atomic_size_t released;
} held;

static void release_all(void *user, int32_t level, const char *target, size_t target_len, const char *message, size_t len) {
  held *all = (held *)user;
  (void)target, (void)target_len, (void)message, (void)len;
  if (level == 0) {
    squire_gen_release(all->gen);
    squire_session_release(all->session);
    atomic_store(&all->released, 1);
  }
}

static void a_release_inside_a_log_line_of_the_engines_thread_does_not_hang(const char *folder) {
  squire_engine_options eo;
  squire_engine *engine = NULL;
  squire_session *first = NULL;
  squire_gen *gen = NULL;
  squire_event e;
  held all = {NULL, NULL, 0};
  const int32_t ids[] = {5, 6};
  squire_engine_options_init(&eo, sizeof eo, SQUIRE_ABI);
  squire_event_init(&e, sizeof e);
  eo.log = release_all;
  eo.log_user = &all;
  DONE(squire_engine_create(&eo, &engine, &err));
  squire_model_options mo;
  squire_model *model = NULL;
  squire_model_options_init(&mo, sizeof mo);
  mo.path = folder;
  mo.path_len = strlen(folder);
  DONE(squire_model_load(engine, &mo, NULL, &model, &err));
  DONE(squire_session_create(model, &first, &err));
  DONE(squire_session_create(model, &all.session, &err));
  DONE(squire_session_append(first, ARRAY(ids), &err));
  DONE(squire_session_append(all.session, ARRAY(ids), &err));
  DONE(squire_gen_start(all.session, NULL, &all.gen, &err));
  DONE(squire_drill_panic_in_steps(engine, &err));
  squire_gen_start(first, NULL, &gen, NULL); /* if the first has run out already, this one panics */
  if (gen != NULL) {
    squire_gen_next(gen, -1, &e, NULL);
  }
  squire_gen_release(gen);
  squire_session_release(first);
  squire_model_release(model);
  squire_engine_release(engine);
  /* The generation's end is told before the log line is written, and the session that the line lets go of keeps the
   * engine's thread alive: nothing else waits for it. */
  const struct timespec a_while = {0, 1000 * 1000};
  for (int i = 0; i < 30 * 1000 && !atomic_load(&all.released); i++) {
    nanosleep(&a_while, NULL);
  }
  CHECK(atomic_load(&all.released));
}

int main(int argc, char **argv) {
  CHECK(argc == 2);
  a_panic_is_a_status_with_its_message();
  a_panic_leaves_the_out_parameter_null();
  a_panic_poisons_its_object_until_release();
  a_forked_child_is_refused_and_the_parent_is_not();
  a_panic_in_a_step_poisons_the_engine(argv[1], SQUIRE_DRIVE_THREAD);
  a_panic_in_a_step_poisons_the_engine(argv[1], SQUIRE_DRIVE_CALLER);
  a_panic_while_a_release_ends_its_generation_is_the_engines(argv[1]);
  a_release_inside_a_log_line_of_the_engines_thread_does_not_hang(argv[1]);
  CHECK(squire_drill_live_handles() == 0);
  return failures;
}
