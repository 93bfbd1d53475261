"""Every shipped config loads, fits the constructors, builds on the meta device, dumps and reloads."""

import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict

from opensora.datasets.buckets import Buckets
from opensora.registry import (
    CONDITIONS,
    DATASETS,
    LOADING_KEYS,
    MODELS,
    SCHEDULERS,
    bind,
    build,
    fill_in,
    resolve,
)
from opensora.utils.config import dump_config, execute, load_config, plain
from opensora.utils.config_defaults import base_configs
from opensora.utils.published_models import latent_statistics

ROOT = Path(__file__).parents[1]
BASES = sorted((ROOT / "configs/_base_").glob("*.py"))
FILES = sorted(path for path in (ROOT / "configs").rglob("*.py") if path.parent.name != "_base_")
IDS = [path.relative_to(ROOT / "configs").as_posix() for path in FILES]
REGISTRIES = {
    "model": MODELS,
    "vae": MODELS,
    "text_encoder": MODELS,
    "discriminator": MODELS,
    "perceptual": MODELS,
}
REGISTRIES |= {"scheduler": SCHEDULERS, "frame_mask": SCHEDULERS, "dataset": DATASETS}

# Types that configs name and that are not written yet. Take a name away when its class is there.
TO_COME: set[str] = set()

FACTS = {  # what the builder or the script fills in
    "dataset": {"seed": 0},
    "model": {"in_channels": 4},
    "conditions": {
        "hidden_size": 8,
        "patch_size": (1, 2, 2),
        "in_channels": 4,
        "text_width": 8,
        "text_length": 4,
    },
}
PRESET_SIZES = {"depth", "hidden_size", "num_heads"}  # fixed by the name of a preset such as STDiT3-XL/2


@cache
def loaded(path: Path) -> Config:
    return load_config([str(path)])


def components(values: dict) -> Iterator[tuple]:
    """Yield (where, registry, config, facts) of every component, nested ones too."""
    for slot, registry in REGISTRIES.items():
        cfg = values.get(slot)
        if cfg is None or cfg["type"] in TO_COME:
            continue
        yield slot, registry, cfg, FACTS.get(slot, {})
        for name, part in cfg.get("conditions", {}).items():
            yield f"{slot}.conditions.{name}", CONDITIONS, part, FACTS["conditions"]
        for name in ("spatial", "temporal"):
            if name in cfg:
                yield f"{slot}.{name}", MODELS, cfg[name], {}


def wanted_by(registry, cfg: dict, facts: dict) -> dict[str, object]:
    """Return the arguments and defaults of a type that the given facts leave open."""
    leave_out = set(facts) | (PRESET_SIZES if "/" in cfg["type"] else set())
    parameters = inspect.signature(resolve(registry, cfg["type"])).parameters
    return {name: p.default for name, p in parameters.items() if name not in leave_out}


# The _base_ files


@pytest.mark.parametrize("path", BASES, ids=lambda path: path.stem)
def test_installed_copy_is_the_base_file(path):
    found = base_configs().get(path.stem)
    assert found == execute(path), "run python scripts/update_config_defaults.py"


def test_installed_copy_has_no_more_files():
    assert set(base_configs()) == {path.stem for path in BASES}


@pytest.mark.parametrize("path", BASES, ids=lambda path: path.stem)
def test_every_key_of_a_base_has_a_comment(path):
    """Lines that open or close a dict need none, nor do a few names that say it."""
    lines = path.read_text(encoding="utf-8").split('"""', 2)[2].splitlines()
    bare = [
        line.strip()
        for line in lines
        if re.match(r"\s*\w+ ?= ?", line) and "#" not in line and not line.rstrip().endswith(("(", "["))
    ]
    clear = ("type=", "num_sampling_steps=", "latent_channels=", "frames=dict(scale")
    assert [line for line in bare if not line.startswith(clear)] == []


def test_keys_that_several_bases_have_agree():
    own = {
        "dataset",
        "vae",
        "text_encoder",
        "num_workers",
        "prefetch_factor",
        "batch_size",
        "resolution",
        "save_dir",
    }
    seen: dict[str, object] = {}
    for values in base_configs().values():
        for key, value in values.items():
            if key not in own:
                assert seen.setdefault(key, value) == value, key


def test_no_key_is_a_method_of_a_config():
    keys = {key for values in base_configs().values() for key in values}
    taken = {name for name in (*dir(Config), *dir(ConfigDict)) if not name.startswith("__")}
    assert not keys & taken


