"""Train a tiny STDiT3 through the real task and trainer, with each plugin in turn.

python exactness_run.py OUT PLUGIN,PLUGIN,... [CHECKPOINT ...]: results of a plugin go to OUT/PLUGIN, and
each plugin goes on from the checkpoints. `test_exactness.py` starts it, and calls `run` for one process.
"""

import json
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from opensora.acceleration.activation_checkpoint import set_activation_checkpoint
from opensora.acceleration.engine import build_engine
from opensora.acceleration.parallel import all_reduce_mean, barrier, init_distributed, parallel_state
from opensora.engine.checkpoint import list_checkpoints
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.engine.optimizer import LrSchedule
from opensora.engine.trainer import Trainer, TrainerSettings
from opensora.utils.random import Draws, seed_everything

MICRO, STEPS, HALF, GO_ON = 4, 20, 10, 3  # batches of a step; steps; where a checkpoint is; steps from it
DECAY = 0.8
CONFIG = {
    "model": {
        "type": "STDiT3",
        "in_channels": 3,
        "hidden_size": 24,
        "depth": 1,
        "num_heads": 2,
        "window_size": (-1, 3, 2),
        "spatial_rope": True,
        "freeze": ("conditions.text.y_proj.fc1",),
        "conditions": {
            "text": {"type": "TextCondition", "text_width": 6, "text_length": 7},
            "size": {"type": "SizeCondition"},
            "frames": {"type": "FrameCondition", "classes": {"i2v_head": 2.0, "v2v_tail": 1.0, "none": 3.0}},
        },
    },
    "scheduler": {"type": "RectifiedFlow", "shift_time": True},
    "condition_dropout": {("text",): 0.3},
    "seed": 3,
}


def make_task():
    """The task, always with the same weights; every trained one has an effect."""
    seed_everything(0)
    task = LatentDiffusion.from_config(CONFIG)
    with torch.no_grad():
        for p in task.model.parameters():
            if not p.any():
                p.normal_(std=0.02)
    return task


def batch_of(step, number):
    """One of the batches of a step: of a size that divides nothing, every third an image."""
    which = step * MICRO + number
    g = torch.Generator().manual_seed(which)
    rows, frames, height, width = (
        int(torch.randint(a, b, (), generator=g)) for a, b in ((1, 3), (2, 5), (3, 8), (3, 7))
    )
    frames = 1 if which % 3 == 2 else frames
    ids = torch.arange(rows) + 10 * which
    draws = Draws(11, ids.tolist())
    sizes = {"fps": 24.0, "num_frames": 4.0 * frames, "height": 8.0 * height, "width": 8.0 * width}
    return {
        "latents": draws.normal("z", 0, (rows, 3, frames, height, width)),
        "text_features": draws.normal("text", 0, (rows, 7, 6)),
        "text_mask": torch.arange(7) < torch.randint(1, 8, (rows, 1), generator=g),
        "sample": ids,
        "epoch": torch.zeros(rows, dtype=torch.int64),
        **{name: torch.full((rows,), value) for name, value in sizes.items()},
    }


def batches_of(step, engine, micro=MICRO):
    """The batches of this process: several when there are fewer processes than batches."""
    return [batch_of(step, n) for n in range(engine.rank, micro, engine.world_size)]


class Setup:
    """Task, engine and trainer with one plugin."""

    def __init__(self, plugin, folder, kind="adamw", dtype="fp32"):
        self.task = make_task()
        trained = [p for p in self.task.model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, 0.1) if kind == "sgd" else torch.optim.AdamW(trained, 2e-3)
        self.engine = build_engine(
            plugin, dtype, self.task.trainable(), {"model": optimizer}, reduce_bucket_mib=0.01
        )
        self.task.place(self.engine.device, self.engine.dtype)
        schedule = LrSchedule(0.1 if kind == "sgd" else 2e-3, STEPS, warmup_steps=4, cosine=True)
        settings = TrainerSettings(
            1, max_steps=STEPS, grad_clip=0.1 if kind == "adamw" else 0.0, ema_decay=DECAY
        )
        data = SimpleNamespace(state=dict, load=lambda state: None)
        tracker = SimpleNamespace(folder=folder, log=lambda step, values: None)
        self.trainer = Trainer(
            self.task, self.engine, data, {"model": optimizer}, schedule, settings, tracker
        )

    def step(self, micro=MICRO):
        """One step of the trainer; losses are means over all processes."""
        values = self.trainer.train_step(batches_of(self.trainer.state.step, self.engine, micro))
        return {key: float(all_reduce_mean(values[key])) for key in ("loss", "lr", "grad_norm_model")}

    def backward(self, step=0):
        """All batches of a step; returns their losses and outputs by number."""
        found, mine = {}, batches_of(step, self.engine)
        for i, batch in enumerate(mine):
            with self.engine.no_sync("model") if i + 1 < len(mine) else nullcontext():
                for name, parts in self.task.losses(batch):
                    self.engine.backward(parts["loss"] / len(mine), name)
            found[f"loss.{self.engine.rank + i * self.engine.world_size}"] = parts["per_sample"]
        return found


