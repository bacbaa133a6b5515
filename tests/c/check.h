/* What the C tests share: a check that goes on after a failure and counts it. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <string.h>

#ifndef SQUIRE_EXPERIMENTAL
#define SQUIRE_EXPERIMENTAL
#endif
#include "squire.h"

static int failures = 0;

#define CHECK(claim)                                                                                                   \
  do {                                                                                                                 \
    if (!(claim)) {                                                                                                    \
      failures = 1;                                                                                                    \
      fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #claim);                                              \
    }                                                                                                                  \
  } while (0)

/* Checks that a call ends with a status and a detail code, whatever the call. It must name `&err`. */
#define REFUSED(call, status, code)                                                                                    \
  do {                                                                                                                 \
    squire_error *err = NULL;                                                                                          \
    const squire_status found = (call);                                                                                \
    if (found != (status) || squire_error_detail(err) != (code)) {                                                     \
      failures = 1;                                                                                                    \
      fprintf(stderr, "%s:%d: %s gives %s, detail %d: %s\n", __FILE__, __LINE__, #call, squire_status_name(found),     \
              squire_error_detail(err), err ? squire_error_message(err, NULL) : "no error");                           \
    }                                                                                                                  \
    squire_error_release(err);                                                                                         \
  } while (0)

/* Checks that a call succeeds. It must name `&err`. */
#define DONE(call) REFUSED(call, SQUIRE_OK, 0)

/* Text and its length, where a call takes both. */
#define TEXT(text) (text), strlen(text)

/* An array and its length likewise. */
#define ARRAY(array) (array), sizeof(array) / sizeof *(array)

#endif /* CHECK_H */
