#!/usr/bin/env python3
"""Write a bf16 GGUF file with the exact shape of a Qwen3 dense model and random weights, for timing peers.

Speed does not depend on the weights' values, so no published model is needed. The vocabulary is made up as well: the
256 byte symbols, one merge and numbered fillers. The 0.6b preset is 1.2 GB.

needs: pip install gguf==0.19.0 numpy
use:   make_gguf.py OUT.gguf [--preset 0.6b|tiny]
"""
import argparse

import gguf
import numpy as np

VOCAB = 151936
EOS, PAD = 151645, 151643
PRESETS = {  # C hidden, L layers, H heads, G key/value heads, D head size, F feed-forward
    "0.6b": (1024, 28, 16, 8, 128, 3072),
    "tiny": (256, 2, 4, 2, 64, 512),
}


def vocabulary():
    """Tokens and types; the first 256 are the printable symbols by which byte-level BPE writes the bytes."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    tokens = [chr(b if b in printable else next(others)) for b in range(256)] + ["th"]
    types = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.UNUSED] * (VOCAB - len(tokens))
    tokens += [f"<filler{i}>" for i in range(len(tokens), VOCAB)]
    for i, text in ((PAD, "<|endoftext|>"), (151644, "<|im_start|>"), (EOS, "<|im_end|>")):
        tokens[i], types[i] = text, gguf.TokenType.CONTROL
    return tokens, types


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--preset", choices=PRESETS, default="0.6b")
    args = parser.parse_args()
    C, L, H, G, D, F = PRESETS[args.preset]
    rng = np.random.default_rng(0)
    w = gguf.GGUFWriter(args.out, "qwen3")

    w.add_name(f"random-qwen3-{args.preset}-bf16")
    w.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    w.add_context_length(40960)
    w.add_embedding_length(C)
    w.add_block_count(L)
    w.add_feed_forward_length(F)
    w.add_head_count(H)
    w.add_head_count_kv(G)
    w.add_key_length(D)
    w.add_value_length(D)
    w.add_rope_freq_base(1e6)
    w.add_layer_norm_rms_eps(1e-6)
    tokens, types = vocabulary()
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_token_merges(["t h"])
    w.add_bos_token_id(PAD)
    w.add_eos_token_id(EOS)
    w.add_pad_token_id(PAD)
    w.add_add_bos_token(False)

    def matrix(name, rows, cols):
        """Normal values of deviation 0.02, cut to the upper half of their f32 bits, which is bf16."""
        bits = np.empty((rows, cols), dtype=np.uint16)
        for r in range(0, rows, 8192):
            x = rng.standard_normal((min(8192, rows - r), cols), dtype=np.float32) * np.float32(0.02)
            bits[r : r + len(x)] = x.view(np.uint32) >> 16
        w.add_tensor(name, bits.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)

    def norm(name, n):
        w.add_tensor(name, np.ones(n, dtype=np.float32))

    matrix("token_embd.weight", VOCAB, C)  # also the output matrix: a file without output.weight is tied
    norm("output_norm.weight", C)
    for layer in range(L):
        p = f"blk.{layer}."
        for name, n in (("attn_norm", C), ("attn_q_norm", D), ("attn_k_norm", D), ("ffn_norm", C)):
            norm(p + name + ".weight", n)
        for name, rows, cols in (
            ("attn_q", H * D, C), ("attn_k", G * D, C), ("attn_v", G * D, C), ("attn_output", C, H * D),
            ("ffn_gate", F, C), ("ffn_up", F, C), ("ffn_down", C, F),
        ):
            matrix(p + name + ".weight", rows, cols)

    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    main()