def outputs(setup):
    """What the network gives for each batch of this process; random numbers have names."""
    found = {}
    for i, batch in enumerate(batches_of(1, setup.engine)):
        z, cond = setup.task.encode(batch, Draws(0, batch["sample"].tolist()))
        with torch.no_grad():
            result = setup.engine.module("model")(z, torch.full((len(z),), 0.4), cond)
        found[f"output.{setup.engine.rank + i * setup.engine.world_size}"] = result
    return found


def collectives(setup, micro):
    """Count the collectives of a step, by kind."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        setup.step(micro)
    return Counter(e.name.removeprefix("gloo:") for e in profile.events() if e.name.startswith("gloo:"))


def run(plugin, out, checkpoints=()):
    """All measurements of a plugin. Returns results and this process's tensors."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    results, tensors = {"world": world}, {}
    setup = Setup(plugin, out, "sgd")
    set_activation_checkpoint(setup.task.model, True)
    own = {key: value.contiguous() for key, value in (outputs(setup) | setup.backward()).items()}
    whole = setup.engine.gather("model", setup.engine.gradients("model"))
    tensors |= {f"gradient.{key}": value for key, value in whole.items()}
    setup.engine.zero_grad("model")
    set_activation_checkpoint(setup.task.model, False)
    results["sgd"] = [setup.step()["loss"] for _ in range(STEPS)]
    tensors |= {f"sgd.{key}": value for key, value in setup.engine.weights("model").items()}

    setup = Setup(plugin, out)
    steps, shadow = [], setup.engine.gather("model", setup.engine.masters("model"))
    for step in range(STEPS):
        steps.append(setup.step())
        for key, value in setup.engine.gather("model", setup.engine.masters("model")).items():
            shadow[key].lerp_(value, 1 - DECAY)  # the average of whole weights
        if step + 1 == HALF:
            setup.trainer.save()
    assert not setup.trainer.settle()
    averages = setup.trainer.averages["model"].whole()
    results["ema is whole"] = all(torch.equal(averages[key], value) for key, value in shadow.items())
    for key in ("loss", "lr", "grad_norm_model"):
        results[key] = [values[key] for values in steps]
    tensors |= {f"adamw.{key}": value for key, value in setup.engine.weights("model").items()}
    if world > 1:
        results["collectives"] = [collectives(setup, n * world) for n in (1, 3)]

    results["origins"] = len(checkpoints)
    for number, checkpoint in enumerate(checkpoints):
        setup = Setup(plugin, out)
        setup.trainer.load(checkpoint)
        results[f"from {number}"] = [setup.step()["loss"] for _ in range(GO_ON)]
    for dtype in ("bf16", "fp16"):
        setup = Setup(plugin, out, "sgd", dtype)
        if dtype == "fp16":  # the first scale may overflow with the batch of one process, and skip the step
            setup.engine._scales["model"].value = 256.0
        results[dtype] = [setup.step()["loss"] for _ in range(2)]
        results[f"scale_{dtype}"] = setup.engine._scales["model"].value
    return results, tensors, own


def main():
    out, plugins = Path(sys.argv[1]), sys.argv[2].split(",")
    torch.set_num_threads(1)
    init_distributed("cpu", timeout_s=600)
    checkpoints = list(map(Path, sys.argv[3:]))
    for plugin in plugins:
        folder = out / plugin
        results, tensors, own = run(plugin, folder, checkpoints)
        checkpoints = [*map(Path, sys.argv[3:]), list_checkpoints(folder)[-1]]  # also of the plugin before
        save_file(own, folder / f"own{parallel_state().rank}.safetensors")
        if parallel_state().is_main:
            save_file(
                {key: value.contiguous() for key, value in tensors.items()}, folder / "tensors.safetensors"
            )
            (folder / "results.json").write_text(json.dumps(results))
        barrier()


if __name__ == "__main__":
    main()
