/* The guided loop in C, over the game of door.h: agent STUDENT TEACHER OUT UPDATES
 *
 * STUDENT and TEACHER are model folders with one tokenizer and a chat template, such as those of the household demo.
 * Neither knows this game. So first the teacher imitates a scripted expert, whose actions are replayed; then the
 * student is guided by the teacher: both play, a schedule hands the turns over from one to the other, and the student
 * learns from what the teacher would have said. Same loop, other settings. Success is measured on all 18 games that
 * there are, which are the games that were learnt from too: it shows that the loop works, and nothing of new games.
 * With the household's models both win none before and all 18 after 120 updates; after 40 they win some.
 *
 * Build and start, in the repository:
 *   cargo build --release
 *   cc -DSQUIRE_EXPERIMENTAL -Iinclude examples/c/agent.c -Ltarget/release -lsquire -Wl,-rpath,"$PWD/target/release" \
 *     -o agent
 *   ./agent STUDENT TEACHER OUT 120 */
#ifndef SQUIRE_EXPERIMENTAL
#define SQUIRE_EXPERIMENTAL
#endif
#include <stdlib.h>

#include "door.h"
#include "squire.h"

enum { GAMES = 18, ACTION_TOKENS = 24 };

static squire_error *err;

/* Ends the program where a call fails. */
static squire_status check(squire_status status) {
  if (status < 0) {
    fprintf(stderr, "agent: %s\n", squire_error_message(err, NULL));
    exit(1);
  }
  return status;
}

/* One turn of whoever is to act; writes down what was said, and gives its length. */
static size_t act(squire_episode *episode, const door_game *game, const squire_decision *decision, char said[DOOR_TEXT]) {
  size_t n = 0;
  if (decision->actor == SQUIRE_ACTOR_REPLAY) {
    door_expert(game, said);
    check(squire_episode_replay_text(episode, said, strlen(said), &err));
    return strlen(said);
  }
  squire_gen_options options;
  squire_gen_options_init(&options, sizeof options);
  options.max_tokens = ACTION_TOKENS;
  if (decision->reason == SQUIRE_REASON_EVALUATION) {
    options.temperature = 0; /* training samples as the settings say */
  }
  squire_gen *gen = NULL;
  check(squire_episode_act(episode, &options, &gen, &err));
  squire_event event;
  squire_event_init(&event, sizeof event);
  while (check(squire_gen_next(gen, -1, &event, &err)) == SQUIRE_OK) {
    for (size_t i = 0; i < event.text_len && n < DOOR_TEXT; i++) {
      said[n++] = event.text[i];
    }
  }
  squire_gen_release(gen);
  return n;
}

/* Plays one game to its end, and says whether it was won. Nothing here knows of methods: decide does. */
static int play(squire_distiller *distiller, uint64_t seed, const char *spec) {
  squire_episode *episode = NULL;
  squire_decision decision;
  door_game game;
  char messages[2 * DOOR_TEXT], said[DOOR_TEXT];
  squire_decision_init(&decision, sizeof decision);
  check(squire_episode_begin(distiller, spec, strlen(spec), &episode, &err));
  for (door_start(&game, seed); !game.done;) {
    const int n = snprintf(messages, sizeof messages, "[{\"role\": \"user\", \"content\": \"%s\"}]", game.text);
    check(squire_episode_observe(episode, messages, (size_t)n, NULL, &err));
    check(squire_episode_decide(episode, &decision, &err));
    if (decision.actor == SQUIRE_ACTOR_STOP) {
      break;
    }
    door_act(&game, said, act(episode, &game, &decision, said));
    check(squire_episode_outcome(episode, 0, 0, &err));
  }
  check(squire_episode_end(episode, game.won, game.won, &err));
  squire_episode_release(episode);
  return game.won;
}

/* How many of all games the distiller's student wins alone. */
static int measure(squire_distiller *distiller) {
  int won = 0;
  for (uint64_t seed = 0; seed < GAMES; seed++) {
    won += play(distiller, seed, "{\"evaluation\": true}");
  }
  return won;
}

/* Plays and learns; every update is built, applied and published in this process. */
static void learn(const char *name, squire_model *student, squire_model *teacher, const char *method, int updates) {
  squire_distiller *distiller = NULL;
  char settings[512];
  const int n = snprintf(settings, sizeof settings,
                         "{\"preset\": \"%s\", \"steps\": %d, \"max_turns\": %d, \"optimizer\": {\"learning_rate\": "
                         "0.001, \"beta2\": 0.98, \"warmup_steps\": %d}}",
                         method, updates, DOOR_MAX_TURNS, updates < 10 ? 1 : 10);
  check(squire_distiller_create(student, teacher, settings, (size_t)n, &distiller, &err));
  const int before = measure(distiller);
  for (int step = 0; step < updates; step++) {
    squire_update *update = NULL;
    for (uint64_t seed = 0; seed < GAMES; seed++) {
      play(distiller, seed, "{}");
    }
    check(squire_update_build(distiller, 0, NULL, NULL, NULL, &update, &err));
    check(squire_update_apply(distiller, update, &err));
    check(squire_distiller_publish(distiller, NULL, &err));
    squire_update_release(update);
  }
  printf("%s: %s, %d updates: %d of %d games before, %d after\n", name, method, updates, before, GAMES,
         measure(distiller));
  squire_distiller_release(distiller);
}

static squire_model *load(squire_engine *engine, const char *folder) {
  squire_model *model = NULL;
  squire_model_options options;
  squire_model_options_init(&options, sizeof options);
  options.path = folder;
  options.path_len = strlen(folder);
  check(squire_model_load(engine, &options, NULL, &model, &err));
  return model;
}

int main(int argc, char **argv) {
  if (argc != 5 || atoi(argv[4]) < 1) {
    fprintf(stderr, "usage: agent STUDENT TEACHER OUT UPDATES\n");
    return 2;
  }
  const int updates = atoi(argv[4]);
  squire_engine *engine = NULL;
  squire_engine_options options;
  squire_engine_options_init(&options, sizeof options, SQUIRE_ABI);
  options.compute = SQUIRE_COMPUTE_F32;
  check(squire_engine_create(&options, &engine, &err));
  squire_model *student = load(engine, argv[1]), *teacher = load(engine, argv[2]);
  learn("teacher", teacher, NULL, "sft", updates);
  learn("student", student, teacher, "guided-opd", updates);
  check(squire_model_save(student, argv[3], strlen(argv[3]), &err));
  printf("saved %s\n", argv[3]);
  squire_model_release(student);
  squire_model_release(teacher);
  squire_engine_release(engine);
  return 0;
}
