"""Decode steps of transformers with a static cache and torch.compile, on a Qwen3 shape with random weights."""

import sys
import time

import torch
import transformers
from transformers import Qwen3Config, Qwen3ForCausalLM, StaticCache

SHAPES = {  # hidden, layers, query and key heads, intermediate, tied
    "0.6B": (1024, 28, 16, 8, 3072, True),
    "1.7B": (2048, 28, 16, 8, 6144, True),
    "4B": (2560, 36, 32, 8, 9728, True),
    "8B": (4096, 36, 32, 8, 12288, False),
}
STEPS, ROUNDS = 40, 5


def build(name):
    hidden, layers, heads, kv_heads, ffn, tied = SHAPES[name]
    config = Qwen3Config(
        vocab_size=151936, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=ffn, head_dim=128, tie_word_embeddings=tied,
        max_position_embeddings=40960, rope_theta=1e6,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        return Qwen3ForCausalLM(config).eval()


@torch.inference_mode()
def decode(model, batch, context):
    """Median microseconds of one step: forward of one token a row, temperature, top-k and the draw."""
    room = context + STEPS * (ROUNDS + 2)
    cache = StaticCache(config=model.config, max_cache_len=room)
    ids = torch.randint(0, 1000, (batch, context), device="cuda")
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    token = torch.ones((batch, 1), dtype=torch.long, device="cuda")
    position = torch.tensor([context], device="cuda")

    def step(token, position):
        logits = model(
            input_ids=token, past_key_values=cache, cache_position=position, position_ids=position[None].expand(batch, 1),
            use_cache=True,
        ).logits[:, -1].float()
        top, at = torch.topk(logits / 0.7, 20)
        return at.gather(1, torch.multinomial(torch.softmax(top, -1), 1))

    compiled = torch.compile(step, mode="reduce-overhead", fullgraph=False)
    times = []
    for round_ in range(ROUNDS + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(STEPS):
            torch.compiler.cudagraph_mark_step_begin()
            token = compiled(token, position).clone()
            position = position + 1
        torch.cuda.synchronize()
        if round_ > 0:  # the first one compiles
            times.append((time.perf_counter() - start) / STEPS * 1e6)
    return sorted(times)[len(times) // 2]


def main():
    name = sys.argv[1]
    model = build(name)
    print(f"peer torch {torch.__version__}, transformers {transformers.__version__}, {torch.cuda.get_device_name()}")
    for batch, context in [(1, 512), (8, 512), (1, 2048)]:
        print(f"peer decode {name:5} batch {batch:2} context {context:5}: {decode(model, batch, context):9.1f} us a step", flush=True)


main()
