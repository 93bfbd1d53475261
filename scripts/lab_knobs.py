"""What each knob does: settings of the lab judged alike, in one table and one picture.

    python scripts/lab_knobs.py [--folder outputs/lab] [--prompts 100] [--only steps fps]
    python scripts/lab_knobs.py --training [--seeds 3] [--scale 0.25]

The first trains nothing: it changes one setting of inference at a time in the shipped models, and shows what
averaging changed in the run of the folder. --training trains denoisers that differ from the shipped stages in
one thing each, from several seeds. The same command again goes on where it was stopped.
"""

import argparse
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab import (
    AUTOENCODER,
    LONG_PROMPTS,
    STAGES,
    T2V,
    TRAIN,
    configs_of,
    features,
    keep_same,
    option_words,
    own_models,
    prepare,
    run,
    train,
)

from opensora.utils.files import write_text

ABLATED = STAGES[:2]  # those of canonical captions
_SCALE, _INTERVAL = "--guidance.scales.text.scale", "--guidance.scales.text.interval"
GUIDANCE, SAMPLING_STEPS, FPS_TIMES, ROUNDS = (1.0, 2.0, 5.0, 8.0), (4, 25), (0.5, 2.0), (3, 10)
WINDOWS = {  # of temporal blocks
    "one position": (-1, 1, 1),
    "lines": (-1, 1, -1),
    "2 x 2": (-1, 2, 2),
    "the whole frame": (-1, -1, -1),
}
DROPOUTS = (0.0, 0.1, 0.3)


def main() -> None:
    """Compare settings and say where table and picture are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("outputs/lab"))
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--prompts", type=int, default=100, help="prompts that a setting is judged by")
    parser.add_argument(
        "--only", nargs="+", help="only settings named with one of these words, and the first"
    )
    parser.add_argument("--training", action="store_true", help="compare settings of training")
    parser.add_argument(
        "--scale", type=float, default=0.25, help="of training: times the steps of the configs"
    )
    parser.add_argument("--seeds", type=int, default=3, help="of training: runs of each setting")
    args = parser.parse_args()
    prepare(parser, args)
    if args.training:
        settings = chosen(training_settings(), args.only)
        ablations(args.folder, settings, args.prompts, args.scale, args.seeds)
    else:
        settings = chosen(inference_settings(args.folder, args.prompts), args.only)
        compare(args.folder / "knobs" / "knobs.json", settings, args.prompts)


def setting(
    name: str,
    options: Sequence[object] = (),
    training: dict[str, list[object]] | None = None,
    modes: Sequence[str] = ("t2v",),
    measure: str | None = None,
) -> dict[str, Any]:
    """Return a row of the comparison.

    Args:
        name: For the table.
        options: In which sampling differs.
        training: In which stages of training differ, by name of the stage.
        modes: Of eval.lab; the first is shown.
        measure: Another of its figures to show.
    """
    own = {
        "name": name,
        "options": list(map(str, options)),
        "modes": list(modes),
        "measure": measure,
        "runs": [[]],
    }
    return own | {"training": {stage: words for stage, words in (training or {}).items() if words}}


def compare(plan: Path, settings: Sequence[dict[str, Any]], prompts: int, loss_clips: int = 0) -> None:
    """Judge settings with the same prompts and noise; write their table and picture beside the plan."""
    options = ["--prompts", prompts, "--seeds", 1, "--neighbours", 0, "--save-dir", plan.parent / "clips"]
    whole = {"config": T2V, "options": options, "loss_clips": loss_clips}
    whole["settings"] = [{key: row[key] for key in row if key != "training"} for row in settings]
    plan.parent.mkdir(parents=True, exist_ok=True)
    write_text(json.dumps(whole, indent=1, default=str), plan)
    run("-m", "eval.lab.knobs", plan, quiet=False)
    print(f"{plan.with_suffix('.md')}, {plan.with_suffix('.png')}", flush=True)


def inference_settings(folder: Path, prompts: int) -> list[dict[str, Any]]:
    """Return the shipped setting and others, and the weights of the folder's own run if there is one."""
    from opensora.utils.config import load_config

    cfg = load_config([str(T2V)])
    scale, steps, fps = cfg.guidance.scales.text.scale, cfg.scheduler.num_sampling_steps, cfg.fps
    shift = ("time shift off", "time shift on")
    on = bool(cfg.scheduler.shift_time)
    words = f"as shipped: guidance {scale:g}, {steps} steps, {shift[on]}, {fps:g} fps"
    rows = [setting(words, measure="speed ratio")]
    rows += [setting(f"guidance scale {value:g}", [_SCALE, value]) for value in GUIDANCE if value != scale]
    all_steps = "guidance in all steps"
    rows.append(setting(all_steps, [_INTERVAL, None]))
    rows += [
        setting(f"{number} steps", ["--num-sampling-steps", number])
        for number in SAMPLING_STEPS
        if number != steps
    ]
    rows.append(setting(shift[not on], ["--scheduler.shift_time", not on]))
    for times in FPS_TIMES:
        other = type(fps)(fps * times)
        rows.append(setting(f"{other:g} fps", ["--fps", other], measure="speed ratio"))
    few = ["--prompts", min(prompts, LONG_PROMPTS)]
    for rounds in ROUNDS:
        options = ["--rounds", rounds, *few]
        rows.append(setting(f"loop {rounds}", options, modes=["extend"], measure="color drift"))
    options += [_INTERVAL, None]  # of the longest
    rows.append(setting(f"loop {rounds}, {all_steps}", options, modes=["extend"], measure="color drift"))
    statistics = folder / "latents.json"
    if statistics.exists() and list((folder / STAGES[-1]).glob("checkpoints/*")):
        own = own_models(folder, option_words(statistics))
        rows.append(setting("own run, averaged weights (EMA)", own))
        rows.append(setting("own run, last weights (no EMA)", [*own, "--ema", False]))
    return rows


