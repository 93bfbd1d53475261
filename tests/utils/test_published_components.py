import pytest

from opensora.utils.published_components import translate_component
from opensora.utils.published_models import latent_statistics


def test_kernel_is_frames_first_here():
    notes: list[str] = []
    out = translate_component(
        {"type": "STDiT3-XL/2", "kernel_size": [8, 7, -1], "use_spatial_rope": True}, notes
    )
    assert out["window_size"] == (-1, 8, 7) and out["spatial_rope"] is True
    assert "model.kernel_size=[8, 7, -1] -> model.window_size=(-1, 8, 7)" in notes


def test_small_models_translate_too():
    config = {"type": "STDiT3", "hidden_size": 48, "depth": 2, "caption_channels": 32, "model_max_length": 12}
    out = translate_component({**config, "in_channels": 4, "skip_y_embedder": True}, version="1.2")
    assert (out["type"], out["hidden_size"], out["depth"], out["in_channels"]) == ("STDiT3", 48, 2, 4)
    text = out["conditions"]["text"]
    assert text == {"type": "TextCondition", "projected": True, "text_width": 32, "text_length": 12}


def test_video_vae_layout_and_statistics():
    config = {"type": "OpenSoraVAE_V1_3", "ch": 32, "ch_mult": [2, 1], "num_res_blocks": 1, "z_channels": 8}
    out = translate_component(
        {**config, "normalization": "video_5frames", "micro_batch_size": 1, "micro_frame_size": 17}
    )
    assert (out["channels"], out["channel_multipliers"], out["latent_channels"]) == (32, (2, 1), 8)
    assert (
        out["latent_mean"] == latent_statistics()["video_5frames"]["mean"] and out["micro_frame_size"] == 17
    )
    assert translate_component({**config, "micro_frame_size": 17})["micro_frame_size"] is None


@pytest.mark.parametrize(
    ("options", "tiles"),
    [
        ({}, (None, None, None)),
        ({"tile_size": 4}, (None, None, None)),
        ({"use_tiled_conv3d": True}, (16, None, None)),
        ({"use_tiled_conv3d": True, "tile_size": 4, "tiled_dim": 2, "num_tiles": 3}, (4, 2, 3)),
    ],
)
def test_tiles_need_their_switch(options, tiles):
    out = translate_component({"type": "OpenSoraVAE_V1_3", **options})
    assert (out["tile_size"], out["tile_axis"], out["num_tiles"]) == tiles


def test_stacked_vae_with_parts_in_published_keys():
    spatial = {"act_fn": "silu", "block_out_channels": [8, 8], "sample_size": 32, "scaling_factor": 0.13}
    temporal = {"in_out_channels": 4, "filters": 8, "temporal_downsample": [False, True]}
    out = translate_component(
        {
            "type": "OpenSoraVAE_V1_2",
            "spatial": spatial,
            "temporal": temporal,
            "shift": [0, 1],
            "micro_batch_size": 2,
        }
    )
    # The published code ignores the stored scaling factor.
    assert out["spatial"] == {
        **{"type": "ImageVAE", "block_out_channels": (8, 8), "micro_batch_size": 2, "scaling_factor": 0.18215}
    }
    assert out["temporal"] == {
        "type": "TemporalVAE",
        "in_channels": 4,
        "channels": 8,
        "temporal_down": (False, True),
    }
    assert out["shift"] == (0, 1) and out["micro_frame_size"] == 17


def test_discriminators_whose_names_differ_in_case_only():
    upper = translate_component({"type": "N_LAYER_DISCRIMINATOR_3D", "input_nc": 3, "use_actnorm": False})
    lower = translate_component({"type": "N_Layer_DISCRIMINATOR_3D"})
    assert (upper["kernel_size"], upper["time_halvings"]) == (3, 2)
    assert (lower["kernel_size"], lower["time_halvings"]) == (4, 1)
    assert upper["type"] == lower["type"] == "PatchDiscriminator" and "use_actnorm" not in upper


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({"type": "rflowe"}, ["'rflowe'", "Did you mean 'rflow'"]),
        ({"type": "DISCRIMINATOR_3D"}, ["no counterpart"]),
        ({"type": "PixArt-XL/2"}, ["'PixArt-XL/2'", "in our form"]),
        ({}, ["type=None"]),
        ({"type": "rflow", "cfg_scael": 3}, ["scheduler.cfg_scael=3", "did you mean 'cfg_scale'"]),
        ({"type": "STDiT3-XL/2", "zzz": 1}, ["model.zzz=1", "no such key", "docs/config.md"]),
        ({"type": "STDiT3-XL/2", "drop_path": 0.1}, ["model.drop_path=0.1", "only 0.0"]),
        ({"type": "OpenSoraVAE_V1_3", "normalization": "image"}, ["'image'", "video_5frames"]),
        ({"type": "N_LAYER_DISCRIMINATOR_3D", "use_actnorm": True}, ["use_actnorm=True", "only False"]),
    ],
)
def test_components_without_counterpart_are_refused(config, parts):
    with pytest.raises(ValueError) as error:
        translate_component(config)
    for part in parts:
        assert part in str(error.value)


def test_version_is_checked():
    with pytest.raises(ValueError, match=r"'1\.2' or '1\.3'"):
        translate_component({"type": "rflow"}, version="2.0")
