/* What the C tests share: a check that goes on after a failure and counts it. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <string.h>

#include "squire.h"

static int failures = 0;

#define CHECK(claim)                                                                                                   \
  do {                                                                                                                 \
    if (!(claim)) {                                                                                                    \
      failures = 1;                                                                                                    \
      fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #claim);                                              \
    }                                                                                                                  \
  } while (0)

#endif /* CHECK_H */
