#!/usr/bin/env python3
"""Record what transformers computes with the folder that smollm2.py makes: ids, logits, greedy answers, perplexity.

needs: pip install torch==2.15.0 transformers==5.24.0 safetensors==0.8.0 numpy==2.4.6
use:   python record.py SMOLLM2_FOLDER     (writes smollm2.json and smollm2.logits.safetensors beside this file;
                                            a few minutes on one thread)

README.md beside this file describes every key. Nothing is drawn by chance, but for fixed ids by a fixed seed.
"""
import hashlib
import json
import math
import platform
import re
import sys
import time
from pathlib import Path

import numpy
import safetensors
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent
TOP, FIXED, STEPS = 64, 192, 48

# Texts for the tokenizer alone. This vocabulary has no token for 21 of the 256 bytes (0x04, 0x06, 0x13, 0x14, 0x16,
# 0x1d, 0xf1, 0xf2 and those that UTF-8 never has); Hugging Face drops a byte that has none, without a word.
TEXTS = [
    "Hello, world!",
    "In 1984, 12345 people paid $67.89 each; that's 3,141.59%.",
    "  two spaces\n\n\tand a tab\r\n   ",
    "we'll they've I'm she'd it's you're can't WE'LL",
    "naïve café, Ångström, Straße, œuvre",
    "日本語と中文, हिन्दी, עברית, Ελληνικά, русский",
    "👍🏽 family: 👨‍👩‍👧, flag: 🇫🇷",
    "def f(x):\n    return {'a': x ** 2, \"b\": [1, 2.5e-3]}\n",
    "½ ² ٣ 四 Ⅷ",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><file_sep>",
    "broken <|im_start and <|im_end|",
    "a\x01b\x7fc\x1b[0m",
    "dropped: \x04 \x06 \x13\x14\x16 x\x1dy",
    "neighbours that merge once it is gone: !\x04! -\x1d- =\x13= .\x06.\x16.",
    "planes: \U0001F600 \U00040000 \U00050041 \U00080000 \U000E0041",
]

PROMPTS = [
    "The capital of France is",
    "Water freezes at a temperature of",
    "Once upon a time, in a village by the sea,",
    "1, 2, 3, 4, 5,",
    "def add(a, b):\n    return",
    "The opposite of hot is",
    "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n",
    "A",
]


def user(text):
    return [{"role": "user", "content": text}]


def system(rules, text):
    return [{"role": "system", "content": rules}, *user(text)]


CHATS = [
    user("What is the capital of France?"),
    user("Which planet is closest to the Sun?"),
    user("Who wrote the play Romeo and Juliet?"),
    user("How many days are there in a leap year?"),
    user("List three kinds of fruit."),
    user("Name the four seasons, one on each line."),
    user("Give me a short list of things to pack for a day at the beach."),
    user("What is 7 + 5?"),
    user("What is 12 minus 4? Answer with the number only."),
    user("If I have 3 boxes with 6 eggs each, how many eggs do I have?"),
    user("Rewrite this sentence in the past tense: I walk to the mill every morning."),
    user("Make this sentence more polite: Give me the key."),
    user("Correct the spelling: The wether is realy nice todday."),
    user("Translate into French: Good morning, my friend."),
    user("Translate into Spanish: The house is red."),
    user("Write one sentence about a heron standing in a river."),
    user("Explain in one sentence why the sky is blue."),
    system("You are a pirate and answer in one short sentence.", "Where is the treasure?"),
    system("Answer with yes or no and nothing else.", "Is ice colder than steam?"),
    [*user("My name is Agnes and I run a mill."),
     {"role": "assistant", "content": "Nice to meet you, Agnes! How can I help you with your mill?"},
     *user("What is my name?")],
]


def sha256(path):
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def load(folder, dtype, attention="eager"):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()


def rows(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0].float()


def greedy(model, prompt, stop):
    """Up to STEPS ids by arg max, the stop id among them, with a KV cache; margin = best logit minus second best."""
    ids, margins, past, x = [], [], None, prompt
    while len(ids) < STEPS and ids[-1:] != [stop]:
        out = model(torch.tensor([x]), past_key_values=past, use_cache=True)
        past, top = out.past_key_values, out.logits[0, -1].topk(2)
        ids.append(top.indices[0].item())
        margins.append((top.values[0] - top.values[1]).item())
        x = ids[-1:]
    return ids, margins


