"""From requests to files: videos, images and their contact sheets."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opensora.datasets.video_io import contact_sheet, write_image, write_video
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.engine.prompts import Request
from opensora.utils.logging import get_logger
from opensora.utils.random import Draws


def choose_length(vae: Any, num_frames: int | str, seconds: float | None, fps: float) -> int:
    """Turn what was asked for into a number of frames that the autoencoder gives back.

    A name such as "4s" and a duration are brought to a legal length, and that is logged; a bare number must
    be legal.

    Args:
        vae: Says which lengths are legal.
        num_frames: Number, or published name such as "4s".
        seconds: Duration; wins over `num_frames`.
        fps: Frames per second.

    Raises:
        ValueError: The number is not legal; the message names its neighbours.
    """
    from opensora.datasets.resolutions import frame_count

    if seconds is not None:
        asked = max(1, round(seconds * fps))
        lower = vae.legal_length(asked)
        upper = _next_legal(vae, asked)
        length = lower if asked - lower <= upper - asked else upper
        get_logger().info("%g seconds at %g fps: %d frames", seconds, fps, length)
        return length
    named = isinstance(num_frames, str) and not num_frames.isdigit()
    asked = frame_count(num_frames) if named else int(num_frames)
    legal = vae.legal_length(asked)
    if named and legal != asked:
        get_logger().info(
            "%s is %d frames, cut to %d, the longest that this vae gives back", num_frames, asked, legal
        )
        return legal
    if legal != asked:
        raise ValueError(
            f"num_frames={asked}: this vae gives back {legal} or {_next_legal(vae, asked)} frames, not "
            f"{asked}; "
            f"use one of them, or --seconds."
        )
    return asked


@torch.no_grad()
def generate(
    diffusion: LatentDiffusion,
    requests: Sequence[Request],
    cfg: Mapping[str, Any],
) -> Iterator[Path]:
    """Make every request and save it; yield the files.

    All prompts are encoded first, once each, and the text encoder is released before the first step.

    Args:
        diffusion: The components, with guidance.
        requests: All of one size and length.
        cfg: Keys of `configs/_base_/inference.py`.
    """
    features = encode_texts(diffusion, requests)
    start, steps_of = time.perf_counter(), diffusion.scheduler.num_sampling_steps
    size = cfg["batch_size"]
    for first in range(0, len(requests), size):
        batch = requests[first : first + size]

        def report(done: int, steps: int, first: int = first, count: int = len(batch)) -> None:
            if cfg["verbose"] == 0 or (cfg["verbose"] == 1 and done not in (1, steps)):
                return
            passed = time.perf_counter() - start
            share = (first + count * done / steps) / len(requests)
            left = passed / share * (1 - share)
            get_logger().info(
                "videos %d-%d of %d, step %d/%d, about %.0f s left",
                first + 1, first + count, len(requests), done, steps_of, left,
            )  # fmt: skip

        z = sample_requests(diffusion, batch, features, cfg["seed"], report)
        for request, latents in zip(batch, z, strict=True):
            video = diffusion.decode(latents[None], request.num_frames)[0]
            video = video[:, :, : request.height, : request.width]
            yield save(video, request, cfg)


def encode_texts(diffusion: LatentDiffusion, requests: Sequence[Request]) -> dict[str, Tensor]:
    """Encode every distinct text of the requests and release the encoder. Features [L, F] without padding."""
    texts = list(dict.fromkeys(t for r in requests for t in (r.prompt, r.negative) if t is not None))
    values, mask = diffusion.text_encoder.encode(texts)
    diffusion.text_encoder.release()
    return {text: value[m.bool()].cpu() for text, value, m in zip(texts, values, mask, strict=True)}


def sample_requests(
    diffusion: LatentDiffusion,
    requests: Sequence[Request],
    features: Mapping[str, Tensor],
    seed: int,
    report: Any,
) -> Tensor:
    """Sample the latents of some requests. float32, shape [B, Z, T, H, W].

    On the CPU one by one: a batch gains nothing there, and each video is then the same bytes in any batch.
    """
    if diffusion.device.type == "cpu" and len(requests) > 1:
        return torch.cat([sample_requests(diffusion, [r], features, seed, report) for r in requests])
    batch: dict[str, Any] = {}
    batch["text_features"], batch["text_mask"] = _pad([features[r.prompt] for r in requests])
    if requests[0].negative is not None:
        batch["negative"], batch["negative_mask"] = _pad([features[r.negative] for r in requests])
    for name in ("fps", "num_frames", "height", "width"):
        batch[name] = torch.tensor([float(getattr(r, name)) for r in requests])
    draws = Draws(seed, [r.key for r in requests], [r.sample for r in requests])
    return diffusion.sample(batch, draws, on_step=report)


def save(video: Tensor, request: Request, cfg: Mapping[str, Any]) -> Path:
    """Write a video and its contact sheet, or an image.

    Args:
        video: About [-1, 1]. Shape [3, T, H, W].
        request: What it was made from.
        cfg: `save_dir`, `sample_name`, `prompt_as_path`, `num_sample`, `fps`, `save_fps`, `frame_interval`.
    """
    folder = Path(cfg["save_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(request, cfg)
    if request.num_frames == 1:
        write_image(video[:, 0], path)
    else:
        write_video(video, path, cfg["save_fps"] or cfg["fps"] / cfg["frame_interval"])
        contact_sheet(video, path.with_suffix(".png"))
    get_logger().info("saved %s", path)
    return path


def file_name(request: Request, cfg: Mapping[str, Any]) -> str:
    """Return the name of a request's file: a number, or its prompt with everything unusual replaced."""
    stem = f"{cfg['sample_name']}_{request.index:04d}"
    if cfg["prompt_as_path"]:
        stem = re.sub(r"[^\w\- ]+", "_", request.prompt).strip()[:120] or stem
    if cfg["num_sample"] != 1:
        stem = f"{stem}-{request.sample}"
    return stem + (".png" if request.num_frames == 1 else ".mp4")


def _pad(features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    padded = torch.nn.utils.rnn.pad_sequence(list(features), batch_first=True)
    lengths = torch.tensor([len(f) for f in features])
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


def _next_legal(vae: Any, num_frames: int) -> int:
    longer = num_frames + 1
    while vae.legal_length(longer) <= num_frames:
        longer += 1
    return vae.legal_length(longer)
