from pathlib import Path

import pytest

from opensora.utils.config import execute, load_config, plain
from opensora.utils.published_components import COMPONENTS
from opensora.utils.published_config import bases_of, is_published, translate_config, translate_guidance

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "tests/data/published"
NAMES = sorted(path.relative_to(PUBLISHED).as_posix() for path in PUBLISHED.rglob("*.py"))

# Where our file of the same name may say something else, and why.
WEIGHTS = {"model.from_pretrained", "vae.from_pretrained", "text_encoder.from_pretrained"}
WEIGHTS |= {"discriminator.from_pretrained"}  # ours name the hub, or what the command line must give
DIFFERENT = {
    "opensora-v1-3/train/adapt.py": {
        "model.ignore_keys"
    },  # loading is strict here, so it names what may lack
    "opensora-v1-3/train/stage1_nk.py": {"model.ignore_keys"},
    "opensora-v1-3/train/stage1.py": {"model.ignore_keys"},
    "opensora-v1-3/inference/v2v.py": {
        "cond_type",
        "save_dir",
    },  # published with i2v_head; ours does what it says
}


def differences(a, b, path: str = "") -> set[str]:
    """Return the dotted paths at which two configs differ, in value or in the type of a value.

    Not those of `trained`: what weights have seen in training is in no published file.
    """
    if path == "trained":
        return set()
    if isinstance(a, dict) and isinstance(b, dict):
        found = set()
        for key in {**a, **b}:
            where = f"{path}.{key}" if path else str(key)
            found |= differences(a[key], b[key], where) if key in a and key in b else {where}
        return found
    return set() if a == b and type(a) is type(b) else {path}


def read(name: str) -> dict:
    return execute(PUBLISHED / name)


def diffusion(**changes) -> dict:
    """Return a small published 1.3 training config."""
    parts = {
        "model": {"type": "STDiT3-XL/2"},
        "vae": {"type": "OpenSoraVAE_V1_3"},
        "text_encoder": {"type": "t5", "from_pretrained": "x"},
        "scheduler": {"type": "rflow"},
        "dataset": {"type": "VariableVideoTextDataset", "transform_name": "resize_crop"},
        "epochs": 1,
    }
    return {**parts, **changes}


# Whole files


def test_all_published_files_are_here():
    assert len(NAMES) == 32


@pytest.mark.parametrize("name", NAMES)
def test_translation_is_our_file_of_that_name(name):
    assert is_published(read(name))
    ours = plain(load_config([str(ROOT / "configs" / name)]))
    found = differences(translate_config(read(name)), ours)
    assert found - WEIGHTS == DIFFERENT.get(name, set())


def test_published_v2v_is_our_i2v():
    ours = plain(load_config([str(ROOT / "configs/opensora-v1-3/inference/i2v.py")]))
    found = differences(translate_config(read("opensora-v1-3/inference/v2v.py")), ours)
    assert found - WEIGHTS == {"save_dir"}


@pytest.mark.parametrize("name", NAMES)
def test_translation_is_written_down(name):
    published, notes = read(name), []
    translate_config(published, notes)
    text = "\n".join(notes)
    assert notes[0].startswith("read as a ")
    kept = {  # keys and values that are the same here
        *(
            "seed",
            "dtype",
            "outputs",
            "wandb",
            "plugin",
            "grad_clip",
            "num_workers",
            "epochs",
            "load",
            "log_every",
        ),
        *(
            "ckpt_every",
            "ema_decay",
            "accumulation_steps",
            "bucket_config",
            "resolution",
            "aspect_ratio",
            "fps",
        ),
        *(
            "frame_interval",
            "save_fps",
            "save_dir",
            "batch_size",
            "condition_frame_length",
            "align",
            "aes",
            "flow",
        ),
        *("num_eval_timesteps", "base", "base_step_time", "bin_size", "save_text_features", "num_samples"),
        *("save_compressed_text_features", "cal_stats", "log_stats_every", "cond_type"),
    }
    for key in set(published) - kept:
        if key in ("num_frames", "image_size") and "dataset" not in published:
            continue
        assert key in text, key
        parts = published[key] if isinstance(published[key], dict) and "type" in published[key] else {}
        for part in set(parts) - {
            "from_pretrained",
            "qk_norm",
            "data_path",
            "num_frames",
            "frame_interval",
            "image_size",
        }:
            moved = COMPONENTS[parts["type"]].keys.get(part, "")
            moved = moved if isinstance(moved, str) else moved[0]
            assert part in text or moved == part, f"{key}.{part}"


