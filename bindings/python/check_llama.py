#!/usr/bin/env python3
"""Compare what squire says of ids with what llama.cpp says of them through its servers, on one set of tiny weights.

needs: pip install "llama-cpp-python[server]==0.3.36" gguf==0.19.0 numpy, built as benches/peers/README.md says, and the llama-server
       of the llama.cpp that package carries (vendor/llama.cpp of its source package, cmake -DLLAMA_BUILD_UI=OFF
       -DLLAMA_USE_PREBUILT_UI=OFF, target llama-server)
use:   check_llama.py LIBRARY MODEL_FOLDER LLAMA_SERVER [--ids 64] [--sequences 4] [--logs FOLDER]

MODEL_FOLDER is one of tests/golden with a vocabulary of 259 in f32, such as dense_f32. Writes its weights as GGUF, with a vocabulary
of the 256 bytes and three control tokens, starts both servers on the loopback address, and prints for each how far its log-probs
lie from squire's. llama-cpp-python's server scores only texts that begin with an id of their own, so its file names the last one.
"""
import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import gguf
import numpy as np

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE / "../../examples/twc"), str(HERE / "../../examples/household")]
import squire
from queue_teacher import score
from squire_teachers import Failed, LlamaCpp, LlamaCppPython, check

TOP_K = 32
BEGIN = 258
NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def tensors(folder):
    """The f32 tensors of a safetensors file."""
    data = (folder / "model.safetensors").read_bytes()
    n = int.from_bytes(data[:8], "little")
    for name, of in json.loads(data[8:8 + n]).items():
        if name != "__metadata__":
            first, last = of["data_offsets"]
            yield name, np.frombuffer(data[8 + n:][first:last], dtype=np.float32).reshape(of["shape"])


