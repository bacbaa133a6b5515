#!/usr/bin/env python3
"""Make the golden values of tests/golden with torch and transformers, the independent judge of squire's model.

needs: pip install torch==2.15.0 transformers==5.23.0 safetensors numpy
use:   python make_golden.py            (writes beside this file; takes about half a minute)

The tests read only what this script wrote and never need torch. README.md beside it describes every file, key and
formula. All weights and ids are random with fixed seeds, so a second run with the versions in VERSIONS.json writes
the same files; another torch may differ in the last bits.
"""
import json
import math
import platform
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy
import safetensors
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

HERE = Path(__file__).resolve().parent
V = 259  # odd on purpose: no kernel's lane or tile count divides it
SEQ_LENS = (41, 67, 23)
GREEDY_STEPS = 24
TRAIN_STEPS = 10
LOSSES = ("cross_entropy", "reverse_kl", "forward_kl")
# A greedy choice or a routing nearer than this could flip by rounding alone; such a seed is refused.
MIN_GREEDY_MARGIN = 3e-3
MIN_ROUTER_MARGIN = 2e-4


# ---------------------------------------------------------------------------------------------------- models

def dense(seed, hidden, heads, kv_heads, head_dim, ffn, tied, rope, dtype, max_position=256):
    config = Qwen3Config(
        vocab_size=V, hidden_size=hidden, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head_dim, intermediate_size=ffn, tie_word_embeddings=tied,
        rope_parameters=rope, max_position_embeddings=max_position, max_window_layers=2,
    )
    return Qwen3ForCausalLM, config, seed, dtype


def moe(seed, hidden, heads, kv_heads, head_dim, ffn, expert_ffn, layers, mlp_only, step, tied, norm_topk, dtype):
    config = Qwen3MoeConfig(
        vocab_size=V, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=head_dim, intermediate_size=ffn, moe_intermediate_size=expert_ffn,
        num_experts=8, num_experts_per_tok=2, norm_topk_prob=norm_topk, decoder_sparse_step=step,
        mlp_only_layers=mlp_only, tie_word_embeddings=tied, max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    return Qwen3MoeForCausalLM, config, seed, dtype


def rope(theta):
    return {"rope_type": "default", "rope_theta": theta}


YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 32}

MODELS = {
    #                    seed hidden H  G  D   F    tied
    "teacher_f32": dense(101, 32, 2, 1, 16, 48, True, rope(10000.0), torch.float32),
    "dense_f32": dense(802, 48, 4, 2, 16, 80, True, rope(10000.0), torch.float32),
    "dense_bf16": dense(103, 64, 4, 1, 16, 64, False, rope(1000000.0), torch.bfloat16),
    "dense_f16": dense(204, 32, 4, 2, 16, 56, True, rope(10000.0), torch.float16),
    "dense_yarn": dense(405, 32, 2, 1, 32, 48, True, YARN, torch.float32, max_position=128),
    # layer 0 is dense by mlp_only_layers, layer 1 sparse
    "moe_f32": moe(1006, 40, 2, 1, 16, 32, 24, 2, [0], 1, True, True, torch.float32),
    # layer 0 is dense by decoder_sparse_step (1 is not a multiple of 2), layer 1 sparse; top-k weights not rescaled
    "moe_bf16": moe(607, 32, 2, 1, 16, 40, 16, 2, [], 2, False, False, torch.bfloat16),
}
SHARDED = {"moe_f32"}
TRANSFORMERS_4 = {"dense_bf16", "moe_bf16"}
BF16_COMPUTE = ("dense_bf16", "moe_bf16")
LOSSES_OF = {"dense_f32", "moe_f32", "dense_yarn"}
GRADIENTS_OF = {"dense_f32", "moe_f32"}


