import re
from pathlib import Path

import pytest

from opensora.utils.config import load_config, plain
from opensora.utils.config_defaults import base_configs
from opensora.utils.overrides import ALIASES, REFUSED, alias_table

ROOT = Path(__file__).parents[2]
STAGE = str(ROOT / "configs/opensora-v1-3/train/stage1.py")
T2V = str(ROOT / "configs/opensora-v1-3/inference/t2v.py")
I2V = str(ROOT / "configs/opensora-v1-3/inference/i2v.py")
SEARCH = str(ROOT / "configs/opensora-v1-2/misc/bs.py")
VAE = str(ROOT / "configs/vae/inference/video.py")

# A config with one key of each type, under known names.
SMALL = """
seed = 1
dtype = "bf16"
wandb = False
grad_clip = 1.0
load = None
image_size = (256, 256)
postprocess = []
prompt = None
num_frames = 51
aes = None
_helper = 7
bucket_config = {"720p": {1: (1.0, 4), 49: (0.5, 2)}}
model = dict(type="A", from_pretrained=None, depth=4, window_size=None, conditions=dict(text=dict(type="T")))
condition_dropout = {("text",): 0.1}
"""


@pytest.fixture
def small(tmp_path) -> str:
    file = tmp_path / "small.py"
    file.write_text(SMALL)
    return str(file)


def value_after(path: str, *words: str) -> dict:
    return plain(load_config([path, *words]))


# Overrides


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--seed", "5"], "seed", 5),
        (["--seed=5"], "seed", 5),
        (["--seed", "-5"], "seed", -5),
        (["--dtype", "fp32"], "dtype", "fp32"),
        (["--dtype", "32"], "dtype", "32"),
        (["--dtype", '"fp32"'], "dtype", "fp32"),
        (["--wandb"], "wandb", True),
        (["--wandb", "TRUE"], "wandb", True),
        (["--wandb", "false"], "wandb", False),
        (["--wandb", "yes"], "wandb", True),
        (["--wandb", "0"], "wandb", False),
        (["--grad-clip", "2"], "grad_clip", 2.0),
        (["--grad_clip", "1e-3"], "grad_clip", 1e-3),
        (["--image-size", "480", "640"], "image_size", (480, 640)),
        (["--image-size", "[480, 640]"], "image_size", (480, 640)),
        (["--image-size", "None"], "image_size", None),
        (["--load", "latest"], "load", "latest"),
        (["--load", "007"], "load", "007"),
        (["--load", "none"], "load", None),
        (["--prompt", "a", "b c"], "prompt", ["a", "b c"]),
        (["--prompt", "7"], "prompt", ["7"]),
        (["--prompt=--dashes"], "prompt", ["--dashes"]),
        (["--prompt", "True"], "prompt", ["True"]),
        (["--num-frames", "49"], "num_frames", 49),
        (["--num-frames", "4s"], "num_frames", "4s"),
        (["--aes", "6.5"], "aes", 6.5),
        (["--aes", "good"], "aes", "good"),
        (["--bucket-config.720p.49", "(1.0, 2)"], "bucket_config", {"720p": {1: (1.0, 4), 49: (1.0, 2)}}),
        (["--bucket_config", "{'360p': {1: (1.0, 1)}}"], "bucket_config", {"360p": {1: (1.0, 1)}}),
        (["--condition-dropout", "{('text',): 0.2}"], "condition_dropout", {("text",): 0.2}),
        (["--postprocess", "[{'type': 'Watermark'}]"], "postprocess", [{"type": "Watermark"}]),
        (["--seed", "2", "--seed", "3"], "seed", 3),
    ],
)
def test_override(small, words, key, value):
    before, after = value_after(small), value_after(small, *words)
    assert after[key] == value and type(after[key]) is type(value)
    assert {k: v for k, v in after.items() if k != key} == {k: v for k, v in before.items() if k != key}


def test_nested_overrides_with_dashes(small):
    model = value_after(small, "--model.depth", "6", "--model.window-size", "(-1, 8, 8)")["model"]
    assert model["depth"] == 6 and model["window_size"] == (-1, 8, 8)
    text = value_after(small, "--model.conditions.text.type", "Mine")["model"]["conditions"]["text"]
    assert text == {"type": "Mine"}


@pytest.mark.parametrize(
    ("words", "error", "parts"),
    [
        (
            ["--modle.depth", "4"],
            KeyError,
            ["--modle.depth", "'modle' is not in the config", "did you mean 'model'"],
        ),
        (["--model.dept", "4"], KeyError, ["'dept' is not in model", "did you mean 'depth'"]),
        (["--zzz", "4"], KeyError, ["'zzz'", "it has seed, dtype"]),
        (["--cfg-scael", "4"], KeyError, ["did you mean 'cfg-scale'"]),
        (["--seed.x", "4"], KeyError, ["'seed' is 1", "set all of --seed"]),
        (["--bucket_config.720p.50", "1"], KeyError, ["'50' is not in bucket_config.720p", "it has 1, 49"]),
        (["--seed", "abc"], ValueError, ["--seed", "'abc'", "type str", "type int", "(1)"]),
        (["--seed", "1.5"], ValueError, ["1.5", "type float", "type int"]),
        (["--seed", "True"], ValueError, ["type bool", "type int"]),
        (["--wandb", "maybe"], ValueError, ["'maybe'", "type bool"]),
        (["--grad-clip", "x"], ValueError, ["type str", "type float"]),
        (["--image-size", "480"], ValueError, ["type int", "type tuple"]),
        (["--model", "STDiT3"], ValueError, ["type str", "type dict"]),
        (["--num-frames", "[1]"], ValueError, ["type list", "type int"]),
        (["--seed"], ValueError, ["--seed", "a value is missing"]),
        (["--load"], ValueError, ["a value is missing", "None"]),
        (["--prompt"], ValueError, ["a value is missing"]),
        (["seed", "1"], ValueError, ["'seed'", "--key value"]),
        (["--"], ValueError, ["'--'"]),
        (["--image-prompt", "x.png"], ValueError, ["no such option", "--reference-path"]),
    ],
)
def test_wrong_overrides_are_refused(small, words, error, parts):
    with pytest.raises(error) as caught:
        load_config([small, *words])
    for part in parts:
        assert part in caught.value.args[0]


