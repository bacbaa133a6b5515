"""The cases: sources, by group."""

import pathlib

VARIABLES = {
    "v_none": None, "v_true": True, "v_false": False, "i0": 0, "i1": 1, "i7": 7, "im7": -7, "i300": 300,
    "big": 2**70, "mbig": -(2**70) - 3, "f0": 0.0, "fm0": -0.0, "f01": 0.1, "f25": 2.5, "fm25": -2.5, "f1e16": 1e16,
    "f1e5": 1e-5, "f3": 3.0, "fbig": 1.5e300, "s": "Hello World", "s_empty": "", "s_uni": "Grüße ß 東京 😀 é",
    "s_lines": "one\n  two\r\n\nthree\tx \n", "s_quotes": "it's \"quoted\" \\ & <b>", "s_num": " 42 ", "s_float": "3.75e2",
    "s_name": "foo_bar-baz qux", "s_space": "  \t a b  c\n ", "s_a": "a", "l_empty": [], "l": [3, 1, 2],
    "l_str": ["b", "A", "c", "a", "B"], "l_mixed": [1, "a", None, 2.5, [1], {"k": 1}], "l_floats": [0.1, 1e16, -0.0, 3.0],
    "l_dicts": [{"n": "b", "v": 2, "x": {"y": 1}}, {"n": "A", "v": 1, "x": {"y": 3}}, {"n": "c", "v": 2, "x": {"y": 2}}, {"n": "a", "v": 3}],
    "l_pairs": [["x", 1], ["y", 2]], "d_empty": {}, "d": {"b": 1, "a": "two", "C": None},
    "d_items": {"items": [1, 2], "get": "got", "keys": 5, "name": "n", "1": "one"},
    "nested": {"a": {"b": [1, {"c": "deep"}]}, "l": [[1, 2], [3, [4, "x'y"]]], "e": [], "s": "q\"'"},
}
# Every kind of value, by an expression that makes it.
VALUES = list(VARIABLES) + [
    "missing", "d.missing", "(1, 'x')", "()", "(5,)", "range(3)", "range(5, 0, -2)", "d.items()", "d.keys()", "d.values()", "namespace(a=1)",
    "{1: 'i', none: 2, true: 3, 2.0: 4, (1, 2): 5}", "s_quotes|e", "'inf'|float", "(l|map('string'))", "l|reverse", "s.upper", "range",
]
CASES = []


def add(group, *sources, **own):
    for source in sources:
        CASES.append((group, source, own.get("variables")))


def expressions(group, *items):
    add(group, *["{{ " + item + " }}" for item in items])


def refused(source, kind, text):
    """A piece of the message of what squire refuses by name, where jinja2 renders."""
    if kind != "output":
        return None
    if " at 0x" in text:
        return "address in memory"
    for word, why in [("|random", "random"), ("lipsum", "lipsum"), ("|urlize", "urlize"), ("\\ud8", "surrogate"), ("\\N{", "\\N{...}"), ("{% autoescape", "autoescape")]:
        if word in source:
            return why
    if "|pprint" in source:
        return PPRINT.get(source)
    if "** 0.5" in source and "j)" in text:
        return "complex"
    return OWN.get(source)


# Where pprint does more than repr.
PPRINT = {}
OWN = {}

# --- every filter without arguments, over every value
SIMPLE = ("abs capitalize center count d default dictsort e escape filesizeformat first float forceescape indent int join last length list lower items "
          "max min reverse round safe sort string striptags sum title tojson trim truncate unique upper urlencode wordcount wordwrap xmlattr").split()
for name in SIMPLE:
    for value in VALUES:
        shown = f"({value})|{name}"
        if name in ("items", "unique", "reverse"):
            shown += "|list" if name != "reverse" else ""
        expressions("filters over every value", shown)
# --- every test over every value
TESTS = ("odd even defined undefined none boolean false true integer float lower upper string mapping number sequence iterable callable escaped filter test").split()
for name in TESTS:
    expressions("tests over every value", " ~ ',' ~ ".join(f"(({value}) is {name})" for value in VALUES if value not in ("'inf'|float",)))
    for value in VALUES:
        expressions("tests over every value", f"({value}) is {name}")
