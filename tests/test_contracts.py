"""Every registered component keeps its contract, at its smallest size. A new name needs an entry here."""

import inspect

import pytest
import torch

from opensora.layers.interfaces import Injection, Posterior, Reconstruction
from opensora.registry import CONDITIONS, DATASETS, MODELS, SCHEDULERS, build, resolve
from opensora.schedulers.guidance import Guidance
from opensora.utils.random import Draws

TEXT = {"type": "TextCondition", "text_width": 6, "text_length": 5}
CONDITION = {
    "TextCondition": TEXT,
    "SizeCondition": {"type": "SizeCondition", "fields": ("fps", "height", "width", "num_frames")},
    "FrameCondition": {"type": "FrameCondition", "always_inject": True},
}
_SMALL = {"hidden_size": 24, "depth": 1, "num_heads": 2, "in_channels": 4}
DENOISER = {
    name: {"type": name, **_SMALL, "window_size": (-1, 2, 2), "spatial_rope": True}
    for name in ("STDiT3", "STDiT3-XL/2", "STDiT3-3B/2")
}
_IMAGE = {
    "type": "ImageVAE",
    "block_out_channels": (8, 8, 8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
_TEMPORAL = {"type": "TemporalVAE", "channels": 8, "num_res_blocks": 1, "num_groups": 4}
AUTOENCODER = {
    "VideoVAE": {
        "type": "VideoVAE",
        "latent_channels": 4,
        "channels": 32,
        "channel_multipliers": (1, 1, 1, 1),
        "num_res_blocks": 1,
    },
    "CausalVideoVAE": {"type": "CausalVideoVAE", "channels": 32, "channel_multipliers": (1, 1, 1, 1)},
    "VQVAE": {"type": "VQVAE", "latent_channels": 8, "num_codes": 16, "channels": 16, "num_res_layers": 1},
    "ImageVAE": _IMAGE,
    "TemporalVAE": _TEMPORAL,
    "StackedVAE": {"type": "StackedVAE", "spatial": _IMAGE, "temporal": _TEMPORAL},
}
# Their contract needs weights: tests/models/test_text_encoders.py.
TEXT_ENCODER = {"T5Encoder", "CLIPTextEncoder", "SentenceEncoder"}
OTHER = {"PatchDiscriminator", "PerceptualDistance"}
SCHEDULER = {"RectifiedFlow": {"type": "RectifiedFlow", "num_sampling_steps": 2}}
FRAME_MASK = {"FrameMask": {"type": "FrameMask", "ratios": {"random": 0.5}}}


def test_every_registered_name_is_here():
    for registry in (MODELS, CONDITIONS, SCHEDULERS, DATASETS):
        registry.get("nothing")  # imports every module of the package
    assert set(MODELS.module_dict) == {*DENOISER, *AUTOENCODER, *TEXT_ENCODER, *OTHER}
    assert set(CONDITIONS.module_dict) == set(CONDITION)
    assert set(SCHEDULERS.module_dict) == {*SCHEDULER, *FRAME_MASK}
    assert set(DATASETS.module_dict) == {"VideoDataset", "FeatureDataset", "ShapesDataset"}  # tests/datasets


def inputs(frames=3):
    draws = Draws(0, (0, 1))
    x = draws.normal("x", 0, (2, 4, frames, 5, 6))
    batch = {"text_features": draws.normal("text", 0, (2, 5, 6)), "fps": torch.tensor([24.0, 30.0])}
    sizes = {"height": 40.0, "width": 48.0, "num_frames": 9.0}
    batch |= {name: torch.full((2,), value) for name, value in sizes.items()}
    return x, batch, draws


@pytest.mark.parametrize("name", DENOISER)
def test_denoisers(name):
    torch.manual_seed(0)
    model = build(MODELS, {**DENOISER[name], "conditions": CONDITION}).eval()
    x, batch, _ = inputs()
    cond = dict(batch)
    for condition in model.conditions.values():
        cond |= condition.prepare(batch, x, None)
    drop = {key: torch.tensor([True, False]) for key in model.conditions}
    known = torch.tensor([[True, False, False], [False, False, False]])
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        with torch.no_grad():
            for extra in ({}, {"drop": drop}, {"known": known}):
                out = model(x, torch.tensor([0.3, 1.0]), cond, **extra)
                assert out.dtype == torch.float32 and torch.isfinite(out).all()
                assert out.shape[0] == 2 and out.shape[1] in (4, 8) and out.shape[2:] == x.shape[2:]


@pytest.mark.parametrize("name", AUTOENCODER)
def test_autoencoders(name):
    torch.manual_seed(0)
    vae = build(MODELS, AUTOENCODER[name]).eval()
    channels = 4 if name == "TemporalVAE" else 3
    for frames in (1, 17):
        video = Draws(0, [0]).normal("video", 0, (1, channels, frames, 16, 24)).clamp(-1, 1)
        with torch.no_grad():
            z = vae.encode(video)
            assert z.shape == (1, vae.latent_channels, *vae.latent_shape(frames, 16, 24))
            assert torch.equal(vae.encode(video), z)
            sampled = vae.encode(video, Draws(0, [0]))
            assert sampled.shape == z.shape
            assert torch.equal(vae.encode(video, Draws(0, [0])), sampled)
            if name != "VQVAE":  # latents of a codebook have no posterior
                assert not torch.equal(sampled, z)
                posterior = vae.posterior(video)
                assert isinstance(posterior, Posterior)
                torch.testing.assert_close(vae.normalize(posterior.mean), z)
            torch.testing.assert_close(vae.normalize(vae.denormalize(z)), z, atol=1e-5, rtol=1e-5)
            whole = vae.decode(z, frames)
            assert whole.shape == video.shape
            assert torch.equal(torch.cat(list(vae.decode_stream(z, frames)), dim=2), whole)
            out = vae(video, Draws(0, [0]))
            assert isinstance(out, Reconstruction)
            assert out.video.shape == video.shape and out.regularizer.shape == (1,)
    assert vae.legal_length(17) == 17 and 1 <= vae.legal_length(20) <= 20
    assert len(vae.stride) == 3


@pytest.mark.parametrize("name", CONDITION)
def test_conditions(name):
    wanted = inspect.signature(resolve(CONDITIONS, name)).parameters
    facts = {"hidden_size": 24, "patch_size": (1, 2, 2), "in_channels": 4}
    condition = build(CONDITIONS, CONDITION[name], **{k: v for k, v in facts.items() if k in wanted})
    x, batch, draws = inputs()
    cond = {**batch, **condition.prepare(batch, x, draws)}
    assert all(isinstance(value, torch.Tensor) and value.shape[0] == 2 for value in cond.values())
    for drop in (None, torch.tensor([True, False])):
        part = condition(cond, drop)
        assert isinstance(part, Injection)
        assert any(value is not None for value in vars(part).values())


@pytest.mark.parametrize("name", SCHEDULER)
def test_schedulers(name):
    scheduler = build(SCHEDULERS, SCHEDULER[name])
    x, batch, draws = inputs()
    weight = torch.ones((), requires_grad=True)

    def model(x, t, cond, drop, known=None):
        return torch.cat((x, x), 1) * weight

    mask = torch.tensor([[0.0, 1, 1], [1, 1, 1]])
    loss = scheduler.training_loss(model, x, batch, frame_mask=mask, drop={}, draws=draws)
    assert loss.shape == (2,) and loss.dtype == torch.float32
    loss.sum().backward()
    assert torch.isfinite(weight.grad)
    z = scheduler.sample(model, x, batch, Guidance({}), known=x, frame_mask=mask, draws=draws)
    assert z.shape == x.shape and torch.equal(z[0, :, 0], x[0, :, 0])


@pytest.mark.parametrize("name", FRAME_MASK)
def test_frame_masks(name):
    mask = build(SCHEDULERS, FRAME_MASK[name]).draw(torch.empty(2, 4, 7, 1, 1), Draws(0, (0, 1)))
    assert mask.shape == (2, 7) and mask.min() >= 0 and mask.max() == 1
