"""The golden vectors pass, and the runner finds what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
# Files whose kinds have adapters. The others are reported as unsupported until their part is built.
FILES = (
    "stdit3",
    "vae_v1",
    "rectified_flow",
    "manifests",
    "text_cleaning",
    "transforms",
    "inference_helpers",
)


def run(folder, *args):
    command = [sys.executable, str(HERE / "run.py"), str(folder), *args]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_vectors_of_the_reference():
    folder = os.environ.get("GOLDEN_DIR") or HERE / "vectors"
    result = run(folder, "--only", *FILES)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    counts = [int(word) for word in result.stdout.splitlines()[-1].split() if word.isdigit()]
    assert counts[0] > 50 and counts[2:] == [0, 0]


@pytest.fixture
def folder(tmp_path):
    x = torch.randn(1, 2, 4, 6)
    angles = torch.arange(4)[:, None] * torch.tensor([1.0, 10000.0 ** (-1 / 2)])
    pairs = torch.view_as_complex(x[..., :4].unflatten(-1, (2, 2)).contiguous())
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    case = {"name": "one", "kind": "rotary", "args": {"dim": 4, "scale": None}, "atol": 1e-5, "rtol": 1e-5}
    (tmp_path / "parts.json").write_text(json.dumps({"cases": [case]}))
    tensors = {"one/in/x": x, "one/out/out": torch.cat((turned, x[..., 4:]), -1)}
    save_file(tensors, tmp_path / "parts.safetensors")
    return tmp_path, case, tensors


def test_a_case_passes(folder):
    result = run(folder[0])
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1] == "golden: 1 passed, 0 deviations, 0 failed, 0 unsupported"


def test_one_wrong_element_fails(folder):
    path, _, tensors = folder
    tensors["one/out/out"][0, 1, 2, 3] += 1e-3
    save_file(tensors, path / "parts.safetensors")
    result = run(path)
    assert result.returncode == 1
    assert "out: 1 of 48 elements differ" in result.stdout
    assert "golden: 0 passed, 0 deviations, 1 failed, 0 unsupported" in result.stdout


def test_missing_outputs_unknown_kinds_and_empty_folders_fail(folder):
    path, case, tensors = folder
    save_file({**tensors, "one/out/other": torch.zeros(2)}, path / "parts.safetensors")
    result = run(path)
    assert result.returncode == 1 and "other: our adapter returned no such output" in result.stdout
    (path / "parts.json").write_text(json.dumps({"cases": [{**case, "kind": "new"}]}))
    result = run(path)
    assert result.returncode == 1 and "0 failed, 1 unsupported" in result.stdout
    assert run(path, "--only", "nothing").returncode != 0
    (path / "parts.json").unlink()
    assert "no .json files with cases" in run(path).stderr


def test_a_rule_excuses_its_rows_only(tmp_path):
    sys.path.insert(0, str(HERE))
    try:
        import run as runner
    finally:
        sys.path.remove(str(HERE))
    want, got = torch.zeros(4), torch.tensor([0.0, 1.0, 0.0, 0.0])
    case = {"name": "x", "kind": "k", "atol": 1e-6}

    def compare(got, marked):
        rule = runner.Rule("r", "why", {"k"}, lambda case, name, expected: torch.tensor(marked).numpy())
        result = runner.compare(case, {"out": got}, {"out": want}, [rule])
        return result.status, rule.used, rule.marked

    assert compare(got, [False, True, False, False]) == ("deviation", 1, 1)
    assert compare(got, [True, False, False, False])[0] == "fail"
    assert compare(want, [False, True, False, False]) == ("pass", 0, 1)  # main() reports an idle rule
    nan = torch.tensor([float("nan"), 0, 0, 0])
    assert compare(nan, [False] * 4)[0] == "fail"
    assert compare(torch.zeros(3), [False] * 4)[0] == "fail"
