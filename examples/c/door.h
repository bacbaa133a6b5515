/* A small game for an agent: fetch the key of the right colour and open the door with it.
 *
 * Three places hold a red, a green and a blue key in an order that the seed decides. The player is told the
 * colour of the door, not where its key lies. One hand: a key that is taken is exchanged for the one held.
 * Every text starts with a space, so that each word is one token of the household's vocabulary. */
#ifndef DOOR_H
#define DOOR_H
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { DOOR_PLACES = 3, DOOR_MAX_TURNS = 10, DOOR_TEXT = 64 };
enum { DOOR_NO_KEY = -1, DOOR_NOWHERE = -1, DOOR_DOOR = DOOR_PLACES };

typedef struct {
    int keys[DOOR_PLACES]; /* the colour of the key at each place, or DOOR_NO_KEY */
    int wanted, hand;      /* the door's colour; the held key's, or DOOR_NO_KEY */
    int here;              /* DOOR_NOWHERE, a place, or DOOR_DOOR */
    int turns, done, won;
    char text[DOOR_TEXT];  /* what the player is told: at first, then after each action */
} door_game;

static const char *const door_places[] = {"shelf", "table", "desk", "door"};
static const char *const door_colours[] = {"red", "green", "blue"};

/* Starts the game number `seed`; 18 games differ. */
static inline void door_start(door_game *g, uint64_t seed) {
    const int wanted = (int)(seed % 3), first = (int)(seed / 3 % 3), step = (int)(seed / 9 % 2) + 1;
    const door_game fresh = {{first, (first + step) % 3, (first + 2 * step) % 3}, wanted, DOOR_NO_KEY, DOOR_NOWHERE,
                             0, 0, 0, ""};
    *g = fresh;
    snprintf(g->text, sizeof g->text, " you see shelf table desk . task open %s door", door_colours[wanted]);
}

/* Whether the action, `length` bytes without its leading spaces, is these words. */
static inline int door_is(const char *action, size_t length, const char *verb, const char *name, const char *noun) {
    char words[DOOR_TEXT];
    const int n = snprintf(words, sizeof words, "%s %s%s", verb, name, noun);
    return n > 0 && (size_t)n == length && memcmp(words, action, length) == 0;
}

/* Plays one turn and tells what came of it in `text`. Any bytes are an action; most do nothing. */
static inline void door_act(door_game *g, const char *action, size_t length) {
    int i;
    snprintf(g->text, sizeof g->text, " nothing happens");
    if (g->done) return;
    for (; length > 0 && *action == ' '; length--) action++;
    g->done = ++g->turns == DOOR_MAX_TURNS;
    for (i = 0; i <= DOOR_PLACES; i++) {
        if (!door_is(action, length, "go to", door_places[i], "")) continue;
        g->here = i;
        if (i == DOOR_DOOR) snprintf(g->text, sizeof g->text, " door is closed");
        else if (g->keys[i] == DOOR_NO_KEY) snprintf(g->text, sizeof g->text, " %s is empty", door_places[i]);
        else snprintf(g->text, sizeof g->text, " %s has %s key", door_places[i], door_colours[g->keys[i]]);
    }
    if (g->here >= 0 && g->here < DOOR_PLACES && g->keys[g->here] != DOOR_NO_KEY
        && door_is(action, length, "take", door_colours[g->keys[g->here]], " key")) {
        const int left = g->hand;
        g->hand = g->keys[g->here];
        g->keys[g->here] = left;
        snprintf(g->text, sizeof g->text, " you hold %s key", door_colours[g->hand]);
    }
    if (g->here == DOOR_DOOR && g->hand == g->wanted && door_is(action, length, "open", "door", "")) {
        g->done = g->won = 1;
        snprintf(g->text, sizeof g->text, " door is open");
    }
}

/* The action of an expert, which wins from every state that leaves it 7 turns. */
static inline void door_expert(const door_game *g, char action[DOOR_TEXT]) {
    const int at_place = g->here >= 0 && g->here < DOOR_PLACES;
    if (g->hand == g->wanted)
        snprintf(action, DOOR_TEXT, g->here == DOOR_DOOR ? " open door" : " go to door");
    else if (at_place && g->keys[g->here] == g->wanted)
        snprintf(action, DOOR_TEXT, " take %s key", door_colours[g->wanted]);
    else
        snprintf(action, DOOR_TEXT, " go to %s", door_places[at_place ? (g->here + 1) % DOOR_PLACES : 0]);
}
#endif
