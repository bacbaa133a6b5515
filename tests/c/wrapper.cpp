/* The C++ header: errors become exceptions, handles end by themselves. */
#define SQUIRE_EXPERIMENTAL
#include "squire.hpp"

#include "check.h"

int main() {
  squire::cancel flag;
  const squire::cancel same = flag;
  same.set();
  CHECK(flag.get() == same.get());

  const squire_status status = squire::call([](squire_error **) -> squire_status { return SQUIRE_END; });
  CHECK(status == SQUIRE_END);

  bool thrown = false;
  try {
    squire::call([](squire_error **err) { return squire_scores_row(nullptr, 0, nullptr, nullptr, nullptr, nullptr, err); });
  } catch (const squire::error &e) {
    const squire::error copy = e;
    thrown = true;
    CHECK(copy.status() == SQUIRE_E_ARGUMENT);
    CHECK(copy.detail() == SQUIRE_DETAIL_NULL_POINTER);
    CHECK(std::string(copy.what()) == "squire_scores is NULL");
    CHECK(copy.json().find("\"NullPointer\"") != std::string_view::npos);
  }
  CHECK(thrown);

  squire::text_handle none;
  CHECK(squire::view(none).empty());
  return failures;
}
