import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config, ConfigDict

from opensora.utils import config as config_module
from opensora.utils.config import (
    dump_config,
    execute,
    load_config,
    make_run_folder,
    plain,
    read_command_line,
    read_config,
)

ROOT = Path(__file__).parents[2]
STAGE = str(ROOT / "configs/opensora-v1-3/train/stage1.py")
T2V = str(ROOT / "configs/opensora-v1-3/inference/t2v.py")
I2V = str(ROOT / "configs/opensora-v1-3/inference/i2v.py")
SEARCH = str(ROOT / "configs/opensora-v1-2/misc/bs.py")
VAE = str(ROOT / "configs/vae/inference/video.py")

# Reading


def test_read_base_files_load_and_assignment_replaces():
    cfg = load_config([STAGE])
    assert cfg.model.window_size == (-1, 8, 8)
    assert cfg.model.conditions.frames.always_inject is True
    assert list(cfg.bucket_config) == ["360p"]
    assert cfg.bucket_config["360p"][49] == (1.0, 5)


def test_base_list_files_load_too(tmp_path):
    bases = [str(ROOT / "configs/_base_" / name) for name in ("runtime.py", "stdit3.py", "rectified_flow.py")]
    file = tmp_path / "mine.py"
    file.write_text(f"_base_ = {bases!r}\nmodel = dict(window_size=(-1, 4, 4))\nseed = 3\n")
    cfg = load_config([str(file)])
    assert cfg.seed == 3
    assert cfg.model.window_size == (-1, 4, 4)  # dicts merge in this style
    assert cfg.model.qk_norm is True
    assert cfg.condition_dropout == {("text",): 0.1}


def test_read_base_chains(tmp_path):
    (tmp_path / "first.py").write_text("seed = 1\nmodel = dict(type='A', depth=2)\n")
    imports = "from mmengine.config import read_base\nwith read_base():\n    from .{} import *\n"
    (tmp_path / "second.py").write_text(imports.format("first") + "model.update(depth=3)\n")
    (tmp_path / "third.py").write_text(imports.format("second") + "seed = 2\n")
    assert plain(load_config([str(tmp_path / "third.py")])) == {"seed": 2, "model": {"type": "A", "depth": 3}}


def test_a_base_list_on_top_of_read_base_says_what_to_do(tmp_path):
    file = tmp_path / "mixed.py"
    file.write_text(f"_base_ = [{STAGE!r}]\n")
    with pytest.raises(ValueError, match=r"use read_base\(\) here too"):
        load_config([str(file)])


def test_helpers_and_imports_are_no_keys(tmp_path):
    file = tmp_path / "c.py"
    file.write_text("import os\nfrom os import path\n_n = 3\ndef f():\n    return 1\nseed = f() + _n\n")
    assert execute(file) == {"seed": 4}


def test_calling_what_a_package_brings_is_refused_in_words(tmp_path):
    file = tmp_path / "c.py"
    file.write_text("from einops import rearrange\nseed = rearrange(1)\n")
    with pytest.raises(ValueError, match="can name what it imports"):
        execute(file)


def test_a_class_may_stand_for_a_type(tmp_path):
    file = tmp_path / "c.py"
    file.write_text("from collections import OrderedDict\nmodel = dict(type=OrderedDict)\n")
    assert load_config([str(file)]).model.type.__name__ == "OrderedDict"


def test_a_class_of_a_package_may_stand_for_a_type_and_survives_a_dump(tmp_path):
    file = tmp_path / "c.py"
    file.write_text("from mmengine.config import ConfigDict\nmodel = dict(type=ConfigDict)\n")
    cfg = load_config([str(file)])
    assert cfg.model.type is ConfigDict
    dump_config(cfg, tmp_path / "d.py")
    assert plain(load_config([str(tmp_path / "d.py")])) == plain(cfg)