def test_warmup_was_read_by_nobody():
    notes: list[str] = []
    out = translate_config(diffusion(warmup=1000), notes)
    assert out["lr_schedule"]["warmup_steps"] == 0
    assert any("warmup=1000 -> dropped: nothing read it" in note for note in notes)
    assert translate_config(diffusion(warmup_steps=7))["lr_schedule"]["warmup_steps"] == 7


def test_published_defaults_are_made_explicit():
    out = translate_config(diffusion())
    assert out["condition_dropout"] == {("text",): 0.1}
    assert out["model"]["conditions"]["frames"]["always_inject"] is True
    assert (out["model"]["final_layer"], out["model"]["shift_window"]) == ("v1.3", False)
    assert (out["seed"], out["ema_decay"], out["optimizer"]["eps"], out["grad_clip"]) == (
        1024,
        0.9999,
        1e-8,
        0.0,
    )
    assert (out["log_every"], out["ckpt_every"], out["activation_checkpoint"]) == (1, 0, False)
    assert out["text_encoder"]["max_length"] == 120 and out["text_encoder"]["dtype"] == "bf16"
    vae = out["vae"]
    assert vae["micro_batch_size"] is vae["micro_frame_size"] is vae["latent_mean"] is None
    assert vae["temporal_overlap"] is False and out["sample_posterior"] is True


def test_the_two_versions_differ_in_what_their_code_did():
    old = translate_config(diffusion(vae={"type": "OpenSoraVAE_V1_2"}))
    new = translate_config(diffusion())
    assert set(old["model"]["conditions"]) == {"text", "size"}
    assert set(new["model"]["conditions"]) == {"text", "size", "frames"}
    assert (old["model"]["round_timestep"], new["model"]["round_timestep"]) == (True, False)
    assert (old["scheduler"]["frame_factor"], new["scheduler"]["frame_factor"]) == ("chunk17", "stride4")
    assert (old["lr_schedule"]["initial_lr"], new["lr_schedule"]["initial_lr"]) == (0.0, 1e-6)
    assert set(old["guidance"]["scales"]) == {"text"}


def test_features_tell_the_version_by_their_channels():
    def feature(channels: int) -> dict:
        config = diffusion(dataset={"type": "BatchFeatureDataset"}, vae_out_channels=channels)
        del config["vae"], config["text_encoder"]
        return translate_config(config)

    assert "frames" not in feature(4)["model"]["conditions"]
    wide = feature(16)
    assert "frames" in wide["model"]["conditions"] and wide["model"]["in_channels"] == 16
    assert wide["vae"] is None and wide["model"]["conditions"]["text"]["text_width"] == 4096


def test_inference_rounds_as_the_released_code_only_in_bf16():
    config = read("opensora-v1-3/inference/t2v.py")
    out = translate_config(config)
    assert out["model"]["compat_bf16"] and out["scheduler"]["compat_bf16"]
    assert out["model"]["conditions"]["frames"]["always_inject"] is False
    assert out["text_encoder"]["dtype"] == "fp32"
    out = translate_config({**config, "dtype": "fp32"})
    assert not out["model"]["compat_bf16"] and not out["scheduler"]["compat_bf16"]


def test_components_that_no_shipped_config_uses():
    out = translate_config(diffusion(text_encoder={"type": "clip", "from_pretrained": "x"}))
    text = {"type": "CLIPTextEncoder", "from_pretrained": "x", "width": 768, "max_length": 77, "pooled": True}
    assert out["text_encoder"] == {**text, "dtype": "bf16"}
    out = translate_config(diffusion(vae={"type": "VideoAutoencoderKL", "micro_batch_size": 2}))
    assert (out["vae"]["type"], out["vae"]["micro_batch_size"], out["vae"]["layers_per_block"]) == (
        "ImageVAE",
        2,
        2,
    )
    assert out["vae"]["from_pretrained"] is None
    assert translate_config(diffusion(text_encoder=None))["text_encoder"] is None
    out = translate_config(diffusion(model={"type": "STDiT3-3B/2"}))
    assert out["model"]["type"] == "STDiT3-3B/2" and out["model"]["qk_norm"] is True


