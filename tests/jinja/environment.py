"""jinja2 set up as transformers sets it up for chat templates (utils/chat_template_utils.py)."""

import copy
import json

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

assert jinja2.__version__ == "3.1.6", "the answers are those of jinja2==3.1.6"


class Generation(Extension):
    """{% generation %}: the body is a call block, as in transformers' AssistantTracker."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("_support")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    @jinja2.pass_eval_context
    def _support(self, context, caller):
        return caller()


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda format: "today"
    return env


def answer(env, source, variables):
    """What jinja2 renders, or ("error", why)."""
    try:
        text = env.from_string(source).render(**copy.deepcopy(variables))  # the filter indent changes a list
        text.encode()
        return "output", text
    except RecursionError:
        return "error", "RecursionError"
    except Exception as error:  # whatever it is, a request fails with it
        return "error", f"{type(error).__name__}: {error}"[:200]