def test_templates_in_texts_stay(tmp_path):
    file = tmp_path / "c.py"
    file.write_text("prompt = ['a {{ fileBasename }} and {{$HOME:x}}']\n")
    assert load_config([str(file)]).prompt == ["a {{ fileBasename }} and {{$HOME:x}}"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("modle = 1\n", ["'modle'", "value 1", "did you mean 'model'", "'_'"]),
        ("zzzzzz = 1\n", ["'zzzzzz'", "configs/_base_"]),
        ("seed = (\n", ["wrong.py, line 1"]),
        ("seed = undefined\n", ["cannot be executed", "NameError"]),
        ("from mmengine.config import read_base\nwith read_base():\n    from .gone import *\n", ["gone"]),
    ],
)
def test_wrong_files_are_refused(tmp_path, text, parts):
    file = tmp_path / "wrong.py"
    file.write_text(text)
    with pytest.raises(ValueError) as error:
        load_config([str(file)])
    for part in parts:
        assert part in str(error.value)


def test_missing_file_names_the_nearest(tmp_path):
    with pytest.raises(FileNotFoundError, match="stage1.py"):
        load_config([STAGE.replace("stage1.py", "stage11.py")])
    with pytest.raises(FileNotFoundError, match="no such config file"):
        load_config([str(tmp_path / "nowhere" / "x.py")])


@pytest.mark.parametrize("argv", [[], ["--seed", "1"]])
def test_a_config_file_comes_first(argv):
    with pytest.raises(ValueError, match="first argument must be a config file"):
        load_config(argv)


def test_only_python_files_are_read(tmp_path):
    with pytest.raises(ValueError, match="JSON and YAML"):
        load_config([str(tmp_path / "c.yaml")])


# Help, and errors of scripts

PROBE = """
import sys
from opensora.utils.config import read_command_line
try:
    read_command_line("Do a thing.", sys.argv[1:])
finally:
    heavy = {"torch", "transformers", "diffusers", "pyarrow", "opensora.registry"} & set(sys.modules)
    sys.stderr.write(f"{sorted(heavy)}\\n")
"""