# Dropped and given conditions

TABLE = {"keep": 0.89, "text": 0.01, "cond": 0.06, "null": 0.04}


def with_drop(table: dict, **changes) -> dict:
    scheduler = {"type": "rflow", "drop_condition": table}
    return diffusion(scheduler=scheduler, mask_types={"i2v": 1, "none": 2}, **changes)


def test_drop_condition_names_what_is_kept():
    notes: list[str] = []
    out = translate_config(with_drop(TABLE), notes)
    assert out["condition_dropout"] == {("frames",): 0.01, ("text",): 0.06, ("text", "frames"): 0.04}
    assert out["model"]["conditions"]["frames"]["classes"] == {"i2v_head": 1, "none": 2}
    # Text is dropped as often as class_dropout_prob says for clips without frames.
    assert not any("clips without given frames" in note for note in notes)


def test_drop_condition_is_a_table_of_weights():
    out = translate_config(with_drop({"keep": 3, "cond": 1}))
    assert out["condition_dropout"] == {("text",): 0.25}


def test_a_dropout_that_the_table_changes_is_said():
    notes: list[str] = []
    translate_config(with_drop(TABLE, model={"type": "STDiT3-XL/2", "class_dropout_prob": 0.3}), notes)
    assert any("class_dropout_prob=0.3 -> 0.1" in note for note in notes)


def test_drop_condition_without_mask_types_was_not_read():
    notes: list[str] = []
    out = translate_config(diffusion(scheduler={"type": "rflow", "drop_condition": TABLE}), notes)
    assert out["condition_dropout"] == {("text",): 0.1}
    assert any("drop_condition -> dropped" in note for note in notes)


def test_no_class_dropout_is_no_dropout():
    out = translate_config(diffusion(model={"type": "STDiT3-XL/2", "class_dropout_prob": 0.0}))
    assert out["condition_dropout"] == {}


def test_misspelled_mask_name_is_corrected():
    out = translate_config(diffusion(mask_ratios={"intepolate": 0.1, "random": 0.2}))
    assert out["frame_mask"] == {"type": "FrameMask", "ratios": {"interpolate": 0.1, "random": 0.2}}


def test_noise_augmentation():
    config = {"noise_prob": {"gaussian_pixel": 0.5}, "noise_strength": {"gaussian_pixel": 0.4}}
    out = translate_config(diffusion(noise_augmentation=True, noise_disable_threshold=400, **config))
    assert out["noise_augmentation"] == {"gaussian_pixel": {"probability": 0.5, "strength": 0.4}}
    assert out["scheduler"]["clean_above"] == 0.4
    assert translate_config(diffusion(noise_augmentation=False, **config))["noise_augmentation"] is None


# Guidance


@pytest.mark.parametrize(
    ("published", "conditioned", "scales", "rescale"),
    [
        ({}, False, {"text": (4.0, None, None)}, 0.0),
        (
            {"cfg_scale": 7.5, "use_oscillation_guidance": True, "use_flaw_fix": True},
            False,
            {"text": (7.5, 10, None)},
            0.7,
        ),
        ({"cfg_scale": 9.0, "guidance_scale": 1.0}, False, {"text": (1.0, None, None)}, 0.0),
        (
            {"cfg_scale": 3.0, "use_flaw_fix": True},
            True,
            {"frames": (3.0, None, None), "text": (3.0, None, None)},
            0.0,
        ),
        (
            {
                **{
                    "cfg_scale": 7.5,
                    "image_cfg_scale": 5.0,
                    "scale_image_weight": True,
                    "initial_image_scale": 1.5,
                },
                **{"force_num": 4, "use_oscillation_guidance_for_image": True},
            },
            True,
            {"frames": (5.0, 4, 1.5), "text": (7.5, None, None)},
            0.0,
        ),
        (
            {"use_oscillation_guidance": True, "use_oscillation_guidance_for_text": False},
            True,
            {"frames": (4.0, 10, None), "text": (4.0, None, None)},
            0.0,
        ),
    ],
)
def test_guidance(published, conditioned, scales, rescale):
    found = translate_guidance({**published, "mask_index": [0]}, conditioned)
    values = {name: tuple(scale.values()) for name, scale in found["scales"].items()}
    assert values == {name: (*scale, None) for name, scale in scales.items()}  # in all steps
    assert list(found["scales"]) == list(scales)  # the order is the order of dropping
    assert found["rescale"] == rescale


