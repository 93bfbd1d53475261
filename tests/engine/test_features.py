"""Features give what encoders give, and are refused where they would not."""

import json

import pytest
import torch

from opensora.engine.features import (
    describe_vae,
    encode_moments,
    hash_weights,
    latents_of,
    moments_are_drawn,
    settings_of,
    task_on_features,
)
from opensora.registry import MODELS, build
from opensora.utils.random import Draws

IMAGE = {"type": "ImageVAE", "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4}
TEMPORAL = {"type": "TemporalVAE", "channels": 8, "num_res_blocks": 1, "num_groups": 4}
VIDEO = {
    "type": "VideoVAE",
    "latent_channels": 4,
    "channels": 32,
    "channel_multipliers": (1, 1, 1, 1),
    "num_res_blocks": 1,
    "micro_frame_size": 5,
    "latent_mean": [0.1, -0.2, 0.3, 0.4],
    "latent_std": [0.9, 1.1, 0.7, 1.3],
}
VAES = {
    "ImageVAE": IMAGE,
    "VideoVAE": VIDEO,
    "StackedVAE": {"type": "StackedVAE", "spatial": IMAGE, "temporal": TEMPORAL},
}


def made(name, dtype=torch.float32):
    torch.manual_seed(0)
    return build(MODELS, VAES[name]).eval().requires_grad_(False).to(dtype)


def header(cfg, **changes):
    """Return the header of features of a config, after a round through JSON."""
    torch.manual_seed(0)
    vae = {**describe_vae(build(MODELS, cfg["vae"]), cfg["vae"])}
    found = {"encoders": {"dtype": "fp32", "vae": vae, "text_encoder": None}, "sample_posterior": None}
    return json.loads(json.dumps({**found, **changes}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("name", VAES)
def test_latents_of_moments_are_the_encoders_bits(name, sampled, dtype):
    vae, other = made(name, dtype), made(name, dtype)
    for parameter in other.parameters():
        parameter.data.fill_(float("nan"))  # the weights are not used
    for frames in (1, 9):
        clips = Draws(0, (3, 4)).uniform("video", 0, (2, 3, frames, 16, 24)) * 2 - 1
        rows = [Draws(7, [n], 2) if sampled else None for n in (3, 4)]
        live = torch.cat(
            [vae.encode(clip[None].to(dtype), row) for clip, row in zip(clips, rows, strict=True)]
        )
        moments = [encode_moments(vae, clip, row) for clip, row in zip(clips, rows, strict=True)]
        stored = torch.stack([part.to(dtype) for part in moments])  # the vae's type holds them exactly
        assert torch.equal(latents_of(other, stored, Draws(7, (3, 4), 2) if sampled else None), live)


def test_only_a_stacked_autoencoder_draws_before_its_posterior():
    assert [name for name in VAES if moments_are_drawn(made(name))] == ["StackedVAE"]


def test_settings_hold_all_that_changes_numbers_and_nothing_else():
    settings = settings_of(VIDEO)
    assert settings["micro_frame_size"] == 5 and settings["temporal_overlap"] is True
    assert settings == settings_of({**VIDEO, "micro_batch_size": 7, "tile_size": 4, "from_pretrained": "x"})
    assert settings != settings_of({**VIDEO, "micro_frame_size": 9})
    stacked = VAES["StackedVAE"]
    assert settings_of(stacked) == settings_of({**stacked, "spatial": {**IMAGE, "micro_batch_size": 9}})
    assert settings_of(stacked) != settings_of({**stacked, "spatial": {**IMAGE, "scaling_factor": 1.0}})


def test_hashes_of_weights_see_every_number_and_name():
    vae = made("VideoVAE")
    before = hash_weights(vae)
    assert before == hash_weights(made("VideoVAE"))
    weight = next(iter(vae.decoder.parameters()))
    weight.data.view(-1)[0] += 1e-6
    assert hash_weights(vae) != before


# Refusals

MODEL = {
    "type": "STDiT3",
    "hidden_size": 24,
    "depth": 1,
    "num_heads": 2,
    "conditions": {"size": {"type": "SizeCondition"}},
}
CFG = {
    "model": MODEL,
    "vae": VIDEO,
    "text_encoder": None,
    "dtype": "fp32",
    "sample_posterior": False,
    "validate_every": 0,
    "validation": {"sample": True},
    "noise_augmentation": None,
}


def run_on(cfg, head):
    from opensora.engine.latent_diffusion import LatentDiffusion

    torch.manual_seed(0)
    return task_on_features(LatentDiffusion.from_config, cfg, head)(cfg)


@pytest.mark.parametrize("vae", [None, VIDEO])
def test_the_autoencoder_keeps_its_shape_and_loses_its_weights(vae):
    task = run_on({**CFG, "vae": vae}, header(CFG))
    assert all(parameter.is_meta for parameter in task.vae.parameters())
    assert task.vae.latent_shape(9, 16, 24) == made("VideoVAE").latent_shape(9, 16, 24)
    assert task.model.x_embedder.proj.in_channels == 4
    task.place(torch.device("cpu"), torch.bfloat16)
    moments = torch.randn(1, 2, 4, 3, 2, 3)
    assert torch.equal(latents_of(task.vae, moments), latents_of(made("VideoVAE"), moments))


def test_statistics_of_a_stacked_autoencoder_are_kept_and_cast():
    cfg = {**CFG, "vae": VAES["StackedVAE"]}
    task = run_on({**cfg, "vae": None}, header(cfg, sample_posterior=False))
    task.place(torch.device("cpu"), torch.bfloat16)
    moments = torch.randn(1, 2, 4, 3, 2, 3)
    assert torch.equal(latents_of(task.vae, moments), latents_of(made("StackedVAE", torch.bfloat16), moments))


def test_the_weights_stay_where_validation_decodes():
    assert not next(run_on({**CFG, "validate_every": 5}, header(CFG)).vae.parameters()).is_meta


OTHER = header(CFG)
OTHER["encoders"]["vae"]["weights"] = "0" * 32
TEXT = {"type": "TextCondition", "text_width": 6, "text_length": 5}
NOISY = {"type": "FrameCondition", "classes": {"v2v_head_noisy": 1.0}}
WRONG = {
    "settings": ({"vae": {**VIDEO, "micro_frame_size": 9}}, None, "vae: micro_frame_size=9, .* made with 5"),
    "statistics": (
        {"vae": {**VIDEO, "latent_std": [1.0] * 4}},
        None,
        r"vae: latent_std=\[1.0, 1.0, 1.0, 1.0\], .*",
    ),
    "weights": (
        {},
        OTHER,
        "vae: these features were made with other weights .*; set what they were made with",
    ),
    "decoding": (
        {"vae": None, "validate_every": 5},
        None,
        "validation.sample=True decodes a sample, and vae is",
    ),
    "posterior": (
        {"sample_posterior": True},
        header(CFG, sample_posterior=False),
        "sample_posterior=True: these",
    ),
    "captions": ({"model": {**MODEL, "conditions": {"text": TEXT}}}, None, "these features have no captions"),
    "references": ({"model": {**MODEL, "conditions": {"frames": NOISY}}}, None, "frames changes pixels"),
    "degraded": (
        {"noise_augmentation": {"gaussian_pixel": {"probability": 0.5, "strength": 0.4}}},
        None,
        "noise_augmentation changes pixels, and these data are features",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused(case):
    changes, head, said = WRONG[case]
    with pytest.raises(ValueError, match=said):
        run_on({**CFG, **changes}, head or header(CFG))


def test_an_autoencoder_is_not_trained_on_features():
    with pytest.raises(ValueError, match="an autoencoder is trained on clips"):
        task_on_features(None, {"vae": VIDEO}, header(CFG))


def test_an_argument_that_is_new_since_then_has_its_default():
    head = header(CFG)
    for name in ("settings", "arguments"):
        del head["encoders"]["vae"][name]["initial_logvar"]
    run_on(CFG, head)
    with pytest.raises(ValueError, match="initial_logvar=-5.0"):
        run_on({**CFG, "vae": {**VIDEO, "initial_logvar": -5.0}}, head)
