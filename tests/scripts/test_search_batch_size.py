"""scripts/search_batch_size.py: the search finds the best batch with few tries, and runs on a tiny model."""

import ast
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from opensora.datasets.video_io import write_image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "scripts/search_batch_size.py"))


def best_of(load, low, high):
    return max((size for size in range(low, high + 1) if load(size) <= 1), default=0)


@pytest.mark.parametrize("guess", [1, 7, 40, 300])
@pytest.mark.parametrize(
    ("fixed", "each"), [(0.0, 0.01), (0.3, 0.011), (0.9, 0.0004), (0.02, 0.4), (0.5, 0.6)]
)
def test_a_step_time_that_is_a_line_needs_few_tries(script, guess, fixed, each):
    def load(size):
        return fixed + each * size

    found, tries = script["largest_batch"](load, guess, 1, 4096)
    assert found == best_of(load, 1, 4096)
    assert tries <= 8


@pytest.mark.parametrize("seed", range(200))
def test_the_best_batch_is_found_for_any_load_that_grows(script, seed):
    random = np.random.default_rng(seed)
    high = int(random.integers(1, 3000))
    steps = np.cumsum(random.exponential(1.0, high) ** random.uniform(0.5, 3))
    values = steps / steps[random.integers(0, high)] * random.uniform(0.8, 1.2)
    full = random.integers(1, 2 * high)  # from here on it does not fit at all

    def load(size):
        return math.inf if size >= full else float(values[size - 1])

    low = int(random.integers(1, high + 1)) if seed % 2 else 1
    found, tries = script["largest_batch"](load, int(random.integers(1, high + 1)), low, high)
    assert found == best_of(load, low, high)
    assert tries <= 8 + 2 * math.ceil(math.log2(high + 1))


def test_a_guess_that_is_right_costs_two_tries(script):
    asked = []

    def load(size):
        asked.append(size)
        return size / 20.5

    assert script["largest_batch"](load, 20, 10, 30) == (20, 2)
    assert asked == [20, 21]
    assert script["largest_batch"](lambda size: size / 20.5, 30, 30, 30) == (0, 1)


TINY = [
    "--dtype",
    "fp32",
    "--device",
    "cpu",
    "--plugin",
    "none",
    "--vae.channels",
    32,
    "--vae.latent_channels",
    4,
]
TINY += ["--vae.channel_multipliers", "(1, 1, 1, 1)", "--model.hidden_size", 48, "--model.depth", 1]
TINY += ["--model.num_heads", 2, "--text-encoder", "none", "--condition-dropout", "{}", "--search-steps", 1]
TINY += [
    "--model.conditions",
    "{'size': {'type': 'SizeCondition', 'fields': ('fps',)}}",
    "--search-warmup",
    1,
]
SIZES = [
    "--dataset.num_frames",
    "none",
    "--dataset.image_size",
    "none",
    "--batch-size",
    "none",
    "--bucket-config",
]


def run(monkeypatch, capsys, *options):
    """Run the script on the demo's config and return what it prints."""
    config = ROOT / "configs/opensora-v1-3/train/demo.py"
    words = ["search_batch_size.py", config, *TINY, *options]
    monkeypatch.setattr("sys.argv", [str(word) for word in words])
    runpy.run_path(str(ROOT / "scripts/search_batch_size.py"), run_name="__main__")
    return capsys.readouterr().out


def test_it_runs_training_steps_and_prints_what_to_paste(monkeypatch, capsys, caplog):
    entries = "{'144p': {1: (2, 0), 5: (1, 1)}}"
    options = ["--memory-gib", 64, "--base", "('144p', 1)", *SIZES, entries]
    out = run(monkeypatch, capsys, *options)
    found = ast.literal_eval(out[out.index("bucket_config =") :].split("=", 1)[1].strip())["144p"]
    assert found[1] == (1.0, 2)
    assert found[5] in ((1.0, 1), (1.0, 2), (0.0, None))  # whichever is as fast as two images here
    assert "the others shall take at most" in caplog.text
    assert "144p, 1 frames (156 x 234): batch 2" in caplog.text


