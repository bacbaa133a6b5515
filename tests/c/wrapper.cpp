/* The C++ header: errors become exceptions, handles end by themselves. */
#define SQUIRE_EXPERIMENTAL
#include "squire.hpp"

#include <chrono>
#include <thread>

#include "check.h"

/* A student serves a chat, and learns from a teacher what it does on its own. Arguments as those of api.c. */
static void a_student_serves_and_learns(char **argv) {
  squire_engine_options options = squire::engine_options();
  options.compute = SQUIRE_COMPUTE_F32;
  const squire::engine_handle engine = squire::create_engine(options);

  const squire::model_handle chat = squire::load_model(engine, argv[3]);
  CHECK(squire::detokenize(chat, squire::tokenize(chat, "hello user")) == "hello user");
  squire::session_handle session = squire::create_session(chat);
  const auto added = squire::append_chat(
      session, R"({"messages": [{"role": "user", "content": "hello"}], "add_generation_prompt": true})");
  CHECK(added == squire::timeline(session).size());
  squire_gen_options generation = squire::gen_options();
  generation.temperature = 0;
  generation.max_tokens = 8;
  generation.flags = SQUIRE_GEN_IGNORE_MODEL_STOPS;
  const squire::session_handle twin = squire::fork(session);
  const std::string said = squire::collect(squire::generate(session, generation));
  CHECK(said == squire::collect(squire::generate(twin, generation)));
  CHECK(squire::timeline(session).size() == added + 8);
  session.reset();

  const squire::model_handle student = squire::load_model(engine, argv[1]), teacher = squire::load_model(engine, argv[2]);
  const squire::distiller_handle distiller = squire::create_distiller(student, teacher, R"({"preset": "opd"})");
  const auto checked = squire::check_teacher(distiller, R"({"ids": [5, 6, 7, 8, 9]})");
  CHECK(squire::view(checked).find("\"warnings\":[]") != std::string_view::npos);
  const squire::episode_handle episode = squire::begin(distiller);
  squire::observe(episode, squire::ids{5, 6, 7});
  generation.temperature = SQUIRE_GEN_UNSET; // a training rollout samples as the settings say
  CHECK(squire::decide(episode).actor == SQUIRE_ACTOR_STUDENT);
  std::size_t n = 0;
  const auto finish = squire::pull(squire::act(episode, generation), [&](const squire_event &e) { n += e.ids_len; });
  CHECK(finish == SQUIRE_FINISH_LENGTH && n == 8);
  squire::outcome(episode);
  CHECK(squire::prefill(episode));
  const squire::episode_handle next = squire::fork(episode), again = squire::fork(episode, R"({"turn": 0})");
  CHECK(squire::view(squire::trace(next)).find(R"("forked_from":{"episode":0,"turn":1})") != std::string_view::npos);
  CHECK(squire::decide(again).turn == 0 && squire::decide(again).episode == 2);
  squire::observe(next, squire::ids{5, 6}, squire::ids{9, 9, 9, 5, 6}); // the teacher reads more
  squire::end(episode, 1, 1);
  const squire::update_handle update = squire::build(distiller);
  CHECK(squire::view(squire::report(update)).find("\"trained_tokens\":8") != std::string_view::npos);
  squire::apply(distiller, update);
  CHECK(squire::publish(distiller) == 2 && squire::revision(student) == 2 && squire::number(distiller) > 0);

  const squire::cancel stop;
  stop.set();
  CHECK(!squire::load_model(engine, argv[1], squire::model_options(), &stop)); /* cancelled is no exception */
}

