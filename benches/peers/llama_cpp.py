#!/usr/bin/env python3
"""Time llama.cpp, the CPU peer: prefill of one prompt and decode of single tokens, through its C interface.

needs: pip install llama-cpp-python==0.3.36, built natively (README.md); a GGUF file, e.g. of make_gguf.py
use:   llama_cpp.py MODEL.gguf [--threads 2] [--prefill 512] [--decode 128] [--repeats 5] [--serving]

Prints one JSON line: tokens per second, the median over the repeats and the repeats themselves. As in llama-bench,
prefill is one batch with logits for its last token only, decode starts from an empty cache, and each is run once
beforehand to page the weights in. Token ids are random, nothing is sampled.

With --serving it prints the parts of benches/serving.rs instead, a line each: opening the file, eight sequences that decode together
against one, a chat of 20 turns of 40 and 20 tokens, decode behind 1, 4,096 and 16,384 tokens.
"""
import argparse
import ctypes
import json
import os
import random
import statistics
import sys
import time

# This file bears the name of the package it imports: its own folder must not come first in the search.
sys.path = [p for p in sys.path if os.path.abspath(p or ".") != os.path.dirname(os.path.abspath(__file__))]
import llama_cpp as llama  # noqa: E402


@llama.llama_log_callback
def no_log(_level, _text, _user):
    pass


def run(ctx, ids, pos):
    """One llama_decode of `ids` at positions from `pos`; returns when the last token's logits are there."""
    batch = llama.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i] = token
        batch.pos[i] = pos + i
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = 0
        batch.logits[i] = i == len(ids) - 1
    status = llama.llama_decode(ctx, batch)
    llama.llama_synchronize(ctx)
    llama.llama_batch_free(batch)
    if status != 0:
        sys.exit(f"llama_decode of {len(ids)} tokens at position {pos} failed with status {status}")


def rate(ctx, ids, step):
    """Tokens per second of running `ids` from an empty cache, `step` tokens at a time."""
    llama.llama_memory_clear(llama.llama_get_memory(ctx), True)
    start = time.perf_counter()
    for pos in range(0, len(ids), step):
        run(ctx, ids[pos : pos + step], pos)
    return len(ids) / (time.perf_counter() - start)


def run_together(ctx, tokens, pos):
    """One llama_decode of a token of each sequence, logits of each."""
    batch = llama.llama_batch_init(len(tokens), 0, len(tokens))
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, pos, 1, True
        batch.seq_id[i][0] = i
    status = llama.llama_decode(ctx, batch)
    llama.llama_synchronize(ctx)
    llama.llama_batch_free(batch)
    if status != 0:
        sys.exit(f"llama_decode of {len(tokens)} sequences failed with status {status}")


def clear(ctx):
    llama.llama_memory_clear(llama.llama_get_memory(ctx), True)


def serving(args, model, opened):
    """The parts of benches/serving.rs."""
    rng = random.Random(0)
    vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    ids = lambda n: [rng.randrange(vocab_size) for _ in range(n)]  # noqa: E731

    def context(n_ctx, n_seq_max=1):
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = n_ctx, 512, 512, n_seq_max
        params.n_threads = params.n_threads_batch = args.threads
        return llama.llama_init_from_model(model, params)

    def say(**line):
        print(json.dumps({"peer": "llama.cpp", **line}), flush=True)

    def prefill(ctx, tokens, pos=0):
        for at in range(0, len(tokens), 512):
            run(ctx, tokens[at : at + 512], pos + at)

    say(part="open", seconds=statistics.median(opened))
    ctx = context(8 * 256, 8)

    def together(n):
        clear(ctx)
        start = time.perf_counter()
        for pos in range(64):
            run_together(ctx, ids(n), pos)
        return 64 * n / (time.perf_counter() - start)

    together(8)
    pairs = [(together(1), together(8)) for _ in range(args.repeats)]
    say(part="together", one=statistics.median(p[0] for p in pairs), eight=statistics.median(p[1] for p in pairs),
        ratio=statistics.median(p[1] / p[0] for p in pairs))
    llama.llama_free(ctx)

    ctx = context(2048)
    chats = []
    for _ in range(args.repeats):
        clear(ctx)
        pos, turns = 0, []
        for _ in range(20):
            start = time.perf_counter()
            prefill(ctx, ids(40), pos)
            pos += 40
            for _ in range(20):
                run(ctx, ids(1), pos)
                pos += 1
            turns.append(time.perf_counter() - start)
        chats.append(turns)
    say(part="chat", turn_2_s=statistics.median(c[1] for c in chats), last_turn_s=statistics.median(c[-1] for c in chats),
        turns=20, ratio=statistics.median(c[-1] / c[1] for c in chats))
    llama.llama_free(ctx)

    ctx = context(16384 + 256)
    for depth in (1, 4096, 16384):
        clear(ctx)
        prefill(ctx, ids(depth))
        run(ctx, ids(1), depth)
        start = time.perf_counter()
        for i in range(64):
            run(ctx, ids(1), depth + 1 + i)
        say(part="depth", depth=depth, tokens_per_s=64 / (time.perf_counter() - start))
    llama.llama_free(ctx)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--serving", action="store_true")
    args = parser.parse_args()

    llama.llama_log_set(no_log, ctypes.c_void_p(0))
    llama.llama_backend_init()
    model_params = llama.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(args.model.encode(), model_params)
    if not model:
        sys.exit(f"llama.cpp cannot load {args.model}")
    if args.serving:
        opened = []
        for _ in range(args.repeats):
            start = time.perf_counter()
            llama.llama_model_free(llama.llama_model_load_from_file(args.model.encode(), model_params))
            opened.append(time.perf_counter() - start)
        return serving(args, model, opened)
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = max(args.prefill, args.decode)
    params.n_threads = params.n_threads_batch = args.threads
    ctx = llama.llama_init_from_model(model, params)
    if not ctx:
        sys.exit("llama.cpp cannot make a context")

    rng = random.Random(0)
    vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    prompt = [rng.randrange(vocab_size) for _ in range(args.prefill)]
    tokens = [rng.randrange(vocab_size) for _ in range(args.decode)]
    rate(ctx, prompt, len(prompt))
    rate(ctx, tokens[:8], 1)
    prefill = [rate(ctx, prompt, len(prompt)) for _ in range(args.repeats)]
    decode = [rate(ctx, tokens, 1) for _ in range(args.repeats)]

    print(json.dumps({
        "peer": "llama.cpp", "llama_cpp_python": llama.__version__, "model": os.path.basename(args.model),
        "model_bytes": os.path.getsize(args.model), "threads": args.threads,
        "prefill_tokens": args.prefill, "prefill_tokens_per_s": round(statistics.median(prefill), 2),
        "decode_tokens": args.decode, "decode_tokens_per_s": round(statistics.median(decode), 2),
        "prefill_repeats": [round(x, 2) for x in prefill], "decode_repeats": [round(x, 2) for x in decode],
        "system": llama.llama_print_system_info().decode().strip(),
    }))
    llama.llama_free(ctx)
    llama.llama_model_free(model)


if __name__ == "__main__":
    main()
