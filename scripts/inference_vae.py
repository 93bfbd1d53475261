"""Encode and decode a clip, an image, a folder or a table, and save originals and reconstructions.

    python scripts/inference_vae.py CONFIG --data-path clip.mp4 [--ckpt-path MODEL] [--key value ...]

Files go to SAVE_DIR_ori and SAVE_DIR_rec, with --side-by-side True to SAVE_DIR_side as well. Clips may be of
any length and size; what has a file already is left out. `python -m eval.vae CONFIG` measures instead.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opensora.acceleration.parallel import shut_down
from opensora.datasets.video_io import write_image, write_video
from opensora.engine.reconstruction import (
    LatentStatistics,
    Original,
    encode,
    find_originals,
    load_autoencoder,
    reconstruct,
)
from opensora.utils.config import read_command_line
from opensora.utils.logging import get_logger
from opensora.utils.progress import Progress
from opensora.utils.user_errors import one_line_errors


def main() -> None:
    """Read the command line and reconstruct; end with one line and status 2 where something is wrong."""
    cfg = read_command_line(__doc__)
    with one_line_errors():
        try:
            run(cfg)
        finally:
            shut_down()


def run(cfg: Mapping[str, Any]) -> None:
    """Reconstruct everything that a config names.

    Raises:
        ValueError: A setting is wrong, or there is nothing to do.
        FileNotFoundError: Data or weights are missing.
    """
    if cfg["save_dir"] is None and not cfg["cal_stats"]:
        raise ValueError(
            "save_dir=None and cal_stats=False: nothing to do; give --save-dir, or use eval.vae."
        )
    originals = find_originals(cfg)
    vae = load_autoencoder(cfg)
    statistics = LatentStatistics(vae.latent_channels)
    progress = Progress("clips", len(originals))
    for i, (name, original) in enumerate(originals.items(), 1):
        paths = output_paths(name, original, cfg)
        there = bool(paths) and all(path.exists() for path in paths.values())
        if there:
            get_logger().info("%s: its files are there already", name)
        z = None if there and not cfg["cal_stats"] else encode(vae, original)
        if cfg["cal_stats"]:
            statistics.add(z)
            if i % cfg["log_stats_every"] == 0 or i == len(originals):
                get_logger().info("latents of %d clips: %s", i, statistics.line())
        if paths and not there:
            save(vae, original, z, paths, cfg)
        progress.add()


def output_paths(name: str, original: Original, cfg: Mapping[str, Any]) -> dict[str, Path]:
    """Return the files of a clip by kind; none without `save_dir`."""
    if cfg["save_dir"] is None:
        return {}
    ending = ".png" if original.num_frames == 1 else ".mp4"
    kinds = ("ori", "rec", "side") if cfg["side_by_side"] else ("ori", "rec")
    return {kind: Path(f"{cfg['save_dir']}_{kind}") / (name + ending) for kind in kinds}


def save(vae: Any, original: Original, z: Tensor, paths: Mapping[str, Path], cfg: Mapping[str, Any]) -> None:
    """Write one clip and its reconstruction from its latents.

    Frames are written as they are decoded, so memory does not grow with the length; the file with both beside
    each other is decoded once more.
    """
    error = SquaredError()
    sources = {
        "ori": lambda: original.pieces(),
        "rec": lambda: (error.add(*pair) for pair in reconstruct(vae, original, z)),
        "side": lambda: (beside(*pair, cfg["difference_gain"]) for pair in reconstruct(vae, original, z)),
    }
    for kind, path in paths.items():
        if original.num_frames == 1:
            write_image(next(iter(sources[kind]())), path)
        else:
            write_video(sources[kind](), path, cfg["fps"] / cfg["frame_interval"])
    text = "%s: %d frames, PSNR %.2f dB before compression"
    get_logger().info(text, paths["rec"].stem, original.num_frames, error.psnr)


def beside(original: Tensor, reconstruction: Tensor, gain: float) -> Tensor:
    """Return original, reconstruction and their difference on grey. Shape [3, T, H, 3 W]."""
    return torch.cat((original, reconstruction, gain * (reconstruction - original)), dim=3)


class SquaredError:
    """The squared error of clips that come in parts."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Count a part, and return the reconstruction."""
        self.total += float((reconstruction.clamp(-1, 1) - original).double().square().sum())
        self.count += original.numel()
        return reconstruction

    @property
    def psnr(self) -> float:
        """Of all frames as one, in dB; values span [-1, 1]."""
        return -10 * math.log10(max(self.total / max(self.count, 1) / 4, 1e-10))


if __name__ == "__main__":
    main()
