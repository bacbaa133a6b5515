"""Renders chats with the Qwen3 template as transformers does, into chat/*.json.

Made with Python 3.11 and jinja2 3.1.6:  pip install jinja2==3.1.6 && python tests/golden/make_chat.py

The environment repeats transformers' `_compile_jinja_template`: an immutable sandbox with trimmed blocks, loop
controls, and `tojson` as `json.dumps(ensure_ascii=False)`.
"""

import json
import pathlib
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox

HERE = pathlib.Path(__file__).parent


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
)
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = raise_exception
template = environment.from_string((HERE / "qwen3_chat_template.jinja").read_text())

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather at a place, <now> & 'later' — °C",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string"}, "days": {"type": "integer", "default": 1}},
                "required": ["place"],
            },
        },
    },
    {"type": "function", "function": {"name": "threshold", "parameters": {"step": 1e-07, "top": 1e16, "half": 0.5}}},
]


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def tool(text):
    return {"role": "tool", "content": text}


def call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


WEATHER = call("get_weather", {"place": "Zürich", "days": 2})
TOOL_TURNS = [
    user("Weather in Zürich and Bern?"),
    assistant("", tool_calls=[WEATHER, call("get_weather", '{"place": "Bern"}')]),
    tool('{"celsius": 21.5}'),
    tool("rain <b>&</b> wind"),
    assistant("<think>\nBoth are known.\n</think>\n\nZürich 21.5 °C, Bern rain."),
    user("Thanks. And tomorrow?"),
    assistant("Let me look.", reasoning_content="A call is needed.", tool_calls=[WEATHER]),
    tool("sun"),
]

CASES = {
    "one_user_message": ([user("Hi")], {"add_generation_prompt": True}),
    "thinking_on": ([user("Hi")], {"add_generation_prompt": True, "enable_thinking": True}),
    "thinking_off": ([system("Be brief."), user("Hi")], {"add_generation_prompt": True, "enable_thinking": False}),
    "system_and_white_space": ([system("  a\n\n"), user("\n b \n")], {}),
    "tools_without_system": ([user("Weather?")], {"tools": TOOLS, "add_generation_prompt": True}),
    "tools_with_system": ([system("Be brief."), user("Weather?")], {"tools": TOOLS, "add_generation_prompt": True}),
    "tool_calls_and_responses": (TOOL_TURNS, {"tools": TOOLS, "add_generation_prompt": True}),
    "thinking_off_after_tools": (TOOL_TURNS, {"tools": TOOLS, "add_generation_prompt": True, "enable_thinking": False}),
    "old_thinking_is_stripped": (
        [user("1"), assistant("<think>\na\n</think>\n\none"), user("2"), assistant("<think>\nb\n</think>\n\ntwo")],
        {},
    ),
    "reasoning_content": ([user("1"), assistant("one", reasoning_content="\nthought\n")], {}),
    "a_later_system_message": ([user("1"), assistant("one"), system("new rule"), user("2")], {}),
    "a_user_message_that_is_a_tool_response": (
        [user("1"), assistant("", tool_calls=[WEATHER]), user("<tool_response>\n5\n</tool_response>"), assistant("five")],
        {},
    ),
    "other_scripts": ([user("你好 😀 \u0000\t\"quoted\" \\ é")], {"add_generation_prompt": True}),
}

if __name__ == "__main__":
    print(sys.version.split()[0], jinja2.__version__)
    folder = HERE / "chat"
    folder.mkdir(exist_ok=True)
    for name, (messages, options) in CASES.items():
        options = {"tools": None, "add_generation_prompt": False} | options
        expected = template.render(messages=messages, documents=None, **options)
        case = {"messages": messages, "options": options, "expected": expected}
        (folder / f"{name}.json").write_text(json.dumps(case, ensure_ascii=False, indent=1) + "\n")
