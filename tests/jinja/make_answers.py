"""Records what jinja2 3.1.6 renders: python3 tests/jinja/make_answers.py (needs jinja2==3.1.6 alone).

Each case is a source with variables (the shared ones, or its own), and either jinja2's output or its error. A case
that squire refuses by name has `refused`, a piece of the message.
"""

import json
import pathlib

import templates
from cases import CASES, VARIABLES, refused
from environment import answer, environment


def record(cases, variables):
    env = environment()
    kept = []
    for group, source, own in cases:
        kind, text = answer(env, source, variables if own is None else own)
        case = {"group": group, "source": source}
        if own is not None:
            case["variables"] = own
        case[kind] = text
        why = refused(source, kind, text)
        if why:
            # An address in memory is another each time.
            case.pop("output", None)
            case["refused"] = why
        kept.append(case)
    return {"jinja2": "3.1.6", "variables": variables, "cases": kept}


if __name__ == "__main__":
    document = record([*CASES, *templates.cases()], VARIABLES)
    here = pathlib.Path(__file__).parent
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in document["cases"])
    head = json.dumps(document["variables"], ensure_ascii=False)
    text = f'{{"jinja2": "3.1.6",\n"variables": {head},\n"cases": [\n{lines}\n]}}\n'
    (here / "answers.json").write_text(text)
    groups = {}
    for case in document["cases"]:
        row = groups.setdefault(case["group"], [0, 0, 0])
        row[0 if "output" in case else 2 if "refused" in case else 1] += 1
    print("| group | cases | rendered | errors | refused |")
    for group, (good, bad, no) in groups.items():
        print(f"| {group} | {good + bad + no} | {good} | {bad} | {no} |")
    print(len(document["cases"]), "cases")
