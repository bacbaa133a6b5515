/* Calls every export that needs no model, with NULL in each pointer place, and says what was not as it should be. */
#include "check.h"

static void version_and_build(void) {
  CHECK(squire_abi_version() == ((uint32_t)SQUIRE_ABI_MAJOR << 16 | SQUIRE_ABI_MINOR));
  CHECK(strcmp(squire_version(), SQUIRE_VERSION) == 0);
  CHECK(strstr(squire_build_json(), "\"version\":\"" SQUIRE_VERSION "\"") != NULL);
  CHECK(strstr(squire_build_json(), "\"scalar\"") != NULL);
}

static void names_of_statuses(void) {
  CHECK(strcmp(squire_status_name(SQUIRE_OK), "SQUIRE_OK") == 0);
  CHECK(strcmp(squire_status_name(SQUIRE_E_CONTEXT_FULL), "SQUIRE_E_CONTEXT_FULL") == 0);
  CHECK(strcmp(squire_status_name(-1000), "SQUIRE_UNKNOWN") == 0);
}

static void null_is_read_as_nothing(void) {
  size_t n = 9;
  CHECK(squire_error_status(NULL) == SQUIRE_OK);
  CHECK(squire_error_detail(NULL) == 0);
  CHECK(squire_error_message(NULL, &n) == NULL && n == 0);
  n = 9;
  CHECK(squire_error_json(NULL, &n) == NULL && n == 0);
  n = 9;
  CHECK(squire_text_data(NULL, &n) == NULL && n == 0);
  n = 9;
  CHECK(squire_tokens_data(NULL, &n) == NULL && n == 0);
  CHECK(squire_error_message(NULL, NULL) == NULL);
  CHECK(squire_text_data(NULL, NULL) == NULL);
  CHECK(squire_tokens_data(NULL, NULL) == NULL);
  squire_error_release(NULL);
  squire_text_release(NULL);
  squire_tokens_release(NULL);
  squire_scores_release(NULL);
  squire_cancel_set(NULL);
  squire_cancel_release(NULL);
  CHECK(squire_cancel_retain(NULL) == NULL);
}

static void an_error_tells_what_and_why(void) {
  squire_error *err = NULL;
  float logprob = 7.0f;
  CHECK(squire_scores_row(NULL, 0, &logprob, NULL, NULL, NULL, &err) == SQUIRE_E_ARGUMENT);
  CHECK(logprob == 7.0f); /* nothing is written on failure */
  CHECK(squire_error_status(err) == SQUIRE_E_ARGUMENT);
  CHECK(squire_error_detail(err) == SQUIRE_DETAIL_NULL_POINTER);
  size_t n = 0;
  const char *message = squire_error_message(err, &n);
  CHECK(strcmp(message, "squire_scores is NULL") == 0 && strlen(message) == n);
  const char *json = squire_error_json(err, &n);
  CHECK(strstr(json, "\"detail\":\"NullPointer\"") != NULL && strlen(json) == n);

  squire_error *before = err; /* an occupied slot is refused and left alone */
  CHECK(squire_scores_row(NULL, 0, NULL, NULL, NULL, NULL, &err) == SQUIRE_E_ARGUMENT);
  CHECK(err == before);
  squire_error_release(err);
  CHECK(squire_scores_row(NULL, 0, NULL, NULL, NULL, NULL, NULL) == SQUIRE_E_ARGUMENT);
}

static void objects_of_another_kind_are_refused(void) {
  squire_error *err = NULL;
  squire_cancel *cancel = squire_cancel_create();
  const squire_scores *wrong = (const squire_scores *)(const void *)cancel;
  CHECK(squire_scores_row(wrong, 0, NULL, NULL, NULL, NULL, &err) == SQUIRE_E_ARGUMENT);
  CHECK(squire_error_detail(err) == SQUIRE_DETAIL_WRONG_HANDLE);
  CHECK(squire_text_data((const squire_text *)(const void *)cancel, NULL) == NULL);
  squire_text_release((squire_text *)(void *)cancel); /* does nothing */
  squire_error_release(err);
  squire_cancel_release(cancel);
}

static void a_flag_is_shared(void) {
  squire_cancel *cancel = squire_cancel_create();
  CHECK(cancel != NULL);
  squire_cancel *second = squire_cancel_retain(cancel);
  CHECK(second == cancel);
  squire_cancel_release(cancel);
  squire_cancel_set(second);
  squire_cancel_release(second);
}

int main(void) {
  version_and_build();
  names_of_statuses();
  null_is_read_as_nothing();
  an_error_tells_what_and_why();
  objects_of_another_kind_are_refused();
  a_flag_is_shared();
  return failures;
}
