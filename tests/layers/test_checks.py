"""Checks of what users hand to an autoencoder; their messages are tested where they are raised."""

import pytest
import torch

from opensora.layers.checks import check_count, check_length, check_video


def test_what_is_right_passes() -> None:
    check_video("video", torch.zeros(2, 3, 1, 4, 4), 3)
    check_length(1)
    check_count("tile_size", None, "tiles")
    check_count("tile_size", 1, "tiles")


@pytest.mark.parametrize("shape", [(3, 1, 4, 4), (2, 4, 1, 4, 4), (2, 3, 0, 4, 4)])
def test_no_video(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"expected \[B, 3, T, H, W\] with T >= 1\. Give an image as a video of one"
    ):
        check_video("video", torch.zeros(shape), 3)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "2"])
def test_no_count(value: object) -> None:
    with pytest.raises(
        ValueError, match=r"tile_size=.*: expected a whole number from 1, or None to do without tiles"
    ):
        check_count("tile_size", value, "tiles")


def test_no_frames() -> None:
    with pytest.raises(ValueError, match=r"num_frames=0: a video has at least 1 frame"):
        check_length(0)
