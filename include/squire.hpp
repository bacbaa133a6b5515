/* squire.hpp: C++17 over squire.h, in this header alone. Handles end by themselves, move, and throw squire::error
 * where the C call gives an error. Compile the program against the same version of both headers. */
#ifndef SQUIRE_HPP
#define SQUIRE_HPP

#include "squire.h"

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

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
using engine_handle = handle<squire_engine, squire_engine_release>;
using model_handle = handle<squire_model, squire_model_release>;
using session_handle = handle<squire_session, squire_session_release>;
using gen_handle = handle<squire_gen, squire_gen_release>;

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

/* Runs a C call that makes an object: squire::make<squire::text_handle>([&](auto out, auto err) { return squire_x(...,
 * out, err); }). The handle is empty where the call was cancelled. */
template <class Handle, class F> Handle make(F &&f) {
  typename Handle::pointer out = nullptr;
  call([&](squire_error **err) { return f(&out, err); });
  return Handle(out);
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

/* ---- options with their defaults ---- */

inline squire_engine_options engine_options() noexcept {
  squire_engine_options o;
  squire_engine_options_init(&o, sizeof o, SQUIRE_ABI);
  return o;
}

inline squire_model_options model_options() noexcept {
  squire_model_options o;
  squire_model_options_init(&o, sizeof o);
  return o;
}

inline squire_gen_options gen_options() noexcept {
  squire_gen_options o;
  squire_gen_options_init(&o, sizeof o);
  return o;
}

/* ---- the calls, with handles, strings and vectors ---- */

using ids = std::vector<std::int32_t>;

inline engine_handle create_engine(const squire_engine_options &options = engine_options()) {
  return make<engine_handle>([&](auto out, auto err) { return squire_engine_create(&options, out, err); });
}

/* Loads a folder; path and path_len of the options are set here. */
inline model_handle load_model(const engine_handle &engine, std::string_view folder,
                               squire_model_options options = model_options(), const cancel *stop = nullptr) {
  options.path = folder.data();
  options.path_len = folder.size();
  squire_cancel *flag = stop ? stop->get() : nullptr;
  return make<model_handle>([&](auto out, auto err) { return squire_model_load(engine.get(), &options, flag, out, err); });
}

inline void save_model(const model_handle &model, std::string_view folder) {
  call([&](auto err) { return squire_model_save(model.get(), folder.data(), folder.size(), err); });
}

inline std::uint64_t revision(const model_handle &model) {
  std::uint64_t number = 0;
  call([&](auto err) { return squire_model_revision(model.get(), &number, err); });
  return number;
}

/* The ids of a result. */
inline ids list(const tokens_handle &tokens) {
  std::size_t n = 0;
  const std::int32_t *data = squire_tokens_data(tokens.get(), &n);
  return ids(data, data + n);
}

inline ids tokenize(const model_handle &model, std::string_view text, std::uint32_t flags = 0) {
  return list(make<tokens_handle>([&](auto out, auto err) {
    return squire_tokenize(model.get(), text.data(), text.size(), flags, out, err);
  }));
}

inline std::string detokenize(const model_handle &model, const ids &tokens, std::uint32_t flags = 0) {
  return std::string(view(make<text_handle>([&](auto out, auto err) {
    return squire_detokenize(model.get(), tokens.data(), tokens.size(), flags, out, err);
  })));
}

inline session_handle create_session(const model_handle &model) {
  return make<session_handle>([&](auto out, auto err) { return squire_session_create(model.get(), out, err); });
}

inline session_handle fork(const session_handle &session) {
  return make<session_handle>([&](auto out, auto err) { return squire_session_fork(session.get(), out, err); });
}

/* Gives the number of tokens that need no computing again. */
inline std::uint64_t sync(const session_handle &session, const ids &tokens) {
  std::uint64_t reused = 0;
  call([&](auto err) { return squire_session_sync(session.get(), tokens.data(), tokens.size(), &reused, err); });
  return reused;
}

inline void append(const session_handle &session, const ids &tokens) {
  call([&](auto err) { return squire_session_append(session.get(), tokens.data(), tokens.size(), err); });
}

/* Gives the number of tokens added. */
inline std::uint64_t append_chat(const session_handle &session, std::string_view request_json) {
  std::uint64_t added = 0;
  call([&](auto err) {
    return squire_chat_append(session.get(), request_json.data(), request_json.size(), &added, err);
  });
  return added;
}

inline ids timeline(const session_handle &session) {
  return list(make<tokens_handle>([&](auto out, auto err) { return squire_session_tokens(session.get(), out, err); }));
}

inline gen_handle generate(const session_handle &session, const squire_gen_options &options = gen_options()) {
  return make<gen_handle>([&](auto out, auto err) { return squire_gen_start(session.get(), &options, out, err); });
}

/* Pulls a generation to its end and shows each event of tokens to `see`; gives one of SQUIRE_FINISH_... */
template <class F> std::int32_t pull(const gen_handle &generation, F &&see) {
  squire_event event;
  squire_event_init(&event, sizeof event);
  while (call([&](auto err) { return squire_gen_next(generation.get(), -1, &event, err); }) == SQUIRE_OK) {
    see(std::as_const(event));
  }
  return event.finish;
}

/* The rest of a generation's text. */
inline std::string collect(const gen_handle &generation) {
  std::string text;
  pull(generation, [&](const squire_event &event) { text.append(event.text, event.text_len); });
  return text;
}

#ifdef SQUIRE_EXPERIMENTAL

using distiller_handle = handle<squire_distiller, squire_distiller_release>;
using episode_handle = handle<squire_episode, squire_episode_release>;
using update_handle = handle<squire_update, squire_update_release>;

/* An empty teacher means none. */
inline distiller_handle create_distiller(const model_handle &student, const model_handle &teacher,
                                         std::string_view settings_json) {
  return make<distiller_handle>([&](auto out, auto err) {
    return squire_distiller_create(student.get(), teacher.get(), settings_json.data(), settings_json.size(), out, err);
  });
}

inline std::uint64_t publish(const distiller_handle &distiller) {
  std::uint64_t number = 0;
  call([&](auto err) { return squire_distiller_publish(distiller.get(), &number, err); });
  return number;
}

inline episode_handle begin(const distiller_handle &distiller, std::string_view spec_json = "{}") {
  return make<episode_handle>([&](auto out, auto err) {
    return squire_episode_begin(distiller.get(), spec_json.data(), spec_json.size(), out, err);
  });
}

inline void observe(const episode_handle &episode, std::string_view messages_json) {
  call([&](auto err) {
    return squire_episode_observe(episode.get(), messages_json.data(), messages_json.size(), nullptr, err);
  });
}

inline void observe(const episode_handle &episode, const ids &tokens) {
  call([&](auto err) { return squire_episode_observe_ids(episode.get(), tokens.data(), tokens.size(), err); });
}

inline squire_decision decide(const episode_handle &episode) {
  squire_decision decision;
  squire_decision_init(&decision, sizeof decision);
  call([&](auto err) { return squire_episode_decide(episode.get(), &decision, err); });
  return decision;
}

inline gen_handle act(const episode_handle &episode, const squire_gen_options &options = gen_options()) {
  return make<gen_handle>([&](auto out, auto err) { return squire_episode_act(episode.get(), &options, out, err); });
}

inline void replay(const episode_handle &episode, std::string_view text) {
  call([&](auto err) { return squire_episode_replay_text(episode.get(), text.data(), text.size(), err); });
}

inline void outcome(const episode_handle &episode, double reward = 0, std::uint32_t flags = 0) {
  call([&](auto err) { return squire_episode_outcome(episode.get(), reward, flags, err); });
}

inline void end(const episode_handle &episode, double score, std::int32_t success = -1) {
  call([&](auto err) { return squire_episode_end(episode.get(), score, success, err); });
}

/* Empty where it was stopped. */
inline update_handle build(const distiller_handle &distiller, std::uint32_t max_episodes = 0,
                           const cancel *stop = nullptr) {
  squire_cancel *flag = stop ? stop->get() : nullptr;
  return make<update_handle>([&](auto out, auto err) {
    return squire_update_build(distiller.get(), max_episodes, flag, nullptr, nullptr, out, err);
  });
}

inline text_handle report(const update_handle &update) {
  return make<text_handle>([&](auto out, auto err) { return squire_update_report(update.get(), out, err); });
}

inline void apply(const distiller_handle &distiller, const update_handle &update) {
  call([&](auto err) { return squire_update_apply(distiller.get(), update.get(), err); });
}

#endif /* SQUIRE_EXPERIMENTAL */

} // namespace squire

#endif /* SQUIRE_HPP */
