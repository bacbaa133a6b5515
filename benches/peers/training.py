"""squire's update beside torch's, step by step in turns: training.py BINARY SHAPE EPISODESxTOKENS COMPUTE [PAIRS].

BINARY is the built `benches/training.rs` (cargo bench --bench training --no-run tells its path). Needs torch, transformers and
peft. Both take a batch of the same lengths with the same tokens learnt, on two threads: teacher's pass, forward, backward,
clipping, AdamW (torch's fused one); squire once with the KL of the step, which torch does not take, and once without. torch: eager, scaled_dot_product_attention, one forward per batch of equal lengths; f32, or
bf16 autocast over f32 weights (full) or a bf16 base (LoRA). squire's weights are stored in bf16 either way. Prints a line a
pair, the medians, and what each process says of its memory.
"""
import json
import resource
import statistics
import subprocess
import sys
import time

SHOWN = 16  # as in benches/training.rs


def torch_side(shape, episodes, tokens, compute):
    """Takes a step for each line of its input, and prints the seconds."""
    import torch
    from torch.nn.functional import cross_entropy, log_softmax
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.set_num_threads(2)
    torch.manual_seed(1)
    of = {
        "dense": dict(vocab_size=8192, hidden_size=512, intermediate_size=1536, num_attention_heads=8, num_key_value_heads=4,
                      head_dim=64),
        "lora": dict(vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_attention_heads=16,
                     num_key_value_heads=8, head_dim=128),
    }[shape]
    config = Qwen3Config(num_hidden_layers=8, max_position_embeddings=16384, tie_word_embeddings=True, use_cache=False,
                         attn_implementation="sdpa", **of)
    student, teacher, learnt = Qwen3ForCausalLM(config), None, tokens // 4
    if shape == "dense":
        teacher, learnt = Qwen3ForCausalLM(config).eval(), tokens - SHOWN
    else:
        from peft import LoraConfig, get_peft_model
        if compute == "bf16":
            student = student.bfloat16()
        student = get_peft_model(student, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, fused=True)
    ids = torch.arange(tokens)[None] * 31 + 7 * torch.arange(episodes)[:, None]
    ids %= min(of["vocab_size"], 8000)
    at = slice(tokens - learnt - 1, tokens - 1)  # rows that predict what is learnt

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=compute == "bf16"):
            # Only the rows that are learnt get logits, as in squire.
            logits = student(ids, logits_to_keep=learnt + 1).logits[:, :-1].float()
            if teacher is None:
                loss = cross_entropy(logits.flatten(0, 1), ids[:, at.start + 1:].flatten())
            else:
                with torch.no_grad():
                    theirs = log_softmax(teacher(ids, logits_to_keep=learnt + 1).logits[:, :-1].float(), -1)
                ours = log_softmax(logits, -1)
                loss = (ours.exp() * (ours - theirs)).sum(-1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for _ in sys.stdin:
        begun = time.monotonic()
        step()
        print(f"{time.monotonic() - begun:.4f}", flush=True)
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB", flush=True)


class Side:
    def __init__(self, *command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def step(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def end(self):
        return self.process.communicate()[0].strip()


def main():
    binary, shape, batch, compute, *rest = sys.argv[1:]
    pairs = int(rest[0]) if rest else 3
    ours = [binary, shape, batch, compute, "0", "any"]
    sides = [Side(*ours, "64"), Side(*ours, "0"), Side(sys.executable, __file__, "torch", shape, batch, compute)]
    for side in sides:
        side.step()  # buffers grow, weights are touched
    times = [[side.step() for side in sides] for _ in range(pairs)]
    for ours, without, theirs in times:
        print(f"  squire {ours:.3f} s, without the KL {without:.3f} s, torch {theirs:.3f} s", flush=True)
    ours, without, theirs = (statistics.median(of) for of in zip(*times))
    peaks = [side.end() for side in sides]
    print(json.dumps({"shape": shape, "batch": batch, "compute": compute, "squire": ours, "without": without, "torch": theirs,
                      "torch/squire": round(theirs / ours, 3), "torch/without": round(theirs / without, 3),
                      "peaks": peaks}), flush=True)


if sys.argv[1] == "torch":
    shape, batch, compute = sys.argv[2:]
    torch_side(shape, *(int(n) for n in batch.split("x")), compute)
else:
    main()