def test_too_little_memory_and_wrong_keys_are_said(monkeypatch, capsys):
    size = ["--dataset.num_frames", 1, "--dataset.image_size", "(32, 32)"]
    for options, said in (
        ([*size, "--memory-gib", 0.01], "not even one clip of 1 x 32 x 32 fits"),
        (size, "memory_gib=None: a CPU does not say when it is full"),
        ([*size, "--memory-gib", -1.0], "memory_gib=-1.0: use a number above 0"),
        (
            [*size, "--memory-gib", 8.0, "--base", "('360p', 1)"],
            "base=('360p', 1): bucket_config has no such",
        ),
    ):
        with pytest.raises(SystemExit):
            run(monkeypatch, capsys, *options)
        assert said in capsys.readouterr().err
    out = run(monkeypatch, capsys, *size, "--memory-gib", 64, "--largest-batch", 2)
    assert out.endswith("\nbatch_size = 2\n")


@pytest.mark.parametrize(
    ("config", "guided", "noted"),
    [
        ({"144p": {1: (1, 60), 17: (1, 1)}}, False, True),  # a training whose probabilities are integers
        ({"144p": {1: (1, 60), 17: (0, None)}}, False, False),
        ({"144p": {1: (1.0, 60), 17: ((0.5, 0.5), 2)}}, False, False),
        ({"144p": {1: (40, 8), 17: (1, 0)}}, True, False),
        ({"144p": {1: (40, 8), 17: (1, 3)}}, True, False),  # 40 is no probability
        ({"144p": {1: (1, 0), 17: (1, 1)}}, True, False),
    ],
)
def test_the_form_of_entries_is_found_and_said(script, caplog, config, guided, noted):
    cfg = {"bucket_config": config, "batch_size": None, "dataset": {"type": "VideoDataset"}}
    buckets, same, found = script["_buckets"](cfg, None)
    assert (found, same, len(buckets)) == (guided, config, 2)
    form = "(guess, variance)" if guided else "(probability, batch size)"
    assert f"entries of bucket_config are read as {form}" in caplog.text
    assert ("[1] = (1, 60) makes no sense as (guess, variance)" in caplog.text) == noted


def test_probabilities_of_a_training_stay_as_they_are(script):
    config = {"144p": {1: (1, 60), 5: (0, None), 17: ((0.5, 0.25), 2)}}
    buckets = script["_buckets"]({"bucket_config": config, "batch_size": None, "dataset": {}}, None)[0]
    found = {bucket: script["Found"](3, 1) for bucket in buckets.buckets}
    out = script["_as_config"](config, buckets, found, False)
    assert "{1: (1.0, 3), 5: (0.0, 3), 17: ((0.5, 0.25), 3)}" in out


@pytest.mark.parametrize("named", [True, False])
def test_on_features_no_encoder_runs_whether_the_config_names_it_or_not(monkeypatch, capsys, tmp_path, named):
    (tmp_path / "images.csv").write_text(f"path,num_frames,height,width\n{tmp_path}/a.png,1,32,32\n")
    write_image(torch.zeros(3, 32, 32), tmp_path / "a.png")
    size = ["--dataset.num_frames", 1, "--dataset.image_size", "(32, 32)", "--batch-size", 1]
    model = TINY[: TINY.index("--search-steps")]
    extraction = ROOT / "scripts/extract_features.py"
    words = [extraction, ROOT / "configs/opensora-v1-3/train/demo.py", *model, *size, "--batches-per-step", 1]
    words += ["--data-path", tmp_path / "images.csv", "--save-dir", tmp_path / "features"]
    monkeypatch.setattr("sys.argv", [str(word) for word in words])
    runpy.run_path(str(extraction), run_name="__main__")
    measured = []
    monkeypatch.setattr("opensora.models.video_vae.VideoVAE.encode", lambda *_, **__: measured.append("vae"))
    options = ["--dataset", f"{{'type': 'FeatureDataset', 'data_path': '{tmp_path}/features'}}"]
    options += [] if named else ["--vae", "none"]
    options += ["--validation.sample", "false", "--memory-gib", 64, "--largest-batch", 2]
    assert run(monkeypatch, capsys, *options).endswith("\nbatch_size = 2\n")
    assert not measured
