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
from opensora.engine.reconstruction import Original, encode, find_originals, load_autoencoder, reconstruct
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
        if cfg["cal_stats"]:
            statistics.add(encode(vae, original))
            if i % cfg["log_stats_every"] == 0 or i == len(originals):
                get_logger().info("latents of %d clips: %s", i, statistics.line())
        if cfg["save_dir"] is not None:
            save(vae, name, original, cfg)
        progress.add()


def save(vae: Any, name: str, original: Original, cfg: Mapping[str, Any]) -> None:
    """Write one clip and its reconstruction, unless they are there.

    Frames are written as they are decoded, so memory does not grow with the length; the file with both beside
    each other takes a second pass.
    """
    ending = ".png" if original.num_frames == 1 else ".mp4"
    kinds = ("ori", "rec", "side") if cfg["side_by_side"] else ("ori", "rec")
    paths = {kind: Path(f"{cfg['save_dir']}_{kind}") / (name + ending) for kind in kinds}
    if all(path.exists() for path in paths.values()):
        get_logger().info("%s: its files are there already", name)
        return
    error = SquaredError()
    sources = {
        "ori": lambda: original.pieces(),
        "rec": lambda: (error.add(*pair) for pair in reconstruct(vae, original)),
        "side": lambda: (beside(*pair, cfg["difference_gain"]) for pair in reconstruct(vae, original)),
    }
    for kind, path in paths.items():
        if original.num_frames == 1:
            write_image(next(iter(sources[kind]())), path)
        else:
            write_video(sources[kind](), path, cfg["fps"] / cfg["frame_interval"])
    get_logger().info("%s: %d frames, PSNR %.2f dB before compression", name, original.num_frames, error.psnr)


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


class LatentStatistics:
    """Mean and deviation of latents, over all values and per channel.

    Args:
        channels: Latent channels.
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.sums = torch.zeros(2, channels, dtype=torch.float64)

    def add(self, z: Tensor) -> None:
        """Count the latents of a clip. Shape [B, Z, T, H, W]."""
        values = z.detach().cpu().double().transpose(0, 1).flatten(1)
        self.count += values.shape[1]
        self.sums += torch.stack((values.sum(1), values.square().sum(1)))

    def line(self) -> str:
        """Return what was counted: mean and deviation of all, and of each channel as lists for a config."""
        mean, square = self.sums / self.count
        deviation = (square - mean**2).clamp(min=0).sqrt()
        whole = (square.mean() - mean.mean() ** 2).clamp(min=0).sqrt()
        rounded = [[round(float(x), 5) for x in row] for row in (mean, deviation)]
        lists = f"latent_mean={rounded[0]}, latent_std={rounded[1]}"
        return f"mean {mean.mean():.4f}, deviation {whole:.4f}; {lists}"


if __name__ == "__main__":
    main()
