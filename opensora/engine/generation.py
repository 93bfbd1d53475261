"""From requests to videos and images."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opensora.acceleration.parallel import parallel_state
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.engine.lengths import covering_size
from opensora.engine.output import Output
from opensora.engine.prompts import Request
from opensora.utils.logging import get_logger
from opensora.utils.random import Draws


@torch.no_grad()
def generate(
    diffusion: LatentDiffusion,
    requests: Sequence[Request],
    cfg: Mapping[str, Any],
) -> Iterator[Path]:
    """Make every request and save it; yield the files.

    All prompts are encoded first, once each, and the text encoder is released before the first step. On the
    CPU requests are sampled one by one: a batch gains nothing there, and each video is then the same bytes
    whatever is made with it.

    Args:
        diffusion: The components, with guidance.
        requests: All of one size and length.
        cfg: Keys of `configs/_base_/inference.py`.
    """
    output = Output(cfg)
    features = encode_texts(diffusion, requests)
    progress = Progress(len(requests), cfg["verbose"])
    size = 1 if diffusion.device.type == "cpu" else cfg["batch_size"]
    for first in range(0, len(requests), size):
        batch = requests[first : first + size]
        z = sample_requests(diffusion, batch, features, cfg["seed"], progress.begin(first, len(batch)))
        for request, latents in zip(batch, z, strict=True):
            parts = diffusion.decode_stream(latents, request.num_frames)
            video = (part[:, :, : request.height, : request.width] for part in parts)
            if parallel_state().sequence_rank == 0:  # it writes for its group
                yield output.save(video, request)


def encode_texts(diffusion: LatentDiffusion, requests: Sequence[Request]) -> dict[str, Tensor]:
    """Encode every distinct text of the requests and release the encoder.

    Returns:
        Features by text, on the CPU. Shape [L, F].
    """
    texts = dict.fromkeys(t for r in requests for t in (r.text, r.negative) if t is not None)
    features = {text: diffusion.text_encoder.encode([text])[0][0].cpu() for text in texts}
    diffusion.text_encoder.release()
    return features


def sample_requests(
    diffusion: LatentDiffusion,
    requests: Sequence[Request],
    features: Mapping[str, Tensor],
    seed: int,
    report: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Sample the latents of some requests of one size and length, as one batch.

    Args:
        diffusion: The components.
        requests: Their number is B.
        features: By text, from `encode_texts`.
        seed: Names the noise, with the prompt and the number of the sample.
        report: Called with (finished steps, steps).

    Returns:
        float32 latents that decode to the asked size or a little more. Shape [B, Z, T, H, W].
    """
    batch: dict[str, Any] = {}
    batch["text_features"], batch["text_mask"] = _pad([features[r.text] for r in requests])
    if requests[0].negative is not None:
        batch["negative"], batch["negative_mask"] = _pad([features[r.negative] for r in requests])
    sizes = covering_size(diffusion.vae, requests[0].height, requests[0].width)
    values = {"fps": requests[0].fps, "num_frames": requests[0].num_frames}
    values |= dict(zip(("height", "width"), sizes, strict=True))
    batch |= {name: torch.full((len(requests),), float(value)) for name, value in values.items()}
    draws = Draws(seed, [r.key for r in requests], [r.sample for r in requests])
    return diffusion.sample(batch, draws, on_step=report)


class Progress:
    """Log how far sampling is, how fast, and how long it will take.

    Args:
        count: Videos to make.
        verbose: 0 logs nothing, 1 the first step and then a line every ten seconds, 2 every step.
        clock: Gives the time in seconds.
    """

    def __init__(self, count: int, verbose: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.count, self.verbose, self.clock = count, verbose, clock
        self.start, self.last = clock(), float("-inf")

    def begin(self, first: int, count: int) -> Callable[[int, int], None]:
        """Return what to call with (finished steps, steps) for `count` videos from number `first` on."""
        began = self.clock()

        def report(done: int, steps: int) -> None:
            now = self.clock()
            if self.verbose == 0 or (self.verbose == 1 and now - self.last < 10):
                return
            self.last = now
            share = (first + count * done / steps) / self.count
            left = round((now - self.start) / share * (1 - share))
            name = f"{first + 1}" if count == 1 else f"{first + 1}-{first + count}"
            rate = done / max(now - began, 1e-9)
            get_logger().info(
                "%s of %d: step %d/%d, %.3g steps/s, %d:%02d:%02d left",
                name, self.count, done, steps, rate, left // 3600, left // 60 % 60, left % 60,
            )  # fmt: skip

        return report


def _pad(features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    padded = torch.nn.utils.rnn.pad_sequence(list(features), batch_first=True)
    lengths = torch.tensor([len(f) for f in features])
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]
