"""The lab's knobs: settings that differ in one thing, runs that are shared, and a comparison that resumes."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from opensora.utils.config import load_config, plain


@pytest.fixture
def lab(root, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(root / "scripts")
    return importlib.import_module("lab_knobs")


def flat(values, path=""):
    if not isinstance(values, dict):
        return {path: values}
    return {k: v for name, value in values.items() for k, v in flat(value, f"{path}.{name}").items()}


def changed(config, words):
    """Return the keys that options change in a config."""
    one, other = (flat(plain(load_config([str(config), *map(str, own)]))) for own in ((), words))
    return {
        key
        for key in one.keys() | other.keys()
        if key not in one or key not in other or one[key] != other[key]
    }


def test_each_setting_of_training_differs_in_one_thing(lab):
    base, *rows = lab.training_settings()
    assert not base["training"] and not base["options"] and len({row["name"] for row in rows}) == len(rows)
    for row in rows:
        knobs = set()
        for stage, words in row["training"].items():
            found = changed(lab.TRAIN / f"{stage}.py", words)
            assert found, row["name"]
            knobs |= {key.split(".")[1] if "frame_mask" in key else key for key in found}
        if "shifted" in row["name"]:
            knobs -= {".model.window_size"}  # as in the row before
        assert len(knobs) == bool(row["training"]), row["name"]
        network = {word for words in row["training"].values() for word in words if "--model." in str(word)}
        assert network <= set(row["options"])  # what was trained is what is judged
    names = " ".join(row["name"] for row in rows)
    for knob in ("EMA", "QK-norm", "window", "shifted", "given frames", "dropout", "times"):
        assert knob in names


def test_each_setting_of_inference_differs_from_the_shipped_one(lab, tmp_path):
    base, *rows = lab.inference_settings(tmp_path, 100)
    assert not base["options"]
    for row in rows:
        words = [*row["options"], "--modes", *row["modes"]]
        if row["modes"] == ["t2v"]:
            assert len(changed(lab.T2V, row["options"])) == 1, row["name"]
        assert load_config([str(lab.T2V), *words], also="lab").prompts >= 1
    names = " ".join(row["name"] for row in rows)
    for knob in ("guidance scale", "steps", "time shift", "fps", "loop"):
        assert knob in names
    assert "EMA" not in names


def test_masks_are_scaled_and_stay_probabilities(lab):
    shipped = {"type": "FrameMask", "ratios": {"random": 0.4, "image_head": 0.2}}
    assert lab.masks(None, 2.0) == [] and lab.masks(shipped, 0.0) == ["--frame_mask", None]
    assert "0.2, 'image_head': 0.1}" in lab.masks(shipped, 0.5)[1]
    assert "0.666" in lab.masks(shipped, 2.0)[1]


def test_stages_that_do_not_differ_are_shared(lab, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        lab, "train", lambda name, folder, scale, script, *words: calls.append((name, folder, words))
    )
    rows = {row["name"]: row for row in lab.training_settings()}
    ends = {name: lab.train_setting(tmp_path, row, "seed1", 1.0, []) for name, row in rows.items()}
    assert ends["last weights (no EMA)"] == ends["as shipped"]
    assert ends["condition dropout 0"] == ends["condition dropout 0, guidance scale 1"]
    assert len(set(ends.values())) == len(rows) - 2
    calls.clear()
    lab.train_setting(tmp_path, rows["given frames: none"], "seed1", 1.0, [])
    first, last = calls
    assert first[1] == tmp_path / "as_shipped/seed1" and first[2] == () and last[1] != first[1]
    assert last[2] == ("--model.from_pretrained", first[1] / first[0], "--frame_mask", None)


def test_only_some_knobs(lab):
    rows = lab.training_settings()
    assert [row["name"] for row in lab.chosen(rows, ["QK"])] == ["as shipped", "QK-norm off"]
    assert lab.chosen(rows, None) == rows
    with pytest.raises(SystemExit, match="The names: last weights"):
        lab.chosen(rows, ["nothing"])


def test_runs_of_other_configs_stop_the_comparison(lab, tmp_path):
    path = tmp_path / "made_of.json"
    lab.check_same(path, [])
    lab.check_same(path, [])
    path.write_text(json.dumps({**json.loads(path.read_text()), "vae": "another"}))
    with pytest.raises(SystemExit, match="give another --folder"):
        lab.check_same(path, [])


@pytest.mark.slow
def test_ablations_go_on_after_a_kill(lab, root, tmp_path):
    """Two settings, two seeds, a few steps: killed in the second seed, then the same table and picture."""
    psutil = pytest.importorskip("psutil")
    where = {**os.environ, "PYTHONPATH": str(root)}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    extract = [
        sys.executable,
        "scripts/extract_features.py",
        f"{lab.TRAIN}/stage1.py",
        "--dataset.size",
        "48",
    ]
    extract += ["--save-dir", str(whole / "shipped_features")]
    subprocess.run(extract, check=True, env=where, cwd=root, timeout=300)
    shutil.copytree(whole, stopped)

    def command(folder: Path) -> list[str]:
        words = "scripts/lab_knobs.py --training --scale 0.001 --seeds 2 --prompts 2 --threads 1 --only"
        return [sys.executable, *words.split(), "frames: none", "--folder", str(folder)]

    first = subprocess.Popen(command(stopped), env=where, cwd=root)
    end, home = time.monotonic() + 900, stopped / "ablations-0.001"
    while not (home / "as_shipped/seed2/stage1").exists() and time.monotonic() < end:
        assert first.poll() is None
        time.sleep(0.1)
    for process in [*psutil.Process(first.pid).children(recursive=True), psutil.Process(first.pid)]:
        process.kill()
    first.wait(60)
    done = home / "as_shipped/seed1/stage2"
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file()}
    assert before and "intervals over clips" in (home / "ablations.md").read_text()
    for folder in (stopped, whole):
        subprocess.run(command(folder), check=True, env=where, cwd=root, timeout=1200)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for name in ("ablations.md", "ablations.png"):
        assert (home / name).read_bytes() == (whole / "ablations-0.001" / name).read_bytes()
    text = (home / "ablations.md").read_text()
    assert "| given frames: none |" in text and "t-intervals over 2 seeds" in text
