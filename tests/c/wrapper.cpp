/* The C++ header: errors become exceptions, handles end by themselves. */
#define SQUIRE_EXPERIMENTAL
#include "squire.hpp"

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
  const squire::episode_handle episode = squire::begin(distiller);
  squire::observe(episode, squire::ids{5, 6, 7});
  CHECK(squire::decide(episode).actor == SQUIRE_ACTOR_STUDENT);
  std::size_t n = 0;
  const auto finish = squire::pull(squire::act(episode, generation), [&](const squire_event &e) { n += e.ids_len; });
  CHECK(finish == SQUIRE_FINISH_LENGTH && n == 8);
  squire::outcome(episode);
  squire::end(episode, 1, 1);
  const squire::update_handle update = squire::build(distiller);
  CHECK(squire::view(squire::report(update)).find("\"trained_tokens\":8") != std::string_view::npos);
  squire::apply(distiller, update);
  CHECK(squire::publish(distiller) == 2 && squire::revision(student) == 2);

  const squire::cancel stop;
  stop.set();
  CHECK(!squire::load_model(engine, argv[1], squire::model_options(), &stop)); /* cancelled is no exception */
}

int main(int argc, char **argv) {
  CHECK(argc == 5);
  a_student_serves_and_learns(argv);
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