def run_probe(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", PROBE, *words]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def test_help_imports_nothing_heavy():
    done = run_probe("--help")
    assert done.returncode == 0 and done.stderr == "[]\n"
    for part in ("Do a thing.", "--ckpt-path", "model.from_pretrained", "CONFIG --help lists"):
        assert part in done.stdout


def test_help_with_a_config_lists_its_keys():
    done = run_probe(STAGE, "--help")
    assert done.returncode == 0 and done.stderr == "[]\n"
    for part in ("--model.window_size", "(-1, 8, 8)", "--bucket_config.360p.49", "--condition_dropout"):
        assert part in done.stdout


def test_a_wrong_option_ends_a_script_with_one_line():
    done = run_probe(STAGE, "--modle.depth", "4")
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2  # the second is the probe's
    assert "did you mean 'model'" in lines[0] and not lines[0].startswith('"')
    assert "Traceback" not in done.stderr and done.stdout == ""


@pytest.mark.parametrize("argv", [[], ["nowhere.py"], ["--seed", "1"]])
def test_missing_config_ends_a_script_with_one_line(argv, capsys):
    with pytest.raises(SystemExit) as error:
        read_command_line("Do a thing.", argv)
    assert error.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


# Writing

AWKWARD = {
    "seed": -1,
    "dtype": 'it\'s a "text"\nwith {braces} and é',
    "load": None,
    "wandb": True,
    "grad_clip": 1e-15,
    "image_size": (1,),
    "postprocess": [],
    "prompt": ["", 'a"b', "c'd"],
    "bucket_config": {"360p": {1: (1.0, 60), 49: ((1.0, 0.33), None)}, "720p": {}},
    "condition_dropout": {("text",): 0.1, ("text", "frames"): 0.05, (): 0.0},
    "optimizer": {
        "class": 1,
        "a b": 2,
        "lr": float("inf"),
        "nested": {1: {2: {"three": (1, [2, {"x": None}])}}},
    },
    "vae": {
        "latent_mean": [i / 7 for i in range(16)],
        "latent_std": [[i + j / 3 for j in range(5)] for i in range(16)],
    },
}


def test_dump_survives_a_round_trip(tmp_path):
    dump_config(Config(AWKWARD), tmp_path / "c.py")
    assert plain(load_config([str(tmp_path / "c.py")])) == AWKWARD


def types_of(value):
    if isinstance(value, dict):
        return {key: types_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return (type(value), [types_of(item) for item in value])
    return type(value)


def test_dump_keeps_types(tmp_path):
    dump_config(AWKWARD, tmp_path / "c.py")
    assert types_of(plain(load_config([str(tmp_path / "c.py")]))) == types_of(AWKWARD)


def test_dump_refuses_what_it_cannot_write(tmp_path):
    with pytest.raises(TypeError, match="cannot hold"):
        dump_config({"seed": object()}, tmp_path / "c.py")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "c.py"
    dump_config({"seed": 1}, file)

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(config_module.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        dump_config({"seed": 2}, file)
    assert execute(file) == {"seed": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["c.py"]


# Run folders


def run_config(outputs: Path, **changes: object) -> Config:
    return Config({"outputs": str(outputs), "run_name": None, "model": {"type": "STDiT3-XL/2"}, **changes})


def test_run_folders_count_up_and_hold_the_config(tmp_path):
    cfg = run_config(tmp_path / "outputs")
    folders = [make_run_folder(cfg) for _ in range(3)]
    assert [folder.name for folder in folders] == [f"00{i}-STDiT3-XL-2" for i in range(3)]
    for folder in folders:
        assert plain(load_config([str(folder / "config.py")])) == plain(cfg)
    assert not [path for path in (tmp_path / "outputs").iterdir() if path.name.startswith(".")]


def test_run_folders_of_full_configs_load_again(tmp_path):
    cfg = load_config([STAGE, "--outputs", str(tmp_path), "--seed", "9"])
    assert plain(load_config([str(make_run_folder(cfg) / "config.py")])) == plain(cfg)


def test_deleted_and_foreign_folders_do_not_confuse_the_count(tmp_path):
    cfg = run_config(tmp_path)
    first, second = make_run_folder(cfg), make_run_folder(cfg)
    (first / "config.py").unlink()
    first.rmdir()
    assert make_run_folder(cfg).name.startswith("002-")
    assert second.exists()
    (tmp_path / "vae_stage1").mkdir()
    (tmp_path / "041-Other").mkdir()
    assert make_run_folder(cfg).name == "042-STDiT3-XL-2"
    (tmp_path / "999-Other").mkdir()
    assert [make_run_folder(cfg).name[:5] for _ in range(2)] == ["1000-", "1001-"]


def test_an_autoencoder_run_is_named_after_it(tmp_path):
    cfg = Config({"outputs": str(tmp_path), "run_name": None, "vae": {"type": "VideoVAE"}})
    assert make_run_folder(cfg).name == "000-VideoVAE"


def make_many(outputs: str, kind: str, count: int) -> list[str]:
    cfg = run_config(Path(outputs), model={"type": kind})
    return [make_run_folder(cfg).name for _ in range(count)]


def test_runs_that_start_at_once_get_different_numbers(tmp_path):
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        jobs = [(str(tmp_path), kind, 8) for kind in ("A", "B", "A", "B")]
        names = [name for part in pool.starmap(make_many, jobs) for name in part]
    assert sorted(int(name[:3]) for name in names) == list(range(32))


def test_a_named_run_is_continued_and_keeps_the_older_config(tmp_path):
    cfg = run_config(tmp_path, run_name="mine", seed=1)
    folder = make_run_folder(cfg)
    assert folder == tmp_path / "mine" == make_run_folder(cfg)
    assert [path.name for path in folder.iterdir()] == ["config.py"]
    make_run_folder(run_config(tmp_path, run_name="mine", seed=2))
    assert execute(folder / "config.py")["seed"] == 2
    assert execute(folder / "config-000.py")["seed"] == 1


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", ".."])
def test_a_run_name_stays_in_the_outputs(tmp_path, name):
    with pytest.raises(ValueError, match="plain folder name"):
        make_run_folder(run_config(tmp_path, run_name=name))


# Published files


def test_published_configs_are_translated_and_said(tmp_path, capsys):
    file = tmp_path / "old.py"
    file.write_text((ROOT / "tests/data/published/opensora-v1-3/inference/t2v.py").read_text())
    cfg = load_config([str(file), "--cfg-scale", "3"])
    assert cfg.model.window_size == (-1, 8, 8)
    assert cfg.guidance.scales.text.scale == 3
    assert "model.kernel_size=(8, 8, -1) -> model.window_size=(-1, 8, 8)" in capsys.readouterr().out


def test_our_files_are_not_taken_for_published_ones(capsys):
    read_config(STAGE)
    read_config(SEARCH)
    assert "->" not in capsys.readouterr().out
