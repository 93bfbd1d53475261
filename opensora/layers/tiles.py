"""Tiles: run a network over overlapping parts of height and width, and blend what they give.

Sizes are in cells of the latents, and the same tile is meant for encoding and decoding. In an overlap the
result changes from one tile to the next over the middle third; the outer thirds are computed and not used, as
there a network meets the false border of its tile. A network whose reach is a third of the overlap, or less,
gives exactly what it gives for the whole.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def in_tiles(
    function: Callable[[Tensor, tuple[int, int]], Tensor],
    x: Tensor,
    tile: int | None,
    overlap: int,
    cells: tuple[int, int],
) -> Tensor:
    """Apply a function to tiles of a video.

    Args:
        function: Takes a tile and its (row, column). Shape [B, C, T, h, w] to [B, C', T', h', w'].
        x: Shape [B, C, T, H, W].
        tile: Height and width of a tile in latent cells; None, or a tile as large as the video: no tiles.
        overlap: Least number of cells that neighbours share.
        cells: Height and width of a latent cell in values of the input, and of the output.

    Returns:
        Shape [B, C', T', H', W'].
    """
    given, made = cells
    rows, columns = (tile_starts(-(-size // given), tile, overlap) for size in x.shape[3:])
    if len(rows) == len(columns) == 1:
        return function(x, (0, 0))
    total = weights = None
    height, width = (made * -(-size // given) for size in x.shape[3:])
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            piece = x[:, :, :, row * given : (row + tile) * given, column * given : (column + tile) * given]
            out = function(piece, (i, j))
            if total is None:
                total = out.new_zeros(*out.shape[:3], height, width)
                weights = out.new_zeros(height, width)
            weight = torch.outer(
                *(
                    _weight(starts, k, tile, made, size).to(out)
                    for starts, k, size in ((rows, i, out.shape[3]), (columns, j, out.shape[4]))
                )
            )
            top, left = row * made, column * made
            place = (..., slice(top, top + out.shape[3]), slice(left, left + out.shape[4]))
            total[place] += out * weight
            weights[place] += weight
    used = weights > 0  # cells at the end that the network rounds away stay empty
    height, width = int(used.any(1).sum()), int(used.any(0).sum())
    return total[..., :height, :width] / weights[:height, :width]


def check_tiles(tile: int | None, overlap: int) -> None:
    """Raise ValueError unless a tile has room for its overlaps."""
    if tile is not None and not 0 <= 2 * overlap <= tile:
        raise ValueError(
            f"spatial_tile={tile}, spatial_overlap={overlap}: a tile has an overlap on both sides; use an "
            f"overlap of 0 to {max(tile // 2, 0)}."
        )


def tile_starts(size: int, tile: int | None, overlap: int) -> list[int]:
    """Return where the tiles along one side begin, in cells; arguments as for `in_tiles`."""
    if tile is None or tile >= size:
        return [0]
    count = -(-(size - overlap) // (tile - overlap))
    return [round(i * (size - tile) / (count - 1)) for i in range(count)]


def _weight(starts: list[int], index: int, tile: int, made: int, size: int) -> Tensor:
    """Return the weights of the rows (or columns) of a tile's output. Shape [size]."""
    place = torch.arange(size, dtype=torch.float64, device="cpu") + 0.5
    weight = torch.ones(size, dtype=torch.float64, device="cpu")
    if index > 0:
        shared = made * (starts[index - 1] + tile - starts[index])
        weight = weight * _ramp(place, shared)
    if index + 1 < len(starts):
        shared = made * (starts[index] + tile - starts[index + 1])
        weight = weight * (1 - _ramp(place - (made * tile - shared), shared))
    return weight


def _ramp(place: Tensor, shared: int) -> Tensor:
    if not shared:
        return (place > 0).to(place)
    return ((place - shared / 3) / (shared / 3)).clamp(0, 1)