def write_gguf(folder, path, begins):
    """The folder's model; `begins`: whether every text begins with BEGIN."""
    config = json.loads((folder / "config.json").read_text())
    w = gguf.GGUFWriter(str(path), "qwen3")
    w.add_file_type(gguf.LlamaFileType.ALL_F32)
    w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"])
    w.add_block_count(config["num_hidden_layers"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(config["num_attention_heads"])
    w.add_head_count_kv(config["num_key_value_heads"])
    w.add_key_length(config["head_dim"])
    w.add_value_length(config["head_dim"])
    w.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    w.add_layer_norm_rms_eps(config["rms_norm_eps"])
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    symbols = [chr(b if b in printable else next(others)) for b in range(256)]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(symbols + ["<|end|>", "<|pad|>", "<|begin|>"])
    w.add_token_types([gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * 3)
    w.add_token_merges(["t h"])  # to nothing that is a token: each byte is one
    w.add_eos_token_id(256)
    w.add_pad_token_id(257)
    w.add_bos_token_id(BEGIN)
    w.add_add_bos_token(begins)
    for name, values in tensors(folder):
        parts = name.removeprefix("model.").removesuffix(".weight").split(".", 2)
        to = {"embed_tokens": "token_embd", "norm": "output_norm"}.get(parts[0]) or f"blk.{parts[1]}.{NAMES[parts[2]]}"
        w.add_tensor(to + ".weight", values)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


class Server:
    """A server of our own, until the block ends."""

    def __init__(self, log, *command, env=None):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        with open(log, "w") as out:
            self.process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(self.port)], stdout=out, stderr=out,
                                            stdin=subprocess.DEVNULL, env=env)

    def __enter__(self):
        for _ in range(600):
            if self.process.poll() is not None:
                break
            try:
                urllib.request.urlopen(self.url + "/v1/models", timeout=1).read()
                return self
            except OSError:
                time.sleep(0.1)
        self.__exit__()
        raise SystemExit(f"{self.process.args[0]} does not serve; see its log")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(20)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library")
    parser.add_argument("folder", type=Path)
    parser.add_argument("llama_server")
    parser.add_argument("--ids", type=int, default=64)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--logs", type=Path, help="where the servers' logs go")
    arguments = parser.parse_args()
    squire.open_library(Path(arguments.library).resolve())
    model = squire.Model(squire.Engine(compute=squire.F32, threads=1), arguments.folder)

    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        logs = arguments.logs or folder
        files = {begins: folder / f"{begins}.gguf" for begins in (False, True)}
        for begins, path in files.items():
            write_gguf(arguments.folder, path, begins)

        # llama.cpp's own: any ids, beginnings of characters and control tokens among them. By default it keeps keys and values in f16.
        random_ids = [[rng.randrange(259) for _ in range(arguments.ids)] for _ in range(arguments.sequences)]
        exact = ["-fa", "off", "-ctk", "f32", "-ctv", "f32"]
        for name, more in (("llama-server, f32", exact), ("llama-server, by default", [])):
            command = [arguments.llama_server, "-m", str(files[False]), "-c", "512", "-np", "1", "-t", "1", "--no-warmup", *more]
            with Server(logs / "llama-server.log", *command) as server:
                teacher = LlamaCpp(server.url)
                for k in 0, TOP_K:
                    began = time.monotonic()
                    theirs = [teacher.score(ids, 1, k) for ids in random_ids]
                    seconds = time.monotonic() - began
                    report(name, k, [(own(model, ids, 1, k), places) for ids, places in zip(random_ids, theirs)], seconds)
                print(json.dumps({"server": name, **check(teacher, random_ids[0], TOP_K)}))

        # llama-cpp-python's: what is said after the id that begins a text.
        env = {**os.environ, "PYTHONSAFEPATH": "1"}
        for begins in True, False:
            command = [sys.executable, "-m", "llama_cpp.server", "--model", str(files[begins]), "--logits_all", "true", "--n_ctx", "512",
                       "--n_threads", "1", "--type_k", "0", "--type_v", "0"]
            with Server(logs / f"llama-cpp-python-{begins}.log", *command, env=env) as server:
                teacher = LlamaCppPython(server.url, text=lambda ids: bytes(ids).decode())
                printable = [[BEGIN] + [rng.randrange(33, 127) for _ in range(arguments.ids - 1)] for _ in range(arguments.sequences)]
                if begins:
                    began = time.monotonic()
                    theirs = [teacher.score(ids, 2, 0) for ids in printable]
                    seconds = time.monotonic() - began
                    report("llama-cpp-python", 0, [(own(model, ids, 2, 0), places) for ids, places in zip(printable, theirs)], seconds)
                else:
                    print(json.dumps({"server": "llama-cpp-python", "off_by": off_by(server.url, model, printable[0])}))
                    try:
                        teacher.score(printable[0], 2, 0)
                        raise SystemExit("a server that is a place off was believed")
                    except Failed as e:
                        print(json.dumps({"server": "llama-cpp-python", "refused": str(e)}))


def off_by(url, model, ids):
    """Without an id that begins the text: how far the server's log-probs lie from those of the ids, and from those of each id seen
    once more in the place after its own."""
    ids = ids[1:]
    body = {"prompt": bytes(ids).decode(), "max_tokens": 1, "temperature": 1.0, "echo": True, "logprobs": 0}
    told = LlamaCppPython(url, text=None).post("/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"]
    right, again = own(model, ids, 1, 0), [own(model, ids[:at + 1] + [ids[at]], at + 1, 0)[0] for at in range(1, len(ids))]
    apart = lambda places: max(abs(x - logprob) for x, (logprob, _) in zip(told[1:], places))
    return {"of_the_ids": apart(right), "of_seeing_each_again": apart(again)}


def own(model, ids, start, k):
    """squire's own log-probs, as a server of squire_teachers gives them."""
    return [(logprob, list(zip(top, logprobs))) for logprob, top, logprobs in score(model, ids, start, k)]


def report(server, k, pairs, seconds):
    """How far the log-probs of what was said lie apart, and of the ids that both count among the most likely."""
    said = [abs(a[0] - b[0]) for one, other in pairs for a, b in zip(one, other)]
    top, missing = [], 0
    for one, other in pairs:
        for (_, a), (_, b) in zip(one, other):
            a, b = dict(a), dict(b)
            top += [abs(a[id] - b[id]) for id in a.keys() & b.keys()]
            missing += len(a.keys() - b.keys())
    mean = lambda list: sum(list) / len(list) if list else None
    print(json.dumps({
        "server": server, "top_k": k, "places": len(said), "largest": max(said), "mean": mean(said),
        "mean_logprob": mean([a[0] for one, _ in pairs for a in one]),
        "top_ids": len(top), "top_largest": max(top, default=None), "top_mean": mean(top), "top_missing": missing,
        "seconds": round(seconds, 2),
    }))


main()
