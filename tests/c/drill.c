/* The host lives on when calls panic, when it forks, and when it leaks nothing: against a build with drill entries. */
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

squire_status squire_drill_panic(squire_error **err);
squire_status squire_drill_panic_out(squire_text **out, squire_error **err);
squire_status squire_drill_panic_on(squire_cancel *cancel, squire_error **err);
squire_status squire_drill_touch(const squire_cancel *cancel, squire_error **err);
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

int main(void) {
  a_panic_is_a_status_with_its_message();
  a_panic_leaves_the_out_parameter_null();
  a_panic_poisons_its_object_until_release();
  a_forked_child_is_refused_and_the_parent_is_not();
  CHECK(squire_drill_live_handles() == 0);
  return failures;
}
