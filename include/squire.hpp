/* squire.hpp: C++17 over squire.h, in this header alone. Handles end by themselves, move, and throw squire::error
 * where the C call gives an error. Compile the program against the same version of both headers. */
#ifndef SQUIRE_HPP
#define SQUIRE_HPP

#include "squire.h"

#include <exception>
#include <memory>
#include <string>
#include <string_view>

namespace squire {

/* Ends an object by the C function that is its template parameter. */
template <auto release> struct releaser {
  template <class T> void operator()(T *object) const noexcept { release(object); }
};

/* A handle that owns one reference. get() gives the C pointer, release() gives it away. */
template <class T, auto release> using handle = std::unique_ptr<T, releaser<release>>;

using text_handle = handle<squire_text, squire_text_release>;
using tokens_handle = handle<squire_tokens, squire_tokens_release>;
using scores_handle = handle<squire_scores, squire_scores_release>;
using error_handle = handle<squire_error, squire_error_release>;

/* A failed call: its status, its detail code, its message. Copies share the error object. */
class error : public std::exception {
public:
  explicit error(squire_error *e) : error_(e, squire_error_release) {}

  squire_status status() const noexcept { return squire_error_status(error_.get()); }
  std::int32_t detail() const noexcept { return squire_error_detail(error_.get()); }
  const char *what() const noexcept override {
    const char *message = squire_error_message(error_.get(), nullptr);
    return message ? message : "squire: no message";
  }
  std::string_view json() const noexcept {
    std::size_t len = 0;
    const char *json = squire_error_json(error_.get(), &len);
    return {json, len};
  }

private:
  std::shared_ptr<squire_error> error_;
};

/* Runs a C call that takes the error slot: squire::call([&](squire_error **err) { return squire_x(..., err); }).
 * Gives the status if it is an outcome, throws squire::error if it is an error. */
template <class F> squire_status call(F &&f) {
  squire_error *e = nullptr;
  const squire_status status = f(&e);
  if (status < 0) {
    throw error(e);
  }
  return status;
}

/* The text of a result; it lives as long as the handle. */
inline std::string_view view(const text_handle &text) noexcept {
  std::size_t len = 0;
  const char *data = squire_text_data(text.get(), &len);
  return {data, len};
}

/* A flag that stops the calls it is given to. Copies share it. */
class cancel {
public:
  cancel() : flag_(squire_cancel_create(), squire_cancel_release) {}

  void set() const noexcept { squire_cancel_set(flag_.get()); }
  squire_cancel *get() const noexcept { return flag_.get(); }

private:
  std::shared_ptr<squire_cancel> flag_;
};

} // namespace squire

#endif /* SQUIRE_HPP */
