/* A host whose threads use squire all the time forks again and again; each child makes an engine of its own and generates. */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "helpers.h"

static const char *folder;
static volatile int stop;

static squire_engine *engine_with(int threads, int drive) {
  squire_engine_options o;
  squire_engine *engine = NULL;
  squire_engine_options_init(&o, sizeof o, SQUIRE_ABI);
  o.threads = threads, o.drive = drive;
  return squire_engine_create(&o, &engine, NULL) == SQUIRE_OK ? engine : NULL;
}

static squire_model *model_of(squire_engine *engine) {
  squire_model_options o;
  squire_model *model = NULL;
  squire_model_options_init(&o, sizeof o);
  o.path = folder, o.path_len = strlen(folder);
  return squire_model_load(engine, &o, NULL, &model, NULL) == SQUIRE_OK ? model : NULL;
}

/* Whether a few tokens come. */
static int generates(squire_model *model) {
  const int32_t ids[] = {5, 6};
  squire_session *session = NULL;
  squire_gen *gen = NULL;
  squire_gen_options o;
  squire_event e;
  int status = squire_session_create(model, &session, NULL);
  squire_gen_options_init(&o, sizeof o);
  squire_event_init(&e, sizeof e);
  o.max_tokens = 3;
  if (status == SQUIRE_OK) status = squire_session_append(session, ids, 2, NULL);
  if (status == SQUIRE_OK) status = squire_gen_start(session, &o, &gen, NULL);
  while (status == SQUIRE_OK) status = squire_gen_next(gen, -1, &e, NULL);
  squire_gen_release(gen);
  squire_session_release(session);
  return status == SQUIRE_END;
}

static void *use(void *model) {
  while (!stop) {
    if (!generates((squire_model *)model)) return model;
  }
  return NULL;
}

/* A session of an engine that nobody drives, and what it is to generate. */
static squire_session *asked;
static squire_gen *answer;

static void *ask(void *unused) {
  (void)unused;
  while (!stop) {
    squire_tokens *tokens = NULL;
    squire_session_tokens(asked, &tokens, NULL); /* it is busy */
    squire_tokens_release(tokens);
  }
  return NULL;
}

static int child(void) {
  squire_gen_cancel(answer);
  squire_gen_release(answer); /* the parent's: nothing happens */
  squire_session_release(asked);
  squire_engine *engine = engine_with(2, SQUIRE_DRIVE_THREAD);
  squire_model *model = engine ? model_of(engine) : NULL;
  int good = model && generates(model);
  squire_model_release(model);
  squire_engine_release(engine);
  return good ? 0 : 1;
}

int main(int argc, char **argv) {
  enum { USERS = 3, ASKERS = 2 };
  CHECK(argc == 3);
  folder = argv[1];
  int forks = atoi(argv[2]), hung = 0, failed = 0;
  squire_engine *engine = engine_with(2, SQUIRE_DRIVE_THREAD), *still = engine_with(1, SQUIRE_DRIVE_CALLER);
  squire_model *model = model_of(engine), *undriven = model_of(still);
  CHECK(engine && model && undriven);
  const int32_t ids[] = {5, 6};
  CHECK(squire_session_create(undriven, &asked, NULL) == SQUIRE_OK);
  CHECK(squire_session_append(asked, ids, 2, NULL) == SQUIRE_OK);
  CHECK(squire_gen_start(asked, NULL, &answer, NULL) == SQUIRE_OK);
  pthread_t askers[ASKERS];
  for (int i = 0; i < ASKERS; i++) CHECK(pthread_create(&askers[i], NULL, ask, NULL) == 0);
  pthread_t users[USERS];
  for (int i = 0; i < USERS; i++) CHECK(pthread_create(&users[i], NULL, use, model) == 0);
  for (int i = 0; i < forks; i++) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) _exit(child());
    int status = 0, over = 0;
    for (int ms = 0; ms < 30000 && !over; ms++) {
      const struct timespec a_while = {0, 1000000};
      over = waitpid(pid, &status, WNOHANG) == pid;
      if (!over) nanosleep(&a_while, NULL);
    }
    if (!over) {
      hung++;
      kill(pid, SIGKILL);
      waitpid(pid, &status, 0);
    } else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
      failed++;
    }
  }
  stop = 1;
  for (int i = 0; i < USERS; i++) {
    void *failed_user = NULL;
    CHECK(pthread_join(users[i], &failed_user) == 0 && failed_user == NULL);
  }
  for (int i = 0; i < ASKERS; i++) CHECK(pthread_join(askers[i], NULL) == 0);
  squire_gen_release(answer);
  squire_session_release(asked);
  squire_model_release(undriven);
  squire_engine_release(still);
  squire_model_release(model);
  squire_engine_release(engine);
  CHECK(hung == 0);
  CHECK(failed == 0);
  return failures;
}