def test_bases_list_every_constructor_argument_with_its_default():
    count = 0
    for values in base_configs().values():
        for where, registry, cfg, facts in components(values):
            wanted = wanted_by(registry, cfg, facts)
            given = {key: value for key, value in cfg.items() if key != "type"}
            extra = set(given) - set(wanted)
            assert extra <= set(LOADING_KEYS), f"{where}: {extra} is no argument of {cfg['type']}"
            assert set(wanted) <= set(given), (
                f"{where}: {set(wanted) - set(given)} of {cfg['type']} is missing"
            )
            for key, default in wanted.items():
                if default is inspect.Parameter.empty or key in ("latent_mean", "latent_std"):
                    continue
                same = tuple(given[key]) if isinstance(given[key], list | tuple) else given[key]
                default = tuple(default) if isinstance(default, list | tuple) else default
                assert same == default, f"{where}.{key}"
                count += 1
    assert count > 60


def test_base_statistics_are_the_published_ones():
    vae = base_configs()["video_vae"]["vae"]
    published = latent_statistics()["video"]
    assert (vae["latent_mean"], vae["latent_std"]) == (published["mean"], published["std"])


def test_types_to_come_are_not_there_yet():
    for name in TO_COME:
        registries = [r for r in (MODELS, SCHEDULERS, DATASETS) if r.get(name) is not None]
        assert not registries, f"{name} exists: take it out of TO_COME"


# The config files


def test_there_are_configs():
    assert len(FILES) >= 33


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_config_loads_and_says_how_to_run_it(path):
    loaded(path)
    text = path.read_text(encoding="utf-8")
    doc = text.split('"""')[1]
    assert f"configs/{path.relative_to(ROOT / 'configs').as_posix()}" in doc
    assert "GB" in doc or "core" in doc, "say on what hardware it runs"
    assert "read_base" in text


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_config_binds(path):
    found = 0
    for _, registry, cfg, facts in components(plain(loaded(path))):
        bind(registry, fill_in(registry, cfg, **facts))
        found += 1
    assert found


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_config_dumps_and_reloads(path, tmp_path):
    dump_config(loaded(path), tmp_path / "config.py")
    assert plain(load_config([str(tmp_path / "config.py")])) == plain(loaded(path))


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_bucket_config_is_right(path):
    cfg = loaded(path)
    if cfg.get("bucket_config") is None:
        return
    purpose = "search" if "base_step_time" in cfg else "evaluate" if "num_eval_timesteps" in cfg else "train"
    assert len(Buckets(cfg.bucket_config, purpose))


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_conditions_that_are_dropped_and_guided_exist(path):
    cfg = loaded(path)
    if "model" not in cfg:
        return
    conditions = set(cfg.model.conditions)
    assert set(cfg.guidance.scales) <= conditions
    assert {name for names in cfg.condition_dropout for name in names} <= conditions
    assert sum(cfg.condition_dropout.values()) <= 1


# Building


def without_weights(values):
    """Return a config that reads no file: text encoders read theirs only when they encode."""
    parts = {slot: {**values[slot], "from_pretrained": None} for slot in ("model", "vae") if values.get(slot)}
    return {**values, **parts}


def what_is_built(path: Path) -> str:
    """Return what distinguishes the modules of a config, so that each is built once."""
    values = without_weights(plain(loaded(path)))
    if "model" not in values:
        return repr([values["vae"], values["discriminator"]])
    values["model"] = {
        k: v for k, v in values["model"].items() if k not in ("freeze", "train_only", *LOADING_KEYS)
    }
    vae = values["vae"] and [values["vae"]["type"], values["vae"].get("latent_channels")]
    return repr([values["model"], vae, values["frame_mask"]])


DISTINCT = list({what_is_built(path): path for path in reversed(FILES)}.values())


@pytest.mark.parametrize(
    "path", DISTINCT, ids=[path.relative_to(ROOT / "configs").as_posix() for path in DISTINCT]
)
def test_builds_on_meta(path):
    build_components = pytest.importorskip("opensora.engine.build").build_components
    values = without_weights(plain(loaded(path)))
    with torch.device("meta"):
        if "model" not in values:
            modules = [build(MODELS, values["vae"]), build(MODELS, values["discriminator"])]
        else:
            built = build_components(values)
            modules = [built.model, built.vae]
            channels = values["model"]["in_channels"] if built.vae is None else built.vae.latent_channels
            assert built.model.x_embedder.proj.in_channels == channels
            assert built.scheduler is not None and built.guidance is not None
    parameters = [p for module in modules if module is not None for p in module.parameters()]
    assert parameters and all(p.is_meta for p in parameters)