# --- printing
for value in VALUES:
    expressions("printing", value, f"[{value}]", f"{{'k': {value}}}", f"({value},)", f"({value}) ~ ''", f"({value})|string|length", f"({value}) if ({value}) else 'no'", f"not ({value})")
# --- operators over pairs of kinds
KINDS = ["missing", "v_none", "v_true", "i7", "im7", "big", "f25", "fm25", "f1e16", "s", "s_empty", "l", "(1, 'x')", "d", "range(3)", "s_quotes|e"]
for op in ["+", "-", "*", "/", "//", "%", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or", "~"]:
    for a in KINDS:
        for b in KINDS:
            if op == "*" and "big" in (a, b) and {a, b} & {"s", "l", "(1, 'x')", "s_empty", "s_quotes|e"}:
                continue
            expressions("operators", f"{a} {op} {b}")
for a in ["i0", "i1", "i7", "im7", "f25", "fm25", "f0", "v_true", "missing", "s", "f01", "(2**40)"]:
    for b in ["i0", "i1", "3", "(-2)", "f25", "0.5", "v_true", "missing", "(-0.0)", "(-1)"]:
        expressions("operators", f"{a} ** {b}", f"{a} % {b}", f"{a} // {b}", f"{a} / {b}")
expressions("operators", "2 ** 3 ** 2", "-2 ** 2", "2 ** -1", "(-8) ** 0.5", "1 < 2 < 3", "1 < 3 < 2", "3 > 2 > 1 != 5", "1 == 1.0 == true", "1 + 2 ~ 3", "1 ~ 2 + 3", "'a' ~ 1 + 2",
            "not 1 == 2", "not true and false", "true or false and false", "1 if true else 2 if false else 3", "(1 if false) is defined", "1 if false", "- 5 | abs", "-5|abs", "(-5)|abs", "--5", "+-5",
            "2 * 3 % 4", "7 // 2 * 2", "1e400|string if false else 1", "10 ** 30", "10 ** 25 // 7", "(10 ** 25) / 3", "2**53 + 1 == 2.0**53", "2**53 + 1 > 2.0**53", "(2**64) % 1000", "-(2**64) // 1000",
            "-(2**64) % 1000", "5 % -3", "-5 % 3", "-5 // 3", "5.5 % -2", "-5.5 // 2", "0.1 + 0.2", "1e16 + 1", "1e22", "1e21", "123456789012345678", "1e15", "1.0", "100.0", "1e-4", "0.00001", "5e-324", "1.7976931348623157e308",
            "0x1F", "0b101", "0o17", "1_000_000", "1_0.5", "1e5", "1E+2", ".5", "1.", "007", "0", "00", "1.5e-7", "9007199254740993", "12345678901234567890123", "1 in [1.0]", "true in [1]", "'1' in [1]", "none in [none]",
            "'ell' in s", "1 in 'abc'", "'a' in {'a': 1}", "[1] in [[1]]", "1 in range(5)", "5 in range(5)", "('a', 1) in {'a': 1}.items()", "1 in {'a': 1}.values()", "'a' in {'a': 1}.keys()", "l == [3, 1, 2]", "(1,2) == [1,2]", "{'a':1,'b':2} == {'b':2,'a':1}",
            "[1,2] < [1,3]", "[1,2] < [1]", "(1,) < (1,2)", "'a' < 'B'", "'é' > 'z'", "[1,'a'] < [1,2]", "[1,'a'] < [2,2]", "1 < 'a'", "none < 1", "true < 2", "1 == '1'", "missing == missing2", "missing == none", "missing != missing2")
# --- literals, attributes, items, slices
for value in ["s", "l", "(1, 'x')", "range(10)", "s_uni", "d", "v_none", "i7", "missing", "d_items", "s_quotes|e", "namespace(a=1, items=2)"]:
    for part in ["[0]", "[-1]", "[99]", "[-99]", "['a']", "['items']", ".items", ".a", ".missing", "[1:]", "[:-1]", "[::2]", "[::-1]", "[5:1:-1]", "[-3:-1]", "[none:2]", "[true]", "[1.0]", "[2**70]", "[2**70:]", "[:]", ".0", "[missing]", "['upper']", ".count", "[none]", "[0:0]", "[3:1]", "[1:2:0]", "['a':]", ".__class__", "['__class__']", "._x"]:
        expressions("attributes, items and slices", f"({value}){part}", f"({value}){part} is defined")
expressions("attributes, items and slices", "d_items.items", "d_items['items']", "d_items.items()|list", "d_items.get", "d_items['get']", "d_items.name", "d_items.get('name')", "d_items.get('x', 5)", "d_items.get('x')", "d_items.keys()|list", "d_items['1']", "d_items.1", "nested.a.b[1].c", "nested.a.b.1.c", "nested['a']['b'][0]", "nested.l[1][1][0]", "nested.a.x.y", "nested.a.x", "missing.x", "missing['x']", "missing()", "d.append", "l.append(1)", "l.append", "d.update({})", "l.pop()", "d.pop('a')", "s.format", "''.__class__", "''.__class__.__mro__", "d.__class__ is defined", "x.y.z is defined", "d.x.y is defined", "d.x is defined", "(d.x).y is defined", "l.index(1)", "l.index(9)", "l.count(1)", "(1,1,2).count(1)", "(1,2).index(2)", "d.copy()", "l.copy()", "range(3).start", "range(1,5,2).step", "i7.real", "f25.imag", "i7.bit_length()", "f3.is_integer()", "f25.is_integer()", "i7.numerator", "l[0]|string", "l.0", "l.9 is defined", "'abc'.1", "d['a']['b']", "d.b.c", "[1,2,3][1:][0]", "'abc'[1:][0]", "{'a': 1}['a']", "{1: 2}[1]", "{1: 2}[1.0]", "{1: 2}[true]", "{'a': 1, 'a': 2}", "{1: 'a', true: 'b', 1.0: 'c'}", "{[1]: 2}", "{none: 1}[none]", "(1,2)[0]", "()|length", "(1,)", "[1,2,]", "{'a': 1,}", "'a' 'b' \"c\"", "'it\\'s'", "\"a\\nb\\tc\\\\d\\x41\\u00e9\\101\\q\"", "'\\é'", "'\\ud83d\\ude00'", "'a\\\nb'", "'\\N{BULLET}'", "True", "None", "False", "TRUE is defined")
# --- methods of strings
M = ["capitalize()", "casefold()", "center(20)", "center(21, '*')", "center(3)", "count('l')", "count('')", "count('o', 5)", "endswith('d')", "endswith(('x','d'))", "endswith('l', 0, 4)", "expandtabs()", "expandtabs(4)", "find('o')", "find('o', 5)", "find('zz')", "find('')", "find('o', -5, -1)", "index('o')", "index('zz')", "isalnum()", "isalpha()", "isascii()", "isdecimal()", "isdigit()", "isidentifier()", "islower()", "isnumeric()", "isprintable()", "isspace()", "istitle()", "isupper()", "join(['a','b'])", "join([1])", "join('xyz')", "join(d)", "ljust(15)", "ljust(15,'-')", "lower()", "lstrip()", "lstrip('Hel ')", "partition(' ')", "partition('zz')", "partition('')", "removeprefix('Hello')", "removesuffix('ld')", "replace('l','L')", "replace('l','L',1)", "replace('','-')", "replace('','-',2)", "replace('l','')", "replace('l','L',-1)", "replace('l','L',0)", "rfind('o')", "rindex('o')", "rindex('zz')", "rjust(15)", "rpartition(' ')", "rpartition('zz')", "rsplit()", "rsplit(' ', 1)", "rsplit(none, 1)", "rsplit('o')", "rsplit('o', 1)", "rstrip()", "rstrip('d c\\n')", "split()", "split(' ')", "split(' ', 1)", "split(none, 1)", "split(sep='o')", "split('o', maxsplit=1)", "split('')", "split('\\n')", "splitlines()", "splitlines(true)", "splitlines(keepends=true)", "startswith('H')", "startswith(('x','H'))", "startswith('o', 4)", "startswith('')", "startswith(1)", "startswith(['H'])", "strip()", "strip('Hd')", "strip(none)", "strip(1)", "swapcase()", "title()", "upper()", "zfill(15)", "zfill(3)", "nope()", "upper(1)", "split(1)", "encode is defined", "format()", "format(1)"]
for method in M:
    for value in ["s", "s_empty", "s_uni", "s_lines", "s_name", "s_space", "s_num", "s_quotes|e"]:
        expressions("methods of strings", f"({value}).{method}")
expressions("methods of strings", "'-5'.zfill(4)", "'+5'.zfill(4)", "'١٢'.isdigit()", "'²'.isdigit()", "'²'.isdecimal()", "'½'.isnumeric()", "'½'.isdigit()", "'ΑΣ'.lower()", "'ǆ'.title()", "'ß'.upper()", "'ß'.title()", "'ﬁ'.capitalize()", "'İ'.lower()", "\"they're bill's\".title()", "'x1y'.title()", "'aB-cD eF'.title()", "'aB-cD eF'|title", "\"they're\"|title", "'foo_bar'|title", "'ab(cd[ef{gh<ij'|title", "'a\\x1cb'.split()", "'a\\x0bb\\x0cc\\x1cd\\x85e\\u2028f'.splitlines()", "'a\\u00a0b'.split()", "'abc'.strip('')", "'aXbXc'.split('X')", "'aXbXc'.rsplit('X', 1)", "' a '.split(' ')", "''.split()", "''.split(' ')", "''.splitlines()", "'a\\r\\nb\\r'.splitlines(true)", "'\\t'.expandtabs(0)", "'ab\\tc'.expandtabs(3)", "'abc'.center(6,'**')", "'abc'.center(5.0)", "'abc'.startswith('b', 1)", "'abc'.endswith('')", "'abc'.find('c', 9)", "'abc'.find('', 3)", "'abc'.find('', 4)", "'aaa'.count('aa')", "'日本語'.find('語')", "'日本語'.index('語', 1)", "'日本語'.center(7, '本')")
# --- str.format and %
for spec in ["{}", "{0}", "{0} {0}", "{1}", "{:>10}|", "{:<10}|", "{:^11}|", "{:*^11}|", "{:05}", "{:.3}", "{:+}", "{: }", "{:,}", "{:_}", "{:x}", "{:X}", "{:#x}", "{:b}", "{:#b}", "{:o}", "{:e}", "{:.2f}", "{:.0f}", "{:10.3f}|", "{:010.2f}", "{:g}", "{:.3g}", "{:%}", "{:.1%}", "{!r}", "{!s}", "{!a}", "{!r:>12}", "{:d}", "{:s}", "{:,.2f}", "{:012,}", "{:=+8}", "{:#.3g}", "{:n}", "{:G}", "{:E}", "{:c}", "{:q}", "{", "}", "{{}}", "{:{}}", "{x}", "{0.a}", "{0[0]}", "{0[a]}", "{0.upper}"]:
    for value in ["i7", "im7", "i300*1000000", "big", "f25", "f1e16", "f01", "fm0", "s", "s_uni", "v_none", "v_true", "l", "d", "missing", "f1e5", "1234567.891", "'inf'|float"]:
        if "{:{}}" in spec:
            continue
        expressions("str.format", f"'{spec}'.format({value})")
expressions("str.format", "'{a}-{b}'.format(a=1, b='x')", "'{} {}'.format(1)", "'{} {1}'.format(1, 2)", "'{1} {0}'.format(1, 2)", "'{:{}}'.format('a', 5)", "'{:>{w}}'.format('a', w=5)", "'{a[b]}'.format(a={'b': 1})", "'{a.b}'.format(a={'b': 1})", "'{0.__class__}'.format(1)", "'{a}'.format_map({'a': 1})", "'{a}'.format(**{'a': 1})", "'{}'.format(*[1])", "'{{{}}}'.format(1)", "'{:,}'.format(1234567)", "'{:,}'.format(123)", "'{:08,}'.format(1234)", "'<{}>'|e", "('<b>{}</b>'|safe).format('<i>')", "'{!x}'.format(1)", "'{0!r}'.format('a')", "'{:.2}'.format('abcdef')", "'{: >4}'.format(5)", "'{:<4}|'.format(5)", "'{:04d}'.format(-5)", "'{:+.1e}'.format(12345.678)", "'{:.3}'.format(2.0)", "'{:.1}'.format(25.0)", "'{:.20f}'.format(0.1)")
for spec in ["%s", "%r", "%a", "%d", "%i", "%5d|", "%-5d|", "%05d", "%+d", "% d", "%x", "%X", "%#x", "%o", "%#o", "%e", "%.2e", "%f", "%.0f", "%.3f", "%10.2f|", "%-10.2f|", "%010.2f", "%g", "%.3g", "%#g", "%G", "%c", "%%", "%.2s", "%10s|", "%-10s|", "%s %s", "no", "%(a)s", "%q", "%", "%5%", "%.3d", "%ld"]:
    for value in ["i7", "im7", "big", "f25", "f1e16", "f01", "s_a", "s_uni", "v_none", "v_true", "l", "d_empty", "{'a': 1}", "missing", "(1,)", "(1, 2)", "()", "f1e5", "'inf'|float"]:
        expressions("printf", f"'{spec}' % ({value})")
expressions("printf", "'%s-%s' % (1, 'a')", "'%(a)s %(b)d' % {'a': 'x', 'b': 5}", "'%(c)s' % {'a': 1}", "'%*d' % (5, 3)", "'%.*f' % (2, 3.14159)", "'%s'|format(1)", "'%s %s'|format(1, 2)", "'%(a)s'|format(a=1)", "'%s'|format", "'%s'|format(1, 2)", "'%s'|format(1, a=2)", "'%d%%'|format(50)", "'%s' % [1, 2]", "('<%s>'|safe) % '<'", "('<%s>'|safe) % ('<', )", "('%s %d'|safe) % ('<', 5)", "'%s' % ('<'|e)", "'%5.1f' % 2.25", "'%.1f' % 0.25", "'%.0f' % 0.5", "'%.0f' % 1.5", "'%.0f' % 2.5", "'%d' % 3.99", "'%d' % -3.99", "'%x' % -255", "'%+.3e' % 0.000123456", "'%s' % true", "'%d' % true", "'%c' % 65", "'%c' % 'AB'", "'%i' % '5'", "'%10.4s|' % 'abcdefgh'", "'%-+6d|' % 5", "'%0+6d' % 5", "'% 06d' % 5", "'%#08x' % 255")
# --- filters with arguments
expressions("filters with arguments",
    *[f"{v}|default({a})" for v in ["missing", "v_none", "s_empty", "i0", "s", "d.x"] for a in ["'x'", "'x', true", "'x', boolean=true", "default_value='x'", "none", "[], true"]],
    *[f"{v}|d('x')" for v in ["missing", "v_none"]],
    *[f"{v}|round{a}" for v in ["f25", "fm25", "3.5", "0.15", "2.675", "1234.5678", "-1234.5678", "i7", "im7", "1250", "1350", "big", "v_true", "1e16", "0.5", "1.5", "1e300"] for a in ["", "(1)", "(2)", "(0, 'floor')", "(0, 'ceil')", "(1, 'ceil')", "(1, 'floor')", "(-2)", "(-1, 'ceil')", "(precision=1)", "(method='floor')", "(0, 'x')", "(none)"]],
    *[f"{v}|int{a}" for v in ["s_num", "s_float", "'0x1F'", "'1_000'", "'abc'", "''", "'12.9'", "'-7'", "f25", "fm25", "v_true", "v_none", "l", "'inf'", "'nan'", "'1e3'", "'٣'", "'0b11'", "big", "f1e16", "'99999999999999999999999'", "'  +5 '", "'5 5'", "missing"] for a in ["", "(9)", "(9, 16)", "(base=16)", "(0, 2)", "(default=none)", "(1, 0)"]],
    *[f"{v}|float{a}" for v in ["s_num", "s_float", "'abc'", "''", "'1_0.5'", "'inf'", "'-Infinity'", "'nan'", "i7", "v_true", "v_none", "l", "big", "'1e400'", "'.5'", "'5.'", "'1__0'", "'0x10'", "missing"] for a in ["", "(9)", "(default='x')"]],
    *[f"{v}|join{a}" for v in ["l", "l_str", "l_mixed", "s", "d", "(1,'x')", "missing", "v_none", "i7", "l_dicts", "range(3)"] for a in ["('-')", "", "(d='/')", "(', ', 'n')", "(attribute='n')", "(1)", "('', attribute='v')", "(none)"]],
    *[f"{v}|sort{a}" for v in ["l", "l_str", "l_mixed", "l_floats", "s", "d", "(2,1)", "missing"] for a in ["(true)", "(reverse=true)", "(case_sensitive=true)", "(false, true)", ""]],
    *[f"l_dicts|sort{a}|map(attribute='n')|join" for a in ["(attribute='n')", "(attribute='v')", "(attribute='v,n')", "(attribute='n', case_sensitive=true)", "(attribute='v', reverse=true)", "(attribute='x.y')", "(false, false, 'v')", ""]],
    *[f"{v}|dictsort{a}" for v in ["d", "{'b': 2, 'A': 1, 'c': 0}", "{1: 'a', 'b': 2}", "l"] for a in ["", "(true)", "(by='value')", "(false, 'value', true)", "(reverse=true)", "(by='x')", "(case_sensitive=true)"]],
    *[f"{v}|unique{a}|list" for v in ["[1,1.0,true,2]", "['a','A','b','a']", "l_mixed", "s", "missing"] for a in ["", "(true)", "(case_sensitive=true)"]], "l_dicts|unique(attribute='v')|map(attribute='n')|list",
    *[f"{v}|{f}{a}" for f in ["min", "max"] for v in ["l", "l_str", "l_floats", "l_empty", "s", "(2,'a')", "d", "missing"] for a in ["", "(true)", "(case_sensitive=true)"]], "l_dicts|max(attribute='v')", "l_dicts|min(attribute='n')",
    *[f"{v}|sum{a}" for v in ["l", "l_floats", "l_empty", "l_str", "missing", "s", "[[1],[2]]"] for a in ["", "(start=10)", "(none, 5)", "(start=[])", "(start='')"]], "l_dicts|sum(attribute='v')", "l_dicts|sum('v', 10)", "l_dicts|sum(attribute='x.y')",
    *[f"{v}|batch{a}|list" for v in ["l", "s", "l_empty", "range(7)", "missing"] for a in ["(2)", "(3, 'x')", "(2, fill_with=0)", "(0)", "(10, 'z')", "('a')", "(2, none)"]],
    *[f"{v}|slice{a}|list" for v in ["l", "s", "l_empty", "range(7)"] for a in ["(2)", "(3, 'x')", "(2, fill_with=0)", "(0)", "(10, 'z')", "('a')", "(-1)"]],
    *[f"{v}|groupby{a}" for v in ["l_dicts"] for a in ["('v')", "('n')", "('x.y')", "('x.y', default=0)", "('n', case_sensitive=true)", "(attribute='v')", ""]], "l_pairs|groupby(0)", "l_dicts|groupby('v')|map(attribute='grouper')|list", "(l_dicts|groupby('v')|first).list|length", "(l_dicts|groupby('v')|first)[0]",
    *[f"s_lines|indent{a}" for a in ["", "(2)", "(2, true)", "(2, true, true)", "(width=3, blank=true)", "('> ')", "('>', first=true)", "(-1)", "(1.5)", "(true)"]], "''|indent(2, true)", "'a'|indent(2, true)", "'\\n\\na'|indent(2, blank=true)", "('a\\nb'|e)|indent(2)",
    *[f"{v}|replace{a}" for v in ["s", "i300", "missing", "l", "s_quotes|e", "v_none"] for a in ["('l', 'L')", "('l', 'L', 1)", "(0, 1)", "('', '-')", "(old='o', new='0')", "('o', none)", "('l')", "('l','L',count=2)", "('l', 'L', none)"]],
    *[f"{v}|trim{a}" for v in ["s_space", "s", "i300", "missing", "v_none", "' x '|e"] for a in ["", "(' \\n')", "('Hd')", "(chars='H')", "(none)", "('0')", "(1)"]],
    *[f"{v}|truncate{a}" for v in ["s", "'x' * 30", "'the quick brown fox jumps'", "l", "i7", "missing", "s_uni"] for a in ["", "(9)", "(9, true)", "(9, false, '..')", "(9, false, '...', 0)", "(9, leeway=0)", "(11, true, '', 0)", "(2)", "(5, end='')", "(9, leeway=-1)"]],
    *[f"{v}|wordwrap{a}" for v in ["'the quick brown fox-jumps over -- the lazy dog'", "'aaaaaaaaaaaaaaaaaaaa bb'", "s_lines", "'a-b-c well-known--thing x'", "'  lead and trail  '", "''", "'foo-bar-baz_qux e-mail'"] for a in ["", "(10)", "(5, false)", "(8, wrapstring='|')", "(6, break_on_hyphens=false)", "(width=12, break_long_words=false)", "(1)", "(0)", "(3)"]],
    *[f"{v}|center{a}" for v in ["s", "i7", "missing", "s_a|e"] for a in ["(20)", "(width=15)", "(3)"]],
    *[f"{v}|filesizeformat{a}" for v in ["0", "1", "999", "1000", "1024", "1500000", "10**12", "10**27", "-5", "1.5", "'100'", "999999", "big", "'x'", "v_none"] for a in ["", "(true)", "(binary=true)"]],
    *[f"{v}|map{a}|list" for v in ["l", "l_str", "l_dicts", "missing", "v_none", "d", "s", "l_pairs"] for a in ["('string')", "('upper')", "(attribute='n')", "(attribute='n', default='?')", "(attribute='v')", "('default', 'x')", "('nofilter')", "(attribute='x.y', default=0)", "()", "(attribute=0)", "('first')", "(missing)", "(attribute='n', foo=1)", "('join', '-')"]],
    *[f"{v}|{f}{a}|list" for f in ["select", "reject"] for v in ["l", "l_mixed", "s", "missing", "v_none", "d", "[0, 1, '', none, 'x']"] for a in ["", "('odd')", "('string')", "('>', 1)", "('equalto', 1)", "('in', [1, 'a'])", "('notest')", "('none')", "('divisibleby', 2)"]],
    *[f"l_dicts|{f}{a}|map(attribute='n')|list" for f in ["selectattr", "rejectattr"] for a in ["('v')", "('v', 'equalto', 2)", "('v', '>', 1)", "('x', 'defined')", "('x.y', 'defined')", "('n', 'lower')", "()", "('x')", "('n', 'in', ['a', 'b'])", "('v', 'eq', 2)"]],
    *[f"{v}|attr{a}" for v in ["d", "s", "namespace(a=1)", "missing", "i7"] for a in ["('a')", "('real')", "('missing')", "('__class__')", "(1)"]], "d|attr('items') is callable", "(d|attr('get'))('b')", "s|attr('upper')()",
    *[f"{v}|urlencode" for v in ["'a b/c?d=é&x'", "{'a b': 'c/d', 'e': 1}", "[('a', 1), ('b', 'x y')]", "i7", "v_none", "''", "'~-_.'"]],
    *[f"{v}|xmlattr{a}" for v in ["{'class': 'a<b', 'id': none, 'n': 5}", "{}", "{'a b': 1}", "{'x': missing, 'y': '\"'}"] for a in ["", "(false)", "(autospace=false)"]],
    *[f"{v}|striptags" for v in ["'<p>Hello  <b>x</b></p>'", "'a <!-- c --> b &amp; c'", "'a < b'", "'<!<!-- x -->-- y -->z'", "'x &lt;b&gt; y &#39; &quot;'", "'<a'", "'<!-->'"]],
    *[f"{v}|{f}" for f in ["escape", "e", "forceescape", "safe"] for v in ["s_quotes", "(s_quotes|e)", "l_str", "('<'|safe)", "i7", "v_none"]], "('<'|e) ~ '<'", "('<'|e) + '<'", "'<' + ('<'|e)", "('<'|safe) * 3", "('<'|e)|length", "['<'|e]", "('a<'|e).upper()", "('a'|e).join(['<', 'b'])", "('<'|e) is escaped", "('<'|e)|string is escaped", "('<'|e)|replace('l', '<')", "('x'|e)|tojson", "('<'|e)[1:]", "('<'|e) == '&lt;'", "('a b'|e).split()", "('<'|e)|upper", "{'a': '<'|e}",
    *[f"{v}|wordcount" for v in ["s", "s_uni", "s_name", "''", "\"it's a-b c_d\"", "i7"]],
    *[f"{v}|pprint" for v in ["i7", "s", "l", "v_none", "{'a': 1}", "(1,)", "missing", "f1e16", "'it\\'s'"]],
    "l|first", "l_empty|first", "l_empty|first is defined", "missing|first", "s|first", "d|first", "l|last", "s|last", "d|last", "(1,2)|last", "range(3)|last", "(l|map('string'))|last", "(l|map('string'))|first", "(l|select)|length", "l|reverse|list", "s|reverse", "d|reverse|list", "(1,2)|reverse|list", "(l|map('string'))|reverse", "v_none|reverse", "l|reverse|first", "range(3)|list", "s|list", "d|list", "v_none|list", "d|items|list", "missing|items|list", "l|items|list", "d|count", "s_uni|length", "i7|length", "v_none|length", "missing|length", "l|random", "s|urlize", "lipsum()", "s|nofilter", "l|length|string ~ 'x'", "s|upper|lower|title", "s|lower()", "s|trim()|upper", "[3,1]|sort|first", "l|string|length", "5|string + 'a'", "s|default(*[1])", "s|replace(**{'old': 'l', 'new': 'L'})", "s|replace(*['l', 'L'])", "s|truncate(length=5, end='', leeway=0)", "-1|abs", "'a'|upper ~ 'b'|upper", "i7|abs|string", "1|divisibleby(1)", "l|join|int + 1", "l is sequence", "3 is divisibleby 3", "3 is divisibleby(2)", "3 is divisibleby 0", "3 is sameas 3", "true is sameas true", "1 is sameas true", "none is sameas none", "v_true is sameas(true)", "l is sameas l", "3 is in [1,3]", "3 is not in [1,3]", "3 is in(l)", "'a' is in 'abc'", "3 is eq 3", "3 is equalto 3.0", "3 is ne 4", "3 is gt 2", "3 is lessthan 4", "3 is ge(3)", "3 is le 2", "3 is '>' 2", "3 is nosuch", "missing is eq missing2", "'upper' is filter", "'nope' is filter", "'odd' is test", "[] is filter", "3 is odd and 4 is even", "not 3 is odd", "3 is not odd", "3 is odd is even", "x is defined and x.y", "l is iterable and l|length > 2", "'abc' is string and 'abc' is sequence")
# --- tojson
for value in ["v_none", "v_true", "i7", "big", "f25", "f1e16", "f1e5", "fm0", "f3", "s", "s_uni", "s_quotes", "s_lines", "l", "l_mixed", "l_floats", "d", "nested", "d_empty", "l_empty", "(1, 'x')", "()", "range(3)", "missing", "{1: 'a', none: 'b', true: 'c', 2.5: 'd', 1.0: 'e'}", "{(1,2): 3}", "'inf'|float", "'nan'|float", "-('inf'|float)", "'\\x00\\x1f\\x7f\\u2028\\b\\f'", "d.items()", "namespace(a=1)", "s|e", "{'b': 1, 'a': {'d': 1, 'c': 2}}", "l_dicts", "[[], {}, [[]], [{}]]"]:
    for a in ["", "(indent=2)", "(ensure_ascii=true)", "(sort_keys=true)", "(separators=(',', ':'))", "(indent=4, sort_keys=true)", "(indent=0)", "(indent='--')", "(false, 1)", "(indent=none)", "(indent=2, separators=(',', ': '))", "(foo=1)", "(2)", "(indent=-1)", "(indent=true)"]:
        expressions("tojson", f"{value}|tojson{a}")
# --- globals
expressions("globals", "range(3)|list", "range(1,4)|list", "range(10,0,-3)|list", "range(0)|list", "range(100000)|length", "range(100001)|length", "range(0, 10**6, 7)|length", "range('a')", "range()", "range(1,2,0)", "range(2.0)", "range(3)[1]", "range(3)[5] is defined", "range(3) == range(3)", "range(5)[1:3]", "range(5)|sum", "range(3)|string", "dict(a=1, b=2)", "dict({'a': 1}, b=2)", "dict([('a', 1), ('b', 2)])", "dict()", "dict(1)", "dict([(1,2,3)])", "dict(**{'x': 1})", "namespace(a=1).a", "namespace({'a': 1}).a", "namespace(a=1)", "namespace(a=1).b is defined", "namespace(a=1)['a']", "namespace(a=[1]).a[0]", "cycler('a', 'b').next()", "cycler().next()", "joiner()", "joiner('|')()", "raise_exception('bad')", "raise_exception()", "strftime_now is callable", "dict is callable", "range is defined", "range is callable", "dict", "namespace", "cycler", "joiner", "cycler(1,2).current", "joiner(sep='x') is callable", "namespace() is callable", "loop is defined", "self is defined", "varargs is defined", "caller is defined", "kwargs is defined")
