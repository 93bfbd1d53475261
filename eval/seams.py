"""How large the seams of an autoencoder's pieces are: chunks of frames, and tiles, against one piece.

    python -m eval.seams CONFIG --data-path CLIP --ckpt-path MODEL [--vae.spatial_tile 16]

CONFIG is one for scripts/inference_vae.py. Every clip is reconstructed in one piece, so it must fit into
memory, and in the pieces of the config. Printed is a table in Markdown; SAVE_DIR_eval/seams.json holds the
figures and those of every frame, row and column, seams.png draws them.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opensora.acceleration.parallel import shut_down
from opensora.engine.reconstruction import Original, find_originals, load_autoencoder, reconstruct
from opensora.layers.tiles import tile_starts
from opensora.utils.config import read_command_line
from opensora.utils.files import whole_file, write_text
from opensora.utils.user_errors import one_line_errors

_AXES = {"frames": 1, "rows": 2, "columns": 3}


def main() -> None:
    """Read the command line, measure, print; end with one line and status 2 where something is wrong."""
    cfg = read_command_line(__doc__)
    with one_line_errors():
        try:
            result = evaluate(cfg)
        finally:
            shut_down()
        sys.stdout.write(markdown(result))


def evaluate(cfg: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Measure the seams of every clip of a config, and write them.

    Args:
        cfg: Keys of `configs/_base_/reconstruction.py`, `dataset` and `vae`.

    Returns:
        By clip, what `seams` returns.

    Raises:
        ValueError: No clip is cut into pieces.
        FileNotFoundError: Data or weights are missing.
    """
    originals = find_originals(cfg)
    vae = load_autoencoder(cfg)
    if not hasattr(vae, "pieces"):
        raise ValueError(f"vae.type={cfg['vae']['type']!r}: it codes frame by frame, so there are no seams.")
    result = {name: found for name, one in originals.items() if (found := seams(vae, one))}
    if not result:
        raise ValueError(
            f"micro_frame_size={vae.pieces.frames}, spatial_tile={vae.pieces.tile}: no clip is longer than a "
            "chunk or larger than a tile, so there are no seams; set smaller ones, or take a longer clip."
        )
    if cfg["save_dir"] is not None:
        folder = Path(f"{cfg['save_dir']}_eval")
        folder.mkdir(parents=True, exist_ok=True)
        write_text(json.dumps(result, indent=1), folder / "seams.json")
        draw(result, folder / "seams.png")
    return result


def seams(vae: Any, original: Original) -> dict[str, Any]:
    """Compare a clip in pieces with the same in one piece.

    The error is the reconstruction in pieces less the one in one piece, in pixel values of [0, 1]. A jump is
    the mean size of the error's change from one frame, row or column to the next.

    Args:
        vae: An autoencoder; its own pieces are measured, chunks and tiles each by itself.
        original: The clip.

    Returns:
        By axis ("frames", "rows", "columns") along which the clip is cut: "psnr" of pieces to whole in dB,
        "largest" error, "at_borders" and "inside": mean jump there, "borders": places, "error": mean size of
        the error at each place, "jumps".
    """
    mine = vae.pieces
    try:
        vae.pieces = replace(mine, frames=None, overlap=False, tile=None)
        whole, found = _decoded(vae, original), {}
        borders = _borders(mine, vae.stride, whole.shape)
        for axis, places in borders.items():
            alone = {"tile": None} if axis == "frames" else {"frames": None, "overlap": False}
            vae.pieces = replace(mine, **alone)
            found[axis] = _compare(_decoded(vae, original) - whole, _AXES[axis], places)
    finally:
        vae.pieces = mine
    return found


def markdown(result: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table with a row per clip and axis; jumps are in thousandths of the range of pixels."""
    columns = ("clip", "cut along", "PSNR to one piece, dB", "jump at borders", "inside", "ratio", "largest")
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name, axes in result.items():
        for axis, one in axes.items():
            at, inside = 1000 * one["at_borders"], 1000 * one["inside"]
            cells = (name, axis, f"{one['psnr']:.1f}", f"{at:.2f}", f"{inside:.2f}")
            cells += (f"{at / max(inside, 1e-9):.1f}", f"{one['largest']:.3f}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(result: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw error and jumps along each axis, the borders as grey lines."""
    from matplotlib.figure import Figure

    rows = [(f"{name}, {axis}", one) for name, axes in result.items() for axis, one in axes.items()][:8]
    figure = Figure(figsize=(8, 2.4 * len(rows)), layout="constrained")
    for axes, (title, one) in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows, strict=True):
        for place in one["borders"]:
            axes.axvline(place, color="0.85")
        axes.plot(one["error"], label="mean error to one piece")
        axes.plot(range(1, len(one["error"])), one["jumps"], label="jump to the place before")
        axes.set_title(title, fontsize="medium")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="small")
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=80)


def _decoded(vae: Any, original: Original) -> Tensor:
    return (torch.cat([made for _, made in reconstruct(vae, original)], dim=1).clamp(-1, 1) + 1) / 2


def _borders(pieces: Any, stride: Sequence[int], shape: Sequence[int]) -> dict[str, list[int]]:
    """Return the places whose jumps touch a border, by axis. `shape` is that of the decoded clip."""
    found: dict[str, list[int]] = {}
    if pieces.frames is not None and shape[1] > pieces.frames:
        shared = int(pieces.overlap)
        starts = range(pieces.frames - shared, shape[1], pieces.frames - shared)
        found["frames"] = sorted({t for s in starts for t in range(s, s + 1 + shared) if t < shape[1]})
    for axis, size in (("rows", shape[2]), ("columns", shape[3])):
        step, places = stride[1], set()
        starts = tile_starts(-(-size // step), pieces.tile, pieces.tile_overlap)
        for before, start in pairwise(starts):  # results of two tiles meet within what they share
            places.update(range(start * step, max((before + pieces.tile) * step, start * step + 1)))
        if places:
            found[axis] = sorted(places)
    return found


def _compare(error: Tensor, axis: int, borders: Sequence[int]) -> dict[str, Any]:
    """Measure an error [3, T, H, W] along an axis."""
    others = [i for i in range(4) if i != axis]
    jumps = error.diff(dim=axis).abs().mean(others)  # the first is at place 1
    near = torch.zeros(error.shape[axis] - 1, dtype=torch.bool)
    near[torch.tensor(borders) - 1] = True
    return {
        "psnr": float(-10 * error.square().mean().clamp(min=1e-10).log10()),
        "largest": float(error.abs().max()),
        "at_borders": float(jumps[near].mean()),
        "inside": float(jumps[~near].mean()),
        "borders": list(borders),
        "error": error.abs().mean(others).tolist(),
        "jumps": jumps.tolist(),
    }


if __name__ == "__main__":
    main()
