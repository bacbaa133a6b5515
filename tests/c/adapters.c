/* Adapters from C: base, adapters of it, an adapter of another model, and a folder to write into. */
#include <stdlib.h>

#include "check.h"

static squire_error *err = NULL;

/* Eight greedy tokens behind a prompt; gives the revision that sampled them. */
static uint64_t say(squire_session *session, const char *adapter, int32_t said[8]) {
  squire_gen_options o;
  squire_gen *gen = NULL;
  squire_event e;
  uint64_t revision = 0;
  size_t n = 0;
  squire_gen_options_init(&o, sizeof o);
  squire_event_init(&e, sizeof e);
  o.temperature = 0;
  o.max_tokens = 8;
  o.adapter = adapter;
  o.adapter_len = adapter ? strlen(adapter) : 0;
  DONE(squire_gen_start(session, &o, &gen, &err));
  while (gen != NULL && squire_gen_next(gen, -1, &e, &err) == SQUIRE_OK && e.kind == SQUIRE_EVENT_TOKENS) {
    for (size_t i = 0; i < e.ids_len && n < 8; i++) {
      said[n++] = e.ids[i];
    }
    revision = e.revision;
  }
  CHECK(n == 8);
  squire_gen_release(gen);
  return revision;
}

static uint64_t said_by(squire_model *model, const char *adapter, int32_t said[8]) {
  const int32_t prompt[] = {1, 2, 3, 4, 5, 6};
  squire_session *session = NULL;
  uint64_t revision = 0;
  if (adapter != NULL) {
    DONE(squire_session_create_on(model, TEXT(adapter), &session, &err));
  } else {
    DONE(squire_session_create(model, &session, &err));
  }
  DONE(squire_session_append(session, ARRAY(prompt), &err));
  revision = say(session, NULL, said);
  squire_session_release(session);
  return revision;
}

#define DIFFERS(a, b) (memcmp(a, b, sizeof a) != 0)

