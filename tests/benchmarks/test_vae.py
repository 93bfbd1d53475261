"""The benchmark of the autoencoder: which convolutions are bare, and its measure of error."""

import pytest
import torch

from benchmarks import pieces, vae


def test_bare_convolutions_are_those_of_the_definition():
    products = vae.bare(5, "decode", "bf16")
    model = vae.make_model("bf16", "whole")
    layers = [m for m in model.decoder.modules() if isinstance(m, torch.nn.Conv3d | torch.nn.Conv2d)]
    assert len(products.calls) == len(layers)
    values = [x for _, args, kwargs in products.calls for x in (*args, *kwargs.values())]
    tensors = [x for x in values if isinstance(x, torch.Tensor)]
    assert all(x.dtype == torch.bfloat16 and x.is_contiguous() for x in tensors)
    assert sum(x.shape == (32, 32, 3, 3, 3) for x in tensors) == 5
    function, args, _ = products.calls[-1]
    assert function is torch.nn.functional.conv3d
    assert args[0].shape[1:] == (32, 10, 128, 128)  # two zero frames before the eight that are decoded


def test_peak_signal_to_noise_ratio():
    x = torch.tensor([0.0, 2.0])
    assert vae.psnr(x, x + 0.2) == pytest.approx(20.0)


def test_shipped_settings_are_settings_of_the_autoencoder():
    assert vae.make_model("fp32", "shipped").micro_frame_size == 17


def test_every_mode_of_the_streaming_layout_runs():
    for mode in pieces.MODES:
        pieces.network(5, "encode", mode)()
    assert [pieces.part_lengths(n, 16) for n in (5, 17, 40)] == [[5], [17], [17, 16, 7]]
