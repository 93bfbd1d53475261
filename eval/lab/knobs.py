"""What a knob does: settings judged alike, in one table and one picture with a row for each.

    python -m eval.lab.knobs PLAN.json

scripts/lab_knobs.py writes such plans; PLAN.md and PLAN.png appear beside it. What was judged with the same
settings and weights is not judged again. Keys of a plan:

    config      a config for scripts/inference.py
    options     words for all settings, such as ["--prompts", 100]
    loss_clips  unseen clips that the loss is measured on; 0 leaves it out
    settings    list of {"name", "options", "modes", "measure", "runs"}; the first is what others are compared
                with. "runs" has one list of options for each run, such as the weights of each seed
"""

import argparse
import hashlib
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.lab.__main__ import clips_folder, conditions, init_device, run
from eval.lab.report import draw_rows
from eval.lab.trial import read_frames
from eval.statistics import over_runs, share, summarise
from opensora.acceleration.parallel import shut_down
from opensora.datasets.buckets import ClipIndex
from opensora.datasets.loader import collate
from opensora.datasets.shapes import ShapesDataset
from opensora.engine.latent_diffusion import LatentDiffusion
from opensora.utils.config import load_config
from opensora.utils.files import write_text
from opensora.utils.logging import get_logger
from opensora.utils.random import Draws
from opensora.utils.user_errors import one_line_errors

SHOWN = 3  # prompts in the picture
_TIMES = 9  # at which the loss is taken
_BATCH = 50
_SINGLE = ("shape", "color", "motion")  # attributes that have a column
_SAID = {"color drift": "{:.1f}/255 of colour drift", "speed ratio": "{:.2f} of the true speed"}

Figures = dict[str, list[float]]  # by name, one per clip, or one per run where there are several runs


def main() -> None:
    """Judge what a plan lists, write table and picture, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.lab.knobs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("plan", type=Path)
    path = parser.parse_args().plan
    with one_line_errors():
        try:
            plan = read_plan(path)
            found = compare(plan, path.parent / path.stem)
        finally:
            shut_down()
    text = table(found, plan["settings"])
    write_text(text, path.with_suffix(".md"))
    sys.stdout.write(text)


def read_plan(path: Path) -> dict[str, Any]:
    """Read a plan.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is no JSON, or lacks a key.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such plan; scripts/lab_knobs.py writes one.")
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); scripts/lab_knobs.py writes a plan.") from None
    missing = [key for key in ("config", "options", "settings") if key not in plan]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; see the top of eval/lab/knobs.py.")
    return plan


def compare(plan: Mapping[str, Any], home: Path) -> list[Figures]:
    """Judge all settings of a plan and draw them beneath each other.

    Args:
        plan: As the head of this file says.
        home: Folder of what is judged; the picture is `home` with ".png".

    Returns:
        For each setting what `figures_of` gives.
    """
    found, rows, titles = [], [], []
    every = [_configs(plan, setting, home) for setting in plan["settings"]]  # wrong options end it here
    for setting, cfgs in zip(plan["settings"], every, strict=True):
        results = []
        for number, cfg in enumerate(cfgs, 1):
            get_logger().info("%s, run %d of %d", setting["name"], number, len(cfgs))
            results.append(judged(cfg) | {"loss": unseen_loss(cfg, plan["loss_clips"])})
        found.append(figures_of(results))
        mode = setting["modes"][0]
        titles = titles or [row["prompt"] for row in results[0]["modes"][mode]["clips"][:SHOWN]]
        clips = first_clips(Path(cfgs[0]["lab_dir"]), results[0], mode)
        rows.append((setting["name"], number_of(found[-1], setting), clips))
    draw_rows(rows, titles, home.with_suffix(".png"))
    return found