def fill(model, seed):
    """Lively random weights: the default initialisation gives almost flat logits and norms of exactly one."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            x = torch.randn(p.shape, generator=g)
            if name.endswith(".bias"):  # large enough to be missed
                x = 0.4 * x
            elif p.ndim == 1:  # norms
                x = 1.0 + 0.2 * x
            elif "embed_tokens" in name or "lm_head" in name:
                x = 0.25 * x
            elif name.endswith("mlp.gate.weight"):  # the router: fan-in scaled, well apart
                x = 2.0 * x / math.sqrt(p.shape[-1])
            else:
                x = 1.2 * x / math.sqrt(p.shape[-1])
            p.copy_(x)


def save_model(name):
    cls, config, seed, dtype = MODELS[name]
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model = cls(config)
    fill(model, seed)
    model.to(dtype).save_pretrained(folder, max_shard_size="64KB" if name in SHARDED else "5GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    for file in folder.iterdir():
        file.chmod(0o644)
    if name in TRANSFORMERS_4:
        to_transformers_4(folder / "config.json")


def to_transformers_4(path):
    """Rewrite a config.json in the spelling of transformers 4, the one most published Qwen3 folders have."""
    c = json.loads(path.read_text())
    r = c.pop("rope_parameters")
    assert r["rope_type"] == "default"
    c["rope_theta"] = r["rope_theta"]
    c["rope_scaling"] = None
    c["torch_dtype"] = c.pop("dtype")
    if "num_local_experts" in c:
        c["num_experts"] = c.pop("num_local_experts")
    c.pop("layer_types", None)
    c["transformers_version"] = "4.51.0"
    path.write_text(json.dumps(c, indent=2, sort_keys=True) + "\n")


def load(name, dtype=torch.float32):
    """The saved folder, read back by transformers: stored weights converted to `dtype`, plain attention and experts."""
    extra = {"experts_implementation": "eager"} if name.startswith("moe") else {}
    model = AutoModelForCausalLM.from_pretrained(HERE / name, dtype=dtype, attn_implementation="eager", **extra)
    assert all(p.dtype == dtype for p in model.parameters())
    return model.eval()


def by_file_name(tensors):
    """transformers keeps a layer's experts in two 3-D tensors; the files name each expert's three matrices."""
    out = {}
    for name, x in tensors.items():
        if name.endswith("mlp.experts.gate_up_proj"):
            base = name.removesuffix("gate_up_proj")
            for e in range(x.shape[0]):
                gate, up = x[e].chunk(2, dim=0)
                out[f"{base}{e}.gate_proj.weight"] = gate
                out[f"{base}{e}.up_proj.weight"] = up
        elif name.endswith("mlp.experts.down_proj"):
            base = name.removesuffix("down_proj")
            for e in range(x.shape[0]):
                out[f"{base}{e}.down_proj.weight"] = x[e]
        else:
            out[name] = x
    return {k: v.detach().clone().contiguous() for k, v in out.items()}


# ---------------------------------------------------------------------------------------------------- the batch

def make_batch():
    g = torch.Generator().manual_seed(7)
    ids = [torch.randint(0, V, (n,), generator=g).tolist() for n in SEQ_LENS]
    loss_positions, logit_positions = [], []
    for s in ids:
        n = len(s)
        keep = torch.rand(n, generator=g) < 0.7
        loss_positions.append([p for p in range(4, n - 1) if keep[p]])
        logit_positions.append(sorted(set(range(0, n, 7)) | {n - 1}))
    return {"vocab_size": V, "ids": ids, "loss_positions": loss_positions, "logit_positions": logit_positions}


def forward(model, batch, padded=False):
    """Logits [T, V] of each sequence: one run per sequence, or (to learn the rounding noise) one padded run."""
    ids = batch["ids"]
    if not padded:
        return [model(torch.tensor([s]), use_cache=False).logits[0] for s in ids]
    T = max(map(len, ids))
    x = torch.tensor([s + [0] * (T - len(s)) for s in ids])
    mask = torch.tensor([[1] * len(s) + [0] * (T - len(s)) for s in ids])
    y = model(x, attention_mask=mask, use_cache=False).logits
    return [y[i, : len(s)] for i, s in enumerate(ids)]


def pick(per_sequence, positions):
    return torch.cat([x[p] for x, p in zip(per_sequence, positions)])


def loss_of(kind, batch, logits, teacher_logits):
    """Token mean over the loss positions, in nats."""
    rows = pick(logits, batch["loss_positions"])
    student = torch.log_softmax(rows, -1)
    if kind == "cross_entropy":
        target = torch.tensor([s[p + 1] for s, ps in zip(batch["ids"], batch["loss_positions"]) for p in ps])
        return -student.gather(1, target[:, None]).mean()
    teacher = torch.log_softmax(pick(teacher_logits, batch["loss_positions"]), -1)
    if kind == "reverse_kl":
        return (student.exp() * (student - teacher)).sum(-1).mean()
    assert kind == "forward_kl"
    return (teacher.exp() * (teacher - student)).sum(-1).mean()


@contextmanager
def router_watch(model):
    """Collects per token, call by call, the gap in router logits between the last expert taken and the first left out."""
    seen, hooks = [], []
    for m in model.modules():
        if type(m).__name__ == "Qwen3MoeTopKRouter":
            def hook(m, _, out):
                top = out[0].detach().float().topk(m.top_k + 1, dim=-1).values
                seen.append(top[:, -2] - top[:, -1])
            hooks.append(m.register_forward_hook(hook))
    yield seen
    for h in hooks:
        h.remove()


# ---------------------------------------------------------------------------------------------------- what is recorded

def greedy(model, prompt):
    """Continuation by arg max, everything recomputed at each step; margin = best logit minus second best."""
    ids, margins = list(prompt), []
    with torch.no_grad():
        for _ in range(GREEDY_STEPS):
            top = model(torch.tensor([ids]), use_cache=False).logits[0, -1].topk(2)
            ids.append(top.indices[0].item())
            margins.append((top.values[0] - top.values[1]).item())
    return {"ids": ids[len(prompt):], "margins": margins}


def gradients(model, batch, kind, teacher_logits, padded=False):
    model.zero_grad(set_to_none=True)
    loss = loss_of(kind, batch, forward(model, batch, padded), teacher_logits)
    loss.backward()
    return loss.item(), by_file_name({n: p.grad for n, p in model.named_parameters()})


def max_abs(a, b):
    return max((x - y).abs().max().item() for x, y in zip(a, b))


def max_rel_to_largest(a, b):
    """Worst tensor: largest difference over the tensor's largest element."""
    return max(((a[n] - b[n]).abs().max() / a[n].abs().max().clamp_min(1e-30)).item() for n in a)


