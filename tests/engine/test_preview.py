"""Previews and networks that come and go: what sampling shows on its way, and what is in memory."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

from opensora.engine.build import build_components, build_network
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.engine.offload import Offload
from opensora.engine.preview import Previews, write_preview
from opensora.schedulers.guidance import Guidance
from opensora.schedulers.rectified_flow import RectifiedFlow
from opensora.utils.config import load_config
from opensora.utils.meta_device import meta_device
from opensora.utils.random import Draws

CONFIG = str(Path(__file__).parents[1] / "data/tiny_inference.py")
PROMPT = {"fps": 8.0, "num_frames": 13.0, "height": 16.0, "width": 24.0}


def batch(count):
    sizes = {name: torch.full((count,), value) for name, value in PROMPT.items()}
    return sizes | {"text_features": Draws(0, range(count)).normal("text", 0, (count, 4, 384))}


@pytest.fixture(scope="module")
def cfg():
    return load_config([CONFIG])


def test_the_estimate_of_a_straight_flow_is_its_end():
    v, noise = torch.randn(2, 3, 2, 1, 1), torch.randn(2, 3, 2, 1, 1)
    mask, known = torch.tensor([[0.0, 1.0], [1.0, 1.0]]), torch.zeros(2, 3, 2, 1, 1)
    seen = []
    end = RectifiedFlow(5).sample(
        lambda *args, **kw: v, noise, {}, Guidance({}), frame_mask=mask, known=known,
        on_step=lambda done, steps, estimate: seen.append(estimate()),
    )  # fmt: skip
    assert len(seen) == 5 and not end[0, :, 0].any()
    for estimate in seen:
        torch.testing.assert_close(estimate, end)


def test_previews_come_on_time_small_and_cheap(cfg, tmp_path):
    diffusion = LatentDiffusion.from_config(
        {**cfg, "scheduler": {**cfg["scheduler"], "num_sampling_steps": 6}}
    )
    decoded = []
    diffusion.vae.decoder.register_forward_hook(lambda module, args, out: decoded.append(args[0].shape))
    shown = []
    show = Previews(diffusion, 2, lambda name, frames: shown.append((name, frames)))
    plain = diffusion.sample(batch(2), Draws(1, (0, 1)))
    on_step = lambda done, steps, end: show(done, steps, lambda: zip("ab", end(), strict=True))  # noqa: E731
    z = diffusion.sample(batch(2), Draws(1, (0, 1)), on_step=on_step)
    assert torch.equal(z, plain)
    assert [name for name, _ in shown] == ["a", "b", "a", "b"]  # after steps 2 and 4, not at the end
    assert {tuple(frames.shape) for _, frames in shown} == {(3, 4, 16, 24)}
    assert set(decoded) == {(1, 4, 1, 2, 3)} and len(decoded) == 16  # single latent frames
    assert show.frames(torch.zeros(4, 1, 40, 20)).shape == (3, 1, 256, 128)
    write_preview(shown[0][1], tmp_path / "a_preview.png")
    assert [p.name for p in tmp_path.iterdir()] == ["a_preview.png"]
    with pytest.raises(ValueError, match="preview=0: use a whole number of steps from 1, or None"):
        Previews(diffusion, 0, print)


def test_only_the_network_that_works_is_in_memory(cfg):
    with meta_device():
        parts = build_components(cfg)
    diffusion, alive = LatentDiffusion.from_config(cfg, parts), {}

    def make(name):
        assert not any(old() is not None for old in alive.values())
        torch.manual_seed(0)
        network = build_network(cfg, name, parts.text_encoder).eval()
        alive[name] = weakref.ref(network)
        return network

    diffusion.offload = Offload(
        torch.device("cpu"), {name: lambda n=name: make(n) for name in ("model", "vae")}
    )
    z = diffusion.sample(batch(1), Draws(1, (0,)))
    gc.collect()
    assert list(alive) == ["model"] and alive["model"]() is None
    with diffusion.using("vae"):  # used inside: not built again
        video = diffusion.decode(z, 13)
        assert alive["vae"]() is diffusion.vae
    gc.collect()
    assert alive["vae"]() is None and next(diffusion.vae.parameters()).is_meta
    whole = LatentDiffusion.from_config(cfg)
    for name in ("model", "vae"):
        torch.manual_seed(0)
        setattr(whole, name, build_network(cfg, name, parts.text_encoder).eval())
    assert torch.equal(whole.decode(whole.sample(batch(1), Draws(1, (0,))), 13), video)
