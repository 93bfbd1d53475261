"""STDiT3 in sequence groups beside one process; `test_sequence_parallel.py` starts it. Writes OUT/RANK.json.

python sequence_run.py OUT SP_SIZE WORLD_SIZE few|all
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from opensora.acceleration.activation_checkpoint import set_activation_checkpoint
from opensora.acceleration.collectives import pass_on, spread
from opensora.acceleration.engine import build_engine
from opensora.acceleration.parallel import (
    all_reduce_mean,
    init_distributed,
    parallel_state,
    share_batches,
)
from opensora.engine.build import Components
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.layers.sequence import set_sequence_parallel
from opensora.models.stdit3 import STDiT3
from opensora.models.video_vae import VideoVAE
from opensora.schedulers.guidance import Guidance
from opensora.schedulers.rectified_flow import RectifiedFlow
from opensora.utils.random import Draws

OUT, SP_SIZE, DATA_SIZE, STEPS = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) // int(sys.argv[2]), 20
SHIFTED = {"window_size": (-1, 2, 3), "shift_window": True, "spatial_rope": True}
# Name: settings of the network, size of the latents, and what the batch has beside captions.
CASES = {
    "windows": (SHIFTED, (5, 9, 13), "known"),
    "windows in time": ({"window_size": (2, 2, 3), "shift_window": True}, (7, 9, 5), "reference"),
    "positions": ({"num_heads": 5, "hidden_size": 60}, (5, 6, 14), "reference known"),
    "whole": ({"window_size": (-1, -1, -1)}, (3, 5, 9), "known"),
    "image": (SHIFTED, (1, 9, 13), "known reference"),
    "spatial": ({"skip_temporal": True}, (4, 7, 6), "known reference"),
    "patches of two frames": ({"patch_size": (2, 2, 2)}, (9, 6, 10), "known"),
    "one token": ({}, (1, 2, 2), ""),
    "one head": ({"num_heads": 1, "hidden_size": 28, **SHIFTED}, (3, 6, 10), "known"),
}
PLUGINS = ("ddp", "fsdp2", "zero1-seq", "zero2-seq")
RUNS = [(plugin, kind) for plugin in PLUGINS for kind in ("sgd", "adamw")]
if sys.argv[4] == "few":
    RUNS = [("zero2-seq", "sgd"), ("ddp", "adamw")]


def build(settings):
    torch.manual_seed(1)
    conditions = {
        "text": {"type": "TextCondition", "text_width": 6, "text_length": 5},
        "size": {"type": "SizeCondition"},
        "frames": {"type": "FrameCondition"},
    }
    wanted = {"hidden_size": 48, "num_heads": 3, "depth": 2, "in_channels": 4, "mlp_ratio": 2.0, **settings}
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


def loss_of(module, *batch):
    out = module(*inputs(*batch))
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
    return out, out.square().mean() + (out * weight).mean()


def run(model, *batch):
    """Return the output, and this process's gradients."""
    model.zero_grad()
    out, loss = loss_of(model, *batch)
    loss.backward()
    return out.detach(), {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


def error(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def worst(found, wanted):
    """Return the largest error of some tensors, against the largest value of them all."""
    largest = max(float(g.abs().max()) for g in wanted.values())
    return max(float((found[k] - g).abs().max()) for k, g in wanted.items()) / largest


def train(plugin, kind, data_size):
    """Return the losses of 20 steps, each over a batch of every data rank, and the weights behind them."""
    model = build(SHIFTED)
    params = [p for p in model.parameters() if p.requires_grad]
    if kind == "sgd":
        optimizer = torch.optim.SGD(params, lr=0.05)
    else:
        optimizer = torch.optim.AdamW(params, lr=1e-3, weight_decay=0.1)
    engine = build_engine(plugin, "fp32", {"model": model}, {"model": optimizer}, reduce_bucket_mib=0.01)
    state, losses = parallel_state(), []
    own = range(state.data_rank, data_size, state.data_size)
    for step in range(STEPS):
        total = 0.0
        for i, place in enumerate(own):
            size = (3, 9, 7) if (step + place) % 3 else (1, 5, 9)
            with engine.no_sync("model") if i < len(own) - 1 else nullcontext():
                _, loss = loss_of(engine.module("model"), size, "known reference", 100 * step + place)
                engine.backward(loss / len(own), "model")
            total += float(loss.detach()) / len(own)
        losses.append(float(all_reduce_mean(total)))
        engine.clip("model", 1.0)
        assert engine.step("model")
    return losses, engine.gather("model", engine.masters("model"))


def generate():
    """Return latents and video of a long clip, and latents of a given one."""
    model = build(SHIFTED)
    torch.manual_seed(2)
    levels = {"channel_multipliers": (1, 1), "num_res_blocks": 1, "temporal_down": (0,), "temporal_up": (1,)}
    vae = VideoVAE(latent_channels=4, channels=32, micro_frame_size=5, **levels)
    scheduler, guidance = RectifiedFlow(num_sampling_steps=3), Guidance({"text": 3.0})
    diffusion = LatentDiffusion(Components(model, vae, scheduler=scheduler, guidance=guidance))
    _, _, batch, _, _ = inputs((9, 9, 13), "")
    batch |= {"num_frames": torch.full((2,), 13.0), "height": torch.full((2,), 18.0)}
    batch |= {"width": torch.full((2,), 26.0)}
    z = diffusion.sample(batch, Draws(5, [0, 1]))
    video = diffusion.decode(z, 13)
    return z, video, diffusion.encode({"video": video[:, :, :12].tanh(), **batch})[0]


def stream():
    """Return latents and video of causal autoencoders, whole and in chunks, and the longest call."""
    torch.manual_seed(3)
    patches = {"patch_size": (2, 4, 4), "channel_multipliers": (1,), "temporal_down": (), "temporal_up": ()}
    settings = {"latent_channels": 4, "channels": 32, "num_res_blocks": 1, "norm": "pixel", **patches}
    settings |= {"attention": "none", "temporal_overlap": False}
    vae = VideoVAE(micro_frame_size=None, **settings)
    chunked = VideoVAE(micro_frame_size=3, **settings)
    chunked.load_state_dict(vae.state_dict())
    lengths = []
    hooks = [vae.encoder, vae.decoder, chunked.encoder, chunked.decoder]
    hooks = [
        net.register_forward_pre_hook(lambda net, args: lengths.append(args[0].shape[2])) for net in hooks
    ]
    video = torch.rand(1, 3, 264, 8, 8, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        z = vae.encode(video)
        made = [z, vae.decode(z, 250), chunked.encode(video), *chunked.decode_stream(z, 250)]
    made[3:] = [torch.cat(made[3:], dim=2)]
    return made, max(lengths)


torch.set_num_threads(1)
before = {name: run(build(settings), *batch) for name, (settings, *batch) in CASES.items()}
trained = {kind: train("none", kind, DATA_SIZE) for kind in ("sgd", "adamw")}
made, streamed = generate(), stream()[0]
state = init_distributed("cpu", timeout_s=600, sp_size=SP_SIZE)
results = {"state": [state.rank, state.data_rank, state.data_size, state.sequence_rank, state.sequence_size]}
errors = results["errors"] = {}
for name, (settings, *batch) in CASES.items():
    model, (out, grads) = build(settings), before[name]
    for mode in ("auto", "ulysses", "axis"):
        set_sequence_parallel(model, mode)
        for recompute in (False, True) if name == "windows" else (mode == "axis",):
            set_activation_checkpoint(model, recompute)
            found, partial = run(model, *batch)
            assert partial.keys() <= grads.keys()
            mean = {k: all_reduce_mean(partial.get(k, torch.zeros_like(g))) for k, g in grads.items()}
            errors[f"{name}/{mode}/{recompute}"] = [error(found, out), worst(mean, grads)]
for plugin, kind in RUNS:
    losses, weights = trained[kind]
    found, after = train(plugin, kind, DATA_SIZE)
    results[f"{plugin}/{kind}"] = [
        max(abs(a - b) for a, b in zip(found, losses, strict=True)),
        max(float((after[k] - w).abs().max()) for k, w in weights.items()) if after else 0.0,
        losses[0] - losses[-1],
    ]
again = generate()
results["latents"], results["frames"] = [
    float((found - wanted).abs().max()) for found, wanted in zip(again[:2], made[:2], strict=True)
]
results["made"] = [list(part.shape) for part in again]
results["encoded"] = error(again[2], made[2])
parts, results["longest"] = stream()
results["streamed"] = [error(part, whole) for part, whole in zip(parts, streamed, strict=True)]
rank = torch.full((2,), float(state.sequence_rank))
results["passed"] = [pass_on(rank.to(kind)).tolist() for kind in (torch.float32, torch.bfloat16)]
computed = []
with torch.no_grad():
    parts = [torch.full((n,), float(n)) for n in range(5)]
    doubled = list(spread(lambda part: computed.append(len(part)) or 2 * part, parts, parts[0].device))
results["spread"] = [part.tolist() for part in doubled]
results["computed"] = computed
batch = {"video": torch.arange(6.0).view(2, 3), "flag": torch.tensor([True]), "text": ["é", ""], "n": 3}
shared = share_batches([batch, {"half": torch.ones(2).bfloat16()}] if state.sequence_rank == 0 else [])
results["shared"] = [{k: getattr(v, "tolist", lambda v=v: v)() for k, v in part.items()} for part in shared]
results["dtypes"] = [str(shared[0]["flag"].dtype), str(shared[1]["half"].dtype)]
results["nothing"] = share_batches([])
(OUT / f"{state.rank}.json").write_text(json.dumps(results))