def record(name, batch, teacher_logits):
    model = load(name)
    out = {"model": name, "parameters": sum(p.numel() for p in model.parameters())}
    tensors = {}
    with torch.no_grad(), router_watch(model) as gaps:
        logits = forward(model, batch)
        tensors["logits_f32"] = pick(logits, batch["logit_positions"])
        out["logits_std"] = torch.cat(logits).std().item()
        out["greedy"] = [greedy(model, s) for s in batch["ids"]]
        margin = min(m for g in out["greedy"] for m in g["margins"])
        assert margin > MIN_GREEDY_MARGIN, f"{name}: greedy margin {margin}, choose another seed"
        noise = {"logits_max_abs": max_abs(logits, forward(model, batch, padded=True))}
    if gaps:
        # The one sparse layer is the last, so its routing at a position touches that position's logits alone; the
        # first calls are `forward`'s, one per sequence.
        out["router_margin"] = torch.cat(gaps).min().item()
        out["router_gaps"] = [round(x, 5) for x in pick(gaps, batch["logit_positions"]).tolist()]
        assert out["router_margin"] > MIN_ROUTER_MARGIN, f"{name}: router margin too small, choose another seed"
    if name in BF16_COMPUTE:
        half = load(name, torch.bfloat16)
        with torch.no_grad():
            bf16 = [x.float() for x in forward(half, batch)]
        tensors["logits_bf16"] = pick(bf16, batch["logit_positions"])
        diff = (tensors["logits_bf16"] - tensors["logits_f32"]).abs()
        out["bf16_minus_f32"] = {"max_abs_by_row": [round(x, 5) for x in diff.max(-1).values.tolist()],
                                 "mean_abs": diff.mean().item()}
    if name in LOSSES_OF:
        out["losses"], grads, noise["grads_max_rel"] = {}, {}, {}
        for kind in LOSSES:
            out["losses"][kind], g = gradients(model, batch, kind, teacher_logits)
            noise["grads_max_rel"][kind] = max_rel_to_largest(g, gradients(model, batch, kind, teacher_logits, True)[1])
            grads |= {f"{kind}/{n}": x for n, x in g.items()}
        if name in GRADIENTS_OF:
            save_file(grads, HERE / f"{name}.grads.safetensors")
    out["noise"] = noise
    save_file({k: v.contiguous() for k, v in tensors.items()}, HERE / f"{name}.logits.safetensors")
    write_json(f"{name}.json", out)
    return out


