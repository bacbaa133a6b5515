#!/usr/bin/env python3
"""Check that peft loads an adapter folder onto its base, every tensor of it, and computes the expected logits.

needs: pip install torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0
use:   python check_folder.py BASE_FOLDER ADAPTER_FOLDER [EXPECTED_JSON] [--tolerance 1e-4]

EXPECTED_JSON is {"ids": [...], "logits": [...]} or a list of such: token ids, and the logits of their last row over
the whole vocabulary. Computed in f32 with eager attention, whatever dtype the files have. Exit status: 0 all well,
1 a tensor of the adapter is missing, unknown or changed by loading, or logits differ by more than the tolerance or
are not finite.
"""
import argparse
import json
import sys
import warnings

import peft
import torch
import transformers
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def load(base):
    extra = {}
    if transformers.AutoConfig.from_pretrained(base).model_type.endswith("moe"):
        extra["experts_implementation"] = "eager"
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager", **extra).eval()


def last_row(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0, -1]


def main():
    p = argparse.ArgumentParser(usage="%(prog)s BASE_FOLDER ADAPTER_FOLDER [EXPECTED_JSON] [--tolerance T]")
    p.add_argument("base")
    p.add_argument("adapter")
    p.add_argument("expected", nargs="?")
    p.add_argument("--tolerance", type=float, default=1e-4, help="largest absolute difference of a logit (1e-4)")
    a = p.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")

    wrong = False
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(load(a.base), a.adapter, torch_device="cpu").eval()
    for w in seen:
        if "adapter" in str(w.message):
            print(f"peft warns: {w.message}")

    # peft only warns of tensors it did not find or does not know, and computes without them.
    saved = load_file(f"{a.adapter}/adapter_model.safetensors")
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)  # or it asks the hub about the base
    for name in sorted(loaded.keys() | saved.keys()):
        if name not in saved:
            problem = "is wanted by adapter_config.json and not in the file"
        elif name not in loaded:
            problem = "is in the file and unknown to the model"
        elif loaded[name].shape != saved[name].shape:
            problem = f"is {list(saved[name].shape)} in the file, {list(loaded[name].shape)} in the model"
        elif not torch.equal(loaded[name].float(), saved[name].float()):
            problem = "has other values in the model than in the file"
        else:
            continue
        print(f"WRONG: {name} {problem}")
        wrong = True
    dtypes = sorted({str(x.dtype).removeprefix("torch.") for x in saved.values()})
    print(f"{len(saved)} tensors, {sum(x.numel() for x in saved.values())} numbers, {', '.join(dtypes)}")

    if a.expected:
        with open(a.expected) as f:
            cases = json.load(f)
        for i, case in enumerate(cases if isinstance(cases, list) else [cases]):
            found, expected = last_row(model, case["ids"]), torch.tensor(case["logits"])
            if found.shape != expected.shape:
                print(f"WRONG: case {i}: {expected.numel()} logits expected, the model has {found.numel()}")
                wrong = True
                continue
            with model.disable_adapter():
                plain = last_row(model, case["ids"])
            difference = (found - expected).abs().max().item()
            moved = (found - plain).abs().max().item()
            ok = difference <= a.tolerance  # false for NaN
            wrong |= not ok
            print(f"{'ok' if ok else 'WRONG'}: case {i}: {len(case['ids'])} ids, max abs difference {difference:.3e} "
                  f"(tolerance {a.tolerance:.1e}; the adapter itself moves them by {moved:.3e})")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
