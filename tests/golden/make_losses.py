"""Losses of rows of logits and their gradients, by torch's autograd in f64; the Jensen-Shannon divergence by TRL's own function.

    golden-venv/bin/pip install torch==2.15.0 numpy && golden-venv/bin/pip install --no-deps trl==1.16.0
    golden-venv/bin/python tests/golden/make_losses.py

Writes losses.json: rows of logits of student, student that drew, and teacher, the token that stands there, and for each case
the values and the gradients by the student's logits of the sum over the rows. A policy gradient's advantage is
teacher * g(ln q - ln o) + rest, not differentiated; rows 0 to 2 are one turn, the others another.
"""

import ast
import importlib.util
import json
import pathlib

import torch
import torch.nn.functional as F

N, V, K = 6, 33, 5
TURNS = [0, 0, 0, 1, 1, 1]
TEACHER, REST = 0.7, [0.4, -0.3, 0.9, -1.2, 0.05, -0.6]


def trl_jsd():
    """The function alone: the module around it wants the rest of a training stack."""
    root = pathlib.Path(importlib.util.find_spec("trl").origin).parent
    tree = ast.parse((root / "experimental" / "gkd" / "gkd_trainer.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "generalized_jsd_loss":
            node.decorator_list = []
            scope = {"torch": torch, "F": F, "nn": torch.nn}
            exec(compile(ast.Module([node], []), "gkd_trainer.py", "exec"), scope)
            return scope["generalized_jsd_loss"]
    raise SystemExit("trl has no generalized_jsd_loss")


def main():
    torch.manual_seed(7)
    draw = lambda: (2.0 * torch.randn(N, V)).to(torch.float32).to(torch.float64)
    x, old, teacher = draw(), draw(), draw()
    # Near enough to the draw that some ratios lie within clips and some beyond.
    old = (x + 0.25 * old).to(torch.float32).to(torch.float64)
    targets = torch.distributions.Categorical(logits=old).sample()
    jsd = trl_jsd()

    def rows(x):
        p, q, o = (F.log_softmax(t, -1) for t in (x, teacher, old))
        at = lambda t: t.gather(-1, targets[:, None])[:, 0]
        # What is recorded of a draw, and what a server says, are f32.
        return p, q, at(p), at(q), at(o).to(torch.float32).to(torch.float64)

    def ppo(ratio, a, low, high, dual=None):
        least = torch.minimum(ratio * a, ratio.clamp(1 - low, 1 + high) * a)
        return -(torch.where(a < 0, torch.maximum(least, dual * a), least) if dual else least)

    def gradient(ratio_of, clip, shape=lambda d, q, o: d, recomputed=False):
        def loss(x):
            _, _, p, q, o = rows(x)
            reference = p.detach() if recomputed else o
            a = TEACHER * shape(q - reference, q, reference) + torch.tensor(REST, dtype=torch.float64)
            log = p - o
            if ratio_of == "none":
                # REINFORCE: the value is -A, the gradient that of -A ln p.
                return -a.detach() + -(a.detach() * (p - p.detach()))
            if ratio_of == "turn":
                means = torch.stack([log[[i for i, t in enumerate(TURNS) if t == turn]].mean() for turn in (0, 1)])
                log = means.detach()[torch.tensor(TURNS)] + p - p.detach()
            ratio = log.exp()
            if clip == "none":
                return -ratio * a.detach()
            if clip == "truncate":
                bounded = ratio.detach().clamp(max=1.05)
                return -bounded * a.detach() - bounded * a.detach() * (p - p.detach())
            return ppo(ratio, a.detach(), *clip)

        return loss

    def topk(direction, tail):
        def loss(x):
            p, q, *_ = rows(x)
            ids = q.topk(K, -1).indices
            p, q = p.gather(-1, ids), q.gather(-1, ids).to(torch.float32).to(torch.float64)
            if tail == "bucket":
                rest = lambda t: torch.log1p(-t.exp().sum(-1, keepdim=True))
                p, q = torch.cat([p, rest(p)], -1), torch.cat([q, rest(q)], -1)
            if tail == "renormalised":
                p, q = p - p.logsumexp(-1, keepdim=True), q - q.logsumexp(-1, keepdim=True)
            a, b = (p, q) if direction == "reverse" else (q, p)
            return (a.exp() * (a - b)).sum(-1)

        return loss

    def divergence(kind):
        def loss(x):
            p, q, *_ = rows(x)
            a, b = (p, q) if kind == "reverse" else (q, p)
            return (a.exp() * (a - b)).sum(-1)

        return loss

    def sampled(kind):
        def loss(x):
            _, _, p, q, o = rows(x)
            gap = p - q
            if kind == "kl":
                return gap.detach() + gap.detach() * (p - p.detach())
            return gap**2 / 2 if kind == "k2" else (p - o).exp() * ((-gap).exp() - 1 + gap)

        return loss

    def by_trl(beta):
        return lambda x: torch.stack([jsd(x[None, i : i + 1], teacher[None, i : i + 1], beta=beta) for i in range(N)])

    cases = {
        "reverse-kl": divergence("reverse"),
        "forward-kl": divergence("forward"),
        "cross-entropy": lambda x: -rows(x)[2],
        "sampled-reverse-kl": sampled("kl"),
        "k2": sampled("k2"),
        "weighted-k3": sampled("k3"),
        **{f"jsd {b}": by_trl(b) for b in (0.1, 0.5, 0.9)},
        **{f"{d}-kl top-k {t}": topk(d, t) for d in ("reverse", "forward") for t in ("bucket", "renormalised", "truncated")},
        "pg none": gradient("none", "none"),
        "pg token": gradient("token", "none"),
        "pg token recomputed": gradient("token", "none", recomputed=True),
        "pg token truncate": gradient("token", "truncate"),
        "pg token ppo": gradient("token", (0.1, 0.15)),
        "pg token ppo dual": gradient("token", (0.1, 0.15, 1.2)),
        "pg turn ppo": gradient("turn", (0.05, 0.05)),
        "pg clamp": gradient("token", "none", lambda d, q, o: d.clamp(-1.5, 1.5)),
        "pg tanh": gradient("token", "none", lambda d, q, o: 2.0 * torch.tanh(d / 2.0)),
        "pg power": gradient("token", "none", lambda d, q, o: (0.5 * q).exp() - (0.5 * o).exp()),
    }
    found = {}
    for name, loss in cases.items():
        student = x.clone().requires_grad_(True)
        values = loss(student)
        (by_logits,) = torch.autograd.grad(values.sum(), student)
        found[name] = {"values": values.tolist(), "gradients": by_logits.tolist()}
    document = {
        "student": x.tolist(), "teacher": teacher.tolist(), "targets": targets.tolist(), "turns": TURNS, "k": K,
        "drawn": rows(x)[4].tolist(), "teacher_share": TEACHER, "rest": REST, "cases": found,
    }
    path = pathlib.Path(__file__).parent / "losses.json"
    path.write_text(json.dumps(document, separators=(",", ":")) + "\n")
    ratios = (rows(x)[2] - rows(x)[4]).exp()
    print(path, path.stat().st_size, "bytes; ratios", [round(r, 3) for r in ratios.tolist()])


main()
