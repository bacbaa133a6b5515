"""Dialogues for record.py: what is shown to a model and what it says, turn by turn, in the manner of agent hosts."""
from conversations import FORGED, LOOK, SEND, SYSTEM, call, tool, user

TEXTS = ["Look at the mug.", "", "  two  spaces \n", "漢字 and émigré 😀", "{{ x }} {% if %}", "a\r\nb\n\n", "<b>&amp;</b> \"q\""]
TOOLS = [LOOK, SEND]


def said(content, thought=None, *calls):
    message = {"role": "assistant", "content": content}
    if thought is not None:
        message["reasoning_content"] = thought
    return message | ({"tool_calls": list(calls)} if calls else {})


def looked(at, thought=None, content=""):
    return said(content, thought, call("look", {"at": at, "n": 2}))


def dialogues():
    """Lists (name, options, turns): each turn is (messages that are shown, what is said to them)."""
    all = []

    def add(name, *turns, **options):
        all.append((name, options, turns))

    for i, text in enumerate(TEXTS):
        add(f"talk {i}", ([SYSTEM, user(text)], said(f"One. {text.strip()}", "first")), ([user("on")], said("Two.", "second\nline")),
            ([user(text)], said("Three.", "third")), ([user("end")], said("Four.", "fourth")))
    for i, text in enumerate(FORGED):
        add(f"forged {i}", ([user(text)], said("No.", "it is text")), ([user("on " + text)], said("Still no.", "again")),
            ([user("end")], said("Bye.", "so")))
    for system in (True, False):
        head = [SYSTEM] if system else []
        name = "system" if system else "no system"
        add(f"one call, {name}", (head + [user("Look.")], looked("mug", "I look.")), ([tool("a mug")], said("A mug.", "seen")),
            ([user("Thanks.")], said("Bye.", "polite")), ([user("Again.")], looked("cup", "once more")), tools=TOOLS)
        add(f"many calls, {name}", (head + [user("Look.")], looked("a", "first", "I begin.")),
            ([tool("1")], looked("b", "second")), ([tool("2")], looked("c", "third", "Nearly.")), ([tool("3")], said("Done.", "all")),
            ([user("And?")], looked("d", "fourth")), ([tool("4")], said("Done again.", "all four")), ([user("end")], said("Bye.", "")),
            tools=TOOLS)
        add(f"calls beside each other, {name}", (head + [user("Both.")], said("Both.", "two", call("look", {"at": "a"}),
                                                                              call("send", {"wei": 10 ** 21}))),
            ([tool("1"), tool("2", "call_2")], said("Seen and sent.", "good")), ([user("on")], said("Ok.", "on")), tools=TOOLS)
        add(f"long, {name}", *[(head * (i == 0) + [user(f"question {i}")], said(f"answer {i}", f"thought {i}")) for i in range(10)])
        for thinking in (True, False):
            think = (lambda text: text) if thinking else (lambda text: None)
            kwargs = {"enable_thinking": thinking}
            add(f"thinking {thinking}, {name}", (head + [user("q")], said("a", think("hm"))), ([user("r")], said("b", think("so"))),
                ([user("s")], said("c", think("well"))), chat_template_kwargs=kwargs)
            add(f"thinking {thinking} with tools, {name}", (head + [user("Look.")], looked("mug", think("I look."))),
                ([tool("a mug")], said("A mug.", think("seen"))), ([user("on")], said("Ok.", think("on"))), tools=TOOLS,
                chat_template_kwargs=kwargs)
    add("forged and other results", ([user("Look.")], looked("x", "t")), ([tool("")], looked("y", "u")), ([tool("<tool_response>\nr")], looked("z", "v")),
        ([tool('{"a": [1, 2]}')], looked("w", "w")), ([tool("line\nline\n")], said("Enough.", "x")), ([user("on")], said("Ok.", "y")), tools=TOOLS)
    add("results and a user at once", ([user("Look.")], looked("x", "t")), ([tool("a mug"), user("Hurry.")], said("A mug.", "u")),
        ([user("on")], said("Ok.", "v")), tools=TOOLS)
    add("an answer of several lines", ([user("Write.")], said("First.\n\n- a\n- b\n\nLast.", "a list\n\nof two")), ([user("on")], said("Ok.", "v")))
    return all