def learning_rates(peak=2e-3, warmup=3, last=0.1):
    """Linear warm-up peak/3, 2 peak/3, peak; then half a cosine from peak (t = 2) down to 10 % of it (t = 9)."""
    def lr(t):
        if t < warmup:
            return peak * (t + 1) / warmup
        x = (t - warmup + 1) / (TRAIN_STEPS - warmup)
        return peak * (last + (1.0 - last) * 0.5 * (1.0 + math.cos(math.pi * x)))
    return [lr(t) for t in range(TRAIN_STEPS)]


def run_training(name, kind, batch, teacher_logits, padded=False):
    model = load(name)
    params = dict(model.named_parameters())
    opt = torch.optim.AdamW(
        [
            {"params": [p for p in params.values() if p.ndim >= 2], "weight_decay": 0.01},
            {"params": [p for p in params.values() if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98), eps=1e-8, foreach=False,
    )
    losses, norms = [], []
    with router_watch(model) as gaps:
        for lr in learning_rates():
            for group in opt.param_groups:
                group["lr"] = lr
            opt.zero_grad(set_to_none=True)
            loss = loss_of(kind, batch, forward(model, batch, padded), teacher_logits)
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(params.values(), 1.0, foreach=False).item())
            opt.step()
            losses.append(loss.item())
        with torch.no_grad():
            losses.append(loss_of(kind, batch, forward(model, batch, padded), teacher_logits).item())
    return losses, norms, by_file_name(params), torch.cat(gaps).min().item() if gaps else None


def record_training(name, kind, batch, teacher_logits):
    losses, norms, weights, gap = run_training(name, kind, batch, teacher_logits)
    other = run_training(name, kind, batch, teacher_logits, padded=True)
    diffs = torch.cat([(weights[n] - other[2][n]).abs().flatten() for n in weights])
    out = {
        "model": name, "loss": kind, "betas": [0.9, 0.98], "eps": 1e-8, "max_grad_norm": 1.0,
        "weight_decay": {"ndim_2_or_more": 0.01, "ndim_1": 0.0},
        "lr": learning_rates(), "losses": losses[:-1], "grad_norms": norms, "loss_after": losses[-1],
        "noise": {
            "losses_max_abs": max(abs(a - b) for a, b in zip(losses, other[0])),
            "grad_norms_max_rel": max(abs(a - b) / a for a, b in zip(norms, other[1])),
            "weights_max_abs": diffs.max().item(), "weights_rms": diffs.square().mean().sqrt().item(),
        },
    }
    if gap is not None:
        out["router_margin"] = gap
        assert gap > MIN_ROUTER_MARGIN / 10, f"{name}: router margin {gap} in training, choose another seed"
    start = by_file_name(dict(load(name).named_parameters()))
    moved = torch.cat([(weights[n] - start[n]).flatten() for n in weights])
    out["moved_rms"] = moved.square().mean().sqrt().item()
    save_file(weights, HERE / f"train_{name}.safetensors")
    write_json(f"train_{name}.json", out)
    return out


def write_json(name, value):
    text = json.dumps(value, indent=1)
    # number lists on one line each, so that the files stay readable and diff well
    text = re.sub(r"\[\s+((?:[-\d.e+]+,\s+)*[-\d.e+]+)\s+\]", lambda m: "[" + " ".join(m[1].split()) + "]", text)
    (HERE / name).write_text(text + "\n")


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    batch = make_batch()
    write_json("batch.json", batch)
    for name in MODELS:
        save_model(name)
    with torch.no_grad():
        teacher_logits = forward(load("teacher_f32"), batch)
    for name in MODELS:
        r = record(name, batch, teacher_logits)
        print(name, {k: v for k, v in r.items() if k not in ("greedy", "model")})
        print("  greedy", [len(set(g["ids"])) for g in r["greedy"]], min(m for g in r["greedy"] for m in g["margins"]))
    for name, kind in (("dense_f32", "reverse_kl"), ("moe_f32", "cross_entropy")):
        print("train", record_training(name, kind, batch, teacher_logits))
    for file in HERE.glob("*.safetensors"):
        file.chmod(0o644)
    write_json("VERSIONS.json", {
        "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
        "safetensors": safetensors.__version__, "numpy": numpy.__version__, "torch_threads": 1,
    })


if __name__ == "__main__":
    main()
