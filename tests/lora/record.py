#!/usr/bin/env python3
"""Record what peft computes with LoRA adapters on the tiny models of tests/golden.

needs: pip install torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0 numpy==2.4.6
use:   python record.py            (writes beside this file; takes about half a minute)

Models, batch, objectives and training steps are those of ../golden/make_golden.py, whose functions do the work here
too; README.md beside this file describes what is written. Everything is seeded: the same versions write the same bytes.
"""
import json
import math
import platform
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent / "golden"))

import make_golden as golden
import numpy
import peft
import safetensors
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import Qwen3ForCausalLM

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
SEVEN = ATTENTION + ["gate_proj", "up_proj", "down_proj"]
TEACHER = "teacher_f32"

# name: base model, its folder from tests/golden, seed, LoRA settings, objective of the training steps if any
CASES = {
    "dense_seven": ("dense_f32", "dense_f32", 11, dict(r=4, lora_alpha=8, target_modules=SEVEN), "reverse_kl"),
    "dense_other_seven": ("dense_other", "../lora/dense_other", 12, dict(r=4, lora_alpha=8, target_modules=SEVEN), None),
    "moe_attention": ("moe_f32", "moe_f32", 13, dict(r=4, lora_alpha=8, target_modules=ATTENTION), "cross_entropy"),
    "dense_rslora": ("dense_f32", "dense_f32", 14,
                     dict(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], use_rslora=True), None),
}


