"""VQVAE: codes, sizes, filling in front, settings that contradict each other."""

import pytest
import torch

from opensora.layers.interfaces import Reconstruction
from opensora.registry import MODELS, build

SMALL = dict(type="VQVAE", latent_channels=8, num_codes=16, channels=16, num_res_layers=1)


def made(**changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build(MODELS, {**SMALL, **changes}).eval()


@pytest.mark.parametrize("form", [{}, {"causal": True, "norm": "pixel", "downsample": (4, 8, 8)}])
@torch.no_grad()
def test_codes_say_everything(form: dict) -> None:
    vae, video = (
        made(**form, latent_mean=[0.5] * 8, latent_std=[2.0] * 8),
        torch.rand(2, 3, 9, 16, 24) * 2 - 1,
    )
    codes = vae.encode_codes(video)
    assert codes.dtype == torch.int64 and codes.max() < 16
    assert tuple(codes.shape[1:]) == vae.latent_shape(9, 16, 24)
    assert torch.equal(vae.decode_codes(codes, 9), vae.decode(vae.encode(video), 9))
    assert not hasattr(vae, "posterior")


@torch.no_grad()
def test_copies_of_the_first_frame_fill_up_in_front() -> None:
    vae, video = made(), torch.rand(1, 3, 6, 16, 16) * 2 - 1
    filled = torch.cat((video[:, :, :1], video[:, :, :1], video), 2)
    assert torch.equal(vae.encode(video), vae.encode(filled))
    assert torch.equal(vae.decode(vae.encode(video), 6), vae.decode(vae.encode(filled), 8)[:, :, 2:])
    with pytest.raises(ValueError, match="2 latent frames are a clip of 5 to 8 frames"):
        vae.decode(vae.encode(video), 4)


def test_training_reaches_every_parameter_and_reports() -> None:
    vae, video = made().train(), torch.rand(2, 3, 5, 16, 16) * 2 - 1
    out = vae(video)
    assert isinstance(out, Reconstruction) and out.video.shape == video.shape
    assert 1 <= out.report["perplexity"] <= 16
    (out.video.square().mean() + out.regularizer.mean()).backward()
    assert all(p.grad is not None for p in vae.parameters())
    assert vae.last_layer.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"downsample": (4, 4, 8)}, "use powers of 2, and one for height and width"),
        ({"downsample": (3, 4, 4)}, "downsample=\\(3, 4, 4\\)"),
        ({"causal": True}, "norm='batch': it sees later frames"),
        ({"micro_frame_size": 5}, "only the causal form runs in chunks"),
    ],
)
def test_settings_that_contradict(changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(**changes)
