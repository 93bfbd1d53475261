"""From requests to videos and images."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opensora.acceleration.parallel import parallel_state
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.engine.long_video import LongVideos, Report
from opensora.engine.output import Output, file_path
from opensora.engine.preview import Previews, write_preview
from opensora.engine.prompts import Request
from opensora.utils.logging import get_logger

Listen = Callable[[str, int, int], None]


@torch.no_grad()
def generate(
    diffusion: LatentDiffusion,
    requests: Sequence[Request],
    cfg: Mapping[str, Any],
    features: Mapping[str, Tensor] | None = None,
    show: Callable[[Request, Tensor], object] | None = None,
    listen: Listen | None = None,
) -> Iterator[Path]:
    """Make every request and save it; yield the files.

    All prompts are encoded first, once each, and the text encoder is released before the first step. On the
    CPU requests are sampled one by one: a batch gains nothing there, and each video is then the same bytes
    whatever is made with it.

    Args:
        diffusion: The components, with guidance.
        requests: All of one size and length.
        cfg: Keys of `configs/_base_/inference.py`.
        features: Of all texts, from `encode_texts`; None encodes them.
        show: Called with a request and its preview every `preview` steps, see `Previews`; None writes it to a
            file beside the video, which goes when the video is there.
        listen: Called with "sampling" or "decoding", finished steps or frames and all of them. What it raises
            stops the work, and no unfinished file stays.
    """
    if not requests:
        return
    output = Output(cfg, diffusion.device.type)
    sampler = LongVideos(diffusion, requests[0], cfg)
    if features is None:
        features = encode_texts(diffusion.text_encoder, requests)
    writes = parallel_state().sequence_rank == 0  # the others of its group decode with it

    def to_file(request: Request, frames: Tensor) -> None:
        if writes:
            write_preview(frames, preview_path(request, cfg))

    previews = None if cfg["preview"] is None else Previews(diffusion, cfg["preview"], show or to_file)
    progress = Progress(len(requests), cfg["verbose"])
    size = videos_at_once(cfg, diffusion.device)
    for first in range(0, len(requests), size):
        batch = requests[first : first + size]
        report = progress.begin(first, len(batch))
        if listen is not None:
            report = _heard(report, listen, (first, len(batch), len(requests)))
        z = sampler.sample(batch, features, _both(report, previews))
        for request, latents in zip(batch, z, strict=True):
            parts = _counted(diffusion.decode_stream(latents, request.length), request.length, listen)
            video = (part[:, :, : request.height, : request.width] for part in parts)
            if not writes:
                deque(video, maxlen=0)
            else:
                path = output.save(sampler.watch(video, request), request)
                preview_path(request, cfg).unlink(missing_ok=True)
                yield path


def videos_at_once(cfg: Mapping[str, Any], device: torch.device) -> int:
    """Return how many videos are sampled in one batch."""
    return 1 if device.type == "cpu" else cfg["batch_size"]


def encode_texts(
    text_encoder: Any, requests: Sequence[Request], listen: Listen | None = None
) -> dict[str, Tensor]:
    """Encode every distinct text of the requests and release the encoder.

    Args:
        text_encoder: Reads its weights when it encodes.
        requests: What is to be made.
        listen: Called with "reading the prompt", encoded texts and all of them; what it raises stops.

    Returns:
        Features by text, on the CPU. Shape [L, F].
    """
    texts = dict.fromkeys(text for request in requests for text in request.texts)
    features = {}
    try:
        for text in texts:
            if listen is not None:
                listen("reading the prompt", len(features), len(texts))
            features[text] = text_encoder.encode([text])[0][0].cpu()
    finally:
        text_encoder.release()
    return features


def preview_path(request: Request, cfg: Mapping[str, Any]) -> Path:
    """Return the file of a request's preview, beside its video."""
    path = file_path(request, cfg)
    return path.with_name(f"{path.stem}_preview.png")


def _heard(
    report: Callable[[int, int], None], listen: Listen, place: tuple[int, int, int]
) -> Callable[[int, int], None]:
    """Tell a listener of steps, too; `place` is first request and size of the batch, and all requests."""
    first, count, total = place

    def both(done: int, steps: int) -> None:
        report(done, steps)
        listen("sampling", first * steps + count * done, total * steps)

    return both


def _counted(parts: Iterable[Tensor], length: int, listen: Listen | None) -> Iterator[Tensor]:
    """Tell a listener how many frames are decoded."""
    done = 0
    for part in parts:
        done += part.shape[1]
        if listen is not None:
            listen("decoding", done, length)
        yield part


def _both(report: Callable[[int, int], None], previews: Previews | None) -> Report:
    def on_step(done: int, steps: int, ends: Callable[[], Any]) -> None:
        report(done, steps)
        if previews is not None:
            previews(done, steps, ends)

    return on_step


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
