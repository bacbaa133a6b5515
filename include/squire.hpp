/* squire.hpp: C++17 over squire.h, in this header alone. Handles end by themselves, move, and throw squire::error
 * where the C call gives an error. Every call of squire.h has its function here; a test compares. Compile the program
 * against the same version of both headers.
 *
 * Callbacks are functions that are called with (phase, done, total), tensors or log lines and may throw: the exception
 * waits until the C call is over and leaves the wrapper's function then, so that none crosses the library. A log
 * callback comes on threads of the library and has nobody to throw to; it is noexcept. */
#ifndef SQUIRE_HPP
#define SQUIRE_HPP

#include "squire.h"

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
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
using queue_handle = handle<squire_queue, squire_queue_release>;

/* The name of a status, such as "SQUIRE_E_BUSY". */
inline const char *status_name(squire_status status) noexcept { return squire_status_name(status); }

/* Of the library at hand: its ABI (SQUIRE_ABI is the header's), its version, and what was built as a JSON object. */
inline std::uint32_t abi_version() noexcept { return squire_abi_version(); }
inline const char *version() noexcept { return squire_version(); }
inline const char *build_json() noexcept { return squire_build_json(); }

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

/* Another handle of the same object. */
inline engine_handle share(const engine_handle &engine) noexcept {
  return engine_handle(squire_engine_retain(engine.get()));
}
inline model_handle share(const model_handle &model) noexcept { return model_handle(squire_model_retain(model.get())); }
inline session_handle share(const session_handle &session) noexcept {
  return session_handle(squire_session_retain(session.get()));
}
inline gen_handle share(const gen_handle &generation) noexcept {
  return gen_handle(squire_gen_retain(generation.get()));
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
  friend cancel adopt(squire_cancel *flag);
  explicit cancel(squire_cancel *flag) : flag_(flag, squire_cancel_release) {}

  std::shared_ptr<squire_cancel> flag_;
};

/* A flag that came from C, with a reference of its own. */
inline cancel adopt(squire_cancel *flag) { return cancel(squire_cancel_retain(flag)); }

/* ---- callbacks: the function outlives the call that it is given to, its exception leaves after that call ---- */

/* Whether F is bool(std::string_view phase, std::uint64_t done, std::uint64_t total). */
template <class F>
using if_progress =
    std::enable_if_t<std::is_invocable_r_v<bool, F &, std::string_view, std::uint64_t, std::uint64_t>, int>;

/* A function of progress for the C interface: f(phase, done, total) gives whether to go on. */
template <class F> class progress_of {
public:
  explicit progress_of(F &f) noexcept : f_(&f) {}

  void *user() noexcept { return this; }
  static std::int32_t tell(void *user, const char *phase, std::size_t phase_len, std::uint64_t done,
                           std::uint64_t total) noexcept {
    auto *self = static_cast<progress_of *>(user);
    try {
      return (*self->f_)(std::string_view(phase, phase_len), done, total) ? 0 : 1;
    } catch (...) {
      self->thrown_ = std::current_exception();
      return 1;
    }
  }
  /* Throws what the function threw. */
  void rethrow() const {
    if (thrown_) {
      std::rethrow_exception(thrown_);
    }
  }

private:
  F *f_;
  std::exception_ptr thrown_;
};

