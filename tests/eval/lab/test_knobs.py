"""Comparing settings: the table, the intervals, what is judged again, and a row of pictures for each."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.lab.knobs import figures_of, main, number_of, read_plan, table
from eval.lab.report import draw_rows
from opensora.engine.build import build_components
from opensora.utils.config import load_config
from opensora.utils.weights import save_safetensors

CONFIG = str(Path(__file__).parents[2] / "data/tiny_inference.py")
NAMES = ("shape", "color", "motion", "background")


def result(rights, loss=None, **measures):
    """Return what eval.lab would: of each clip the first `right` of four attributes are right."""
    clips = [
        {"prompt": "p", "right": {name: i < right for i, name in enumerate(NAMES)}, **measures}
        for right in rights
    ]
    return {"modes": {"t2v": {"clips": clips}}, "loss": loss}


def setting(name, runs=1, measure=None):
    return {"name": name, "measure": measure, "runs": [[]] * runs}


def cells(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} ")]
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_one_run_is_summed_up_over_its_clips():
    found = [figures_of([result([4, 4, 2, 2])]), figures_of([result([4, 2, 2, 0], **{"color drift": 2.5})])]
    text = table(found, [setting("base"), setting("other", measure="color drift")])
    assert "intervals over clips" in text
    assert (
        cells(text, "base")[1:3] == ["50 % (15 to 85)", "75 % (50 to 100)"] and cells(text, "base")[3] == ""
    )
    other = cells(text, "other")
    assert (
        other[1].startswith("25 %")
        and other[3].startswith("-25 (")
        and other[-1] == "2.5/255 of colour drift"
    )
    assert other[4:7] == ["75 %", "75 %", "25 %"]
    assert number_of(found[1], setting("other")) == "25% all right, 50% of attributes"


def test_a_share_of_none_has_an_interval():
    assert cells(table([figures_of([result([0] * 10)])], [setting("base")]), "base")[1] == "0 % (0 to 28)"


def test_seeds_are_compared_in_pairs():
    """The seeds differ much, but the other setting is better by as much in each: the difference is sure."""
    rights = ([4, 0], [4, 2], [2, 0])
    base = figures_of([result(own, loss=0.1 * (i + 1)) for i, own in enumerate(rights)])
    other = figures_of(
        [result([*own[:-1], own[-1] + 1], loss=0.1 * (i + 1) - 0.05) for i, own in enumerate(rights)]
    )
    assert base["attributes right"] == [0.5, 0.75, 0.25]
    text = table([base, other], [setting("base", 3), setting("other", 3)])
    assert "t-intervals over 3 seeds" in text
    assert cells(text, "base")[2] == "50 % (-12 to 112)"  # 4.303 * 0.25 / sqrt(3) beside 0.5
    assert cells(text, "other")[3] == "+12"  # the same for each seed
    assert cells(text, "other")[-2] == "-0.0500"


def test_what_was_asked_otherwise_has_no_difference():
    found = [figures_of([result([4, 4])]), figures_of([result([4])])]
    assert cells(table(found, [setting("base"), setting("few")]), "few")[3] == ""


def test_the_picture_has_a_row_for_each_setting(tmp_path):
    shades = (40, 120, 200)
    clips = {shade: [np.full((9, 32, 32, 3), shade, np.uint8)] * 2 for shade in shades}
    rows = [(f"a knob with a long name {shade}", "50 % right", own) for shade, own in clips.items()]
    draw_rows(rows, ["first prompt", "second prompt"], tmp_path / "rows.png")
    picture = np.asarray(Image.open(tmp_path / "rows.png"))
    for column in (230, picture.shape[1] - 30):  # in the first frame of the first clip, the last of the last
        seen = [shade for shade in picture[:, column, 0].tolist() if shade in shades]
        assert list(dict.fromkeys(seen)) == list(shades) and [seen.count(s) for s in shades] == [64] * 3
    assert all((picture[28 + 68 * row :][:64, :200] < 100).any() for row in range(3))  # names beside them


@pytest.fixture
def knobs(tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    built = build_components(load_config([CONFIG]))
    for name in ("model", "vae"):
        save_safetensors(getattr(built, name).state_dict(), tmp_path / f"{name}.safetensors")
    words = [
        "--vae.from-pretrained",
        f"{tmp_path}/vae.safetensors",
        "--device",
        "cpu",
        "--save-dir",
        "unused",
    ]
    words += ["--image-size", "32", "32", "--num-frames", "9", "--neighbours", "0", "--seeds", "1"]
    model = [["--model.from-pretrained", f"{tmp_path}/model.safetensors"]]

    def run(prompts, scales=(3.0, 1.0)):
        rows = [
            {"name": f"scale {scale}", "options": ["--guidance.scales.text.scale", scale], "modes": ["t2v"]}
            for scale in scales
        ]
        rows = [{**row, "measure": None, "runs": model} for row in rows]
        plan = {
            "config": CONFIG,
            "options": [*words, "--prompts", prompts],
            "loss_clips": 2,
            "settings": rows,
        }
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        monkeypatch.setattr(sys, "argv", ["knobs", str(tmp_path / "plan.json")])
        main()
        times = {p.parent.name: p.stat().st_mtime_ns for p in tmp_path.glob("plan/*/result.json")}
        shown = capsys.readouterr().out
        return shown[shown.index("| | all right") :], times

    run.folder = tmp_path
    return run


def test_what_was_judged_is_not_judged_again(knobs):
    shown, times = knobs(2)
    assert (knobs.folder / "plan.md").read_text() == shown and "| scale 1.0 |" in shown
    assert Image.open(knobs.folder / "plan.png").height == 28 + 2 * 68
    assert set(times) == {"scale_3.0-0", "scale_1.0-0"}
    losses = list((knobs.folder / "plan").glob("loss-*.json"))
    assert len(losses) == 1 and json.loads(losses[0].read_text()) > 0  # of the weights, whatever the guidance
    (knobs.folder / "plan/scale_1.0-0/result.json").unlink()  # stopped before it was written
    again, later = knobs(2)
    assert again == shown and later["scale_3.0-0"] == times["scale_3.0-0"]
    assert later["scale_1.0-0"] > times["scale_1.0-0"]
    save = build_components(load_config([CONFIG])).model.state_dict()  # other weights
    save_safetensors({name: value + 0.01 for name, value in save.items()}, knobs.folder / "model.safetensors")
    changed = knobs(2)[1]
    assert all(changed[name] > later[name] for name in later)
    fewer = knobs(1)[1]
    assert all(fewer[name] > changed[name] for name in changed)


def test_wrong_options_end_it_before_anything_is_judged(knobs):
    with pytest.raises(SystemExit):
        knobs(1, scales=(3.0, "much"))
    assert not list((knobs.folder / "plan").glob("*"))


@pytest.mark.parametrize(
    "text, message", [(None, "no such plan"), ("{", "is no JSON"), ("{}", "lacks config")]
)
def test_a_plan_that_is_none(tmp_path, text, message):
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        read_plan(path)
