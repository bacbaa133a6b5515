"""Random templates, for a comparison of the two engines.

python3 tests/jinja/fuzz.py SEED COUNT FILE, then SQUIRE_JINJA_ANSWERS=FILE cargo test --release --lib recorded_answer
"""

import json
import random
import signal
import sys
import warnings

from cases import VALUES, VARIABLES, refused
from environment import answer, environment

warnings.simplefilter("ignore")
R = random.Random(int(sys.argv[1]))
NAMES = ["a", "b", "x", "ns", "i7", "s", "l", "d", "nested", "missing"]
METHODS = ["upper()", "lower()", "strip()", "split()", "split('o')", "items()", "keys()", "values()", "get('a')", "get('b', 1)", "title()", "startswith('H')", "replace('l', 'LL')", "join(l_str)", "count('l')", "find('l')", "index(1)", "copy()", "rsplit('l', 1)", "splitlines()", "isdigit()", "zfill(9)", "center(13)", "partition('l')", "format(1, 2)", "rstrip('d')", "capitalize()", "swapcase()"]
FILTERS = ["upper", "lower", "title", "trim", "length", "list", "join", "join(',')", "first", "last", "sort", "unique|list", "reverse|list", "string", "int", "float", "abs", "round", "round(1)", "default('D')", "default('D', true)", "tojson", "tojson(indent=1)", "map('string')|list", "map('upper')|join('-')", "select|list", "reject('odd')|list", "select('string')|list", "sum", "max", "min", "batch(2)|list", "slice(2)|list", "indent", "indent(1, true)", "replace('l', 'r')", "capitalize", "wordcount", "truncate(7)", "dictsort", "items|list", "map(attribute='n')|list", "selectattr('v')|list", "groupby('v')|list", "e", "safe", "center(9)", "wordwrap(6)", "urlencode", "format(1)", "attr('a')", "striptags", "xmlattr", "filesizeformat", "tojson(sort_keys=true)", "sort(reverse=true)", "map('default', 'q')|list", "map('first')|list", "rejectattr('x')|list", "sort(attribute='v')", "sum(attribute='v')", "map('length')|list", "map('tojson')|list"]
TESTS = ["defined", "undefined", "none", "string", "number", "mapping", "sequence", "iterable", "odd", "even", "true", "false", "boolean", "integer", "float", "in l", "divisibleby 2", "eq 1", "gt 1", "lower", "upper", "callable", "sameas none", "ne 'a'", "in [1, 'a']", "not none", "not defined", "escaped"]
OPERATORS = ["+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or"]


def leaf():
    kind = R.randrange(6)
    if kind == 0:
        return R.choice(["0", "1", "-1", "2", "3", "10", "0.5", "1.5", "-2.5", "1e3", "true", "false", "none", "7", "255"])
    if kind == 1:
        return R.choice(["''", "'a'", "'Hello'", "'a b c'", "'%s'", "'x\\ny'", "\"it's\"", "'é😀'", "' t '", "'<b>'", "'{}-{}'", "'1'", "'2.5'"])
    if kind == 2:
        return R.choice(NAMES)
    if kind == 3:
        return R.choice(["[]", "[1, 2, 3]", "['a', 'B']", "(1, 'x')", "()", "{}", "{'a': 1, 'b': [2]}", "[[1, 2], [3]]", "range(3)", "{1: 2}", "[none, 1, 'a']", "[0.1, 2]"])
    return R.choice(VALUES[:-4])


def expression(depth):
    if depth <= 0:
        return leaf()
    e = lambda: expression(depth - R.randrange(1, 3))
    kind = R.randrange(16)
    if kind < 4:
        return f"({e()})|{R.choice(FILTERS)}"
    if kind < 7:
        op = R.choice(OPERATORS)
        return f"({e()}) {op} ({e()})"
    if kind == 7:
        return f"({e()}) is {R.choice(TESTS)}"
    if kind == 8:
        return f"({e()}).{R.choice(METHODS)}"
    if kind == 9:
        if R.random() < 0.3:
            # Never of a literal: what jinja2 then folds as it compiles follows other rules.
            return f"{R.choice(['s', 'l', 'nested', 'missing', 'a', 's_uni', 'l_str'])}[{R.choice(['1:', ':2', '::-1', '::2', '-2:', '1:-1', ':' + e()])}]"
        return f"({e()})[{R.choice(['0', '-1', '1', chr(39) + 'a' + chr(39), e()])}]"
    if kind == 10:
        return f"({e()}).{R.choice(['a', 'b', 'items', 'l', 'x', 'n', '0', '1', 'C'])}"
    if kind == 11:
        return f"[{e()}, {e()}]"
    if kind == 12:
        return f"{{'k': {e()}, {e()}: 1}}"
    if kind == 13:
        return f"({e()}) if ({e()}) else ({e()})"
    if kind == 14:
        return R.choice(["not ", "-", "+"]) + f"({e()})"
    return f"{e()} ~ {e()} {R.choice(OPERATORS)} {e()}"