def save_dense_other():
    """dense_f32 with an lm_head of its own: no f32 model of tests/golden is untied."""
    folder = HERE / "dense_other"
    shutil.rmtree(folder, ignore_errors=True)
    base = golden.load("dense_f32")
    config = base.config
    config.tie_word_embeddings = False
    model = Qwen3ForCausalLM(config)
    missing = model.load_state_dict({n: p for n, p in base.named_parameters()}, strict=False).missing_keys
    assert missing == ["lm_head.weight"], missing
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.lm_head.weight.copy_(0.25 * torch.randn(model.lm_head.weight.shape, generator=g))
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def fill(model, seed):
    """Both factors random: with peft's own start, B = 0, the gradient of A would be nothing but zeros. The sizes make
    an adapter's product about half as large as the weight it is added to."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(lora(model).items()):
            scale = 1.0 / math.sqrt(p.shape[1]) if ".lora_A." in name else 0.15
            p.copy_(scale * torch.randn(p.shape, generator=g))


def file_tensors(model):
    # Left to itself, peft would ask the hub whether the base's vocabulary grew.
    return get_peft_model_state_dict(model, save_embedding_layers=False)


def lora(model):
    """The trained parameters by the names of adapter_model.safetensors."""
    found = {n.replace(".default.", "."): p for n, p in model.named_parameters() if p.requires_grad}
    assert all(".lora_" in n for n in found) and found.keys() == file_tensors(model).keys()
    return found


def save_adapter(case):
    base, folder, seed, settings, _ = CASES[case]
    out = HERE / case
    shutil.rmtree(out, ignore_errors=True)
    config = LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", **settings)
    model = get_peft_model(golden.load(folder), config)
    fill(model, seed)
    # By name, as published adapters have it, not by the path from which it was loaded here.
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(out, save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)  # an empty model card
    # target_modules is a set for peft, whose order changes from run to run.
    path = out / "adapter_config.json"
    saved = json.loads(path.read_text())
    saved["target_modules"] = settings["target_modules"]
    path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")


def load(case, trainable=True):
    """The saved adapter, read back by peft onto its base."""
    model = PeftModel.from_pretrained(golden.load(CASES[case][1]), HERE / case, is_trainable=trainable).eval()
    saved = load_file(HERE / case / "adapter_model.safetensors")
    assert all(torch.equal(x, saved.pop(n)) for n, x in file_tensors(model).items()) and not saved
    return model


def loss_and_gradients(model, batch, kind, teacher_logits, padded=False):
    model.zero_grad(set_to_none=True)
    loss = golden.loss_of(kind, batch, golden.forward(model, batch, padded), teacher_logits)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in lora(model).items()}


def train(case, batch, teacher_logits, padded=False):
    """As golden.run_training, for the LoRA tensors alone; all have two dimensions, so all decay."""
    model, kind = load(case), CASES[case][4]
    params = lora(model)
    opt = torch.optim.AdamW(params.values(), betas=(0.9, 0.98), eps=1e-8, weight_decay=0.01, foreach=False)
    losses, norms = [], []
    with golden.router_watch(model) as gaps:
        for lr in golden.learning_rates():
            opt.param_groups[0]["lr"] = lr
            opt.zero_grad(set_to_none=True)
            loss = golden.loss_of(kind, batch, golden.forward(model, batch, padded), teacher_logits)
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(params.values(), 1.0, foreach=False).item())
            opt.step()
            losses.append(loss.item())
        with torch.no_grad():
            losses.append(golden.loss_of(kind, batch, golden.forward(model, batch, padded), teacher_logits).item())
    return losses, norms, {n: p.detach().clone() for n, p in params.items()}, torch.cat(gaps).min().item() if gaps else None


def record_training(case, batch, teacher_logits):
    losses, norms, trained, gap = train(case, batch, teacher_logits)
    other = train(case, batch, teacher_logits, padded=True)
    diffs = torch.cat([(trained[n] - other[2][n]).abs().flatten() for n in trained])
    start = lora(load(case))
    moved = torch.cat([(trained[n] - start[n]).detach().flatten() for n in trained])
    out = {
        "loss": CASES[case][4], "betas": [0.9, 0.98], "eps": 1e-8, "max_grad_norm": 1.0, "weight_decay": 0.01,
        "lr": golden.learning_rates(), "losses": losses[:-1], "grad_norms": norms, "loss_after": losses[-1],
        "moved_rms": moved.square().mean().sqrt().item(),
        "noise": {
            "losses_max_abs": max(abs(a - b) for a, b in zip(losses, other[0])),
            "grad_norms_max_rel": max(abs(a - b) / a for a, b in zip(norms, other[1])),
            "tensors_max_abs": diffs.max().item(), "tensors_rms": diffs.square().mean().sqrt().item(),
        },
    }
    if gap is not None:
        out["router_margin"] = gap
        assert gap > golden.MIN_ROUTER_MARGIN / 10, f"{case}: router margin {gap} in training, choose another seed"
    return out, trained


def record(case, batch, teacher_logits):
    base, folder, _, settings, kind = CASES[case]
    model = load(case)
    layer = next(m for m in model.modules() if hasattr(m, "scaling") and isinstance(m.scaling, dict))
    out = {"case": case, "base": base, "lora": settings, "scale": layer.scaling["default"],
           "lora_parameters": sum(p.numel() for p in lora(model).values())}
    with torch.no_grad(), golden.router_watch(model) as gaps:
        logits = golden.forward(model, batch)
        out["greedy"] = [golden.greedy(model, s) for s in batch["ids"]]
        margin = min(m for g in out["greedy"] for m in g["margins"])
        assert margin > golden.MIN_GREEDY_MARGIN, f"{case}: greedy margin {margin}, choose another seed"
        plain = golden.forward(golden.load(folder), batch)
        noise = {"logits_max_abs": golden.max_abs(logits, golden.forward(model, batch, padded=True))}
    if gaps:
        out["router_margin"] = torch.cat(gaps).min().item()
        assert out["router_margin"] > golden.MIN_ROUTER_MARGIN, f"{case}: router margin too small, choose another seed"
    tensors = {"logits_f32": golden.pick(logits, batch["logit_positions"])}
    out["moved_by_adapter_max_abs"] = golden.max_abs(logits, plain)

    out["losses"], noise["grads_max_rel"] = {}, {}
    for k in golden.LOSSES:
        out["losses"][k], g = loss_and_gradients(model, batch, k, teacher_logits)
        padded = loss_and_gradients(model, batch, k, teacher_logits, padded=True)[1]
        noise["grads_max_rel"][k] = golden.max_rel_to_largest(g, padded)
        assert all(x.abs().max() > 0 for x in g.values())
        tensors |= {f"{k}/{n}": x for n, x in g.items()}
    out["noise"] = noise
    if kind:
        out["train"], trained = record_training(case, batch, teacher_logits)
        tensors |= {f"trained/{n}": x for n, x in trained.items()}

    with torch.no_grad():
        merged = golden.forward(load(case, trainable=False).merge_and_unload(), batch)
    tensors["merged_logits_f32"] = golden.pick(merged, batch["logit_positions"])
    out["merged_minus_adapter_max_abs"] = golden.max_abs(merged, logits)
    save_file({k: x.detach().contiguous() for k, x in tensors.items()}, HERE / f"{case}.safetensors")
    write_json(f"{case}.json", out)
    return out


@contextmanager
def writing_here():
    there, golden.HERE = golden.HERE, HERE
    yield
    golden.HERE = there


def write_json(name, value):
    with writing_here():
        golden.write_json(name, value)


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.utils.logging.disable_progress_bar()
    batch = json.loads((golden.HERE / "batch.json").read_text())
    save_dense_other()
    with torch.no_grad():
        teacher_logits = golden.forward(golden.load(TEACHER), batch)
    for case in CASES:
        save_adapter(case)
        r = record(case, batch, teacher_logits)
        print(case, {k: v for k, v in r.items() if k not in ("greedy", "case", "train")})
        print("  least greedy margin", min(m for g in r["greedy"] for m in g["margins"]))
        if "train" in r:
            print("  train", r["train"])
    for file in [*HERE.glob("*.safetensors"), *HERE.glob("*/*")]:
        file.chmod(0o644)
    write_json("VERSIONS.json", {
        "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
        "peft": peft.__version__, "safetensors": safetensors.__version__, "numpy": numpy.__version__, "torch_threads": 1,
    })


if __name__ == "__main__":
    main()