/* What progress is where nobody listens. */
struct unheard {
  bool operator()(std::string_view, std::uint64_t, std::uint64_t) const noexcept { return true; }
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

/* Every field left to the model. */
inline squire_gen_options gen_options() noexcept {
  squire_gen_options o;
  squire_gen_options_init(&o, sizeof o);
  return o;
}

/* What a model makes of fields that are left to it. */
inline squire_gen_options gen_options(const model_handle &model) {
  squire_gen_options o = gen_options();
  call([&](auto err) { return squire_gen_options_for(model.get(), &o, err); });
  return o;
}

/* Lets log lines go to f(level, target, message), which must be noexcept, is called on any thread, and must live until
 * the engine and all that was made from it are gone. */
template <class F> void log_to(squire_engine_options &options, F &f) noexcept {
  static_assert(std::is_nothrow_invocable_v<F &, std::int32_t, std::string_view, std::string_view>,
                "wanted: void(std::int32_t level, std::string_view target, std::string_view message) noexcept");
  options.log = [](void *user, std::int32_t level, const char *target, std::size_t target_len, const char *message,
                   std::size_t message_len) {
    (*static_cast<F *>(user))(level, std::string_view(target, target_len), std::string_view(message, message_len));
  };
  options.log_user = &f;
}

/* ---- the calls, with handles, strings and vectors ---- */

using ids = std::vector<std::int32_t>;

inline engine_handle create_engine(const squire_engine_options &options = engine_options()) {
  return make<engine_handle>([&](auto out, auto err) { return squire_engine_create(&options, out, err); });
}

/* One round of an engine that the caller drives; whether there was work. */
inline bool step(const engine_handle &engine) {
  return call([&](auto err) { return squire_engine_step(engine.get(), err); }) == SQUIRE_OK;
}

/* Rounds for about so many microseconds; whether work is left. */
inline bool step_for(const engine_handle &engine, std::uint64_t budget_us) {
  return call([&](auto err) { return squire_engine_step_for(engine.get(), budget_us, err); }) == SQUIRE_OK;
}

inline text_handle metrics(const engine_handle &engine) {
  return make<text_handle>([&](auto out, auto err) { return squire_engine_metrics(engine.get(), out, err); });
}

inline text_handle metrics_text(const engine_handle &engine) {
  return make<text_handle>([&](auto out, auto err) { return squire_engine_metrics_text(engine.get(), out, err); });
}

inline text_handle probe_devices() {
  return make<text_handle>([&](auto out, auto err) { return squire_device_probe(out, err); });
}

/* What a folder would need; path and path_len of the options are set here. */
inline text_handle plan(const engine_handle &engine, std::string_view folder,
                        squire_model_options options = model_options()) {
  options.path = folder.data();
  options.path_len = folder.size();
  return make<text_handle>([&](auto out, auto err) { return squire_model_plan(engine.get(), &options, out, err); });
}

/* Loads a folder; path and path_len of the options are set here. Empty where it was stopped. */
inline model_handle load_model(const engine_handle &engine, std::string_view folder,
                               squire_model_options options = model_options(), const cancel *stop = nullptr) {
  options.path = folder.data();
  options.path_len = folder.size();
  squire_cancel *flag = stop ? stop->get() : nullptr;
  return make<model_handle>([&](auto out, auto err) { return squire_model_load(engine.get(), &options, flag, out, err); });
}

/* The same; progress(phase, done, total) hears of the weights and gives whether to go on. */
template <class F, if_progress<F> = 0>
model_handle load_model(const engine_handle &engine, std::string_view folder, F &&progress,
                        squire_model_options options = model_options(), const cancel *stop = nullptr) {
  progress_of<std::remove_reference_t<F>> heard(progress);
  options.progress = heard.tell;
  options.progress_user = heard.user();
  model_handle model = load_model(engine, folder, options, stop);
  heard.rethrow();
  return model;
}

inline text_handle info(const model_handle &model) {
  return make<text_handle>([&](auto out, auto err) { return squire_model_info(model.get(), out, err); });
}

/* In tokens; tokenizer_ids is 0 without a tokenizer. */
struct model_sizes {
  std::uint64_t vocabulary, max_context, tokenizer_ids;
};

inline model_sizes sizes(const model_handle &model) {
  model_sizes s{};
  call([&](auto err) {
    return squire_model_sizes(model.get(), &s.vocabulary, &s.max_context, &s.tokenizer_ids, err);
  });
  return s;
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
  return n ? ids(data, data + n) : ids();
}

inline ids stop_ids(const model_handle &model) {
  return list(make<tokens_handle>([&](auto out, auto err) { return squire_model_stop_ids(model.get(), out, err); }));
}

/* What of earlier turns' thoughts stays where a request does not say: keep, strip_thinking or tool_cycle. */
inline void set_history(const model_handle &model, std::string_view history) {
  call([&](auto err) { return squire_model_set_history(model.get(), history.data(), history.size(), err); });
}

/* The ids of a whole conversation. */
inline ids render_chat(const model_handle &model, std::string_view request_json) {
  return list(make<tokens_handle>([&](auto out, auto err) {
    return squire_chat_render(model.get(), request_json.data(), request_json.size(), out, err);
  }));
}

/* The same until stop is set: then none. */
inline ids render_chat(const model_handle &model, std::string_view request_json, const cancel &stop) {
  return list(make<tokens_handle>([&](auto out, auto err) {
    return squire_chat_render_until(model.get(), request_json.data(), request_json.size(), stop.get(), out, err);
  }));
}

inline ids tokenize(const model_handle &model, std::string_view text, std::uint32_t flags = 0) {
  return list(make<tokens_handle>([&](auto out, auto err) {
    return squire_tokenize(model.get(), text.data(), text.size(), flags, out, err);
  }));
}

/* The same until stop is set: then none. */
inline ids tokenize(const model_handle &model, std::string_view text, std::uint32_t flags, const cancel &stop) {
  return list(make<tokens_handle>([&](auto out, auto err) {
    return squire_tokenize_until(model.get(), text.data(), text.size(), flags, stop.get(), out, err);
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

/* The same until stop is set: then 0, and the timeline is as it was. */
inline std::uint64_t append_chat(const session_handle &session, std::string_view request_json, const cancel &stop) {
  std::uint64_t added = 0;
  call([&](auto err) {
    return squire_chat_append_until(session.get(), request_json.data(), request_json.size(), stop.get(), &added, err);
  });
  return added;
}

/* One message of a role; whether the beginning of an assistant turn follows. Where stop is set meanwhile: 0, and the timeline
 * is as it was. */
inline std::uint64_t append_message(const session_handle &session, std::string_view role, std::string_view content,
                                    bool generation_prompt = false, const cancel *stop = nullptr) {
  std::uint64_t added = 0;
  call([&](auto err) {
    return squire_chat_append_message(session.get(), role.data(), role.size(), content.data(), content.size(),
                                      generation_prompt ? SQUIRE_MESSAGE_GENERATION_PROMPT : 0,
                                      stop ? stop->get() : nullptr, &added, err);
  });
  return added;
}

/* Keeps the first tokens. */
inline void truncate(const session_handle &session, std::uint64_t keep) {
  call([&](auto err) { return squire_session_truncate(session.get(), keep, err); });
}

/* Moves to the model's current revision and gives its number. */
inline std::uint64_t rebase(const session_handle &session) {
  std::uint64_t number = 0;
  call([&](auto err) { return squire_session_rebase(session.get(), &number, err); });
  return number;
}

/* Loads an adapter over the model's base under a name and gives the number of its revision. */
inline std::uint64_t load_adapter(const model_handle &model, std::string_view name, std::string_view path) {
  std::uint64_t number = 0;
  call([&](auto err) {
    return squire_adapter_load(model.get(), name.data(), name.size(), path.data(), path.size(), &number, err);
  });
  return number;
}

inline void unload_adapter(const model_handle &model, std::string_view name) {
  call([&](auto err) { return squire_adapter_unload(model.get(), name.data(), name.size(), err); });
}

/* As PEFT does; the one of that name, or without one that of the current revision. */
inline void save_adapter(const model_handle &model, std::optional<std::string_view> name, std::string_view path) {
  const std::string_view given = name.value_or(std::string_view());
  call([&](auto err) {
    return squire_adapter_save(model.get(), given.data(), given.size(), path.data(), path.size(), err);
  });
}

/* Folds it into the base and gives the number of the revision that new sessions get. */
inline std::uint64_t merge_adapter(const model_handle &model, std::optional<std::string_view> name = std::nullopt) {
  const std::string_view given = name.value_or(std::string_view());
  std::uint64_t number = 0;
  call([&](auto err) { return squire_adapter_merge(model.get(), given.data(), given.size(), &number, err); });
  return number;
}

/* A session on the newest generation of an adapter. */
inline session_handle create_session_on(const model_handle &model, std::string_view adapter) {
  return make<session_handle>([&](auto out, auto err) {
    return squire_session_create_on(model.get(), adapter.data(), adapter.size(), out, err);
  });
}

/* Moves the session to an adapter, or without one to the model's current revision; gives the number of its revision. */
inline std::uint64_t use_adapter(const session_handle &session, std::optional<std::string_view> adapter) {
  const std::string_view given = adapter.value_or(std::string_view());
  std::uint64_t number = 0;
  call([&](auto err) {
    return squire_session_use_adapter(session.get(), given.data(), given.size(), &number, err);
  });
  return number;
}

/* In tokens: in the timeline, still to fit behind it, and of the former not computed yet. */
struct session_length {
  std::uint64_t length, room, pending;
};

inline session_length length(const session_handle &session) {
  session_length l{};
  call([&](auto err) { return squire_session_length(session.get(), &l.length, &l.room, &l.pending, err); });
  return l;
}

/* Computes what is pending, so that forks share it; progress(phase, done, total) gives whether to go on. Whether it came
 * to its end. */
template <class F = unheard, if_progress<F> = 0>
bool prefill(const session_handle &session, F &&progress = F(), const cancel *stop = nullptr) {
  progress_of<std::remove_reference_t<F>> heard(progress);
  const squire_status status = call([&](auto err) {
    return squire_session_prefill(session.get(), stop ? stop->get() : nullptr, heard.tell, heard.user(), err);
  });
  heard.rethrow();
  return status == SQUIRE_OK;
}

inline text_handle trace(const session_handle &session) {
  return make<text_handle>([&](auto out, auto err) { return squire_session_trace(session.get(), out, err); });
}

inline ids timeline(const session_handle &session) {
  return list(make<tokens_handle>([&](auto out, auto err) { return squire_session_tokens(session.get(), out, err); }));
}

inline gen_handle generate(const session_handle &session, const squire_gen_options &options = gen_options()) {
  return make<gen_handle>([&](auto out, auto err) { return squire_gen_start(session.get(), &options, out, err); });
}

/* A continuation of a prompt on a session of its own. */
struct continuation {
  session_handle session;
  gen_handle generation;
};

/* Several of them; what is pending in the session is computed first, once, and waited for. */
inline std::vector<continuation> generate_several(const session_handle &session, std::size_t n,
                                                  const squire_gen_options &options = gen_options()) {
  std::vector<squire_session *> sessions(n);
  std::vector<squire_gen *> gens(n);
  std::vector<continuation> all(n);
  call([&](auto err) {
    return squire_gen_start_n(session.get(), &options, n, nullptr, sessions.data(), gens.data(), err);
  });
  for (std::size_t i = 0; i < n; i++) {
    all[i] = {session_handle(sessions[i]), gen_handle(gens[i])};
  }
  return all;
}

/* The seed of its draws. */
inline std::uint64_t seed(const gen_handle &generation) {
  std::uint64_t seed = 0;
  call([&](auto err) { return squire_gen_seed(generation.get(), &seed, err); });
  return seed;
}

/* Asks it to stop at the next token. */
inline void stop(const gen_handle &generation) noexcept { squire_gen_cancel(generation.get()); }

/* An event with nothing in it. */
inline squire_event event() noexcept {
  squire_event e;
  squire_event_init(&e, sizeof e);
  return e;
}

/* What came since the last time, waiting up to timeout_ms (-1: as long as it takes); SQUIRE_OK, SQUIRE_END or
 * SQUIRE_TIMEOUT. */
inline squire_status next(const gen_handle &generation, squire_event &e, std::int32_t timeout_ms = -1) {
  return call([&](auto err) { return squire_gen_next(generation.get(), timeout_ms, &e, err); });
}

/* One wait for many generations of an engine. */
inline queue_handle create_queue(const engine_handle &engine) {
  return make<queue_handle>([&](auto out, auto err) { return squire_queue_create(engine.get(), out, err); });
}

/* Puts a generation into it under a tag; it leaves with its end, or when it is released. */
inline void add(const queue_handle &queue, const gen_handle &generation, std::uint64_t tag) {
  call([&](auto err) { return squire_queue_add(queue.get(), generation.get(), tag, err); });
}

/* The tag of a generation that has something to tell, which is in `e`; none where nothing came in time. */
inline std::optional<std::uint64_t> next(const queue_handle &queue, squire_event &e, std::int32_t timeout_ms = -1) {
  std::uint64_t tag = 0;
  const squire_status status =
      call([&](auto err) { return squire_queue_next(queue.get(), timeout_ms, &tag, &e, err); });
  return status == SQUIRE_OK ? std::optional<std::uint64_t>(tag) : std::nullopt;
}

/* A descriptor that is readable while there may be something, for event loops. */
inline std::int32_t descriptor(const queue_handle &queue) {
  std::int32_t fd = -1;
  call([&](auto err) { return squire_queue_fd(queue.get(), &fd, err); });
  return fd;
}

/* A tool call, of an event of SQUIRE_EVENT_TOOL_CALL; the texts live as long as the event's. */
struct tool_call {
  std::string_view id, name, arguments;
  std::uint64_t index;
};

inline tool_call called(const squire_event &e) noexcept {
  return {{e.call_id, e.call_id_len}, {e.name, e.name_len}, {e.arguments, e.arguments_len}, e.call_index};
}

/* Why the text of an event of SQUIRE_EVENT_UNPARSED cannot be read; lives as long as the event's. */
inline std::string_view reason(const squire_event &e) noexcept { return {e.reason, e.reason_len}; }

/* Pulls a generation to its end and shows each event, of tokens and of parts, to `see`; gives one of SQUIRE_FINISH_... */
template <class F> std::int32_t pull(const gen_handle &generation, F &&see) {
  squire_event e = event();
  while (next(generation, e) == SQUIRE_OK) {
    see(std::as_const(e));
  }
  return e.finish;
}

/* The rest of a generation's text. */
inline std::string collect(const gen_handle &generation) {
  std::string text;
  pull(generation, [&](const squire_event &e) {
    if (e.kind == SQUIRE_EVENT_TOKENS) text.append(e.text, e.text_len);
  });
  return text;
}

/* Appends tokens and scores them, with the top_k likeliest at each; empty where it was stopped. */
inline scores_handle score(const session_handle &session, const ids &tokens, std::int32_t top_k = 0,
                           const cancel *stop = nullptr) {
  squire_cancel *flag = stop ? stop->get() : nullptr;
  return make<scores_handle>([&](auto out, auto err) {
    return squire_score(session.get(), tokens.data(), tokens.size(), top_k, flag, out, err);
  });
}

/* One token's score; the pointers live as long as the scores. */
struct score_row {
  double logprob;
  const std::int32_t *top_ids;
  const float *top_logprobs;
  std::size_t k;
};

inline score_row row(const scores_handle &scores, std::size_t i) {
  score_row r{};
  float logprob = 0;
  call([&](auto err) {
    return squire_scores_row(scores.get(), i, &logprob, &r.top_ids, &r.top_logprobs, &r.k, err);
  });
  r.logprob = logprob;
  return r;
}

#ifdef SQUIRE_EXPERIMENTAL

using distiller_handle = handle<squire_distiller, squire_distiller_release>;
using episode_handle = handle<squire_episode, squire_episode_release>;
using update_handle = handle<squire_update, squire_update_release>;
using record_handle = handle<squire_record, squire_record_release>;
using trajectory_handle = handle<squire_trajectory, squire_trajectory_release>;

/* An empty teacher means none. */
inline distiller_handle create_distiller(const model_handle &student, const model_handle &teacher,
                                         std::string_view settings_json) {
  return make<distiller_handle>([&](auto out, auto err) {
    return squire_distiller_create(student.get(), teacher.get(), settings_json.data(), settings_json.size(), out, err);
  });
}

/* Goes on from the newest checkpoint in a folder. */
inline distiller_handle resume_distiller(const model_handle &student, const model_handle &teacher,
                                         std::string_view settings_json, std::string_view folder) {
  return make<distiller_handle>([&](auto out, auto err) {
    return squire_distiller_resume(student.get(), teacher.get(), settings_json.data(), settings_json.size(),
                                   folder.data(), folder.size(), out, err);
  });
}

using teacher_handle = handle<squire_teacher, squire_teacher_release>;
using teacher_batch_handle = handle<squire_teacher_batch, squire_teacher_batch_release>;

/* A teacher in the host's own code. */
inline teacher_handle create_teacher(std::string_view options_json) {
  return make<teacher_handle>([&](auto out, auto err) {
    return squire_teacher_create(options_json.data(), options_json.size(), out, err);
  });
}

/* Another reference to the same teacher, for another thread. */
inline teacher_handle share(const teacher_handle &teacher) {
  return teacher_handle(squire_teacher_retain(teacher.get()));
}

/* Requests that wait, at most so many, go into batch: SQUIRE_OK. SQUIRE_TIMEOUT, and an empty batch, where none comes in
 * time; SQUIRE_END, and an empty batch, once the teacher is closed. */
inline squire_status next(const teacher_handle &teacher, std::size_t most, std::uint64_t timeout_ms,
                          teacher_batch_handle &batch) {
  squire_status status = SQUIRE_OK;
  batch = make<teacher_batch_handle>([&](auto out, auto err) {
    return status = squire_teacher_next(teacher.get(), most, timeout_ms, out, err);
  });
  return status;
}

/* Wakes everybody who waits for requests: there are no more, and what is asked from now on is refused. */
inline void close(const teacher_handle &teacher) {
  call([&](auto err) { return squire_teacher_close(teacher.get(), err); });
}

/* Request i of a batch, if it has as many; its ids live as long as the batch. */
inline std::optional<squire_teacher_request> request(const teacher_batch_handle &batch, std::size_t i) {
  squire_teacher_request r;
  squire_teacher_request_init(&r, sizeof r);
  const squire_status status =
      call([&](auto err) { return squire_teacher_batch_request(batch.get(), i, &r, err); });
  return status == SQUIRE_OK ? std::optional<squire_teacher_request>(r) : std::nullopt;
}

/* Answers a request: the ids that were asked about with their log-probs, and top_k ids with theirs for each of them. */
inline void reply(const teacher_handle &teacher, std::uint64_t number, const std::vector<std::int32_t> &ids,
                  const std::vector<float> &logprobs, const std::vector<std::int32_t> &top_ids = {},
                  const std::vector<float> &top_logprobs = {}) {
  /* Fewer log-probs than ids are for the call to refuse: NULL has none. */
  const float *of_ids = logprobs.size() == ids.size() ? logprobs.data() : nullptr;
  const float *of_top = top_logprobs.size() == top_ids.size() ? top_logprobs.data() : nullptr;
  call([&](auto err) {
    return squire_teacher_reply(teacher.get(), number, ids.data(), ids.size(), of_ids, top_ids.data(), of_top,
                                top_ids.size(), err);
  });
}

/* Answers a request for a turn: the ids of the turn, what ends it included, with their log-probs or none. cut_off: it ended
 * for want of room. */
inline void say(const teacher_handle &teacher, std::uint64_t number, const std::vector<std::int32_t> &ids,
                const std::vector<float> &logprobs = {}, bool cut_off = false) {
  call([&](auto err) {
    return squire_teacher_say(teacher.get(), number, ids.data(), ids.size(), logprobs.data(), logprobs.size(),
                              cut_off ? SQUIRE_SAY_CUT_OFF : 0u, err);
  });
}

/* The same where the log-probs are not known. */
inline void say(const teacher_handle &teacher, std::uint64_t number, const std::vector<std::int32_t> &ids, bool cut_off) {
  say(teacher, number, ids, {}, cut_off);
}

/* The same by text, without what ends the turn. */
inline void say_text(const teacher_handle &teacher, std::uint64_t number, std::string_view text, bool cut_off = false) {
  call([&](auto err) {
    return squire_teacher_say_text(teacher.get(), number, text.data(), text.size(), cut_off ? SQUIRE_SAY_CUT_OFF : 0u,
                                   err);
  });
}

inline void fail(const teacher_handle &teacher, std::uint64_t number, std::string_view why) {
  call([&](auto err) { return squire_teacher_fail(teacher.get(), number, why.data(), why.size(), err); });
}

/* Whether the teacher says the same twice, as JSON; empty where it was stopped. 0: as long as the teacher's deadline. */
inline text_handle check_teacher(const distiller_handle &distiller, std::string_view check_json = "{}",
                                 std::uint64_t timeout_ms = 0, const cancel *stop = nullptr) {
  squire_cancel *flag = stop ? stop->get() : nullptr;
  return make<text_handle>([&](auto out, auto err) {
    return squire_distiller_check_teacher(distiller.get(), check_json.data(), check_json.size(), timeout_ms, flag, out,
                                          err);
  });
}

/* What a request's distiller is compared with. */
inline std::uint64_t number(const distiller_handle &distiller) {
  std::uint64_t n = 0;
  call([&](auto err) { return squire_distiller_number(distiller.get(), &n, err); });
  return n;
}

inline distiller_handle create_distiller(const model_handle &student, const teacher_handle &teacher,
                                         std::string_view settings_json) {
  return make<distiller_handle>([&](auto out, auto err) {
    return squire_distiller_create_taught(student.get(), teacher.get(), settings_json.data(), settings_json.size(), out,
                                          err);
  });
}

inline distiller_handle resume_distiller(const model_handle &student, const teacher_handle &teacher,
                                         std::string_view settings_json, std::string_view folder) {
  return make<distiller_handle>([&](auto out, auto err) {
    return squire_distiller_resume_taught(student.get(), teacher.get(), settings_json.data(), settings_json.size(),
                                          folder.data(), folder.size(), out, err);
  });
}

/* The step of the newest checkpoint in a folder, if it holds one. */
inline std::optional<std::uint64_t> checkpoint(std::string_view folder) {
  std::uint64_t step = 0;
  const squire_status status =
      call([&](auto err) { return squire_checkpoint_probe(folder.data(), folder.size(), &step, err); });
  return status == SQUIRE_OK ? std::optional<std::uint64_t>(step) : std::nullopt;
}

inline void save(const distiller_handle &distiller, std::string_view folder) {
  call([&](auto err) { return squire_distiller_save(distiller.get(), folder.data(), folder.size(), err); });
}

/* What settings will do over a run; 0 steps: as many as they say. */
inline text_handle explain(std::string_view settings_json, std::uint64_t steps = 0) {
  return make<text_handle>([&](auto out, auto err) {
    return squire_distiller_explain(settings_json.data(), settings_json.size(), steps, out, err);
  });
}

/* Throws ended episodes away and gives their number. */
inline std::uint64_t discard(const distiller_handle &distiller) {
  std::uint64_t thrown_away = 0;
  call([&](auto err) { return squire_distiller_discard(distiller.get(), &thrown_away, err); });
  return thrown_away;
}

inline text_handle metrics(const distiller_handle &distiller) {
  return make<text_handle>([&](auto out, auto err) { return squire_distiller_metrics(distiller.get(), out, err); });
}

inline std::uint64_t publish(const distiller_handle &distiller) {
  std::uint64_t number = 0;
  call([&](auto err) { return squire_distiller_publish(distiller.get(), &number, err); });
  return number;
}

inline std::uint64_t publish_anyway(const distiller_handle &distiller) {
  std::uint64_t number = 0;
  call([&](auto err) { return squire_distiller_publish_anyway(distiller.get(), &number, err); });
  return number;
}

/* Goes back to a revision that is kept, and gives the number under which it is served again. */
inline std::uint64_t rollback(const distiller_handle &distiller, std::uint64_t revision) {
  std::uint64_t number = 0;
  call([&](auto err) { return squire_distiller_rollback(distiller.get(), revision, &number, err); });
  return number;
}

/* Writes the run down in a folder from now on. */
inline void record(const distiller_handle &distiller, std::string_view folder, std::string_view recording_json = "{}") {
  call([&](auto err) {
    return squire_distiller_record(distiller.get(), folder.data(), folder.size(), recording_json.data(),
                                   recording_json.size(), err);
  });
}

inline void stop_recording(const distiller_handle &distiller) {
  call([&](auto err) { return squire_distiller_record(distiller.get(), nullptr, 0, "{}", 2, err); });
}

inline record_handle open_record(std::string_view path) {
  return make<record_handle>(
      [&](auto out, auto err) { return squire_record_open(path.data(), path.size(), out, err); });
}

inline text_handle info(const record_handle &record) {
  return make<text_handle>([&](auto out, auto err) { return squire_record_info(record.get(), out, err); });
}

inline std::size_t count(const record_handle &record) {
  std::size_t n = 0;
  call([&](auto err) { return squire_record_count(record.get(), &n, err); });
  return n;
}

inline trajectory_handle episode(const record_handle &record, std::size_t index) {
  return make<trajectory_handle>(
      [&](auto out, auto err) { return squire_record_episode(record.get(), index, out, err); });
}

/* Lets episodes of a record wait for an update; 0 episodes: all. */
inline text_handle import_record(const distiller_handle &distiller, const record_handle &record,
                                 std::uint64_t max_episodes = 0) {
  return make<text_handle>([&](auto out, auto err) {
    return squire_distiller_import(distiller.get(), record.get(), max_episodes, out, err);
  });
}

inline trajectory_handle trajectory(const episode_handle &episode) {
  return make<trajectory_handle>([&](auto out, auto err) { return squire_episode_trajectory(episode.get(), out, err); });
}

/* An array of a trajectory: its first element and its length. They live as long as the trajectory. */
template <class T> struct array_view {
  const T *data = nullptr;
  std::size_t size = 0;
  const T *begin() const { return data; }
  const T *end() const { return data + size; }
  const T &operator[](std::size_t i) const { return data[i]; }
};

namespace detail {
template <class T>
array_view<T> array_of(const trajectory_handle &t, const T *(*of)(const squire_trajectory *, std::size_t *)) {
  array_view<T> view;
  view.data = of(t.get(), &view.size);
  return view;
}
} /* namespace detail */

inline array_view<std::int32_t> trajectory_ids(const trajectory_handle &t) {
  return detail::array_of(t, squire_trajectory_ids);
}

inline array_view<std::uint8_t> trajectory_sources(const trajectory_handle &t) {
  return detail::array_of(t, squire_trajectory_sources);
}

inline array_view<float> trajectory_logprobs(const trajectory_handle &t) {
  return detail::array_of(t, squire_trajectory_logprobs);
}

inline array_view<float> trajectory_sampled_logprobs(const trajectory_handle &t) {
  return detail::array_of(t, squire_trajectory_sampled_logprobs);
}

inline array_view<float> trajectory_teacher_logprobs(const trajectory_handle &t) {
  return detail::array_of(t, squire_trajectory_teacher_logprobs);
}

inline array_view<std::int32_t> trajectory_teacher_top_ids(const trajectory_handle &t) {
  return detail::array_of(t, squire_trajectory_teacher_top_ids);
}

inline array_view<float> trajectory_teacher_top_logprobs(const trajectory_handle &t) {
  return detail::array_of(t, squire_trajectory_teacher_top_logprobs);
}

inline std::string_view trajectory_json(const trajectory_handle &t) {
  std::size_t n = 0;
  const char *data = squire_trajectory_json(t.get(), &n);
  return std::string_view(data, n);
}

inline episode_handle begin(const distiller_handle &distiller, std::string_view spec_json = "{}") {
  return make<episode_handle>([&](auto out, auto err) {
    return squire_episode_begin(distiller.get(), spec_json.data(), spec_json.size(), out, err);
  });
}

/* An episode that stands where this one stands, or stood before the turn that fork_json asks for. */
inline episode_handle fork(const episode_handle &episode, std::string_view fork_json = "{}") {
  return make<episode_handle>([&](auto out, auto err) {
    return squire_episode_fork(episode.get(), fork_json.data(), fork_json.size(), out, err);
  });
}

/* Computes what stands in the episode, so that forks share it. Whether it came to its end. */
inline bool prefill(const episode_handle &episode, const cancel *stop = nullptr) {
  return call([&](auto err) { return squire_episode_prefill(episode.get(), stop ? stop->get() : nullptr, err); }) ==
         SQUIRE_OK;
}

inline void observe(const episode_handle &episode, std::string_view messages_json) {
  call([&](auto err) {
    return squire_episode_observe(episode.get(), messages_json.data(), messages_json.size(), nullptr, err);
  });
}

/* The same until stop is set: then false, and the episode is as it was. */
inline bool observe(const episode_handle &episode, std::string_view messages_json, const cancel &stop) {
  const char *const data = messages_json.data();
  return call([&](auto err) {
    return squire_episode_observe_until(episode.get(), data, messages_json.size(), stop.get(), nullptr, err);
  }) == SQUIRE_OK;
}

inline void observe(const episode_handle &episode, const ids &tokens) {
  call([&](auto err) { return squire_episode_observe_ids(episode.get(), tokens.data(), tokens.size(), err); });
}

/* The same where the teacher is to read other ids in their place. */
inline void observe(const episode_handle &episode, const ids &tokens, const ids &theirs) {
  call([&](auto err) {
    return squire_episode_observe_view_ids(episode.get(), tokens.data(), tokens.size(), theirs.data(), theirs.size(), err);
  });
}

/* A decision with nothing in it. */
inline squire_decision decision() noexcept {
  squire_decision d;
  squire_decision_init(&d, sizeof d);
  return d;
}

/* Lets one of SQUIRE_ACTOR_... act, whatever the curriculum says. */
inline squire_decision override_actor(const episode_handle &episode, std::int32_t actor) {
  squire_decision decision = squire::decision();
  call([&](auto err) { return squire_episode_override(episode.get(), actor, &decision, err); });
  return decision;
}

inline squire_decision decide(const episode_handle &episode) {
  squire_decision decision = squire::decision();
  call([&](auto err) { return squire_episode_decide(episode.get(), &decision, err); });
  return decision;
}

/* Whether the student's proposal stands, in `decision`; false where `stop` stopped it. */
inline bool judge(const episode_handle &episode, squire_decision &decision, const cancel *stop = nullptr) {
  decision = squire::decision();
  return call([&](auto err) {
           return squire_episode_judge(episode.get(), &decision, stop ? stop->get() : nullptr, err);
         }) == SQUIRE_OK;
}

inline gen_handle act(const episode_handle &episode, const squire_gen_options &options = gen_options()) {
  return make<gen_handle>([&](auto out, auto err) { return squire_episode_act(episode.get(), &options, out, err); });
}

inline void replay(const episode_handle &episode, const ids &tokens) {
  call([&](auto err) { return squire_episode_replay_ids(episode.get(), tokens.data(), tokens.size(), err); });
}

/* This turn's action of the demonstration in the episode's specification. */
inline void replay(const episode_handle &episode) {
  call([&](auto err) { return squire_episode_replay_stored(episode.get(), err); });
}

inline text_handle trace(const episode_handle &episode) {
  return make<text_handle>([&](auto out, auto err) { return squire_episode_trace(episode.get(), out, err); });
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

/* The same; progress(phase, done, total) hears of the tokens and gives whether to go on. */
template <class F, if_progress<F> = 0>
update_handle build(const distiller_handle &distiller, F &&progress, std::uint32_t max_episodes = 0,
                    const cancel *stop = nullptr) {
  progress_of<std::remove_reference_t<F>> heard(progress);
  squire_cancel *flag = stop ? stop->get() : nullptr;
  update_handle update = make<update_handle>([&](auto out, auto err) {
    return squire_update_build(distiller.get(), max_episodes, flag, heard.tell, heard.user(), out, err);
  });
  heard.rethrow();
  return update;
}

/* A gradient: f32, its shape outermost first. It lives until the function that is shown it returns. */
struct tensor {
  std::string_view name;
  const std::uint64_t *shape;
  std::size_t rank;
  const float *data;
  std::size_t elements;
};

/* Shows every gradient to take(tensor), which gives whether to go on; whether all were shown. */
template <class F> bool gradients(const update_handle &update, F &&take) {
  struct shown {
    std::remove_reference_t<F> *take;
    std::exception_ptr thrown;
  } shown{&take, nullptr};
  const squire_tensor_fn show = [](void *user, const char *name, std::size_t name_len, std::int32_t,
                                   const std::uint64_t *shape, std::size_t rank, const void *data,
                                   std::size_t bytes) -> std::int32_t {
    auto *to = static_cast<struct shown *>(user);
    try {
      const tensor t{std::string_view(name, name_len), shape, rank, static_cast<const float *>(data),
                     bytes / sizeof(float)};
      return (*to->take)(t) ? 0 : 1;
    } catch (...) {
      to->thrown = std::current_exception();
      return 1;
    }
  };
  const squire_status status =
      call([&](auto err) { return squire_update_gradients(update.get(), show, &shown, err); });
  if (shown.thrown) {
    std::rethrow_exception(shown.thrown);
  }
  return status == SQUIRE_OK;
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
