"""Find for each generated clip the group of reference clips that it looks most like.

    python -m eval.nearest --generated a.mp4 b.mp4 --references group0_*.mp4 --references group1_*.mp4

Generated clip i belongs to group i. Printed is JSON: how many are nearest to their own group, and each clip's
distance to it over the distance of noise to it.
"""

import argparse
import json

import torch
from torch import Tensor

from eval.metrics.perceptual import PerceptualDistance
from opensora.datasets.video_io import ClipError, probe, read_clip


def main() -> None:
    """Read the command line and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generated", nargs="+", required=True)
    parser.add_argument("--references", nargs="+", action="append", required=True, help="once per group")
    args = parser.parse_args()
    if len(args.generated) != len(args.references):
        parser.error(
            f"{len(args.generated)} generated clips and {len(args.references)} groups; give as many of each"
        )
    try:
        found = nearest(args.generated, args.references)
    except ClipError as error:
        parser.error(str(error))
    print(json.dumps(found, indent=1))


@torch.no_grad()
def nearest(generated: list[str], references: list[list[str]]) -> dict[str, object]:
    """Compare clips; every reference is cut or repeated to the generated clip's length.

    Args:
        generated: Paths of clips, one per group.
        references: Paths of the groups' clips.

    Returns:
        How many clips are nearest to their own group, of how many; each clip's distance to its group over the
        distance of noise to it; and the distances, a row per clip and a column per group.

    Raises:
        ClipError: A clip cannot be read.
        ImportError: See `PerceptualDistance`.
    """
    distance = PerceptualDistance()
    groups = [[read(path) for path in paths] for paths in references]
    own, ratios, table = 0, [], []
    for i, path in enumerate(generated):
        clip = read(path)
        row = [min(float(distance(clip, fit(other, clip))) for other in group) for group in groups]
        noise = torch.rand(clip.shape, generator=torch.Generator().manual_seed(i)) * 2 - 1
        from_noise = min(float(distance(noise, fit(other, clip))) for other in groups[i])
        own += row[i] == min(row)
        ratios.append(round(row[i] / from_noise, 3))
        table.append([round(value, 3) for value in row])
    return {"nearest to own group": own, "of": len(generated), "over noise": ratios, "distances": table}


def read(path: str) -> Tensor:
    """Read a whole clip as [3, T, H, W] in [-1, 1]."""
    return read_clip(path, range(probe(path).num_frames)).permute(3, 0, 1, 2) / 127.5 - 1


def fit(reference: Tensor, clip: Tensor) -> Tensor:
    """Bring a reference to a clip's length and size."""
    index = torch.linspace(0, reference.shape[1] - 1, clip.shape[1]).round().long()
    frames = reference[:, index].transpose(0, 1)
    frames = torch.nn.functional.interpolate(
        frames, size=clip.shape[2:], mode="bilinear", align_corners=False
    )
    return frames.transpose(0, 1)


if __name__ == "__main__":
    main()
