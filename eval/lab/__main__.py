"""Judge a model of the generated world: how many of its clips show what was asked.

    python -m eval.lab CONFIG --prompts 500 [--modes t2v i2v extend] [--num-sampling-steps 12]
    python -m eval.lab CONFIG --modes vae real
    torchrun --nproc_per_node 2 -m eval.lab CONFIG --prompts 500

CONFIG is one for scripts/inference.py; keys of configs/_base_/lab.py are added. Printed are tables in
Markdown; LAB_DIR holds them with a sheet of clips, and result.json with the figures of every clip. Clips that
are there are not made again, so a run that was stopped goes on. "vae" judges the autoencoder's round trip,
"real" true clips: the most that can be reached.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.lab.cases import Case, is_simple, make_cases
from eval.lab.measures import diversity, nearest
from eval.lab.report import draw_sheet, markdown
from eval.lab.trial import MODES, ask, make, read_frames, sum_up, to_bytes
from eval.statistics import summarise
from opensora.acceleration.parallel import init_distributed, parallel_state, shut_down
from opensora.datasets.shape_world import one_object
from opensora.datasets.shapes import ShapesDataset
from opensora.engine.inference import Session
from opensora.engine.recipe import Recipes
from opensora.utils.config import read_command_line
from opensora.utils.config_defaults import base_configs
from opensora.utils.files import write_text
from opensora.utils.random import Draws
from opensora.utils.user_errors import one_line_errors

_FREE = (*("device", "verbose", "weight_hashes", "video_format", "contact_sheet", "metadata"), "crf")


def main() -> None:
    """Read the command line, judge, print; end with one line and status 2 where something is wrong."""
    cfg = read_command_line(__doc__, also="lab")
    with one_line_errors():
        try:
            result = run(cfg)
            is_main = parallel_state().is_main
        finally:
            shut_down()
        if is_main:
            sys.stdout.write(markdown(result))


def run(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Judge all modes of a config, and write what came out.

    Args:
        cfg: Keys of `configs/_base_/inference.py`, `configs/_base_/lab.py` and of the components.

    Returns:
        On the main process "modes" (by name, as `sum_up`), "more" (other figures), "conditions".

    Raises:
        ValueError: A setting is wrong.
        FileNotFoundError: Weights are missing.
    """
    cfg = _checked(cfg)
    session = Session(cfg)
    training = ShapesDataset(
        **{
            "num_frames": cfg["num_frames"],
            "image_size": cfg["image_size"],
            "fps": cfg["fps"],
            **cfg["world"],
        }
    )
    cases = make_cases(cfg["world"], cfg["prompts"], cfg["num_frames"], cfg["fps"])
    made_by = conditions(cfg, init_device(cfg).type)
    home = Path(cfg["lab_dir"] or f"{cfg['save_dir']}_lab")
    folder = clips_folder(home, made_by)
    result: dict[str, Any] = {"modes": {}, "more": {}, "conditions": made_by}
    for mode in cfg["modes"]:
        answers = ask(mode, cases, cfg, training.world, folder, session)
        if answers:
            result["modes"][mode] = sum_up(answers)
            home.mkdir(parents=True, exist_ok=True)
            draw_sheet(answers, home / f"{mode}.png")
        if mode == "t2v":
            clips = [answer.frames for answer in answers]
            result["more"] |= _more(cases, clips, cfg, training, folder, session)
    if parallel_state().is_main:
        write_text(json.dumps(result, indent=1), home / "result.json")
        write_text(markdown(result), home / "result.md")
    return result


def conditions(cfg: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Return what the clips depend on, as JSON: settings, and hashes of the weights."""
    left_out = {*base_configs()["lab"], *_FREE} - {"world", "rounds"}
    recipe = Recipes({key: value for key, value in cfg.items() if key != "dataset"}, device)
    settings = {key: value for key, value in recipe.config.items() if key not in left_out}
    return json.loads(json.dumps({"settings": settings, "weights": recipe.common["weights"]}, default=str))


def init_device(cfg: Mapping[str, Any]) -> torch.device:
    """Join other processes, if there are any; return where a config computes."""
    return init_distributed(None if cfg["device"] == "auto" else cfg["device"]).device


def clips_folder(home: Path, made_by: Mapping[str, Any]) -> Path:
    """Return the folder of the clips that were made under these `conditions`."""
    name = hashlib.blake2b(json.dumps(made_by, sort_keys=True).encode(), digest_size=6).hexdigest()
    return home / f"clips-{name}"


def _checked(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Check what this program needs beyond inference."""
    unknown = [mode for mode in cfg["modes"] if mode not in MODES]
    if isinstance(cfg["modes"], str) or unknown or not cfg["modes"]:
        raise ValueError(f"modes={cfg['modes']!r}: a list of some of {', '.join(MODES)}.")
    if not isinstance(cfg["num_frames"], int) or cfg["num_frames"] < 3 or cfg["image_size"] is None:
        raise ValueError(
            f"num_frames={cfg['num_frames']!r}, image_size={cfg['image_size']!r}: give numbers, such as "
            "num_frames=9, image_size=(32, 32); motion needs 3 frames."
        )
    if "extend" in cfg["modes"] and cfg["rounds"] < 2:
        raise ValueError(f"rounds={cfg['rounds']}: clips that continue each other are at least 2.")
    return {**cfg, "image_size": tuple(cfg["image_size"])}


def _more(
    cases: list[Case],
    clips: list[np.ndarray],
    cfg: Mapping[str, Any],
    training: ShapesDataset,
    folder: Path,
    session: Session,
) -> dict[str, str]:
    """Return the figures of a whole set of clips: how varied they are, and how near to those learned."""
    found = {}
    few, seeds = cases[: cfg["diverse_prompts"]], cfg["seeds"]
    if seeds > 1 and few:
        paths = make(few, cfg, folder / "seeds", session, num_sample=seeds)
        if parallel_state().is_main:
            own = [read_frames(path) for path in paths]
            text = f"{diversity([own[i : i + seeds] for i in range(0, len(own), seeds)]):.1f}/255"
            if is_simple(training.world):
                text += f", of true clips {diversity([_true(case, cfg, training) for case in few]):.1f}/255"
            found["diversity"] = f"{seeds} seeds of a prompt differ by {text} ({len(few)} prompts)"
    if cfg["neighbours"] and clips:
        size = cfg["image_size"]
        true = np.stack([to_bytes(case.scene.draw(len(clips[0]), *size)) for case in cases])
        far = [
            summarise(nearest(part, training, cfg["neighbours"]))["mean"] for part in (np.stack(clips), true)
        ]
        found["memorisation"] = (
            f"the nearest of {cfg['neighbours']} training clips is {far[0]:.1f}/255 away, from true clips "
            f"that were held out {far[1]:.1f}/255"
        )
    return found


def _true(case: Case, cfg: Mapping[str, Any], training: ShapesDataset) -> list[np.ndarray]:
    """Return true clips of a case, as many as there are seeds."""
    thing, scene, clips = case.scene.things[0], case.scene, []
    for number in range(cfg["seeds"]):
        u = Draws(1, [number]).uniform("true", 0, (1, 6))[0].double().tolist()
        kind = (thing.shape, thing.color, thing.motion)
        other = one_object(training.world, kind, scene.background, u, scene.num_frames, scene.fps)
        clips.append(to_bytes(other.draw(scene.num_frames, *cfg["image_size"])))
    return clips


if __name__ == "__main__":
    main()
