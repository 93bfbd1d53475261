"""STDiT3 in a sequence group beside one process; `test_sequence_parallel.py` starts it. Writes OUT/RANK.json.

python sequence_run.py OUT SP_SIZE
"""

import json
import sys
from pathlib import Path

import torch

from opensora.acceleration.activation_checkpoint import set_activation_checkpoint
from opensora.acceleration.collectives import exchange, gather_parts, take_part
from opensora.acceleration.parallel import all_reduce_mean, init_distributed
from opensora.layers.sequence import set_sequence_parallel
from opensora.models.stdit3 import STDiT3

OUT, SP_SIZE = Path(sys.argv[1]), int(sys.argv[2])
SWIN = {"window_size": (-1, 2, 3), "shift_window": True, "spatial_rope": True}
# Name: settings of the network, size of the latents, and what the batch has beside captions.
CASES = {
    "windows": (SWIN, (5, 9, 13), "known"),
    "windows in time": ({"window_size": (2, 2, 3), "shift_window": True}, (7, 9, 5), "reference"),
    "positions": ({"num_heads": 5, "hidden_size": 60}, (5, 6, 14), "reference known"),
    "whole": ({"window_size": (-1, -1, -1)}, (3, 5, 9), "known"),
    "image": (SWIN, (1, 9, 13), "known reference"),
    "spatial": ({"skip_temporal": True}, (4, 7, 6), "known reference"),
    "patches of two frames": ({"patch_size": (2, 2, 2)}, (9, 6, 10), "known"),
    "one token": ({"norm": 0}, (1, 2, 2), ""),
}


def build(settings):
    torch.manual_seed(1)
    conditions = {
        "text": {"type": "TextCondition", "text_width": 6, "text_length": 5},
        "size": {"type": "SizeCondition"},
        "frames": {"type": "FrameCondition"},
    }
    wanted = {"hidden_size": 48, "num_heads": 3, "depth": 2, "in_channels": 4, "mlp_ratio": 2.0, **settings}
    wanted.pop("norm", None)
    model = STDiT3(conditions, **wanted)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def inputs(size, extras, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, *size, generator=g)
    mask = torch.arange(5) < torch.tensor([[5], [3]])
    cond = {"text_features": torch.randn(2, 5, 6, generator=g), "text_mask": mask}
    cond |= {"fps": torch.tensor([24.0, 8.0]), "height": torch.full((2,), 72.0)}
    cond |= {"width": torch.full((2,), 104.0)}
    marked = torch.rand(2, size[0], generator=g) < 0.4
    if "reference" in extras:
        cond |= {"reference": torch.randn(x.shape, generator=g) * marked[:, None, :, None, None]}
        cond |= {"reference_mask": marked.float()}
    drop = {"text": torch.tensor([False, True]), "frames": torch.tensor([True, False])}
    return x, torch.tensor([0.3, 0.8]), cond, drop, ~marked if "known" in extras else None


def run(model, size, extras):
    """Return the output and the gradients, averaged over the processes as engines do it."""
    model.zero_grad()
    out = model(*inputs(size, extras))
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    (out.square().mean() + (out * weight).mean()).backward()
    return out.detach(), {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


def error(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def worst(found, wanted):
    """Return the largest error, each against the largest gradient of its kind of tensor, and of all."""
    largest = max(float(g.abs().max()) for g in wanted.values())
    return max(float((found[k] - g).abs().max()) for k, g in wanted.items()) / largest


torch.set_num_threads(1)
before = {}
for name, (settings, *batch) in CASES.items():
    model = build(settings)
    before[name] = model, run(model, *batch)
state = init_distributed("cpu", timeout_s=60, sp_size=SP_SIZE)
results = {"state": [state.rank, state.data_rank, state.data_size, state.sequence_rank, state.sequence_size]}
for name, (_, *batch) in CASES.items():
    model, (out, grads) = before[name]
    for mode in ("auto", "ulysses", "axis"):
        set_sequence_parallel(model, mode)
        for recompute in (False, True) if mode != "auto" else (True,):
            set_activation_checkpoint(model, recompute)
            found, partial = run(model, *batch)
            mean = {k: all_reduce_mean(partial.get(k, torch.zeros_like(g))) for k, g in grads.items()}
            key = f"{name}/{mode}/{recompute}"
            results[key] = [error(found, out), worst(mean, grads)]
            assert partial.keys() <= grads.keys()
(OUT / f"{state.rank}.json").write_text(json.dumps(results))