def nats(model, ids):
    """-ln p of every token but the first, all in one window."""
    # In f64: of so many ids, torch in f32 loses the tail, and with it 1.8e-5 nats a token.
    logp = torch.log_softmax(rows(model, ids)[:-1].double(), -1)
    return -logp.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def write_json(path, value):
    text = json.dumps(value, indent=1, ensure_ascii=True)
    # number lists on one line each, so that the file stays readable and diffs well
    text = re.sub(r"\[\s+((?:[-\d.e+]+,\s+)*[-\d.e+]+)\s+\]", lambda m: "[" + " ".join(m[1].split()) + "]", text)
    path.write_text(text + "\n")


@torch.no_grad()
def main():
    if len(sys.argv) != 2:
        sys.exit("use: python record.py SMOLLM2_FOLDER")
    folder, start = Path(sys.argv[1]), time.time()

    def step(text):
        print(f"{time.time() - start:6.1f}s {text}", flush=True)

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    tok, model = AutoTokenizer.from_pretrained(folder), load(folder, torch.float32)
    out = {
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__, "safetensors": safetensors.__version__, "numpy": numpy.__version__,
            "torch_threads": 1,
        },
        "sha256": {f: sha256(folder / f) for f in ("model.safetensors", "tokenizer.json")},
        "parameters": sum(p.numel() for p in model.parameters()),
    }

    def encode(text):
        return tok(text, add_special_tokens=False)["input_ids"]

    out["texts"] = [{"text": t, "ids": encode(t), "decoded": tok.decode(encode(t))} for t in TEXTS]

    g = torch.Generator().manual_seed(9)
    # The first three and the last are always among them.
    drawn = (torch.randperm(len(tok) - 4, generator=g)[: FIXED - 4] + 3).tolist()
    out["fixed_ids"] = fixed = [0, 1, 2, *sorted(drawn), len(tok) - 1]
    recorded, out["prompts"] = [], []
    for text in PROMPTS:
        row = rows(model, encode(text))[-1]
        top = row.topk(TOP).indices.tolist()
        recorded.append(row[top + fixed])
        out["prompts"].append({"text": text, "ids": encode(text), "top_ids": top, "logsumexp": row.double().logsumexp(-1).item()})
    step(f"{len(PROMPTS)} prompts")

    out["chats"] = []
    for messages in CHATS:
        prompt = tok.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        ids, margins = greedy(model, prompt, tok.eos_token_id)
        text = tok.decode(ids, skip_special_tokens=True)
        out["chats"].append({
            "messages": messages, "prompt_ids": prompt, "ids": ids, "margins": margins,
            "least_margin": min(margins), "finished": ids[-1] == tok.eos_token_id, "text": text,
        })
        step(f"{messages[-1]['content']!r} -> {text!r}, least margin {min(margins):.4f}")

    text_ids = encode((HERE / "text.txt").read_text(encoding="utf-8"))
    lost = nats(model, text_ids)
    mean = lost.double().mean().item()
    out["perplexity"] = {"text_sha256": sha256(HERE / "text.txt"), "ids": text_ids, "tokens": len(text_ids),
                         "scored": len(lost), "mean_nats": mean, "exp": math.exp(mean)}
    step(f"text.txt: {len(text_ids)} tokens, {mean:.6f} nats, perplexity {math.exp(mean):.4f}")

    # How far torch is from itself in f32 by another order of sums, and in bf16: the scales that limits should have.
    ids = [encode(t) for t in PROMPTS]
    picked = [torch.tensor(p["top_ids"] + fixed) for p in out["prompts"]]

    def differences(other):
        d = torch.stack([(rows(other, i)[-1][p] - r).abs() for i, p, r in zip(ids, picked, recorded)])
        n = nats(other, text_ids)
        return {"logits_max_abs": d.max().item(), "logits_mean_abs": d.mean().item(),
                "mean_nats": n.double().mean().item() - mean, "nats_max_abs": (n - lost).abs().max().item()}

    out["noise"] = differences(load(folder, torch.float32, "sdpa"))
    step(f"f32 by another attention: {out['noise']}")
    out["bf16_minus_f32"] = differences(load(folder, torch.bfloat16))
    step(f"bf16: {out['bf16_minus_f32']}")

    save_file({"logits_f32": torch.stack(recorded), "text_nats_f32": lost.float()}, HERE / "smollm2.logits.safetensors")
    (HERE / "smollm2.logits.safetensors").chmod(0o644)
    write_json(HERE / "smollm2.json", out)
    step("written")


if __name__ == "__main__":
    main()