def tag(text):
    return "{%" + R.choice(["", "", "", "-", "+"]) + f" {text} " + R.choice(["", "", "", "-", "+"]) + "%}"


def space():
    return R.choice(["", "", " ", "\n", "\n  ", "  \n", "\t", "x", "y\n", "\n\n", " z ", "\r\n"])


def body(depth):
    return "".join(space() + statement(depth) + space() for _ in range(R.randrange(1, 4)))


def statement(depth):
    name = R.choice(["a", "b", "x", "y", "i7"])
    if depth <= 0:
        kind = R.randrange(3)
    else:
        kind = R.randrange(18)
    if kind == 0:
        return "{{" + R.choice(["", "", "-"]) + f" {expression(2)} " + R.choice(["", "", "-"]) + "}}"
    if kind == 1:
        return "{{ " + name + " }}"
    if kind == 2:
        return tag(f"set {name} = {expression(1)}")
    if kind in (3, 4):
        middle = R.choice(["", tag("else") + body(depth - 1), tag(f"elif {expression(1)}") + body(depth - 1)])
        return tag(f"if {expression(1)}") + body(depth - 1) + middle + tag("endif")
    if kind in (5, 6, 7):
        target = R.choice([name, name, name, "a, b"])
        test = R.choice(["", "", f" if {expression(1)}"])
        inner = body(depth - 1) + R.choice(["", "{{ loop.index }}", "{{ loop.last }}", "{{ loop.length }}{{ loop.revindex }}", "{{ loop.previtem }}{{ loop.nextitem }}", "{{ loop.changed(" + name + ") }}", tag("break"), tag("continue"), tag(f"if {name}") + tag("continue") + tag("endif")]) + body(depth - 1)
        other = R.choice(["", "", tag("else") + body(depth - 1)])
        return tag(f"for {target} in {R.choice(['l', 'd', 's', 'l_pairs', 'l_str', 'range(3)', '[1, 2]', 'd.items()', expression(1)])}{test}") + inner + other + tag("endfor")
    if kind == 8:
        return tag(f"set {name}{R.choice(['', '|upper', '|trim|length'])}") + body(depth - 1) + tag("endset")
    if kind == 9:
        return tag(f"with {name} = {expression(1)}, y = {name}") + body(depth - 1) + tag("endwith")
    if kind == 10:
        return tag("filter " + R.choice(["upper", "trim", "replace('x', b)", "indent(2)", "length|string"])) + body(depth - 1) + tag("endfilter")
    if kind in (11, 12):
        signature = R.choice(["", "a", "a, b=1", "x=i7", "a=b, b=2"])
        m = R.choice(["m1", "m2"])
        inner = R.choice(["", "{{ varargs }}", "{{ kwargs }}", "{{ caller() if caller }}", "{{ caller(1) }}"])
        return tag(f"macro {m}({signature})") + body(depth - 1) + inner + tag("endmacro") + R.choice(["", "{{ " + m + "(1) }}", "{{ " + m + "() }}", "{{ " + m + "(1, 2) }}"])
    if kind == 13:
        return R.choice(["{{ m1(1) }}", "{{ m2() }}", tag("call m1(1)") + body(depth - 1) + tag("endcall"), tag("call(y) m2()") + body(depth - 1) + tag("endcall")])
    if kind == 14:
        return tag("generation") + body(depth - 1) + tag("endgeneration")
    if kind == 15:
        return tag("set ns = namespace(a=1)") + tag(f"set ns.{R.choice('abx')} = {expression(1)}") + "{{ ns.a }}{{ ns.b }}"
    if kind == 16:
        return R.choice(["{# c #}", "{#- c -#}", "{% raw %}{{ }}{% endraw %}", "{%- raw -%} {% x %} {%- endraw -%}", "{#+ c +#}"])
    return tag(f"block b{R.randrange(10**6)}{R.choice(['', ' scoped'])}") + body(depth - 1) + tag("endblock")


class Slow(BaseException):
    pass


def late(*_):
    raise Slow


signal.signal(signal.SIGALRM, late)
env = environment()
cases = []
while len(cases) < int(sys.argv[2]):
    source = "{{ " + expression(R.randrange(1, 5)) + " }}" if R.random() < 0.5 else body(R.randrange(1, 4))
    if len(source) > 3000:
        continue
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        kind, text = answer(env, source, VARIABLES)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Slow:
        continue
    except MemoryError:
        continue
    if kind == "output" and ("|striptags" in source and ").items" in source or " at 0x" in text.lower() or "%20at%20" in text or len(text) > 20000):
        continue
    if kind == "error" and ("name 'inf'" in text or "name 'nan'" in text or "too many statically nested" in text or "unknown to the frame" in text or "unhashable" in text):
        continue
    case = {"source": source, kind: text}
    if " - " in source and ("items()" in source or "keys()" in source):
        continue  # the difference of views is a set
    why = refused(source, kind, text)
    if why:
        continue
    cases.append(case)
json.dump({"variables": VARIABLES, "cases": cases}, open(sys.argv[3], "w"))