# Familiar flags


@pytest.mark.parametrize(
    ("path", "words", "key", "value"),
    [
        (T2V, ["--ckpt-path", "x.pt"], "model.from_pretrained", "x.pt"),
        (VAE, ["--ckpt-path", "x.pt"], "vae.from_pretrained", "x.pt"),
        (STAGE, ["--data-path", "x.csv"], "dataset.data_path", "x.csv"),
        (T2V, ["--cfg-scale", "7"], "guidance.scales.text.scale", 7.0),
        (I2V, ["--image-cfg-scale", "2.5"], "guidance.scales.frames.scale", 2.5),
        (T2V, ["--use-oscillation-guidance-for-text", "False"], "guidance.scales.text.oscillate_from", None),
        (T2V, ["--use-oscillation-guidance-for-text"], "guidance.scales.text.oscillate_from", 10),
        (I2V, ["--use-oscillation-guidance-for-image", "no"], "guidance.scales.frames.oscillate_from", None),
        (T2V, ["--num-sampling-steps", "50"], "scheduler.num_sampling_steps", 50),
        (STAGE, ["--lr", "1e-5"], "optimizer.lr", 1e-5),
        (STAGE, ["--weight-decay", "0.1"], "optimizer.weight_decay", 0.1),
        (STAGE, ["--adam-eps", "1e-8"], "optimizer.eps", 1e-8),
        (STAGE, ["--warmup-steps", "7"], "lr_schedule.warmup_steps", 7),
        (STAGE, ["--grad-checkpoint", "false"], "activation_checkpoint", False),
        (STAGE, ["--flash-attn", "True"], "attention_backend", "flash"),
        (T2V, ["--flash-attn", "f"], "attention_backend", "sdpa"),
        (
            T2V,
            ["--deflicker", "true", "--watermark", "1"],
            "postprocess",
            [{"type": "Deflicker"}, {"type": "Watermark"}],
        ),
        (T2V, ["--watermark", "false"], "postprocess", []),
        (T2V, ["--mask-strategy", "0", "0,0,-5,0,5;1"], "mask_strategy", ["0", "0,0,-5,0,5;1"]),
        (T2V, ["--camera-motion", "pan left"], "camera_motion", "pan left"),
        (T2V, ["--resolution", "512"], "resolution", "512"),
        (T2V, ["--aspect-ratio", "16:9"], "aspect_ratio", "16:9"),
        (I2V, ["--cond-type", "none"], "cond_type", None),
        (I2V, ["--use-sdedit", "False"], "scheduler.renoise_reference", False),
        (STAGE, ["--outputs", "elsewhere"], "outputs", "elsewhere"),
        (STAGE, ["--batch-size", "4"], "batch_size", 4),
        (STAGE, ["--start-from-scratch"], "start_from_scratch", True),
    ],
)
def test_familiar_flags(path, words, key, value):
    at = value_after(path, *words)
    for part in key.split("."):
        at = at[part]
    assert at == value


@pytest.mark.parametrize("flag", ["layernorm-kernel", "force-huggingface"])
def test_flags_that_only_chose_a_kernel_or_loader_change_nothing(flag):
    assert value_after(T2V, f"--{flag}", "False") == value_after(T2V)


def test_alias_without_its_key_says_where_it_looked():
    with pytest.raises(KeyError, match=r"--image-cfg-scale: 'frames' is not in guidance.scales"):
        load_config([T2V, "--image-cfg-scale", "2"])


def test_an_alias_never_hides_a_key():
    keys = {key for values in base_configs().values() for key in values}
    assert not keys & set(ALIASES)
    assert not keys & set(REFUSED)
    assert not set(ALIASES) & set(REFUSED)


def test_every_alias_finds_its_key_in_a_shipped_config():
    configs = [plain(load_config([path])) for path in (T2V, I2V, STAGE, VAE)]

    def has(values, path: str) -> bool:
        for part in path.split("."):
            if not isinstance(values, dict) or part not in values:
                return False
            values = values[part]
        return True

    for name, alias in ALIASES.items():
        for path in alias.paths:
            assert any(has(values, path) for values in configs), (name, path)


def test_docs_table_is_the_alias_table():
    text = (ROOT / "docs/config.md").read_text(encoding="utf-8")
    text = text.split("### Familiar flags")[1].split("\n## ")[0]
    shown = re.findall(r"^\| `--([\w-]+)` \| (.*?) \|$", text, re.MULTILINE)
    wanted = [(name.replace("_", "-"), meaning) for name, meaning in alias_table()]
    wanted += [(name.replace("_", "-"), f"refused: {reason}") for name, reason in REFUSED.items()]
    assert shown == wanted