/* What the wrapper gives of each section of the C header, and that exceptions of callbacks come out on this side. */
static void every_section_is_wrapped(char **argv) {
  CHECK(squire::abi_version() == SQUIRE_ABI && std::string(squire::version()) == SQUIRE_VERSION);
  CHECK(std::string_view(squire::build_json()).find("\"kernel_sets\"") != std::string_view::npos);
  CHECK(std::string(squire::status_name(SQUIRE_E_BUSY)) == "SQUIRE_E_BUSY");
  CHECK(squire::view(squire::probe_devices()).find("\"cpu\"") != std::string_view::npos);

  std::string lines;
  auto hear = [&](std::int32_t, std::string_view target, std::string_view message) noexcept {
    lines.append(target).append(": ").append(message).append("\n");
  };
  squire_engine_options options = squire::engine_options();
  options.compute = SQUIRE_COMPUTE_F32;
  options.drive = SQUIRE_DRIVE_CALLER;
  squire::log_to(options, hear);
  const squire::engine_handle engine = squire::create_engine(options), same = squire::share(engine);
  CHECK(same.get() == engine.get() && !squire::step(engine));
  CHECK(squire::view(squire::plan(engine, argv[1])).find("\"weight_bytes\"") != std::string_view::npos);
  std::uint64_t told = 0, all = 1;
  auto progress = [&](std::string_view phase, std::uint64_t done, std::uint64_t total) {
    CHECK(phase == "weights" && done >= told);
    told = done, all = total;
    return true;
  };
  const squire::model_handle student = squire::load_model(engine, argv[1], progress);
  const squire::model_handle twin = squire::share(student), chat = squire::load_model(engine, argv[3]);
  CHECK(student && twin.get() == student.get() && told == all && all > 0);
  CHECK(lines.find("model: ready: ") != std::string::npos);
  auto refuse = [](std::string_view, std::uint64_t, std::uint64_t) { return false; };
  CHECK(!squire::load_model(engine, argv[1], refuse));
  struct thrown {};
  auto fail = [](std::string_view, std::uint64_t, std::uint64_t) -> bool { throw thrown(); };
  bool caught = false;
  try {
    squire::load_model(engine, argv[1], fail);
  } catch (const thrown &) {
    caught = true;
  }
  CHECK(caught);

  {
    const squire::teacher_handle other = squire::create_teacher(R"({"vocabulary": "another"})");
    const squire::distiller_handle taught = squire::create_distiller(chat, other, R"({"preset": "sft",
      "actor": {"kind": "teacher"}, "teacher_turns": {"kernel": "cross-entropy"}})");
    const squire::episode_handle heard = squire::begin(taught, "{}");
    for (const bool cut_off : {false, true}) {
      squire::observe(heard, R"({"messages": [{"role": "user", "content": "hi"}]})");
      CHECK(squire::decide(heard).actor == SQUIRE_ACTOR_TEACHER);
      const squire::gen_handle said = squire::act(heard);
      squire::teacher_batch_handle asked;
      CHECK(squire::next(other, 1, 0, asked) == SQUIRE_OK);
      const auto r = squire::request(asked, 0);
      CHECK(r && r->kind == SQUIRE_REQUEST_TURN);
      CHECK(std::string_view(r->messages, r->messages_len).find("hi") != std::string_view::npos);
      bool refused = false;
      try {
        squire::say(other, r->number, {0, 9}, cut_off);
      } catch (const squire::error &e) {
        refused = e.detail() == SQUIRE_DETAIL_TEACHER_REPLY;
      }
      CHECK(refused);
      squire::say_text(other, r->number, "yes", cut_off);
      squire::outcome(heard);
    }
    CHECK(squire::view(squire::trace(heard)).find("\"from_text\":true") != std::string_view::npos);
  }
  const squire::teacher_handle teacher = squire::create_teacher(R"({"vocabulary": "the-students"})");
  squire::teacher_batch_handle batch;
  CHECK(squire::next(teacher, 1, 0, batch) == SQUIRE_TIMEOUT && !batch);
  std::thread closing([&] { squire::close(squire::share(teacher)); });
  CHECK(squire::next(teacher, 1, 3600000, batch) == SQUIRE_END && !batch);
  closing.join();

  CHECK(squire::view(squire::info(chat)).find("\"generation_defaults\"") != std::string_view::npos);
  CHECK(squire::sizes(student).vocabulary == 259 && squire::sizes(student).tokenizer_ids == 0);
  CHECK(squire::sizes(chat).tokenizer_ids > 256 && squire::sizes(chat).max_context == 2048);
  CHECK(squire::stop_ids(chat) == squire::ids{266} && squire::stop_ids(student).size() < 2);
  CHECK(squire::gen_options().temperature == SQUIRE_GEN_UNSET && squire::gen_options(chat).temperature == 1);
  const std::string_view asked = R"({"messages": [{"role": "user", "content": "hello"}]})";
  const squire::cancel unset, stop;
  stop.set();
  CHECK(squire::render_chat(chat, asked).size() > 3);
  squire::session_handle plain = squire::create_session(chat);
  CHECK(squire::append_message(plain, "user", "hello") == squire::render_chat(chat, asked).size());
  CHECK(squire::timeline(plain) == squire::render_chat(chat, asked));
  CHECK(squire::append_message(plain, "user", "hello", true) > 6 && squire::append_message(plain, "user", "x", false, &stop) == 0);
  squire_gen_options apart = squire::gen_options();
  apart.flags = SQUIRE_GEN_PARTS | SQUIRE_GEN_IGNORE_MODEL_STOPS;
  apart.max_tokens = 5;
  std::string raw, said;
  squire::pull(squire::generate(plain, apart), [&](const squire_event &e) {
    (e.kind == SQUIRE_EVENT_TOKENS ? raw : said).append(e.text ? e.text : "", e.text_len);
    CHECK(e.kind != SQUIRE_EVENT_TOOL_CALL || squire::called(e).name.empty());
    CHECK((e.kind == SQUIRE_EVENT_UNPARSED) == !squire::reason(e).empty());
  });
  CHECK(!raw.empty() && !said.empty());
  squire::set_history(chat, "tool_cycle");
  CHECK(squire::view(squire::info(chat)).find("\"history\":\"tool_cycle\"") != std::string_view::npos);
  squire::set_history(chat, "keep");
  CHECK(squire::render_chat(chat, asked, unset) == squire::render_chat(chat, asked));
  CHECK(squire::tokenize(chat, "hello", 0, unset) == squire::tokenize(chat, "hello"));
  CHECK(squire::render_chat(chat, asked, stop).empty() && squire::tokenize(chat, "hello", 0, stop).empty());
  /* Much text on one thread is stopped by another. */
  const std::string word(16u << 20, 'a');
  const squire::cancel late;
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    late.set();
  });
  CHECK(squire::tokenize(chat, word, 0, late).empty());
  other.join();

  const squire::session_handle session = squire::create_session(student), session_twin = squire::share(session);
  CHECK(squire::sync(session, squire::ids{5, 6, 7, 8}) == 0);
  caught = false;
  try {
    squire::prefill(session, fail);
  } catch (const thrown &) {
    caught = true;
  }
  CHECK(caught && !squire::prefill(session, refuse) && squire::prefill(session) && squire::prefill(session_twin));
  const squire::session_length l = squire::length(session);
  CHECK(l.length == 4 && l.pending == 0 && l.room == squire::sizes(student).max_context - 4);
  squire::append(session, squire::ids{9});
  squire::truncate(session, 4);
  CHECK(squire::rebase(session) == 1 && squire::timeline(session) == (squire::ids{5, 6, 7, 8}));
  const squire::scores_handle scores = squire::score(session, squire::ids{9, 10}, 2);
  const squire::score_row best = squire::row(scores, 1);
  CHECK(best.k == 2 && best.logprob <= 0 && best.top_logprobs[0] >= best.top_logprobs[1] && best.top_ids[0] >= 0);
  CHECK(squire::view(squire::trace(session)).find("\"sources\"") != std::string_view::npos);
  squire_gen_options several = squire::gen_options();
  several.max_tokens = 2, several.seed = 4;
  for (const squire::continuation &one : squire::generate_several(session, 2, several)) {
    CHECK(squire::pull(one.generation, [](const squire_event &) {}) == SQUIRE_FINISH_LENGTH);
    CHECK(squire::length(one.session).length == 8);
  }
  squire_gen_options drawing = squire::gen_options();
  drawing.seed = 9;
  const squire::gen_handle generation = squire::generate(session, drawing);
  CHECK(squire::seed(generation) == 9);
  squire_event e = squire::event();
  CHECK(squire::next(generation, e, 0) == SQUIRE_TIMEOUT && squire::step(engine));
  CHECK(squire::next(generation, e) == SQUIRE_OK && e.ids_len == 1);
  squire::stop(generation);
  CHECK(squire::pull(generation, [](const squire_event &) {}) == SQUIRE_FINISH_CANCELLED);
  CHECK(squire::view(squire::metrics(engine)).find("\"rows\"") != std::string_view::npos);

  const std::string folder = std::string(argv[4]) + "/checkpoints", saved = std::string(argv[4]) + "/student";
  const char *const sft = R"({"preset": "sft", "steps": 3})";
  CHECK(squire::view(squire::explain(sft)).find("\"steps\":3") != std::string_view::npos);
  CHECK(!squire::checkpoint(folder));
  squire::distiller_handle distiller = squire::create_distiller(chat, squire::model_handle(), sft);
  auto play = [&](int way) {
    const squire::episode_handle episode = squire::begin(distiller, R"({"demonstration": ["hello"]})");
    CHECK(!squire::observe(episode, R"([{"role": "user", "content": "hello"}])", stop));
    squire::observe(episode, R"([{"role": "user", "content": "hello"}])");
    CHECK(squire::override_actor(episode, SQUIRE_ACTOR_REPLAY).reason == SQUIRE_REASON_HOST_OVERRIDE);
    if (way == 0) {
      squire::replay(episode);
    } else if (way == 1) {
      squire::replay(episode, "hello");
    } else {
      squire::replay(episode, squire::ids{104, 266});
    }
    squire::outcome(episode, 1, SQUIRE_OUTCOME_HAS_REWARD);
    CHECK(squire::view(squire::trace(episode)).find("\"actor\":\"replay\"") != std::string_view::npos);
    squire::end(episode, 1, 1);
  };
  play(0), play(1), play(2);
  CHECK(squire::discard(distiller) == 3);
  play(0), play(1), play(2);
  CHECK(!squire::build(distiller, refuse));
  caught = false;
  try {
    squire::build(distiller, fail, 1);
  } catch (const thrown &) {
    caught = true;
  }
  CHECK(caught);
  const squire::update_handle update = squire::build(distiller, 0);
  std::size_t elements = 0;
  CHECK(squire::gradients(update, [&](const squire::tensor &t) {
    std::uint64_t n = 1;
    for (std::size_t i = 0; i < t.rank; i++) {
      n *= t.shape[i];
    }
    CHECK(n == t.elements && t.data != nullptr && t.name.substr(0, 6) == "model.");
    elements += t.elements;
    return true;
  }));
  CHECK(elements > 10000 && !squire::gradients(update, [](const squire::tensor &) { return false; }));
  caught = false;
  try {
    squire::gradients(update, [](const squire::tensor &) -> bool { throw thrown(); });
  } catch (const thrown &) {
    caught = true;
  }
  CHECK(caught);
  squire::apply(distiller, update);
  CHECK(lines.find("distill: step 1 of 3 applied") != std::string::npos);
  squire::save(distiller, folder);
  CHECK(squire::checkpoint(folder) == 1u);
  distiller = squire::resume_distiller(chat, squire::model_handle(), sft, folder);
  CHECK(squire::view(squire::metrics(distiller)).find("\"step\":1,") != std::string_view::npos);
  squire::save_model(chat, saved);
  CHECK(squire::load_model(engine, saved) != nullptr);
}

int main(int argc, char **argv) {
  CHECK(argc == 5);
  a_student_serves_and_learns(argv);
  every_section_is_wrapped(argv);
  squire::cancel flag;
  const squire::cancel same = flag;
  same.set();
  CHECK(flag.get() == same.get());
  CHECK(squire::adopt(flag.get()).get() == flag.get());

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
