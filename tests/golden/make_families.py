#!/usr/bin/env python3
"""Make the golden values of the model families beside Qwen3: Llama and Qwen2, biases, llama3 and linear rope scaling.

needs: pip install torch==2.15.0 transformers==5.23.0 safetensors numpy
use:   python make_families.py          (writes beside this file; takes about twenty seconds)

The models are run on the batch of make_golden.py, against the teacher that it wrote, and recorded by its functions, so
the files have its formats. rope_frequencies.json holds the inverse frequencies of published models' numbers.
"""
import json
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

sys.dont_write_bytecode = True  # no __pycache__ beside the files

import make_golden as golden  # noqa: E402

# Without its rope scaling or one of its biases a model's largest logit difference must exceed this.
MIN_FELT = 0.1


def llama3(factor, original, theta):
    return {"rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": original}


def linear(factor, theta):
    return {"rope_type": "linear", "rope_theta": theta, "factor": factor}


def llama(seed, hidden, heads, kv_heads, head_dim, ffn, tied, bias, rope, max_position):
    config = LlamaConfig(
        vocab_size=golden.V, hidden_size=hidden, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head_dim, intermediate_size=ffn, tie_word_embeddings=tied,
        attention_bias=bias, rope_parameters=rope, max_position_embeddings=max_position,
        bos_token_id=None, eos_token_id=None,
    )
    return LlamaForCausalLM, config, seed, torch.float32


def qwen2(seed, hidden, heads, kv_heads, ffn, tied, rope):
    """Its heads have hidden / heads elements, and config.json does not say so."""
    config = Qwen2Config(
        vocab_size=golden.V, hidden_size=hidden, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=ffn, tie_word_embeddings=tied, rope_parameters=rope,
        max_position_embeddings=256,
    )
    return Qwen2ForCausalLM, config, seed, torch.float32


FAMILIES = {
    # wavelengths 6.3 and 9.7 are kept (below 48 / 4), 14.9 to 35.3 ramp, 54.4 and longer are divided (above 48)
    "llama_llama3_f32": llama(301, 40, 2, 1, 32, 56, True, False, llama3(8.0, 48, 1000.0), 384),
    "llama_linear_bias_f32": llama(320, 36, 4, 2, 16, 72, False, True, linear(2.5, 10000.0), 640),
    "qwen2_f32": qwen2(320, 48, 3, 1, 80, True, golden.rope(1000000.0)),
}

FREQUENCIES = {
    "llama_3_1": (128, llama3(8.0, 8192, 500000.0)),
    "llama_3_2": (64, llama3(32.0, 8192, 500000.0)),
    "linear": (64, linear(4.0, 10000.0)),
}


def frequencies(head_dim, rope):
    """As transformers computes them, in f32."""
    config = LlamaConfig(hidden_size=2 * head_dim, num_attention_heads=2, head_dim=head_dim,
                         max_position_embeddings=131072, rope_parameters=dict(rope))
    inverse, attention_factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu")
    assert inverse.dtype == torch.float32 and attention_factor == 1.0
    return inverse


def assert_three_ranges(rope, scaled, head_dim):
    """Frequencies kept, divided and between: all three occur."""
    plain = frequencies(head_dim, linear(1.0, rope["rope_theta"]))
    kept, divided = scaled == plain, scaled == plain / rope["factor"]
    counts = [x.sum().item() for x in (kept, ~kept & ~divided, divided)]
    assert all(counts), counts
    return counts


def felt(name, batch):
    """The largest logit difference without the rope scaling, and without each of the biases."""
    with torch.no_grad():
        model = golden.load(name)
        whole = torch.cat(golden.forward(model, batch))
        difference = lambda: (torch.cat(golden.forward(model, batch)) - whole).abs().max().item()
        out = {}
        for bias, p in model.named_parameters():
            if bias.endswith(".bias"):
                kept = p.clone()
                p.zero_()
                out[bias] = difference()
                p.copy_(kept)
        rope = model.config.rope_parameters
        if rope["rope_type"] != "default":
            inverse = model.model.rotary_emb.inv_freq
            inverse.copy_(frequencies(2 * len(inverse), linear(1.0, rope["rope_theta"])))
            out[rope["rope_type"]] = difference()
        assert min(out.values()) > MIN_FELT, out
        return out


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    batch = golden.make_batch()
    assert batch == json.loads((golden.HERE / "batch.json").read_text()), "batch.json is not that of make_golden.py"
    recorded = {}
    for name, (head_dim, rope) in FREQUENCIES.items():
        inverse = frequencies(head_dim, rope)
        if rope["rope_type"] == "llama3":
            print(name, "kept, between, divided:", assert_three_ranges(rope, inverse, head_dim))
        recorded[name] = {"head_dim": head_dim, **rope, "inverse_frequencies": inverse.tolist()}
    golden.write_json("rope_frequencies.json", recorded)
    golden.MODELS.update(FAMILIES)
    golden.LOSSES_OF.update(FAMILIES)
    golden.GRADIENTS_OF.update(FAMILIES)
    with torch.no_grad():
        teacher_logits = golden.forward(golden.load("teacher_f32"), batch)
    for name, (_, config, _, _) in FAMILIES.items():
        golden.save_model(name)
        if config.rope_parameters["rope_type"] == "llama3":
            rope, inverse = config.rope_parameters, golden.load(name).model.rotary_emb.inv_freq
            print(name, "kept, between, divided:", assert_three_ranges(rope, inverse, config.head_dim))
        r = golden.record(name, batch, teacher_logits)
        print(name, {k: v for k, v in r.items() if k not in ("greedy", "model")})
        print("  greedy", [len(set(g["ids"])) for g in r["greedy"]], min(m for g in r["greedy"] for m in g["margins"]))
        print("  felt", felt(name, batch))
        for file in golden.HERE.glob(f"{name}.*.safetensors"):
            file.chmod(0o644)


if __name__ == "__main__":
    main()