def test_training_keeps_our_guidance_unless_the_file_sets_it():
    base = translate_config(diffusion())["guidance"]
    changed = translate_config(diffusion(scheduler={"type": "rflow", "cfg_scale": 3.0}))["guidance"]
    assert base["scales"]["text"]["scale"] != changed["scales"]["text"]["scale"] == 3.0


# The rest


def test_autoencoder_training_with_a_discriminator():
    base = read("vae/train/stage3.py")
    config = {**base, "discriminator": {"type": "NLayerDiscriminator"}, "generator_factor": 0.25}
    out = translate_config({**config, "discriminator_loss_type": "vanilla", "generator_loss_type": "hinge"})
    assert out["gan"] == {
        "start": 0,
        "generator_weight": 0.25,
        "discriminator_weight": 1.0,
        "loss": "vanilla",
        "generator_loss": "hinge",
        "adaptive": True,
    }
    assert out["discriminator"]["dims"] == 2 and "model" not in out


def test_switches_of_postprocessing():
    out = translate_config(
        {**read("opensora-v1-2/inference/sample.py"), "watermark": True, "deflicker": True}
    )
    assert out["postprocess"] == [{"type": "Deflicker"}, {"type": "Watermark"}]


def test_site_local_weights_become_none_and_are_said():
    notes: list[str] = []
    out = translate_config(read("opensora-v1-3/inference/t2v.py"), notes)
    assert out["model"]["from_pretrained"] is None
    assert any(
        "<site-local: OpenSora-STDiT-v4>" in note and "--model.from_pretrained" in note for note in notes
    )


def test_translation_leaves_the_input_and_the_defaults_alone():
    before, config = read("opensora-v1-3/train/adapt_i2v.py"), read("opensora-v1-3/train/adapt_i2v.py")
    first = translate_config(config)
    first["model"]["conditions"]["text"]["projected"] = True
    first["optimizer"]["lr"] = 9
    assert config == before
    assert translate_config(config)["optimizer"]["lr"] == 1e-4
    assert translate_config(config)["model"]["conditions"]["text"]["projected"] is False


def test_bases_of_a_file():
    assert "video_vae" in bases_of(read("opensora-v1-3/train/stage1.py"))
    assert "stacked_vae" in bases_of(read("opensora-v1-2/train/stage1.py"))
    assert not [name for name in bases_of(read("opensora-v1-2/train/stage1_feat.py")) if "vae" in name]


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (diffusion(epoch=3), ["epoch=3", "did you mean 'epochs'"]),
        (diffusion(qqq=3), ["qqq=3", "no such key"]),
        (diffusion(vae={"type": "OpenSoraVAE_V1_2"}, mask_types={"i2v": 1}), ["mask_types", "v1.2"]),
        (with_drop({"kep": 1}), ["drop_condition", "keep, text, cond and null"]),
        (diffusion(noise_augmentation=True, noise_prob={"a": 1}), ["same kinds"]),
        (
            {**read("vae/train/stage1.py"), "mixed_strategy": "both"},
            ["mixed_strategy='both'", "mixed_video_image"],
        ),
        (
            {**read("vae_v1_3/train/video_16z.py"), "gan_loss_confg": {"disc_stat": 0}},
            ["did you mean 'disc_start'"],
        ),
        (
            {**read("opensora-v1-2/inference/sample.py"), "super_resolution": 2.0},
            ["super_resolution=2.0", "postprocess"],
        ),
    ],
)
def test_files_without_counterpart_are_refused(config, parts):
    with pytest.raises(ValueError) as error:
        translate_config(config)
    for part in parts:
        assert part in str(error.value)