def training_settings() -> list[dict[str, Any]]:
    """Return the shipped training and others that differ in one thing each."""
    from opensora.utils.config import load_config, plain

    stages = {name: load_config([str(TRAIN / f"{name}.py")]) for name in ABLATED}
    first = plain(stages[STAGES[0]])
    model, dropout, times = (
        first["model"],
        first["condition_dropout"],
        first["scheduler"]["time_distribution"],
    )

    def all_stages(*words: object) -> dict[str, list[object]]:
        return dict.fromkeys(stages, list(words))

    def network(name: str, *words: object) -> dict[str, Any]:
        return setting(name, words, all_stages(*words))

    rows = [setting("as shipped", modes=["t2v", "i2v"]), setting("last weights (no EMA)", ["--ema", False])]
    rows.append(
        network(f"QK-norm {'off' if model['qk_norm'] else 'on'}", "--model.qk_norm", not model["qk_norm"])
    )
    for name, size in WINDOWS.items():
        if size != tuple(model["window_size"] or WINDOWS["one position"]):
            rows.append(network(f"window: {name}", "--model.window_size", size))
    shifted = ("--model.window_size", WINDOWS["2 x 2"], "--model.shift_window", True)
    rows.append(network("window: 2 x 2, shifted", *shifted))
    for name, factor in (("none", 0.0), ("twice as often", 2.0)):
        words = {stage: masks(plain(cfg["frame_mask"]), factor) for stage, cfg in stages.items()}
        rows.append(setting(f"given frames: {name}", (), words, modes=["t2v", "i2v"]))
    for value in DROPOUTS:
        drop = all_stages("--condition_dropout", dict.fromkeys(dropout, value))
        if set(dropout.values()) != {value}:
            rows.append(setting(f"condition dropout {value:g}", (), drop))
        if value == 0:
            rows.append(setting("condition dropout 0, guidance scale 1", [_SCALE, 1.0], drop))
    other = "uniform" if times == "logit-normal" else "logit-normal"
    rows.append(setting(f"times: {other}", (), all_stages("--scheduler.time_distribution", other)))
    return rows


def masks(shipped: dict[str, Any] | None, factor: float) -> list[object]:
    """Return the options that give frames so many times as often; none for a stage without masks."""
    if shipped is None:
        return []
    ratios = {kind: value * factor for kind, value in shipped["ratios"].items() if kind != "identity"}
    most = max(1.0, sum(ratios.values()))
    ratios = {kind: value / most for kind, value in ratios.items()}
    return ["--frame_mask", repr({**shipped, "ratios": ratios}) if factor else None]


def chosen(settings: Sequence[dict[str, Any]], only: Sequence[str] | None) -> list[dict[str, Any]]:
    """Return the first setting, with which others are compared, and those named with one of the words."""
    found = [row for row in settings[1:] if only is None or any(word in row["name"] for word in only)]
    if not found:
        names = "; ".join(row["name"] for row in settings[1:])
        raise SystemExit(f"--only {' '.join(only or ())}: in no name. The names: {names}.")
    return [settings[0], *found]


def ablations(
    folder: Path, settings: Sequence[dict[str, Any]], prompts: int, scale: float, seeds: int
) -> None:
    """Train each setting from each seed, and write their table. A seed is done for all, then the next."""
    vae: list[object] = []  # the shipped one
    data = folder / "shipped_features"
    if (folder / "latents.json").exists():
        vae = ["--vae.from_pretrained", folder / AUTOENCODER[-1], *option_words(folder / "latents.json")]
        data = folder / "features"
    home = folder / f"ablations-{scale:g}"
    check_same(home / "made_of.json", vae)
    cached = features(data, vae)
    runs: list[list[list[object]]] = [[] for _ in settings]
    for seed in range(1, seeds + 1):
        words = [*cached, *vae, "--seed", seed, "--ckpt-keep", 1]
        for own, row in zip(runs, settings, strict=True):
            own.append(
                [*vae, "--model.from_pretrained", train_setting(home, row, f"seed{seed}", scale, words)]
            )
        rows = [row | {"runs": own} for row, own in zip(settings, runs, strict=True)]
        compare(home / "ablations.json", rows, prompts, 2 * prompts)


def train_setting(
    home: Path, row: dict[str, Any], run_of: str, scale: float, words: Sequence[object]
) -> Path:
    """Train the stages of a setting; those that do not differ from the shipped ones are shared. Return it."""
    name, before = "as_shipped", []
    for stage in ABLATED:
        if stage in row["training"]:
            name = re.sub(r"[^\w.-]+", "_", " ".join(map(str, row["training"][stage]))).strip("-_")
        own = row["training"][stage] if stage in row["training"] else []
        train(stage, home / name / run_of, scale, "train", *words, *before, *own)
        before = ["--model.from_pretrained", home / name / run_of / stage]
    return home / name / run_of / ABLATED[-1]


def check_same(path: Path, vae: Sequence[object]) -> None:
    """Stop where runs of other configs or another autoencoder lie: they cannot stand in one table."""
    from opensora.engine.recipe import hash_weight_files
    from opensora.utils.config import load_config

    made_of: dict[str, Any] = configs_of(ABLATED)
    made_of["vae"] = hash_weight_files(load_config([str(T2V), *map(str, vae)]), None)["vae"]
    keep_same(path, made_of, "its runs had other configs or another autoencoder")


if __name__ == "__main__":
    main()