int main(int argc, char **argv) {
  CHECK(argc == 6);
  const char *base = argv[1], *first = argv[2], *second = argv[3], *foreign = argv[4], *scratch = argv[5];
  const int32_t prompt[] = {1, 2, 3, 4, 5, 6};
  int32_t plain[8], one[8], two[8], again[8], swapped[8], merged[8];
  squire_engine_options eo;
  squire_model_options mo;
  squire_engine *engine = NULL;
  squire_model *model = NULL, *other = NULL;
  squire_session *session = NULL, *kept = NULL, *none = NULL;
  squire_text *info = NULL;
  uint64_t a = 0, b = 0, r = 0;
  char path[4096];
  squire_engine_options_init(&eo, sizeof eo, SQUIRE_ABI);
  eo.compute = SQUIRE_COMPUTE_F32;
  DONE(squire_engine_create(&eo, &engine, &err));
  squire_model_options_init(&mo, sizeof mo);
  mo.path = base;
  mo.path_len = strlen(base);
  DONE(squire_model_load(engine, &mo, NULL, &model, &err));

  /* Two of one base beside each other, and the base. */
  CHECK(said_by(model, NULL, plain) == 1);
  DONE(squire_adapter_load(model, TEXT("one"), TEXT(first), &a, &err));
  DONE(squire_adapter_load(model, TEXT("two"), TEXT(second), &b, &err));
  CHECK(a == 1000000001 && b == 1000000002);
  CHECK(said_by(model, "one", one) == a && said_by(model, "two", two) == b);
  CHECK(DIFFERS(plain, one) && DIFFERS(plain, two) && DIFFERS(one, two));
  said_by(model, NULL, again);
  CHECK(!DIFFERS(plain, again));

  /* What is refused changes nothing. */
  REFUSED(squire_adapter_load(model, TEXT("one"), TEXT(foreign), &r, &err), SQUIRE_E_MISMATCH, SQUIRE_DETAIL_TENSOR_SHAPE);
  REFUSED(squire_adapter_load(model, TEXT("one"), TEXT(base), &r, &err), SQUIRE_E_IO, SQUIRE_DETAIL_MISSING_FILE);
  REFUSED(squire_adapter_load(model, "", 0, TEXT(first), &r, &err), SQUIRE_E_ARGUMENT, SQUIRE_DETAIL_BAD_VALUE);
  REFUSED(squire_session_create_on(model, TEXT("three"), &session, &err), SQUIRE_E_ARGUMENT, SQUIRE_DETAIL_UNKNOWN_ADAPTER);
  REFUSED(squire_adapter_unload(model, TEXT("three"), &err), SQUIRE_E_ARGUMENT, SQUIRE_DETAIL_UNKNOWN_ADAPTER);
  REFUSED(squire_adapter_save(model, NULL, 0, TEXT(scratch), &err), SQUIRE_E_ARGUMENT, SQUIRE_DETAIL_UNKNOWN_ADAPTER);
  REFUSED(squire_adapter_merge(model, NULL, 0, &r, &err), SQUIRE_E_ARGUMENT, SQUIRE_DETAIL_UNKNOWN_ADAPTER);
  CHECK(said_by(model, "one", again) == a && !DIFFERS(one, again));

  /* A session goes from one to the other: as a fresh one would answer. */
  DONE(squire_session_create_on(model, TEXT("one"), &session, &err));
  DONE(squire_session_append(session, ARRAY(prompt), &err));
  say(session, NULL, again);
  CHECK(!DIFFERS(one, again));
  DONE(squire_session_truncate(session, 6, &err));
  CHECK(say(session, "two", again) == b && !DIFFERS(two, again));
  DONE(squire_session_truncate(session, 6, &err));
  DONE(squire_session_use_adapter(session, NULL, 0, &r, &err));
  CHECK(r == 1);
  say(session, NULL, again);
  CHECK(!DIFFERS(plain, again));
  REFUSED(squire_session_use_adapter(session, TEXT("three"), &r, &err), SQUIRE_E_ARGUMENT, SQUIRE_DETAIL_UNKNOWN_ADAPTER);

  /* Under one name another: new sessions and those that ask get it, those under way keep theirs. */
  DONE(squire_session_create_on(model, TEXT("one"), &kept, &err));
  DONE(squire_session_append(kept, ARRAY(prompt), &err));
  DONE(squire_adapter_load(model, TEXT("one"), TEXT(second), &r, &err));
  CHECK(r == 1000000003 && said_by(model, "one", swapped) == r && !DIFFERS(two, swapped));
  CHECK(say(kept, NULL, again) == a && !DIFFERS(one, again));
  DONE(squire_session_truncate(kept, 6, &err));
  DONE(squire_session_rebase(kept, &r, &err));
  CHECK(r == 1000000003 && say(kept, NULL, again) == r && !DIFFERS(two, again));

  /* Saved, forgotten, loaded again; and what is merged says the same here. */
  snprintf(path, sizeof path, "%s/adapter", scratch);
  DONE(squire_adapter_save(model, TEXT("two"), TEXT(path), &err));
  DONE(squire_adapter_unload(model, TEXT("two"), &err));
  REFUSED(squire_session_create_on(model, TEXT("two"), &none, &err), SQUIRE_E_ARGUMENT, SQUIRE_DETAIL_UNKNOWN_ADAPTER);
  DONE(squire_adapter_load(model, TEXT("two"), TEXT(path), &r, &err));
  CHECK(said_by(model, "two", again) == r && !DIFFERS(two, again));
  DONE(squire_adapter_merge(model, TEXT("two"), &r, &err));
  CHECK(said_by(model, NULL, merged) == r && !DIFFERS(two, merged));
  REFUSED(squire_session_create_on(model, TEXT("two"), &none, &err), SQUIRE_E_MISMATCH, SQUIRE_DETAIL_ADAPTER_MISMATCH);
  CHECK(say(kept, NULL, again) == 1000000003); /* its generation outlives its base */

  DONE(squire_model_info(model, &info, &err));
  CHECK(strstr(squire_text_data(info, NULL), "\"adapters\":{}") != NULL); /* those that new sessions can use */
  squire_text_release(info);
  mo.path = base;
  DONE(squire_model_load(engine, &mo, NULL, &other, &err));
  REFUSED(squire_adapter_load(other, TEXT("x"), TEXT(path), &r, &err), SQUIRE_OK, 0);
  squire_session_release(session);
  squire_session_release(kept);
  squire_model_release(model);
  squire_model_release(other);
  squire_engine_release(engine);
  return failures;
}
