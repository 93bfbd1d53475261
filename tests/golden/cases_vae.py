"""Golden adapters of the autoencoders: from a case of the vectors to our outputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opensora.layers.causal_conv3d import tiled_conv3d
from opensora.registry import MODELS, build
from opensora.utils.published_config import translate_component
from opensora.utils.random import ReplayDraws

Tensors = dict[str, Tensor]
Case = dict[str, Any]


def _build(cfg: Case, weights: Tensors | None = None) -> nn.Module:
    module = build(MODELS, translate_component(cfg)).eval()
    if weights:
        module.load_state_dict(weights, strict=True)
    return module


def _video_vae(case: Case, weights: Tensors | None = None, **runtime: int | None) -> nn.Module:
    return _build(dict(type="OpenSoraVAE_V1_3", **case["arch"], **{**case["runtime"], **runtime}), weights)


def _temporal_vae(case: Case, weights: Tensors | None = None) -> nn.Module:
    return _build(dict(type="VAE_Temporal_SD", **case["config"]), weights)


def _stacked_vae(case: Case, weights: Tensors | None = None) -> nn.Module:
    runtime = dict(micro_frame_size=None, micro_batch_size=4) | case["runtime"]
    parts = {key: case[key] for key in ("spatial", "temporal", "shift", "scale")}
    return _build(dict(type="OpenSoraVAE_V1_2", **parts, **runtime), weights)


@torch.no_grad()
def vae13_encode(case: Case, inputs: Tensors, weights: Tensors) -> Tensors:
    """Moments, normalised mode and, with noise, a normalised sample."""
    vae = _video_vae(case, weights)
    posterior = vae.posterior(inputs["x"])
    out = {
        "mean": posterior.mean,
        "logvar": posterior.logvar,
        "z": vae.encode(inputs["x"]),
        "kl": posterior.kl(),
    }
    if "noise" in inputs:
        out["z_sampled"] = vae.encode(inputs["x"], ReplayDraws({"posterior": [inputs["noise"]]}))
    return {name: value for name, value in out.items() if name in case["outputs"]}


@torch.no_grad()
def vae13_decode(case: Case, inputs: Tensors, weights: Tensors) -> Tensors:
    """Pixels of normalised latents."""
    return {"x": _video_vae(case, weights).decode(inputs["z"])}


def vae13_train(case: Case, inputs: Tensors, weights: Tensors) -> Tensors:
    """Loss and gradients of a whole forward pass; the reference trains without micro batches and chunks."""
    vae = _video_vae(case, weights, micro_batch_size=None, micro_batch_size_2d=None).train()
    for parameter in vae.parameters():
        parameter.grad = None
    out = vae(inputs["x"], ReplayDraws({"posterior": [inputs["noise"]]}))
    loss = (out.video * inputs["_probe"]).sum() / out.video.numel()
    loss = loss + 0.01 * out.regularizer.mean() / out.z[0].numel()
    loss.backward()
    gradients = {f"grad_param/{key}": vae.get_parameter(key).grad for key in case["grad_params"]}
    return {"loss": loss.detach(), "z": out.z.detach(), "dec": out.video.detach(), **gradients}


@torch.no_grad()
def vae_stats_normalize(case: Case, inputs: Tensors, weights: Tensors) -> Tensors:
    """Normalisation with published statistics and its inverse."""
    vae = _video_vae(case)
    return {"normalized": vae.normalize(inputs["z"]), "unnormalized": vae.denormalize(inputs["z"])}


@torch.no_grad()
def tiled_conv(case: Case, inputs: Tensors, weights: Tensors) -> Tensors:
    """One convolution in tiles."""
    config = case["config"]
    padding = config.get("padding", 0)
    sides = [padding] * 3 if isinstance(padding, int) else padding
    out = tiled_conv3d(
        inputs["x"],
        weights["weight"],
        weights.get("bias"),
        stride=config.get("stride", (1, 1, 1)),
        padding=[(side, side) for side in sides],
        tile_size=config["tile_size"],
        axis=config["tiled_dim"],
        num_tiles=config["num_tiles"],
    )
    return {"out": out}


@torch.no_grad()
def vae12_temporal_encode(case: Case, inputs: Tensors, weights: Tensors) -> Tensors:
    """Moments of the temporal autoencoder and, with noise, a sample."""
    vae = _temporal_vae(case, weights)
    posterior = vae.posterior(inputs["x"])
    out = {"mean": posterior.mean, "logvar": posterior.logvar, "z": posterior.mean, "kl": posterior.kl()}
    if "noise" in inputs:
        out["z_sampled"] = vae.encode(inputs["x"], ReplayDraws({"posterior": [inputs["noise"]]}))
    return {name: value for name, value in out.items() if name in case["outputs"]}


@torch.no_grad()
def vae12_temporal_decode(case: Case, inputs: Tensors, weights: Tensors) -> Tensors:
    """Frames of temporal latents."""
    return {"x": _temporal_vae(case, weights).decode(inputs["z"], case["args"]["num_frames"])}


@torch.no_grad()
def vae12_pipeline_encode(case: Case, inputs: Tensors, weights: Tensors) -> Tensors:
    """Normalised latents from the means of both posteriors."""
    return {"z": _stacked_vae(case, weights).encode(inputs["x"])}


@torch.no_grad()
def vae12_pipeline_decode(case: Case, inputs: Tensors, weights: Tensors) -> Tensors:
    """Pixels of normalised latents."""
    return {"x": _stacked_vae(case, weights).decode(inputs["z"], case["args"]["num_frames"])}


def vae13_latent_size(case: Case, inputs: Tensors, weights: Tensors) -> dict[str, list]:
    """Latent sizes as our encoder gives them."""
    # The reference's formula reads micro_frame_size even where its encoder ignores it.
    return _latent_sizes(_video_vae(case, micro_batch_size=1), case)


def vae12_latent_size(case: Case, inputs: Tensors, weights: Tensors) -> dict[str, list]:
    """Latent sizes of the stacked autoencoder."""
    return _latent_sizes(_stacked_vae(case), case)


def vae12_temporal_latent_size(case: Case, inputs: Tensors, weights: Tensors) -> dict[str, list]:
    """Latent sizes of the temporal autoencoder."""
    return _latent_sizes(_temporal_vae(case), case)


def _latent_sizes(vae: nn.Module, case: Case) -> dict[str, list]:
    rows = [
        [None if size is None else _latent_size(vae, axis, size) for axis, size in enumerate(row)]
        for row in case["args"]["input_sizes"]
    ]
    return {"expected_json": rows}


def _latent_size(vae: nn.Module, axis: int, size: int) -> int | None:
    shape = [1, 64, 64]  # the axes are independent, so each is asked alone: a row may have unknown sizes
    shape[axis] = size
    try:
        return int(vae.latent_shape(*shape)[axis])
    except ValueError:  # no clip has that size
        return None


KINDS: dict[str, Callable] = {
    "vae13_encode": vae13_encode,
    "vae13_decode": vae13_decode,
    "vae13_train": vae13_train,
    "vae13_latent_size": vae13_latent_size,
    "vae_stats_normalize": vae_stats_normalize,
    "tiled_conv3d": tiled_conv,
    "vae12_temporal_encode": vae12_temporal_encode,
    "vae12_temporal_decode": vae12_temporal_decode,
    "vae12_pipeline_encode": vae12_pipeline_encode,
    "vae12_pipeline_decode": vae12_pipeline_decode,
    "vae12_latent_size": vae12_latent_size,
    "vae12_temporal_latent_size": vae12_temporal_latent_size,
}


@dataclass(frozen=True)
class Deviation:
    """A rule that says, from a case alone, which of its expected values we do not reproduce.

    Args:
        name: Short name of the rule.
        reason: Why we differ.
        kinds: Kinds of cases it may speak about.
        excused: From the case, the output's name and its expected value to a bool array of that value's
            shape, True where we differ on purpose; None where the rule does not apply.
    """

    name: str
    reason: str
    kinds: frozenset[str]
    excused: Callable[[Case, str, Any], np.ndarray | None]


def _untrue_latent_sizes(case: Case, output: str, expected: list) -> np.ndarray | None:
    if output != "expected_json":
        return None
    chunk = case["runtime"].get("micro_frame_size")
    shared = int(bool(case["runtime"].get("temporal_overlap")))
    rows = []
    for frames, *sides in case["args"]["input_sizes"]:
        whole = chunk is None or frames in (None, 1) or (frames - shared) % (chunk - shared) == 0
        rows.append([not whole] + [side is not None and side % 8 == 1 for side in sides])
    return np.array(rows, dtype=bool)


def _sizes_without_latents(case: Case, output: str, expected: list) -> np.ndarray | None:
    if output != "expected_json":
        return None
    stride = 2 ** (len(case["spatial"]["block_out_channels"]) - 1)
    rows = [
        [False] + [s is not None and s < stride for s in sides] for _, *sides in case["args"]["input_sizes"]
    ]
    return np.array(rows, dtype=bool)


DEVIATIONS: list[Deviation] = [
    Deviation(
        name="latent size as the encoder gives it",
        reason="the published formula is not what the published encoder returns when a clip ends inside a"
        " chunk, or for a height or width that is 1 modulo 8",
        kinds=frozenset({"vae13_latent_size"}),
        excused=_untrue_latent_sizes,
    ),
    Deviation(
        name="sizes without latents",
        reason="the published formula gives 0 for sides shorter than the stride; ours is an error",
        kinds=frozenset({"vae12_latent_size"}),
        excused=_sizes_without_latents,
    ),
]
