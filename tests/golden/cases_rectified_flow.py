"""Golden cases of the rectified-flow scheduler, with a toy network."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from opensora.registry import SCHEDULERS, build
from opensora.schedulers.guidance import Guidance, GuidanceScale, clip_dynamically, rescale_spread
from opensora.schedulers.rectified_flow import mean_over_frames
from opensora.schedulers.timesteps import draw_times, shift_times
from opensora.utils.published_config import translate_component, translate_guidance
from opensora.utils.random import ReplayDraws

Case = dict[str, Any]
Tensors = dict[str, Tensor]
RULES = {"12": "chunk17", "13": "stride4"}


def version_of(case: Case) -> str:
    """Return "12" or "13" from the kind, such as rf13_sample."""
    return case["kind"][2:4]


def build_scheduler(case: Case, **settings: Any) -> Any:
    """Build the scheduler from published keys; keys of guidance are translated elsewhere."""
    version = {"12": "1.2", "13": "1.3"}[version_of(case)]
    cfg = translate_component({"type": "rflow", **case.get("config", {})}, version=version)
    threshold = case.get("args", {}).get("noise_disable_threshold")  # a key of the published run
    return build(SCHEDULERS, cfg, clean_above=None if threshold is None else threshold / 1000, **settings)


class ToyNetwork:
    """`v = M x + u t + p mean(text) + 0.5 reference + 0.25 mask + 0.125 mean(null)`, halved at known frames.

    Args:
        inputs: Tensors of the case: M, u, p, and the null caption where there is one.
        conditioned: Whether references and the null caption take part.
    """

    def __init__(self, inputs: Tensors, conditioned: bool) -> None:
        self.inputs, self.conditioned = inputs, conditioned
        self.times: list[Tensor] = []

    def __call__(
        self, x: Tensor, t: Tensor, cond: Tensors, drop: dict[str, Tensor], known: Tensor | None
    ) -> Tensor:
        """Follow the denoiser contract; the second half of the channels is noise that must be ignored."""
        self.times.append(1000 * t)
        batch = x.shape[0]
        text = cond["text_features"].flatten(1).mean(1)
        if "text" in drop:
            null = (
                cond["negative"].flatten(1).mean(1)
                if "negative" in cond
                else self.inputs["y_embedding"].mean()
            )
            text = torch.where(drop["text"], null, text)
        v = torch.einsum("oc,bcthw->bothw", self.inputs["M"], x.float())
        v = v + column(self.inputs["u"], t) + column(self.inputs["p"], text)
        if self.conditioned:
            reference = cond["reference"]
            if "frames" in drop:
                reference = torch.where(drop["frames"].view(batch, 1, 1, 1, 1), 0.0, reference)
            v = v + 0.5 * reference + 0.25 * cond["reference_mask"][:, None, :, None, None]
            v = v + 0.125 * self.inputs["y_embedding"].mean()
        if known is not None:
            v = torch.where(known[:, None, :, None, None], 0.5 * v, v)
        return torch.cat((v, torch.full_like(v, 7.0)), dim=1)


def column(weights: Tensor, values: Tensor) -> Tensor:
    """Outer product of channels and samples. Shape [B, C, 1, 1, 1]."""
    return (values.to(weights)[:, None] * weights[None])[:, :, None, None, None]


def run_shift(case: Case, inputs: Tensors, weights: Tensors) -> Tensors:
    """The time shift of every row of sizes."""
    args = case["args"]
    rule = RULES[version_of(case)] if args.get("scale_temporal", True) else None
    t = torch.tensor(args["t"], dtype=torch.float64) / args["num_timesteps"]
    out = {}
    for i, row in enumerate(args["rows"]):
        sizes = [torch.tensor(row[name]) for name in ("height", "width", "num_frames")]
        shifted = shift_times(t[:, None].expand(-1, len(sizes[0])), *sizes, rule=rule, scale=args["scale"])
        if rule is None and version_of(case) == "13":  # published: images are not scaled
            plain = shift_times(t[:, None].expand(-1, len(sizes[0])), *sizes, rule=None)
            shifted = torch.where(sizes[2] == 1, plain, shifted)
        out[f"t_{i}"] = shifted * args["num_timesteps"]
    return out


def shift_excused(case: Case, output: str, expected: Tensor) -> np.ndarray | None:
    """Columns whose length the published code takes from the first sample, or rounds down to nothing."""
    args = case["args"]
    if not output.startswith("t_") or not args.get("scale_temporal", True):
        return None
    frames = args["rows"][int(output[2:])]["num_frames"]
    factor = [n // 17 * 5 if version_of(case) == "12" else (n - 1) // 4 for n in frames]
    wrong = [(n != 1) if frames[0] == 1 else f < 1 for n, f in zip(frames, factor, strict=True)]
    return np.broadcast_to(np.array(wrong), tuple(expected.shape)) if any(wrong) else None


def run_logit_normal(case: Case, inputs: Tensors, weights: Tensors) -> Tensors:
    """From standard normal numbers to times."""
    args = case["args"]
    draws = ReplayDraws({"t": [inputs["n"]]})
    t = draw_times(draws, len(inputs["n"]), "logit-normal", args["loc"], args["scale"], None)
    return {"t": t * args["num_timesteps"]}


def run_add_noise(case: Case, inputs: Tensors, weights: Tensors) -> Tensors:
    """The path from data to noise."""
    scheduler = build_scheduler(case)
    t = inputs["t"] / case["args"]["num_timesteps"]
    return {"x_t": scheduler.interpolate(inputs["x"], inputs["noise"], t)}


def run_mean(case: Case, inputs: Tensors, weights: Tensors) -> Tensors:
    """The mean over all, or over unmasked frames."""
    mask = inputs["mask"].float() if "mask" in inputs else None
    return {"out": mean_over_frames(inputs["x"], mask)}


def run_loss(case: Case, inputs: Tensors, weights: Tensors) -> Tensors:
    """One training loss with given noise and times."""
    args, x0 = case["args"], inputs["x_start"]
    index = args.get("mask_index") or []
    network = ToyNetwork(inputs, conditioned=bool(index))
    cond: Tensors = {"text_features": inputs["y"][:, 0]}
    if index:
        mask = torch.zeros(x0.shape[0], x0.shape[2]).index_fill(1, torch.tensor(index), 1.0)
        reference = inputs.get("x_noisy_ref", x0)
        cond |= {"reference": reference * mask[:, None, :, None, None], "reference_mask": mask}
    scheduler = build_scheduler(case, time_weights=inputs.get("weights"))
    frame_mask = inputs["x_mask"].float() if "x_mask" in inputs else None
    model = network
    if not args.get("pass_x_mask", True):  # the reference can leave its network without the mask

        def model(x: Tensor, t: Tensor, cond: Tensors, drop: Tensors, known: Tensor | None) -> Tensor:
            return network(x, t, cond, drop, None)

    loss = scheduler.training_loss(
        model,
        x0,
        cond,
        frame_mask=frame_mask,
        drop=drop_of(case["config"].get("drop_condition"), x0.shape[0]),
        draws=ReplayDraws({"noise": [inputs["noise"]]}),
        t=inputs["t"].double() / 1000,
        clean=inputs.get("x_gt"),
    )
    return {"loss": loss, "model_timestep": network.times[0]}


def drop_of(outcome: dict[str, float] | None, batch: int) -> Tensors:
    """Which conditions a published outcome drops: its name says what is kept."""
    if not outcome:
        return {}
    (name,) = (key for key, probability in outcome.items() if probability == 1)
    dropped = {"keep": (), "text": ("frames",), "cond": ("text",), "null": ("text", "frames")}[name]
    return {key: torch.ones(batch, dtype=torch.bool) for key in dropped}


def run_sample(case: Case, inputs: Tensors, weights: Tensors) -> Tensors:
    """A whole sampling run."""
    args, config = case["args"], case["config"]
    index = args.get("mask_index") or []
    scheduler = build_scheduler(case, renoise_reference=bool(args.get("use_sdedit")))
    guidance = Guidance(**translate_guidance(config | args, conditioned=bool(index)))
    network = ToyNetwork(inputs, conditioned=bool(index))
    cond: Tensors = {"text_features": inputs["y"][:, 0]}
    cond |= {name: inputs[name] for name in ("height", "width", "num_frames", "fps")}
    if "y_neg" in inputs:
        cond["negative"] = inputs["y_neg"][:, 0]
    if index:
        mask = inputs["z_cond_mask"].amax((1, 3, 4))
        cond |= {"reference": inputs["z_cond"] * mask[:, None, :, None, None], "reference_mask": mask}
    noises = inputs.get("noises", torch.empty(0)).unbind(0) if "noises" in inputs else []
    z = scheduler.sample(
        network,
        inputs["z"],
        cond,
        guidance,
        known=inputs["z"],
        frame_mask=inputs.get("mask"),
        draws=ReplayDraws({"edit": noises, "reference": noises}),
    )
    branches = 3 if index else 2
    times = [t.view(-1, inputs["z"].shape[0]) for t in network.times]
    full = torch.stack([t[:1].expand(branches, -1).flatten() for t in times])
    computed = torch.tensor([[i < len(t) for i in range(branches)] for t in times])
    skipped = ~computed.repeat_interleave(inputs["z"].shape[0], 1)
    return {"z": z, "model_timesteps": full, "skipped": {"model_timesteps": skipped.numpy()}}


def run_helper(case: Case, inputs: Tensors, weights: Tensors) -> Tensors:
    """Schedules and corrections of guidance."""
    args = case["args"]
    if args["fn"] == "oscillation":
        scale = GuidanceScale(args["guidance_scale"], oscillate_from=args["force_num"])
        return {"gs": torch.tensor([scale.at(i, args["n"], 1) for i in range(args["n"])])}
    if args["fn"] == "flaw_fix":
        return {"v": rescale_spread(inputs["v_pred"], inputs["pred_cond"], 0.7)}
    if args["fn"] == "dynamic_thresholding":  # the published helper takes its quantile over the whole batch
        x = inputs["x"]
        return {"x": clip_dynamically(x.flatten()[None], args["ratio"], args["base"]).view_as(x)}
    if args["fn"] == "scale_weight":
        steps, floor = args["total_steps"], args["init_scale"]
        falling = [GuidanceScale(args["scale"], ramp_from=floor).at(i, steps, 2) for i in range(steps)]
        w = torch.stack([per_frame[-1] for per_frame in falling])
        return {"w": w if args["method"] == "decr" else w.flip(0)}
    scale = GuidanceScale(args["upper"], ramp_from=args["lower"])
    w = scale.at(0, 1, inputs["z"].shape[2])
    return {"w": w[None, None, :, None, None].expand_as(inputs["z"])}


KINDS = {
    f"rf{version}_{name}": function
    for version in ("12", "13")
    for name, function in {
        "timestep_transform": run_shift,
        "logit_normal_map": run_logit_normal,
        "training_loss": run_loss,
        "sample": run_sample,
        "add_noise": run_add_noise,
        "guidance": run_helper,
        "mean_flat": run_mean,
    }.items()
}

DEVIATIONS = [
    {
        "name": "time_shift_per_sample",
        "reason": "The published shift lets the first sample's length decide for the batch, and a clip "
        "shorter than a latent step gets factor 0, so that its time is 0 or not a number; ours looks at "
        "each sample, at least 1.",
        "kinds": {"rf12_timestep_transform", "rf13_timestep_transform"},
        "excused": shift_excused,
    }
]