def judged(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of eval.lab: what lies there if settings and weights are the same, else a new one."""
    path = Path(cfg["lab_dir"]) / "result.json"
    if path.exists():
        result = json.loads(path.read_text(encoding="utf-8"))
        modes = result["modes"]
        alike = list(modes) == list(cfg["modes"]) and result["conditions"] == conditions(
            cfg, init_device(cfg).type
        )
        if alike and all(len(part["clips"]) == cfg["prompts"] for part in modes.values()):
            return result
    return run(cfg)


def unseen_loss(cfg: Mapping[str, Any], clips: int) -> float | None:
    """Return the mean loss of clips that were held out, at fixed times, with fixed noise.

    Args:
        cfg: Keys as for `eval.lab`. The figure is kept beside `lab_dir`, for these weights.
        clips: How many; 0 gives None.
    """
    if not clips:
        return None
    made_by = conditions(cfg, init_device(cfg).type)
    key = {"weights": made_by["weights"], "model": made_by["settings"]["model"], "clips": clips}
    name = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=6).hexdigest()
    path = Path(cfg["lab_dir"]).parent / f"loss-{name}.json"
    if path.exists():
        return float(json.loads(path.read_text(encoding="utf-8")))
    task = LatentDiffusion.from_config(cfg)
    task.place(init_device(cfg), torch.float32)
    task.model.eval().to(task.placed)
    shape = {name: cfg[name] for name in ("num_frames", "image_size", "fps")}
    data = ShapesDataset(
        **{**shape, "caption_style": "canonical", **cfg["world"], "split": "unseen", "size": clips}
    )
    total = 0.0
    for start in range(0, clips, _BATCH):
        rows = range(start, min(start + _BATCH, clips))
        batch = collate([data[ClipIndex(row, cfg["num_frames"], *cfg["image_size"], 0)] for row in rows])
        total += task.evaluate(batch, _TIMES, Draws(0, list(rows)))["loss"] * len(rows)
    write_text(json.dumps(total / clips), path)
    return total / clips


def figures_of(results: Sequence[Mapping[str, Any]]) -> Figures:
    """Return the figures of a setting, of each clip if there is one run, else the means of each run.

    Args:
        results: Of each run, as eval.lab gives them, with "loss".
    """
    runs = []
    for result in results:
        (mode, part), *others = result["modes"].items()
        rows = part["clips"]
        own = {"all right": [float(all(row["right"].values())) for row in rows]}
        own["attributes right"] = [_share(row) for row in rows]
        own |= {name: [float(row["right"][name]) for row in rows if name in row["right"]] for name in _SINGLE}
        own |= {name: [row[name] for row in rows if name in row] for name in _SAID}
        own |= {f"{name}, attributes right": [_share(row) for row in more["clips"]] for name, more in others}
        own["loss"] = [] if result["loss"] is None else [result["loss"]]
        runs.append({name: values for name, values in own.items() if values})
    if len(runs) == 1:
        return runs[0]
    means = {name: [float(np.mean(run[name])) for run in runs if name in run] for name in runs[0]}
    return {name: values for name, values in means.items() if len(values) == len(runs)}


def table(found: Sequence[Figures], settings: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of a plan in Markdown, with 95 % intervals.

    One run: intervals over its clips. Several runs: t-intervals over the runs. Differences are of the same
    prompts and noise, or of the same seed.

    Args:
        found: Of each setting, the first is what others are compared with.
        settings: Of the plan.
    """
    runs = len(settings[0]["runs"])
    spread, paired = (_over_clips, summarise) if runs == 1 else (over_runs, over_runs)
    shares = ["all right", "attributes right"]
    more = list(dict.fromkeys(name for one in found for name in one if name.endswith(", attributes right")))
    heads = [*shares, "against the first row", *_SINGLE, *more]
    heads += ["loss", "against the first row"] if "loss" in found[0] else []
    lines = [f"| | {' | '.join(heads)} | also |", "|---" * (len(heads) + 2) + "|"]
    for number, (own, setting) in enumerate(zip(found, settings, strict=True)):
        cells = [_percent(spread(own[name])) for name in shares]
        cells.append(_difference(own, found[0], "attributes right", paired, 100) if number else "")
        cells += [_percent(spread(own[name]), False) for name in _SINGLE]
        cells += [_percent(spread(own[name])) if name in own else "" for name in more]
        if "loss" in found[0]:
            figure = spread(own["loss"])
            cells += [f"{figure['mean']:.4f}{_between(figure, '.4f')}"]
            cells += [_difference(own, found[0], "loss", paired, 1, "+.4f") if number else ""]
        cells.append(_also(own, setting))
        lines.append(f"| {setting['name']} | {' | '.join(cells)} |")
    how = f"t-intervals over {runs} seeds" if runs > 1 else "intervals over clips"
    return "\n".join(lines) + f"\n\nIn brackets: 95 % {how}. Differences are paired.\n"


def number_of(own: Figures, setting: Mapping[str, Any]) -> str:
    """Return the figures that stand beside a row of pictures."""
    parts = [
        f"{np.mean(own['all right']):.0%} all right, {np.mean(own['attributes right']):.0%} of attributes"
    ]
    parts += [f"loss {np.mean(own['loss']):.4f}"] if "loss" in own else []
    return ", ".join([*parts, *filter(None, [_also(own, setting)])])


def first_clips(folder: Path, result: Mapping[str, Any], mode: str) -> list[np.ndarray]:
    """Return the clips of the first prompts. Bytes, shape [T, H, W, 3] each."""
    home, count = clips_folder(folder, result["conditions"]) / mode, len(result["modes"][mode]["clips"])
    return [read_frames(home / f"sample_{number:04d}") for number in range(min(SHOWN, count))]


def _configs(plan: Mapping[str, Any], setting: Mapping[str, Any], home: Path) -> list[Mapping[str, Any]]:
    """Return the config of each run of a setting."""
    name, found = re.sub(r"[^\w.-]+", "_", setting["name"]), []
    for number, words in enumerate(setting["runs"]):
        argv = [plan["config"], *plan["options"], *setting["options"], *words, "--modes", *setting["modes"]]
        found.append(load_config([*map(str, argv), "--lab-dir", str(home / f"{name}-{number}")], also="lab"))
    return found


def _over_clips(values: Sequence[float]) -> Mapping[str, Any]:
    if set(values) <= {0.0, 1.0}:  # a share: resampling would give 0 of 100 no interval
        found = share(int(sum(values)), len(values))
        return found | {"mean": found["share"]}
    return summarise(values)


def _share(row: Mapping[str, Any]) -> float:
    return float(np.mean(list(row["right"].values())))


def _also(own: Figures, setting: Mapping[str, Any]) -> str:
    name = setting["measure"]
    return _SAID[name].format(np.mean(own[name])) if name in own else ""


def _difference(own: Figures, base: Figures, name: str, spread: Any, scale: float, form: str = "+.0f") -> str:
    """Return the mean difference of pairs; nothing where the two were not asked the same."""
    if len(own[name]) != len(base[name]):
        return ""
    figure = spread([scale * (one - other) for one, other in zip(own[name], base[name], strict=True)])
    return f"{figure['mean']:{form}}{_between(figure, form)}"


def _percent(figure: Mapping[str, Any], interval: bool = True) -> str:
    scaled = {name: figure[name] and 100 * figure[name] for name in ("mean", "low", "high")}
    return f"{scaled['mean']:.0f} %{_between(scaled, '.0f') if interval else ''}"


def _between(figure: Mapping[str, Any], form: str) -> str:
    """Return an interval; none where all values agree, which says nothing of how far others would lie."""
    if figure["low"] is None or math.isclose(figure["low"], figure["high"], abs_tol=1e-9):
        return ""
    return f" ({figure['low']:{form}} to {figure['high']:{form}})"


if __name__ == "__main__":
    main()
